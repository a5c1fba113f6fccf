"""The cache as a whole: budgets, what is one object, what survives a reopening, statistics, closing."""

import gc
import os
import random

import numpy
import pytest
from support import PAGE, Crew, Store, assert_nothing_is_held, checked_cache, drop_pages, nr_descriptors, pages_of
from support.write_steps import WritableStore

import pagecache
from pagecache import units
from pagecache._core import Segment
from pagecache.files import inode_table

MIB = 1024 * 1024


class TestBudget:
    @pytest.mark.parametrize("size, frames", [(4096, 1), (8191, 1), ("12KiB", 3), (numpy.int64(65536), 16)])
    def test_is_whole_pages(self, make_cache, size, frames):
        cache = make_cache(size)
        assert cache.size == frames * PAGE == cache.stats().budget_bytes

    @pytest.mark.parametrize("size", [0, 1, 4095, -1, -(2**40), "1KiB"])
    def test_too_small_for_a_page_is_refused(self, size):
        with pytest.raises(ValueError, match=r"holds no page; give 4096 bytes or more"):
            pagecache.PageCache(size)

    @pytest.mark.parametrize("size", [2**62, 2**63, 2**64, 10**30, "999999 TiB"])
    def test_beyond_what_a_cache_can_have_is_refused(self, size):
        with pytest.raises((ValueError, OverflowError, OSError)):
            pagecache.PageCache(size)

    def test_a_number_of_objects_is_ignored_with_a_warning(self, make_cache):
        with pytest.warns(DeprecationWarning, match="the budget alone limits objects"):
            cache = make_cache("1MiB", nr_objects=1)
        files = [cache.open(Store(b"x" * 100, key=str(number))) for number in range(3)]
        assert [file.readall() for file in files] == [b"x" * 100] * 3

    @pytest.mark.parametrize("nr_pages, in_order", [(16384, True), (16384, False), (100, True)])
    def test_descriptors_and_index_take_at_most_1_8_percent(self, make_cache, nr_pages, in_order, rng):
        """Of a full cache of 64 MiB; as reported, and as the arrays' own sizes say."""
        cache = make_cache(nr_pages * PAGE)
        with cache.open(Store(bytes(nr_pages * PAGE))) as file:
            file.fadvise(pagecache.FADV_NORMAL if in_order else pagecache.FADV_RANDOM)
            pages = range(0, nr_pages, 16) if in_order else rng.sample(range(nr_pages), nr_pages)
            for page in pages:
                file.pread(16 * PAGE if in_order else PAGE, page * PAGE)
            arrays = cache.segment.sizes()
        stats = cache.stats()
        assert stats.resident_bytes > 0.95 * cache.size
        assert set(arrays) >= {"header", "mappings", "nodes", "folios", "frames"}
        used = sum(arrays[name][2] for name in arrays if name != "frames")
        assert used == stats.overhead_bytes
        assert arrays["folios"][2] == nr_pages * 64
        if nr_pages == 16384:
            assert used <= 0.018 * cache.size


