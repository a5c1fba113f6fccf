"""The flusher: a thread of a cache that writes back what others have dirtied.

It sleeps until more than the background amount is dirty, memory is short, or some time has passed; then it writes the
objects that need it, a chunk of each in turn.  An object whose write-back fails is left alone for a while that doubles
with every failure.  It keeps every object that can be written, or is dirty, alive, and itself while there is one, even
if the cache is not held any more; and it closes the store of one that is not open any more when it is clean and
durable: what was written through a file that is closed is synced with the rest by `sync_all`, and by the flusher when
it has been closed for as long as pages may stay dirty, or when too many others have been closed since.
"""

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

from pagecache import _core
from pagecache._core import Mutex, MutexGuard, Segment
from pagecache.requests import fill
from pagecache.requests.backing import OWN_WRITES_MASK, BackedMapping, Backing
from pagecache.stores.worker_pool import start_thread
from pagecache.units import LAST_PAGE, MARK_DIRTY, MARK_WRITEBACK
from pagecache.weak_members import weakly
from pagecache.writeback.passes import WritebackControl, do_writepages
from pagecache.writeback.throttle import WAIT_SLICE_S

CHUNK_PAGES = 1024  # written of one object before the next has its turn
RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
UNDURABLE_MAX = 64  # stores of objects that are not open which stay open because they were not synced
FIRST_PAGES_PER_S = 65536.0  # before anything was measured
SPEED_WEIGHT = 0.3

logger = logging.getLogger("pagecache")


class HasMapping(Protocol):
    """Anything with cached pages."""

    @property
    def mapping(self) -> BackedMapping:
        """The pages."""
        ...


class WrittenInode(HasMapping, Protocol):
    """What the flusher needs to know of an object: an `Inode`."""

    name: str
    nr_open: int
    nr_writers: int
    idle_since: float

    @property
    def needs_sync(self) -> bool:
        """Whether the store has bytes that it has not made durable."""
        ...

    def sync_pages(self, first: int, last: int, *, durable: bool) -> OSError | None:
        """Write pages back and wait; return the error that this met."""
        ...

    def give_up_changed(self) -> None:
        """Give up what may not be written because others have changed the object."""
        ...

    def close_retired(self) -> None:
        """Close stores that are not used any more."""
        ...

    def discard(self) -> None:
        """Give up what is dirty."""
        ...


