"""Texts and files of any length, read block by block: each token's loss in fixed memory and fixed shapes."""

import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fam.checks import check_sequence
from keras_fam.data.document_files import check_text
from keras_fam.data.tokenizing import cut_pieces, read_pieces
from keras_fam.models.texts import token_list

_CHARACTERS = 65_536  # That are read and tokenized at once.
_HEAD = 256  # Tokens whose logits are in memory at once.


class Document:
    """The tokens of one text, a block at a time, and the one behind them.

    Args:
        chunks: iterator of lists of int.
    """

    def __init__(self, chunks: Iterator[Sequence[int]]):
        self._tokens = itertools.chain.from_iterable(chunks)
        self._next: list[int] | None = None  # Up to two tokens; nothing is read before they are asked for.

    @property
    def ended(self) -> bool:
        """Whether no token is left that has another behind it."""
        if self._next is None:
            self._next = list(itertools.islice(self._tokens, 2))
        return len(self._next) < 2

    def block(self, size: int) -> tuple[list[int], list[int]]:
        """The next `size` tokens, or as many as there are, and the tokens behind each of them."""
        if self.ended:
            return [], []
        tokens = [*(self._next or ()), *itertools.islice(self._tokens, size)]
        self._next = tokens[size:]
        return tokens[:size], tokens[1 : size + 1]


def open_texts(lm: Any, texts: Any, name: str = "texts") -> list[Document]:
    """Texts, files and token ids, checked as far as they are known now.

    Args:
        lm: `FAMCausalLM`.
        texts: see `FAMCausalLM.perplexity`.
        name: str, the argument's name in messages.

    Returns:
        list of `Document`, at least one.
    """
    if isinstance(texts, (str, os.PathLike)) or _is_ids(texts):
        texts = [texts]
    if not isinstance(texts, (list, tuple)) and not (hasattr(texts, "shape") and len(texts.shape) == 2):
        raise TypeError(
            f"`{name}` must be a text, a path, token ids or a list of them. Received: {name} of type "
            f"{type(texts).__name__}."
        )
    if len(texts) == 0:
        raise ValueError(f"`{name}` must hold at least one text. Received: none.")
    return [_open(lm, text, name) for text in texts]


def _is_ids(text):
    """Whether `text` is the token ids of one text."""
    if hasattr(text, "shape"):
        return len(text.shape) == 1
    return isinstance(text, (list, tuple)) and bool(text) and all(isinstance(each, (int, np.integer)) for each in text)


def token_chunks(lm: Any, text: Any, name: str = "texts") -> Iterator[Sequence[int]]:
    """The tokens of one text, some at a time: of a file no more is in memory.

    Args:
        lm: `FAMCausalLM`.
        text: str; path-like, a file; or token ids. Texts and files begin with the tokenizer's start token, if any.
        name: str, the argument's name in messages.

    Returns:
        iterator of sequences of int.
    """
    if not isinstance(text, (str, os.PathLike)):
        return iter([check_sequence(name, text, lm.backbone.vocabulary_size).tolist()])
    if lm.preprocessor is None:
        raise ValueError(f"`{name}` must be token ids for a model without a preprocessor. Received: {text!r:.80}.")
    if isinstance(text, os.PathLike):
        if not os.path.isfile(text):
            raise FileNotFoundError(f"`{name}` must name existing files. Received: {os.fspath(text)!r}.")
        check_text(os.fspath(text), _CHARACTERS)
        pieces = read_pieces(os.fspath(text), _CHARACTERS)
    else:
        if len(text) < 1000 and os.path.isfile(text):
            raise ValueError(f"`{name}` takes files as pathlib.Path, and str as texts. Received: {text!r}, a file.")
        file = io.StringIO(text)
        pieces = cut_pieces(lambda: file.read(_CHARACTERS), _CHARACTERS)
    tokenizer = lm.preprocessor.tokenizer
    start = getattr(tokenizer, "start_token_id", None)
    return itertools.chain([] if start is None else [[start]], (token_list(tokenizer(piece)) for piece in pieces))


def _open(lm, text, name):
    document = Document(token_chunks(lm, text, name))
    return document if isinstance(text, os.PathLike) else _not_empty(document, name, text)


def _not_empty(document, name, text):
    if document.ended:
        raise ValueError(f"`{name}` must hold texts of at least two tokens. Received: {text!r:.80}.")
    return document


def losses_in_blocks(
    lm: Any, documents: Sequence[Document], rows: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each token's loss, block by block, all documents at once; see `scores_in_blocks`.

    Returns:
        iterator of `(start, losses, scored)`, losses float32 `[documents, B]`.
    """
    return scores_in_blocks(lm, documents, rows, "losses", lm.losses_of_block)


def scores_in_blocks(
    lm: Any, documents: Sequence[Document], rows: int | None, name: str, scores_of_block: Callable
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Something of each token that has another behind it, block by block, all documents at once.

    Args:
        lm: `FAMCausalLM`.
        documents: sequence of `Document`.
        rows: int or None, rows that are read, at least as many as there are documents.
        name: str, under which `scores_of_block` is kept, compiled.
        scores_of_block: callable `(token_ids, padding_mask, targets, state) -> (scores [rows, B, ...], state)`.

    Yields:
        `(start, scores, scored)`: the place of the block's first token; an array `[documents, B, ...]`, at place t what
        is said of token t + 1; bool `[documents, B]`, where there is one.
    """
    size, rows = lm.backbone.block_size, rows or len(documents)
    read, state, start = lm.inference(name, scores_of_block), lm.initial_state(rows), 0
    while not all(document.ended for document in documents):
        ids, targets = np.zeros((2, rows, size), "int32")
        mask, scored = np.zeros((2, rows, size), "bool")
        for row, document in enumerate(documents):
            tokens, behind = document.block(size)
            ids[row, : len(tokens)], targets[row, : len(behind)] = tokens, behind
            mask[row, : len(tokens)], scored[row, : len(behind)] = True, True
        scores, state = read(*map(ops.convert_to_tensor, (ids, mask, targets)), state)
        yield start, ops.convert_to_numpy(scores)[: len(documents)], scored[: len(documents)]
        start += size


def block_losses(lm: Any, hidden: Any, targets: Any) -> Any:
    """Losses in nats, float32 `[b, B]`, of targets `[b, B]`. Few logits are in memory at once."""
    return _in_parts(lm, hidden, targets, token_losses)


def block_losses_and_right(lm: Any, hidden: Any, targets: Any) -> Any:
    """`block_losses`, and 1.0 where the likeliest token is the target: float32 `[b, B, 2]`."""

    def both(targets, logits):
        right = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), targets)
        return ops.stack([token_losses(targets, logits), ops.cast(right, "float32")], axis=-1)

    return _in_parts(lm, hidden, targets, both)


def token_losses(targets: Any, logits: Any) -> Any:
    """Losses in nats, float32 `[b, n]`, of targets `[b, n]` by logits, float32 `[b, n, vocabulary]`."""
    return keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)


def _in_parts(lm, hidden, targets, scores_of):
    """`scores_of(targets, logits)` of some places at a time, joined."""
    scores = []
    for first in range(0, hidden.shape[1], _HEAD):
        logits = ops.cast(lm.backbone.logits(hidden[:, first : first + _HEAD]), "float32")
        scores.append(scores_of(targets[:, first : first + _HEAD], logits))
    return scores[0] if len(scores) == 1 else ops.concatenate(scores, axis=1)