class TestOneObject:
    def test_two_opens_of_a_path_share_its_pages(self, make_cache, data_file):
        path, data = data_file(50 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path) as one, cache.open(str(path)) as other, cache.open(os.fsencode(path)) as third:
            assert one.pread(len(data), 0) == data
            before = cache.stats()
            assert other.pread(len(data), 0) == third.pread(len(data), 0) == data
            assert cache.stats().store_reads == before.store_reads
            assert cache.stats().nr_file_pages == 50

    def test_so_do_links_and_file_urls(self, make_cache, data_file, tmp_path):
        path, data = data_file(20 * PAGE)
        (tmp_path / "symlink").symlink_to(path)
        (tmp_path / "hardlink").hardlink_to(path)
        cache = make_cache("1MiB")
        for source in (path, tmp_path / "symlink", tmp_path / "hardlink", f"file://{path}"):
            with cache.open(source) as file:
                assert file.readall() == data
        assert cache.stats().nr_file_pages == 20

    def test_stores_of_one_key_are_one_object_and_of_two_keys_two(self, make_cache):
        cache = make_cache("1MiB")
        stores = [Store(pages_of(10 * PAGE), key=key) for key in ("a", "a", "b")]
        files = [cache.open(store) for store in stores]
        for file in files:
            assert file.readall() == stores[0].data
        assert [bool(store.requests) for store in stores] == [True, False, True]
        assert cache.stats().nr_file_pages == 20

    def test_many_keys_are_never_taken_for_each_other(self, make_cache, rng):
        keys = [rng.randbytes(rng.randrange(1, 40)).hex() for _ in range(300)]
        cache = make_cache("4MiB")
        files = [cache.open(Store(key.encode(), key=key)) for key in keys]
        assert [file.readall() for file in files] == [key.encode() for key in keys]

    def test_equal_hashes_of_different_keys_are_still_two_objects(self, make_cache, monkeypatch):
        monkeypatch.setattr("mmh3.hash_bytes", lambda key, *rest, **more: b"same for all....")
        cache = make_cache("1MiB")
        with cache.open(Store(b"one", key="1")) as one, cache.open(Store(b"other", key="2")) as other:
            assert (one.pread(9, 0), other.pread(9, 0)) == (b"one", b"other")

    def test_writable_store_takes_over_from_one_that_only_reads(self, make_cache, data_file):
        path, data = data_file(10 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path) as reader, cache.open(path, "r+b") as writer:
            assert (reader.writable(), writer.writable()) == (False, True)
            assert writer.truncate(5) == 5
            assert reader.readall() == data[:5]
        assert path.read_bytes() == data[:5]

    def test_opening_for_writing_anew_empties_the_object_for_all(self, make_cache):
        store = pagecache.MemoryStore(pages_of(10 * PAGE))
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            assert file.pread(10, 0) == store.tobytes()[:10]
            with cache.open(store, "w+b"):
                assert file.pread(10, 0) == b""


class TestReopening:
    def test_keeps_pages_of_an_unchanged_file(self, make_cache, data_file):
        path, data = data_file(30 * PAGE)
        cache = make_cache("1MiB")
        for _ in range(3):
            with cache.open(path) as file:
                assert file.readall() == data
        assert cache.stats().store_read_bytes == len(data)

    @pytest.mark.parametrize("how", ["in place", "grown", "cut", "replaced", "same size and name"])
    def test_drops_pages_of_a_changed_file(self, make_cache, data_file, how):
        path, data = data_file(30 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path) as file:
            assert file.readall() == data
        new = {"grown": data + b"more", "cut": data[:5000]}.get(how, data[::-1])
        if how in ("replaced", "same size and name"):
            (path.parent / "new").write_bytes(new)
            os.replace(path.parent / "new", path)
        else:
            path.write_bytes(new)
        with cache.open(path) as file:
            assert file.readall() == new
        if how != "replaced":
            assert cache.stats().nr_file_pages <= 60

    def test_old_handle_of_a_replaced_file_keeps_the_old_bytes(self, make_cache, data_file):
        path, old = data_file(100 * PAGE)
        new = old[::-1]
        cache = make_cache(16 * PAGE)
        with cache.open(path) as file:
            assert file.pread(10, 0) == old[:10]
            (path.parent / "new").write_bytes(new)
            os.replace(path.parent / "new", path)
            with cache.open(path) as again:
                assert again.pread(len(new), 0) == new
                assert file.pread(len(old), 0) == old
                assert again.pread(len(new), 0) == new

    def test_old_handle_of_a_changed_store_keeps_what_is_cached_of_it(self, make_cache):
        cache = make_cache("1MiB")
        store = pagecache.MemoryStore(b"old" * PAGE)
        with cache.open(store) as file:
            assert file.readall() == b"old" * PAGE
            store.replace(b"new" * PAGE)
            with cache.open(store) as again:
                assert again.readall() == b"new" * PAGE
                assert file.pread(3 * PAGE, 0) == b"old" * PAGE
                assert again.pread(3 * PAGE, 0) == b"new" * PAGE

    def test_object_without_a_version_is_read_anew(self, make_cache):
        store = Store(pages_of(10 * PAGE))
        store.version = None
        cache = make_cache("1MiB")
        for _ in range(2):
            with cache.open(store) as file:
                assert file.readall() == store.data
        assert sum(nbytes for _, nbytes in store.requests) == 20 * PAGE

    def test_store_is_closed_with_the_last_file_and_once(self, make_cache):
        cache = make_cache("1MiB")
        stores = [Store(b"x" * PAGE) for _ in range(3)]
        files = [cache.open(store) for store in stores]
        assert [store.nr_closed for store in stores] == [0, 1, 1]
        for file in files:
            assert stores[0].nr_closed == 0
            file.close()
            file.close()
        assert [store.nr_closed for store in stores] == [1, 1, 1]

    @pytest.mark.stress
    def test_opening_and_closing_in_threads_never_loses_the_store(self, make_cache, data_file, seed):
        path, data = data_file(40 * PAGE)
        cache = make_cache(8 * PAGE)

        def user(number):
            rng = random.Random(seed + number)
            for _ in range(150):
                with cache.open(path, rng.choice(["rb", "r+b"])) as file:
                    offset = rng.randrange(len(data))
                    assert file.pread(5000, offset) == data[offset : offset + 5000]

        nr_open = nr_descriptors()
        Crew(*(lambda number=number: user(number) for number in range(6))).join_well()
        assert nr_descriptors() <= nr_open