class Flusher:
    """Writes back the objects of one cache.

    expire_s: age at which dirty pages are written however few they are. interval_s: how often that is looked at.
    The thread starts with the first object, and ends with `stop`, or when the flusher is not held any more and nothing
    is left to write.
    """

    def __init__(self, segment: Segment, expire_s: float, interval_s: float):
        self.segment = segment
        self.expire_s = expire_s
        self.interval_s = interval_s
        self.pages_per_s = FIRST_PAGES_PER_S
        self._inodes: dict[int, WrittenInode] = {}
        self._undurable: dict[int, WrittenInode] = {}  # those not open, whose store was not synced; oldest first
        self._undurable_max = UNDURABLE_MAX
        self._lock = Mutex()  # a collected file may drop its object anywhere
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._at_work = Mutex()
        fill.write_errors[segment] = weakly(self.error_of_all, None)

    # -- objects -------------------------------------------------------------------------------------------------------

    def add(self, inode: WrittenInode) -> None:
        """Keep an object that may become dirty."""
        with self._lock.held():
            self._inodes[id(inode)] = inode
            self._undurable.pop(id(inode), None)
            if not self._is_stopping:
                _busy.add(self)
            if self._thread is None and not self._is_stopping:
                self._thread = start_thread("pagecache-flush", _run, weakref.ref(self), self.segment)

    def drop_if_done(self, inode: WrittenInode) -> bool:
        """Let go of an object that cannot be written to any more, that is clean, and that the store has made durable.
        Returns whether that is so."""
        with self._lock.held():
            if inode.nr_writers or is_dirty(inode) or is_being_written(inode):
                return False
            if inode.needs_sync and not self._is_stopping:
                self._undurable.setdefault(id(inode), inode)
                return False
            self._undurable.pop(id(inode), None)
            self._inodes.pop(id(inode), None)
            if not self._inodes:
                _busy.discard(self)
        return True

    def inodes(self) -> list[WrittenInode]:
        """Return the objects that can be written, or are dirty."""
        with self._lock.held():
            return list(self._inodes.values())

    def dirty_inodes(self) -> list[WrittenInode]:
        """Return the objects that have dirty pages now."""
        return [inode for inode in self.inodes() if _core.has_mark(inode.mapping, MARK_DIRTY)]

    # -- writing -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what has to be written now: old pages, and more than those while too much is dirty."""
        with self._at_work.held():
            self._flush()

    def _flush(self) -> None:
        progress = True
        while progress and not self._is_stopping:
            progress = False
            for inode in self.dirty_inodes():
                with self._by_itself(inode):
                    nr_pages = self._pages_due(inode)
                    if nr_pages and self.write_some(inode, nr_pages):
                        progress = True
            progress = progress and self.segment.nr_dirty_charged > self.segment.dirty_limits[1]
        self._sync_undurable()
        for inode in [inode for inode in self.inodes() if not inode.nr_open]:
            with self._by_itself(inode):
                inode.give_up_changed()
                inode.close_retired()

    @contextlib.contextmanager
    def _by_itself(self, inode: WrittenInode) -> Iterator[None]:
        """Keep what goes wrong with one object from the others, which have their turn; it is left alone for a while."""
        try:
            yield
        except Exception:  # a store may raise anything
            logger.exception("%s: the flusher goes on with others, and tries again later", inode.name)
            self._retry_later(inode.mapping.backing)

    def _sync_undurable(self) -> None:
        """Make durable what was closed long ago, or too much else since, so that its store can be closed."""
        with self._lock.held():
            waiting = list(self._undurable.values())
        for place, inode in enumerate(waiting):
            now, backing = time.monotonic(), inode.mapping.backing
            is_old = place < len(waiting) - self._undurable_max or now - inode.idle_since >= self.expire_s
            if self._is_stopping or not is_old or now < backing.retry_at:
                continue
            self._make_durable(inode)

    def _make_durable(self, inode: WrittenInode) -> bool:
        """Write an object back, and have its store make it durable. Returns whether that went well; else it is left alone
        for a while."""
        with self._by_itself(inode):
            backing = inode.mapping.backing
            if inode.sync_pages(0, LAST_PAGE, durable=True) is None:
                backing.nr_retries, backing.retry_at = 0, 0.0
                return True
            self._retry_later(backing)
        return False

    def _retry_later(self, backing: Backing) -> None:
        backing.retry_at = time.monotonic() + min(RETRY_MIN_S * 2**backing.nr_retries, RETRY_MAX_S)
        backing.nr_retries += 1

    def limit_undurable(self) -> None:
        """Let a thread that closes objects faster than the flusher makes them durable do some of its work: the oldest
        first, without those that failed a moment ago, which keep no thread from opening others."""
        if len(self._undurable) <= 2 * self._undurable_max:
            return
        with self._lock.held():
            waiting = list(self._undurable.values())
        for inode in waiting[: len(waiting) - 2 * self._undurable_max]:
            if time.monotonic() >= inode.mapping.backing.retry_at and self._make_durable(inode):
                inode.close_retired()

    def _pages_due(self, inode: WrittenInode) -> int:
        """Return how many pages of an object to write now: a chunk while there is too much, all that is too old."""
        if self._memory_is_short():
            return CHUNK_PAGES  # if it fails again that is reported at once
        if time.monotonic() < inode.mapping.backing.retry_at:
            return 0
        if self.segment.nr_dirty_charged > self.segment.dirty_limits[1]:
            return CHUNK_PAGES
        is_old = time.monotonic_ns() - _core.dirtied_when_ns(inode.mapping) >= self.expire_s * 1e9
        return LAST_PAGE if is_old else 0

    def _memory_is_short(self) -> bool:
        counters = self.segment.counters()
        return counters["nr_waiting_for_memory"] > 0

    def write_some(self, inode: WrittenInode, nr_pages: int = CHUNK_PAGES) -> int:
        """Write so many of an object's dirty pages, going on where the last chunk ended. Returns the pages written."""
        wbc = WritebackControl(nr_to_write=nr_pages, range_cyclic=nr_pages < LAST_PAGE)
        started = time.monotonic()
        do_writepages(inode.mapping, wbc)
        self._note_speed(wbc.nr_written, time.monotonic() - started)
        if wbc.error is not None:
            self._retry_later(inode.mapping.backing)
        return wbc.nr_written

    def _note_speed(self, nr_pages: int, seconds: float) -> None:
        if nr_pages and seconds > 0:
            self.pages_per_s += SPEED_WEIGHT * (nr_pages / seconds - self.pages_per_s)

    # -- for writers ---------------------------------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Let a writer sleep until less is dirty, at most so long."""
        until = time.monotonic() + seconds
        left = seconds
        while left > 0 and self.segment.nr_dirty_charged > sum(self.segment.dirty_limits) // 2:
            self.segment.wait_for_memory(min(left, WAIT_SLICE_S))
            left = until - time.monotonic()

    def make_room(self) -> OSError | None:
        """Let a writer at the limit, none of whose own pages can be written, write others', or wait a moment.

        Returns the error that keeps all dirty objects from being written, or None.
        """
        error = None
        for inode in self.dirty_inodes():
            if self.write_some(inode):  # tried now, however lately it failed: a store that is healed helps at once
                return None
            error = error or inode.mapping.backing.last_error
        if error is None or self.segment.counters()["nr_writeback"] or self.error_of_all() is None:
            self.segment.wait_for_memory(WAIT_SLICE_S)
            return None
        return error

    def error_of_all(self) -> OSError | None:
        """Return the error that the last request of every dirty object met; None if one can be written, or may be."""
        errors = [inode.mapping.backing.last_error for inode in self.dirty_inodes()]
        return errors[0] if errors and None not in errors else None

    # -- life ----------------------------------------------------------------------------------------------------------

    def sync_all(self) -> OSError | None:
        """Write back and make durable, object by object. Returns the first error. Context: waits for the stores."""
        first = outside = None
        for inode in self.inodes():
            try:
                error = inode.sync_pages(0, LAST_PAGE, durable=True)
                first = first or error
                if not inode.nr_open:
                    inode.give_up_changed()
                    inode.close_retired()
            except Exception as failed:  # of a store, which may raise anything
                outside = outside or failed
        if outside is not None:
            raise outside
        return first

    def at_rest(self) -> MutexGuard:
        """`with flusher.at_rest():` the thread writes nothing."""
        return self._at_work.held()

    def __del__(self) -> None:
        if self.segment.dead:
            return
        self.segment.wake_flusher()  # the thread sees that nothing is left

    def stop(self) -> None:
        """End the thread; it is not waited for, as it may be in a store that hangs."""
        self._is_stopping = True
        _busy.discard(self)
        self.segment.wake_flusher()


