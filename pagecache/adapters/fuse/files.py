"""The open files of a mounted directory.

A `Node` stands for one open file of the source, by device and inode number, so that hard links are one, and lives as
long as a handle is open on it.  As long as something was written that may not be in the source yet, its size and time of
change are the node's: the source's own would be those of the last write-back.  When all is written back (`settle`), the
source is given that time, so a file's time of change does not move after the program has closed it.
"""

import contextlib
import copy
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Any

from pagecache import writeback
from pagecache.adapters.fuse import fallocation
from pagecache.stores import FileStore

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR


class DescriptorStore(FileStore):
    """A file of the source by its descriptor, whatever becomes of its name."""

    def __init__(self, path: str, mode: str, fd: int, direct: bool):
        self._given_fd = fd
        super().__init__(path, mode, direct=direct, empties=False)

    def _open(self, mode: str, flags: int) -> int:
        return self._given_fd

    def refresh(self) -> None:
        """Do nothing: the descriptor tells of changes, and names do not matter."""

    def __copy__(self) -> "DescriptorStore":
        flags = os.O_RDWR if self.writable else os.O_RDONLY
        fd = os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC | (os.O_DIRECT if self.direct else 0))
        return DescriptorStore(self.path, "r+b" if self.writable else "rb", fd, self.direct)


