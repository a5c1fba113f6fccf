"""Where bytes came from: what stores count, summed over those that are open and those that were closed."""

import json

import pytest
from support import PAGE, Store, pages_of

import pagecache
from pagecache._core import Segment
from pagecache.adapters.metrics import METRICS
from pagecache.cli import main, stat
from pagecache.stats.sources import SOURCES, counts_of, shown_counts

DATA = pages_of(16 * PAGE)


class Tiered(Store):
    """A store that says that every second request came from a second level."""

    def source_counts(self):
        nr = len(self.requests)
        nbytes = [size for _, size in self.requests]
        return {
            "second_level_hits": nr // 2,
            "second_level_bytes": sum(nbytes[1::2]),
            "origin_requests": nr - nr // 2,
            "origin_bytes": sum(nbytes[::2]),
            "of_its_own": 1,
        }


def read_pages(file, pages):
    for page in pages:
        file.pread(PAGE, page * PAGE)


def test_without_counts_all_is_from_the_origin(make_cache):
    cache = make_cache("1MiB")
    with cache.open(Store(DATA)) as file:
        read_pages(file, range(16))
        stats = cache.stats()
        assert (stats.origin_requests, stats.origin_bytes) == (stats.store_reads, stats.store_read_bytes)
        assert stats.origin_bytes == len(DATA)
        assert all(getattr(stats, name) == 0 for name in SOURCES if not name.startswith("origin"))
        assert file.stats().origin_bytes == len(DATA)


def test_open_and_closed_stores_and_others(make_cache):
    cache = make_cache("1MiB")
    plain, tiered, gone = Store(DATA, "plain"), Tiered(DATA, "tiered"), Tiered(DATA, "gone")
    with cache.open(gone) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        read_pages(file, range(4))
        of_file = file.stats()
        assert (of_file.second_level_hits, of_file.origin_requests) == (2, 2)
        before = cache.stats().as_dict()
    assert gone.nr_closed == 1
    assert {name: cache.stats().as_dict()[name] for name in SOURCES} == {name: before[name] for name in SOURCES}
    with cache.open(tiered) as file, cache.open(plain) as other:
        file.fadvise(pagecache.FADV_RANDOM)
        read_pages(file, range(6))
        other.pread(len(DATA), 0)
        stats = cache.stats(per_file=True)
        assert (stats.second_level_hits, stats.second_level_bytes) == (5, 5 * PAGE)
        assert stats.origin_requests == 5 + len(plain.requests)
        assert stats.origin_bytes == 5 * PAGE + len(DATA)
        assert stats.of_its_own == 2
        found = {each.name: each for each in stats.files}
        assert (found["tiered"].second_level_bytes, found["tiered"].origin_bytes) == (3 * PAGE, 3 * PAGE)
        assert (found["plain"].second_level_bytes, found["plain"].origin_bytes) == (0, len(DATA))
        assert found["gone"].second_level_hits == 2, "the object is still cached"
    assert sum(1 for _ in cache.stats(per_file=True).files) == 3


def test_counts_of_objects_that_the_cache_forgot_stay(make_cache):
    cache = make_cache(0, segment=Segment(256, nr_mappings=5))
    for number in range(12):
        with cache.open(Tiered(DATA, f"object-{number}")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            read_pages(file, range(2))
    assert cache.stats().second_level_hits == 12


def test_a_second_store_of_an_open_object_is_counted_once(make_cache):
    cache = make_cache("1MiB")
    with cache.open(Tiered(DATA)) as file, cache.open(Tiered(DATA)) as other:
        for each in (file, other):
            each.fadvise(pagecache.FADV_RANDOM)
        read_pages(file, range(4))
        read_pages(other, range(4))
        assert cache.stats().second_level_hits == 2
    assert cache.stats().second_level_hits == 2


def test_what_is_missing_is_made_up_for():
    counts = counts_of(type("S", (), {"source_counts": lambda self: {"peer_hits": 3, "peer_bytes": 30}})())
    assert (counts["store_reads"], counts["store_read_bytes"], counts["origin_requests"]) == (3, 30, 0)
    assert counts_of(object()) == {}
    shown = shown_counts(counts, 5, 50)
    assert (shown["origin_requests"], shown["origin_bytes"]) == (2, 20)
    assert "store_reads" not in shown


def test_shown_where_people_look(make_cache, tmp_path, capsys):
    cache = make_cache("1MiB")
    with cache.open(Tiered(DATA)) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        read_pages(file, range(4))
        assert "second_level_hits=2" in repr(cache.stats())
        found = file.stats().as_dict()
    lines = stat.source_lines(found)
    assert [line.split() for line in lines] == [
        ["second", "level", "2", "requests,", "8.0", "KiB"], ["origin", "2", "requests,", "8.0", "KiB"]
    ]  # fmt: skip
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert main(["stat", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin_bytes"] == len(DATA)
    assert main(["stat", str(path)]) == 0
    assert "second level" not in capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_a_metric_of_each(name):
    assert name in [metric.name for metric in METRICS]
