"""One object of one store, however many files are open on it: its mapping, its store, its version."""

import contextlib
import errno
import logging
import time
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from pagecache import _core, truncate, writeback
from pagecache._core import AddressSpace, Mutex, Segment
from pagecache.filemap import write
from pagecache.files.object_version import DescriptorStore, ObjectVersion, attributes_of, size_of
from pagecache.readahead.window import share_pages, wanted_pages, window_pages
from pagecache.requests import workers
from pagecache.requests.backing import Backing
from pagecache.requests.replicas import replicate_of
from pagecache.requests.workers import RequestQueue
from pagecache.stats.numbers import FileStats, read_file_stats
from pagecache.stats.sources import SourceTotals, add_counts, counts_of
from pagecache.stores.base import BackingStore, WritableStore, hints_of, is_writable
from pagecache.stores.validators import Version
from pagecache.units import LAST_PAGE, PAGE_SHIFT
from pagecache.weak_members import weakly
from pagecache.writeback.flusher import Flusher, is_dirty
from pagecache.writeback.own_writes import ForeignChange, own_write
from pagecache.writeback.passes import WritebackControl

ZEROS = 1024 * 1024  # bytes written at once where a store knows no holes
TRIES = 8  # at what must not be left half done
STORE_PATIENCE_S = 0.5  # how long closing waits for the engine's reads of a descriptor
_Result = TypeVar("_Result")
Memo = tuple[Version | None, dict[str, int]]  # the version that was known last, and what was counted by source
logger = logging.getLogger("pagecache")


class ImmutableStore(BackingStore, Protocol):
    """A store of an object that never changes: what is known of it is never asked for again."""

    known_version: Version | None


class Streams:
    """The open files of a cache that are read ahead of: they share the budget of windows.

    Context: any thread may add and discard; each is one step of a set.
    """

    def __init__(self) -> None:
        self._files: set[int] = set()

    @property
    def nr(self) -> int:
        """How many they are."""
        return len(self._files)

    def add(self, file: object) -> None:
        """Count an open file, once."""
        self._files.add(id(file))

    def discard(self, file: object) -> None:
        """Count it no more, as it is closed."""
        self._files.discard(id(file))


