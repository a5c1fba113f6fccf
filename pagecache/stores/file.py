"""Local files: the engine reads the descriptor itself, without the GIL, straight into frames."""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

from pagecache._core import Mutex, punch_hole
from pagecache.stores.directory import Directory, open_directory

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


CREATE_TRIES = 40  # at a name that others make and remove, or that leads through symbolic links
DIRECT_REQUEST = 2 * 1024 * 1024  # bytes; nothing below reads ahead, so windows are several of these
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class FileStore:
    """A regular file or block device.

    path: its name. mode: as for `PageCache.open`. direct: bypass the kernel's page cache (O_DIRECT), so that bytes are
    cached once. empties: whether mode "w+b" empties the file; a cache does that itself, for all that have it open.
    Raises OSError, which names the path, when the file is missing, unreadable or no regular file.
    """

    preferred_request = 128 * 1024
    max_request = 2 * 1024 * 1024
    parallel_requests = 8
    latency = "local"

    def __init__(self, path: Path, mode: str = "rb", *, direct: bool = False, empties: bool = True):
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}: use one of {', '.join(_MODES)}")
        self.path = os.fsdecode(path)
        self._directory: Directory | None = None  # that does not durably know the file yet
        self._known_as = _absolute(self.path)  # whatever the working directory is later
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
        path = self.path
        for _ in range(CREATE_TRIES):
            if mode != "x+b":
                try:
                    return os.open(path, flags)
                except FileNotFoundError:
                    if mode in ("rb", "r+b"):
                        raise
            try:
                return self._make(path, flags)
            except FileExistsError:
                if mode == "x+b":
                    raise
            path = os.path.realpath(path)  # a symbolic link that leads to no file yet
        raise OSError(errno.ELOOP, "others make and remove this file again and again", self.path)

    def _make(self, path: str, flags: int) -> int:
        """Make the file, which must not exist, in a directory that is kept until it durably knows the file."""
        parent, name = os.path.split(path)
        try:
            directory = open_directory(parent) if name else None
            where = directory.fd if directory is not None else None
            fd = os.open(name or path, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=where)
        except OSError as error:
            error.filename = self.path
            raise
        self._directory = directory
        return fd

    def stamp(self) -> tuple[int, int, int]:
        """Return (time of the last change of bytes, and of bytes or attributes, in ns; size in bytes)."""
        status = os.fstat(self.fd)
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def size(self) -> int:
        """Return the size (bytes)."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def validator(self) -> str:
        """Return times of the last changes and size; device and inode number are in the key."""
        return "-".join(map(str, self.stamp()))

    def refresh(self) -> None:
        """Look whether the path still names this file. Raises OSError: ESTALE if it names another one, ENOENT if none."""
        named, opened = os.stat(self._known_as), os.fstat(self.fd)
        if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
            raise OSError(errno.ESTALE, "another file has this name now: reopen it, or use on_change='reload'", self.path)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled, fewer only at the end."""
        return os.preadv(self.fd, buffers, offset)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Write the buffers at `offset`; return the bytes written."""
        return os.pwritev(self.fd, buffers, offset)

    def truncate(self, size: int) -> None:
        """Truncate the file to `size` bytes, or extend it with a hole."""
        os.ftruncate(self.fd, size)

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
            if self._directory is not None:
                self._directory.sync(self.fd)
                self._directory = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self._known_as, "r+b" if self.writable else "rb", self.direct)

    def close(self) -> None:
        """Close the descriptors."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self._directory = None


def _absolute(path: str) -> str:
    """Return a path that does not depend on the working directory, as far as that can be had: it may have been removed."""
    if path.startswith(os.sep):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        return path
