"""Prometheus and OpenTelemetry, with the real libraries: what they learn is what `PageCache.stats` says."""

import subprocess
import sys

import pytest
from support import PAGE, Store, pages_of

import pagecache
from pagecache.adapters import opentelemetry as pagecache_opentelemetry
from pagecache.adapters import prometheus as pagecache_prometheus
from pagecache.adapters.metrics import METRICS, WatchedCaches


def use(cache, nr_pages=16):
    """Let a cache have numbers: misses, hits, evictions of nothing."""
    with cache.open(Store(pages_of(nr_pages * PAGE))) as file:
        for _ in range(3):
            file.pread(PAGE, 0)
        file.readall()
    cache.check()


class TestPrometheus:
    @pytest.fixture
    def registry(self):
        prometheus_client = pytest.importorskip("prometheus_client")
        return prometheus_client.CollectorRegistry()

    def test_every_number_is_that_of_the_cache(self, make_cache, registry):
        cache = make_cache("1MiB")
        pagecache_prometheus.register(cache, registry)
        use(cache)
        stats = cache.stats()
        for metric in METRICS:
            name = f"pagecache_{metric.name}" + ("_total" if metric.is_counter else "")
            assert registry.get_sample_value(name, {"cache": "default"}) == metric.read(stats), name
        assert registry.get_sample_value("pagecache_hits_total", {"cache": "default"}) == stats.hits > 0
        assert registry.get_sample_value("pagecache_fill_bytes_total", {"cache": "default"}) == 16 * PAGE
        assert registry.get_sample_value("pagecache_budget_bytes", {"cache": "default"}) == 1 << 20

    def test_text_format(self, make_cache, registry):
        from prometheus_client import generate_latest

        cache = make_cache("1MiB")
        pagecache_prometheus.register({"images": cache}, registry)
        text = generate_latest(registry).decode()
        assert "# TYPE pagecache_misses_total counter" in text
        assert "# TYPE pagecache_resident_bytes gauge" in text
        assert 'pagecache_misses_total{cache="images"} 0.0' in text

    def test_several_caches(self, make_cache, registry):
        caches = {"a": make_cache("1MiB"), "b": make_cache("2MiB")}
        pagecache_prometheus.register(caches, registry)
        use(caches["b"])
        assert registry.get_sample_value("pagecache_misses_total", {"cache": "a"}) == 0
        assert registry.get_sample_value("pagecache_misses_total", {"cache": "b"}) > 0

    def test_twice_is_once(self, make_cache, registry):
        cache = make_cache("1MiB")
        collector = pagecache_prometheus.register(cache, registry)
        assert pagecache_prometheus.register(cache, registry) is collector
        assert self.budgets(registry) == {"default": 1 << 20}

    @staticmethod
    def budgets(registry):
        """Return {cache: budget} of one scrape."""
        families = [family for family in registry.collect() if family.name == "pagecache_budget_bytes"]
        return {sample.labels["cache"]: sample.value for family in families for sample in family.samples}

    def test_caches_of_several_parts_of_a_program(self, make_cache, registry):
        images, tables = make_cache("1MiB"), make_cache("2MiB")
        collector = pagecache_prometheus.register({"images": images}, registry)
        pagecache_prometheus.register({"tables": tables}, registry)
        pagecache_prometheus.register(None, registry)
        with pagecache.using(make_cache("3MiB")):
            assert self.budgets(registry) == {"images": 1 << 20, "tables": 2 << 20, "default": 3 << 20}
        for taken in (images, None):
            with pytest.raises(ValueError, match="'tables'"):
                pagecache_prometheus.register({"tables": taken or images}, registry)
        pagecache_prometheus.unregister({"images": images}, registry)
        pagecache_prometheus.unregister({"tables": images}, registry)  # is another one
        pagecache_prometheus.unregister(None, registry)
        assert self.budgets(registry) == {"tables": 2 << 20}
        registry.unregister(collector)
        assert self.budgets(registry) == {}

    def test_taking_back_and_again(self, make_cache, registry):
        cache, other = make_cache("1MiB"), make_cache("2MiB")
        collector = pagecache_prometheus.register({"one": cache}, registry)
        registry.unregister(collector)
        pagecache_prometheus.register({"other": other}, registry)
        assert self.budgets(registry) == {"other": 2 << 20}
        pagecache_prometheus.unregister({"other": other}, registry)
        pagecache_prometheus.unregister({"other": other}, registry)
        assert self.budgets(registry) == {}
        collector = pagecache_prometheus.register(cache, registry)
        registry.unregister(collector)
        pagecache_prometheus.unregister({"other": other}, registry)
        assert self.budgets(registry) == {}

    def test_a_name_of_a_closed_cache_is_free(self, make_cache, registry):
        closed = pagecache.PageCache("1MiB")
        pagecache_prometheus.register(closed, registry)
        with pytest.raises(ValueError, match="'default'"):
            pagecache_prometheus.register(make_cache("2MiB"), registry)
        closed.close()
        pagecache_prometheus.register(make_cache("2MiB"), registry)
        assert self.budgets(registry) == {"default": 2 << 20}

    def test_names_that_others_have_are_refused(self, make_cache, registry):
        registry.register(pagecache_prometheus.PageCacheCollector(make_cache("1MiB")))
        with pytest.raises(ValueError, match="Duplicated"):
            pagecache_prometheus.register(make_cache("1MiB"), registry)

    def test_a_closed_cache_is_passed_over(self, registry):
        cache = pagecache.PageCache("1MiB")
        pagecache_prometheus.register(cache, registry)
        cache.close()
        assert registry.get_sample_value("pagecache_hits_total", {"cache": "default"}) is None

    def test_the_default_cache_is_the_one_of_the_moment(self, make_cache, registry):
        pagecache_prometheus.register(None, registry)
        for size in (1 << 20, 2 << 20):
            with pagecache.using(make_cache(size)):
                assert registry.get_sample_value("pagecache_budget_bytes", {"cache": "default"}) == size


