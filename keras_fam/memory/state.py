"""What a text may pass on to the text behind it: FAM, memory segments, which rows have started, and the place.

`Beginning` is for whole texts, `StreamState` for streams. How `started` and `position` go on is written here, once.
"""

from typing import NamedTuple

import keras
from keras import ops

from keras_fam.types import Tensor


class Sink(NamedTuple):
    """One layer's key and value of the start token, `[1, 1, k, c]`, the key on place -N-1 of whatever block is read."""

    key: Tensor
    value: Tensor


class Segments(NamedTuple):
    """The memory segments that a text goes on from.

    Attributes:
        key: `[b, m, B, k, c]`, not rotated.
        value: `[b, m, B, k, c]`.
        valid: bool `[b, m, B]`, real tokens.
    """

    key: Tensor
    value: Tensor
    valid: Tensor


class Beginning(NamedTuple):
    """What one layer has in memory where a text begins.

    Attributes:
        fam: `[1 or b, N, d]`, F before the first block, or None for BSWA.
        started: bool `[b]`, rows whose `fam` carries context and is not the learned prompt; None for none.
        segments: `Segments`, or None.
        sink: `[1, 1, d]`, the start token at this layer, or None.
    """

    fam: Tensor | None = None
    started: Tensor | None = None
    segments: Segments | None = None
    sink: Tensor | None = None


class Passed(NamedTuple):
    """What one layer has in memory where a text ends: F `[b, N, d]`, and `Segments.key` and `value`; None without."""

    fam: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None


class LayerState(NamedTuple):
    """One layer's memory; b rows, N FAM vectors, a ring of r+1 blocks of B places, k key/value heads of size c.

    The ring holds r = m memory segments and the block that is being read, or fewer where a window of the layer's own
    hides the rest.

    Attributes:
        fam: float32 `[b, N, d]`, F after the last full block.
        fam_key: `[b, N, k, c]`, Kf; with a sink `[b, 1 + N, k, c]`, the sink's key first.
        fam_value: like `fam_key`, Vf.
        key: `[b, (r+1) * B, k, c]`, the last r blocks and the unfinished one, as a ring.
        value: like `key`.
    """

    fam: Tensor
    fam_key: Tensor
    fam_value: Tensor
    key: Tensor
    value: Tensor


class StreamState(NamedTuple):
    """Everything a stream remembers. Every array has the batch on its first axis.

    Attributes:
        layers: tuple of `LayerState`.
        valid: bool `[b, (m+1) * B]`, places of the ring that hold a real token.
        started: bool `[b]`, rows whose FAM has read a block and is no longer the learned prompt.
        position: int32 `[b]`, places seen, modulo a fixed period; the same for all rows.

    Example:

    ```python
    state = lm.initial_state(batch_size=2)
    logits, state = lm.stream([[1, 2, 3], [4, 5, 6]], state)
    first_row = keras.tree.map_structure(lambda x: x[:1], state)
    ```
    """

    layers: tuple[LayerState, ...]
    valid: Tensor
    started: Tensor
    position: Tensor


def started_after(started: Tensor, valid: Tensor) -> Tensor:
    """Rows whose FAM carries context after a block.

    Args:
        started: bool `[b]`, before the block.
        valid: bool `[b, ...]`, the block's real tokens.

    Returns:
        bool `[b]`.
    """
    return ops.logical_or(started, ops.any(valid, axis=tuple(range(1, len(valid.shape)))))


def position_after(position: Tensor, count: int | Tensor, period: int) -> Tensor:
    """The place behind `count` more tokens, int32, modulo `period`."""
    return (position + ops.cast(count, "int32")) % period


def empty_state(layers: tuple[LayerState, ...], batch_size: int | Tensor, slots: int) -> StreamState:
    """A stream that has read nothing.

    Args:
        layers: tuple of `LayerState`.
        batch_size: int or scalar tensor.
        slots: int, (m+1) * B.

    Returns:
        `StreamState`.
    """
    started, position = ops.zeros((batch_size,), "bool"), ops.zeros((batch_size,), "int32")
    return StreamState(tuple(layers), ops.zeros((batch_size, slots), "bool"), started, position)


def state_spec(layers: tuple[LayerState, ...], batch_size: int, slots: int) -> StreamState:
    """Shapes and dtypes of a `StreamState` as `keras.KerasTensor`; `layers` already are."""
    valid, started = keras.KerasTensor((batch_size, slots), "bool"), keras.KerasTensor((batch_size,), "bool")
    return StreamState(layers, valid, started, keras.KerasTensor((batch_size,), "int32"))


def named_arrays(state: StreamState) -> list[tuple[str, Tensor]]:
    """`(name, array)` of every array, in a fixed order."""
    named = [
        (f"layers/{index}/{field}", array)
        for index, layer in enumerate(state.layers)
        for field, array in zip(LayerState._fields, layer)
    ]
    return named + list(zip(StreamState._fields[1:], state[1:]))


def check_parts(state: StreamState) -> None:
    """Refuses what is no `StreamState`, or one put together by hand from something else than arrays."""
    if not isinstance(state, StreamState):
        raise TypeError(f"`state` must be a StreamState. Received: state of type {type(state).__name__}.")
    if not isinstance(state.layers, tuple) or not all(isinstance(layer, LayerState) for layer in state.layers):
        raise TypeError(f"`state.layers` must be a tuple of LayerState. Received: {type(state.layers).__name__}.")
    for name, array in named_arrays(state):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"`state` must hold arrays. Received: {name} of type {type(array).__name__}.")


def check_state(state: StreamState, expected: StreamState) -> None:
    """Refuses a state of another structure, model, batch size or dtype.

    Args:
        state: what the caller passed.
        expected: `StreamState` of the shapes and dtypes wanted, e.g. of `keras.KerasTensor`.

    Raises:
        TypeError: not a `StreamState`, or arrays of another dtype.
        ValueError: arrays of other shapes.
    """
    check_parts(state)
    if len(state.layers) != len(expected.layers):
        raise ValueError(
            "`state` belongs to another model: expected the state of "
            f"{len(expected.layers)} layers. Received: {len(state.layers)} layers."
        )
    for (name, array), (_, wanted) in zip(named_arrays(state), named_arrays(expected)):
        shape, wanted_shape = tuple(array.shape), tuple(wanted.shape)
        if shape != wanted_shape:
            what = "batch size" if shape[1:] == wanted_shape[1:] else "model"
            raise ValueError(
                f"`state` belongs to another {what}: expected {name} of shape {wanted_shape}. Received: shape {shape}."
            )
        dtype = keras.backend.standardize_dtype(array.dtype)
        if dtype != wanted.dtype:
            raise TypeError(
                f"`state` has another dtype: expected {name} of dtype {wanted.dtype}. Received: dtype {dtype}."
            )
