"""The file of a stream's state: an uncompressed `.npz` of named arrays, with a header and a checksum.

Every size, dtype and shape is checked before an array is read, so a damaged file costs no more memory than it is long.
"""

import json
import re
import zipfile

import ml_dtypes
import numpy as np

from keras_fam.files.checks import FLOATS, check_finite, check_integer, checksum

FORMAT, FORMAT_1 = "keras_fam.StreamState/2", "keras_fam.StreamState/1"

# Of each array: the dtypes that it may have, and a letter for each axis. `b`, `d` and `R` are the same in the whole
# file, other letters in one layer. A layer's ring has P places, of the longest ring's R.
LAYER_FIELDS = {
    "fam": (FLOATS, "bNd"),
    "fam_key": (FLOATS, "bMkc"),  # N, or N + 1 with a sink
    "fam_value": (FLOATS, "bMkc"),
    "key": (FLOATS, "bPkc"),
    "value": (FLOATS, "bPkc"),
}
FIELDS = {"valid": (("bool",), "bR"), "started": (("bool",), "b"), "position": (("int32",), "b")}
# Files of earlier versions do not have these.
COUNTED = {"tokens_read": (("int32",), "bw"), "block_size": (("int32",), "b")}

# NumPy's file format does not know bfloat16: its bits are stored.
_STORED = {"bfloat16": "<u2", "float16": "<f2", "float32": "<f4", "float64": "<f8", "bool": "|b1", "int32": "<i4"}
_MAX_DIRECTORY = 2**22
_MAX_LAYERS = 10_000
_NPY_HEADER = re.compile(rb"\{'descr': '(.{3})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n")


