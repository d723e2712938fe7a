"""Values that are no argument of anything, or of little: what a call must refuse, by name, or document."""

import keras
import numpy as np
from keras import ops


class _Thing:
    """An object of no use."""

    def __repr__(self):
        return "<a thing>"


CONSTANTS = {
    "object": _Thing(),
    "None": None,
    "class": int,
    "str": "nonsense",
    "empty str": "",
    "bytes": b"nonsense",
    "True": True,
    "negative": -1,
    "zero": 0,
    "fraction": 2.5,
    "complex": 1j,
    "huge": 10**12,
    "hugest": 10**400,
    "nan": float("nan"),
    "inf": float("inf"),
    "empty": [],
    "empty dict": {},
    "rank 3": [[[1]]],
    "ragged": [[1], [1, 2]],
    "strings": ["a", "b"],
    "negative ids": [-1, -2],
    "huge ids": np.array([2**40, 2**50]),
    "floats": np.array([0.5, 1.5]),
    "nan array": np.array([float("nan"), 1.0]),
}


def values_beside(valid):
    """`{kind: value}` of all nonsense in place of a valid value: the same for any, and more for an array."""
    found = dict(CONSTANTS)
    if ops.is_tensor(valid) or isinstance(valid, np.ndarray):
        found |= arrays_beside(ops.convert_to_numpy(valid))
    elif isinstance(valid, dict):
        for key, value in valid.items():
            if ops.is_tensor(value) or isinstance(value, np.ndarray):
                kinds = arrays_beside(ops.convert_to_numpy(value))
                found |= {f"{key} {kind}": {**valid, key: array} for kind, array in kinds.items()}
            found[f"without {key}"] = {name: each for name, each in valid.items() if name != key}
    return found


def arrays_beside(array):
    """Arrays of the size of a valid one, of another rank, dtype or range."""
    found = {
        "of more rank": array[..., None],
        "of less rank": array[0],
        "without rows": array[:0],
        "as nan": np.full(array.shape, np.nan, "float32"),
        "as strings": array.astype("str"),
        "as complex": array.astype("complex64"),
        "as objects": np.full(array.shape, None),
        "of more rows": np.concatenate([array, array, array]),
    }
    if array.ndim > 1:
        found["without places"] = array[:, :0]
    if array.dtype.kind in "iu":
        found |= {
            "as halves": array + 0.5,
            "below 0": -1 - array,
            "too large": array.astype("int64") + 2**40,
        }
    if array.dtype.kind != "b":
        found["as bools"] = np.ones(array.shape, "bool")
    if array.dtype.kind == "f":
        found |= {"as integers": np.ones(array.shape, "int32"), "of another width": array[..., :-1]}
    if array.dtype.kind == "b":
        found |= {"as twos": np.full(array.shape, 2), "as halves": np.full(array.shape, 0.5)}
    return found


def states_beside(state):
    """States that do not fit: of another batch size, dtype or structure."""
    doubled = keras.tree.map_structure(lambda x: ops.concatenate([x, x], axis=0), state)
    narrow = keras.tree.map_structure(lambda x: ops.cast(x, "float16"), state.layers)
    return {
        "of more rows": doubled,
        "of another dtype": state._replace(layers=narrow),
        "without layers": state._replace(layers=()),
        "of None": state._replace(valid=None),
        "as tuple": tuple(state),
    }
