"""The memory of a cache: a segment for the largest budget that it may have, the budget now and what follows from it, and
what becomes of segments in a child of fork().

`PageCache("25%", max_size="8GiB")` is a quarter of what its process may use at any time. When tasks wait for memory it
becomes smaller, by an eighth at each look, down to a quarter of that; when they no longer do it grows again. Between the
two marks of pressure it stays as it is, and changes of the limit by less than a sixteenth are passed over: memory that
comes and goes costs more than it gives.
"""

import errno
import logging
import resource
import weakref
from typing import NamedTuple

from pagecache import _core
from pagecache._core import CacheFullError, EventCount, Mutex, Segment
from pagecache.requests import fill
from pagecache.shares import Shares
from pagecache.stores.worker_pool import start_thread
from pagecache.units import (
    MAX_BUDGET_BYTES,
    PAGE_SIZE,
    budget_pages,
    format_size,
    memory_limit,
    memory_pressure,
    parse_size,
    part_of_memory,
)

LOOK_S = 5.0  # how often a cache that follows looks
PRESSURE_HIGH = 10.0  # percent of the last ten seconds in which some task waited for memory: smaller
PRESSURE_LOW = 1.0  # as large as it may be again
STEP = 1 / 8
SQUEEZED = 1 / 4  # of the share: pressure alone takes no more
IGNORED = 1 / 16  # of the size

logger = logging.getLogger("pagecache")


