"""Prefetching in the background, fadvise, and reads that leave nothing behind."""

import threading

import pytest
from support import HAS_GIL, PAGE, PATIENCE_S, Crew, FaultyStore, Store, pages_of, wait_until
from support.remote_stores import CountingStore, HangingStore, wait_all_read

import pagecache
from pagecache.requests import workers

NR_PAGES = 128
DATA = pages_of(NR_PAGES * PAGE)


def cached(file, first=0, last=NR_PAGES - 1):
    """Return how many of the pages first..last are cached and readable."""
    return sum(file.mincore(first * PAGE, (last - first + 1) * PAGE))


@pytest.fixture
def store():
    return CountingStore(DATA)


@pytest.fixture
def file(make_cache, store):
    with make_cache("2MiB").open(store) as file:
        yield file


@pytest.fixture
def hanging(make_cache):
    """A file whose store answers nothing, and the store."""
    store = HangingStore(DATA, range(NR_PAGES))
    with make_cache("2MiB").open(store) as file:
        yield file, store
        store.go_on.set()
        wait_all_read(file)
        wait_until(lambda: store.nr_left == len(store.requests), "the store to answer")


class TestPrefetch:
    def test_brings_all_of_a_file_in(self, file, store):
        prefetch = file.prefetch()
        assert prefetch.wait(PATIENCE_S)
        assert (prefetch.done, prefetch.progress, prefetch.nr_pages) == (True, 1.0, NR_PAGES)
        assert cached(file) == NR_PAGES
        nr_requests = len(store.requests)
        assert file.pread(len(DATA), 0) == DATA
        assert len(store.requests) == nr_requests == NR_PAGES / 16

    def test_brings_partial_pages_of_a_range_in_and_no_others(self, file):
        assert file.prefetch(10 * PAGE + 5, 2 * PAGE).wait(PATIENCE_S)
        assert (cached(file), cached(file, 10, 12)) == (3, 3)

    def test_runs_as_many_requests_at_once_as_the_store_allows(self, make_cache):
        store = CountingStore(DATA, together=4)
        with make_cache("2MiB").open(store) as file:
            assert file.prefetch().wait(PATIENCE_S)
        assert store.most_running == 4

    @pytest.mark.parametrize("offset", [len(DATA), len(DATA) + 1, 1 << 60])
    def test_of_nothing_is_done_at_once(self, file, store, offset):
        prefetch = file.prefetch(offset, 100)
        assert prefetch.wait(0)
        assert (prefetch.nr_pages, prefetch.progress, store.requests) == (0, 1.0, [])

    def test_asks_only_for_what_is_missing(self, file, store):
        file.fadvise(pagecache.FADV_RANDOM)
        for page in (3, 4, 50):
            file.pread(PAGE, page * PAGE)
        assert file.prefetch().wait(PATIENCE_S)
        assert sum(size for _, size in store.requests) == len(DATA)

    def test_of_more_than_the_cache_holds_is_shortened(self, make_cache, store):
        cache = make_cache(16 * PAGE)
        with cache.open(store) as file:
            prefetch = file.prefetch()
            assert prefetch.wait(PATIENCE_S)
            assert prefetch.nr_pages == 16
            assert file.pread(len(DATA), 0) == DATA

    def test_can_be_waited_for_only_so_long(self, hanging):
        file, store = hanging
        prefetch = file.prefetch()
        assert not prefetch.wait(0.01)
        assert (prefetch.done, prefetch.progress) == (False, 0.0)
        store.go_on.set()
        assert prefetch.wait(PATIENCE_S)

    def test_one_that_a_signal_interrupts_as_it_begins_is_not_waited_for(self, file, store, monkeypatch):
        kept = []

        def interrupted(task):
            kept.append(task)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(workers.caller_pool, "run", interrupted)
            with pytest.raises(KeyboardInterrupt):
                file.prefetch()
        assert file.inode.wait_idle(0)
        kept[0]()  # a worker that comes by later
        assert store.requests == []

    def test_cancelled_skips_what_has_not_begun(self, hanging):
        file, store = hanging
        prefetch = file.prefetch()
        wait_until(lambda: len(store.requests) == 4, "requests to be made")
        prefetch.cancel()
        assert not prefetch.done
        store.go_on.set()
        assert prefetch.wait(PATIENCE_S)
        assert cached(file) == 16
        prefetch.cancel()
        assert file.pread(len(DATA), 0) == DATA

    def test_wait_raises_the_error_and_readers_see_only_theirs(self, make_cache):
        store = FaultyStore(DATA, lambda number, first, last: OSError(5, "bad") if first <= 70 <= last else None)
        store.max_request = store.preferred_request = 16 * PAGE
        with make_cache("2MiB").open(store) as file:
            prefetch = file.prefetch()
            with pytest.raises(OSError, match="bad"):
                prefetch.wait(PATIENCE_S)
            assert prefetch.done
            assert cached(file) == NR_PAGES - 16
            assert file.pread(PAGE, 69 * PAGE) == DATA[69 * PAGE : 70 * PAGE]
            with pytest.raises(OSError, match="bad"):
                file.pread(PAGE, 70 * PAGE)

    def test_calls_back_once_even_if_one_callback_raises(self, hanging, caplog):
        file, store = hanging
        calls = []
        prefetch = file.prefetch()
        prefetch.add_done_callback(lambda _: 1 / 0)
        prefetch.add_done_callback(calls.append)
        assert calls == []
        store.go_on.set()
        assert prefetch.wait(PATIENCE_S)
        wait_until(lambda: calls, "the callback")
        prefetch.add_done_callback(calls.append)
        assert calls == [prefetch, prefetch]
        assert "ZeroDivisionError" in caplog.text
        assert file.prefetch().wait(PATIENCE_S)

    def test_leaves_room_for_readers(self, make_cache):
        """A page that no request has been made for is read at once, before the rest of the prefetch."""
        store = HangingStore(DATA, range(8))
        with make_cache("2MiB").open(store) as file:
            prefetch = file.prefetch(0, 8 * PAGE)
            assert store.entered.wait(PATIENCE_S)
            assert file.pread(PAGE, 100 * PAGE) == DATA[100 * PAGE : 101 * PAGE]
            store.go_on.set()
            assert prefetch.wait(PATIENCE_S)

    def test_does_not_stand_in_the_way_of_readahead_that_truncation_waits_for(self, make_cache):
        """Prefetches wait for invalidate_lock, its holder waits for readahead: that must get the places."""

        class Writable(HangingStore):
            def writev(self, offset, buffers):
                raise NotImplementedError

            def truncate(self, size):
                self.data = self.data[:size]

        store = Writable(DATA, range(4, NR_PAGES))
        with make_cache("2MiB").open(store, "r+b") as file:
            for page in range(4):
                file.pread(1, page * PAGE)
            assert store.entered.wait(PATIENCE_S)
            prefetches = [file.prefetch(64 * PAGE) for _ in range(3)]
            crew = Crew(lambda: file.truncate(8 * PAGE))
            store.go_on.set()
            crew.join_well()
            assert all(prefetch.wait(PATIENCE_S) for prefetch in prefetches)
            assert file.pread(len(DATA), 0) == DATA[: 8 * PAGE]

    def test_reads_files_with_a_descriptor(self, make_cache, data_file):
        path, data = data_file(1_000_001)
        with make_cache("2MiB").open(path) as file:
            assert file.prefetch().wait(PATIENCE_S)
            assert sum(file.mincore()) == 245
            assert file.pread(len(data), 0) == data

    @pytest.mark.parametrize(("offset", "nbytes"), [(-1, 0), (0, -1)])
    def test_refuses_negative_numbers(self, file, offset, nbytes):
        with pytest.raises(ValueError, match="negative"):
            file.prefetch(offset, nbytes)


