"""What a text may pass on to the text behind it: FAM, memory segments, which rows have started, and the place.

`Beginning` is for whole texts, `StreamState` for streams. How `started` and `position` go on is written here, once.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_fam.backend.buffers import is_concrete, to_host
from keras_fam.memory.options import MemoryOptions
from keras_fam.types import Tensor

# Fields of a `StreamState` that files of earlier versions do not have.
COUNTED = ("tokens_read", "block_size")
_WORD = 2**30


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
        tokens_read: int32 `[b, 2]`, the real tokens that a row has read: how many times 2**30, and the rest. `()` in a
            state of a file by an earlier version, which did not count them.
        block_size: int32 `[b]`, B; or `()`, as above.

    Example:

    ```python
    state = lm.initial_state(batch_size=2)
    logits, state = lm.stream([[1, 2, 3], [4, 5, 6]], state)
    print(state)  # StreamState(2 layers, 2 streams, B=4, m=1, N=2, 1,096 bytes, 3 tokens read)
    first_row = keras.tree.map_structure(lambda x: x[:1], state)
    ```
    """

    layers: tuple[LayerState, ...]
    valid: Tensor
    started: Tensor
    position: Tensor
    tokens_read: Tensor | tuple[()] = ()
    block_size: Tensor | tuple[()] = ()

    @property
    def tokens(self) -> list[int] | None:
        """The real tokens that each row has read; None if they were not counted."""
        if _is_left_out(self.tokens_read):
            return None
        return [high * _WORD + low for high, low in to_host(self.tokens_read)[0].tolist()]

    def __repr__(self):
        try:
            return _in_words(self)
        except (AttributeError, TypeError, ValueError, IndexError):  # Put together by hand, of anything.
            return f"StreamState({', '.join(type(each).__name__ for each in self)})"


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


def tokens_after(tokens_read: Tensor, valid: Tensor) -> Tensor:
    """`tokens_read` behind a piece whose real tokens are `valid`, bool `[b, t]`; `()` stays."""
    if _is_left_out(tokens_read):
        return tokens_read
    low = tokens_read[:, 1] + ops.sum(ops.cast(valid, "int32"), axis=1)
    return ops.stack([tokens_read[:, 0] + low // _WORD, low % _WORD], axis=1)


def empty_state(layers: tuple[LayerState, ...], batch_size: int | Tensor, options: MemoryOptions) -> StreamState:
    """A stream that has read nothing.

    Args:
        layers: tuple of `LayerState`.
        batch_size: int or scalar tensor.
        options: `MemoryOptions`.

    Returns:
        `StreamState`.
    """
    return StreamState(
        layers=tuple(layers),
        valid=ops.zeros((batch_size, options.slots), "bool"),
        started=ops.zeros((batch_size,), "bool"),
        position=ops.zeros((batch_size,), "int32"),
        tokens_read=ops.zeros((batch_size, 2), "int32"),
        block_size=ops.full((batch_size,), options.block_size, "int32"),
    )


def state_spec(layers: tuple[LayerState, ...], batch_size: int, slots: int) -> StreamState:
    """Shapes and dtypes of a `StreamState` as `keras.KerasTensor`; `layers` already are."""
    shapes = {"valid": (slots,), "started": (), "position": (), "tokens_read": (2,), "block_size": ()}
    dtypes = {"valid": "bool", "started": "bool"}
    arrays = {
        name: keras.KerasTensor((batch_size, *shape), dtypes.get(name, "int32")) for name, shape in shapes.items()
    }
    return StreamState(layers, **arrays)


def named_arrays(state: StreamState) -> list[tuple[str, Tensor]]:
    """`(name, array)` of every array, in a fixed order."""
    named = [
        (f"layers/{index}/{field}", array)
        for index, layer in enumerate(state.layers)
        for field, array in zip(LayerState._fields, layer)
    ]
    others = zip(StreamState._fields[1:], state[1:])
    return named + [(name, array) for name, array in others if name not in COUNTED or not _is_left_out(array)]


def _is_left_out(array):
    return isinstance(array, tuple) and not array


def bytes_of(structure: Any) -> int:
    """The bytes of all arrays, tensors or variables in a structure, by their shapes and dtypes."""
    dtypes = ((x.shape, keras.backend.standardize_dtype(x.dtype)) for x in keras.tree.flatten(structure))
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in dtypes)


def _in_words(state):
    """A state in one line: layers, streams, B, m, N, bytes, tokens read."""
    check_parts(state)
    arrays = [array for _, array in named_arrays(state)]
    known = all(map(is_concrete, arrays))
    slots, rows = state.valid.shape[1], state.valid.shape[0]
    if known and not _is_left_out(state.block_size) and rows:
        size = int(to_host(state.block_size)[0][0])
        blocks = f"B={size:,}, m={slots // size - 1}"
    else:
        blocks = f"(m + 1) * B={slots:,}"
    size = bytes_of(arrays)
    read = "tokens read are not known while a function is traced"
    if known:
        tokens = sorted(set(state.tokens or ()))
        read = " to ".join(f"{each:,}" for each in (tokens if len(tokens) < 2 else (tokens[0], tokens[-1])))
        read = f"{read} tokens read" if tokens else f"tokens read were not counted, place {_first(state.position)}"
    layers = f"{len(state.layers)} layer{'s' * (len(state.layers) != 1)}, {rows} stream{'s' * (rows != 1)}"
    return f"StreamState({layers}, {blocks}, N={state.layers[0].fam.shape[1]}, {size:,} bytes, {read})"


def _first(array):
    return f"{int(to_host(array)[0][0]):,}"


def check_parts(state: StreamState) -> None:
    """Refuses what is no `StreamState`, or one put together by hand from something else than arrays."""
    if not isinstance(state, StreamState):
        raise TypeError(f"`state` must be a StreamState. Received: state of type {type(state).__name__}.")
    layers = state.layers
    if not isinstance(layers, tuple) or not layers or not all(isinstance(layer, LayerState) for layer in layers):
        raise TypeError(f"`state.layers` must be a tuple of LayerState, at least one. Received: {layers!r:.200}.")
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
    expected_arrays = dict(named_arrays(expected))
    for name, array in named_arrays(state):
        wanted = expected_arrays[name]
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


def check_place(state: StreamState, block_size: int) -> int | None:
    """The position of a checked state's streams, if it is known.

    Args:
        state: `StreamState`.
        block_size: int, B of the model.

    Returns:
        int, or None inside a compiled function that is given `state`.

    Raises:
        ValueError: rows at several positions, or a state of a model with another B.
    """
    counted = () if _is_left_out(state.block_size) else (state.block_size,)
    if not all(map(is_concrete, (state.position, *counted))):
        return None
    positions, *sizes = to_host(state.position, *counted)
    if (positions != positions[0]).any():
        raise ValueError(
            f"`state` must hold streams at one position: expected {positions[0]} in every row. Received: positions "
            f"{positions.tolist()}."
        )
    if sizes and (sizes[0] != block_size).any():
        raise ValueError(
            f"`state` belongs to another model: expected block_size={block_size}. Received: block_size="
            f"{int(sizes[0].max())}."
        )
    return int(positions[0])
