"""Stores over descriptors that a mount has opened: no name is looked at again, whatever becomes of it."""

import errno
import os
from collections.abc import Sequence

from pagecache.stores import FileStore


class DescriptorStore(FileStore):
    """A file by its descriptor. name: for messages. mode: as for FileStore. fd: it belongs to the store."""

    def __init__(self, name: str, mode: str, fd: int, direct: bool):
        self._given_fd = fd
        super().__init__(name, mode, direct=direct, empties=False)

    def _open(self, mode: str, flags: int) -> int:
        return self._given_fd

    def refresh(self) -> None:
        """Do nothing: the descriptor tells of changes, and names do not matter."""

    def __copy__(self) -> "DescriptorStore":
        return type(self)(self.path, "r+b" if self.writable else "rb", os.dup(self.fd), self.direct)


class AppendStore(DescriptorStore):
    """A file that may only grow (`chattr +a`): its descriptor writes at the end, whatever offset it is given.

    What is there already is not written again: it cannot have changed.
    """

    def __init__(self, name: str, mode: str, fd: int, direct: bool):
        super().__init__(name, mode, fd, direct)
        self._append_fd, self.fd = self.fd, -1  # the engine would write pages by themselves

    def stamp(self) -> tuple[int, int, int]:
        """Return (time of the last change of bytes in ns, twice: it cannot be set while the file may only grow; size in
        bytes)."""
        status = os.fstat(self._append_fd)
        return status.st_mtime_ns, status.st_mtime_ns, status.st_size

    def size(self) -> int:
        """Return the size (bytes)."""
        return os.fstat(self._append_fd).st_size

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled, fewer only at the end."""
        return os.preadv(self._append_fd, buffers, offset)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Append what the file does not have yet. Raises OSError: EPERM if that is not at its end."""
        present, done = self.size() - offset, 0
        if present < 0:
            raise OSError(errno.EPERM, "this file can only be appended to", self.path)
        for buffer in buffers:
            skipped = min(len(buffer), max(0, present - done))
            done += skipped
            if skipped < len(buffer):
                wrote = os.write(self._append_fd, buffer[skipped:])
                done += wrote
                if wrote < len(buffer) - skipped:
                    break
        return done

    def truncate(self, size: int) -> None:
        """Refuse, as the file system does."""
        os.ftruncate(self._append_fd, size)

    def punch_hole(self, offset: int, length: int) -> None:
        """Refuse, as the file system does."""
        raise OSError(errno.EPERM, "this file can only be appended to", self.path)

    def sync(self, datasync: bool = False) -> None:
        """Make what was written durable."""
        (os.fdatasync if datasync else os.fsync)(self._append_fd)

    def __copy__(self) -> "AppendStore":
        return type(self)(self.path, "r+b" if self.writable else "rb", os.dup(self._append_fd), self.direct)

    def close(self) -> None:
        """Close the descriptor."""
        if self._append_fd >= 0:
            os.close(self._append_fd)
        self._append_fd = -1
