"""Rotary positions that stay exact however long the text: places inside a block, and one turn a block.

A layer sees differences of places only. So a place `tau * B + i` is turned by the angles of `i`, which are small, and
then tau times by those of B; two places at most m blocks apart differ by at most m of those turns.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.loops import scan
from keras_fam.types import Tensor


class Rotation(NamedTuple):
    """The turn of each place: `cos` and `sin`, float32 `[..., c / 2]`."""

    cos: Tensor
    sin: Tensor


def rotation(rope, places: Tensor, head_dim: int) -> Rotation:
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
    cos, sin = (ops.cast(part[..., None, :], dtype) for part in by)
    first, second = ops.split(ops.cast(x, dtype), 2, axis=-1)
    return ops.cast(ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1), x.dtype)


def block_rotations(rope, block_size: int, blocks: int | Tensor, head_dim: int) -> Rotation:
    """The turns of all places of a text, from one block before its start on.

    Args:
        rope: `keras_hub.layers.RotaryEmbedding`.
        block_size: int, B.
        blocks: int or scalar tensor, n.
        head_dim: int, c.

    Returns:
        `Rotation` of `[n + 1, B, c / 2]`: block tau's places are row `tau + 1`.
    """
    inside = rotation(rope, ops.arange(block_size), head_dim)
    one = rotation(rope, ops.convert_to_tensor([block_size], "int32"), head_dim)
    length = ops.sqrt(ops.square(one.cos) + ops.square(one.sin))  # Some kinds of scaling stretch: do that once.
    one = Rotation(one.cos / length, one.sin / length)
    start = Rotation(ops.ones_like(one.cos), ops.zeros_like(one.sin))
    _, turns = scan(lambda carry, _: combine(carry, one), lambda carry: carry, start, None, blocks)
    return combine(turns, Rotation(inside.cos[None], inside.sin[None]))
