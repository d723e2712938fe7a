"""Multiple choice: the answer that a model finds likeliest behind the document."""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_fam.evaluation.answering import QUESTION_PROMPT, check_prompt, fill, split_question
from keras_fam.evaluation.json_lines import JsonLines
from keras_fam.evaluation.reading import check_text_model, nats_behind, read_context
from keras_fam.evaluation.task import Example, Task
from keras_fam.models.texts import token_list

_CHOICE = re.compile(r" *\(([A-Z])\)(.*)")


class MultipleChoice(Task):
    """Questions with choices, answered by likelihood: SCROLLS's QuALITY.

    The document is read once; then each choice is read behind it and the likeliest one is the answer: `accuracy` by the
    likelihood of the whole choice, `accuracy_per_token` by that of its tokens on average, which is fairer to long ones.

    Args:
        name: str, the task's name in results.
        path: str or path-like, a file as for `QuestionAnswering`. `output` is the right choice. The choices are a list
            of str in `choices`, or lines `(A) ...`, `(B) ...` of `input`, between question and document.
        prompt: str; see `QuestionAnswering`. A space and a choice are read behind it.

    Raises:
        FileNotFoundError, TypeError, ValueError: see `QuestionAnswering`.

    Example:

    ```python
    with open("choices.jsonl", "w") as file:
        file.write('{"id": "1", "input": "Who?\\\\n\\\\n(A) Ada\\\\n(B) Al\\\\n\\\\nAda wrote.", "output": "Ada"}')
    task = keras_fam.evaluation.MultipleChoice("choices", "choices.jsonl")
    task.evaluate({"nats": [2.0, 3.0], "tokens": [1, 2]}, {"answer": 0})  # {"accuracy": 1.0, "accuracy_per_token": 0.0}
    ```
    """

    def __init__(self, name: str, path: str | os.PathLike, prompt: str = QUESTION_PROMPT):
        super().__init__(name)
        self.prompt = check_prompt(prompt)
        self.file = JsonLines(path, self._example_of)

    def _example_of(self, record):
        asks = "{question}" in self.prompt or "{document}" in self.prompt or record.choices is None
        question, document = split_question(record.input) if asks else ("", "")
        choices = record.choices
        if choices is None:
            choices, document = _listed_choices(document)
        choices = [choice.strip() for choice in choices]
        answer = record.outputs[0].strip()
        if len(choices) < 2 or choices.count(answer) != 1 or not all(choices):
            raise ValueError(
                f"`output` must be one of at least two choices, received {answer!r:.80} for {choices!r:.200}"
            )
        reference = {"choices": choices, "answer": choices.index(answer)}
        return Example(record.id, fill(self.prompt, record.input, question, document), reference)

    def __len__(self) -> int:
        return len(self.file)

    def examples(self) -> Iterator[Example]:
        return map(self._example_of, self.file)

    def check(self, lm: Any) -> None:
        check_text_model(lm)

    def predict(self, lm: Any, example: Example) -> dict[str, list]:
        choices = [token_list(lm.preprocessor.tokenizer(f" {choice}")) for choice in example.reference["choices"]]
        state, last = read_context(lm, example.input)
        nats = [nats_behind(lm, state, last, tokens) for tokens in choices]
        return {"nats": nats, "tokens": [len(tokens) for tokens in choices]}

    def evaluate(self, prediction: dict[str, list], reference: dict[str, Any]) -> dict[str, float]:
        nats, answer = np.array(prediction["nats"]), reference["answer"]
        means = nats / np.array(prediction["tokens"])
        return {
            "accuracy": float(nats.argmin() == answer),
            "accuracy_per_token": float(means.argmin() == answer),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "prompt": self.prompt, "checksum": self.file.checksum}

    def left_out(self) -> list[str]:
        return self.file.broken


def _listed_choices(text):
    """The choices in the first lines of a text, `(A) ...`, `(B) ...` and so on, and the text behind them."""
    lines, choices = text.lstrip("\n").split("\n"), list[str]()
    for line in lines:
        match = _CHOICE.fullmatch(line)
        if not match or match[1] != chr(ord("A") + len(choices)):
            break
        choices.append(match[2])
    return choices, "\n".join(lines[len(choices) :]).lstrip("\n")
