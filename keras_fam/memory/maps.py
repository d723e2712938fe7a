"""What attends to what in one layer: the attention weights of a short text, block by block, for pictures and tests."""

import numpy as np
from keras import ops

from keras_fam.memory.blocks import token_mask
from keras_fam.memory.core import Core
from keras_fam.memory.feedback import Block, project_fam, update_fam
from keras_fam.memory.sequence import project_sink
from keras_fam.memory.state import Beginning, Sink
from keras_fam.types import Tensor


def attention_map(
    core: Core, inputs: Tensor, beginning: Beginning, head: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The attention weights of one head, tokens and FAM.

    Both axes run through the text as the layer's memory sees it: the sink if there is one, the learned prompt, block 0,
    F_0, block 1, F_1 and so on.

    Args:
        core: `Core`.
        inputs: `[1, length, d]`, I.
        beginning: `Beginning`; its `fam` is the prompt `[1, N, d]`, or None.
        head: int, index of the query head.

    Returns:
        `(weights, marks)`: float `[s, s]`, queries by keys, each row that attends summing to 1, and the `(start, stop)`
        of the rows and columns of the sink and of each FAM. Only whole blocks make a row of FAM; the rows of sink and
        prompt are empty.
    """
    parts, size = core.parts, core.options.block_size
    x = parts.normalize(inputs)
    query, (key, value) = parts.project_query(x), parts.project_key_value(x)
    length = 0 if beginning.fam is None else beginning.fam.shape[1]
    sinks = 0 if beginning.sink is None else 1
    tokens, stride = inputs.shape[1], size + length
    before, own_places = ops.arange(-length, 0), ops.arange(size - length, size)
    fam = _first_fam(core, beginning, length)
    blocks = -(-tokens // size)
    weights = np.zeros((sinks + length + blocks * stride,) * 2)
    for tau in range(blocks):
        span, count = slice(tau * size, (tau + 1) * size), min(size, tokens - tau * size)
        places, own = ops.arange(count), sinks + length + tau * stride
        seen = []  # (key, columns, mask) of what the block's tokens see
        for past in range(max(0, tau - core.segments), tau + 1):
            key_places = ops.arange((past - tau) * size, (past - tau) * size + min(size, tokens - past * size))
            part = parts.rotate(key[:, past * size : (past + 1) * size], key_places)
            columns = sinks + length + past * stride + np.arange(part.shape[1])
            seen.append((part, columns, token_mask(places, key_places, parts.sliding_window)))
        memory = np.concatenate([np.arange(sinks), own - length + np.arange(length)]).astype(int)
        if fam is not None:
            seen.append((fam.key, memory, ops.ones((count, sinks + length), "bool")))
        bias = core.gate_bias(sum(len(columns) for _, columns, _ in seen), length)
        _write(weights, core, head, (parts.rotate(query[:, span], places), own), seen, bias)
        if fam is not None and length and count == size:
            block = Block(parts.rotate(key[:, span], places), value[:, span], None, parts.rotation(own_places))
            everything = [
                (fam.key, memory, ops.ones((length, sinks + length), "bool")),
                (block.key, own + np.arange(size), ops.ones((length, size), "bool")),
            ]
            _write(weights, core, head, (parts.rotate(fam.query, own_places), own + size), everything, None)
            sink = Sink(fam.key[:, :sinks], fam.value[:, :sinks]) if sinks else None
            fam = project_fam(core, *update_fam(core, fam, block), parts.rotation(before), sink)
    last = sinks + length + tokens + length * (tokens // size)
    marks = [(0, sinks)] * sinks
    marks += [(sinks + tau * stride, sinks + tau * stride + length) for tau in range(blocks + 1) if length]
    return weights[:last, :last], [mark for mark in marks if mark[1] <= last]


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


def _write(weights, core, head, queries, seen, bias):
    """Puts the weights of rotated queries `[1, t, h, c]`, from a row on, over all keys where they belong."""
    query, row = queries
    keys = ops.concatenate([key for key, _, _ in seen], axis=1)
    slots, heads = keys.shape[1], keys.shape[2]
    # A value that is 1 in its own place only: what attention makes of them are its weights.
    values = ops.broadcast_to(ops.eye(slots, dtype=keys.dtype)[None, :, None], (1, slots, heads, slots))
    mask = ops.concatenate([mask for _, _, mask in seen], axis=1)[None]
    made = core.parts.attend(query, keys, values, mask, key_bias=bias)
    made = ops.convert_to_numpy(ops.cast(made, "float32"))[0, :, head]
    columns = np.concatenate([columns for _, columns, _ in seen])
    weights[row : row + made.shape[0], columns] = made
