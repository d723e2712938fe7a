"""Dropout as a pure function of a seed that was drawn elsewhere."""

import keras
from keras import ops

from keras_fam.types import Tensor


class _DrawnSeed(keras.random.SeedGenerator):
    """A seed that was drawn elsewhere, in the form that `keras.random` accepts on every backend."""

    def __init__(self, seed):
        self._drawn = seed
        self._initial_seed = 0

    def next(self, ordered=True):
        return self._drawn


def seeded_dropout(x: Tensor, rate: float, seed: Tensor | None) -> Tensor:
    """Dropout as a pure function of `seed`: the same inside a scan, a recomputation, or neither.

    `keras.layers.Dropout` draws from a variable. Scan and rematerialisation either refuse that or silently draw another
    mask the second time. Seeds are therefore drawn outside and passed in.

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
