"""The flusher: a thread of a cache that writes back what others have dirtied.

It sleeps until more than the background amount is dirty, memory is short, or some time has passed; then it writes the
objects that need it, a chunk of each in turn.  An object whose write-back fails is left alone for a while that doubles
with every failure.  It keeps every object that can be written, or is dirty, alive, and closes the store of one that
nobody has open any more when it is clean.
"""

import logging
import sys
import threading
import time
import warnings
import weakref
from typing import Any

from pagecache import _core
from pagecache._core import Segment
from pagecache.line import OWN_WRITES_MASK
from pagecache.writeback import LAST_PAGE, MARK_DIRTY, WAIT_SLICE_S, WritebackControl, do_writepages

CHUNK_PAGES = 1024  # written of one object before the next has its turn
RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
FIRST_PAGES_PER_S = 65536.0  # before anything was measured
SPEED_WEIGHT = 0.3

logger = logging.getLogger("pagecache")
held: set["Flusher"] = set()  # those with something to write that nobody else may hold


class Flusher:
    """Writes back the objects of one cache.

    expire_s: age at which dirty pages are written however few they are. interval_s: how often that is looked at.
    The thread starts with the first object, and ends with `stop`, or when nobody holds the flusher any more. A flusher
    that was told to `keep` what a forgotten file left dirty is held until that is written.
    """

    def __init__(self, segment: Segment, expire_s: float, interval_s: float):
        self.segment = segment
        self.expire_s = expire_s
        self.interval_s = interval_s
        self.pages_per_s = FIRST_PAGES_PER_S
        self._inodes: dict[int, Any] = {}
        self._lock = threading.RLock()  # a collected file may drop its object anywhere
        self._thread: threading.Thread | None = None
        self._reference: weakref.ref[Flusher] = weakref.ref(self)
        self._is_stopping = False
        self._at_work = threading.Lock()

    # -- objects -------------------------------------------------------------------------------------------------------

    def add(self, inode: Any) -> None:
        """Keep an object that may become dirty."""
        with self._lock:
            self._inodes[id(inode)] = inode
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        if not self._is_stopping:
            self._reference = weakref.ref(self)
            arguments = (self._reference, self.segment)
            self._thread = threading.Thread(target=_run, args=arguments, name="pagecache-flush", daemon=True)
            self._thread.start()

    def keep(self) -> None:
        """See to it that what is dirty is written even if nobody holds cache and files any more.

        Context: any thread, the collector's too: it has ended weak references before, so that a thread that has one
        does not know the flusher any more.
        """
        with self._lock:
            if self._is_stopping or sys.is_finalizing():  # then no thread can be started any more
                return
            held.add(self)
            if self._reference() is None:
                self._start()
        self.segment.wake_flusher()

    def drop_if_done(self, inode: Any) -> bool:
        """Let go of an object that nobody can write to any more and that is clean. Returns whether that is so."""
        with self._lock:
            if inode.nr_writers or is_dirty(inode) or is_being_written(inode):
                return False
            self._inodes.pop(id(inode), None)
        return True

    def inodes(self) -> list[Any]:
        """Return the objects that can be written, or are dirty."""
        with self._lock:
            return list(self._inodes.values())

    def dirty_inodes(self) -> list[Any]:
        """Return the objects that have dirty pages now."""
        return [inode for inode in self.inodes() if is_dirty(inode)]

    # -- writing -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what has to be written now: old pages, and more than those while too much is dirty."""
        with self._at_work:
            self._flush()

    def _flush(self) -> None:
        progress = True
        while progress and not self._is_stopping:
            progress = False
            for inode in self.dirty_inodes():
                nr_pages = self._pages_due(inode)
                if nr_pages and self.write_some(inode, nr_pages):
                    progress = True
            progress = progress and self.segment.nr_dirty_charged > self.segment.dirty_limits[1]
        for inode in [inode for inode in self.inodes() if not inode.nr_open]:
            inode.close_retired()
        with self._lock:
            if not self.dirty_inodes():
                held.discard(self)

    def _pages_due(self, inode: Any) -> int:
        """Return how many pages of an object to write now: a chunk while there is too much, all that is too old."""
        if time.monotonic() < inode.retry_at:
            return 0
        if self.segment.nr_dirty_charged > self.segment.dirty_limits[1] or self._memory_is_short():
            return CHUNK_PAGES
        is_old = time.monotonic_ns() - _core.dirtied_when_ns(inode.mapping) >= self.expire_s * 1e9
        return LAST_PAGE if is_old else 0

    def _memory_is_short(self) -> bool:
        counters = self.segment.counters()
        return counters["nr_waiting_for_memory"] > 0

    def write_some(self, inode: Any, nr_pages: int = CHUNK_PAGES) -> int:
        """Write so many of an object's dirty pages, going on where the last chunk ended. Returns the pages written."""
        wbc = WritebackControl(nr_to_write=nr_pages, range_cyclic=nr_pages < LAST_PAGE)
        started = time.monotonic()
        do_writepages(inode.mapping, wbc)
        self._note_speed(wbc.nr_written, time.monotonic() - started)
        if wbc.error is None:
            inode.nr_failures, inode.retry_at, inode.last_error = 0, 0.0, None
        else:
            inode.last_error = wbc.error
            inode.retry_at = time.monotonic() + min(RETRY_MIN_S * 2**inode.nr_failures, RETRY_MAX_S)
            inode.nr_failures += 1
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
            if time.monotonic() >= inode.retry_at and self.write_some(inode):
                return None
            error = error or inode.last_error
        if error is None or self.segment.counters()["nr_writeback"]:
            self.segment.wait_for_memory(WAIT_SLICE_S)
            return None
        return error

    # -- life ----------------------------------------------------------------------------------------------------------

    def sync_all(self) -> OSError | None:
        """Write back and make durable, object by object. Returns the first error. Context: waits for the stores."""
        first = None
        for inode in self.inodes():
            error = inode.sync_pages(0, LAST_PAGE, durable=True)
            first = first or error
        return first

    def at_rest(self) -> threading.Lock:
        """Return a lock: while it is held, the thread writes nothing."""
        return self._at_work

    def __del__(self) -> None:
        if self.segment.dead:
            return
        self.segment.wake_flusher()  # the thread sees that nobody is left
        for inode in self.dirty_inodes() if not self._is_stopping else ():
            nbytes = sum(self.segment.counters()[name] for name in ("nr_dirty", "nr_writeback")) * 4096
            warnings.warn(
                f"a cache was dropped, not closed, with up to {nbytes} bytes that could not be written to {inode.name}",
                ResourceWarning,
                stacklevel=2,
            )

    def stop(self) -> None:
        """End the thread; it is not waited for, as it may be in a store that hangs."""
        self._is_stopping = True
        held.discard(self)
        self.segment.wake_flusher()


def is_dirty(inode: Any) -> bool:
    """Whether an object has dirty pages."""
    return _core.has_mark(inode.mapping, MARK_DIRTY)


def is_being_written(inode: Any) -> bool:
    """Whether somebody may be using an object's store to write to it now."""
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
