"""The open objects of a mounted fsspec file system.

Objects are read through the cache, each version as any other open of it.  Most stores can only put an object as a whole,
so one that is changed is changed in a local file first, the *spool*, through the cache too, and put when a program closes
it or calls fsync.  Until then the object is the old one for all others, and it stays the old one if the mount is
killed; when close or fsync has returned 0 the object is the new one.  Within the mount the object is what the spool holds,
by whatever name: it can be renamed and removed before it was ever put.

A put replaces the version from which the spool was made, and no other (`object_puts`).  A put that failed is tried again at
the next fsync or close, and when the mount ends; until then the object stays here (it is *kept*), though it is not open.
"""

import contextlib
import errno
import itertools
import os
import tempfile
import time
from typing import Any, cast

from pagecache._core import Mutex
from pagecache.adapters.fuse import beneath, fallocation, object_puts
from pagecache.adapters.fuse.credentials import Caller
from pagecache.adapters.fuse.files import PLAIN_FILES, WRITE_FLAGS
from pagecache.adapters.fuse.handles import make_handles
from pagecache.adapters.fuse.object_puts import Put
from pagecache.adapters.fuse.stores import DescriptorStore
from pagecache.buffers import Buffer
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.files.versioned import VersionedFile
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.fsspec_instances import Instance
from pagecache.stores.validators import Version

COPY_BYTES = 8 * 1024 * 1024
FETCHES_MAX = 8  # of an object that is replaced again and again while it is fetched
_numbers = itertools.count(1)


class Spool(DescriptorStore):
    """The local file in which an object is changed; it has no name, so nothing is left of it."""

    def __init__(self, name: str):
        directory = tempfile.gettempdir()
        try:
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # not every file system has files without names
            fd, path = tempfile.mkstemp(prefix="pagecache-", dir=directory)
            os.unlink(path)
        super().__init__(name, "r+b", fd, direct=False)
        self.key = f"spool:{os.getpid()}:{next(_numbers)}"


class OpenObject:
    """One object that is open, or has bytes that the store does not have.

    remote: its name in the store. base: the version that its spool was made of, None for none.
    """

    def __init__(self, remote: str):
        self.remote = remote
        self.nr_handles = 0
        self.spool: File | None = None  # once the object is being changed
        self.base: Version | None = None
        self.is_gone = False
        self.mtime_ns = time.time_ns()
        self.written = self.put = 0  # numbers of the last change, and of the last one that the object has
        self.lock = Mutex()

    @property
    def size(self) -> int | None:
        """The size as far as it is known here (bytes)."""
        return None if self.spool is None else self.spool.size

    @property
    def is_put(self) -> bool:
        """Whether the store has all that was changed, or need not have it."""
        return self.is_gone or self.written == self.put

    @property
    def is_only_here(self) -> bool:
        """Whether the store has no object of this name."""
        return self.spool is not None and self.base is None

    @property
    def changed(self) -> File:
        """The spool of an object that is being changed."""
        assert self.spool is not None
        return self.spool

    def touch(self) -> None:
        """Note a change."""
        self.mtime_ns = time.time_ns()
        self.written = next(_numbers)


class ObjectHandle:
    """One open object of a program. file: on the version there was, used until the object is changed."""

    __slots__ = ("file", "flags", "opened")

    def __init__(self, opened: OpenObject, file: File | VersionedFile | None, flags: int):
        self.opened = opened
        self.file = file
        self.flags = flags

    @property
    def may_write(self) -> bool:
        """Whether the program may change the object."""
        return bool(self.flags & (WRITE_FLAGS | os.O_TRUNC))

    @property
    def current(self) -> File | VersionedFile:
        """The file that has the object's bytes now."""
        file = self.opened.spool if self.opened.spool is not None else self.file
        assert file is not None
        return file


class ObjectFiles:
    """The open objects of one mount. cache, options: as for `Files`. instance: of the file system that has the objects."""

    def __init__(self, cache: PageCache, instance: Instance, **options: Any):
        self.cache = cache
        self.instance = instance
        self.options = options
        self.handles = make_handles()
        self._opened: dict[str, OpenObject] = {}
        self._handles: dict[int, ObjectHandle] = {}
        self._lock = Mutex()

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self, remote: str, flags: int, *, is_new: bool = False) -> int:
        """Open an object; returns the number of the handle. is_new: there is none yet. Raises OSError."""
        with self._lock.held():
            opened = self._opened.get(remote)
            if opened is None:
                opened = self._opened[remote] = OpenObject(remote)
            opened.nr_handles += 1
        file = None
        try:
            if flags & (WRITE_FLAGS | os.O_TRUNC) or is_new:
                self._make_spool(opened, is_empty=is_new or bool(flags & os.O_TRUNC), is_new=is_new)
            elif opened.spool is None:
                file = self._open_version(remote)
        except BaseException:
            self._give_up(opened)
            raise
        number = self.handles.new()
        with opened.lock.held():
            self._handles[number] = ObjectHandle(opened, file, flags)
            if opened.spool is None and isinstance(file, PLAIN_FILES):
                self.handles.serve(number, file)
        return number

    def _stop_serving(self, opened: OpenObject) -> None:
        """Have reads of an object come here from now on: its bytes are about to be another file's. Context: opened.lock
        held."""
        for number, handle in list(self._handles.items()):
            if handle.opened is opened:
                self.handles.stop(number)

    def _open_version(self, remote: str, **options: Any) -> File | VersionedFile:
        options = {**self.options, **options}
        store = FsspecStore(self.instance, remote, recheck=options.get("recheck", "open"))
        file: File | VersionedFile = self.cache.open(store, "rb", **options)
        return file

    def _make_spool(self, opened: OpenObject, *, is_empty: bool, is_new: bool = False) -> None:
        """Let an object be changed. Its bytes are fetched, unless they are not wanted: then what is there now is
        replaced."""
        with opened.lock.held():
            if is_empty:
                base = None if is_new else object_puts.present_version(self.instance, opened.remote)
                if opened.spool is None:
                    spool_file = self.cache.open(Spool(opened.remote), "r+b", recheck="open")
                    self._stop_serving(opened)
                    opened.spool = spool_file
                else:
                    opened.spool.truncate(0)
                opened.base = base
                opened.touch()
            elif opened.spool is None:
                spool = Spool(opened.remote)
                try:
                    opened.base = self._fetch(opened.remote, spool.fd)
                except BaseException:
                    spool.close()
                    raise
                spool_file = self.cache.open(spool, "r+b", recheck="open")
                self._stop_serving(opened)
                opened.spool = spool_file

    def _fetch(self, remote: str, fd: int) -> Version:
        """Copy an object into a file, all of one version. Returns that."""
        for attempt in itertools.count(1):
            os.ftruncate(fd, 0)
            with self._open_version(remote, on_change="error") as file:
                base: Version = cast(FsspecStore, file.inode.store).version
                try:
                    offset = 0
                    while data := file.pread(COPY_BYTES, offset):
                        offset += os.pwrite(fd, data, offset)
                    return base
                except OSError as error:
                    if error.errno != errno.ESTALE or attempt == FETCHES_MAX:
                        raise
        raise AssertionError

    def release(self, number: int) -> None:
        """Give a handle up. An object that could not be put is kept, and tried again when the mount ends."""
        handle = self._handles.pop(number)
        self.handles.give_up(number)
        if handle.file is not None:
            handle.file.close()
        self._give_up(handle.opened)

    def _give_up(self, opened: OpenObject) -> None:
        """Count one handle less; with the last one the object is put, and forgotten if it could be."""
        with self._lock.held():
            opened.nr_handles -= 1
            if opened.nr_handles:
                return
        if not opened.is_put:
            with contextlib.suppress(OSError):
                self.put(opened)
        with self._lock.held():
            if opened.nr_handles or not opened.is_put:
                return
            if self._opened.get(opened.remote) is opened:
                del self._opened[opened.remote]
            spool, opened.spool = opened.spool, None
        if spool is not None:
            spool.inode.discard()  # the store has it all
            spool.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    def opened(self, number: int) -> OpenObject:
        """Return the object of a handle. Raises OSError (EBADF) if there is none."""
        try:
            return self._handles[number].opened
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def find(self, remote: str) -> OpenObject | None:
        """Return an object by its name, if it is open or kept."""
        return self._opened.get(remote)

    def all(self) -> list[OpenObject]:
        """Return the objects that are open or kept."""
        with self._lock.held():
            return list(self._opened.values())

    def validator(self, number: int) -> str | None:
        """Return the validator of the version that a handle reads; None for an object that is being changed."""
        handle = self._handles[number]
        validator = handle.current.mapping.validator if handle.opened.spool is None else None
        return None if validator is None else str(validator)

    # -- names ---------------------------------------------------------------------------------------------------------

    def preserve(self, remote: str) -> OpenObject | None:
        """Have an object that is about to lose its name keep its bytes for those that have it open. Returns it."""
        opened = self.find(remote)
        if opened is not None and opened.nr_handles:
            self._make_spool(opened, is_empty=False)
        return opened

    def removed(self, opened: OpenObject) -> None:
        """Note that an object has no name any more."""
        with self._lock.held():
            opened.is_gone = True
            if self._opened.get(opened.remote) is opened:
                del self._opened[opened.remote]
            opened.nr_handles += 1
        self._give_up(opened)

    def renamed(self, opened: OpenObject, remote: str, base: Version | None) -> None:
        """Note that an object has another name now, where the store has a version, or none."""
        with opened.lock.held():
            with self._lock.held():
                if self._opened.get(opened.remote) is opened:
                    del self._opened[opened.remote]
                opened.remote = remote
                self._opened[remote] = opened
            if opened.spool is not None:
                opened.base = base
                return
            self._stop_serving(opened)
            for handle in list(self._handles.values()):
                if handle.opened is opened and handle.file is not None:
                    old, handle.file = handle.file, self._open_version(remote)
                    old.close()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, number: int, target: Buffer, offset: int) -> int:
        """Fill a buffer from an offset; returns the bytes."""
        handle = self._handles[number]
        while True:
            file = handle.current
            try:
                got: int = file.preadinto(target, offset)
                return got
            except ValueError:  # closed, because the object has another name or a spool since
                if file is handle.current:
                    raise

    def write(
        self, number: int, data: Buffer, offset: int, *, appends: bool = False, unprivileged: Caller | None = None
    ) -> None:
        """Write all of a buffer at an offset, or at the end."""
        opened = self.opened(number)
        with opened.lock.held():
            try:
                opened.changed.pwrite(data, opened.changed.size if appends else offset)
            finally:
                opened.touch()

    def truncate(self, number: int, size: int) -> None:
        """Set the size (bytes)."""
        opened = self.opened(number)
        with opened.lock.held():
            opened.changed.truncate(size)
            opened.touch()

    def allocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does. Raises OSError (EOPNOTSUPP for modes that are not known)."""
        opened = self.opened(number)
        with opened.lock.held():
            fallocation.fallocate(opened.changed, mode, offset, length)
            opened.touch()

    def lseek(self, number: int, offset: int, whence: int) -> int:
        """Find data or a hole: objects have none but their end."""
        size = self._handles[number].current.size
        if offset >= size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return offset if whence == os.SEEK_DATA else size

    # -- putting -------------------------------------------------------------------------------------------------------

    def flush(self, number: int) -> None:
        """Put the object, if it was changed. Raises OSError."""
        handle = self._handles[number]
        if handle.may_write:
            self.put(handle.opened)

    def fsync(self, number: int, datasync: bool) -> None:
        """Put the object, if it was changed, through whatever handle. Raises OSError."""
        self.put(self.opened(number))

    def put(self, opened: OpenObject) -> None:
        """Replace the object as a whole by what was made of it. Raises OSError: it is the old one still."""
        with opened.lock.held():
            if opened.is_put:
                return
            written = opened.written
            opened.changed.flush()
            path = os.fsdecode(beneath.of_descriptor(cast(Spool, opened.changed.inode.store).fd))
            opened.base = object_puts.put(Put(self.instance, opened.remote, path, opened.base))
            opened.put = written
