"""How a chunk of any length is read in pieces that stay inside blocks."""

from collections.abc import Callable

from keras import ops

from keras_fam.memory.state import StreamState
from keras_fam.types import Tensor


def spans(length: int, place: int, block_size: int) -> list[tuple[int, int]]:
    """How a chunk is cut: at block boundaries, and inside a block into powers of two.

    So at most log2(block_size) + 1 shapes are ever compiled, whatever the lengths of chunks.

    Args:
        length: int, tokens in the chunk.
        place: int, the first token's place in its block.
        block_size: int.

    Returns:
        list of `(start, stop)`.
    """
    cuts, start = [], 0
    while start < length:
        span = min(block_size - place, length - start)
        if span < block_size:
            span = 1 << (span.bit_length() - 1)
        cuts.append((start, start + span))
        start, place = start + span, (place + span) % block_size
    return cuts


def read_traced(
    piece: Callable, token_ids: Tensor, padding_mask: Tensor, state: StreamState, block_size: int
) -> tuple[Tensor, StreamState]:
    """Reads a chunk inside a compiled function, where its place in the block is not known when the trace is made.

    The tokens up to the end of the block are read one by one, then whole blocks, then the rest as one piece. A chunk of
    one token is one step and no loop.

    Args:
        piece: callable `(token_ids, padding_mask, state, last, count) -> (output [b, t, w], state)`.
        token_ids: int `[b, length]`, length >= 1; it may be dynamic on tensorflow.
        padding_mask: bool `[b, length]`.
        state: `StreamState`.
        block_size: int.

    Returns:
        `(outputs [b, length, w], state)`.
    """
    length = token_ids.shape[1] if isinstance(token_ids.shape[1], int) else ops.shape(token_ids)[1]
    batch, one_token = token_ids.shape[0], isinstance(length, int) and length == 1
    padded = [ops.pad(x, [[0, 0], [0, 0 if one_token else block_size]]) for x in (token_ids, padding_mask)]

    def read(start, size, state, last, count=None):
        part = (ops.slice(x, [0, start], [batch, size]) for x in padded)
        return piece(*part, state, last=last, count=count)

    place = state.position[0] % block_size
    before = ops.minimum(block_size - place, length)  # Tokens up to the end of the block.
    output, state = read(0, 1, state, (place + 1) % block_size == 0)
    if one_token:
        return output, state
    outputs = ops.zeros((batch, length + block_size, output.shape[2]), output.dtype)
    outputs = ops.slice_update(outputs, [0, 0, 0], output)

    def read_token(start, state, outputs):
        output, state = read(start, 1, state, (state.position[0] + 1) % block_size == 0)
        return start + 1, state, ops.slice_update(outputs, [0, start, 0], output)

    def read_block(start, state, outputs):
        output, state = read(start, block_size, state, True)
        return start + block_size, state, ops.slice_update(outputs, [0, start, 0], output)

    def read_rest(start, state, outputs):
        size = min(block_size, length) if isinstance(length, int) else block_size
        output, state = read(start, size, state, False, length - start)
        return length + 0 * start, state, ops.slice_update(outputs, [0, start, 0], output)

    loop = (ops.ones_like(before), state, outputs)
    loop = ops.while_loop(lambda start, *_: start < before, read_token, loop)
    loop = ops.while_loop(lambda start, *_: start + block_size <= length, read_block, loop)
    _, state, outputs = ops.cond(loop[0] < length, lambda: read_rest(*loop), lambda: loop)
    return outputs[:, :length], state
