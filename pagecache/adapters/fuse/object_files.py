"""The open objects of a mounted fsspec file system.

Objects are read through the cache, each version as any other open of it.  Most stores can only put an object as a whole,
so one that is changed is changed in a local file first, the *spool*, through the cache too, and put when a program closes
it or calls fsync.  Until then the object is the old one for everybody else, and it stays the old one if the mount is
killed; when close or fsync has returned 0 the object is the new one.  A put that failed is tried again at the next fsync or
close, and when the mount ends.
"""

import contextlib
import errno
import itertools
import os
import tempfile
import threading
import time
from typing import Any

from pagecache.adapters.fuse.files import WRITE_FLAGS, DescriptorStore
from pagecache.stores.errors import meant_error
from pagecache.stores.fsspec import FsspecStore

COPY_BYTES = 8 * 1024 * 1024
_numbers = itertools.count(1)


class Spool(DescriptorStore):
    """The local file in which an object is changed; it goes with its name when it is closed."""

    def __init__(self, name: str):
        fd, path = tempfile.mkstemp(prefix="pagecache-", suffix=os.path.splitext(name)[1])
        super().__init__(path, "r+b", fd, direct=False)
        self.key = f"spool:{os.getpid()}:{next(_numbers)}"
        self.name = name

    def close(self) -> None:
        """Close the file and remove it."""
        super().close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class ObjectNode:
    """One open object of a mount, by its name."""

    def __init__(self, remote: str):
        self.remote = remote
        self.nr_handles = 0
        self.spool: Any = None  # a File, once the object is being changed
        self.is_gone = False
        self.mtime_ns = time.time_ns()
        self.written = self.put = 0  # numbers of the last change, and of the last one that the object has
        self.lock = threading.RLock()

    @property
    def size(self) -> int | None:
        """The size as far as it is known here (bytes)."""
        return None if self.spool is None else self.spool.size

    def touch(self) -> None:
        """Note a change."""
        self.mtime_ns = time.time_ns()
        self.written = next(_numbers)


class ObjectHandle:
    """One open object of a program. file: on the version there was, used until the object is changed."""

    __slots__ = ("file", "flags", "node")

    def __init__(self, node: ObjectNode, file: Any, flags: int):
        self.node = node
        self.file = file
        self.flags = flags

    @property
    def may_write(self) -> bool:
        """Whether the program may change the object."""
        return bool(self.flags & WRITE_FLAGS)