class TestNumberOfObjects:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch):
        monkeypatch.setattr(inode_table, "RECENT_MAX", 4)

    def test_cached_objects_stay_however_many_they_are(self, make_cache):
        cache = make_cache("1MiB")
        stores = [Store(bytes([number]) * PAGE, key=f"object {number}") for number in range(200)]
        for _ in range(3):
            for store in stores:
                with cache.open(store) as file:
                    assert file.readall() == store.data
        assert [len(store.requests) for store in stores] == [1] * 200
        assert cache.segment.counters()["nr_objects_idle"] >= 200 - 4 - 1

    def test_an_object_that_is_still_looked_at_keeps_no_other_from_being_opened(self, make_cache):
        cache = make_cache("1MiB")
        held = []
        for number in range(3):
            with cache.open(Store(bytes(PAGE), key=str(number))) as file:
                held += [file.inode] if number == 0 else []
        with cache.open(Store(bytes(PAGE), key="one more")) as file:
            assert file.pread(1, 0) == b"\0"

    def test_any_number_can_come_and_go(self, make_cache):
        cache = make_cache(0, segment=Segment(2, nr_mappings=12))
        for number in range(500):
            with cache.open(Store(b"%d" % number * 100, key=str(number))) as file:
                assert file.readall() == b"%d" % number * 100
        assert cache.stats().nr_file_pages <= 2
        assert cache.segment.counters()["nr_mappings"] <= 12

    def test_a_dirty_object_is_not_forgotten(self, make_cache):
        cache, stores = make_cache("1MiB", dirty_expire_s=3600), [WritableStore(b"old", key=str(n)) for n in range(20)]
        for store in stores:
            file = cache.open(store, "r+b")
            file.pwrite(b"new", 0)
            file._give_up()  # as by the collector: nothing is written
        for store in stores:
            with cache.open(store) as file:
                assert file.readall() == b"new"

    def test_when_all_records_have_pages_some_of_those_are_evicted(self, make_cache):
        cache = make_cache(0, segment=Segment(256, nr_mappings=4))
        for number in range(20):
            with cache.open(Store(bytes([number]) * PAGE, key=str(number))) as file:
                assert file.readall() == bytes([number]) * PAGE

    def test_too_many_open_at_once_is_a_clear_error(self, make_cache):
        cache = make_cache(0, segment=Segment(256, nr_mappings=3))
        files = [cache.open(Store(b"x", key=str(number))) for number in range(2)]
        late = Store(b"x", key="one too many")
        with pytest.raises(OSError, match="all 2 mappings"):
            cache.open(late)
        assert late.nr_closed == 1
        files[0].close()
        assert [file.readall() for file in files[1:]] == [b"x"]