_busy: set[Flusher] = set()  # with objects that can be written, or are dirty: alive even if their caches are gone


def busy_flushers() -> list[Flusher]:
    """Return the flushers of this process that may have something to write."""
    return list(_busy)


def _after_fork_in_child() -> None:
    """In a child: its parent writes what is dirty."""
    for flusher in list(_busy):
        flusher.segment.mark_dead()
    _busy.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def is_dirty(inode: HasMapping) -> bool:
    """Whether an object has pages that are dirty, or under write-back: those may be dirty again."""
    mapping = inode.mapping  # a page that goes from one state to the other meanwhile is seen at the third look
    return any(_core.has_mark(mapping, mark) for mark in (MARK_DIRTY, MARK_WRITEBACK, MARK_DIRTY))


def is_being_written(inode: HasMapping) -> bool:
    """Whether a writer may be using an object's store to write to it now."""
    return bool(_core.own_write_word(inode.mapping) & OWN_WRITES_MASK)


def _run(reference: "weakref.ref[Flusher]", segment: Segment) -> None:
    """The thread: holds the flusher only while it works."""
    word = segment.flusher_word
    interval_s = 0.0
    while True:
        segment.wait_flusher(word, interval_s)
        word = segment.flusher_word
        flusher = reference()
        if flusher is None or flusher._is_stopping or segment.dead:
            return
        interval_s = flusher.interval_s
        try:
            flusher.flush()
        except BaseException:  # of a store: the thread goes on
            logger.exception("the flusher failed; it goes on")
        del flusher
