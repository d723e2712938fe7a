"""A reader of the part of HDF5 that `h5py` writes for adapters: groups, arrays in one piece, attributes of the root.

libhdf5 1.14 never returns from 3 in 1,000 randomly damaged files, so none is given to it. Here nothing is followed but
hard links; every address is checked; and all reads together are no longer than twice the file, which ends every loop.
The structures are those of the "HDF5 File Format Specification" with superblock 0, named in its words.
"""

import struct

import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_MAX_DEPTH = 32
_NIL, _DATASPACE, _DATATYPE, _OLD_FILL, _FILL, _LAYOUT, _ATTRIBUTE, _OLD_TIME, _MORE, _SYMBOL_TABLE, _TIME = (
    *(0x0, 0x1, 0x3, 0x4, 0x5, 0x8, 0xC, 0xE, 0x10, 0x11, 0x12),
)
_OF_DATASETS = {_NIL, _DATASPACE, _DATATYPE, _OLD_FILL, _FILL, _LAYOUT, _OLD_TIME, _MORE, _TIME}
_OF_GROUPS = {_NIL, _MORE, _SYMBOL_TABLE, _TIME}
_FLOAT32 = bytes.fromhex("11201f00 04000000 00002000 17080017 7f000000")
_INTEGERS = {bytes.fromhex("10080000 08000000 00004000"): "<q", bytes.fromhex("10080000 04000000 00002000"): "<i"}
_STRING = bytes.fromhex("190100"), bytes.fromhex("190101")  # of any length, zero-terminated; then the character set


def read(file, size):
    """Reads all arrays of a file, and the attributes of its root.

    Args:
        file: binary file.
        size: int, its length in bytes.

    Returns:
        `(arrays, attributes)`: dict of path to float32 array, and dict of name to int or list of str.

    Raises:
        ValueError, struct.error: a damaged file, or anything in it that `h5py` does not write for adapters.
    """
    source = _Source(file, size)
    superblock = source.at(0, 96)
    if superblock[:16] != SIGNATURE + bytes([0, 0, 0, 0, 0, 8, 8, 0]):
        raise ValueError("an HDF5 superblock of another version")
    base, _, end, _, _, root = struct.unpack_from("<6Q", superblock, 24)
    if base != 0 or end != size:
        raise ValueError(f"{size} bytes, where the superblock says {end}")
    arrays: dict[str, np.ndarray] = {}
    messages = _messages(source, root)
    attributes = dict(_attribute(source, body) for kind, body in messages if kind == _ATTRIBUTE)
    _read_group(source, [each for each in messages if each[0] != _ATTRIBUTE], (), arrays)
    return arrays, attributes


class _Source:
    """The bytes of a file, of which no more than twice its length is handed out."""

    def __init__(self, file, size):
        self.file, self.size, self.left = file, size, 2 * size
        self.heaps = {}

    def at(self, address, length, signature=b""):
        self.left -= length
        if address + length > self.size or self.left < 0:
            raise ValueError("an address beyond the file, or structures that overlap")
        self.file.seek(address)
        data = self.file.read(length)
        if len(data) != length or not data.startswith(signature):
            raise ValueError(f"no {signature.decode()} at {address}")
        return data


def _messages(source, address):
    """`(kind, body)` of each message in an object's header."""
    version, count, length = struct.unpack("<BxH4xI4x", source.at(address, 16))
    if version != 1:
        raise ValueError("an object header of another version")
    blocks, messages = [(address + 16, length)], list[tuple[int, bytes]]()
    while blocks and len(messages) < count:
        data, place = source.at(*blocks.pop()), 0
        while place + 8 <= len(data) and len(messages) < count:
            kind, length, flags = struct.unpack_from("<HHB", data, place)
            body = data[place + 8 : place + 8 + length]
            if len(body) != length or flags & 2:
                raise ValueError("a message that is cut off or shared")
            if kind == _MORE:
                blocks.append(struct.unpack("<QQ", body))
            messages.append((kind, body))
            place += 8 + length
    if len(messages) != count:
        raise ValueError("an object header that is cut off")
    return messages


def _single(messages, kind):
    found = [body for each, body in messages if each == kind]
    if len(found) != 1:
        raise ValueError(f"an object with {len(found)} messages of kind {kind}")
    return found[0]


