"""One read in flight for a page, however many readers want it; and which of them the failure of a read concerns."""

import errno
import gc
import random
import weakref

import pytest
from support import (
    PAGE,
    BlockingStore,
    Crew,
    FaultyStore,
    Store,
    assert_nothing_is_held,
    nr_threads_waiting,
    pages_of,
    wait_until,
)

import pagecache

NR_THREADS = 8
DATA = pages_of(100 * PAGE)


def read_together(file, store, offset, error=None, way="pread"):
    """Let eight threads want one cold page, answer (or fail) when all of them wait for it. Returns what each got."""
    reads = {
        "pread": lambda: file.pread(PAGE, offset),
        "view": lambda: bytes(file.view(PAGE, offset)),
        "preadinto": lambda: file.preadinto(bytearray(PAGE), offset),
        "handles": lambda: file.cache.open(store).pread(PAGE, offset),
    }
    store.error = error
    crew = Crew(*[reads[way]] * NR_THREADS)
    wait_until(lambda: nr_threads_waiting(crew.threads) == NR_THREADS - 1, "seven threads to wait for the eighth")
    store.go_on.set()
    return crew.join()


class TestOneRead:
    @pytest.mark.parametrize("way", ["pread", "view", "preadinto"])
    @pytest.mark.parametrize("page", [0, 5, 99])
    def test_eight_threads_that_want_one_cold_page_cause_one_store_read(self, make_cache, page, way):
        store = BlockingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            results = read_together(file, store, page * PAGE, way=way)
            expected = PAGE if way == "preadinto" else DATA[page * PAGE : (page + 1) * PAGE]
            assert results == [expected] * NR_THREADS
            assert len(store.requests) == 1
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
            assert len(store.requests) == 1

    def test_threads_with_handles_of_their_own_share_the_read(self, make_cache):
        store = BlockingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            assert read_together(file, store, 7 * PAGE, way="handles") == [DATA[7 * PAGE : 8 * PAGE]] * NR_THREADS
            assert len(store.requests) == 1

    def test_other_pages_can_be_read_meanwhile(self, make_cache):
        class HangsAtPage50(BlockingStore):
            def answer(self, offset, buffers):
                answer = super().answer if offset == 50 * PAGE else lambda *args: Store.answer(self, *args)
                return answer(offset, buffers)

        store = HangsAtPage50(DATA)
        with make_cache("1MiB").open(store) as file:
            crew = Crew(lambda: file.pread(10, 50 * PAGE))
            assert store.entered.wait(30)
            assert file.pread(PAGE, 20 * PAGE) == DATA[20 * PAGE : 21 * PAGE]
            assert file.mincore()[50] == 0
            store.go_on.set()
            assert crew.join() == [DATA[50 * PAGE :][:10]]

    def test_a_page_on_its_way_by_readahead_is_not_asked_for_again(self, make_cache):
        store = BlockingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            crew = Crew(lambda: file.pread(10, 0))
            assert store.entered.wait(30)
            late = Crew(lambda: file.pread(10, 2 * PAGE))
            wait_until(lambda: nr_threads_waiting(late.threads) == 1, "the second reader to wait for the first window")
            store.go_on.set()
            assert crew.join() + late.join() == [DATA[:10], DATA[2 * PAGE :][:10]]
            assert store.requests[0] == (0, 4 * PAGE)
            assert [offset for offset, _ in store.requests].count(2 * PAGE) == 0

    @pytest.mark.stress
    def test_no_page_is_read_twice_while_it_stays_cached(self, make_cache, seed):
        store = Store(DATA)
        with make_cache("4MiB").open(store) as file:

            def reader(number):
                rng = random.Random(seed + number)
                for page in rng.sample(range(100), 100):
                    assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]

            Crew(*(lambda number=number: reader(number) for number in range(NR_THREADS))).join_well()
        assert sum(nbytes for _, nbytes in store.requests) == len(DATA)