def write(file, arrays, layers):
    """Writes a state.

    Args:
        file: binary file.
        arrays: dict of str to array: `layers/<index>/<field>` for each of `LAYER_FIELDS`, each of `FIELDS`, and all of
            `COUNTED` or none.
        layers: int, how many layers.

    Raises:
        ValueError: names, dtypes, shapes or values that are no state's.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        _check(arrays, layers)
    except ValueError as error:
        raise ValueError(f"`state` must hold finite arrays that fit each other. Received: {error}.") from error
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    header = {"format": FORMAT, "layers": layers, "dtypes": dtypes, "shapes": shapes}
    header["sha256"] = checksum({"format": FORMAT, "layers": layers}, arrays)
    stored = {name: array.view(np.uint16) if dtypes[name] == "bfloat16" else array for name, array in arrays.items()}
    np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **stored)


def read(file, size):
    """Reads what `write` wrote, also in format 1, which had no checksum.

    Args:
        file: binary file.
        size: int, its length in bytes.

    Returns:
        `(arrays, layers)`, as given to `write`.

    Raises:
        ValueError, KeyError, zipfile.BadZipFile: a damaged file, or another one.
    """
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, size)
        header = json.loads(_array(archive, members.pop("header"), "|u1").tobytes())
        layers = _check_header(header, members)
        arrays = {}
        for name, dtype in header["dtypes"].items():
            array = _array(archive, members[name], _STORED[dtype], header.get("shapes", {}).get(name))
            arrays[name] = array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array
    _check(arrays, layers)
    if header["format"] == FORMAT and header["sha256"] != checksum({"format": FORMAT, "layers": layers}, arrays):
        raise ValueError("the checksum differs")
    return arrays, layers


def names(layers, given=()):
    """`(name, allowed dtypes, axes)` of all arrays of a state; of those in `COUNTED` too, if one of them is given."""
    for index in range(layers):
        for field, (dtypes, axes) in LAYER_FIELDS.items():
            yield f"layers/{index}/{field}", dtypes, axes
    for field, (dtypes, axes) in (FIELDS | (COUNTED if set(COUNTED) & set(given) else {})).items():
        yield field, dtypes, axes


def _check(arrays, layers):
    """Names, dtypes, shapes that agree with each other, finite values, and a position that can be."""
    if set(arrays) != {name for name, _, _ in names(layers, arrays)}:
        raise ValueError(f"{len(arrays)} arrays, not those of {layers} layers")
    sizes: dict[tuple[str, str], int] = {}
    for name, dtypes, axes in names(layers, arrays):
        array = arrays[name]
        if array.dtype.name not in dtypes or array.ndim != len(axes):
            raise ValueError(f"{name} is {array.dtype.name} of shape {array.shape}, not {dtypes} of rank {len(axes)}")
        for letter, length in zip(axes, array.shape):
            where = "" if letter in "bdRw" else name.rpartition("/")[0]
            if sizes.setdefault((where, letter), length) != length:
                raise ValueError(f"{name} of shape {array.shape} does not fit the other arrays")
    seen = {where: length - sizes[where, "N"] for (where, letter), length in sizes.items() if letter == "M"}
    if any(sinks not in (0, 1) for sinks in seen.values()):
        raise ValueError("a layer's fam_key is neither as long as its fam nor one longer, for a sink")
    if any(length > sizes["", "R"] for (_, letter), length in sizes.items() if letter == "P"):
        raise ValueError("a layer's ring is longer than `valid`")
    check_finite(arrays)
    position = arrays["position"]
    if position.size and (position.min() < 0 or position.min() != position.max()):
        raise ValueError("position is below 0 or differs between rows")
    if "tokens_read" in arrays:
        _check_counted(arrays)


def _check_counted(arrays):
    """Tokens that can have been read, and a block size that divides the ring."""
    tokens, size = arrays["tokens_read"], arrays["block_size"]
    if tokens.shape[1] != 2 or (tokens < 0).any() or (tokens[:, 1] >= 2**30).any():
        raise ValueError("tokens_read is no count")
    if size.size and (size.min() < 1 or size.min() != size.max() or arrays["valid"].shape[1] % size.min()):
        raise ValueError("block_size differs between rows or does not divide the ring")


def _check_header(header, members):
    """The number of layers, of a header that agrees with the members of the file."""
    keys = {
        FORMAT: {"format", "layers", "dtypes", "shapes", "sha256"},
        FORMAT_1: {"format", "layers", "dtypes"},
    }
    if not isinstance(header, dict) or set(header) != keys.get(header.get("format", "")):
        raise ValueError("the header is no state's, or of an unknown format")
    layers = check_integer("the number of layers", header["layers"], 1, min(_MAX_LAYERS, len(members)))
    expected = {name for name, _, _ in names(layers, members)}
    for key in ("dtypes", "shapes"):
        if key in header and (not isinstance(header[key], dict) or set(header[key]) != expected):
            raise ValueError(f"the header's {key} are not those of {layers} layers")
    if not all(isinstance(shape, list) for shape in header.get("shapes", {}).values()):
        raise ValueError("the header's shapes are none")
    if set(members) != expected:
        raise ValueError(f"the file does not hold the arrays of {layers} layers")
    if not all(isinstance(dtype, str) and dtype in _STORED for dtype in header["dtypes"].values()):
        raise ValueError("the header names a dtype that no state has")
    return layers


def _check_directory(file, size):
    """Bounds the zip file's list of members before `zipfile` reads it into memory."""
    file.seek(max(0, size - 98))
    end = file.read()
    if end[-22:-18] != b"PK\x05\x06" or len(end) < 22:
        raise ValueError("no end of a zip file")
    length = int.from_bytes(end[-10:-6], "little")
    if end[-42:-38] == b"PK\x06\x07":  # zip64
        length = int.from_bytes(end[40:48], "little") if len(end) == 98 else size
    if length > _MAX_DIRECTORY:
        raise ValueError("too many members")


def _members(archive, size):
    """Members by name, without ending: none compressed, and all together no longer than the file."""
    members = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits:
            raise ValueError(f"{name[:40]!r} is compressed or encrypted")
        if name in members or name == info.filename:
            raise ValueError(f"{name[:40]!r} is there twice or no array")
        members[name] = info
    if sum(info.file_size for info in members.values()) > size:
        raise ValueError("the arrays are longer than the file")
    return members


def _array(archive, info, stored, expected_shape=None):
    """Reads one array, if its own header says what it should."""
    with archive.open(info) as member:
        start = member.read(10)
        if start[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError(f"{info.filename!r} is no array")
        length = int.from_bytes(start[8:], "little")
        found = _NPY_HEADER.fullmatch(member.read(length))
        if not found or found[1].decode("latin-1") != stored:
            raise ValueError(f"{info.filename!r} is no array of dtype {stored}")
        shape = tuple(int(axis) for axis in found[3].decode().split(",") if axis.strip())
        if expected_shape is not None and list(shape) != expected_shape:
            raise ValueError(f"{info.filename!r} has shape {shape}, the header says {expected_shape}")
        dtype, count = np.dtype(stored), 1
        for axis in shape:
            count *= axis
        if len(shape) > 4 or 10 + length + count * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename!r} has shape {shape}, which does not fit its length")
        data = member.read(count * dtype.itemsize)
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise ValueError(f"{info.filename!r} holds what is no bool")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if found[2] == b"True" else "C").copy()
