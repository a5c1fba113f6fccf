"""Readahead in the background: how windows become requests, and what slow, hanging and failing stores do to readers."""

import os
import signal
import threading
import time

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, FaultyStore, Store, assert_nothing_is_held, pages_of, wait_until
from support.remote_stores import CountingStore, HangingStore, wait_all_read

import pagecache

NR_PAGES = 512
DATA = pages_of(NR_PAGES * PAGE)


def page_of(number):
    """Return the bytes of a page of DATA."""
    return DATA[number * PAGE : (number + 1) * PAGE]


def scan(file, nr_pages=NR_PAGES, step=1):
    """Read pages in order and compare them."""
    for page in range(0, nr_pages, step):
        assert file.pread(PAGE, page * PAGE) == page_of(page)


@pytest.fixture
def hanging(make_cache):
    """A cache, a file whose store hangs from page 8 on, and the store."""
    store = HangingStore(DATA, range(8, NR_PAGES))
    cache = make_cache("4MiB")
    yield cache, cache.open(store), store
    store.go_on.set()
    wait_until(lambda: store.nr_left == sum(offset + size > 8 * PAGE for offset, size in store.requests), "the store")


class TestRequests:
    def test_a_window_is_fetched_in_parallel_and_never_by_more_than_the_store_allows(self, make_cache):
        store = CountingStore(DATA, together=4)
        with make_cache("4MiB").open(store) as file:
            scan(file)
            wait_all_read(file)
        assert store.most_running == 4
        assert max(size for _, size in store.requests) == store.max_request
        assert sum(size for _, size in store.requests) == len(DATA)

    def test_readers_that_wait_count_as_well(self, make_cache, rng):
        store = CountingStore(DATA, together=5, patience_s=0.02)
        file = make_cache("8MiB").open(store)
        pages = [rng.randrange(NR_PAGES) for _ in range(12)]
        readers = [lambda page=page: file.pread(PAGE, page * PAGE) for page in pages]
        assert Crew(*readers, lambda: scan(file)).join_well()[:-1] == [page_of(page) for page in pages]
        wait_all_read(file)
        assert 1 <= store.most_running <= store.parallel_requests

    def test_one_large_read_is_split_as_well(self, make_cache):
        store = CountingStore(DATA, together=2)
        with make_cache("8MiB").open(store) as file:
            assert file.pread(len(DATA), 0) == DATA
            wait_all_read(file)
        assert max(size for _, size in store.requests) <= store.max_request
        assert 2 <= store.most_running <= 4
        assert sum(size for _, size in store.requests) == len(DATA)

    def test_a_sequential_scan_ends_with_large_folios(self, make_cache):
        with make_cache("8MiB").open(CountingStore(DATA)) as file:
            scan(file)
            wait_all_read(file)
            orders = [order for _, order, _ in file.mapping.folios()]
            assert sum(1 << order for order in orders if order >= 2) > NR_PAGES / 2


