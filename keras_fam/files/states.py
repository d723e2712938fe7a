"""Stream states in files."""

import os

from keras import ops

from keras_fam.checks import check_path
from keras_fam.files import state_file
from keras_fam.files.atomic import atomic_write
from keras_fam.files.checks import in_words
from keras_fam.memory.state import LayerState, StreamState, check_parts, named_arrays


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
    check_path("path", path)
    check_parts(state)
    arrays = {name: ops.convert_to_numpy(array) for name, array in named_arrays(state)}
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
        *(tensors.get(field, ()) for field in StreamState._fields[1:]),
    )
