"""What the readers of all formats share: the file itself, finite values, a checksum, and errors in words."""

import contextlib
import hashlib
import json
import os
import stat

import numpy as np

from keras_fam.checks import check_path

FLOATS = ("bfloat16", "float16", "float32", "float64")


@contextlib.contextmanager
def in_words(argument, path, writer):
    """Turns whatever a damaged file raises into one ValueError.

    Args:
        argument: str, the name of the argument that `path` came in.
        path: str or path-like, to be an existing file.
        writer: str, the function that writes such files.

    Raises:
        FileNotFoundError: no such file.
        TypeError: `path` is no path.
        ValueError: `path` is no ordinary file, or the body of the `with` statement raised.
    """
    check_path(argument, path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"`{argument}` must be an existing file. Received: {argument}={str(path)!r}.")
    try:
        # A pipe would be waited for without end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not an ordinary file")
        yield
    except MemoryError:
        raise
    except Exception as error:  # A damaged file can raise nearly anything.
        raise ValueError(
            f"`{argument}` must be a complete file written by `{writer}`. Received: {argument}={str(path)!r}, which is "
            f"truncated, damaged or another kind of file ({type(error).__name__}: {error})."
        ) from error


def check_finite(arrays):
    """Refuses NaN and infinity.

    Args:
        arrays: dict of str to array.

    Raises:
        ValueError: a float array with a value that is not finite.
    """
    for name, array in arrays.items():
        if array.dtype.name in FLOATS and not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")


def check_integer(name, value, minimum, maximum):
    """Refuses what is no int in [minimum, maximum]; a bool is none."""
    if type(value) is not int or not minimum <= value <= maximum:
        raise ValueError(f"{name} is {str(value)[:40]!r}, not an int between {minimum} and {maximum}")
    return value


def check_names(name, value):
    """Refuses what is no list of different, non-empty str."""
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"{name} is no list of names")
    if len(set(value)) != len(value):
        raise ValueError(f"{name} holds a name twice")
    return value


def checksum(header, arrays):
    """The SHA-256 of a header and of arrays: their names, dtypes, shapes and bytes.

    Args:
        header: dict that JSON can hold.
        arrays: dict of str to C-contiguous array, in any order.

    Returns:
        str of 64 hexadecimal digits.
    """
    described = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
    sha256 = hashlib.sha256(json.dumps([header, described], sort_keys=True).encode())
    for name in sorted(arrays):
        sha256.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
