"""Next-token accuracy by position: does a model predict the end of a book better than its beginning?"""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_fam.checks import check_integer
from keras_fam.data.document_files import check_text, find_files
from keras_fam.evaluation.reading import check_text_model
from keras_fam.evaluation.task import Example, Task
from keras_fam.models.reading import Document, block_losses_and_right, scores_in_blocks, token_chunks

_CHARACTERS = 65_536  # That are looked at before any work begins.


class NextTokens(Task):
    """Accuracy and loss of the next token in plain text, over whole documents and by position: PG-19's books, say.

    Every document is read as a stream in fixed memory. Metrics are `accuracy` and `nats` a token, of all its tokens,
    and the same of its tokens 1 to `page`, and so on, as `accuracy, tokens 1 to 1024`. Means are over documents, so
    that an interval says how much documents differ.

    Args:
        name: str, the task's name in results.
        paths: a folder of files `*.txt`, a glob pattern or a list of paths. A file is a document and an example.
        page: int, tokens of a page.

    Raises:
        FileNotFoundError, TypeError, ValueError: an argument of another type or out of range; no files; a file that is
            empty or no UTF-8 text.

    Example:

    ```python
    with open("book.txt", "w") as file:
        file.write("It was the best of times. " * 100)
    task = keras_fam.evaluation.NextTokens("books", ["book.txt"], page=512)
    task.evaluate({"tokens": [512, 4], "right": [256, 1], "nats": [1000.0, 10.0]}, None)["accuracy, tokens 1 to 512"]
    ```
    """

    def __init__(self, name: str, paths: str | os.PathLike | Sequence[str | os.PathLike], page: int = 1024):
        super().__init__(name)
        self.page = check_integer("page", page, 1)
        self.paths = find_files(paths)
        ids = [os.path.basename(path) for path in self.paths]
        if len(set(ids)) < len(ids):  # Files of one name in several folders.
            ids = self.paths
        self._ids, self._checksums = ids, []
        for path in self.paths:
            check_text(path, _CHARACTERS)
            self._checksums.append(_checksum(path))

    def __len__(self) -> int:
        return len(self.paths)

    def examples(self) -> Iterator[Example]:
        for name, path in zip(self._ids, self.paths):
            yield Example(name, Path(path))

    def check(self, lm: Any) -> None:
        check_text_model(lm)

    def predict(self, lm: Any, example: Example) -> dict[str, list]:
        def of_block(token_ids, padding_mask, targets, state):
            hidden, state = lm.backbone.piece(token_ids, padding_mask, state, last=True)
            return block_losses_and_right(lm, hidden, targets), state

        document, pages = Document(token_chunks(lm, example.input, "paths")), list[np.ndarray]()
        for start, scores, scored in scores_in_blocks(lm, [document], 1, "losses_and_right", of_block):
            places = (start + np.flatnonzero(scored[0])) // self.page
            for page in np.unique(places):
                nats, right = scores[0][scored[0]][places == page].sum(axis=0, dtype="float64")
                pages += [np.zeros(3)] * (page + 1 - len(pages))
                pages[page] = pages[page] + [(places == page).sum(), right, nats]
        tokens, right, nats = np.array(pages).reshape(-1, 3).T
        return {"tokens": tokens.astype(int).tolist(), "right": right.astype(int).tolist(), "nats": nats.tolist()}

    def evaluate(self, prediction: dict[str, list], reference: None) -> dict[str, float]:
        tokens, right, nats = (np.array(prediction[name], "float64") for name in ("tokens", "right", "nats"))
        if not tokens.sum():
            return {}  # A document of one token.
        scores = {"accuracy": right.sum() / tokens.sum(), "nats": nats.sum() / tokens.sum()}
        for index, count in enumerate(tokens):
            where = f"tokens {index * self.page + 1} to {(index + 1) * self.page}"
            scores |= {f"accuracy, {where}": right[index] / count, f"nats, {where}": nats[index] / count}
        return {name: float(value) for name, value in scores.items()}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "page": self.page, "checksums": dict(zip(self._ids, self._checksums))}


def _checksum(path):
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
