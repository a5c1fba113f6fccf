"""Small objects of a far store: how much misses earn, that no more is read, and that holes are read through unharmed."""

import errno
import os
import signal
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PAGE, FaultyStore, ShortStore, Store, add_page, assert_nothing_is_held, few, pages_of
from support.remote_stores import wait_all_read

import pagecache
from pagecache.files.ranges import missing_runs
from pagecache.readahead.neighbourhood import BLOCK_PAGES, SMALL_SHARE
from pagecache.requests import speed as store_speeds
from pagecache.requests import submit
from pagecache.requests.speed import PROBE_PAGES

NR_PAGES = 1800
DATA = pages_of(NR_PAGES * PAGE - 1000)
LATENCY_S, BANDWIDTH = 0.02, 200e6
FREE_PAGES = int(LATENCY_S * BANDWIDTH) // PAGE
ENOUGH = SMALL_SHARE * NR_PAGES * PAGE


def make_far(file, sizes=(PAGE, 1024 * PAGE), bandwidth=BANDWIDTH):
    """Let the cache believe that requests of these sizes took so long; it measures nothing more."""
    speed = file.mapping.backing.speed
    for nbytes in sizes:
        speed.observe(nbytes, LATENCY_S + nbytes / bandwidth)
    speed.observe = lambda nbytes, seconds: None
    return file


