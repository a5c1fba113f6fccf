"""The readahead formulas and the windows of known access patterns, number by number.

The rules: docs/kernel.md, readahead formulas.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, WindowLog, checked_cache, few

import pagecache
from pagecache import readahead
from pagecache._core import AddressSpace, FileRaState, Segment
from pagecache.readahead import ondemand

INIT = {  # req: (size, async, marker from 0) with 32 pages
    1: (4, 3, 1), 2: (4, 2, 2), 3: (8, 5, 3), 4: (8, 4, 4), 5: (16, 11, 5), 6: (16, 10, 6), 7: (16, 9, 7),
    8: (16, 8, 8), 9: (32, 23, 9), 12: (32, 20, 12), 16: (32, 16, 16), 17: (32, 15, 17), 24: (32, 8, 24),
    31: (32, 1, 31), 32: (32, 16, 16),
}  # fmt: skip
NEXT = {1: 4, 2: 4, 3: 6, 4: 8, 8: 16, 12: 24, 16: 32, 17: 32, 24: 32, 32: 32}


@pytest.fixture
def windows(monkeypatch):
    """What readahead issues from now on."""
    return WindowLog(monkeypatch)


@pytest.fixture
def small_folios_only(monkeypatch):
    """Make readahead use folios of one page, as for an object that cannot have large ones."""
    monkeypatch.setattr(ondemand, "MAX_FOLIO_ORDER", 0)


@pytest.fixture
def open_file():
    """A factory of files of so many pages, in a cache that holds all of them."""
    opened = []

    def make(nr_pages=4096, *, ra_pages=32, io_pages=0):
        cache = pagecache.PageCache(2 * nr_pages * PAGE)
        file = cache.open(pagecache.MemoryStore(bytes(nr_pages * PAGE)))
        file.ra.ra_pages, file.ra.io_pages = ra_pages, io_pages
        opened.append((cache, file))
        return file

    yield make
    for cache, file in opened:
        file.close()
        cache.check()
        cache.close()


def read_pages(file, indexes, nr=1):
    for index in indexes:
        assert len(file.pread(nr * PAGE, index * PAGE)) == nr * PAGE


class TestFormulas:
    @pytest.mark.parametrize(("req", "expected"), INIT.items())
    def test_first_window(self, req, expected, windows, open_file):
        size, async_size, marker = expected
        assert readahead.init_ra_size(req, 32) == size
        file = open_file(64)
        file.pread(req * PAGE, 0)
        assert windows.issued[0] == f"0+{size}/{async_size}"
        assert size - async_size == marker

    @pytest.mark.parametrize(("req", "expected"), INIT.items())
    def test_the_marker_is_on_the_first_page_that_was_not_asked_for(self, req, expected, open_file):
        file = open_file(64)
        readahead.page_cache_sync_ra(file.mapping, file.ra, 0, req)
        marked = [index for index, _, _ in file.mapping.folios() if file.mapping.get_folio(index).readahead]
        assert marked == [expected[2]]

    @pytest.mark.parametrize(("current", "expected"), NEXT.items())
    def test_next_window(self, current, expected):
        assert readahead.next_ra_size(current, 32) == expected

    @given(st.integers(1, 1 << 20), st.integers(1, 1 << 14))
    def test_windows_grow_to_the_limit_and_never_past_it(self, size, limit):
        assert 1 <= readahead.next_ra_size(size, limit) <= limit
        grown = min(size, limit)
        for _ in range(20):
            before, grown = grown, readahead.next_ra_size(grown, limit)
            assert before <= grown <= max(limit, 1)
        assert grown == limit

    @given(st.integers(1, 1 << 20), st.integers(1, 1 << 14))
    def test_first_windows_are_whole_powers_of_two_or_the_limit(self, req, limit):
        size = readahead.init_ra_size(req, limit)
        assert size == limit or (size & (size - 1) == 0 and req <= size <= limit)

    @pytest.mark.parametrize(
        ("req", "ra_pages", "io_pages", "expected"),
        [(1, 32, 0, 32), (64, 32, 0, 32), (64, 32, 16, 32), (64, 32, 32, 32), (64, 32, 256, 64), (32, 32, 256, 32),
         (500, 32, 256, 256), (33, 32, 33, 33), (1, 0, 256, 1)],
    )  # fmt: skip
    def test_a_large_request_may_exceed_the_window_if_the_store_can(self, req, ra_pages, io_pages, expected):
        assert readahead.max_window(FileRaState(ra_pages, io_pages), req) == expected


class TestTraces:
    def test_sequential_without_large_folios(self, windows, open_file, small_folios_only):
        file = open_file()
        read_pages(file, range(130))
        assert windows.issued[:7] == ["0+4/3", "4+8/8", "12+16/16", "28+32/32", "60+32/32", "92+32/32", "124+32/32"]
        assert {order for _, order, _ in file.mapping.folios()} == {0}

    def test_each_window_is_started_by_the_first_page_of_the_one_before(self, windows, open_file, small_folios_only):
        file = open_file()
        started = []
        for index in range(130):
            before = len(windows.issued)
            read_pages(file, [index])
            started += [index] * (len(windows.issued) - before)
        assert started == [0, 1, 4, 12, 28, 60, 92, 124]

    def test_sequential_with_large_folios(self, windows, open_file):
        file = open_file()
        read_pages(file, range(96))
        assert windows.issued[:9] == [
            "0+4/3", "4+8/8", "12+4/4", "16+8/8", "24+8/8", "32+16/16", "48+16/16", "64+32/32", "96+32/32",
        ]  # fmt: skip
        orders = [(index, order) for index, order, _ in file.mapping.folios()]
        assert orders[:13] == [
            (0, 0), (1, 0), (2, 0), (3, 0), (4, 2), (8, 2), (12, 2), (16, 3), (24, 3), (32, 4), (48, 4), (64, 5),
            (96, 5),
        ]  # fmt: skip

    def test_reads_of_four_pages(self, windows, open_file, small_folios_only):
        read_pages(open_file(), range(0, 60, 4), 4)
        assert windows.issued[:4] == ["0+8/4", "8+16/16", "24+32/32", "56+32/32"]

    def test_reads_as_long_as_the_window(self, windows, open_file):
        read_pages(open_file(), range(0, 96, 32), 32)
        assert windows.issued[:3] == ["0+32/16", "32+32/32", "64+32/32"]

    def test_reads_longer_than_the_window_that_the_store_can_serve_at_once(self, windows, open_file):
        read_pages(open_file(io_pages=256), range(0, 192, 64), 64)
        assert windows.issued[:3] == ["0+64/32", "64+64/64", "128+64/64"]

    def test_small_reads_are_as_good_as_whole_pages(self, windows, open_file, small_folios_only):
        file = open_file()
        for pos in range(0, 70 * PAGE, 100):
            file.pread(100, pos)
        assert windows.issued[:5] == ["0+4/3", "4+8/8", "12+16/16", "28+32/32", "60+32/32"]

    def test_random_reads_bring_what_they_ask_for_until_they_turn_sequential(self, windows, open_file):
        file = open_file()
        read_pages(file, [500, 77, 300])
        assert windows.issued == ["500:1", "77:1", "300:1"]
        assert [index for index, _, _ in file.mapping.folios()] == [77, 300, 500]
        read_pages(file, range(301, 306))
        assert windows.issued[3:5] == ["301+4/3", "305+7/7"]

    def test_two_streams_through_one_file_find_their_windows_again(self, windows, open_file, small_folios_only):
        file = open_file()
        for step in range(40):
            read_pages(file, [step, 500 + step])
        first = [window for window in windows.issued if int(window.replace(":", "+").split("+")[0]) < 500]
        second = [window for window in windows.issued if window not in first]
        assert first[:4] == ["0+4/3", "4+8/8", "12+16/16", "28+32/32"]
        assert second[:8] == [
            "500:1", "501:1", "502+3/1", "505+3/3", "508+4/4", "512+8/8", "520+16/16", "536+32/32",
        ]  # fmt: skip

    def test_every_second_page_counts_as_sequential(self, windows, open_file):
        read_pages(open_file(), range(0, 12, 2))
        assert windows.issued == ["0+4/3", "4+4/3", "8+4/3"]

    def test_a_large_window_is_read_with_large_folios(self, windows, open_file):
        file = open_file(ra_pages=1024)
        read_pages(file, range(2100))
        assert [window.split("/")[0] for window in windows.issued[:9]] == [
            "0+4", "4+16", "20+60", "80+240", "320+448", "768+256", "1024+512", "1536+512", "2048+1024",
        ]  # fmt: skip
        assert {order for index, order, _ in file.mapping.folios() if 1024 <= index < 3072} == {9}


class TestMissKinds:
    """Which window a miss opens, by what was read before and what is cached."""

    def cached(self, file, first, nr):
        file.ra.prev_pos = -1
        readahead.page_cache_ra_unbounded(file.mapping, first, nr, -1, demand_end=first + nr)

    @pytest.mark.parametrize(
        ("cached", "index", "req", "expected"),
        [
            ((100, 5), 105, 1, "105+6/1"),
            ((100, 2), 102, 1, "102+3/1"),
            ((100, 20), 120, 20, "120:20"),  # no longer a history than what is asked for
            ((100, 3), 103, 3, "103:3"),
            ((100, 3), 103, 2, "103+5/1"),
            ((100, 31), 131, 8, "131+32/1"),
            ((100, 80), 180, 31, "180+32/1"),
            ((100, 80), 180, 32, "180:32"),  # the scan stops after a window
            ((0, 5), 5, 1, "5+11/1"),  # cached from the start of the file: twice the history
            ((0, 5), 5, 8, "5:8"),
            ((0, 40), 40, 1, "40+32/1"),
            ((90, 5), 105, 1, "105:1"),  # a gap in between
        ],
    )
    def test_history_in_the_cache_decides(self, cached, index, req, expected, windows, open_file):
        file = open_file(512)
        self.cached(file, *cached)
        readahead.page_cache_sync_ra(file.mapping, file.ra, index, req)
        assert windows.issued == [expected]

    def test_a_shadow_is_a_gap(self, windows):
        with checked_cache(64) as cache, cache.open(pagecache.MemoryStore(bytes(512 * PAGE))) as file:
            self.cached(file, 100, 5)
            cache.segment.reclaim(64)
            assert file.cachestat().nr_evicted == 5
            windows.issued.clear()
            readahead.page_cache_sync_ra(file.mapping, file.ra, 105, 1)
            assert windows.issued == ["105:1"]

    @pytest.mark.parametrize("index", [0, 100])
    def test_an_oversized_request_opens_a_window(self, index, windows, open_file):
        file = open_file(512)
        readahead.page_cache_sync_ra(file.mapping, file.ra, index, 40)
        assert windows.issued == [f"{index}+32/16"]

    @pytest.mark.parametrize(("prev_page", "expected"), [(99, "100+4/3"), (100, "100+4/3"), (98, "100:1"),
                                                         (101, "100:1"), (-1, "100:1")])  # fmt: skip
    def test_sequential_is_the_same_page_or_the_next(self, prev_page, expected, windows, open_file):
        file = open_file(512)
        file.ra.prev_pos = prev_page * PAGE + 5 if prev_page >= 0 else -1
        readahead.page_cache_sync_ra(file.mapping, file.ra, 100, 1)
        assert windows.issued == [expected]

    def test_a_random_read_leaves_the_state_alone_and_marks_nothing(self, windows, open_file):
        file = open_file(512)
        read_pages(file, range(5))
        state = (file.ra.start, file.ra.size, file.ra.async_size)
        readahead.page_cache_sync_ra(file.mapping, file.ra, 200, 3)
        assert (file.ra.start, file.ra.size, file.ra.async_size) == state
        assert not any(file.mapping.get_folio(index).readahead for index in (200, 201, 202))

    def test_without_readahead_each_miss_reads_one_page(self, windows, open_file):
        file = open_file(512, ra_pages=0, io_pages=64)
        read_pages(file, [0, 1, 2, 50])
        assert windows.issued == ["0:1", "1:1", "2:1", "50:1"]

    def test_a_file_advised_random_reads_exactly_the_request(self, windows, open_file):
        file = open_file(512)
        file.fadvise(pagecache.FADV_RANDOM)
        read_pages(file, [0, 4, 8], nr=3)
        assert windows.issued == ["0:3", "4:3", "8:3"]
        assert (file.ra.start, file.ra.size, file.ra.async_size) == (0, 0, 0)
        assert file.mapping.nrpages == 9


@few(60)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5)), max_size=40),
    st.lists(st.tuples(st.integers(0, 320), st.integers(1, 100)), min_size=1, max_size=20),
)
def test_gaps_are_found_as_page_by_page(placed, asked):
    """The scans over the index agree with looking at one page after the other."""
    segment = Segment(1024, nr_mappings=4, data=False)
    mapping = AddressSpace(segment)
    for index, order in placed:
        folio = segment.alloc_folio(order)
        if mapping.add_folio(folio, index >> order << order) == 0:
            folio.unlock()
        folio.put()

    def is_cached(index):
        return mapping.get_folio(index) is not None

    for index, limit in asked:
        ahead = (at for at in range(index, index + limit) if not is_cached(at))
        assert mapping.next_gap(index, limit) == next(ahead, index + limit)
        behind = (at for at in range(index, index - limit, -1) if at < 0 or not is_cached(at))
        assert mapping.prev_gap(index, limit) == next(behind, index - limit)
    segment.check()