class Node:
    """One open file of the source. fd: a descriptor of its own, which only tells and sets attributes. It is open as long as
    this object lives: who has found the file by its name may use it while the last handle is given up."""

    def __init__(self, key: tuple[int, int], fd: int, file: Any):
        self.key = key
        self.fd = fd
        self.file = file  # the last one that was opened: changes by others make older ones stale
        self.nr_handles = 0
        self.has_names = False  # several
        self.has_privileges = False  # bits that a write takes away
        self.mtime_ns = 0
        self._writes = itertools.count(1)
        self.written = self.settled = 0  # numbers of the last write, and of the last one that is in the source
        self._lock = threading.Lock()

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.fd)

    @property
    def is_touched(self) -> bool:
        """Whether size and time of change are ours, not the source's."""
        return self.written != self.settled

    @property
    def is_gone(self) -> bool:
        """Whether no name leads to the file any more."""
        return os.fstat(self.fd).st_nlink == 0

    def note_mode(self, mode: int) -> None:
        """Note the mode that the file has now."""
        self.has_privileges = bool(mode & stat.S_ISUID or (mode & stat.S_ISGID and mode & stat.S_IXGRP))

    def drop_privileges(self) -> None:
        """Take the bits away that a write of somebody else than root must not leave."""
        mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
        os.chmod(self.fd, mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0))
        self.has_privileges = False

    def touch(self) -> None:
        """Note that the file has just been changed through the cache."""
        self.mtime_ns = time.time_ns()
        self.written = next(self._writes)

    def settle(self, written: int) -> None:
        """Give the source our time of change, after the writes up to a number have been written back."""
        with self._lock:
            if self.settled == self.written:
                return
            self.set_times(None, self.mtime_ns)
            self.settled = written

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times of the source (ns; None: as it is), which is no news to the cache."""
        now = os.fstat(self.fd)
        times = (now.st_atime_ns if atime_ns is None else atime_ns, now.st_mtime_ns if mtime_ns is None else mtime_ns)
        with writeback.own_write(self.file.inode.mapping):
            os.utime(self.fd, ns=times)


class Handle:
    """One open file of a program."""

    __slots__ = ("file", "is_append", "may_write", "node")

    def __init__(self, file: Any, node: Node, may_write: bool, is_append: bool):
        self.file = file
        self.node = node
        self.may_write = may_write
        self.is_append = is_append


class Files:
    """The open files of one mount.

    cache: whose pages they use. direct: past the kernel's page cache. changed: told of a file, by device and inode number,
    that has several names and has been written. options: `recheck` and `on_change` of
    `PageCache.open`.
    """

    def __init__(
        self, cache: Any, *, direct: bool = False, changed: Callable[[tuple[int, int]], None] | None = None, **options: Any
    ):
        self.cache = cache
        self._changed = changed
        self.writer: Callable[[], int] = os.geteuid  # returns the user whose request is served
        self.direct = direct
        self.options = options
        self._handles: dict[int, Handle] = {}
        self._nodes: dict[tuple[int, int], Node] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    # -- life ----------------------------------------------------------------------------------------------------------

    def make_store(self, path: str, mode: str, fd: int) -> Any:
        """Return the store of an open descriptor, which it then owns."""
        return DescriptorStore(path, mode, fd, self.direct)

    def open(self, path: str, fd: int, flags: int) -> int:
        """Open a descriptor of the source through the cache; it is closed if that fails.

        flags: of open(2). Returns the number of the handle. Raises OSError.
        """
        may_write = bool(flags & WRITE_FLAGS)
        is_append = bool(may_write and flags & os.O_APPEND)
        mode = ("a+b" if is_append else "r+b") if may_write else "rb"
        own_fd = os.dup(fd)
        try:
            status = os.fstat(own_fd)
            file = self.cache.open(self.make_store(path, mode, fd), mode, durability=_durability(flags), **self.options)
        except BaseException:
            os.close(own_fd)
            raise
        key = (status.st_dev, status.st_ino)
        with self._lock:
            node = self._nodes.get(key)
            if node is None:
                node = self._nodes[key] = Node(key, own_fd, file)
                own_fd = -1
            node.file = file
            node.has_names = node.has_names or status.st_nlink > 1
            node.note_mode(status.st_mode)
            node.nr_handles += 1
            number = next(self._numbers)
            self._handles[number] = Handle(file, node, may_write, is_append)
        if own_fd >= 0:
            os.close(own_fd)
        if may_write and flags & os.O_TRUNC and file.size:
            try:
                self.truncate(number, 0)
            except BaseException:
                self.release(number)
                raise
        return number

    def release(self, number: int) -> Node | None:
        """Give a handle up. What could not be written has been told by `flush`, and is tried again in the background.

        Returns the node, if this was its last handle.
        """
        handle = self._handles.pop(number)
        node, file = handle.node, handle.file
        is_last = node.nr_handles == 1 and node.is_gone
        if is_last:
            file.inode.discard()  # nobody can ever read it again
        written = node.written
        with contextlib.suppress(OSError):
            file.close()
            if handle.may_write and not is_last:
                node.settle(written)
        with self._lock:
            node.nr_handles -= 1
            if node.nr_handles:
                return None
            del self._nodes[node.key]
        if node.is_gone:
            self.discard(node.key)
        return node

    def discard(self, key: tuple[int, int]) -> None:
        """Drop the pages of a file that is no more: its inode number may come back."""
        if key not in self._nodes:
            self.cache.discard(f"file:{key[0]:x}:{key[1]:x}")

    # -- looking -------------------------------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """Return the node of a handle."""
        return self._handles[number].node

    def find(self, status: os.stat_result) -> Node | None:
        """Return the node of a file of the source, if it is open."""
        return self._nodes.get((status.st_dev, status.st_ino))

    def nodes(self) -> list[Node]:
        """Return the files that are open."""
        with self._lock:
            return list(self._nodes.values())

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, number: int, target: Any, offset: int) -> int:
        """Fill a buffer from an offset; returns the bytes, fewer only at the end of the file."""
        return self._handles[number].file.preadinto(target, offset)

    def write(self, number: int, data: Any, offset: int, is_writeback: bool = False) -> None:
        """Write all of a buffer at an offset, or at the end through a handle that appends.

        is_writeback: the kernel writes its own page of a map through whatever handle there is.
        """
        handle = self._handles[number]
        if handle.node.has_privileges and self.writer() != 0:  # the kernel does not, with direct_io
            handle.node.drop_privileges()
        try:
            if handle.is_append and not is_writeback:
                handle.file.write(data)
            else:
                handle.file.pwrite(data, offset)
        finally:
            self._touch(handle.node)

    def _touch(self, node: Node) -> None:
        node.touch()
        if node.has_names and self._changed is not None:
            self._changed(node.key)

    def truncate(self, number: int, size: int) -> None:
        """Set the size (bytes)."""
        handle = self._handles[number]
        try:
            handle.file.truncate(size)
        finally:
            self._touch(handle.node)

    def allocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does. Raises OSError (EOPNOTSUPP for modes that are not known)."""
        handle = self._handles[number]
        try:
            fallocation.fallocate(handle.file, mode, offset, length)
        finally:
            self._touch(handle.node)

    def lseek(self, number: int, offset: int, whence: int) -> int:
        """Find data or a hole (SEEK_DATA, SEEK_HOLE), as the source has them once all is written back."""
        node = self._handles[number].node
        error = node.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=False)
        if error is not None:
            raise error
        fd = os.open(f"/proc/self/fd/{node.fd}", os.O_RDONLY | os.O_CLOEXEC)  # a position of its own
        try:
            return os.lseek(fd, offset, whence)
        finally:
            os.close(fd)

    # -- write-back ----------------------------------------------------------------------------------------------------

    def flush(self, number: int) -> None:
        """Bring what was written to the source, as close(2) of any descriptor of the handle asks for.

        Raises OSError, once for each failure and handle.
        """
        handle = self._handles[number]
        if handle.may_write and not handle.node.is_gone:
            written = handle.node.written
            handle.file.flush()
            handle.node.settle(written)

    def fsync(self, number: int, datasync: bool) -> None:
        """Make durable what was written. Raises OSError as `flush`."""
        handle = self._handles[number]
        written = handle.node.written
        if not handle.may_write:
            _raise(handle.node.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=True, datasync=datasync))
        elif datasync:
            handle.file.fdatasync()
        else:
            handle.file.flush()
            handle.node.settle(written)  # before the sync, which makes the time durable too
            handle.file.fsync()

    def settle(self, node: Node) -> None:
        """Write back what a node has, so that the source's attributes are its own. Raises OSError."""
        if node.is_touched:
            written = node.written
            _raise(node.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=False))
            node.settle(written)


def _raise(error: OSError | None) -> None:
    if error is not None:
        raise copy.copy(error)


def _durability(flags: int) -> str:
    if flags & os.O_SYNC == os.O_SYNC:
        return "sync"
    return "dsync" if flags & os.O_DSYNC else "write-back"


def errno_error(number: int, path: str) -> OSError:
    """Return the OSError of an errno."""
    return OSError(number, os.strerror(number), path)


NOT_SUPPORTED = errno.EOPNOTSUPP
