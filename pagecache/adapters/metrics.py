"""What metrics libraries learn of caches: names, meanings, and how each number is read.

Everything is read from `PageCache.stats` when the library asks: nothing is added to reads and writes.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pagecache._core import Mutex
from pagecache.cache import PageCache
from pagecache.default import default_cache
from pagecache.stats.numbers import Stats
from pagecache.units import PAGE_SIZE

Caches = PageCache | Mapping[str, PageCache] | None


class Metric(NamedTuple):
    """One number. name: without prefix and suffix. unit: as UCUM writes it. is_counter: whether it only grows."""

    name: str
    text: str
    unit: str
    is_counter: bool
    read: Callable[[Stats], float]


def _of(name: str, factor: int = 1) -> Callable[[Stats], float]:
    return lambda stats: getattr(stats, name) * factor


METRICS = (
    Metric("hits", "Reads served from the cache alone.", "{read}", True, _of("hits")),
    Metric("misses", "Reads that waited for a store, or started to read ahead.", "{read}", True, _of("misses")),
    Metric("asked_bytes", "Bytes that reads returned.", "By", True, _of("bytes_asked")),
    Metric("fill_requests", "Requests to stores for reading.", "{request}", True, _of("store_reads")),
    Metric("fill_bytes", "Bytes that stores brought.", "By", True, _of("store_read_bytes")),
    Metric("peer_hits", "Requests that other processes answered from their memory.", "{request}", True, _of("peer_hits")),
    Metric("peer_bytes", "Bytes of those.", "By", True, _of("peer_bytes")),
    Metric("peer_failures", "Requests that they did not answer.", "{request}", True, _of("peer_failures")),
    Metric("second_level_hits", "Requests that a shared cache below answered.", "{request}", True,
           _of("second_level_hits")),
    Metric("second_level_bytes", "Bytes of those.", "By", True, _of("second_level_bytes")),
    Metric("second_level_failures", "Requests that it failed to answer.", "{request}", True,
           _of("second_level_failures")),
    Metric("origin_requests", "Requests to where objects are.", "{request}", True, _of("origin_requests")),
    Metric("origin_bytes", "Bytes of those.", "By", True, _of("origin_bytes")),
    Metric("readahead_pages", "Pages brought in before they were asked for.", "{page}", True, _of("readahead_pages")),
    Metric("readahead_hits", "Of those, pages that were used.", "{page}", True, _of("readahead_hits")),
    Metric("readahead_wasted", "Of those, pages that left the cache unused.", "{page}", True, _of("readahead_wasted")),
    Metric("readahead_errors", "Requests that failed before they were needed.", "{request}", True,
           _of("readahead_errors")),
    Metric("major_faults", "Faults of maps that had to wait for a store.", "{fault}", True, _of("pgmajfault")),
    Metric("evicted_pages", "Pages evicted to make room.", "{page}", True, _of("evictions")),
    Metric("refaults", "Pages that were needed again after their eviction.", "{page}", True,
           _of("workingset_refault_file")),
    Metric("written_bytes", "Bytes written back to stores.", "By", True, _of("store_write_bytes")),
    Metric("writeback_errors", "Requests for writing that failed.", "{request}", True, _of("writeback_errors")),
    Metric("dirty_bytes", "Bytes that are not in their store yet.", "By", False, _of("nr_dirty", PAGE_SIZE)),
    Metric("pinned_bytes", "Bytes that views and maps hold.", "By", False, _of("nr_pinned", PAGE_SIZE)),
    Metric("resident_bytes", "Bytes of cached pages.", "By", False, _of("resident_bytes")),
    Metric("budget_bytes", "Bytes that the cache may hold.", "By", False, _of("budget_bytes")),
    Metric("overhead_bytes", "Bytes of descriptors and index.", "By", False, _of("overhead_bytes")),
    Metric("memory_held_bytes", "Bytes in use that are not cached: views, copies.", "By", False, _of("memory_held_bytes")),
    Metric("memory_free_bytes", "Bytes of frames that are free.", "By", False, _of("memory_free_bytes")),
    Metric("memory_balloon_bytes", "Bytes of frames that may not be used now.", "By", False, _of("memory_balloon_bytes")),
    Metric("memory_descriptors_bytes", "Bytes of descriptors of frames.", "By", False, _of("memory_descriptors_bytes")),
    Metric("memory_nodes_bytes", "Bytes of the index.", "By", False, _of("memory_nodes_bytes")),
    Metric("memory_shadows_bytes", "Of those, of what was evicted.", "By", False, _of("memory_shadows_bytes")),
    Metric("memory_records_bytes", "Bytes of records of objects.", "By", False, _of("memory_records_bytes")),
    Metric("memory_tables_bytes", "Bytes of what every cache has.", "By", False, _of("memory_tables_bytes")),
)  # fmt: skip


class WatchedCaches:
    """The caches that are reported, by name. They are not kept alive, and closed ones are passed over.

    caches: one cache, called "default"; several by name; None: the process's default cache as it is when it is asked for.
    Context: any thread; the table of names is never changed, but replaced.
    """

    def __init__(self, caches: Caches = None):
        self._references = _references_of(caches)
        self._lock = Mutex()

    def add(self, caches: Caches) -> None:
        """Report more caches. Those that are reported already are not reported twice.

        Raises ValueError for a name that counts for another cache, which is open.
        """
        more = _references_of(caches)
        with self._lock.held():
            for name, reference in more.items():
                known = self._references.get(name, reference)
                if known != reference and (known is default_cache or _is_open(known())):
                    raise ValueError(f"another cache is reported as {name!r}: give each a name, as in {{'images': cache}}")
            self._references = {**self._references, **more}

    def remove(self, caches: Caches) -> bool:
        """Report these caches no more. Returns whether there is none left."""
        gone = _references_of(caches)
        with self._lock.held():
            self._references = {name: known for name, known in self._references.items() if gone.get(name) != known}
            return not self._references

    def replace(self, caches: Caches) -> None:
        """Report these caches and no others."""
        self._references = _references_of(caches)

    def stats(self) -> Iterator[tuple[str, Stats]]:
        """Iterate over the names and present numbers of the caches that are open."""
        for name, reference in self._references.items():
            cache = reference()
            if cache is not None and _is_open(cache):
                yield name, cache.stats()


def _references_of(caches: Caches) -> dict[str, Callable[[], PageCache | None]]:
    if caches is None:
        return {"default": default_cache}
    named = caches if isinstance(caches, Mapping) else {"default": caches}
    return {str(name): weakref.ref(cache) for name, cache in named.items()}


def _is_open(cache: PageCache | None) -> bool:
    return cache is not None and not cache.closed and not cache.segment.dead
