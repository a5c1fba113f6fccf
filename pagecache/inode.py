"""One object of one store, however many files are open on it: its mapping, its store, its version."""

import threading
from typing import Any

from pagecache import fill, truncate, workers
from pagecache._core import AddressSpace, Segment
from pagecache.readahead import PAGE_SHIFT
from pagecache.stores.base import hints_of
from pagecache.submit import Line
from pagecache.window import window_pages
from pagecache.workers import Channel

LAST_PAGE = (1 << 52) - 1


class Streams:
    """How many open files of a cache are read ahead of: they share the budget of windows."""

    def __init__(self) -> None:
        self.nr = 0


class Inode:
    """The cached object that files of one key share.

    segment: where its pages live. store: serves it; closed with the last file, while the pages stay.
    """

    def __init__(self, segment: Segment, store: Any, streams: Streams):
        self.streams = streams
        self.name = str(getattr(store, "name", store.key))
        self.mapping = AddressSpace(segment, self.name)
        self.mapping.key = store.key
        self.nr_open = 0
        self._lock = threading.Lock()
        self._retired: list[Any] = []
        self.store: Any = None
        self.use(store)
        self.mapping.size = store.size()

    def use(self, store: Any) -> None:
        """Serve the object by this store from now on."""
        hints = hints_of(store)
        self.hints = hints
        self.mapping.extra = Line(hints, Channel(workers.shared_pool, hints.parallel_requests))
        self.io_pages = max(1, hints.max_request >> PAGE_SHIFT)
        if self.store is not None:
            self._retired.append(self.store)
        self.store = store
        self.mapping.host = store
        self.mapping.fd = -1
        self.mapping.validator = store.validator()
        fd = getattr(store, "fd", -1)
        if isinstance(fd, int) and fd >= 0:
            self.mapping.direct = bool(getattr(store, "direct", False))
            self.mapping.fd = fd
            self.mapping.take_stamp()

    @property
    def ra_pages(self) -> int:
        """The largest readahead window of one open file now (pages)."""
        return window_pages(self.hints, self.mapping.extra.speed, self.mapping.segment.nr_frames, self.streams.nr)

    @property
    def writable(self) -> bool:
        """Whether the store can be changed."""
        return self.store is not None and hasattr(self.store, "writev") and getattr(self.store, "writable", True)

    # -- versions ----------------------------------------------------------------------------------------------------------

    def is_version(self, store: Any) -> bool:
        """Whether another store of the same key has the bytes that are cached here."""
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
        mapping.lock_exclusive()
        try:
            last = (offset + length - 1) >> PAGE_SHIFT if length else LAST_PAGE
            truncate.invalidate_inode_pages2_range(mapping, offset >> PAGE_SHIFT, last)
            if offset == 0 and length == 0:
                mapping.size = self.store.size()
                self._take_version()
        finally:
            mapping.unlock_exclusive()

    def _take_version(self) -> None:
        self.mapping.validator = self.store.validator()
        if self.mapping.fd >= 0:
            self.mapping.take_stamp()

    def set_size(self, size: int) -> None:
        """Cut or extend the object, cache and store. Raises OSError; then the size is what the store says."""
        mapping = self.mapping
        mapping.lock_exclusive()
        try:
            self._set_size_locked(size)
        finally:
            mapping.unlock_exclusive()

    def _set_size_locked(self, size: int) -> None:
        mapping = self.mapping
        try:
            if size < mapping.size:
                truncate.truncate_setsize(mapping, size)
            self.store.truncate(size)
            if size > mapping.size:
                truncate.truncate_setsize(mapping, size)
        except BaseException:
            truncate.truncate_setsize(mapping, self.store.size())
            raise
        finally:
            self._take_version()

    # -- life ----------------------------------------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Count one more open file."""
        with self._lock:
            self.nr_open += 1

    def release(self) -> None:
        """Count one open file less; the last one gives up the store."""
        with self._lock:
            self.nr_open -= 1
            idle = self.nr_open == 0
            if idle and self.store is not None:
                self._retired.append(self.store)
                self.store = None
        if not self.mapping.segment.dead:
            self.close_retired()

    def close_retired(self) -> None:
        """Close stores that are not used any more, unless a read may still be in them: then it is tried again later."""
        if not self._retired or not self.mapping.trylock_exclusive():
            return
        try:
            if self.store is None and (self.mapping.extra.channel.nr_running or not self.mapping.wait_inflight(0.5)):
                return
            if self.store is None:
                self.mapping.fd = -1
                self.mapping.host = None
            retired, self._retired = self._retired, []
        finally:
            self.mapping.unlock_exclusive()
        for store in retired:
            store.close()
