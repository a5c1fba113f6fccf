"""The entries of open directories, with the source's own offsets: a reader that goes on misses and repeats nothing."""

import ctypes
import errno
import itertools
import os
from struct import Struct

from pagecache._core import Mutex
from pagecache.adapters.fuse import beneath
from pagecache.adapters.fuse.nodes import Node, Nodes
from pagecache.adapters.fuse.protocol import dirent

ENTRY = Struct("=QqHB")  # inode number, offset of the next, length, type; then the name and a zero byte
_libc = ctypes.CDLL(None, use_errno=True)


class OpenDirectory:
    """One open directory of a program. fd: a descriptor of its own."""

    def __init__(self, node: Node, fd: int):
        self.node = node
        self.fd = fd
        self.device = os.fstat(fd).st_dev
        self.lock = Mutex()
        self._offset = 0

    def read(self, offset: int, nbytes: int) -> list[tuple[int, int, int, bytes]]:
        """Return entries from an offset: (inode number, offset of the next, type, name), none at the end.

        nbytes: how much the kernel takes; what is returned is no more. Context: self.lock held.
        """
        if offset != self._offset:
            os.lseek(self.fd, offset, os.SEEK_SET)
        room = ctypes.create_string_buffer(nbytes * 3 // 4)  # the kernel's form of an entry is up to a third longer
        found = _getdents(self.fd, room)
        entries, at = [], 0
        while at < found:
            ino, offset, length, kind = ENTRY.unpack_from(room, at)
            name = ctypes.string_at(ctypes.addressof(room) + at + ENTRY.size)
            entries.append((ino, offset, kind, name))
            at += length
        self._offset = offset
        return entries


def _getdents(fd: int, room: "ctypes.Array[ctypes.c_char]") -> int:
    call = getattr(_libc, "getdents64", None)
    if call is None:
        raise OSError(errno.ENOSYS, "this C library has no getdents64")
    found = call(fd, room, ctypes.sizeof(room))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


class OpenDirectories:
    """The open directories of one mount."""

    def __init__(self, nodes: Nodes):
        self._nodes = nodes
        self._opened: dict[int, OpenDirectory] = {}
        self._numbers = itertools.count(1)

    def open(self, node: Node, path_fd: int) -> int:
        """Open what an O_PATH descriptor holds. Returns the number of the handle. Raises OSError."""
        fd = beneath.open_again(path_fd, os.O_RDONLY | os.O_DIRECTORY)
        number = next(self._numbers)
        self._opened[number] = OpenDirectory(node, fd)
        return number

    def __getitem__(self, number: int) -> OpenDirectory:
        """Return an open directory. Raises OSError (EBADF)."""
        try:
            return self._opened[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def read(self, number: int, offset: int, nbytes: int) -> bytes:
        """Return entries from an offset as the kernel takes them."""
        opened = self[number]
        with opened.lock.held():
            entries = opened.read(offset, nbytes)
        return b"".join(
            dirent(self._shown(opened, ino, name), following, kind << 12, name)
            for ino, following, kind, name in entries
        )

    def _shown(self, opened: OpenDirectory, ino: int, name: bytes) -> int:
        if name == b".." and opened.node is self._nodes.root:
            return self._nodes.root.key[1]  # what is above the source is not shown
        return self._nodes.shown_ino(opened.device, ino)

    def sync(self, number: int) -> None:
        """Make the names of a directory durable. Raises OSError."""
        os.fsync(self[number].fd)

    def release(self, number: int) -> None:
        """Close a directory."""
        os.close(self._opened.pop(number).fd)

    def close(self) -> None:
        """Close all."""
        for number in list(self._opened):
            self.release(number)
