"""A folder that takes another one's place in one step: a reader finds the old one or the new one, and no mixture.

Linux and macOS can exchange two folders. Elsewhere the old one is moved away first; if the process is killed before the
new one stands in its place, the next reader or writer puts it there.
"""

import contextlib
import ctypes
import errno
import fnmatch
import os
import shutil
import sys

from keras_fam.files.atomic import (
    NEW,
    OLD,
    PREFIX,
    create_locked,
    remove,
    remove_leftovers,
    sync_folder,
    temporaries,
    temporary_name,
)

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM)


def replace_folder(path, fill, superseded=()):
    """Makes a new folder, which takes `path`'s place when it is complete and on the disk.

    Files of the old folder that the new one lacks are kept: they get a second name there. So a user's files survive.

    Args:
        path: str or path-like.
        fill: callable `(folder)` that writes the new files into the folder that it is given.
        superseded: sequence of str, patterns of names directly in the old folder that are not kept.

    Raises:
        OSError: whatever the system says; `path` is as it was.
    """
    path = os.path.realpath(os.fspath(path))
    if os.path.basename(path).startswith(PREFIX):  # `fill` itself came here again.
        return fill(path)
    recover(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    remove_leftovers(path)
    complete, lock = create_locked(path, _LockedFolder)
    try:
        fill(complete)
        if os.path.isdir(path):
            shutil.copymode(path, complete)
            _keep(path, complete, superseded)
        _sync(complete)
        old = _take_place(complete, path)
        sync_folder(os.path.dirname(path))
        if old is not None:
            with contextlib.suppress(FileNotFoundError):  # Another save removes it already.
                _keep(old, path, superseded)  # What was put there meanwhile.
            remove(old)
    finally:
        remove(complete)
        lock.close()


def read_folder(path, load, attempts=5):
    """`load()`, which reads files below `path`: all of them of one and the same folder.

    Args:
        path: str or path-like; if it is no local folder, `load` is called and that is all.
        load: callable.
        attempts: int, how often to start again when `path` was replaced meanwhile.

    Raises:
        RuntimeError: `path` was replaced during each attempt.
    """
    if not isinstance(path, (str, os.PathLike)):
        return load()
    for _ in range(attempts):
        recover(path)
        before = _identity(path)
        try:
            result = load()
        except Exception:  # Of files that went away, or of no one kind: half of the one folder, half of the other.
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return result
    raise RuntimeError(f"{path!r} was replaced while it was read, {attempts} times.")


def recover(path):
    """Puts a complete folder at `path`, if a process was killed after it moved the old one away."""
    path = os.path.realpath(path)
    if os.path.lexists(path):
        return
    for complete in (*temporaries(path, (NEW,)), *temporaries(path, (OLD,))):
        try:
            return os.rename(complete, path)
        except OSError:  # Another process did.
            continue


class _LockedFolder:
    def __init__(self, name):
        os.mkdir(name)
        self.descriptor = None if os.name == "nt" else os.open(name, os.O_RDONLY)

    def fileno(self):
        return self.descriptor

    def close(self):
        if self.descriptor is not None:
            os.close(self.descriptor)


def _take_place(complete, path):
    """Makes `complete` the folder `path`.

    Returns:
        Where the old folder is now, or None if there was none.
    """
    if not os.path.lexists(path):
        try:
            return os.rename(complete, path)
        except OSError:  # Another process was faster.
            if not os.path.isdir(path):
                raise
    if exchange(complete, path):
        return complete
    new, old = (temporary_name(path, kind) for kind in (NEW, OLD))
    os.rename(complete, new)
    try:
        os.rename(path, old)
        os.rename(new, path)
        return old
    finally:
        recover(path)  # After a failure: the new folder if that can be, else the old one.
        if os.path.isdir(path):
            remove(new)


def exchange(first, second):
    """Exchanges two folders in one step.

    Returns:
        False if this system, or the disk, cannot.
    """
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            here, swap = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
            result = library.renameat2(here, os.fsencode(first), here, os.fsencode(second), swap)
        elif sys.platform == "darwin":
            result = library.renamex_np(os.fsencode(first), os.fsencode(second), ctypes.c_uint(2))  # RENAME_SWAP
        else:
            return False
    except (AttributeError, TypeError):  # A C library without that function.
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), first, None, second)


def _keep(old, new, superseded):
    """Everything in `old` that `new` lacks gets a second name there; links stay links."""
    for folder, folders, files in os.walk(old):
        below = os.path.relpath(folder, old)
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]:
            source, target = os.path.join(folder, name), os.path.normpath(os.path.join(new, below, name))
            stale = below == os.curdir and any(fnmatch.fnmatchcase(name, pattern) for pattern in superseded)
            if not stale and not os.path.lexists(target):
                _copy(source, target)
        for name in folders:
            source, target = os.path.join(folder, name), os.path.normpath(os.path.join(new, below, name))
            if not os.path.lexists(target):
                os.mkdir(target)
                shutil.copymode(source, target)


def _copy(source, target):
    if os.path.islink(source):
        return os.symlink(os.readlink(source), target)
    try:
        os.link(source, target)
    except OSError as error:
        # On another disk: what is mounted there would be emptied with the old folder.
        if error.errno == errno.EXDEV or not os.path.isfile(source):
            raise
        shutil.copy2(source, target)


def _sync(folder):
    """Waits until every file below a folder is on the disk."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            if os.path.isfile(path) and not os.path.islink(path):
                _sync_file(path)
        sync_folder(where)


def _sync_file(path):
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path):
    """What tells a folder from another one of the same name; None if there is none."""
    if not os.path.isdir(path):
        return None
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns
