"""The open files of a mounted directory.

An `OpenFile` stands for one open file of the source, by device and inode number, so that hard links are one, and lives as
long as a handle is open on it.  As long as something was written that may not be in the source yet, its size and time of
change are ours: the source's own would be those of the last write-back.  When all is written back (`settle`), the source is
given that time, so a file's time of change does not move after the program has closed it.

READ, WRITE and GETATTR of an open file need its handle alone: `Files.read`, `Files.write` and `Files.status`.  Most of them
never come here, as the engine answers them (`handles`); what both have to know is in `FuseStatus`.
"""

import contextlib
import copy
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pagecache import writeback
from pagecache._core import FuseStatus, Mutex
from pagecache.adapters.fuse import beneath, fallocation
from pagecache.adapters.fuse.credentials import Caller, is_member
from pagecache.adapters.fuse.handles import make_handles
from pagecache.adapters.fuse.nodes import Key
from pagecache.adapters.fuse.stores import AppendStore, DescriptorStore
from pagecache.buffers import Buffer
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.files.modes import Durability, Mode
from pagecache.files.recorded import RecordedFile

PLAIN_FILES = (File, RecordedFile)  # that do not ask the store before they read cached bytes
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
SECTOR, PAGE_SECTORS = 512, 8


class Status(NamedTuple):
    """What a file's attributes are, where those of the source may be older: size (bytes), blocks of 512 bytes, times
    (ns)."""

    source: os.stat_result
    size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int


def status_of(source: os.stat_result) -> Status:
    """Return the attributes of a file that was not written to."""
    return Status(source, source.st_size, source.st_blocks, source.st_mtime_ns, source.st_ctime_ns)