class TestStats:
    def test_count_what_happened(self, make_cache, data_file):
        path, _ = data_file(100 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(PAGE, 40 * PAGE)
            for _ in range(3):
                file.pread(100, 40 * PAGE)
            file.view(10, 40 * PAGE).release()
            file.view(10, 60 * PAGE).release()
            stats = cache.stats()
        assert (stats.hits, stats.misses) == (4, 2)
        assert stats.hit_ratio == pytest.approx(4 / 6)
        assert stats.bytes_asked == PAGE + 300 + 20
        assert (stats.store_reads, stats.store_read_bytes) == (2, 2 * PAGE)
        assert (stats.nr_file_pages, stats.resident_bytes) == (2, 2 * PAGE)
        assert (stats.nr_dirty, stats.nr_writeback, stats.nr_pinned, stats.evictions) == (0, 0, 0, 0)

    def test_add_up(self, make_cache, frames, rng):
        cache = make_cache(frames * PAGE)
        data = pages_of(3 * frames * PAGE)
        with cache.open(pagecache.MemoryStore(data)) as file:
            for _ in range(100):
                file.pread(rng.randrange(5 * PAGE), rng.randrange(len(data)))
            cache.check()
            stats = cache.stats()
        assert stats.nr_frames == frames
        assert stats.nr_file_pages + stats.nr_free_pages == frames
        assert stats.nr_inactive_file + stats.nr_active_file + stats.nr_unevictable == stats.nr_file_pages
        assert stats.budget_bytes == frames * PAGE
        assert stats.resident_bytes == stats.nr_file_pages * PAGE <= stats.budget_bytes
        assert stats.evictions == stats.pgsteal_file == stats.pgsteal_direct + stats.pgsteal_kswapd
        assert stats.pgscan_file >= stats.pgsteal_file
        assert stats.store_read_bytes == (stats.nr_file_pages + stats.evictions) * PAGE
        assert stats.readahead_hits + stats.readahead_wasted <= stats.readahead_pages
        metadata = ("header", "mappings", "directory", "nodes", "folios")
        assert stats.overhead_bytes == sum(cache.segment.sizes()[name][2] for name in metadata)

    def test_can_be_read_as_attributes_dictionary_and_text(self, make_cache):
        stats = make_cache("1MiB").stats()
        names = {
            "nr_file_pages", "nr_dirty", "nr_writeback", "nr_inactive_file", "nr_active_file", "nr_free_pages", "pgfault",
            "pgmajfault", "pgactivate", "pgdeactivate", "pgscan_direct", "pgscan_kswapd", "pgsteal_direct",
            "pgsteal_kswapd", "workingset_refault_file", "workingset_activate_file", "workingset_restore_file",
            "workingset_nodereclaim", "hits", "misses", "hit_ratio", "evictions", "overhead_bytes", "drop_pagecache",
        }  # fmt: skip
        values = stats.as_dict()
        assert names <= set(values)
        assert all(getattr(stats, name) == value for name, value in values.items())
        assert repr(stats).startswith("<Stats ")
        assert "hits=0" in repr(stats)
        assert stats._repr_html_().count("<tr>") == stats._repr_html_().count("</tr>") > 5
        with pytest.raises(AttributeError, match="no statistic named 'hitz'"):
            _ = stats.hitz

    def test_are_a_picture_that_stays(self, make_cache):
        cache = make_cache("1MiB")
        before = cache.stats()
        with cache.open(Store(b"x")) as file:
            file.readall()
        assert before.misses == 0
        assert cache.stats().misses > 0


class TestDropAndClose:
    def test_drop_caches_empties_it_and_says_how_much(self, make_cache, data_file):
        path, data = data_file(50 * PAGE)
        cache = make_cache("1MiB")
        with cache.open(path) as file:
            file.readall()
            assert drop_pages(cache, 50) == 50
            assert cache.drop_caches() == 0
            assert cache.stats().nr_file_pages == 0
            assert file.pread(len(data), 0) == data
            with file.view(10, 0):
                assert 0 < cache.drop_caches() < 50

    def test_nothing_is_lost_after_all_is_dropped(self, make_cache, frames, rng):
        cache = make_cache(frames * PAGE)
        for number in range(20):
            data = rng.randbytes(rng.randrange(1, 40 * PAGE))
            with cache.open(pagecache.MemoryStore(data, key=str(number))) as file:
                assert file.readall() == data
        assert_nothing_is_held(cache)

    def test_close_closes_all_files_and_is_idempotent(self, data_file):
        path, _ = data_file(PAGE)
        with pagecache.PageCache("1MiB") as cache:
            files = [cache.open(path) for _ in range(3)]
            assert not cache.closed
        assert cache.closed
        assert [file.closed for file in files] == [True] * 3
        cache.close()
        assert "closed" in repr(cache)

    def test_closed_cache_refuses_all_but_a_look_at_its_numbers(self, data_file):
        path, _ = data_file(PAGE)
        cache = pagecache.PageCache("1MiB")
        cache.close()
        for call in (lambda: cache.open(path), cache.drop_caches, cache.sync, cache.check, cache.__enter__):
            with pytest.raises(ValueError, match="the cache is closed"):
                call()
        assert cache.stats().budget_bytes == MIB
        assert cache.size == MIB

    def test_everything_goes_with_the_last_name(self, data_file):
        path, _ = data_file(30 * PAGE)
        nr_open = nr_descriptors()
        for _ in range(20):
            cache = pagecache.PageCache("8MiB")
            cache.open(path).readall()
            cache.close()
        del cache
        assert nr_descriptors() <= nr_open

    def test_file_that_is_forgotten_is_reported_and_closed(self, make_cache):
        store = Store(b"x", key="forgotten")
        cache = make_cache("1MiB")
        with pytest.warns(ResourceWarning, match="unclosed cached file 'forgotten'"):
            cache.open(store)
            gc.collect()
        assert store.nr_closed == 1


class TestDefaultCache:
    @pytest.fixture(autouse=True)
    def none_yet(self, monkeypatch):
        monkeypatch.setattr("pagecache.default._default", None)

    def test_is_made_once_with_the_size_of_the_environment(self, monkeypatch):
        monkeypatch.setenv("PAGECACHE_SIZE", "3MiB")
        with pagecache.default_cache() as cache:
            assert cache.size == 3 * MIB
            assert pagecache.default_cache() is cache
        with pagecache.default_cache() as again:
            assert again is not cache

    def test_is_a_quarter_of_memory_by_default(self, monkeypatch):
        monkeypatch.delenv("PAGECACHE_SIZE", raising=False)
        with pagecache.default_cache() as cache:
            assert cache.size == pytest.approx(units.memory_limit() / 4, abs=PAGE)

    def test_is_one_for_threads_that_come_at_once(self, monkeypatch):
        monkeypatch.setenv("PAGECACHE_SIZE", "1MiB")
        caches = Crew(*[pagecache.default_cache] * 8).join_well()
        assert len(set(map(id, caches))) == 1
        caches[0].close()

    def test_bad_size_in_the_environment_is_named(self, monkeypatch):
        monkeypatch.setenv("PAGECACHE_SIZE", "lots")
        with pytest.raises(ValueError, match="'lots'"):
            pagecache.default_cache()


def test_caches_do_not_mix(data_file):
    path, data = data_file(20 * PAGE)
    with checked_cache(8) as one, checked_cache(64) as other, one.open(path) as small, other.open(path) as large:
        assert small.readall() == large.readall() == data
        assert one.stats().nr_file_pages <= 8
        assert other.stats().nr_file_pages == 20