def make_segment(size: int | str, policy: str, max_size: int | str | None = None) -> Segment:
    """Return a segment for a budget. size, max_size: as for `PageCache`.

    Raises ValueError for a budget that is too small or too large, or larger than max_size, and OSError (ENOMEM) where the
    process may not have as many addresses. A budget of more memory than there is is warned of in the log: pages that are
    touched would be swapped.
    """
    nbytes = _checked_size(size)
    most = nbytes if max_size is None else _checked_size(max_size)
    if part_of_memory(size) is not None:
        nbytes = min(nbytes, most)
    if most < nbytes:
        raise ValueError(
            f"a budget of {format_size(nbytes)} is more than max_size, {format_size(most)}: give a larger max_size"
        )
    if nbytes > memory_limit():
        logger.warning(
            "a cache of %s was made where this process may use %s of memory: when it fills, the system swaps or ends it",
            format_size(nbytes), format_size(memory_limit()),
        )  # fmt: skip
    try:
        segment = Segment(nbytes // PAGE_SIZE, max_frames=most // PAGE_SIZE, policy=policy)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        remedy = "give less" if limit == resource.RLIM_INFINITY else f"give less, or raise RLIMIT_AS ({format_size(limit)})"
        reason = f"a budget of {format_size(most)} needs more addresses than there are: {remedy}"
        raise OSError(error.errno, reason) from error
    return segment


def _checked_size(size: int | str) -> int:
    """Return a size in bytes that a cache may have. Raises ValueError."""
    nbytes = parse_size(size)
    if nbytes < PAGE_SIZE:
        raise ValueError(f"a budget of {nbytes} bytes holds no page; give {PAGE_SIZE} bytes or more")
    if nbytes > MAX_BUDGET_BYTES:
        most = format_size(MAX_BUDGET_BYTES)
        raise ValueError(f"a budget of {format_size(nbytes)} is too large: one cache has {most} at most")
    return nbytes


class Reading(NamedTuple):
    """limit_bytes: what the process may use. pressure: percent of the last ten seconds in which some task waited for
    memory, None where the system does not say."""

    limit_bytes: int
    pressure: float | None


class Follower:
    """How large a cache is to be that has a share of the memory which its process may use.

    share: 0 to 1. max_bytes: the most.
    """

    def __init__(self, share: float, max_bytes: int):
        self._share, self._max_bytes = share, max_bytes
        self._allowed = 1.0  # what pressure leaves of the share

    def size_for(self, reading: Reading, size: int) -> int:
        """Return what the size (bytes) is to become, which may be what it is."""
        before = self._allowed
        if reading.pressure is not None and reading.pressure >= PRESSURE_HIGH:
            self._allowed = max(SQUEEZED, self._allowed * (1 - STEP))
        elif reading.pressure is None or reading.pressure <= PRESSURE_LOW:
            self._allowed = min(1.0, self._allowed + STEP)
        wanted = min(reading.limit_bytes * self._share * self._allowed, self._max_bytes)
        wanted = max(int(wanted) // PAGE_SIZE * PAGE_SIZE, PAGE_SIZE)
        return size if self._allowed == before and abs(wanted - size) < size * IGNORED else wanted


class Budget:
    """How large a cache is, and what follows from that: how much may be dirty, and the shares of tenants.

    segment: its memory. dirty_limit, dirty_background: as for `PageCache`.
    """

    def __init__(self, segment: Segment, dirty_limit: int | str, dirty_background: int | str):
        self.shares = Shares(segment)
        self._segment = segment
        self._dirty = dirty_limit, dirty_background
        self._lock = Mutex()
        self._follower: Follower | None = None
        self._stopped = EventCount()
        self._fit()

    def follow(self, size: int | str) -> None:
        """Follow the memory that the process may use from now on if the size is a part of that, else no longer."""
        share = part_of_memory(size)
        is_new = self._follower is None
        self._follower = None if share is None else Follower(share, self._segment.max_frames * PAGE_SIZE)
        if is_new and share is not None:
            self._stopped = EventCount()
            start_thread("pagecache-follow", _follow, weakref.ref(self), self._stopped)
        elif share is None:
            self._stopped.advance()

    def look(self, reading: Reading) -> None:
        """Follow what was read, if this budget follows. What cannot be had now is tried again at the next look."""
        follower, size = self._follower, self._segment.nr_frames * PAGE_SIZE
        if follower is None or self._segment.dead:
            return
        wanted = follower.size_for(reading, size)
        if wanted == size:
            return
        try:
            self.resize(wanted)
        except CacheFullError as error:
            logger.info("the cache stays at %s: %s", format_size(size), error)

    def stop(self) -> None:
        """Follow no longer; the thread is not waited for."""
        self._follower = None
        self._stopped.advance()

    def __del__(self) -> None:
        self._stopped.advance()

    def _fit(self) -> None:
        """Fit what is a part of the budget to it."""
        nr_frames = self._segment.nr_frames
        limits = (min(budget_pages(part, nr_frames), nr_frames) for part in self._dirty)
        self._segment.set_dirty_limits(*limits)
        self._segment.start_kswapd()
        self.shares.fit()

    def resize(self, size: int | str) -> None:
        """As `PageCache.resize`."""
        pages = _checked_size(size) // PAGE_SIZE
        segment = self._segment
        if pages > segment.max_frames:
            raise ValueError(
                f"this cache can have {format_size(segment.max_frames * PAGE_SIZE)} at most, not "
                f"{format_size(pages * PAGE_SIZE)}: make it with a larger max_size"
            )
        if segment.pins_frames and pages != segment.nr_frames:
            raise ValueError("the frames are pinned in memory, which stays: make the cache without register_frames")
        with self._lock.held():
            before = segment.nr_frames
            try:
                self._set(pages)
            except BaseException:
                _core.set_budget(segment, before)
                self._fit()
                raise

    def _set(self, pages: int) -> None:
        segment = self._segment
        what = f"the cache cannot shrink to {format_size(pages * PAGE_SIZE)}"
        if segment.counters()["nr_pinned"] > pages:
            raise fill.cache_full(segment, what, "release views, or resize to more")
        _core.set_budget(segment, pages)
        self._fit()
        while not self._is_filled():
            if not self._fill(what):
                fill.wait_for_frames(segment, lambda: self._is_filled() or self._fill(what) or None, what=what)

    def _is_filled(self) -> bool:
        """Whether no more frames are in use than may be."""
        present, wanted = _core.balloon_frames(self._segment)
        return present >= wanted

    def _fill(self, what: str) -> bool:
        """Take some frames out of use. Returns whether any could be had. Raises OSError."""
        taken = _core.fill_balloon(self._segment)
        if taken < 0:
            raise OSError(errno.ENOMEM, f"{what}: the system does not take memory back that is locked (mlockall)")
        return taken > 0


def _follow(reference: "weakref.ref[Budget]", stopped: EventCount) -> None:
    """The thread of a budget that follows: holds it only while it works."""
    while not stopped.wait(0, LOOK_S):
        budget = reference()
        if budget is None:
            return
        try:
            budget.look(Reading(memory_limit(), memory_pressure()))
        except Exception:  # of a store that is written to
            logger.exception("the cache could not follow the limit of memory; it is tried again")
        del budget
