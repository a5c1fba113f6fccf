"""Local files: the engine reads the descriptor itself, without the GIL, straight into frames."""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from pagecache._core import Mutex, punch_hole

_MODES = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "w+b": os.O_RDWR,
    "x+b": os.O_RDWR,
    "ab": os.O_RDWR,  # pages that are written in part are read first; O_APPEND would ignore the offset of a write
    "a+b": os.O_RDWR,
}


def _open_again(path: str, mode: str, direct: bool) -> "FileStore":
    return FileStore(path, mode, direct=direct)


DIRECT_REQUEST = 2 * 1024 * 1024  # bytes; nobody below reads ahead, so windows are several of these


class FileStore:
    """A regular file or block device.

    path: its name. mode: as for `PageCache.open`. direct: bypass the kernel's page cache (O_DIRECT), so that bytes are
    cached once. empties: whether mode "w+b" empties the file; a cache does that itself, for all who have it open.
    Raises OSError, which names the path, when the file is missing, unreadable or no regular file.
    """

    preferred_request = 128 * 1024
    max_request = 2 * 1024 * 1024
    parallel_requests = 8
    latency = "local"

    def __init__(self, path: Any, mode: str = "rb", *, direct: bool = False, empties: bool = True):
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}: use one of {', '.join(_MODES)}")
        self.path = os.fspath(path)
        if isinstance(self.path, bytes):
            self.path = os.fsdecode(self.path)
        self._tail_fd = -1
        self._is_new = False  # whether the directory does not durably know the file yet
        self._sync_lock = Mutex()
        flags = _MODES[mode] | os.O_CLOEXEC | os.O_NONBLOCK | (getattr(os, "O_DIRECT", 0) if direct else 0)
        self.direct = bool(direct and hasattr(os, "O_DIRECT"))
        if self.direct:
            self.preferred_request = self.max_request = DIRECT_REQUEST
            self.latency = "device"
        try:
            self.fd = self._open(mode, flags)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct:
                raise
            if os.path.isdir(self.path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path) from None
            reason = "this file cannot be read past the kernel's page cache: open it with direct=False"
            raise OSError(errno.EINVAL, reason, self.path) from None
        try:
            status = os.fstat(self.fd)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file: only regular files can be cached", self.path)
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise
        if mode == "w+b" and empties and status.st_size:
            os.ftruncate(self.fd, 0)
        self.key = f"file:{status.st_dev:x}:{status.st_ino:x}"
        self.name = self.path
        self.writable = mode != "rb"

    def _open(self, mode: str, flags: int) -> int:
        """Open the file, making it where the mode says so."""
        if mode in ("rb", "r+b"):
            return os.open(self.path, flags)
        try:
            fd = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if mode == "x+b":
                raise
            return os.open(self.path, flags | os.O_CREAT, 0o666)
        self._is_new = True
        return fd

    def stamp(self) -> tuple[int, int]:
        """Return (time of the last change in ns, size in bytes)."""
        status = os.fstat(self.fd)
        return status.st_mtime_ns, status.st_size

    def size(self) -> int:
        """Return the size (bytes)."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def validator(self) -> str:
        """Return time of the last change and size."""
        mtime_ns, size = self.stamp()
        return f"{mtime_ns}-{size}"

    def refresh(self) -> None:
        """Look whether the path still names this file. Raises OSError: ESTALE if it names another one, ENOENT if none."""
        named, opened = os.stat(self.path), os.fstat(self.fd)
        if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
            raise OSError(errno.ESTALE, "another file has this name now: reopen it, or use on_change='reload'", self.path)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled, fewer only at the end."""
        return os.preadv(self.fd, buffers, offset)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Write the buffers at `offset`; return the bytes written."""
        return os.pwritev(self.fd, buffers, offset)

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, or extend it with a hole."""
        os.ftruncate(self.fd, size)

    def write_tail(self, offset: int, data: memoryview) -> int:
        """Write the end of a file that is open past the kernel's page cache: it is no whole page. Returns the bytes."""
        with self._sync_lock.held():
            if self._tail_fd < 0:
                self._tail_fd = self._open_again()
        return os.pwrite(self._tail_fd, data, offset)

    def _open_again(self) -> int:
        """Open the file without O_DIRECT: itself, whatever became of its name; by name where there is no /proc."""
        with contextlib.suppress(FileNotFoundError):
            return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        if os.path.samestat(os.fstat(fd), os.fstat(self.fd)):
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "the file was replaced by another of its name", self.path)

    def punch_hole(self, offset: int, length: int) -> None:
        """Give up the blocks of a range, which reads as zeros then; the size stays. Raises OSError (EOPNOTSUPP where the
        file system cannot)."""
        punch_hole(self.fd, offset, length)

    def sync(self, datasync: bool = False) -> None:
        """Make what was written durable, and, the first time, that a new file is in its directory."""
        if datasync and hasattr(os, "fdatasync"):
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)
        with self._sync_lock.held():
            if self._is_new:
                _sync_directory(os.path.dirname(self.path) or ".")
                self._is_new = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, "r+b" if self.writable else "rb", self.direct)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.fd, self._tail_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._tail_fd = -1


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
