"""A file that takes its name's place whole: written beside it, then renamed.

What a killed process left beside the name is removed by the next save of that name. A lock tells it from what is still
being written: the system lets go of a lock when its process ends, however that ends.
"""

import contextlib
import os
import re
import shutil
import uuid

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing that is left over is removed.
    fcntl = None  # type: ignore[assignment]

PREFIX = ".keras_fam-"
# What a temporary holds: something half written; all of the new folder; the old folder, out of the way.
PART, NEW, OLD = "part", "new", "old"


class atomic_write:
    """Context manager: a binary file that takes `path`'s place only when it is complete, and on the disk.

    Args:
        path: str or path-like.
    """

    def __init__(self, path):
        self.path = os.path.abspath(os.fspath(path))

    def __enter__(self):
        remove_leftovers(self.path)
        self.temporary, self.file = create_locked(self.path, lambda name: open(name, "x+b"))
        return self.file

    def __exit__(self, error_type, error, traceback):
        try:
            if error_type is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            if fcntl is None:
                self.file.close()  # Windows neither renames nor removes an open file.
            if error_type is None:
                os.replace(self.temporary, self.path)
                sync_folder(os.path.dirname(self.path))
        finally:
            remove(self.temporary)
            self.file.close()


def temporary_name(path, kind=PART):
    """A new name beside `path`, that ends as `path` does."""
    folder, name = os.path.split(path)
    # Not `tempfile`, whose files only their owner may read.
    return os.path.join(folder, f"{PREFIX}{uuid.uuid4().hex[:8]}-{kind}-{name}")


def temporaries(path, kinds=(PART, NEW, OLD)):
    """All temporaries of `path`, of this process and others, alive and dead."""
    folder, name = os.path.split(path)
    pattern = re.compile(f"{re.escape(PREFIX)}[0-9a-f]{{8}}-({'|'.join(kinds)})-{re.escape(name)}")
    if not os.path.isdir(folder):
        return []
    return [os.path.join(folder, found) for found in sorted(os.listdir(folder)) if pattern.fullmatch(found)]


def create_locked(path, create):
    """Creates a temporary of `path` and holds its lock.

    Args:
        path: str, absolute.
        create: callable `(name) -> file`, something with `fileno` and `close`.

    Returns:
        `(name, file)`; the lock is held until `file` is closed.
    """
    while True:
        name = temporary_name(path)
        file = create(name)
        if fcntl is None:
            return name, file
        _lock(file.fileno(), wait=True)
        # Another process may have taken it for a leftover before it was locked.
        if os.path.exists(name) and os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
            return name, file
        file.close()


def remove_leftovers(path):
    """Removes the temporaries of `path` that no process is writing."""
    for name in temporaries(path):
        try:
            descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # Another user's, or removed meanwhile.
            continue
        try:
            if _lock(descriptor, wait=False):
                remove(name)
        finally:
            os.close(descriptor)


def remove(path):
    """Removes a file, or a folder with all that is in it; what does not go of a folder is left to the next save."""
    if os.path.isdir(path) and not os.path.islink(path):
        return shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # Another process removed it already.
        os.unlink(path)


def sync_folder(folder):
    """Waits until what was renamed in a folder is on the disk, where the system can say so."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # Some network drives cannot.
        pass


def _lock(descriptor, wait):
    """Whether the lock is held now; not if another process holds it, or if the system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # Another process holds it, or a network drive has no locks.
        return False
    return True