class TestAdvice:
    def test_willneed_returns_at_once_and_reads_in_the_background(self, hanging):
        file, store = hanging
        file.fadvise(pagecache.FADV_WILLNEED, 0, 40 * PAGE)
        assert store.entered.wait(PATIENCE_S)
        store.go_on.set()
        wait_until(lambda: cached(file) == 40, "forty pages")

    def test_dontneed_drops_whole_pages_only(self, file):
        file.fadvise(pagecache.FADV_RANDOM)  # pages of their own, not parts of large folios
        for page in range(NR_PAGES):
            file.pread(PAGE, page * PAGE)
        file.fadvise(pagecache.FADV_DONTNEED, PAGE + 1, 3 * PAGE)
        assert [page for page in range(NR_PAGES) if not file.mincore(page * PAGE, PAGE)[0]] == [2, 3]

    def test_dontneed_drops_the_partial_page_that_ends_the_file(self, make_cache):
        with make_cache("1MiB").open(Store(DATA[: 3 * PAGE + 7])) as file:
            file.pread(len(DATA), 0)
            file.fadvise(pagecache.FADV_DONTNEED, 0, 3 * PAGE + 6)
            assert file.mincore() == b"\0\0\0\1"
            file.fadvise(pagecache.FADV_DONTNEED)
            assert file.mincore() == bytes(4)

    def test_sequential_doubles_the_window_and_normal_takes_it_back(self, file):
        normal = file.ra.ra_pages
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        assert file.ra.ra_pages == 2 * normal
        file.fadvise(pagecache.FADV_NORMAL)
        assert file.ra.ra_pages == normal

    def test_random_is_ended_by_sequential(self, file, store):
        file.fadvise(pagecache.FADV_RANDOM)
        file.pread(PAGE, 0)
        assert store.requests == [(0, PAGE)]
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        file.pread(PAGE, PAGE)
        wait_all_read(file)
        assert sum(size for _, size in store.requests) > 2 * PAGE

    def test_noreuse_is_kept_until_normal(self, file):
        file.fadvise(pagecache.FADV_NOREUSE)
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        assert file.no_reuse
        file.fadvise(pagecache.FADV_NORMAL)
        assert not file.no_reuse

    @pytest.mark.parametrize("arguments", [(99,), (0, -1), (0, 0, -1)])
    def test_refuses_what_makes_no_sense(self, file, arguments):
        with pytest.raises(ValueError, match=r"unknown advice|negative"):
            file.fadvise(*arguments)

    def test_pages_read_behind_are_dropped(self, file):
        file.drop_behind = True
        for page in range(NR_PAGES):
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
        wait_all_read(file)
        assert cached(file) <= (8 if HAS_GIL else NR_PAGES // 2)  # what its reader in the background still holds, stays
        file.drop_behind = False
        assert file.pread(len(DATA), 0) == DATA

    def test_many_prefetches_at_once_share_what_they_read(self, file, store):
        barrier = threading.Barrier(4)

        def prefetch():
            barrier.wait(PATIENCE_S)
            return file.prefetch().wait(PATIENCE_S)

        assert Crew(*[prefetch] * 4).join_well() == [True] * 4
        wait_all_read(file)
        assert sum(size for _, size in store.requests) == len(DATA)
