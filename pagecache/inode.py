"""One object of one store, however many files are open on it: its mapping, its store, its version."""

import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any

from pagecache import fill, truncate, workers
from pagecache._core import AddressSpace, Segment
from pagecache.readahead import PAGE_SHIFT
from pagecache.stores.base import hints_of
from pagecache.submit import Line
from pagecache.window import share_pages, wanted_pages, window_pages
from pagecache.workers import Channel

LAST_PAGE = (1 << 52) - 1
SIZE_MAX = (1 << 63) - 1
STORE_PATIENCE_S = 0.5  # how long closing waits for the engine's reads of a descriptor


def is_writable(store: Any) -> bool:
    """Whether a store can be changed."""
    return store is not None and hasattr(store, "writev") and bool(getattr(store, "writable", True))


def size_of(store: Any) -> int:
    """Return the size of a store's object (bytes). Raises TypeError and ValueError for what is no size."""
    try:
        size = operator.index(store.size())
    except TypeError as error:
        raise TypeError(f"size() of store {store.key!r} returned no number of bytes: {error}") from None
    if not 0 <= size <= SIZE_MAX:
        raise ValueError(f"size() of store {store.key!r} returned {size}: it must be in 0..{SIZE_MAX}")
    return size


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls a method as long as its object lives, and does not keep it alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    return call


class Streams:
    """How many open files of a cache are read ahead of: they share the budget of windows."""

    def __init__(self) -> None:
        self.nr = 0


