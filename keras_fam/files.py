"""Stream states in files."""

import json
import os
import uuid

import ml_dtypes
import numpy as np
from keras import ops

from keras_fam.memory.state import LayerState, StreamState, check_parts, named_arrays

FORMAT = "keras_fam.StreamState/1"


def save_state(path: str | os.PathLike, state: StreamState) -> None:
    """Writes a stream's state to one `.npz` file, whole or not at all.

    Args:
        path: str or path-like. An existing file is replaced in one step: if writing is interrupted, it is still there.
        state: `StreamState`.

    Raises:
        TypeError: `state` is no `StreamState`.

    Example:

    ```python
    keras_fam.save_state("conversation.npz", state)
    state = keras_fam.load_state("conversation.npz")
    ```
    """
    check_parts(state)
    arrays, dtypes = {}, {}
    for name, array in named_arrays(state):
        array = ops.convert_to_numpy(array)
        dtypes[name] = array.dtype.name
        # NumPy's file format does not know bfloat16: store its bits.
        arrays[name] = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
    header = {"format": FORMAT, "layers": len(state.layers), "dtypes": dtypes}
    with atomic_write(path) as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)


def load_state(path: str | os.PathLike) -> StreamState:
    """Reads what `save_state` wrote.

    Args:
        path: str or path-like.

    Returns:
        `StreamState` of tensors of the current backend.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or holds no state.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"`path` must be an existing state file. Received: path={str(path)!r}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes().decode())
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']!r}")
            arrays = {name: file[name] for name in header["dtypes"]}
        layers = tuple(
            LayerState(*(_tensor(arrays, header, f"layers/{index}/{field}") for field in LayerState._fields))
            for index in range(header["layers"])
        )
        return StreamState(layers, *(_tensor(arrays, header, field) for field in StreamState._fields[1:]))
    except Exception as error:  # A damaged zip file can raise nearly anything.
        raise ValueError(
            f"`path` must be a complete file written by `save_state`. Received: path={str(path)!r}, which is truncated "
            f"or no state file ({type(error).__name__}: {error})."
        ) from error


def _tensor(arrays, header, name):
    array, dtype = arrays[name], header["dtypes"][name]
    return ops.convert_to_tensor(array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array, dtype=dtype)


class atomic_write:
    """Context manager: a binary file that takes `path`'s place only when it is complete."""

    def __init__(self, path):
        self.path = os.path.abspath(os.fspath(path))

    def __enter__(self):
        folder, name = os.path.split(self.path)
        # Not `tempfile`, whose files only their owner may read.
        self.temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
        self.file = open(self.temporary, "xb")
        return self.file

    def __exit__(self, error_type, error, traceback):
        try:
            self.file.close()
            if error_type is None:
                os.replace(self.temporary, self.path)
        finally:
            if os.path.exists(self.temporary):
                os.unlink(self.temporary)
