"""What reading and writing one object needs to know: its store's hints and speed, a queue, what is not durable."""

import logging
import weakref
from collections.abc import Callable
from typing import Protocol, TypeAlias

from pagecache._core import AddressSpace, Mutex, own_write_word
from pagecache.requests.filling import Filling
from pagecache.requests.locality import Locality
from pagecache.requests.speed import PROBE_PAGES, is_far, request_bytes, speed_of
from pagecache.requests.workers import RequestQueue
from pagecache.stores.abandoned import current_call
from pagecache.stores.base import BackingStore, StoreHints
from pagecache.units import PAGE_SHIFT
from pagecache.weak_members import WeakMembers

OWN_WRITES_MASK = 0xFFFF
WHOLE_SHARE = 2  # no larger part of the cache is read by one miss
HOLE_BYTES = 64 * 1024
HOLE_BYTES_MAX = 1024 * 1024
UNSYNCED_MAX = 4096  # runs of pages that are remembered one by one
logger = logging.getLogger("pagecache")


def holds_beside_own_writes(mapping: "BackedMapping", is_same: Callable[[], bool]) -> bool:
    """Whether the store's object compares as the cached one; while the cache itself writes to it, it does."""
    while True:
        word = own_write_word(mapping)
        if word & OWN_WRITES_MASK or is_same():
            return True
        if own_write_word(mapping) == word:
            return False


def _never() -> bool:
    return False


class BackgroundWriter(Protocol):
    """What writers need to know of the flusher of their cache."""

    pages_per_s: float

    def pause(self, seconds: float) -> None:
        """Let a writer sleep until less is dirty, at most so long."""
        ...

    def make_room(self) -> OSError | None:
        """Have something written; return the error that keeps everything from it."""
        ...