class Inode:
    """The cached object that files of one key share.

    segment: where its pages live. store: serves it; closed with the last file, while the pages stay.
    Context: whoever is the first to open an object, or opens it once more, holds the cache's lock.
    """

    def __init__(self, segment: Segment, store: Any, streams: Streams):
        self.streams = streams
        self.name = str(getattr(store, "name", store.key))
        self.mapping = AddressSpace(segment, self.name)
        self.mapping.key = store.key
        self.nr_open = 0
        self._lock = threading.RLock()  # a collected file may release the object anywhere
        self._retired: list[Any] = []
        self.store: Any = None
        self.known_version: Any = None  # what the last store knew of the object when it was given up
        self._use(store)
        self._take_version()
        self.mapping.size = size_of(store)

    def _use(self, store: Any) -> None:
        """Serve the object by this store from now on: it has the version that is cached, if anything is."""
        hints = hints_of(store)
        self.hints = hints
        channel = Channel(workers.shared_pool, hints.parallel_requests)
        channel.on_idle = _weakly(self.close_retired)
        self.mapping.extra = Line(hints, channel)
        self.io_pages = max(1, hints.max_request >> PAGE_SHIFT)
        if self.store is not None:
            self._retired.append(self.store)
        if getattr(store, "is_immutable", False) and store.known_version is None:
            store.known_version = self.known_version
        self.store = store
        self.mapping.host = store
        self.mapping.fd = -1
        fd = getattr(store, "fd", -1)
        if isinstance(fd, int) and fd >= 0:
            self.mapping.direct = bool(getattr(store, "direct", False))
            self.mapping.fd = fd

    @property
    def ra_pages(self) -> int:
        """The largest readahead window of one open file now (pages)."""
        line, nr_frames = self.mapping.extra, self.mapping.segment.nr_frames
        line.is_crowded = share_pages(nr_frames, self.streams.nr) < wanted_pages(self.hints, line.speed)
        return window_pages(self.hints, line.speed, nr_frames, self.streams.nr)

    @property
    def writable(self) -> bool:
        """Whether the store can be changed."""
        return is_writable(self.store)

    # -- versions ------------------------------------------------------------------------------------------------------

    def is_version(self, store: Any) -> bool:
        """Whether another store of the same key has the bytes that are cached here."""
        if getattr(store, "is_immutable", False):  # its user promises that it never changes
            known = self.known_version if self.store is None else getattr(self.store, "known_version", None)
            return known is None or known.validator in (None, self.mapping.validator)
        return self.mapping.validator is not None and store.validator() == self.mapping.validator

    def raise_if_changed(self, pos: int) -> None:
        """Raise OSError (ESTALE) if the object is not the one whose bytes are cached."""
        if self.store is None:
            return
        if self.mapping.fd >= 0:
            changed = not self.mapping.stamp_unchanged()
        else:
            changed = self.mapping.validator is not None and self.store.validator() != self.mapping.validator
        if changed:
            raise fill.stale_error(self.mapping, pos)

    def invalidate(self, offset: int = 0, length: int = 0) -> None:
        """Drop pages of a byte range; with no range take size and version anew. Raises OSError (EBUSY)."""
        mapping = self.mapping
        with mapping.exclusive():
            last = (offset + length - 1) >> PAGE_SHIFT if length else LAST_PAGE
            truncate.invalidate_inode_pages2_range(mapping, offset >> PAGE_SHIFT, last)
            if offset == 0 and length == 0:
                self._take_version()
                mapping.size = size_of(self.store)

    def _take_version(self) -> None:
        """Take the store's present version for that of the cached bytes. Size and bytes are read afterwards."""
        self.mapping.validator = self.store.validator()
        if self.mapping.fd >= 0:
            self.mapping.take_stamp()

    def set_size(self, size: int) -> None:
        """Cut or extend the object, cache and store. Raises OSError; then the size is what the store says."""
        with self.mapping.exclusive():
            self._set_size_locked(size)

    def _set_size_locked(self, size: int) -> None:
        mapping = self.mapping
        try:
            if size < mapping.size:
                truncate.truncate_setsize(mapping, size)
            self.store.truncate(size)
            if size > mapping.size:
                truncate.truncate_setsize(mapping, size)
        except BaseException:
            truncate.truncate_setsize(mapping, size_of(self.store))
            raise
        finally:
            self._take_version()

    # -- life ----------------------------------------------------------------------------------------------------------

    def acquire(self, store: Any = None) -> None:
        """Count one more open file, which brings a store of its own, if it is not open on another one's.

        The store is put to use if there is none, or none that can be written; otherwise it is closed.
        """
        with self._lock:
            surplus = store if store is not self.store else None
            if surplus is not None and (self.store is None or (is_writable(store) and not self.writable)):
                self._use(store)
                surplus = None
            self.nr_open += 1
        if surplus is not None:
            surplus.close()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no read of the object is under way (seconds). Returns whether that is so."""
        line = self.mapping.extra
        for prefetch in tuple(line.prefetches):
            prefetch.wait_done(timeout_s)
        return not line.prefetches and line.channel.wait_idle(timeout_s) and self.mapping.wait_inflight(timeout_s)

    def release(self) -> None:
        """Count one open file less; the last one gives up the store."""
        if self.mapping.segment.dead:
            return  # in a forked child: the lock may be held by a thread that is not there
        with self._lock:
            self.nr_open -= 1
            idle = self.nr_open == 0
            if idle and self.store is not None:
                self._retired.append(self.store)
                self.known_version = getattr(self.store, "known_version", None)
                self.store = None
        self.close_retired()

    def _nobody_reads(self) -> bool:
        """Whether no background read is in the store, or ends within a moment."""
        return not self.mapping.extra.channel.nr_running and self.mapping.wait_inflight(STORE_PATIENCE_S)

    def close_retired(self) -> None:
        """Close stores that are not used any more, unless a read may still be in them: then it is tried again later."""
        if not self._retired:
            return
        with self.mapping.exclusive(wait=False) as held, self._lock:
            if not held or (self.store is None and not self._nobody_reads()):
                return
            if self.store is None:
                self.mapping.fd = -1
                self.mapping.host = None
            retired = [store for store in self._retired if store is not self.store]
            self._retired = []
        for store in retired:
            store.close()