class OpenFile:
    """One open file of the source. fd: a descriptor of its own, which only tells and sets attributes. It is open as long as
    this object lives: a request that has found the file by its name may use it while the last handle is given up."""

    def __init__(self, key: Key, fd: int, file: File):
        self.key = key
        self.fd = fd
        self.file = file
        self.nr_handles = 0
        self.number = 0  # by which its attributes are served
        self.state = FuseStatus(fd)

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        _close(self.fd)

    def follow(self, file: File) -> None:
        """Take a file for the present one: changes by others make older ones stale."""
        self.file = file
        self.state.follow(file.inode.mapping if type(file) in PLAIN_FILES else None)

    @property
    def written(self) -> int:
        """Number of the last write."""
        return self.state.written

    @property
    def is_touched(self) -> bool:
        """Whether size and time of change are ours, not the source's."""
        return self.state.written != self.state.settled

    @property
    def is_gone(self) -> bool:
        """Whether no name leads to the file any more."""
        return os.fstat(self.fd).st_nlink == 0

    def status(self) -> Status:
        """Return the attributes as all users of the mount see them."""
        with self.state.lock.held():
            source = os.fstat(self.fd)
            written = self.state.written
            if written == self.state.settled:
                return status_of(source)
            self.state.shown = written
            size, mtime_ns, blocks = self.file.size, self.state.mtime_ns, source.st_blocks
        wanted = -(-size // SECTOR)
        if blocks < wanted:  # holes, or what is not written back yet
            nr_dirty = self.file.inode.mapping.cachestat(0, writeback.LAST_PAGE)[1]
            blocks = min(wanted, blocks + nr_dirty * PAGE_SECTORS)
        return Status(source, size, blocks, mtime_ns, max(mtime_ns, source.st_ctime_ns))

    def note_mode(self, mode: int) -> None:
        """Note the mode that the file has now."""
        self.state.has_privileges = bool(mode & (stat.S_ISUID | stat.S_ISGID))

    def drop_privileges(self, caller: Caller) -> None:
        """Take the bits away that a change by a program without the right to them must not leave: set-user-id, and
        set-group-id where it is more than a mark of mandatory locks, or of another group."""
        if not self.state.has_privileges:
            return
        status = os.fstat(self.fd)
        mode = kept = stat.S_IMODE(status.st_mode) & ~stat.S_ISUID
        if mode & stat.S_IXGRP or not is_member(caller, status.st_gid):
            kept = mode & ~stat.S_ISGID
        if kept != stat.S_IMODE(status.st_mode):
            with self.own_change():
                os.chmod(self.fd, kept)
        self.state.has_privileges = bool(kept & stat.S_ISGID)

    def touch(self) -> None:
        """Note that the file has just been changed through the cache."""
        self.state.touch()

    def settle(self, written: int) -> bool:
        """Give the source our time of change, after the writes up to a number have been written back. Returns whether there
        was something to give.

        If it was not asked for since, the time is that of the write-back, as for a file that is written without a cache:
        one that is set is followed by a later ctime. So it is where the file is another user's, who only lets others write
        to it.
        """
        state = self.state
        with state.lock.held():
            if state.settled == state.written:
                return False
            if state.shown == state.written:
                with contextlib.suppress(PermissionError):
                    self.set_times(None, state.mtime_ns)
            state.settled = written
            return True

    def own_change(self) -> contextlib.AbstractContextManager[None]:
        """Within the block a change of the source's attributes or names is the mount's own, and no news to the cache."""
        return writeback.own_attributes(self.file.inode.mapping)

    def set_times(self, atime_ns: int | None, mtime_ns: int | None, now: tuple[bool, bool] = (False, False)) -> None:
        """Set times of the source as `beneath.set_times`, which is no news to the cache."""
        with self.own_change():
            beneath.set_times(self.fd, atime_ns, mtime_ns, now)


class Handle:
    """One open file of a program. may_write: whether it changes the file, if only by emptying it."""

    __slots__ = ("file", "may_write", "opened")

    def __init__(self, file: File, opened: OpenFile, may_write: bool):
        self.file = file
        self.opened = opened
        self.may_write = may_write


class Files:
    """The open files of one mount.

    cache: whose pages they use. place: the source, for messages. direct: past the kernel's page cache. changed: called for
    a file, by device and inode number, whose attributes have changed without a request that says so. options: `recheck` and
    `on_change` of `PageCache.open`.
    """

    def __init__(
        self,
        cache: PageCache,
        *,
        place: str = "",
        direct: bool = False,
        changed: Callable[[Key], None] | None = None,
        **options: Any,
    ):
        self.cache = cache
        self.place = place
        self.direct = direct
        self.options = options
        self._changed = changed
        self.handles = make_handles()
        self._handles: dict[int, Handle] = {}
        self._opened: dict[Key, OpenFile] = {}
        self._lock = Mutex()

    # -- life ----------------------------------------------------------------------------------------------------------

    def make_store(self, name: str, mode: str, fd: int, *, appends_only: bool = False) -> DescriptorStore:
        """Return the store of an open descriptor, which it then owns."""
        return (AppendStore if appends_only else DescriptorStore)(os.path.join(self.place, name), mode, fd, self.direct)

    def open(self, name: str, fd: int, flags: int, *, appends_only: bool = False) -> int:
        """Open a descriptor of the source through the cache; it is closed if that fails.

        name: for messages. flags: of open(2), of which O_TRUNC empties the file whatever else it is opened for; then, and
        for writing, the descriptor can read and write. appends_only: that is all that the source allows.
        Returns the number of the handle. Raises OSError.
        """
        empties = bool(flags & os.O_TRUNC)
        may_write = bool(flags & WRITE_FLAGS) or empties
        own_fd = os.dup(fd)
        try:
            mode: Mode = "a+b" if may_write else "rb"  # at an offset it writes there, at its position at the end
            store = self.make_store(name, mode, fd, appends_only=appends_only)
            durability = _durability(flags | (os.O_DSYNC if appends_only else 0))
            file = self.cache.open(store, mode, durability=durability, **self.options)
            number = self._add(file, own_fd, may_write)
        except BaseException:
            os.close(own_fd)
            raise
        if empties:
            try:
                self.truncate(number, 0)
            except BaseException:
                self.release(number)
                raise
        return number

    def _add(self, file: File, own_fd: int, may_write: bool) -> int:
        """Return the number of a new handle on a file. own_fd: a descriptor, which is closed or kept."""
        try:
            status = os.fstat(own_fd)
        except BaseException:
            file.close()
            raise
        key = (status.st_dev, status.st_ino)
        with self._lock.held():
            opened = self._opened.get(key)
            if opened is None:
                opened = self._opened[key] = OpenFile(key, own_fd, file)
                opened.number = self.handles.new()
                self.handles.serve(opened.number, None, opened.state)
                own_fd = -1
            opened.follow(file)
            opened.note_mode(status.st_mode)
            opened.nr_handles += 1
            number = self.handles.new()
            self._handles[number] = Handle(file, opened, may_write)
        if own_fd >= 0:
            os.close(own_fd)
        if type(file) in PLAIN_FILES:
            self.handles.serve(number, file, opened.state)
        return number

    def note_node(self, number: int, node: int, shown_ino: int) -> None:
        """Note by which number the kernel knows the file of a handle, and the inode number that is shown of it."""
        opened = self.opened(number)
        opened.state.note_node(node, shown_ino)
        self.handles.serve_node(node, opened.number)

    def release(self, number: int) -> None:
        """Give a handle up. What could not be written has been reported by `flush`, and is tried again in the
        background."""
        handle = self._handles.pop(number)
        self.handles.give_up(number)
        opened, file = handle.opened, handle.file
        is_last = opened.nr_handles == 1 and opened.is_gone
        if is_last:
            file.inode.discard()  # it can never be read again
        written = opened.written
        with contextlib.suppress(OSError):
            file.close()
            if handle.may_write and not is_last:
                self._settle(opened, written)
        with self._lock.held():
            opened.nr_handles -= 1
            if opened.nr_handles:
                return
            del self._opened[opened.key]
        self.handles.give_up(opened.number)
        if opened.is_gone:
            self.discard(opened.key)

    def discard(self, key: Key) -> None:
        """Drop the pages of a file that is no more: its inode number may come back."""
        if key not in self._opened:
            self.cache.discard(store_key(key))

    @contextlib.contextmanager
    def own_change(self, key: Key, fd: int) -> Iterator[None]:
        """Within the block the mount changes attributes or names of a file, open or not, which is no news to the cache.

        fd: any descriptor of the file.
        """
        opened, inode = self._opened.get(key), self.cache.find(store_key(key))
        mapping = inode.mapping if inode is not None else None
        before = _stamp(fd) if mapping is not None else None
        is_same = mapping is not None and mapping.stamp == before
        used = mapping if mapping is not None and mapping.fd >= 0 else None
        if opened is not None:
            used = opened.file.inode.mapping
        try:
            with writeback.own_attributes(used) if used is not None else contextlib.nullcontext():
                yield
        finally:
            if mapping is not None and before is not None and is_same and mapping.fd < 0:  # its store is closed, by now
                after = _stamp(fd)
                if after[-1] == before[-1]:  # what has another size is not as it was
                    mapping.set_stamp(*after)

    # -- looking -------------------------------------------------------------------------------------------------------

    def opened(self, number: int) -> OpenFile:
        """Return the open file of a handle. Raises OSError (EBADF) if there is none."""
        try:
            return self._handles[number].opened
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def find(self, key: Key) -> OpenFile | None:
        """Return a file of the source, by device and inode number, if it is open."""
        return self._opened.get(key)

    def all(self) -> list[OpenFile]:
        """Return the files that are open."""
        with self._lock.held():
            return list(self._opened.values())

    def status(self, number: int) -> Status:
        """Return the attributes of the file of a handle."""
        return self.opened(number).status()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read(self, number: int, target: Buffer, offset: int) -> int:
        """Fill a buffer from an offset; returns the bytes, fewer only at the end of the file."""
        return self._handles[number].file.preadinto(target, offset)

    def write(
        self, number: int, data: Buffer, offset: int, *, appends: bool = False, unprivileged: Caller | None = None
    ) -> None:
        """Write all of a buffer at an offset, or at the end, wherever that is by then.

        unprivileged: the program that writes, if it has no right to leave set-user-id and set-group-id bits behind.
        """
        handle = self._handles[number]
        if unprivileged is not None:
            handle.opened.drop_privileges(unprivileged)
        try:
            if appends:
                handle.file.write(data)
            else:
                handle.file.pwrite(data, offset)
        finally:
            handle.opened.touch()

    def truncate(self, number: int, size: int) -> None:
        """Set the size (bytes)."""
        handle = self._handles[number]
        handle.file.truncate(size)
        handle.opened.touch()

    def allocate(self, number: int, mode: int, offset: int, length: int) -> None:
        """Do what fallocate(2) does. Raises OSError (EOPNOTSUPP for modes that are not known)."""
        handle = self._handles[number]
        try:
            fallocation.fallocate(handle.file, mode, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # some of it may have been done
                handle.opened.touch()
            raise
        handle.opened.touch()

    def lseek(self, number: int, offset: int, whence: int) -> int:
        """Find data or a hole (SEEK_DATA, SEEK_HOLE), as the source has them once all is written back."""
        opened = self.opened(number)
        error = opened.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=False)
        if error is not None:
            raise error
        return os.lseek(opened.fd, offset, whence)  # its position is not used

    # -- write-back ----------------------------------------------------------------------------------------------------

    def flush(self, number: int) -> None:
        """Bring what was written to the source, as close(2) of any descriptor of the handle asks for.

        Raises OSError, once for each failure and handle.
        """
        handle = self._handles[number]
        if handle.may_write and not handle.opened.is_gone:
            written = handle.opened.written
            with self._losing(handle.opened, written):
                handle.file.flush()
            self._settle(handle.opened, written)

    def fsync(self, number: int, datasync: bool) -> None:
        """Make durable what was written. Raises OSError as `flush`."""
        handle = self._handles[number]
        written = handle.opened.written
        with self._losing(handle.opened, written):
            if not handle.may_write:
                _raise(handle.opened.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=True, datasync=datasync))
            elif datasync:
                handle.file.fdatasync()
            else:
                handle.file.flush()
                self._settle(handle.opened, written)  # before the sync, which makes the time durable too
                handle.file.fsync()

    @contextlib.contextmanager
    def _losing(self, opened: OpenFile, written: int) -> Iterator[None]:
        """Within the block writes up to a number are written back. If they never will be, because others have changed the
        file, its size and times are those of the source again."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ESTALE:
                opened.state.settled = written
                if self._changed is not None:
                    self._changed(opened.key)
            raise

    def settle(self, opened: OpenFile) -> None:
        """Write back what a file has, so that the source's attributes are its own. Raises OSError."""
        if opened.is_touched:
            written = opened.written
            _raise(opened.file.inode.sync_pages(0, writeback.LAST_PAGE, durable=False))
            self._settle(opened, written)

    def _settle(self, opened: OpenFile, written: int) -> None:
        if opened.settle(written) and self._changed is not None:
            self._changed(opened.key)


def _raise(error: OSError | None) -> None:
    if error is not None:
        raise copy.copy(error)


def store_key(key: Key) -> str:
    """Return the key that the store of a file has."""
    return f"file:{key[0]:x}:{key[1]:x}"


def _stamp(fd: int) -> tuple[int, int, int]:
    """Return how a file looks: times of the last changes (ns) and size, as the cache remembers it."""
    status = os.fstat(fd)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _durability(flags: int) -> Durability:
    if flags & os.O_SYNC == os.O_SYNC:
        return "sync"
    return "dsync" if flags & os.O_DSYNC else "write-back"
