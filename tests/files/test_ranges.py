"""Many ranges in one call, against slices of the bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PAGE, FaultyStore, Store, assert_nothing_is_held, few, pages_of
from support.remote_stores import CountingStore, wait_all_read

import pagecache
from pagecache.files.ranges import groups_of, missing_runs

NR_PAGES = 64
DATA = pages_of(NR_PAGES * PAGE - 1000)

a_range = st.tuples(
    st.one_of(st.sampled_from([0, 1, PAGE, 3 * PAGE + 1]), st.integers(0, 5 * PAGE)),
    st.one_of(st.integers(0, len(DATA) + PAGE), st.integers(0, NR_PAGES).map(lambda page: page * PAGE)),
)


def expected(ranges):
    """Return what reading ranges of (nbytes, offset) has to give."""
    return [DATA[offset : offset + nbytes] for nbytes, offset in ranges]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranges") / "data"
    path.write_bytes(DATA)
    return path


@pytest.fixture(params=["store", "buffered", "direct"])
def source(request, path):
    """How to open the same bytes: cache -> file."""
    if request.param == "store":
        return lambda cache: cache.open(CountingStore(DATA))
    return lambda cache: cache.open(path, direct=request.param == "direct")


class TestAgainstBytes:
    def test_any_ranges_at_any_cache_size(self, frames, path):
        @settings(few(40))
        @given(
            ranges=st.lists(a_range, max_size=30),
            warm=st.lists(a_range, max_size=4),
            hole_size=st.sampled_from([None, 0, 1, PAGE, 3 * PAGE, 1 << 16, 1 << 40]),
            how=st.sampled_from(["store", "buffered", "direct"]),
        )
        def test(ranges, warm, hole_size, how):
            with pagecache.PageCache(frames * PAGE) as cache:
                store = Store(DATA) if how == "store" else path
                with cache.open(store, direct=how == "direct") as file:
                    for nbytes, offset in warm:
                        file.pread(nbytes, offset)
                    assert file.preadv_many(ranges, hole_size=hole_size) == expected(ranges)
                    offsets, sizes = [o for _, o in ranges], [n for n, _ in ranges]
                    assert file.get_byte_ranges(offsets, sizes) == expected(ranges)
                    wait_all_read(file)
                assert_nothing_is_held(cache)

        test()

    def test_many_ranges_of_each_kind_of_source(self, make_cache, source, rng):
        ranges = [(rng.randrange(1, 9000), rng.randrange(len(DATA))) for _ in range(200)]
        with source(make_cache("2MiB")) as file:
            assert file.preadv_many(ranges) == expected(ranges)
            assert file.preadv_many([]) == []

    @pytest.mark.parametrize("ranges", [[(-1, 0)], [(1, 0), (0, -1)]])
    def test_negative_numbers_are_refused(self, make_cache, source, ranges):
        with source(make_cache("1MiB")) as file:
            with pytest.raises(ValueError, match="negative"):
                file.preadv_many(ranges)
            with pytest.raises(ValueError, match="negative"):
                file.preadv_many([(1, 1)], hole_size=-1)
            with pytest.raises(ValueError, match="zip"):
                file.get_byte_ranges([1, 2], [3])

    def test_a_closed_file_is_refused(self, make_cache, source):
        file = source(make_cache("1MiB"))
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.preadv_many([(1, 1)])


class TestRequests:
    def test_neighbours_in_any_order_become_one(self, make_cache):
        store = CountingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            ranges = [(PAGE, page * PAGE) for page in (13, 11, 10, 12)]
            assert file.preadv_many(ranges) == expected(ranges)
        assert store.requests == [(10 * PAGE, 4 * PAGE)]

    @pytest.mark.parametrize(("hole_size", "nr_requests"), [(0, 3), (PAGE, 2), (3 * PAGE - 1, 2), (3 * PAGE, 1)])
    def test_holes_are_read_through_up_to_a_size(self, make_cache, hole_size, nr_requests):
        store = CountingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            ranges = [(PAGE, page * PAGE) for page in (10, 12, 16)]
            assert file.preadv_many(ranges, hole_size=hole_size) == expected(ranges)
        assert len(store.requests) == nr_requests

    def test_run_in_parallel(self, make_cache):
        store = CountingStore(DATA, together=4)
        with make_cache("1MiB").open(store) as file:
            ranges = [(100, page * PAGE) for page in range(1, 60, 7)]
            assert file.preadv_many(ranges, hole_size=0) == expected(ranges)
        assert store.most_running == 4
        assert sorted(store.requests) == [(page * PAGE, PAGE) for page in range(1, 60, 7)]

    def test_cached_pages_are_not_asked_for(self, make_cache):
        store = CountingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(PAGE, 20 * PAGE)
            ranges = [(3 * PAGE, 19 * PAGE), (1, 40 * PAGE)]
            assert file.preadv_many(ranges, hole_size=0) == expected(ranges)
        assert sorted(store.requests) == [(page * PAGE, PAGE) for page in (19, 20, 21, 40)]

    def test_runs_that_are_missing(self, make_cache):
        with make_cache("1MiB").open(Store(DATA)) as file:
            mapping = file.mapping
            ranges = [(0, 1), (10 * PAGE, 0), (4 * PAGE, 2 * PAGE), (5 * PAGE + 1, PAGE), (len(DATA), 9)]
            assert missing_runs(mapping, ranges, 0) == [(0, 0), (4, 6)]
            assert missing_runs(mapping, ranges, 3 * PAGE) == [(0, 6)]
            assert missing_runs(mapping, [(0, 1 << 62)], 0) == [(0, NR_PAGES - 1)]

    def test_groups_fit_the_budget(self):
        ranges = [(0, 1), (5, 2 * PAGE), (0, 0), (0, 10 * PAGE), (1, 1)]
        assert list(groups_of(ranges, 4)) == [ranges[:3], ranges[3:4], ranges[4:]]
        assert list(groups_of(ranges, 0)) == [[each] for each in ranges]
        assert list(groups_of(ranges, 100)) == [ranges]
        assert list(groups_of([], 1)) == [[]]

    def test_more_than_the_cache_holds_comes_in_parts_in_parallel(self, make_cache):
        store = CountingStore(DATA, together=4)
        with make_cache(16 * PAGE).open(store) as file:
            ranges = [(100, page * PAGE) for page in range(0, 60, 2)]
            assert file.preadv_many(ranges, hole_size=0) == expected(ranges)
        assert store.most_running == 4
        assert sum(size for _, size in store.requests) == 30 * PAGE


class TestErrors:
    def test_a_bad_page_is_raised_and_spoils_no_other(self, make_cache):
        store = FaultyStore(DATA, lambda number, first, last: OSError(5, "bad") if first <= 30 <= last else None)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            good = [(PAGE, page * PAGE) for page in (28, 29, 31, 50)]
            with pytest.raises(OSError, match="bad"):
                file.preadv_many([*good, (1, 30 * PAGE)])
            assert file.preadv_many(good) == expected(good)
        assert_nothing_is_held(cache)
