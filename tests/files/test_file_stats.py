"""What is counted by object: misses, requests, bytes and readahead, and that it agrees with the cache's own counters."""

import os

import pytest
from support import PAGE, BlockingStore, Crew, Store, pages_of, wait_until

import pagecache
from pagecache._core import Segment

SUMMED = ("misses", "store_reads", "store_read_bytes", "readahead_pages", "readahead_wasted")


def settle(cache):
    """Wait for background reads."""
    cache.check()


def assert_sums_agree(cache):
    """Check that the counts of all objects add up to the cache's."""
    stats = cache.stats(per_file=True)
    for name in SUMMED:
        assert sum(getattr(file, name) for file in stats.files) == getattr(stats, name), name


class TestOneObject:
    def test_a_miss_is_counted_and_a_hit_is_not(self, make_cache):
        store = Store(pages_of(8 * PAGE))
        with make_cache("1MiB").open(store) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(100, 3 * PAGE)
            first = file.stats()
            file.pread(200, 3 * PAGE)
            assert file.stats() == first
        assert (first.misses, first.missed_bytes, first.store_reads, first.store_read_bytes) == (1, 100, 1, PAGE)
        assert (first.size_bytes, first.resident_bytes, first.nr_open) == (8 * PAGE, PAGE, 1)
        assert first.name == "object"

    def test_only_what_missed_counts_as_missed_bytes(self, make_cache):
        with make_cache("1MiB").open(Store(pages_of(8 * PAGE))) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(PAGE, 0)
            file.pread(2 * PAGE, 0)
            assert file.stats().missed_bytes == 2 * PAGE

    def test_views_count_like_reads(self, make_cache):
        with make_cache("1MiB").open(Store(pages_of(8 * PAGE))) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(3):
                file.view(PAGE, PAGE).release()
            assert (file.stats().misses, file.stats().missed_bytes) == (1, PAGE)

    def test_files_of_one_object_share_their_counts(self, make_cache):
        cache, store = make_cache("1MiB"), Store(pages_of(8 * PAGE))
        with cache.open(store) as one, cache.open(store) as other:
            one.pread(10, 0)
            assert other.stats() == one.stats()
            assert one.stats().nr_open == 2

    def test_a_closed_file_says_so(self, make_cache):
        file = make_cache("1MiB").open(Store(b"x"))
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.stats()

    def test_of_a_file_that_rechecks(self, make_cache):
        with make_cache("1MiB").open(Store(pages_of(PAGE)), recheck=True) as file:
            file.pread(10, 0)
            assert file.stats().misses == 1

    def test_a_failed_request_brings_nothing(self, make_cache):
        class Failing(Store):
            def answer(self, offset, buffers):
                raise OSError(5, "planned")

        with make_cache("1MiB").open(Failing(bytes(PAGE))) as file:
            with pytest.raises(OSError, match="planned"):
                file.pread(10, 0)
            assert (file.stats().store_read_bytes, file.stats().misses) == (0, 0)


class TestReadahead:
    def test_pages_wait_then_are_used(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(pages_of(64 * PAGE))) as file:
            file.pread(PAGE, 0)
            settle(cache)
            before = file.stats()
            assert before.readahead_pages > 0
            assert before.readahead_waiting == before.readahead_pages
            assert before.readahead_hits == before.readahead_wasted == 0
            file.pread(2 * PAGE, 0)
            after = file.stats()
            assert after.readahead_hits == 1
            assert after.readahead_pages == after.readahead_hits + after.readahead_waiting

    def test_pages_that_leave_unused_are_wasted(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(pages_of(64 * PAGE))) as file:
            file.pread(PAGE, 0)
            settle(cache)
            waiting = file.stats().readahead_waiting
            cache.drop_caches()
            after = file.stats()
            assert (after.readahead_wasted, after.readahead_waiting, after.readahead_hits) == (waiting, 0, 0)

    def test_a_page_that_another_reader_brought_is_not_counted_as_read_ahead(self, make_cache):
        """What a window could not add, because it is cached already, was not brought in by it."""
        cache = make_cache("1MiB")
        with cache.open(Store(pages_of(64 * PAGE))) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for index in range(1, 64, 2):
                file.pread(1, index * PAGE)
            file.fadvise(pagecache.FADV_NORMAL)
            for index in range(64):
                file.pread(PAGE, index * PAGE)
                settle(cache)
            assert 0 < file.stats().readahead_pages == cache.stats().readahead_pages <= 32


