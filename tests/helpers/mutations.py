"""Damaged files: random damage from a seed, and files made with intent."""

import faulthandler
import io
import json
import random
import resource
import struct
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from helpers.refusals import refused
from keras_fam.files.checks import checksum

MEGABYTE = 2**20


def mutate(content, seed):
    """Bit flips, a truncation, a range of zeros, a range copied over another, or a number overwritten."""
    rng = random.Random(seed)
    content, size = bytearray(content), len(content)
    kind = rng.randrange(5)
    start = rng.randrange(size)
    end = min(size, start + rng.randrange(1, 200))
    if kind == 0:
        for _ in range(rng.randrange(1, 9)):
            content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        content[start:end] = bytes(end - start)
    elif kind == 3:
        place = rng.randrange(size)
        content[place : place + end - start] = content[start:end]
    else:
        width = rng.choice([1, 2, 4, 8])
        value = rng.choice([0, 2 ** (8 * width) - 1, rng.randrange(2 ** (8 * width)), size % 256**width])
        content[start : start + width] = value.to_bytes(width, "little")
    return bytes(content)


@contextmanager
def watched(seconds=20, megabytes=300):
    """Ends the process if the body hangs, and bounds its time, its new address space and its new resident memory.

    A request beyond the bound is a MemoryError, which the readers do not turn into another error.
    """
    limits, peak, start = resource.getrlimit(resource.RLIMIT_AS), peak_megabytes(), time.monotonic()
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + megabytes * MEGABYTE, limits[1]))
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - start < seconds and peak_megabytes() - peak < megabytes


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refused_as(what, call, *words):
    """Asserts that a file made with intent is refused by a ValueError, within bounds; `what` says which one was not."""
    try:
        with watched():
            refused(call, *words, error=ValueError)
    except BaseException as error:
        error.add_note(what)
        raise


# === State files ===


def npz(header, arrays):
    """An `.npz` of a header and arrays; of bytes, where an array is to be no valid one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}.items():
            data = io.BytesIO()
            np.save(data, array) if isinstance(array, np.ndarray) else data.write(array)
            archive.writestr(f"{name}.npy", data.getvalue())
    return file.getvalue()


def state_npz(arrays, layers=1, version=2, **changes):
    """A state file with the right header and checksum for arrays that may be no state's."""
    header = {
        "format": f"keras_fam.StreamState/{version}",
        "layers": layers,
        "dtypes": {name: array.dtype.name for name, array in arrays.items()},
    }
    if version == 2:
        header["shapes"] = {name: array.shape for name, array in arrays.items()}
        described = {key: header[key] for key in ("format", "layers")}
        numbers = {name: array for name, array in arrays.items() if array.dtype != object}
        header["sha256"] = checksum(described, numbers)
    return npz({**header, **changes}, arrays)


def npy_of_shape(shape, dtype="<f4"):
    """The start of an array file, and four bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(4)


def bomb(content, name, size=2**31):
    """A zip file with one member that inflates from some 2 MB to `size` zeros."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = deflate.compress(bytes(MEGABYTE)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = piece * (size // MEGABYTE) + deflate.flush()
    old, new = io.BytesIO(content), io.BytesIO()
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, data if info.filename == name else source.read(info))
        info = target.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, size
    return new.getvalue()


# === Adapters ===


def safetensors_file(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def adapter_safetensors(arrays, rank=2, names=("query",), **changes):
    """An adapter with the right metadata and checksum for arrays that may be no adapter's."""
    from safetensors.numpy import save

    metadata = {"format": "keras_fam.adapter/2", "rank": rank, "target_layer_names": names}
    words = {
        "format": metadata["format"],
        "rank": json.dumps(rank),
        "target_layer_names": json.dumps(names),
        "sha256": checksum(metadata, arrays),
    }
    return save(arrays, {key: value for key, value in {**words, **changes}.items() if value is not None})
