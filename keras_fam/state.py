"""The whole memory of a stream: one structure of arrays of fixed size, that goes into a call and comes out of it."""

import os
from typing import NamedTuple

import keras
from keras import ops

from keras_fam.files import state_file
from keras_fam.files.atomic import atomic_write
from keras_fam.files.checks import in_words
from keras_fam.types import Tensor


class LayerState(NamedTuple):
    """One layer's memory; b rows, N FAM vectors, a ring of m+1 blocks of B places, k key/value heads of size c.

    Attributes:
        fam: `[b, N, d]`, F after the last full block.
        fam_key, fam_value: `[b, N, k, c]`, Kf and Vf of that F.
        key, value: `[b, (m+1) * B, k, c]`, the last m blocks and the unfinished one, as a ring.
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


def check_state(state: "StreamState", expected: "StreamState") -> None:
    """Refuses a state of another structure, model, batch size or dtype.

    Args:
        state: what the caller passed.
        expected: `StreamState` of the shapes and dtypes wanted, e.g. of `keras.KerasTensor`.

    Raises:
        TypeError: not a `StreamState`, or arrays of another dtype.
        ValueError: arrays of other shapes.
    """
    if not isinstance(state, StreamState):
        raise TypeError(f"`state` must be a StreamState. Received: state of type {type(state).__name__}.")
    _check_parts(state)
    if len(state.layers) != len(expected.layers):
        raise ValueError(
            "`state` belongs to another model: expected the state of "
            f"{len(expected.layers)} layers. Received: {len(state.layers)} layers."
        )
    for (name, array), (_, wanted) in zip(_named_arrays(state), _named_arrays(expected)):
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


def save_state(path: str | os.PathLike, state: StreamState) -> None:
    """Writes a stream's state to one `.npz` file, whole or not at all.

    Args:
        path: str or path-like. An existing file is replaced in one step: if writing is interrupted, it is still there.
        state: `StreamState`.

    Raises:
        TypeError: `state` is no `StreamState`.
        ValueError: `state` holds NaN or infinity, or arrays that do not fit each other.

    Example:

    ```python
    keras_fam.save_state("conversation.npz", state)
    state = keras_fam.load_state("conversation.npz")
    ```
    """
    if not isinstance(state, StreamState):
        raise TypeError(f"`state` must be a StreamState. Received: state of type {type(state).__name__}.")
    _check_parts(state)
    arrays = {name: ops.convert_to_numpy(array) for name, array in _named_arrays(state)}
    with atomic_write(path) as file:
        state_file.write(file, arrays, len(state.layers))


def load_state(path: str | os.PathLike) -> StreamState:
    """Reads what `save_state` wrote.

    Args:
        path: str or path-like.

    Returns:
        `StreamState` of tensors of the current backend.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, damaged or holds no state; NaN and infinity are refused too.
    """
    with in_words("path", path, "save_state"), open(path, "rb") as file:
        arrays, layers = state_file.read(file, os.fstat(file.fileno()).st_size)
    tensors = {name: ops.convert_to_tensor(array, dtype=array.dtype.name) for name, array in arrays.items()}
    return StreamState(
        tuple(LayerState(*(tensors[f"layers/{i}/{field}"] for field in LayerState._fields)) for i in range(layers)),
        *(tensors[field] for field in StreamState._fields[1:]),
    )


def _check_parts(state):
    """Refuses a `StreamState` put together by hand from something else than `LayerState` and arrays."""
    if not isinstance(state.layers, tuple) or not all(isinstance(layer, LayerState) for layer in state.layers):
        raise TypeError(f"`state.layers` must be a tuple of LayerState. Received: {type(state.layers).__name__}.")
    for name, array in _named_arrays(state):
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(f"`state` must hold arrays. Received: {name} of type {type(array).__name__}.")


def _named_arrays(state):
    """`(name, array)` of every array, in a fixed order."""
    named = [
        (f"layers/{index}/{field}", array)
        for index, layer in enumerate(state.layers)
        for field, array in zip(LayerState._fields, layer)
    ]
    return named + list(zip(StreamState._fields[1:], state[1:]))