class TestSums:
    @pytest.mark.parametrize("direct", [False, True])
    @pytest.mark.parametrize("size", ["128KiB", "16MiB"])
    def test_local_files(self, make_cache, data_file, rng, direct, size):
        cache = make_cache(size)
        files = []
        for nbytes in (3_000_000, 70_001, 1):
            path, data = data_file(nbytes)
            file = cache.open(path, direct=direct)
            files.append(file)
            assert file.readall() == data
            for _ in range(30):
                at = rng.randrange(nbytes)
                assert file.pread(5000, at) == data[at : at + 5000]
        settle(cache)
        assert_sums_agree(cache)
        read = [file.stats().store_read_bytes for file in files]
        assert read[0] >= 3_000_000
        assert all(read)

    def test_threads_on_many_stores(self, make_cache, seed):
        cache = make_cache("256KiB")
        files = [cache.open(Store(pages_of(100 * PAGE), key=f"object-{number}")) for number in range(4)]

        def read(number):
            import random

            random_place = random.Random(seed + number)
            for _ in range(100):
                file = random_place.choice(files)
                at = random_place.randrange(100 * PAGE)
                assert file.pread(3000, at) == pages_of(100 * PAGE)[at : at + 3000]

        Crew(*[lambda number=number: read(number) for number in range(4)]).join_well()
        settle(cache)
        assert_sums_agree(cache)

    def test_the_most_expensive_object_comes_first(self, make_cache):
        cache = make_cache("1MiB")
        for name, nr_pages in (("small", 1), ("large", 32), ("none", 0)):
            with cache.open(Store(pages_of(nr_pages * PAGE), key=name)) as file:
                file.readall()
        assert [file.name for file in cache.stats(per_file=True).files] == ["large", "small", "none"]

    def test_an_object_that_takes_the_place_of_another_begins_at_zero(self, make_cache):
        cache = make_cache(0, segment=Segment(256, nr_mappings=2))

        def read_new(name):
            with cache.open(Store(pages_of(PAGE), key=name)) as file:
                before = file.stats().store_reads
                file.readall()
                return before, file.stats().store_reads

        assert read_new("one") == read_new("two") == (0, 1)

    def test_while_a_request_is_on_its_way(self, make_cache):
        cache, store = make_cache("1MiB"), BlockingStore(pages_of(PAGE))
        with cache.open(store) as file:
            crew = Crew(lambda: file.pread(10, 0))
            wait_until(store.entered.is_set, "the request has not come")
            assert cache.stats(per_file=True).files[0].store_read_bytes == 0
            store.go_on.set()
            crew.join_well()


class TestShown:
    def test_without_files_there_is_no_such_number(self, make_cache):
        with pytest.raises(AttributeError, match="files"):
            _ = make_cache("1MiB").stats().files

    def test_html_has_the_names_escaped(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(pages_of(PAGE), key="<b>")):
            shown = cache.stats(per_file=True)._repr_html_()
        assert "&lt;b&gt;" in shown
        assert "<b>" not in shown
        assert "<caption>files" not in cache.stats()._repr_html_()

    def test_a_cache_shows_its_files_but_not_thousands(self, make_cache):
        cache = make_cache("1MiB")
        assert "files" not in cache._repr_html_()
        files = [cache.open(Store(b"x", key=f"object-{number}")) for number in range(25)]
        assert "<caption>20 of 25 files</caption>" in cache._repr_html_()
        assert cache._repr_html_().count("object-") == 20
        for file in files:
            file.close()

    def test_a_closed_cache_shows_no_table(self):
        cache = pagecache.PageCache("1MiB")
        cache.close()
        assert cache._repr_html_() is None

    def test_in_a_child_of_fork(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(b"x")):
            child = os.fork()
            if child == 0:
                os._exit(0 if cache._repr_html_() is None and self.refuses(cache) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def refuses(self, cache):
        """Return whether a cache of the parent says that it is one."""
        try:
            cache.stats(per_file=True)
        except RuntimeError:
            return True
        return False

    def test_as_dict(self, make_cache):
        with make_cache("1MiB").open(Store(b"abc")) as file:
            assert file.stats().as_dict()["size_bytes"] == 3
