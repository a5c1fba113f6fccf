"""The cache: one memory budget, the objects that share it, and the files open on them."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, overload

from pagecache import budget
from pagecache._core import Mutex, Segment
from pagecache.files.aio import in_worker
from pagecache.files.file import File
from pagecache.files.inode import Inode, Streams
from pagecache.files.inode_table import IdleObject, InodeTable
from pagecache.files.modes import Durability, Mode, Name, OnChange, Policy, Priority, Recheck, check_choices, checked_mode
from pagecache.files.opening import store_of
from pagecache.files.recorded import RecordedFile, Recorder
from pagecache.files.versioned import VersionedFile, copy_of_store
from pagecache.mm.vma import Closable
from pagecache.stats import server as live
from pagecache.stats.numbers import Stats, read_stats
from pagecache.stats.sources import SourceTotals
from pagecache.stores.base import BackingStore
from pagecache.stores.validators import checked_recheck, max_age_of
from pagecache.units import LAST_PAGE, PAGE_SIZE, format_size
from pagecache.weak_members import WeakMembers
from pagecache.writeback.flusher import Flusher, is_dirty

DIRTY_LIMIT = "20%"  # of the budget
DIRTY_BACKGROUND = "10%"
DIRTY_EXPIRE_S = 30.0  # age at which dirty pages are written back, however few they are
DIRTY_INTERVAL_S = 5.0  # how often that is looked at
_File = TypeVar("_File", bound=File)
CHECK_PATIENCE_S = 10.0  # how long `check` waits for background reads of one object


class PageCache:
    """A page cache with a strict budget.

    size: bytes as an int, "512MiB", or "25%" of what this process may use. The budget is the memory of the cached
    pages; descriptors and index add 1.8 % at most, and take the place of pages where they are more. max_size: what `resize`
    may make of it; addresses, no memory. With it, "25%" follows the limit of the control group and the pressure on
    memory (docs/memory.md). nr_objects: ignored; the budget alone limits objects.
    dirty_limit, dirty_background: how much may be dirty or under write-back (bytes, or a part of the budget), and from
    how much on it is written back in the background; dirty_expire_s: and from what age on. on_write_error: "retry"
    keeps pages that could not be written, and tries again; "drop" reports the error and loses them.
    io: "auto" and "io_uring" read O_DIRECT files through io_uring where the system allows it, else by threads, as
    "threads" always does; `io_backend` says which it is. register_frames: register the frames with io_uring (they are
    then pinned in memory).
    policy: what leaves when the budget is spent: "adaptive" follows whatever suits the workload; "kernel", "s3fifo",
    "sieve", "lirs" are fixed (docs/eviction.md).
    shares: parts of the budget that are kept for tenants, by name: {"search": "25%"} (see `shares.set`, `open`).
    Raises ValueError when the budget is smaller than one page, or io or policy is none of these.
    """

    def __init__(
        self,
        size: int | str,
        *,
        max_size: int | str | None = None,
        nr_objects: int | None = None,
        dirty_limit: int | str = DIRTY_LIMIT,
        dirty_background: int | str = DIRTY_BACKGROUND,
        dirty_expire_s: float = DIRTY_EXPIRE_S,
        on_write_error: Literal["retry", "drop"] = "retry",
        io: Literal["auto", "io_uring", "threads"] = "auto",
        register_frames: bool = False,
        policy: Policy = "adaptive",
        shares: dict[str, int | str] | None = None,
        segment: Segment | None = None,
    ):
        if nr_objects is not None:
            warnings.warn("nr_objects is ignored: the budget alone limits objects", DeprecationWarning, stacklevel=2)
        self.segment = segment or budget.make_segment(size, policy, max_size)
        if io not in ("auto", "io_uring", "threads"):
            raise ValueError(f"io must be 'auto', 'io_uring' or 'threads', not {io!r}")
        if on_write_error not in ("retry", "drop"):
            raise ValueError(f"on_write_error must be 'retry' or 'drop', not {on_write_error!r}")
        if register_frames and self.segment.max_frames > self.segment.nr_frames:
            raise ValueError("register_frames keeps all frames in memory, those up to max_size too: give one of the two")
        self._budget = budget.Budget(self.segment, dirty_limit, dirty_background)
        if max_size is not None:
            self._budget.follow(size)
        self.flusher = Flusher(self.segment, dirty_expire_s, min(DIRTY_INTERVAL_S, max(dirty_expire_s / 2, 0.01)))
        self.io_backend = self.segment.start_io(ring=io != "threads", register_frames=register_frames)
        self._lock = Mutex()
        self._files: WeakMembers[File] = WeakMembers()
        self._totals = SourceTotals()
        self._inodes = InodeTable(
            self.segment, partial(Inode, self.segment, Streams(), self.flusher, on_write_error == "retry", self._totals)
        )
        self._wrap_store: Callable[[BackingStore], BackingStore] | None = None
        self._maps: WeakMembers[Closable] = WeakMembers()
        self.shares = self._budget.shares
        for name, part in (shares or {}).items():
            self.shares.set(name, part)
        self.recorder: Recorder | None = None
        self._closed = False
        live.caches.add(self)
        if live.ENVIRONMENT in os.environ:
            live.serve_stats_once()

    # -- opening -------------------------------------------------------------------------------------------------------

    @overload
    def open(
        self,
        source: Name,
        mode: Mode = ...,
        *,
        direct: bool = ...,
        durability: Durability = ...,
        recheck: Literal["open", False] | None = ...,
        on_change: Literal["error"] = ...,
        priority: Priority | None = ...,
        tenant: str | None = ...,
        **storage_options: Any,
    ) -> File: ...

    @overload
    def open(
        self,
        source: Name | BackingStore,
        mode: Mode = ...,
        *,
        direct: bool = ...,
        durability: Durability = ...,
        recheck: Literal["open", False],
        on_change: Literal["error"] = ...,
        priority: Priority | None = ...,
        tenant: str | None = ...,
        **storage_options: Any,
    ) -> File: ...

    @overload
    def open(
        self,
        source: Name | BackingStore,
        mode: Mode = ...,
        *,
        direct: bool = ...,
        durability: Durability = ...,
        recheck: Recheck | None = ...,
        on_change: Literal["reload"],
        priority: Priority | None = ...,
        tenant: str | None = ...,
        **storage_options: Any,
    ) -> VersionedFile: ...

    @overload
    def open(
        self,
        source: Name | BackingStore,
        mode: Mode = ...,
        *,
        direct: bool = ...,
        durability: Durability = ...,
        recheck: Literal[True] | float,
        on_change: OnChange = ...,
        priority: Priority | None = ...,
        tenant: str | None = ...,
        **storage_options: Any,
    ) -> VersionedFile: ...

    @overload
    def open(
        self,
        source: Name | BackingStore,
        mode: Mode = ...,
        *,
        direct: bool = ...,
        durability: Durability = ...,
        recheck: Recheck | None = ...,
        on_change: OnChange = ...,
        priority: Priority | None = ...,
        tenant: str | None = ...,
        **storage_options: Any,
    ) -> File | VersionedFile: ...

    def open(
        self,
        source: Name | BackingStore,
        mode: str = "rb",
        *,
        direct: bool = False,
        durability: str = "write-back",
        recheck: bool | str | float | None = None,
        on_change: str = "error",
        priority: str | None = None,
        tenant: str | None = None,
        **storage_options: Any,
    ) -> File | VersionedFile:
        """Open an object through the cache.

        source: a path, a URL that fsspec knows, or a BackingStore. mode: "rb", "r+b", "w+b" (emptied), "x+b" (new), "ab"
        or "a+b" (writes at the position go to the end; made if missing). direct: read and write a local file past the
        kernel's page cache. storage_options: for the file system of a URL, and `whole_up_to`, `key_without`, `timeout_s`,
        `retries` (see FsspecStore).

        durability: when a write returns, its bytes are in the cache ("write-back"), in the store ("write-through"),
        durable ("dsync"), and durable with all metadata ("sync").

        recheck: when cached bytes are held against the store's present version: "open" (the default), when a file is
        opened; True, before each read call, which costs a request of the store; a number of seconds, before a read call
        when the last look is older; False, never, for objects that never change. Bytes that are read from the store are
        of the version that is cached in any case (see the store for recheck=False). on_change: what a read does when
        the object was replaced: "error" raises OSError (ESTALE), "reload" reads all of it from the new version,
        which is opened on a `copy.copy` of the store that serves the object then, while that is open.

        priority: what leaves when frames are short, see `File.priority`. tenant: whose share of the budget the object
        counts for, see `shares`. Both are the object's; None leaves them as they are.
        Returns a File, or a VersionedFile, which has the same methods. Raises OSError, ValueError, TypeError,
        ImportError.
        """
        self._check_usable()
        mode = checked_mode(mode)
        check_choices(durability, on_change)
        store = store_of(source, mode, direct=direct, recheck=recheck, storage_options=storage_options)
        if mode == "rb" and self._wrap_store is not None:
            store = self._wrap_store(store)
        if recheck is None:
            recheck = getattr(store, "recheck", "open")
        max_age_s = max_age_of(checked_recheck(recheck))
        if max_age_s is None and on_change == "error":
            return self.open_store(store, mode, durability, priority=priority, tenant=tenant)
        file = self.open_store(store, mode, durability, priority=priority, tenant=tenant)

        def reopen(old: File) -> File:
            again = copy_of_store(old.inode)
            if getattr(again, "is_immutable", False):
                self.forget(again.key)  # what is cached would be taken for good
            mode_again = file.mode if file.mode in ("rb", "ab", "a+b") else "r+b"
            return self.open_store(again, mode_again, durability, priority=priority, tenant=tenant)

        return VersionedFile(file, reopen, max_age_s=max_age_s, reloads=on_change == "reload")

    @overload
    def open_store(
        self, store: BackingStore, mode: str, durability: str = ..., *, priority: str | None = ..., tenant: str | None = ...
    ) -> File: ...

    @overload
    def open_store(
        self,
        store: BackingStore,
        mode: str,
        durability: str = ...,
        file_type: type[_File] = ...,
        priority: str | None = ...,
        tenant: str | None = ...,
    ) -> _File: ...

    def open_store(
        self,
        store: BackingStore,
        mode: str,
        durability: str = "write-back",
        file_type: type[File] = File,
        priority: str | None = None,
        tenant: str | None = None,
    ) -> File:
        """Open a file of a type of one's own on a store, which is closed if that fails; for adapters."""
        try:
            self.flusher.limit_undurable()
            if getattr(store, "is_immutable", False) and not self._inodes.knows(store.key):
                store.validator()  # asks the store, which is better done without the cache's lock
            inode = self._inodes.acquire(store, writes=mode != "rb")
        except BaseException:
            store.close()
            raise
        return self._file_on(inode, mode, durability, file_type, priority, tenant)

    @overload
    def open_shared(self, inode: Inode, store: BackingStore | None, mode: str) -> File: ...

    @overload
    def open_shared(self, inode: Inode, store: BackingStore | None, mode: str, file_type: type[_File]) -> _File: ...

    def open_shared(self, inode: Inode, store: BackingStore | None, mode: str, file_type: type[File] = File) -> File:
        """Open a file on an inode that is open, whatever the object's version is now; for adapters that see to that.

        store: another one of the object, or None.
        """
        self._inodes.acquire_again(inode, store, writes=mode != "rb")
        return self._file_on(inode, mode, "write-back", file_type)

    def _file_on(
        self,
        inode: Inode,
        mode: str,
        durability: str,
        file_type: type[File],
        priority: str | None = None,
        tenant: str | None = None,
    ) -> File:
        """Return a file on an inode that counts it as open."""
        recorded = self.recorder is not None and file_type is File
        file = (RecordedFile if recorded else file_type)(inode, mode, durability)
        file.cache = self
        self._files.add(file)
        try:
            if priority is not None:
                file.priority = priority
            if tenant is not None:
                self.shares.assign(inode.mapping, tenant)
            if mode == "w+b":
                inode.empty()
            elif mode.startswith("a"):
                file.seek(0, os.SEEK_END)
        except BaseException:
            file.close()
            raise
        return file

    def through(self, wrap: Callable[[BackingStore], BackingStore] | None) -> None:
        """Have a function called with each store that is opened for reading from now on; it returns the one that serves.

        wrap: returns the store that it is given, or another one over it with the same key; None: no function any more.
        """
        self._wrap_store = wrap

    def closes_with(self, mapped: Closable) -> None:
        """Close a map, which may outlive its file, when the cache is closed."""
        self._maps.add(mapped)

    def find(self, key: str) -> Inode | None:
        """Return the object that a store's key names, if it is open or cached; for adapters."""
        return self._inodes.find(key)

    def note_closed(self, inode: Inode) -> None:
        """Note that a file of an object was closed. Context: wherever a file is collected: takes no lock."""
        self._inodes.note_closed(inode)

    # -- the whole cache -----------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The budget (bytes)."""
        return self.segment.nr_frames * PAGE_SIZE

    def resize(self, size: int | str) -> None:
        """Change the budget, up to `max_size`. Returns when no more memory is used than that, and the rest is the system's.

        size: as for `PageCache`; "25%" is followed from then on, any other size is not. Making it smaller evicts, and
        writes back what is dirty. If that is not enough all stays as it was, and CacheFullError says what holds the pages
        (views, or dirty ones that cannot be written). Limits and shares that are parts ("20%") follow.
        Raises ValueError for a size that this cache cannot have.
        Context: waits for stores; other threads go on reading and writing.
        """
        self._check_usable()
        self._budget.resize(size)
        self._budget.follow(size)

    @property
    def closed(self) -> bool:
        """Whether the cache is closed."""
        return self._closed

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError("the cache is closed")
        if self.segment.dead:
            raise RuntimeError("this cache belongs to the parent process: open a new one after fork()")

    def stats(self, *, per_file: bool = False) -> Stats:
        """Return the cache's counters and gauges.

        per_file: `files` of the answer has them for each object that is open or cached, which walks their pages.
        """
        with self._totals.lock.held():
            stores = [store for inode in list(self._inodes) for store in list(inode.counted)]
            counts = self._totals.total(stores)
        stats = read_stats(self.segment, counts)
        if per_file:
            self._check_usable()
            files = [inode.stats() for inode in self.inodes()]
            stats.__dict__["files"] = sorted(files, key=lambda file: (-file.store_read_bytes, file.name))
        return stats

    def inodes(self) -> list[Inode | IdleObject]:
        """Return the objects that are open or cached; of those that only the directory knows the 4,096 largest."""
        self._check_usable()
        return [*self._inodes, *self._inodes.largest_idle()]

    def forget(self, *keys: str, whole: bool = True) -> None:
        """Let objects be opened as new the next time, with nothing cached; files that are open keep what they have.

        keys: of stores, or what the keys of stores begin with. whole: only if they end there, or before a "/" or "#".
        """
        self._check_usable()
        self._inodes.forget(keys, whole)

    def discard(self, key: str) -> None:
        """Forget the object that a store's key names because it exists no more: what is dirty of it is not written.

        An object that is open is only forgotten, as by `forget`.
        """
        self._check_usable()
        self._inodes.discard(key)

    def record(self, path: str | os.PathLike[str]) -> Recorder:
        """Record which pages are used from now on, until the returned Recorder is stopped, which writes a trace for
        `pagecache trace` (.npz, .npy or .txt). `with cache.record(path): ...` stops by itself.

        Raises ValueError for another kind of file, or when the cache is recorded already. Costs nothing when it is not.
        """
        self._check_usable()
        recorder = Recorder(self, os.fspath(path))
        with self._lock.held():
            if self.recorder is not None:
                raise ValueError(f"this cache is recorded already, into {self.recorder.path}")
            self.recorder = recorder
            self._turn_files(File, RecordedFile)
        return recorder

    def end_recording(self, recorder: Recorder) -> None:
        """Forget a recorder that stops."""
        with self._lock.held():
            if self.recorder is recorder:
                self.recorder = None
                self._turn_files(RecordedFile, File)

    def _turn_files(self, old: type[File], new: type[File]) -> None:
        """Give open files of one class another one; adapters' own kinds of files are not recorded."""
        for file in list(self._files):
            if type(file) is old:
                file.__class__ = new
                file.notes_lines = new is RecordedFile

    def drop_caches(self) -> int:
        """Drop every page that is clean and not in use. Returns the pages dropped."""
        self._check_usable()
        return self._inodes.drop_clean()

    def sync(self) -> None:
        """Write back, and make durable, all that was written through the cache.

        Raises OSError, the first error met, after everything was tried; it is reported to its open files as well.
        Context: waits for the stores.
        """
        self._check_usable()
        error = self.flusher.sync_all()
        if error is not None:
            raise error

    def check(self) -> None:
        """Prove the engine's invariants; no other thread may be in a call. Raises AssertionError.

        Context: waits for background reads.
        """
        self._check_usable()
        for inode in list(self._inodes):
            inode.wait_idle(CHECK_PATIENCE_S)
        with self.flusher.at_rest():
            self.segment.check()

    def close(self) -> None:
        """Write back what is dirty, close all files and maps, and give up the pages. Idempotent.

        Views stay valid until they are released. Raises OSError after all is closed, when something could not be
        written: those bytes are lost then (to try again, call `sync` first: it loses nothing).
        """
        if self._closed:
            return
        error = None if self.segment.dead else self.flusher.sync_all()  # an interrupt leaves the cache as it was
        self._closed = True
        live.caches.discard(self)
        if self.segment.dead:
            return  # in a forked child: locks may be held by threads that are not there
        try:
            error = self._close_all() or error
        except BaseException:
            self._closed = False
            live.caches.add(self)
            raise
        self.flusher.stop()
        self._budget.stop()
        lost = [inode for inode in self.flusher.inodes() if is_dirty(inode)]
        for inode in lost:
            inode.discard()
        for inode in self.flusher.inodes():
            inode.close_retired()  # a store whose sync failed
        self._inodes.clear()
        if error is not None:
            names = ", ".join(str(inode.name) for inode in lost)
            error.add_note(f"the cache was closed nevertheless; lost: what was not written of {names or 'nothing'}")
            raise error

    def _close_all(self) -> OSError | None:
        """Close maps and files, and write what was written to them meanwhile. Returns an error."""
        error = None
        for opened in [*self._maps, *self._files]:
            try:
                opened.close()
            except OSError as failed:
                error = error or failed
        for inode in self.flusher.dirty_inodes():
            error = inode.sync_pages(0, LAST_PAGE, durable=False) or error
        return error

    def __enter__(self) -> "PageCache":
        self._check_usable()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> "PageCache":
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        await in_worker(self.close)

    def _repr_html_(self) -> str | None:
        if self._closed or self.segment.dead:
            return None
        return self.stats(per_file=True)._repr_html_()

    def __repr__(self) -> str:
        return f"<PageCache {format_size(self.size)}{', closed' if self._closed else ''}>"