class TestPatterns:
    def test_a_random_reader_fetches_what_it_asks_for_rounded_to_pages(self, make_cache, rng):
        store = CountingStore(DATA)
        file = make_cache("8MiB").open(store)
        asked = set()
        for page in rng.sample(range(2, NR_PAGES - 2, 5), 60):
            offset, nbytes = page * PAGE + rng.randrange(PAGE), rng.randrange(1, PAGE)
            assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            asked |= {offset // PAGE, (offset + nbytes - 1) // PAGE}
        wait_all_read(file)
        assert sum(size for _, size in store.requests) == len(asked) * PAGE

    def test_advised_to_be_random_even_neighbours_are_read_alone(self, make_cache):
        store = CountingStore(DATA)
        file = make_cache("8MiB").open(store)
        file.fadvise(pagecache.FADV_RANDOM)
        scan(file, 20)
        assert store.requests == [(page * PAGE, PAGE) for page in range(20)]

    def test_two_interleaved_streams_are_both_recognised(self, make_cache):
        store = CountingStore(DATA)
        file = make_cache("8MiB").open(store)
        for page in range(200):
            assert file.pread(PAGE, page * PAGE) == page_of(page)
            assert file.pread(PAGE, (page + 250) * PAGE) == page_of(page + 250)
        wait_all_read(file)
        assert len(store.requests) < 80
        assert len({offset for offset, _ in store.requests}) == len(store.requests)

    def test_a_stride_of_two_pages_is_sequential(self, make_cache):
        store = CountingStore(DATA)
        file = make_cache("8MiB").open(store)
        scan(file, 200, step=2)
        wait_all_read(file)
        assert len(store.requests) <= 50
        assert len({offset for offset, _ in store.requests}) == len(store.requests)

    def test_many_files_in_turn_share_a_small_budget(self, make_cache):
        nr_files, budget, file_pages = (1000, 64 << 20, 64) if STRESS else (100, 64 * 100 * 1024, 64)
        cache = make_cache(budget)
        data = pages_of(file_pages * PAGE)
        stores = [Store(data, key=f"file-{number}") for number in range(nr_files)]
        files = [cache.open(store) for store in stores]
        for page in range(file_pages):
            for file in files:
                assert file.pread(PAGE, page * PAGE) == data[page * PAGE : (page + 1) * PAGE]
        for file in files:
            wait_all_read(file)
        fetched = sum(size for store in stores for _, size in store.requests)
        assert fetched <= 1.02 * nr_files * len(data)
        assert max(len(store.requests) for store in stores) <= 1.2 * file_pages / 4
        assert cache.stats().resident_bytes <= budget


    def test_reads_larger_than_a_share_of_the_budget_fetch_nothing_beyond(self, make_cache):
        nr_files, file_pages, read_bytes = 100, 128, 32 * PAGE
        cache = make_cache(nr_files * 16 * PAGE)
        data = pages_of(file_pages * PAGE)
        stores = [Store(data, key=f"file-{number}") for number in range(nr_files)]
        files = [cache.open(store) for store in stores]
        for offset in range(0, len(data), read_bytes):
            for file in files:
                assert file.pread(read_bytes, offset) == data[offset : offset + read_bytes]
        for file in files:
            wait_all_read(file)
        assert sum(size for store in stores for _, size in store.requests) <= 1.2 * nr_files * len(data)


class TestHanging:
    def test_pages_before_it_can_be_read_and_other_files_are_not_delayed(self, hanging):
        cache, file, store = hanging
        scan(file, 8)
        assert store.entered.wait(PATIENCE_S)
        other = cache.open(Store(DATA, key="other"))
        scan(other)
        assert file.mincore(8 * PAGE, PAGE) == b"\0"

    def test_the_reader_that_needs_the_page_gets_it_in_the_end(self, hanging):
        _, file, store = hanging
        crew = Crew(lambda: scan(file, 40), lambda: scan(file, 40))
        assert store.entered.wait(PATIENCE_S)
        store.go_on.set()
        crew.join_well()

    def test_ctrl_c_ends_a_wait_for_a_background_read(self, hanging):
        _, file, store = hanging
        scan(file, 5)
        assert store.entered.wait(PATIENCE_S)
        self.interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            file.pread(PAGE, 8 * PAGE)
        assert file.pread(PAGE, 0) == page_of(0)

    def test_ctrl_c_ends_a_wait_for_a_place(self, hanging):
        _, file, store = hanging
        crew = Crew(*[lambda page=page: file.pread(PAGE, page * PAGE) for page in (100, 200, 300, 400)])
        wait_until(lambda: file.mapping.backing.request_queue.nr_running == 4, "all places to be taken")
        self.interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            file.pread(PAGE, 2 * PAGE)
        store.go_on.set()
        assert crew.join_well() == [page_of(page) for page in (100, 200, 300, 400)]
        assert file.pread(PAGE, 2 * PAGE) == page_of(2)

    @staticmethod
    def interrupt_soon():
        """Send this process SIGINT as soon as its main thread waits, over and over until it gives up."""
        main = threading.main_thread().ident
        threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()

    def test_closing_returns_and_the_late_answer_shows_up_nowhere(self, hanging):
        cache, file, store = hanging
        scan(file, 5)
        assert store.entered.wait(PATIENCE_S)
        started = time.monotonic()
        file.close()
        cache.close()
        assert time.monotonic() - started < PATIENCE_S / 2
        assert store.nr_closed == 0  # a read is still in it
        new_cache = pagecache.PageCache("4MiB")
        new_file = new_cache.open(Store(DATA[::-1], key="hanging"))
        assert new_file.pread(len(DATA), 0) == DATA[::-1]
        store.go_on.set()
        wait_until(lambda: store.nr_closed == 1, "the store to be closed after its last read")
        assert new_file.pread(len(DATA), 0) == DATA[::-1]
        wait_all_read(new_file)
        new_cache.check()
        new_cache.close()

    def test_reopening_under_another_version_is_not_disturbed(self, hanging):
        cache, file, store = hanging
        scan(file, 5)
        assert store.entered.wait(PATIENCE_S)
        newer = Store(DATA[::-1], key=store.key)
        newer.version = "2"
        with cache.open(newer) as new_file:
            assert new_file.pread(len(DATA), 0) == DATA[::-1]
            store.go_on.set()
            wait_all_read(file)
            assert new_file.pread(len(DATA), 0) == DATA[::-1]
            wait_all_read(new_file)


class TestErrors:
    def test_of_readahead_never_reach_who_did_not_ask(self, make_cache):
        bad = range(20, 28)
        store = FaultyStore(DATA, lambda _, first, last: OSError(5, "bad") if first in bad or last in bad else None)
        cache = make_cache("4MiB")
        with cache.open(store) as file:
            scan(file, 20)
            wait_all_read(file)
            for page in bad:
                with pytest.raises(OSError, match="bad"):
                    file.pread(PAGE, page * PAGE)
            for page in range(28, 60):
                assert file.pread(PAGE, page * PAGE) == page_of(page)
            wait_all_read(file)
            assert cache.stats().readahead_errors > 0
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("bad", [1, 2, 3])
    def test_of_pages_that_share_a_request_with_those_asked_for_do_not_reach_the_reader(self, make_cache, bad):
        store = FaultyStore(DATA, lambda _, first, last: OSError(5, "bad") if first <= bad <= last else None)
        cache = make_cache("4MiB")
        with cache.open(store) as file:
            assert file.pread(PAGE, 0) == page_of(0)
            with pytest.raises(OSError, match="bad"):
                file.pread(PAGE, bad * PAGE)
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("error", [OSError(5, "x"), ValueError(), MemoryError(), KeyboardInterrupt(), SystemExit()])
    def test_of_any_kind_in_the_background_are_only_counted(self, make_cache, error):
        me = threading.get_ident()
        store = FaultyStore(DATA, lambda *_: error if threading.get_ident() != me else None)
        cache = make_cache("4MiB")
        with cache.open(store) as file:
            scan(file)
            wait_all_read(file)
        assert_nothing_is_held(cache)


def make_direct(cache, path):
    """Open a file past the kernel's cache, if the file system can."""
    try:
        return cache.open(path, direct=True)
    except OSError:
        return cache.open(path)


class TestDescriptors:
    @pytest.fixture(params=[("auto", False), ("auto", True), ("threads", False)], ids=["auto", "registered", "threads"])
    def io_cache(self, request, make_cache):
        backend, registered = request.param
        return lambda size: make_cache(size, io=backend, register_frames=registered)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * PAGE + 511, (1 << 20) + 1, 5_000_001])
    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    def test_files_of_odd_sizes_are_read_right(self, io_cache, data_file, size, direct):
        path, data = data_file(size)
        cache = io_cache("2MiB")
        with make_direct(cache, path) if direct else cache.open(path) as file:
            parts = []
            for offset in range(0, size + 1, 30_000):
                parts.append(file.pread(30_000, offset))
            assert b"".join(parts) == data
            wait_all_read(file)
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    def test_files_are_read_at_random_right(self, io_cache, data_file, rng, direct):
        path, data = data_file(3_000_001)
        cache = io_cache("1MiB")
        file = make_direct(cache, path) if direct else cache.open(path)

        def reader(seed):
            generator = type(rng)(seed)
            for _ in range(150):
                offset, nbytes = generator.randrange(len(data)), generator.randrange(1, 200_000)
                assert file.pread(nbytes, offset) == data[offset : offset + nbytes]

        seeds = [rng.random() for _ in range(3)]
        Crew(*[lambda seed=seed: reader(seed) for seed in seeds]).join_well()
        wait_all_read(file)
        file.close()
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
    @pytest.mark.parametrize("change", ["shrink", "rewrite"])
    def test_a_file_that_changes_meanwhile_is_never_mixed(self, io_cache, data_file, direct, change):
        path, data = data_file(4_000_000)
        cache = io_cache("8MiB")
        file = make_direct(cache, path) if direct else cache.open(path)
        assert file.pread(100_000, 0) == data[:100_000]
        with path.open("r+b") as changed:
            if change == "shrink":
                changed.truncate(150_000)
            else:
                changed.write(bytes(len(data)))
        os.utime(path, ns=(1, 1))
        errors = 0
        for offset in range(0, len(data), 50_000):
            try:
                assert file.pread(50_000, offset) == data[offset : offset + 50_000]
            except OSError:
                errors += 1
        assert errors
        wait_all_read(file)
        file.close()
        assert_nothing_is_held(cache)

    def test_the_backend_is_known(self, make_cache):
        assert make_cache("1MiB", io="threads").io_backend == "threads"
        assert make_cache("1MiB").io_backend in ("io_uring", "threads")
        with pytest.raises(ValueError, match="io must be"):
            make_cache("1MiB", io="aio")