class Inode(ObjectVersion):
    """The cached object that files of one key share.

    segment: where its pages live. store: serves it; closed with the last file, while the pages stay. mapping: of an object
    that is cached, of which more may be known (`recall`); it has no store then.
    Context: opening an object, for the first time or once more, holds the cache's lock.
    """

    def __init__(
        self,
        segment: Segment,
        streams: Streams,
        flusher: Flusher | None,
        keeps_failed: bool,
        totals: SourceTotals | None,
        store: BackingStore | None,
        mapping: "AddressSpace[Backing, BackingStore | None] | None" = None,
    ):
        super().__init__()
        self.streams = streams
        self.flusher = flusher
        self.keeps_failed = keeps_failed
        self.nr_writers = 0
        self._sync_lock = Mutex()
        self._window_of: tuple[Backing, int, int, int] | None = None  # what `_window_pages` was made of
        self._window_pages = 1
        if mapping is None:
            assert store is not None, "an object that is not known needs a store"
            mapping, is_known = AddressSpace(segment), False
            mapping.key = store.key
        else:
            is_known = True
        self.mapping = mapping
        self.name = mapping.name = mapping.name if store is None else str(getattr(store, "name", store.key))
        self.nr_open = 0
        self.idle_since = 0.0  # when the last open file went (monotonic seconds)
        self.nr_no_reuse = 0  # files open that were advised FADV_NOREUSE
        self._priority = _core.priority_of(mapping)
        self._lock = Mutex()  # a collected file may release the object anywhere
        self._retired: list[BackingStore] = []
        self.totals = totals or SourceTotals()
        self.counted: list[BackingStore] = []  # stores that are open and count their sources
        self._closed_counts: dict[str, int] = {}
        self.store: BackingStore | None = None
        self.known_version: Version | None = None  # what the last store knew of the object when it was given up
        if is_known or store is None:  # what opens it has a store
            self._renew_backing(store)
            return
        self._use(store)
        self._take_version()
        self.mapping.size = size_of(store)

    def _renew_backing(self, of: BackingStore | None) -> None:
        """Make what stands between the pages and a store."""
        store = cast(BackingStore, of)  # its hints are optional, so none need be there
        hints = self.hints = hints_of(store)
        request_queue = RequestQueue(workers.shared_pool, hints.parallel_requests)
        request_queue.on_idle = weakly(self.close_retired, None)
        backing = Backing(hints, request_queue, self.flusher, self.keeps_failed, getattr(store, "origin", None))
        request_queue.while_waiting = weakref.WeakMethod(backing.end_overdue)
        backing.replicate = replicate_of(store)
        backing.look_closer = weakly(self.look_closer, False)
        if getattr(store, "serves_ranges", None) is False:
            backing.read_in_order()
        if self.mapping.backing is not None:
            backing.take_over(self.mapping.backing)
        self.mapping.backing = backing
        _core.set_stable_writes(self.mapping, hints.stable_writes)
        self.io_pages = max(1, hints.max_request >> PAGE_SHIFT)

    def _use(self, store: BackingStore) -> None:
        """Serve the object by this store from now on: it has the version that is cached, if anything is."""
        self._renew_backing(store)
        if self.store is not None:
            self._retired.append(self.store)
        if getattr(store, "is_immutable", False):
            immutable = cast(ImmutableStore, store)
            if immutable.known_version is None:
                immutable.known_version = self.known_version
        self.store = store
        self._note_name()
        if hasattr(store, "source_counts"):
            with self.totals.lock.held():
                self.counted.append(store)
        self.mapping.host = store
        self.mapping.fd = -1
        fd = getattr(store, "fd", -1)
        if isinstance(fd, int) and fd >= 0:
            self.mapping.direct = bool(getattr(store, "direct", False))
            self.mapping.fd = fd

    @property
    def ra_pages(self) -> int:
        """The largest readahead window of one open file now (pages)."""
        backing, nr_streams, nr_frames = self.mapping.backing, self.streams.nr, self.mapping.segment.nr_frames
        if self._window_of != (backing, backing.speed.nr_fits, nr_streams, nr_frames):
            self._window_of = (backing, backing.speed.nr_fits, nr_streams, nr_frames)
            backing.is_crowded = share_pages(nr_frames, nr_streams) < wanted_pages(self.hints, backing.speed)
            self._window_pages = window_pages(self.hints, backing.speed, nr_frames, nr_streams)
        return self._window_pages

    @property
    def writable(self) -> bool:
        """Whether the store can be changed."""
        return is_writable(self.store)

    def stats(self) -> FileStats:
        """Return what was counted for this object. Context: walks its pages."""
        return read_file_stats(self.mapping, self.name, self.nr_open, self._source_counts())

    def _source_counts(self) -> dict[str, int]:
        """Return where the bytes of this object came from, as far as its stores count that."""
        with self.totals.lock.held():
            counts = dict(self._closed_counts)
            for store in self.counted:
                add_counts(counts, counts_of(store))
        return counts

    # -- size ----------------------------------------------------------------------------------------------------------

    def set_size(self, size: int) -> None:
        """Truncate or extend the object, cache and store. Raises OSError: it has the old size, or what the store has."""
        with self.mapping.inode_locked(), self.mapping.exclusive():
            self.own_change(lambda: self._set_size_locked(size))

    def empty(self) -> None:
        """Truncate the object to nothing, foreign changes too: an object is opened to be written anew. Raises OSError."""
        with self.mapping.inode_locked(), self.mapping.exclusive():
            try:
                self.own_change(lambda: self._set_size_locked(0))
            except ForeignChange:
                truncate.truncate_inode_pages(self.mapping, 0)
                self.take_anew()
                self.own_change(lambda: self._set_size_locked(0))

    def extend(self, size: int) -> None:
        """Make the object as large as a size, if it is smaller. Raises OSError."""
        with self.mapping.inode_locked(), self.mapping.exclusive():
            if size > self.mapping.size:
                self.own_change(lambda: self._set_size_locked(size))

    def _set_size_locked(self, size: int) -> None:
        mapping, old_size = self.mapping, self.mapping.size
        try:
            if size < old_size:
                self._cut_store(size)
            else:
                self._truncate_store(size)
        except ForeignChange:
            mapping.size = old_size
            raise
        except BaseException:
            self._take_size_of_store(old_size, size)
            raise
        mapping.backing.note_resized(size)
        mapping.disk_size = size
        self._follow_store(size)

    def _truncate_store(self, size: int) -> None:
        with own_write(self.mapping, size):
            cast(WritableStore, self.store).truncate(size)

    def _follow_store(self, size: int) -> None:
        """Do in the cache what the store has done; an interrupt has to wait for that, which waits for nothing."""
        interrupt: BaseException | None = None
        for _ in range(TRIES):
            try:
                truncate.truncate_setsize(self.mapping, size)
                break
            except BaseException as outside:
                interrupt = outside
        if interrupt is not None:
            raise interrupt

    def _cut_store(self, size: int) -> None:
        """Truncate the store, while the pages behind the new end stay as they are: if it fails, nothing of them is lost.

        Write-back begins nothing behind i_size; the folio over the end, of which it would write a part, is kept locked, and
        what it was writing of it has ended: it would bring back the rest. If the store fails, the folio is as large as
        it was again before it is unlocked: write-back of the part would count for all of it.
        """
        mapping, behind, old_size = self.mapping, -(-size >> PAGE_SHIFT), self.mapping.size
        with truncate.locked(truncate.lock_cached(mapping, (size - 1) >> PAGE_SHIFT) if size else None) as folio:
            try:
                mapping.size = size
                truncate.unmap_mapping_pages(mapping, behind, 0)
                if folio is not None:
                    folio.wait_writeback()
                truncate.wait_for_folios(mapping, behind)
                self._truncate_store(size)
            except BaseException:
                mapping.size = old_size
                raise

    def _take_size_of_store(self, old_size: int, size: int) -> None:
        """After a change of size that failed below: the object is as it was, unless the store has lost some of it."""
        mapping = self.mapping
        mapping.size = old_size
        had = mapping.disk_size
        try:
            mapping.disk_size = size_of(self._serving)
        except OSError:  # it cannot even say: nothing is taken for lost
            mapping.disk_size = had
        if mapping.disk_size < had:
            truncate.truncate_setsize(mapping, max(size, mapping.disk_size))

    def punch_hole(self, file: write.WrittenFile, offset: int, nbytes: int) -> None:
        """Make a byte range read as zeros, in cache and store. Raises OSError; then the bytes are as before."""
        mapping = self.mapping
        with mapping.inode_locked():
            end = min(offset + nbytes, mapping.size)
            if end <= offset:
                return
            punch = getattr(self.store, "punch_hole", None)
            if punch is None or not self._punch(punch, offset, end):
                self._write_zeros(file, offset, end)

    def _punch(self, punch: Callable[[int, int], None], offset: int, end: int) -> bool:
        """Punch the hole into the store; False if it cannot. What is dirty there is written first, so that a failure
        leaves the old bytes."""
        mapping = self.mapping
        error = writeback.filemap_write_and_wait_range(mapping, offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT)
        if error is not None:
            raise error
        with mapping.exclusive():
            return self.own_change(lambda: self._punch_locked(punch, offset, end))

    def _punch_locked(self, punch: Callable[[int, int], None], offset: int, end: int) -> bool:
        mapping = self.mapping
        on_disk = min(end, mapping.disk_size)
        try:
            truncate.truncate_pagecache_range(mapping, offset, end - 1)
            if on_disk > offset:
                with own_write(mapping):
                    punch(offset, on_disk - offset)
                mapping.backing.note_resized(offset)
        except BaseException as failed:
            with contextlib.suppress(OSError):  # a page that a map has made dirty since
                truncate.invalidate_inode_pages2_range(mapping, offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT)
            if isinstance(failed, OSError) and failed.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            raise
        return True

    def _write_zeros(self, file: write.WrittenFile, offset: int, end: int) -> None:
        """Write zeros where the store knows no holes. Context: inode lock held."""
        while offset < end:
            zeros = bytes(min(ZEROS, end - offset))
            source = _core.copy_source(zeros)
            write.generic_perform_write(file, source, 0, offset)
            offset += len(zeros)

    # -- durability ----------------------------------------------------------------------------------------------------

    @property
    def needs_sync(self) -> bool:
        """Whether the store has been given bytes that it has not made durable, or does now."""
        backing = self.mapping.backing  # a sync under way has taken what it syncs, and puts it back before it fails
        return hasattr(self.store, "sync") and (backing.has_unsynced or self._sync_lock.is_held or backing.has_unsynced)

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost if the object were forgotten: it is not open, and what was written is durable."""
        return self.nr_open == 0 and not is_dirty(self) and not self.needs_sync

    @property
    def may_be_parked(self) -> bool:
        """Whether the directory holds all that the next one who opens the object needs. Context: the object is idle."""
        mapping, backing = self.mapping, self.mapping.backing
        is_read = backing.prefetches or backing.request_queue.nr_running
        is_sure = mapping.validator is not None and not backing.has_lost_version and not backing.sync_failed
        return self.store is None and not self._retired and not is_read and is_sure

    def memo(self) -> Memo | None:
        """Return what is worth remembering of the object beside that, or None."""
        return (self.known_version, self._closed_counts) if self.known_version is not None or self._closed_counts else None

    def recall(self, memo: Memo | None) -> None:
        """Know again what was remembered."""
        if memo is not None:
            self.known_version, self._closed_counts = memo

    def start_writeback(self, first: int, last: int) -> None:
        """Have pages first..last written back by the flusher, without waiting."""
        if _core.has_mark(self.mapping, writeback.MARK_DIRTY):
            wbc = WritebackControl(range_start=first, range_end=last)
            workers.shared_pool.run(lambda: writeback.do_writepages(self.mapping, wbc))

    def sync_pages(self, first: int, last: int, *, durable: bool, datasync: bool = False) -> OSError | None:
        """Write pages first..last back, wait for them, and have the store make durable what it was given.

        Returns the error that this met, which the mapping's record holds too. Context: waits for the store.
        """
        while True:
            backing = self.mapping.backing
            nr_failures, nr_doubts = backing.nr_failures, 0
            try:
                if durable:
                    nr_doubts = self._redirty_unsynced()
                error = writeback.filemap_write_and_wait_range(self.mapping, first, last)
                if error is None and backing.nr_failures != nr_failures and backing.keeps_failed:
                    continue  # another thread failed to write what this waited for: it is dirty again
                if error is not None or not durable or self._sync_store(datasync, nr_doubts):
                    return error
            except OSError as failed:
                _core.mapping_set_error(self.mapping, failed.errno or errno.EIO)
                return failed

    def _sync_store(self, datasync: bool, nr_doubts: int) -> bool:
        """Have the store make durable what it has. What it had been given counts as not written if it fails.

        Returns False if another sync failed meanwhile: a store may say so only once, and take the bytes for written.
        Raises OSError.
        """
        backing = self.mapping.backing
        with self._sync_lock.held():
            sync = getattr(self.store, "sync", None)
            if sync is None:
                return True
            if backing.nr_doubts != nr_doubts:
                return False
            runs = backing.take_unsynced()
            try:
                sync(datasync)
            except Exception as cause:
                backing.put_back_unsynced(runs)
                raise writeback.write_error(self.mapping, 0, cause) from cause
            except BaseException:
                backing.put_back_unsynced(runs)
                raise
        return True

    def _redirty_unsynced(self) -> int:
        """Make dirty again what a sync that failed left in doubt, as far as it is still cached.

        Returns how often there were doubts: as long as that stays, what is written now is not in doubt. Raises OSError.
        """
        backing = self.mapping.backing
        nr_doubts = int(backing.nr_doubts)
        if not backing.sync_failed:
            return nr_doubts
        with self._sync_lock.held():
            if backing.sync_failed:
                runs = backing.take_unsynced()
                try:
                    for first, last in runs:
                        writeback.redirty_range(self.mapping, first, last)
                except BaseException:
                    backing.put_back_unsynced(runs)
                    raise
                backing.sync_failed = False
                backing.nr_doubts += 1
            return int(backing.nr_doubts)

    # -- life ----------------------------------------------------------------------------------------------------------

    def acquire(self, store: BackingStore | None = None, *, writes: bool = False) -> None:
        """Count one more open file, which brings a store of its own, if it is not open on another one's.

        writes: it may make pages dirty.

        The store is put to use if there is none, or none that can be written; otherwise it is closed.
        """
        with self._lock.held():
            surplus = store if store is not self.store else None
            if surplus is not None and (self.store is None or (is_writable(surplus) and not self.writable)):
                self._use(surplus)
                surplus = None
            take_attempts = getattr(self.store, "take_attempts", None)
            if surplus is not None and take_attempts is not None:
                take_attempts(surplus)
            if writes and self._attributes is None and self.mapping.fd >= 0:
                self._attributes = attributes_of(cast(DescriptorStore, self.store))
            self.nr_open += 1
            self._apply_priority()
            self.nr_writers += writes
        if writes and self.flusher is not None:
            self.flusher.add(self)
        if surplus is not None:
            surplus.close()

    @property
    def priority(self) -> str:
        """What was set, whatever the files' advice is."""
        return self._priority

    @priority.setter
    def priority(self, priority: str) -> None:
        with self._lock.held():
            _core.set_priority(self.mapping, priority)
            self._priority = priority
            self._apply_priority()

    def advise_reuse(self, change: int) -> None:
        """Count files that were advised FADV_NOREUSE: change more of them. Priority is low while all open ones are."""
        with self._lock.held():
            self.nr_no_reuse += change
            self._apply_priority()

    def _apply_priority(self) -> None:
        """Context: self._lock held."""
        is_low = self._priority == "normal" and 0 < self.nr_open == self.nr_no_reuse
        _core.set_priority(self.mapping, "low" if is_low else self._priority)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no read of the object is under way (seconds). Returns whether that is so."""
        backing = self.mapping.backing
        for prefetch in tuple(backing.prefetches):
            prefetch.wait_done(timeout_s)
        is_idle = not backing.prefetches and backing.request_queue.wait_idle(timeout_s)
        return is_idle and self.mapping.wait_inflight(timeout_s)

    def release(self, *, writes: bool = False) -> None:
        """Count one open file less; the last one gives up the store, as soon as nothing is dirty and all is durable."""
        if self.mapping.segment.dead:
            return  # in a forked child: the lock may be held by a thread that is not there
        with self._lock.held():
            self.nr_open -= 1
            self._apply_priority()
            self.nr_writers -= writes
            self.idle_since = time.monotonic()
        self.close_retired()
        if self.store is not None and self.flusher is not None and not self.nr_open:
            self.flusher.segment.wake_flusher()

    def _retire_idle(self) -> None:
        """Give up the store when the object is not open, it is clean, and the store has made it durable, which the
        flusher sees to. Context: self._lock held."""
        if self.nr_open or self.store is None:
            return
        if self.flusher is not None and not self.flusher.drop_if_done(self):
            return
        self._retired.append(self.store)
        self.known_version = getattr(self.store, "known_version", None)
        self.store = None

    def discard(self) -> None:
        """Give up what is dirty: it will not be written any more."""
        with self.mapping.inode_locked(), self.mapping.exclusive():
            truncate.truncate_inode_pages(self.mapping, 0)
        self._is_clean()

    def _is_clean(self) -> None:
        """Note that nothing is dirty any more."""
        if self.flusher is not None:
            self.flusher.drop_if_done(self)
        self.close_retired()

    def give_up_changed(self) -> None:
        """Give up what is dirty of an object that is not open and that others have changed: it can never be written.

        Context: waits for reads and write-back under way.
        """
        mapping, error = self.mapping, self.mapping.backing.last_error
        if self.nr_open or error is None or error.errno != errno.ESTALE or not is_dirty(self):
            return
        with mapping.inode_locked(), mapping.exclusive():
            nbytes = sum(mapping.cachestat(0, LAST_PAGE)[1:3]) << PAGE_SHIFT  # dirty, or on its way in vain
            if nbytes:
                logger.error("up to %d bytes that were written to %s are lost: others have changed it", nbytes, self.name)
            truncate.truncate_inode_pages(mapping, 0)
        self._is_clean()

    def _nobody_reads(self) -> bool:
        """Whether no background read is in the store, or ends within a moment."""
        return not self.mapping.backing.request_queue.nr_running and self.mapping.wait_inflight(STORE_PATIENCE_S)

    def close_retired(self) -> None:
        """Close stores that are not used any more, unless a read or a write may still be in them: then it is tried again
        later."""
        with self._lock.held():
            self._retire_idle()
        if not self._retired:
            return
        with self.mapping.exclusive(wait=False) as held, self._lock.held():
            if not held or (self.store is None and not self._nobody_reads()):
                return
            if self.store is None:
                self.mapping.fd = -1
                self.mapping.host = None
            retired = [store for store in self._retired if store is not self.store]
            self._retired = []
        with contextlib.ExitStack() as closing:  # all of them, even if one fails
            for store in retired:
                self.totals.close(store, self.counted, self._closed_counts)
                closing.callback(store.close)
