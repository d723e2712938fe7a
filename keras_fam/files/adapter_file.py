"""The file of an adapter: named arrays, the LoRA rank and the names of the adapted layers, in safetensors or HDF5.

Every size, dtype and shape is checked before an array is read, and the values by a checksum. HDF5 files of format 1,
which had none, are read too.
"""

import json
import os

import h5py
import numpy as np
import safetensors
from safetensors.numpy import save as to_safetensors

from keras_fam.checks import check_path
from keras_fam.files import hdf5
from keras_fam.files.atomic import atomic_write
from keras_fam.files.checks import FLOATS, check_finite, check_integer, check_names, checksum, in_words

FORMAT = "keras_fam.adapter/2"
ENDINGS = (".safetensors", ".lora.h5")

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_MAX_HEADER = 2**24
_MAX_RANK = 2**31


def save(filepath, arrays, rank, names):
    """Writes an adapter, whole or not at all.

    Args:
        filepath: str or path-like ending in `.safetensors`, or in `.lora.h5`, which stores all as float32.
        arrays: dict of str to float array; LoRA kernels end in `/lora_kernel_a`, `[..., rank]`, and `/lora_kernel_b`,
            `[rank, ...]`.
        rank: int.
        names: list of str, the names of the adapted layers.

    Raises:
        ValueError: another ending; arrays that are no adapter's; NaN or infinity.
    """
    if not str(check_path("filepath", filepath)).endswith(ENDINGS):
        raise ValueError(
            f"`filepath` must end in '.lora.safetensors' or '.lora.h5'. Received: filepath={str(filepath)!r}."
        )
    as_hdf5 = str(filepath).endswith(".h5")
    arrays = {name: np.array(array, "float32" if as_hdf5 else None, order="C") for name, array in arrays.items()}
    metadata = {"format": FORMAT, "rank": rank, "target_layer_names": list(names)}
    try:
        _check(arrays, metadata)
    except ValueError as error:
        raise ValueError(f"The weights to save must be finite and LoRA's. Received: {error}.") from error
    metadata["sha256"] = checksum(metadata, arrays)
    with atomic_write(filepath) as file:
        if as_hdf5:
            _write_hdf5(file, arrays, metadata)
        else:
            words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
            file.write(to_safetensors(arrays, words))


def load(filepath):
    """Reads what `save` wrote.

    Args:
        filepath: str or path-like.

    Returns:
        `(arrays, rank, names)`, as given to `save`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or holds no adapter.
    """
    with in_words("filepath", filepath, "save_lora_weights"), open(filepath, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start == hdf5.SIGNATURE:
            arrays, metadata = _read_hdf5(file, size)
        elif int.from_bytes(start, "little") > min(size, _MAX_HEADER):
            raise ValueError("neither HDF5 nor safetensors")
        else:
            arrays, metadata = _read_safetensors(filepath, size)
        _check(arrays, metadata)
        expected = metadata.pop("sha256", None)
        if metadata.get("format") == FORMAT and expected != checksum(metadata, arrays):
            raise ValueError("the checksum differs")
        return arrays, metadata["rank"], metadata["target_layer_names"]


def _check(arrays, metadata):
    """Metadata of the right types, and kernels in pairs of one rank."""
    rank = check_integer("rank", metadata["rank"], 1, _MAX_RANK)
    check_names("target_layer_names", metadata["target_layer_names"])
    first, second = (
        {name.removesuffix(end): array.shape for name, array in arrays.items() if name.endswith(end)}
        for end in ("/lora_kernel_a", "/lora_kernel_b")
    )
    if not first or set(first) != set(second):
        raise ValueError("no LoRA kernels, or one without the other")
    # Also what keeps a rank from asking for more memory than the file is long.
    if any(shape[-1:] != (rank,) for shape in first.values()) or any(shape[:1] != (rank,) for shape in second.values()):
        raise ValueError(f"LoRA kernels of another rank than {rank}")
    if any(array.dtype.name not in FLOATS for array in arrays.values()):
        raise ValueError("arrays that are not float")
    check_finite(arrays)


def _write_hdf5(file, arrays, metadata):
    # The structures that `hdf5.read` knows, whatever h5py's defaults become.
    with h5py.File(file, "w", libver="earliest", track_order=False) as store:
        store.attrs.update(metadata)
        for name, array in arrays.items():
            store[name] = array
    hdf5.read(file, file.seek(0, os.SEEK_END))


def _read_hdf5(file, size):
    arrays, metadata = hdf5.read(file, size)
    if set(metadata) == {"rank", "target_layer_names"}:  # Format 1.
        return arrays, metadata
    if set(metadata) != {"format", "rank", "target_layer_names", "sha256"}:
        raise ValueError(f"attributes {sorted(metadata)[:8]}")
    for key in ("format", "sha256"):
        (metadata[key],) = metadata[key]
    if metadata["format"] != FORMAT:
        raise ValueError("an unknown format")
    return arrays, metadata


def _read_safetensors(filepath, size):
    # Not "mmap": a file that is cut off while it is read would end the process.
    with safetensors.safe_open(filepath, "numpy", backend="pread") as file:
        words = file.metadata() or {}
        if set(words) != {"format", "rank", "target_layer_names", "sha256"} or words["format"] != FORMAT:
            raise ValueError("safetensors without an adapter's metadata, or of an unknown format")
        names = list(file.keys())
        if len(words["rank"]) > 10 or any(file.get_slice(name).get_dtype() not in _DTYPES for name in names):
            raise ValueError("arrays that are not float")
        metadata = {**words, "rank": json.loads(words["rank"])}
        metadata["target_layer_names"] = json.loads(words["target_layer_names"])
        return {name: file.get_tensor(name) for name in names}, metadata
