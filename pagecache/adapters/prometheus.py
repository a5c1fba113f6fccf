"""Prometheus: `register(cache)`, and the numbers of a cache are scraped as `pagecache_...`.

    from pagecache.adapters import prometheus

    prometheus.register({"images": images, "tables": tables})       # label cache="images"
    prometheus_client.start_http_server(8000)

Numbers are read when they are scraped; reads and writes pay nothing for it.
"""

# mypy: disable-error-code=import-not-found

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pagecache._core import Mutex
from pagecache.adapters.metrics import METRICS, Caches, WatchedCaches
from pagecache.extras import needs

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PREFIX = "pagecache_"


class PageCacheCollector:
    """A collector for a registry of prometheus_client.

    caches: as for `register`. The label `cache` is the name of a cache. Names: `pagecache_hits_total`,
    `pagecache_misses_total`, `pagecache_fill_bytes_total`, `pagecache_resident_bytes` and so on.
    Context: scraped from any thread.
    """

    def __init__(self, caches: Caches = None):
        self.watched = WatchedCaches(caches)

    def describe(self) -> list[Any]:
        """Return the metrics without numbers, for the registry to find names that are taken."""
        return self._families()

    def collect(self) -> Iterator[Any]:
        """Iterate over the metrics with their present numbers."""
        families = self._families()
        for name, stats in self.watched.stats():
            for metric, family in zip(METRICS, families, strict=True):
                family.add_metric([name], metric.read(stats))
        yield from families

    def _families(self) -> list[Any]:
        with needs("metrics", __name__):
            from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {True: CounterMetricFamily, False: GaugeMetricFamily}
        return [kinds[metric.is_counter](PREFIX + metric.name, metric.text, labels=["cache"]) for metric in METRICS]


_collectors: "weakref.WeakKeyDictionary[CollectorRegistry, PageCacheCollector]" = weakref.WeakKeyDictionary()  # by registry
_lock = Mutex()


def register(caches: Caches = None, registry: "CollectorRegistry | None" = None) -> PageCacheCollector:
    """Report caches to Prometheus, beside those that are reported there already.

    caches: a cache, several by name, or None for the process's default cache. registry: None: prometheus_client's own.
    Returns the registry's collector; `registry.unregister` takes all caches back, `unregister` here some of them.
    Raises ValueError for a name that is another cache's, or when a collector of one's own reports caches there.
    """
    registry = _registry_or_default(registry)
    with _lock.held():
        collector = _collectors.get(registry)
        if collector is None:
            added: Any = PageCacheCollector(caches)
            registry.register(added)
            collector = _collectors[registry] = added
        elif _is_registered(collector, registry):
            collector.watched.add(caches)
        else:
            collector.watched.replace(caches)
        return collector


def unregister(caches: Caches = None, registry: "CollectorRegistry | None" = None) -> None:
    """Report caches to Prometheus no more, given as they were to `register`."""
    registry = _registry_or_default(registry)
    with _lock.held():
        collector: Any = _collectors.get(registry)
        if collector is None:
            return
        was_registered = _is_registered(collector, registry)
        if collector.watched.remove(caches) or not was_registered:
            registry.unregister(collector)
            del _collectors[registry]


def _registry_or_default(registry: "CollectorRegistry | None") -> "CollectorRegistry":
    if registry is not None:
        return registry
    with needs("metrics", __name__):
        from prometheus_client import REGISTRY
    return REGISTRY


def _is_registered(collector: Any, registry: "CollectorRegistry") -> bool:
    """Whether a registry has had a collector; it has it in any case then."""
    try:
        registry.register(collector)
    except ValueError:  # its names are taken: by itself
        return True
    return False