class ObjectFiles:
    """The open objects of one mount. cache, options: as for `Files`. fs: where the objects are."""

    def __init__(self, cache: Any, fs: Any, **options: Any):
        self.cache = cache
        self.fs = fs
        self.options = options
        self.writer: Any = None  # objects have no modes
        self._nodes: dict[str, ObjectNode] = {}
        self._handles: dict[int, ObjectHandle] = {}
        self._lock = threading.Lock()

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self, remote: str, flags: int, *, is_new: bool = False) -> int:
        """Open an object; returns the number of the handle. is_new: it need not exist. Raises OSError."""
        with self._lock:
            node = self._nodes.get(remote)
            if node is None:
                node = self._nodes[remote] = ObjectNode(remote)
            node.nr_handles += 1
        file = None
        try:
            if flags & WRITE_FLAGS:
                self._make_spool(node, is_empty=is_new or bool(flags & os.O_TRUNC))
            elif node.spool is None:
                file = self._open_version(remote)
        except BaseException:
            self._drop(node)
            raise
        number = next(_numbers)
        self._handles[number] = ObjectHandle(node, file, flags)
        return number

    def _open_version(self, remote: str) -> Any:
        recheck = self.options.get("recheck", "open")
        return self.cache.open(FsspecStore(self.fs, remote, recheck=recheck), "rb", **self.options)

    def _make_spool(self, node: ObjectNode, *, is_empty: bool) -> None:
        """Let an object be changed. Its bytes are fetched, unless they are not wanted."""
        with node.lock:
            if node.spool is not None:
                if is_empty:
                    node.spool.truncate(0)
                    node.touch()
                return
            spool = Spool(node.remote)
            try:
                if not is_empty:
                    self._fetch(node.remote, spool.fd)
            except BaseException:
                spool.close()
                raise
            node.spool = self.cache.open(spool, "r+b")
            if is_empty:
                node.touch()

    def _fetch(self, remote: str, fd: int) -> None:
        with self._open_version(remote) as file:
            offset = 0
            while data := file.pread(COPY_BYTES, offset):
                offset += os.pwrite(fd, data, offset)

    def _drop(self, node: ObjectNode) -> None:
        with self._lock:
            node.nr_handles -= 1
            if node.nr_handles:
                return
            if self._nodes.get(node.remote) is node:
                del self._nodes[node.remote]
        if node.spool is not None:
            if node.is_gone:
                node.spool.inode.discard()
            node.spool.close()

    def release(self, number: int) -> None:
        """Give a handle up. An object that could not be put is kept, and tried again when the mount ends."""
        handle = self._handles.pop(number)
        if handle.file is not None:
            handle.file.close()
        node = handle.node
        with self._lock:
            if node.nr_handles > 1:
                node.nr_handles -= 1
                return
        if not node.is_gone and node.written != node.put:
            try:
                self.put(node)
            except OSError:
                return  # stays a node, with one handle too many
        self._drop(node)

    # -- looking -------------------------------------------------------------------------------------------------------

    def node(self, number: int) -> ObjectNode:
        """Return the node of a handle."""
        return self._handles[number].node

    def find(self, remote: str) -> ObjectNode | None:
        """Return the node of an object, if it is open."""
        return self._nodes.get(remote)

    def nodes(self) -> list[ObjectNode]:
        """Return the objects that are open."""
        with self._lock:
            return list(self._nodes.values())

    def renamed(self, old: str, new: str) -> None:
        """Note that an object has another name now."""
        with self._lock:
            replaced = self._nodes.pop(new, None)
            if replaced is not None:
                replaced.is_gone = True
            node = self._nodes.pop(old, None)
            if node is not None:
                node.remote = new
                self._nodes[new] = node

    def remove(self, remote: str) -> ObjectNode | None:
        """Keep an open object that is about to be removed for those who have it open. Returns its node."""
        node = self.find(remote)
        if node is None:
            return None
        self._make_spool(node, is_empty=False)
        node.is_gone = True
        with self._lock:
            self._nodes.pop(remote, None)
        return node

    def validator(self, number: int) -> str | None:
        """Return the validator of the version that a handle reads; None for an object that is being changed."""
        handle = self._handles[number]
        return None if handle.node.spool is not None else handle.file.mapping.validator

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _file(self, handle: ObjectHandle) -> Any:
        return handle.node.spool if handle.node.spool is not None else handle.file

    def read(self, number: int, target: Any, offset: int) -> int:
        """Fill a buffer from an offset; returns the bytes."""
        return self._file(self._handles[number]).preadinto(target, offset)

    def write(self, number: int, data: Any, offset: int, is_writeback: bool = False) -> None:
        """Write all of a buffer, at the end through a handle that appends."""
        handle = self._handles[number]
        node = handle.node
        with node.lock:
            try:
                if handle.flags & os.O_APPEND and not is_writeback:
                    offset = node.spool.size
                node.spool.pwrite(data, offset)
            finally:
                node.touch()

    def truncate(self, number: int, size: int) -> None:
        """Set the size (bytes)."""
        node = self._handles[number].node
        with node.lock:
            node.spool.truncate(size)
            node.touch()

    def lseek(self, number: int, offset: int, whence: int) -> int:
        """Find data or a hole: objects have none but their end."""
        size = self._file(self._handles[number]).size
        if offset >= size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return offset if whence == os.SEEK_DATA else size

    # -- putting -------------------------------------------------------------------------------------------------------

    def flush(self, number: int) -> None:
        """Put the object, if it was changed. Raises OSError."""
        handle = self._handles[number]
        if handle.may_write and not handle.node.is_gone:
            self.put(handle.node)

    def put(self, node: ObjectNode) -> None:
        """Replace the object as a whole by what was made of it. Raises OSError: it is the old one still."""
        with node.lock:
            if node.written == node.put:
                return
            written = node.written
            node.spool.flush()
            try:
                self.fs.put_file(node.spool.inode.store.path, node.remote)
            except Exception as error:
                meant = meant_error(error, node.remote)
                if meant is None and not (isinstance(error, OSError) and error.errno):
                    meant = OSError(errno.EIO, f"the object could not be put: {error}", node.remote)
                raise meant or error from error
            node.put = written