class TestFailure:
    @pytest.mark.parametrize("page", [5, 99])
    def test_of_the_read_reaches_everyone_who_waited(self, make_cache, page):
        store = BlockingStore(DATA, key="the object")
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            results = read_together(file, store, page * PAGE, OSError(errno.EREMOTEIO, "the disk is on fire"))
            assert [type(result) for result in results] == [OSError] * NR_THREADS
            assert len(set(map(id, results))) == NR_THREADS
            for error in results:
                assert error.errno == errno.EREMOTEIO
                assert all(word in str(error) for word in ("the object", f"{page * PAGE}", "the disk is on fire"))
            assert len(store.requests) == 1
            assert file.mincore()[page] == 0
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
            assert len(store.requests) == 2
            assert_nothing_is_held(cache)

    @pytest.mark.parametrize(
        "error, number",
        [
            (OSError(errno.EIO, "bad sector"), errno.EIO),
            (TimeoutError("no answer"), errno.ETIMEDOUT),
            (ValueError("not an OSError"), errno.EIO),
            (MemoryError(), errno.EIO),
        ],
    )
    def test_of_any_kind_is_an_oserror_for_all(self, make_cache, error, number):
        store = BlockingStore(DATA)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            results = read_together(file, store, 5 * PAGE, error)
            assert [result.errno for result in results] == [number] * NR_THREADS
            assert [result.__cause__ for result in results].count(error) == 1
            assert_nothing_is_held(cache)

    def test_interrupted_reader_leaves_the_page_to_those_who_wait(self, make_cache):
        store = BlockingStore(DATA)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            results = read_together(file, store, 5 * PAGE, KeyboardInterrupt())
            assert [type(result) for result in results].count(KeyboardInterrupt) == 1
            assert results.count(DATA[5 * PAGE : 6 * PAGE]) == NR_THREADS - 1
            assert len(store.requests) == 2
            assert_nothing_is_held(cache)

    def test_leaves_nothing_alive_of_the_failed_call(self, make_cache):
        class Failure(Exception):
            pass

        errors = []

        def fault(number, first, last):
            error = Failure("once" * 1000)
            errors.append(weakref.ref(error))
            return error

        with make_cache("1MiB").open(FaultyStore(DATA, fault)) as file:
            for page in range(5, 60):
                with pytest.raises(OSError):
                    file.pread(PAGE, page * PAGE)
            gc.collect()
            assert [error for error in errors if error() is not None] == []

    def test_does_not_use_up_the_budget_while_its_error_is_kept(self, make_cache, frames):
        cache = make_cache(frames * PAGE)
        store = FaultyStore(DATA, lambda number, first, last: OSError(errno.EIO, "bad") if number < 200 else None)
        errors = []
        with cache.open(store) as file:
            while not errors or errors[-1] is not None:
                try:
                    file.pread(PAGE, 5 * PAGE)
                    errors.append(None)
                except OSError as error:
                    assert not isinstance(error, pagecache.CacheFullError)
                    errors.append(error)
            assert len(errors) > 50
            assert file.pread(len(DATA), 0) == DATA
            assert_nothing_is_held(cache)


class TestFailedReadahead:
    @pytest.mark.parametrize("bad", [1, 3, 7, 20])
    def test_never_fails_a_page_that_reads_well_by_itself(self, make_cache, frames, bad):
        def fault(number, first, last):
            return OSError(errno.EIO, f"page {bad} is bad") if first <= bad <= last else None

        cache = make_cache(frames * PAGE)
        with cache.open(FaultyStore(DATA, fault)) as file:
            for page in range(100):
                if page == bad:
                    with pytest.raises(OSError, match=f"offset {bad * PAGE}: page {bad} is bad"):
                        file.pread(PAGE, page * PAGE)
                else:
                    assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
            assert cache.stats().readahead_errors > 0
            assert_nothing_is_held(cache)

    def test_of_every_window_leaves_every_page_readable(self, make_cache, frames):
        def fault(number, first, last):
            return OSError(errno.EIO, "one page at a time, please") if last > first else None

        with make_cache(frames * PAGE).open(FaultyStore(DATA, fault)) as file:
            assert b"".join(file.pread(PAGE, page * PAGE) for page in range(100)) == DATA

    def test_by_advice_is_not_shown(self, make_cache):
        store = FaultyStore(DATA, lambda number, first, last: OSError(errno.EIO, "bad") if number < 2 else None)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            file.fadvise(pagecache.FADV_WILLNEED, 0, 8 * PAGE)
            cache.check()
            assert cache.stats().readahead_errors == 1
            assert sum(file.mincore()) == 0
            with pytest.raises(OSError, match="bad"):
                file.pread(PAGE, 50 * PAGE)
            assert file.pread(8 * PAGE, 0) == DATA[: 8 * PAGE]


@pytest.mark.parametrize("broken_call", range(12))
def test_any_single_failure_is_survived(make_cache, frames, broken_call):
    """The n-th store call fails: one error, or none where it was only readahead; then all bytes are right."""
    cache = make_cache(frames * PAGE)
    store = FaultyStore(DATA, lambda number, first, last: OSError(errno.EIO, "n-th") if number == broken_call else None)
    ranges = [(3 * PAGE, offset) for offset in range(0, len(DATA), 3 * PAGE)] + [(len(DATA), 0)]
    nr_errors = 0
    with cache.open(store) as file:
        for nbytes, offset in ranges:
            try:
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            except OSError:
                nr_errors += 1
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
        assert nr_errors <= 1
    assert_nothing_is_held(cache)
