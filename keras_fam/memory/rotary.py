"""Rotary positions that stay exact however long the text: places inside a block, and one turn a block.

A layer sees differences of places only. So a place `tau * B + i` is turned by the angles of `i`, which are small, and
then tau times by those of B; two places at most m blocks apart differ by at most m of those turns.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_fam.backend.loops import scan
from keras_fam.types import Tensor


class Rotation(NamedTuple):
    """The turn of each place: `cos` and `sin`, float32 `[..., c / 2]`."""

    cos: Tensor
    sin: Tensor

    def at(self, index: Any) -> "Rotation":
        """The turns of some of the places, by an index or a slice of the first axes."""
        return Rotation(self.cos[index], self.sin[index])


def rotation(rope: Any, places: Tensor, head_dim: int) -> Rotation:
    """The turns of a `keras_hub.layers.RotaryEmbedding`, with its wavelength and scaling, at `places` `[s]`."""
    half = head_dim // 2
    unit = ops.concatenate([ops.ones((1, places.shape[0], half)), ops.zeros((1, places.shape[0], half))], axis=-1)
    turned = rope(unit, positions=places)[0]
    return Rotation(turned[:, :half], turned[:, half:])


def combine(left: Rotation, right: Rotation) -> Rotation:
    """One turn after the other."""
    return Rotation(left.cos * right.cos - left.sin * right.sin, left.sin * right.cos + left.cos * right.sin)


def turn(x: Tensor, by: Rotation | None) -> Tensor:
    """Rotates the two halves of the last axis of `x` `[..., s, heads, c]` by `[..., s, c / 2]`; by None not at all."""
    if by is None:
        return x
    dtype = keras.backend.result_type(x.dtype, "float32")
    cos, sin = (ops.cast(part[..., None, :], dtype) for part in (by.cos, by.sin))
    first, second = ops.split(ops.cast(x, dtype), 2, axis=-1)
    return ops.cast(ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1), x.dtype)


def block_rotations(one_block: Rotation, inside: Rotation, blocks: int | Tensor) -> Rotation:
    """The turns at some places of every block of a text, and of the block before its start.

    Args:
        one_block: `Rotation` of `[1, c / 2]`, by B places.
        inside: `Rotation` of `[s, c / 2]`, of the places relative to their block.
        blocks: int or scalar tensor, n.

    Returns:
        `Rotation` of `[n + 1, s, c / 2]`: block tau's places are row `tau + 1`.
    """
    length = ops.sqrt(ops.square(one_block.cos) + ops.square(one_block.sin))  # Some scalings stretch: do that once.
    one = Rotation(one_block.cos / length, one_block.sin / length)
    start = Rotation(ops.ones_like(one.cos), ops.zeros_like(one.sin))
    _, turns = scan(lambda carry, _: combine(carry, one), lambda carry: carry, start, None, blocks)
    return combine(turns, Rotation(inside.cos[None], inside.sin[None]))
