"""What attends to what in one layer: the attention weights of a short text, block by block."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_fam.memory.blocks import token_mask
from keras_fam.memory.core import Core
from keras_fam.memory.feedback import Block, project_fam, update_fam
from keras_fam.memory.sequence import project_sink
from keras_fam.memory.state import Beginning, Sink
from keras_fam.types import Tensor


def attention_maps(
    core: Core, inputs: Tensor, beginning: Beginning, heads: Sequence[int]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The attention weights of some heads, tokens and FAM.

    Both axes run through the text as the layer's memory sees it: the sink if there is one, the learned prompt, block 0,
    F_0, block 1, F_1 and so on.

    Args:
        core: `Core`.
        inputs: `[1, length, d]`, I.
        beginning: `Beginning`; its `fam` is the prompt `[1, N, d]`, or None.
        heads: sequence of int, indices of query heads.

    Returns:
        `(weights, marks)`: float `[heads, s, s]`, queries by keys, each row that attends summing to 1, and the
        `(start, stop)` of the rows and columns of the sink and of each FAM. Only whole blocks make a row of FAM; the
        rows of sink and prompt are empty.
    """
    size, length = core.options.block_size, 0 if beginning.fam is None else beginning.fam.shape[1]
    sinks, tokens = 0 if beginning.sink is None else 1, inputs.shape[1]
    blocks, stride = -(-tokens // size), size + length
    weights = np.zeros((len(heads), *(sinks + length + blocks * stride,) * 2))
    for look in _looks(core, inputs, beginning):
        _, slots, key_heads, _ = look.key.shape
        # A value that is 1 in its own place only: what attention makes of them are its weights.
        values = ops.broadcast_to(ops.eye(slots, dtype=look.key.dtype)[None, :, None], (1, slots, key_heads, slots))
        made = look.attend(core, values)[:, list(heads)]
        weights[:, look.row : look.row + made.shape[0], look.columns] = made.swapaxes(0, 1)
    last = sinks + length + tokens + length * (tokens // size)
    marks = [(0, sinks)] * sinks
    marks += [(sinks + tau * stride, sinks + tau * stride + length) for tau in range(blocks + 1) if length]
    return weights[:, :last, :last], [mark for mark in marks if mark[1] <= last]


def memory_share(core: Core, inputs: Tensor, beginning: Beginning) -> np.ndarray:
    """How much of its attention each token gives to FAM.

    Args:
        core: `Core`.
        inputs: `[1, length, d]`, I.
        beginning: `Beginning`; its `fam` is the prompt `[1, N, d]`.

    Returns:
        float32 `[length, h]`, from 0 to 1.
    """
    shares, length = [], 0 if beginning.fam is None else beginning.fam.shape[1]
    for look in _looks(core, inputs, beginning):
        if look.of_tokens:
            _, slots, heads, _ = look.key.shape
            memory = ops.cast(ops.arange(slots) >= slots - length, "float32")
            values = ops.broadcast_to(memory[None, :, None, None], (1, slots, heads, 1))
            shares.append(look.attend(core, values)[..., 0])
    return np.concatenate(shares)


class Look(NamedTuple):
    """Some queries and what they see: the tokens of a block, or FAM when it is updated.

    Attributes:
        of_tokens: bool.
        row: int, of the first query in the map.
        query: `[1, t, h, c]`, rotated.
        key: `[1, s, k, c]`, rotated; FAM's are the last.
        columns: int array `[s]`, of the keys in the map.
        mask: bool `[1, t, s]`.
        bias: float32 `[s]`, or None.
    """

    of_tokens: bool
    row: int
    query: Tensor
    key: Tensor
    columns: np.ndarray
    mask: Tensor
    bias: Tensor | None

    def attend(self, core: Core, values: Tensor) -> np.ndarray:
        """Attention on other values, `[1, s, k, v]`: float32 `[t, h, v]`. A tiny weight is one in float16 too."""
        query, key, values = (ops.cast(x, "float32") for x in (self.query, self.key, values))
        return ops.convert_to_numpy(core.parts.attend(query, key, values, self.mask, key_bias=self.bias))[0]


def _looks(core: Core, inputs: Tensor, beginning: Beginning) -> Iterator[Look]:
    """Every block's tokens, and behind each whole block FAM's update."""
    parts, size = core.parts, core.options.block_size
    x = parts.normalize(inputs)
    query, (key, value) = parts.project_query(x), parts.project_key_value(x)
    length = 0 if beginning.fam is None else beginning.fam.shape[1]
    sinks = 0 if beginning.sink is None else 1
    tokens, stride = inputs.shape[1], size + length
    before, own_places = ops.arange(-length, 0), ops.arange(size - length, size)
    fam = _first_fam(core, beginning, length)
    for tau in range(-(-tokens // size)):
        span, count = slice(tau * size, (tau + 1) * size), min(size, tokens - tau * size)
        places, own = ops.arange(count), sinks + length + tau * stride
        seen: list[tuple[Tensor, np.ndarray, Tensor]] = []  # (key, columns, mask) of what the block's tokens see
        for past in range(max(0, tau - core.segments), tau + 1):
            key_places = ops.arange((past - tau) * size, (past - tau) * size + min(size, tokens - past * size))
            part = parts.rotate(key[:, past * size : (past + 1) * size], key_places)
            columns = sinks + length + past * stride + np.arange(part.shape[1])
            seen.append((part, columns, token_mask(places, key_places, parts.sliding_window)))
        memory = np.concatenate([np.arange(sinks), own - length + np.arange(length)]).astype(int)
        if fam is not None:
            seen.append((fam.key, memory, ops.ones((count, sinks + length), "bool")))
        bias = core.gate_bias(sum(len(columns) for _, columns, _ in seen), length)
        yield _look(True, own, parts.rotate(query[:, span], places), seen, bias)
        if fam is not None and length and count == size:
            block = Block(parts.rotate(key[:, span], places), value[:, span], None, parts.rotation(own_places))
            seen = [
                (block.key, own + np.arange(size), ops.ones((length, size), "bool")),
                (fam.key, memory, ops.ones((length, sinks + length), "bool")),
            ]
            yield _look(False, own + size, parts.rotate(fam.query, own_places), seen, None)
            sink = Sink(fam.key[:, :sinks], fam.value[:, :sinks]) if sinks else None
            fam = project_fam(core, *update_fam(core, fam, block), parts.rotation(before), sink)


def _look(of_tokens, row, query, seen, bias):
    """A `Look` at several parts, each `(key, columns, mask)`."""
    keys, columns, masks = zip(*seen)
    mask = ops.concatenate(masks, axis=1)[None]
    return Look(of_tokens, row, query, ops.concatenate(keys, axis=1), np.concatenate(columns), mask, bias)


def _first_fam(core, beginning, length):
    """`FAM` before the first block, or None without FAM and sink."""
    if beginning.fam is None and beginning.sink is None:
        return None
    sink, fam = None, beginning.fam
    if beginning.sink is not None:
        sink = project_sink(core, beginning.sink)
        sink = sink._replace(key=core.parts.rotate(sink.key, ops.arange(-length - 1, -length)))
        fam = beginning.sink[:, :0] if fam is None else fam
    vectors = ops.cast(fam, core.parts.fam_dtype)
    return project_fam(core, vectors, ops.zeros((1,), "bool"), core.parts.rotation(ops.arange(-length, 0)), sink)