def _read_object(source, address, path, arrays):
    messages = _messages(source, address)
    if any(kind == _SYMBOL_TABLE for kind, _ in messages):
        return _read_group(source, messages, path, arrays)
    if not {kind for kind, _ in messages} <= _OF_DATASETS:
        raise ValueError(f"{'/'.join(path)} is no plain array")
    shape = _shape(_single(messages, _DATASPACE))
    version, layout, address, length = struct.unpack_from("<BBQQ", _single(messages, _LAYOUT))
    count = 1
    for axis in shape:
        count *= axis
    if _single(messages, _DATATYPE)[:20] != _FLOAT32 or (version, layout) != (3, 1) or length != 4 * count:
        raise ValueError(f"{'/'.join(path)} is no array of float32 in one piece")
    arrays["/".join(path)] = np.frombuffer(source.at(address, length), "<f4").reshape(shape).copy()


def _read_group(source, messages, path, arrays):
    if not {kind for kind, _ in messages} <= _OF_GROUPS or len(path) > _MAX_DEPTH:
        raise ValueError(f"{'/'.join(path[:4])} is no plain group, or too deep")
    tree, heap = struct.unpack("<QQ", _single(messages, _SYMBOL_TABLE))
    length, _, address = struct.unpack_from("<8xQQQ", source.at(heap, 32, b"HEAP"))
    names = source.at(address, length)
    for offset, address in _entries(source, tree):
        if offset >= len(names):
            raise ValueError("a name beyond its heap")
        name = names[offset : names.index(b"\0", offset)].decode()
        child = (*path, name)
        if not name or "/" in name or "/".join(child) in arrays:
            raise ValueError(f"{'/'.join(child)!r} is no name, or there twice")
        _read_object(source, address, child, arrays)


def _entries(source, address, level=None):
    """`(offset of the name, address of the object)` of each member of a group: a B-tree of tables."""
    kind, found, used = struct.unpack_from("<4xBBH", source.at(address, 24, b"TREE"))
    if kind != 0 or (level is not None and found != level):
        raise ValueError("a B-tree whose levels do not fit")
    children = struct.unpack(f"<{2 * used + 1}Q", source.at(address + 24, 8 * (2 * used + 1)))[1::2]
    for child in children:
        if found > 0:
            yield from _entries(source, child, found - 1)
        else:
            yield from _table(source, child)


def _table(source, address):
    version, used = struct.unpack_from("<4xBxH", source.at(address, 8, b"SNOD"))
    entries = source.at(address + 8, 40 * used)
    for place in range(0, len(entries), 40):
        offset, target, cache = struct.unpack_from("<QQI", entries, place)
        if version != 1 or cache not in (0, 1):
            raise ValueError("a link that is no hard link")
        yield offset, target


def _shape(body):
    version, rank, flags = struct.unpack_from("<BBB", body)
    if version != 1 or rank > 8 or flags > 1:
        raise ValueError("a dataspace of another version")
    return struct.unpack_from(f"<{rank}Q", body, 8)


def _attribute(source, body):
    """`(name, value)`, a value being an int or a list of str."""
    version, *lengths = struct.unpack_from("<BxHHH", body)
    place, parts = 8, []
    for length in lengths:
        parts.append(body[place : place + length])
        place += -(-length // 8) * 8
    name, dtype, space = parts
    shape, data = _shape(space), body[place:]
    if version == 1 and len(shape) <= 1:
        if dtype in _INTEGERS and not shape:
            return name.rstrip(b"\0").decode(), struct.unpack_from(_INTEGERS[dtype], data)[0]
        count = shape[0] if shape else 1
        if dtype[:3] in _STRING and 16 * count <= len(data):
            return name.rstrip(b"\0").decode(), [_string(source, data, 16 * index) for index in range(count)]
    raise ValueError(f"attribute {name[:40]!r} is of another kind")


def _string(source, data, place):
    """A string out of a global heap."""
    length, heap, index = struct.unpack_from("<IQI", data, place)
    if heap not in source.heaps:
        source.heaps[heap] = _heap(source, heap)
    stored = source.heaps[heap].get(index, b"")
    if length > len(stored):
        raise ValueError("a string that is not in its heap")
    return stored[:length].decode()


def _heap(source, address):
    """The objects of a global heap, by index."""
    length = struct.unpack_from("<8xQ", source.at(address, 16, b"GCOL"))[0]
    data, place, objects = source.at(address, length), 16, {}
    while place + 16 <= len(data):
        index, stored = struct.unpack_from("<H6xQ", data, place)
        if index == 0:  # The free space at the end.
            break
        objects[index] = data[place + 16 : place + 16 + stored]
        place += 16 + -(-stored // 8) * 8
    return objects
