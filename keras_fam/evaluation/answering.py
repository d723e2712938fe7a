"""Tasks that are answered by writing: questions about long documents, and summaries of them."""

import os
from collections.abc import Iterator
from typing import Any

from keras_fam.checks import check_integer
from keras_fam.evaluation.json_lines import JsonLines
from keras_fam.evaluation.metrics import exact_match, f1, rouge, rouge_scorer
from keras_fam.evaluation.reading import check_generating_model, check_text_model, write_behind
from keras_fam.evaluation.task import Example, Task

QUESTION_PROMPT = "{input}\n\nQuestion: {question}\nAnswer:"


def fill(prompt: str, input: str, question: str, document: str) -> str:
    """A prompt with its places filled; braces in the texts mean nothing."""
    parts = {"{input}": input, "{question}": question, "{document}": document}
    for name in parts:
        prompt = prompt.replace(name, f"\0{name}\0")
    return "".join(parts.get(part, part) for part in prompt.split("\0"))


def check_prompt(prompt: Any) -> str:
    """A str with a place for the document."""
    if not isinstance(prompt, str) or "\0" in prompt or not ("{input}" in prompt or "{document}" in prompt):
        raise ValueError(f"`prompt` must be a str with {{input}} or {{document}} in it. Received: prompt={prompt!r}.")
    return prompt


def split_question(text: str) -> tuple[str, str]:
    """The question in front of the first blank line and the document behind it; ValueError without such a line."""
    question, blank, document = text.partition("\n\n")
    if not blank or not question.strip() or not document.strip():
        raise ValueError("`input` must be a question, a blank line and a document, for a prompt with {question}")
    return question.strip(), document


class WritingTask(Task):
    """A task of JSON lines whose answers a model writes."""

    def __init__(self, name: str, path: str | os.PathLike, prompt: str, max_new_tokens: int):
        super().__init__(name)
        self.prompt = check_prompt(prompt)
        self.max_new_tokens = check_integer("max_new_tokens", max_new_tokens, 1)
        self.file = JsonLines(path, self._prompt_of)

    def _prompt_of(self, record):
        asks = "{question}" in self.prompt or "{document}" in self.prompt
        question, document = split_question(record.input) if asks else ("", "")
        return fill(self.prompt, record.input, question, document)

    def __len__(self) -> int:
        return len(self.file)

    def examples(self) -> Iterator[Example]:
        for record in self.file:
            yield Example(record.id, self._prompt_of(record), record.outputs)

    def check(self, lm: Any) -> None:
        check_text_model(lm)
        check_generating_model(lm)

    def predict(self, lm: Any, example: Example) -> str:
        return write_behind(lm, example.input, self.max_new_tokens)

    def get_config(self) -> dict[str, Any]:
        config = {"prompt": self.prompt, "max_new_tokens": self.max_new_tokens, "checksum": self.file.checksum}
        return {**super().get_config(), **config}

    def left_out(self) -> list[str]:
        return self.file.broken


class QuestionAnswering(WritingTask):
    """Questions about documents, answered in a few words and scored by F1 and exact match, as for SQuAD.

    Files are JSON lines as in SCROLLS (Qasper, NarrativeQA, ContractNLI): `id`, `input`, a question, a blank line and
    the document, and `output`, a str or a list of str. The best of several references counts.

    Args:
        name: str, the task's name in results.
        path: str or path-like, the file.
        prompt: str, what the model reads: `{input}`, `{question}` and `{document}` stand for all of `input`, for what
            is in front of its first blank line and for what is behind it. By default the question is read first and
            asked again at the end.
        max_new_tokens: int, the most tokens of an answer. Its first line is scored.

    Raises:
        FileNotFoundError, TypeError, ValueError: no such file; an argument of another type or out of range; no line
            that can be used. Single lines that cannot are left out with a warning that has their numbers.

    Example:

    ```python
    with open("questions.jsonl", "w") as file:
        file.write('{"id": "1", "input": "Who wrote it?\\\\n\\\\nAda wrote the first program.", "output": "Ada"}')
    task = keras_fam.evaluation.QuestionAnswering("questions", "questions.jsonl")
    task.evaluate(" Ada.\\n", ["Ada"])  # {"f1": 1.0, "exact_match": 1.0}
    ```
    """

    def __init__(
        self, name: str, path: str | os.PathLike, prompt: str = QUESTION_PROMPT, max_new_tokens: int = 32
    ) -> None:
        super().__init__(name, path, prompt, max_new_tokens)

    def evaluate(self, prediction: str, reference: list[str]) -> dict[str, float]:
        line = prediction.strip().partition("\n")[0]
        return {"f1": f1(line, reference), "exact_match": exact_match(line, reference)}


class Summarization(WritingTask):
    """Summaries of documents, scored by ROUGE: SCROLLS's GovReport, SummScreenFD and QMSum. Needs `rouge-score`.

    Args:
        name: str, the task's name in results.
        path: str or path-like, a file as for `QuestionAnswering`.
        prompt: str; see there.
        max_new_tokens: int, the most tokens of a summary.

    Raises:
        ImportError: `pip install keras-fam[evaluation]`.
        FileNotFoundError, TypeError, ValueError: see `QuestionAnswering`.

    Example:

    ```python
    with open("reports.jsonl", "w") as file:
        file.write('{"id": "1", "input": "The grass is green. The sky is blue.", "output": "Grass is green."}')
    task = keras_fam.evaluation.Summarization("reports", "reports.jsonl")
    task.evaluate("Green grass.", ["Grass is green."])["rouge1"]  # 0.8
    ```
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike,
        prompt: str = "{input}\n\nSummary:",
        max_new_tokens: int = 512,
    ) -> None:
        rouge_scorer()
        super().__init__(name, path, prompt, max_new_tokens)

    def evaluate(self, prediction: str, reference: list[str]) -> dict[str, float]:
        return rouge(prediction, reference)
