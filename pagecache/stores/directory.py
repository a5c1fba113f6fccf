"""The directory of a new file: what makes the file's name durable.

A new file is durable when its directory is, too.  The directory is kept by a descriptor from before the file is made until
it is synced: by then it may have another name or none, its name may lead elsewhere, and so may a path that is relative.
New files of one directory share one descriptor.
"""

import errno
import os
import weakref
from collections.abc import Callable

from pagecache._core import Mutex, sync_file_system

CANNOT_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)  # of a descriptor that may not, of file systems that know no such


class Directory:
    """An open directory. fd: for the calls that take one; closed when this object is not held any more."""

    def __init__(self, fd: int):
        self.fd = fd

    def sync(self, file_fd: int) -> None:
        """Make durable which names there are, or, where a directory cannot be synced by itself, the whole file system.

        file_fd: of a file in it. Raises OSError. Context: waits for the device.
        """
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in CANNOT_SYNC:
                raise
            sync_file_system(file_fd)

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.fd)


_open: "weakref.WeakValueDictionary[tuple[int, int], Directory]" = weakref.WeakValueDictionary()
_lock = Mutex()


def open_directory(path: str) -> Directory:
    """Return a directory by its path ("": the working directory). Raises OSError.

    One that may be entered and written, but not listed, can be opened, too: it is not synced by itself.
    """
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC
    try:
        fd = os.open(path or ".", flags)
    except PermissionError:
        if not hasattr(os, "O_PATH"):
            raise
        fd = os.open(path or ".", flags | os.O_PATH)
    made = Directory(fd)
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    with _lock.held():
        known = _open.get(key)
        if known is None:
            _open[key] = known = made
    return known


def _after_fork_in_child() -> None:
    global _lock
    _lock = Mutex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