class BackgroundRead(Protocol):
    """What is brought in without a reader that waits: a `Prefetch`."""

    def wait_done(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most so long (seconds). Return whether it has ended."""
        ...


class Backing:
    """What stands between one object's pages and its store.

    flusher: the cache's, or None once that is gone. keeps_failed: whether a folio that could not be written stays dirty.
    origin: where the object comes from, if the store says so: objects of one origin share what is measured.
    """

    def __init__(
        self,
        hints: StoreHints,
        request_queue: RequestQueue,
        flusher: BackgroundWriter | None = None,
        keeps_failed: bool = True,
        origin: str | None = None,
    ):
        self.hints = hints
        self.request_queue = request_queue
        self.speed = speed_of(origin)
        self.prefetches: WeakMembers[BackgroundRead] = WeakMembers()  # those that are not done
        self.unattended: WeakMembers[Filling] = WeakMembers()  # requests for which no reader of theirs waits
        self.is_crowded = False  # whether the budget, not the store, limits windows now
        self.reads_in_order = False  # whether the store can read the object from its beginning only
        self.locality = Locality()
        self.keeps_failed = keeps_failed
        self.replicate = "all"  # what becomes of pages that other processes hold as well
        self._nr_failures = 0  # requests to write that failed
        self.sync_failed = False  # whether what is in `unsynced` may be lost below
        self.nr_doubts = 0  # how often that began or ended
        self.last_error: OSError | None = None  # of the last request that wrote, None if that went well
        self.nr_retries = 0  # of the flusher, that failed one after the other
        self.retry_at = 0.0  # when the flusher tries again (monotonic seconds)
        self._flusher = weakref.ref(flusher) if flusher is not None else None
        self.look_closer: Callable[[], bool] = _never  # whether an object that seems another is the cached one after all
        self.has_lost_version = False  # the store could not say which one the cache's own change has made
        self._fitted = -1  # which fit of `speed` the next two follow
        self._request_pages = 1
        self._is_far = False
        self._lock = Mutex()
        self._unsynced: list[tuple[int, int]] = []

    @property
    def flusher(self) -> BackgroundWriter | None:
        """The flusher of the cache, if there is one."""
        return self._flusher() if self._flusher is not None else None

    # -- reading -------------------------------------------------------------------------------------------------------

    def request_bytes(self) -> int:
        """Return how much one request should carry (bytes)."""
        return request_bytes(self.hints, self.speed)

    def request_pages(self, nr_pages: int) -> int:
        """Return how many pages of a run one request should carry: a far store's connections share a run."""
        if self.speed.nr_fits != self._fitted:
            self._fitted = self.speed.nr_fits
            self._request_pages = max(1, self.request_bytes() >> PAGE_SHIFT)
            self._is_far = is_far(self.hints, self.speed)
        if self.reads_in_order:
            return max(1, nr_pages)
        if not self._is_far:
            return self._request_pages
        return self._shared_out(nr_pages, self.hints.preferred_request >> PAGE_SHIFT, self._request_pages)

    def _shared_out(self, nr_pages: int, at_least: int, at_most: int) -> int:
        """Return how many pages one request should carry of so many that are wanted as a whole: the connections share
        them, but no request carries less than waiting for it costs."""
        nr_requests = self.hints.readahead_requests or self.hints.parallel_requests
        worthwhile = max(int(self.speed.free_bytes) >> PAGE_SHIFT, at_least, 1)
        part = -(-nr_pages // max(1, min(nr_requests, nr_pages // worthwhile)))
        return max(1, min(part, at_most))

    def last_of_request(self, index: int, last: int) -> int:
        """Return the last page that a request from page `index` to page `last` may reach."""
        boundary = self.hints.request_boundary >> PAGE_SHIFT
        return min(last, (index // boundary + 1) * boundary - 1) if boundary else last

    def order_of_request(self, order: int) -> int:
        """Return the largest order of folios, up to a given one, that do not cross what no request crosses."""
        boundary = self.hints.request_boundary >> PAGE_SHIFT
        return min(order, (boundary & -boundary).bit_length() - 1) if boundary else order

    def read_in_order(self) -> None:
        """Ask the store for one range after the other from now on, and for none in parts, as it has to read the object
        from its beginning."""
        self.reads_in_order = True
        self.request_queue.narrow(1)

    def reads_whole(self, mapping: "BackedMapping") -> bool:
        """Whether the object is one that its first miss brings whole."""
        most = mapping.segment.nr_frames // WHOLE_SHARE << PAGE_SHIFT
        return 0 < mapping.size <= (most if self.reads_in_order else min(self.hints.whole_up_to, most))

    def max_request(self, mapping: "BackedMapping") -> int:
        """Return how much one request may carry (bytes)."""
        return mapping.size if self.reads_whole(mapping) else self.hints.max_request

    def is_far(self) -> bool:
        """Whether waiting for the store costs more than copying its bytes, so that more than what is wanted may be read."""
        return not self.reads_in_order and is_far(self.hints, self.speed)

    def block_request_pages(self, mapping: "BackedMapping", nr_pages: int) -> int:
        """As `request_pages`, of a block that was chosen by what it costs: so a request may be as large as the store
        takes, and is never too small to measure bandwidth by. An object that is read whole is read by one."""
        if self.reads_in_order or self.reads_whole(mapping):
            return nr_pages
        return self._shared_out(nr_pages, PROBE_PAGES, self.hints.max_request >> PAGE_SHIFT)

    def hole_pages(self) -> int:
        """Return up to how many pages that are not wanted are read through, as another request would cost more."""
        free = int(self.speed.free_bytes) if self.is_far() else 0
        return max(HOLE_BYTES, min(free, HOLE_BYTES_MAX)) >> PAGE_SHIFT

    def end_overdue(self) -> None:
        """Give up the requests that seem to hang, of those that are unattended: a thread waits for one of their folios, or
        for a place. Raises Abandoned if no thread waits for the thread's own call. Context: any thread."""
        call = current_call()
        if call is not None:
            call.check()
        for filling in self.unattended:
            if filling.is_overdue:
                self.unattended.discard(filling)
                logger.debug("a request for %s seems to hang: it is given up, and a reader makes it again", filling.name)
                filling.take_over()

    # -- versions ------------------------------------------------------------------------------------------------------

    def is_current(self, mapping: "BackedMapping", store: BackingStore | None = None) -> bool:
        """Whether the store's object is the one that is cached, as far as is known; while the cache itself writes to
        it, it is. store: another store of the same key."""
        store = store if store is not None else mapping.host
        fd = getattr(store, "fd", -1) if store is not mapping.host else mapping.fd
        if isinstance(fd, int) and fd >= 0:
            return mapping.stamp_unchanged(fd)
        if mapping.validator is None or store is None:
            return True

        def is_same() -> bool:
            with self._lock.held():
                validator = store.validator()
                if self.has_lost_version:
                    mapping.validator, self.has_lost_version = validator, False
                return bool(validator == mapping.validator)

        return holds_beside_own_writes(mapping, is_same)

    def take_version(self, mapping: "BackedMapping") -> None:
        """Take the version of a Python store's object, which the cache has just changed, for that of the cached bytes;
        if the store cannot say, what it says when it is asked the next time."""
        if mapping.fd >= 0 or mapping.host is None or mapping.validator is None:
            return
        with self._lock.held():  # asked and set in one, so that the latest answer stays
            try:
                mapping.validator, self.has_lost_version = mapping.host.validator(), False
            except Exception:  # of a store, which may raise anything: what was written is in the object nevertheless
                self.has_lost_version = True

    # -- durability ----------------------------------------------------------------------------------------------------

    def note_result(self, error: OSError | None) -> None:
        """Note how a request that wrote ended, from any thread: a store that takes bytes again is healed."""
        self.last_error = error
        if error is None:
            self.nr_retries, self.retry_at = 0, 0.0

    def note_written(self, first: int, last: int) -> None:
        """Note that pages first..last went to the store, where they may not be durable yet. Context: any thread."""
        with self._lock.held():
            self._unsynced.append((first, last))
            if len(self._unsynced) > UNSYNCED_MAX:
                self._unsynced = [(min(run[0] for run in self._unsynced), max(run[1] for run in self._unsynced))]

    def note_resized(self, size: int) -> None:
        """Note that the store was truncated, extended or punched there, perhaps not durably yet. Context: any thread."""
        self.note_written(size >> PAGE_SHIFT, (size >> PAGE_SHIFT) - 1)

    @property
    def has_unsynced(self) -> bool:
        """Whether the store was changed since it was last asked to make all durable, or that failed."""
        return bool(self._unsynced) or self.sync_failed

    @property
    def nr_failures(self) -> int:
        """How many requests to write failed, of those for whose pages no thread waits any more. Context: any thread."""
        with self._lock.held():
            return self._nr_failures

    def end_failed(self, end: Callable[[], None]) -> None:
        """Count a request to write that failed, and have `end` let those go on that wait for its pages: one that counts
        sees neither or both. Context: any thread."""
        with self._lock.held():
            self._nr_failures += 1
            end()

    def take_over(self, old: "Backing") -> None:
        """Remember what an earlier backing of the object left undurable."""
        self.has_lost_version = old.has_lost_version
        self._unsynced, self.sync_failed, self._nr_failures = old.take_unsynced(), old.sync_failed, old.nr_failures

    def take_unsynced(self) -> list[tuple[int, int]]:
        """Return the runs of pages that were written since the last sync, and forget them."""
        with self._lock.held():
            runs, self._unsynced = self._unsynced, []
        return runs

    def put_back_unsynced(self, runs: list[tuple[int, int]]) -> None:
        """Note again what a sync that failed did not make durable."""
        with self._lock.held():
            self._unsynced = runs + self._unsynced
            self.sync_failed = True
            self.nr_doubts += 1


BackedMapping: TypeAlias = "AddressSpace[Backing, BackingStore | None]"
"""A mapping as all layers above the engine have it: with a backing, and with a store unless that was given up. Only type
checkers know it as a generic class."""
