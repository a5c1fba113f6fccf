"""Prometheus: `register(cache)`, and the numbers of a cache are scraped as `pagecache_...`.

    from pagecache.adapters import prometheus

    prometheus.register({"images": images, "tables": tables})       # label cache="images"
    prometheus_client.start_http_server(8000)

Numbers are read when they are scraped; reads and writes pay nothing for it.
"""

# mypy: disable-error-code=import-not-found

from collections.abc import Iterator
from typing import Any

from pagecache.adapters.metrics import METRICS, Caches, WatchedCaches

PREFIX = "pagecache_"


class PageCacheCollector:
    """A collector for a registry of prometheus_client.

    caches: as for `register`. The label `cache` is the name of a cache. Names: `pagecache_hits_total`,
    `pagecache_misses_total`, `pagecache_fill_bytes_total`, `pagecache_resident_bytes` and so on.
    Context: scraped from any thread.
    """

    def __init__(self, caches: Caches = None):
        self._watched = WatchedCaches(caches)

    def describe(self) -> list[Any]:
        """Return the metrics without numbers, for the registry to find names that are taken."""
        return self._families()

    def collect(self) -> Iterator[Any]:
        """Iterate over the metrics with their present numbers."""
        families = self._families()
        for name, stats in self._watched.stats():
            for metric, family in zip(METRICS, families, strict=True):
                family.add_metric([name], metric.read(stats))
        yield from families

    def _families(self) -> list[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {True: CounterMetricFamily, False: GaugeMetricFamily}
        return [kinds[metric.is_counter](PREFIX + metric.name, metric.text, labels=["cache"]) for metric in METRICS]


def register(caches: Caches = None, registry: Any = None) -> PageCacheCollector:
    """Report caches to Prometheus.

    caches: a cache, several by name, or None for the process's default cache. registry: None: prometheus_client's own.
    Returns the collector, for `registry.unregister`. Raises ValueError when caches are registered there already.
    """
    from prometheus_client import REGISTRY

    collector: Any = PageCacheCollector(caches)
    (registry or REGISTRY).register(collector)
    return collector
