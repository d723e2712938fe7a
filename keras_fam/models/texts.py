"""Texts as the token ids that a stream goes on with, and tokens as text that comes bit by bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_fam.backend.buffers import is_concrete
from keras_fam.memory.state import StreamState, check_parts

BROKEN = "\ufffd"  # What tokenizers write for the bytes of a code point that is not whole.
_UNFINISHED = 3
_CONTEXT = 8  # Tokens that are decoded again with the next one, so that a space at its start is kept.


def are_texts(inputs: Any) -> bool:
    """Whether `inputs` is a str or a list of str."""
    if isinstance(inputs, str):
        return True
    return isinstance(inputs, (list, tuple)) and bool(inputs) and all(isinstance(text, str) for text in inputs)


def token_list(tokens: Any) -> list[int]:
    """What a tokenizer makes of one text, as a list."""
    return [int(each) for each in np.asarray(ops.convert_to_numpy(tokens) if ops.is_tensor(tokens) else tokens)]


def text_chunk(
    preprocessor: Any, texts: str | Sequence[str], state: StreamState | None, name: str = "inputs"
) -> dict[str, np.ndarray]:
    """The next chunk of a stream.

    A row that has read nothing begins with the tokenizer's start token, if it has one. A row that has read something
    goes on without. Shorter texts are padded behind.

    Args:
        preprocessor: `keras_hub.models.CausalLMPreprocessor`; None is refused.
        texts: str, or list of str, one for each row.
        state: `StreamState`, or None for new streams.
        name: str, the argument's name in messages.

    Returns:
        dict of `"token_ids"`, int32 `[b, length]`, and `"padding_mask"`, bool.

    Raises:
        TypeError, ValueError: no state; another number of texts than it has rows; no token in any of them.
    """
    if preprocessor is None:
        raise ValueError(f"`{name}` must be token ids for a model without a preprocessor. Received: {texts!r:.80}.")
    if state is not None:
        check_parts(state)
        if not is_concrete(state.position):
            raise ValueError(f"`{name}` must be token ids inside a compiled function. Received: {texts!r:.80}.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    read = [0] * len(texts) if state is None else state.tokens or [1] * state.position.shape[0]
    if len(read) != len(texts):
        raise ValueError(
            f"`state` belongs to another batch size: expected {len(texts)} rows for {len(texts)} texts. Received: "
            f"{len(read)} rows."
        )
    start = getattr(preprocessor.tokenizer, "start_token_id", None)
    rows = [token_list(preprocessor.tokenizer(text)) for text in texts]
    rows = [[start, *row] if start is not None and not count else row for row, count in zip(rows, read)]
    length = max(map(len, rows))
    if not length:
        raise ValueError(f"`{name}` must hold at least one token. Received: {texts!r}.")
    mask = np.arange(length)[None] < np.array([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, "int32")
    ids[mask] = np.concatenate([np.asarray(row, "int32") for row in rows])
    return {"token_ids": ids, "padding_mask": mask}


class Decoder:
    """Turns tokens into text as they come, a few tokens at a time.

    Each piece is what the text gains by a token. A code point that is split over tokens waits until it is whole.

    Args:
        tokenizer: a KerasHub tokenizer.
        before: list of int, tokens that stand before the text.
        silent: collection of int, tokens that are left out, such as special ones.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = (), silent: Sequence[int] = ()):
        self.tokenizer, self.silent = tokenizer, set(silent)
        self.tokens = [token for token in before if token not in self.silent][-_CONTEXT:]
        self.shown = len(self._text())  # Characters of these tokens that are out already.

    def piece(self, token: int) -> str:
        """The text that `token` adds; "" if it is left out, or waits for the tokens behind it."""
        if token in self.silent:
            return ""
        self.tokens.append(token)
        text = self._text()
        # An unfinished code point has at most three bytes, and each is at most one character in its place.
        whole = max(self.shown, len(text) - min(_UNFINISHED, len(text) - len(text.rstrip(BROKEN))))
        piece, waiting = text[self.shown : whole], len(text) - whole
        if len(self.tokens) > 2 * _CONTEXT:
            self.tokens = self.tokens[-_CONTEXT:]
            text = self._text()
        self.shown = len(text) - waiting
        return piece

    def rest(self) -> str:
        """What still waits, where the text ends."""
        text = self._text()
        piece, self.shown = text[self.shown :], len(text)
        return piece

    def _text(self):
        return str(self.tokenizer.detokenize(np.asarray(self.tokens, "int32"))) if self.tokens else ""
