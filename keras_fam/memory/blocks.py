"""Masks from places, and sequences cut into blocks."""

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