def pages_read(file):
    """Return (first page, pages) of the requests so far, in order, and forget them."""
    wait_all_read(file)
    store = file.inode.store
    requests, store.requests = store.requests, []
    return sorted((offset // PAGE, -(-nbytes // PAGE)) for offset, nbytes in requests)


def read(file, index, nbytes=5):
    assert file.pread(nbytes, index * PAGE) == DATA[index * PAGE : index * PAGE + nbytes]


@pytest.fixture
def far(make_cache):
    """A file on a small object of a far store, of which nothing is cached."""
    with make_cache(ENOUGH).open(Store(DATA)) as file:
        yield make_far(file)


class TestMisses:
    def test_the_first_brings_its_page_and_the_second_the_object(self, far):
        read(far, 1000)
        assert pages_read(far) == [(1000, 1)]
        read(far, 30)
        assert pages_read(far) == [(0, NR_PAGES)]
        for index in range(NR_PAGES):
            read(far, index)
        assert pages_read(far) == []

    def test_one_measures_what_is_not_known(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            make_far(file, sizes=(PAGE, 4 * PAGE))
            read(file, 1000)
            read(file, 30)
            assert pages_read(file) == [(0, PROBE_PAGES), (1000, 1)]

    def test_over_a_slow_line_bring_what_costs_no_more_than_waiting(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            make_far(file, sizes=(PAGE, 1024 * PAGE), bandwidth=10e6)
            free = int(LATENCY_S * 10e6) // PAGE
            for number, index in enumerate(range(10, 1000, 90), 1):
                read(file, index)
                wait_all_read(file)
                assert file.inode.mapping.cachestat(0, NR_PAGES)[0] <= number * (free + 1)
            assert len(pages_read(file)) == 11

    @settings(few(40))
    @given(
        misses=st.lists(st.integers(0, NR_PAGES - 2), min_size=1, max_size=60),
        bandwidth=st.sampled_from([1e6, 10e6, 100e6, 1e9]),
    )
    def test_never_bring_more_than_they_earned(self, misses, bandwidth):
        with pagecache.PageCache(ENOUGH) as cache, cache.open(Store(DATA)) as file:
            make_far(file, bandwidth=bandwidth)
            free = LATENCY_S * bandwidth / PAGE
            for number, index in enumerate(misses, 1):
                read(file, index)
                wait_all_read(file)
                fetched = sum(nbytes for _, nbytes in file.inode.store.requests) / PAGE
                assert fetched <= (number + 1) * (free + BLOCK_PAGES)  # a stream begins with a block
            assert_nothing_is_held(cache)

    def test_of_pages_that_were_evicted_earn_no_more_than_others(self, far):
        read(far, 1000)
        fetched = 0
        for index in range(0, NR_PAGES, 100):
            read(far, index)
            fetched += sum(nr for _, nr in pages_read(far))
            far.fadvise(pagecache.FADV_DONTNEED)
        assert fetched <= (NR_PAGES // 100 + 2) * (FREE_PAGES + 4)

    def test_advised_to_be_random_bring_just_the_page(self, far):
        far.fadvise(pagecache.FADV_RANDOM)
        for index in (1000, 30, 1500):
            read(far, index)
        assert pages_read(far) == [(30, 1), (1000, 1), (1500, 1)]

    def test_of_an_object_too_large_for_the_cache_bring_just_their_pages(self, make_cache):
        with make_cache(ENOUGH - PAGE * SMALL_SHARE).open(Store(DATA)) as file:
            make_far(file)
            for index in range(100, NR_PAGES, 500):
                read(file, index)
            assert {nr for _, nr in pages_read(file)} == {1}

    def test_of_a_near_store_bring_just_their_pages(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            for _ in range(2):
                file.mapping.backing.speed.observe(PAGE, 0.0001)
            for index in range(100, NR_PAGES, 500):
                read(file, index)
            assert {nr for _, nr in pages_read(file)} == {1}

    def test_of_many_threads_make_few_requests(self, far):
        read(far, 1000)
        pages_read(far)
        barrier = threading.Barrier(8)

        def run(number):
            barrier.wait()
            for index in range(number, NR_PAGES, 64):
                read(far, index, 99)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        requests = pages_read(far)
        assert len(requests) <= 8
        assert NR_PAGES <= sum(nr for _, nr in requests) + 1 <= 2 * NR_PAGES


class TestHoles:
    def test_that_are_cached_are_read_through_and_stay_as_they_are(self, far):
        for index in (100, 102, 103, 130):
            assert add_page(far.mapping, index, b"mine")
        read(far, 1000)
        pages_read(far)
        read(far, 5)
        assert pages_read(far) == [(0, NR_PAGES)]
        assert far.pread(4, 102 * PAGE) == far.pread(4, 130 * PAGE) == b"mine"
        read(far, 101, PAGE)
        read(far, 104, 20 * PAGE)
        read(far, 131, PAGE)

    def test_that_cost_more_than_a_request_are_not(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            make_far(file, sizes=(PAGE, 1024 * PAGE), bandwidth=10e6)
            hole = file.mapping.backing.hole_pages()
            for index in range(10, 10 + hole + 1):
                assert add_page(file.mapping, index)
            for index in range(100, 100 + hole):
                assert add_page(file.mapping, index)
            requests = [
                (request[0].start, request[-1].next_index, sum(batch.nr_pages for batch in request))
                for request in submit.requests_for(file.mapping, [(0, 200)], 1000)
            ]
            end = 10 + hole + 1
            assert requests == [(0, 10, 10), (end, 201, 201 - end - hole)]

    @settings(few(60))
    @given(
        cached=st.sets(st.integers(0, 199)),
        per_request=st.integers(1, 250),
        span=st.tuples(st.integers(0, 199), st.integers(0, 199)).map(sorted),
    )
    def test_requests_cover_what_is_missing_once(self, cached, per_request, span):
        first, last = span
        with pagecache.PageCache(1024 * PAGE) as cache, cache.open(Store(DATA)) as file:
            make_far(file)
            for index in cached:
                assert add_page(file.mapping, index)
            pages = []
            for request in submit.requests_for(file.mapping, [(first, last)], per_request):
                assert request
                whole = request[-1].next_index - request[0].start
                assert whole <= max(per_request, 1 << submit.BLOCK_ORDER) + (1 << submit.BLOCK_ORDER)
                pages += [n for batch in request for n in range(batch.start, batch.next_index)]
                for batch in request:
                    batch.release()
            assert pages == [n for n in range(first, last + 1) if n not in cached]

    @pytest.mark.parametrize("limit", [30 * PAGE + 5, 100 * PAGE])
    def test_with_short_answers(self, make_cache, limit):
        with make_cache(ENOUGH).open(ShortStore(DATA, limit)) as file:
            make_far(file)
            for index in range(3, NR_PAGES, 11):
                assert add_page(file.mapping, index, DATA[index * PAGE : (index + 1) * PAGE])
            for index in (1000, 0):
                read(file, index)
            assert file.pread(len(DATA), 0) == DATA

    def test_an_object_that_changes_meanwhile_leaves_nothing(self, make_cache):
        store = FaultyStore(DATA, lambda number, first, last: None)
        with make_cache(ENOUGH).open(store) as file:
            make_far(file)
            read(file, 1000)

            def replace(number, first, last):
                store.version = "2"

            store.fault = replace
            for _ in range(2):
                with pytest.raises(OSError) as caught:
                    file.pread(5, 0)
                assert caught.value.errno == errno.ESTALE
            wait_all_read(file)
            assert file.inode.mapping.cachestat(0, NR_PAGES)[0] == 1

    def test_a_bad_page_spoils_only_itself(self, make_cache):
        bad = 700
        store = FaultyStore(DATA, lambda _, first, last: OSError(5, "bad page") if first <= bad <= last else None)
        with make_cache(ENOUGH).open(store) as file:
            make_far(file)
            for index in (1000, 30, 699, 701):
                read(file, index)
            with pytest.raises(OSError, match="bad page"):
                file.pread(1, bad * PAGE)
            read(file, 1999)


class TestOrigins:
    def test_share_what_is_measured(self, make_cache):
        cache = make_cache(ENOUGH)
        first, second, other = Store(DATA, "a"), Store(DATA, "b"), Store(DATA, "c")
        first.origin = second.origin = "test_small_objects one"
        other.origin = "test_small_objects another"
        with cache.open(first) as one, cache.open(second) as two, cache.open(other) as three:
            speeds = [file.mapping.backing.speed for file in (one, two, three)]
            assert speeds[0] is speeds[1]
            assert speeds[0] is not speeds[2]
        assert store_speeds.speed_of("test_small_objects one") is speeds[0]

    def test_are_not_remembered_without_end(self):
        kept = store_speeds.speed_of("test_small_objects kept")
        for number in range(2 * store_speeds.MAX_ORIGINS):
            store_speeds.speed_of(f"test_small_objects {number}")
            assert store_speeds.speed_of("test_small_objects kept") is kept
        assert len(store_speeds._origins) == store_speeds.MAX_ORIGINS

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_can_be_used_in_a_child_whose_parent_was_measuring(self):
        speed = store_speeds.speed_of("test_small_objects forked")
        is_held, may_end = threading.Event(), threading.Event()

        def measure():
            with store_speeds._origins_lock.held(), speed._lock.held():
                is_held.set()
                may_end.wait()

        measuring = threading.Thread(target=measure)
        measuring.start()
        is_held.wait()
        try:
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # ends it if it hangs
                store_speeds.speed_of("test_small_objects forked").observe(PAGE, 0.1)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        finally:
            may_end.set()
            measuring.join()

    def test_without_a_name_are_their_own(self):
        assert store_speeds.speed_of(None) is not store_speeds.speed_of(None)


class TestRangesOfAFarStore:
    """Ranges are joined over what costs less than a request; at most as much is thrown away as is wanted."""

    def runs(self, file, pages, **how):
        return missing_runs(file.mapping, [(first * PAGE, nr * PAGE) for first, nr in pages], **how)

    def test_over_holes_that_cost_less_than_a_request(self, far):
        assert self.runs(far, [(0, 100), (200, 100)]) == [(0, 299)]

    def test_not_over_those_that_cost_more(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            make_far(file, bandwidth=10e6)
            free = int(LATENCY_S * 10e6) // PAGE
            assert self.runs(file, [(0, 500), (500 + free, 500)]) == [(0, 999 + free)]
            assert self.runs(file, [(0, 500), (501 + free, 500)]) == [(0, 499), (501 + free, 1000 + free)]

    def test_not_where_more_is_thrown_away_than_wanted(self, far):
        assert self.runs(far, [(0, 50), (150, 50)]) == [(0, 199)]
        assert self.runs(far, [(0, 50), (151, 50)]) == [(0, 49), (151, 200)]
        assert self.runs(far, [(0, 50), (150, 50), (260, 9)]) == [(0, 199), (260, 268)]

    def test_nor_into_more_than_a_request(self, far):
        most = far.mapping.backing.hints.max_request // PAGE
        assert most > NR_PAGES
        object.__setattr__(far.mapping.backing.hints, "max_request", 250 * PAGE)
        assert self.runs(far, [(0, 100), (200, 100)]) == [(0, 99), (200, 299)]

    def test_as_far_as_the_caller_says(self, far):
        assert self.runs(far, [(0, 100), (200, 100)], hole_size=99 * PAGE) == [(0, 99), (200, 299)]
        assert self.runs(far, [(0, 1), (200, 1)], hole_size=199 * PAGE) == [(0, 200)]

    def test_of_a_near_store_over_little(self, make_cache):
        with make_cache(ENOUGH).open(Store(DATA)) as file:
            assert self.runs(file, [(0, 100), (116, 100), (233, 1)]) == [(0, 215), (233, 233)]

    def test_that_would_not_fit_with_their_holes_are_read_without(self, make_cache):
        with make_cache(400 * PAGE).open(Store(DATA)) as file:
            make_far(file)
            ranges = [(60 * PAGE, first * PAGE) for first in (0, 110, 220)]
            assert file.preadv_many(ranges) == [DATA[offset : offset + nbytes] for nbytes, offset in ranges]
            assert pages_read(file) == [(0, 60), (110, 60), (220, 60)]
