"""Plain tensor functions: masks from positions, dropout from drawn seeds, sequences cut into blocks.

Shape letters used throughout the package:

| letter | meaning |
|---|---|
| b | batch |
| n | blocks of a sequence |
| B | `block_size`, tokens per block |
| m | `memory_segments`, past blocks that stay visible |
| N | `fam_length`, FAM vectors |
| d | hidden dim |
| h, k | query heads, key/value heads (g = h / k queries share a key) |
| c | head dim |
| t, s | query places, key places |
"""

import keras
from keras import ops

from keras_fam.types import Tensor


def token_mask(query_places: Tensor, key_places: Tensor, sliding_window: int | None = None) -> Tensor:
    """Which places a token sees: itself and what came before, inside the layer's own sliding window if it has one.

    Args:
        query_places: int `[t]`, places relative to the start of the query's block.
        key_places: int `[s]`, on the same axis; memory segments are negative.
        sliding_window: int or None. A token sees places less than this far back.

    Returns:
        bool `[t, s]`.
    """
    distance = query_places[:, None] - key_places[None, :]
    visible = distance >= 0
    if sliding_window is not None:
        visible = ops.logical_and(visible, distance < sliding_window)
    return visible


class _DrawnSeed(keras.random.SeedGenerator):
    """A seed that was drawn elsewhere, in the form that `keras.random` accepts on every backend."""

    def __init__(self, seed):
        self._drawn = seed
        self._initial_seed = 0

    def next(self, ordered=True):
        return self._drawn


def seeded_dropout(x: Tensor, rate: float, seed: Tensor | None) -> Tensor:
    """Dropout as a pure function of `seed`: the same inside a scan, a recomputation, or neither.

    `keras.layers.Dropout` draws from a variable, which scan and rematerialisation either refuse or silently repeat with
    another mask. Seeds are therefore drawn outside and passed in.

    Args:
        x: any float tensor.
        rate: float in [0, 1).
        seed: a tensor drawn by `SeedGenerator.next()`, or None for no dropout.

    Returns:
        A tensor like `x`.
    """
    if seed is None or not rate:
        return x
    return keras.random.dropout(x, rate, seed=_DrawnSeed(seed))


def spread_seed(seed: Tensor | None, count: int | Tensor) -> Tensor | None:
    """`count` different seeds from one, on a new leading axis; None of None."""
    if seed is None:
        return None
    steps = ops.cast(ops.arange(count) * 7919, seed.dtype)
    return ops.cast(seed, seed.dtype)[None] + ops.stack([ops.zeros_like(steps), steps], axis=1)


def on_jax_cpu() -> bool:
    """Whether XLA compiles for CPU, where it needs other ways than on accelerators."""
    if keras.config.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def write(buffer: Tensor, start: Tensor, update: Tensor, in_place: bool = False, after: Tensor | None = None) -> Tensor:
    """`buffer` `[b, s, ...]` with `update` `[b, t, ...]` at place `start` of axis 1.

    With `in_place`, torch writes into the buffer itself; jax and tensorflow decide by themselves, when they compile.
    `after` `[b, ...]` was made from the buffer as it was. XLA copies a buffer unless the write depends on that, and it
    drops its own barriers, so on jax one number of `after` times zero is added.
    """
    if after is not None and keras.config.backend() == "jax":
        update = update + 0 * after[:, *[slice(1)] * (len(after.shape) - 1)]
    if in_place and keras.config.backend() == "torch":
        return buffer.index_copy_(1, ops.cast(start + ops.arange(update.shape[1]), "int64"), update)
    return ops.slice_update(buffer, [0, start, *[0] * (len(buffer.shape) - 2)], update)


def split_blocks(x: Tensor, block_size: int, length: int | Tensor) -> Tensor:
    """Pads axis 1 to whole blocks and splits it: `[b, length, ...]` to `[b, n, B, ...]`.

    Args:
        x: tensor with the sequence on axis 1.
        block_size: int.
        length: int, or a scalar tensor where the length is dynamic.

    Returns:
        `[b, n, B, ...]` with zeros (False) in the padding.
    """
    shape, blocks = ops.shape(x), -(-length // block_size)
    missing = blocks * block_size - length
    if not (isinstance(missing, int) and missing == 0):
        x = ops.concatenate([x, ops.zeros((shape[0], missing, *shape[2:]), dtype=x.dtype)], axis=1)
    return ops.reshape(x, (shape[0], blocks, block_size, *x.shape[2:]))


def merge_blocks(x: Tensor, length: int | Tensor) -> Tensor:
    """The inverse of `split_blocks`: `[b, n, B, ...]` to `[b, length, ...]`."""
    shape = ops.shape(x)
    x = ops.reshape(x, (shape[0], shape[1] * shape[2], *x.shape[3:]))
    return x if isinstance(length, int) and x.shape[1] == length else x[:, :length]
