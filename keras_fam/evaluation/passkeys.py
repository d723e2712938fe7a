"""PassKey as tasks: a key in the first block, filler, and the question, in tokens and in words."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_fam.checks import check_integer
from keras_fam.data.checks import check_sizes
from keras_fam.data.passkey import PassKeyTask
from keras_fam.data.passkey_prompts import passkey_text
from keras_fam.data.tokenizing import check_tokenizer
from keras_fam.evaluation.reading import check_generating_model, check_text_model, generate_behind, write_behind
from keras_fam.evaluation.task import Example, Task


class _PassKeys(Task):
    """Texts of several lengths, `count` of each, a group each; every text is drawn by a seed of its own."""

    def __init__(self, name, blocks, count, seed):
        super().__init__(name)
        self.blocks = [int(each) for each in check_sizes("blocks", blocks)]
        self.count, self.seed = check_integer("count", count, 1), check_integer("seed", seed, 0, None)

    def __len__(self) -> int:
        return len(self.blocks) * self.count

    def examples(self) -> Iterator[Example]:
        for blocks in self.blocks:
            for index in range(self.count):
                text, key = self.make(blocks, np.random.default_rng([self.seed, blocks, index]))
                yield Example(f"{blocks} blocks, {index}", text, key, f"{blocks} blocks")

    def make(self, blocks: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Text and key of one example: for subclasses to say."""
        raise NotImplementedError

    def check(self, lm: Any) -> None:
        check_generating_model(lm)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "blocks": self.blocks, "count": self.count, "seed": self.seed}


class PassKeyTokens(_PassKeys):
    """Whole keys that are answered right, for models trained from scratch on `keras_fam.data.PassKeyTask`.

    Args:
        name: str, the task's name in results.
        task: `keras_fam.data.PassKeyTask`, which makes the texts.
        blocks: ints, blocks in front of the question: a group of examples each.
        count: int, examples of each length.
        seed: int, draws the texts.

    Raises:
        TypeError, ValueError: an argument of another type or out of range.

    Example:

    ```python
    task = keras_fam.data.PassKeyTask(block_size=32, key_length=2)
    task = keras_fam.evaluation.PassKeyTokens("passkey", task, blocks=(2, 8), count=3)
    example = next(task.examples())
    task.evaluate(example.reference, example.reference)  # {"right": 1.0}
    ```
    """

    def __init__(
        self, name: str, task: PassKeyTask, blocks: Sequence[int] = (2, 8, 36), count: int = 100, seed: int = 0
    ):
        super().__init__(name, blocks, count, seed)
        if not isinstance(task, PassKeyTask):
            raise TypeError(
                f"`task` must be a keras_fam.data.PassKeyTask. Received: task of type {type(task).__name__}."
            )
        self.task = task

    def make(self, blocks: int, rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
        """Makes the text of one example.

        Args:
            blocks: int, in front of the question.
            rng: `numpy.random.Generator`, which draws filler and key.

        Returns:
            `(token ids, answer)`: int `[length]`, and the key's tokens.
        """
        token_ids, keys = self.task.prompt(1, blocks, rng)
        return token_ids[0], self.task.answers(keys)[0].tolist()

    def check(self, lm: Any) -> None:
        super().check(lm)
        if lm.backbone.vocabulary_size < self.task.vocabulary_size:
            raise ValueError(
                f"`models` must have a vocabulary of at least {self.task.vocabulary_size} tokens for `{self.name}`. "
                f"Received: a model with {lm.backbone.vocabulary_size}."
            )

    def predict(self, lm: Any, example: Example) -> list[int]:
        return generate_behind(lm, example.input, self.task.key_length, stop=False)

    def evaluate(self, prediction: list[int], reference: list[int]) -> dict[str, float]:
        return {"right": float(list(prediction) == list(reference))}

    def get_config(self) -> dict[str, Any]:
        names = ("block_size", "key_length", "filler_length", "noise", "num_keys")
        return {**super().get_config(), **{name: getattr(self.task, name) for name in names}}


class PassKeyWords(_PassKeys):
    """Whole keys that are answered right in plain text, for pretrained models (`keras_fam.data.passkey_text`).

    Args:
        name: str, the task's name in results.
        tokenizer: a KerasHub tokenizer, which says how long a text may be.
        block_size: int, tokens of a block; the first holds introduction and key.
        blocks: ints, blocks of a text: a group of examples each.
        count: int, examples of each length.
        key_length: int, digits of a key.
        seed: int, draws the texts.

    Raises:
        TypeError, ValueError: an argument of another type or out of range; blocks that are too short for a text.

    Example:

    ```python
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    task = keras_fam.evaluation.PassKeyWords("passkey", tokenizer, block_size=512, blocks=(2, 4), count=3)
    task.evaluate(" 12345.", "12345")  # {"right": 1.0}
    ```
    """

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        block_size: int,
        blocks: Sequence[int] = (2, 8, 36),
        count: int = 20,
        key_length: int = 5,
        seed: int = 0,
    ):
        super().__init__(name, blocks, count, seed)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.block_size = check_integer("block_size", block_size, 1)
        self.key_length = check_integer("key_length", key_length, 1)
        self.make(min(self.blocks), np.random.default_rng(0))  # Too short is said here.

    def make(self, blocks: int, rng: np.random.Generator) -> tuple[str, str]:
        """Makes the text of one example.

        Args:
            blocks: int, of the text.
            rng: `numpy.random.Generator`, which draws filler and key.

        Returns:
            `(prompt, key)`: the text up to its question, and the key's digits.
        """
        text = passkey_text(self.tokenizer, blocks, self.block_size, self.key_length, rng)
        return text.prompt, text.key

    def check(self, lm: Any) -> None:
        check_text_model(lm)
        super().check(lm)

    def predict(self, lm: Any, example: Example) -> str:
        answer = lm.preprocessor.tokenizer(f" {example.reference}")
        return write_behind(lm, example.input, len(answer) + 2)

    def evaluate(self, prediction: str, reference: str) -> dict[str, float]:
        number = re.search(r"\d+", prediction)
        return {"right": float(number is not None and number[0] == reference)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block_size": self.block_size, "key_length": self.key_length}