class TestOpenTelemetry:
    @pytest.fixture
    def reader(self):
        export = pytest.importorskip("opentelemetry.sdk.metrics.export")
        return export.InMemoryMetricReader()

    @pytest.fixture
    def meter(self, reader):
        from opentelemetry.sdk.metrics import MeterProvider

        provider = MeterProvider(metric_readers=[reader])
        yield provider.get_meter("test")
        provider.shutdown()

    def observed(self, reader):
        """Return {(instrument, cache): (value, whether it is monotonic)} of one collection."""
        found = {}
        for resource in reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        found[metric.name, point.attributes["cache"]] = (point.value, metric.data.is_monotonic)
        return found

    def test_every_number_is_that_of_the_cache(self, make_cache, reader, meter):
        cache = make_cache("1MiB")
        instruments = pagecache_opentelemetry.instrument(cache, meter)
        assert len(instruments) == len(METRICS)
        use(cache)
        found, stats = self.observed(reader), cache.stats()
        for metric in METRICS:
            assert found[f"pagecache.{metric.name}", "default"] == (metric.read(stats), metric.is_counter)
        assert found["pagecache.misses", "default"][0] > 0

    def test_several_caches_one_of_them_closed(self, make_cache, reader, meter):
        closed = pagecache.PageCache("1MiB")
        pagecache_opentelemetry.instrument({"open": make_cache("1MiB"), "closed": closed}, meter)
        closed.close()
        assert {cache for _, cache in self.observed(reader)} == {"open"}

    def test_a_meter_that_observes_already(self, make_cache, reader, meter):
        cache, other = make_cache("1MiB"), make_cache("2MiB")
        instruments = pagecache_opentelemetry.instrument(cache, meter)
        assert pagecache_opentelemetry.instrument(cache, meter) == instruments
        assert pagecache_opentelemetry.instrument({"other": other}, meter) == instruments
        with pytest.raises(ValueError, match="'default'"):
            pagecache_opentelemetry.instrument(other, meter)
        found = self.observed(reader)
        assert found["pagecache.budget_bytes", "default"][0] == 1 << 20
        assert found["pagecache.budget_bytes", "other"][0] == 2 << 20

    def test_without_a_provider(self, make_cache):
        pytest.importorskip("opentelemetry.metrics")
        cache = {"without a provider": make_cache("1MiB")}
        instruments = pagecache_opentelemetry.instrument(cache)
        assert len(instruments) == len(METRICS)
        assert pagecache_opentelemetry.instrument(cache) == instruments


class TestWatchedCaches:
    def test_a_cache_is_not_kept_alive(self):
        watched = WatchedCaches({"short": pagecache.PageCache("1MiB")})
        assert list(watched.stats()) == []

    def test_modules_import_no_library(self):
        code = (
            "import sys, pagecache.adapters.prometheus, pagecache.adapters.opentelemetry as o\n"
            "assert not {'prometheus_client', 'opentelemetry'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=100)
