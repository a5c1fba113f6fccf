"""Starting the next window, issuing one, and advice: markers, folio sizes, cached pages, errors.

The rules: docs/kernel.md, issuing a window.
"""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, PATIENCE_S, FaultyStore, Store, WindowLog, checked_cache, few, pages_of, wait_until

import pagecache
from pagecache import readahead
from pagecache.readahead import ondemand


@pytest.fixture
def windows(monkeypatch):
    """What readahead issues from now on."""
    return WindowLog(monkeypatch)


@pytest.fixture
def open_file(make_cache):
    """A factory of files of so many pages in a cache that holds them all; `file.store` counts the requests."""
    opened = []

    def make(nr_pages=512, *, ra_pages=32, io_pages=0, nbytes=None, store=None):
        nbytes = nr_pages * PAGE if nbytes is None else nbytes
        store = store or Store(pages_of(nbytes))
        store.preferred_request = store.max_request = 4096 * PAGE  # so that no window is divided into requests
        file = make_cache(2048 * PAGE).open(store)
        file.ra.ra_pages, file.ra.io_pages = ra_pages, io_pages
        opened.append(file)
        return file

    yield make
    for file in opened:
        file.close()


def requests(file):
    """Return (first page, pages) of each request that the store got, when it has answered all of them."""
    assert file.inode.wait_idle(PATIENCE_S)
    return [(offset // PAGE, -(-nbytes // PAGE)) for offset, nbytes in file.inode.store.requests]


def marked(file):
    """Return the first pages of the folios that carry the marker."""
    return [index for index, _, _ in file.mapping.folios() if file.mapping.get_folio(index).readahead]


def sizes(file):
    """Return (first page, pages) of each cached folio."""
    return [(index, 1 << order) for index, order, _ in file.mapping.folios()]


def issue(file, start, size, async_size, order=0, demand_end=0):
    """Issue a window."""
    file.ra.start, file.ra.size, file.ra.async_size, file.ra.order = start, size, async_size, order
    ondemand.page_cache_ra_order(file.mapping, file.ra, demand_end=demand_end)


def touch(file, index, req=1):
    """Touch the marked folio that holds a page, as a reader does."""
    folio = file.mapping.get_folio(index)
    readahead.page_cache_async_ra(file.mapping, file.ra, folio.index, folio, req)
    return folio


class TestNextWindow:
    """page_cache_async_ra."""

    def test_follows_the_present_one_and_is_marked_at_its_first_page(self, windows, open_file):
        file = open_file()
        issue(file, 0, 4, 3)
        folio = touch(file, 1)
        assert windows.issued[-1] == "4+8/8"
        assert not folio.readahead
        assert marked(file) == [4]

    def test_never_shrinks(self, windows, open_file):
        file = open_file(ra_pages=64)
        issue(file, 0, 64, 32)
        file.ra.ra_pages = 16
        touch(file, 32)
        assert windows.issued[-1] == "64+64/64"

    @pytest.mark.parametrize(
        ("start", "order", "ra_pages", "expected"),
        [(100, 0, 32, "104+8/8"), (101, 0, 32, "105+7/7"), (101, 1, 32, "105+7/7"), (101, 3, 64, "105+8/8"),
         (101, 0, 33, "105+8/8"), (101, 0, 34, "105+7/7"), (106, 2, 32, "110+2/2")],
    )  # fmt: skip
    def test_ends_on_a_multiple_of_its_folios(self, start, order, ra_pages, expected, windows, open_file):
        file = open_file(ra_pages=ra_pages)
        issue(file, start, 4, 3)
        file.ra.order = order
        touch(file, start + 1)
        assert windows.issued[-1] == expected

    def test_another_stream_finds_where_the_cached_pages_end(self, windows, open_file, monkeypatch):
        monkeypatch.setattr(ondemand, "MAX_FOLIO_ORDER", 0)
        file = open_file()
        issue(file, 100, 8, 6)
        file.ra.start, file.ra.size, file.ra.async_size = 0, 4, 3
        touch(file, 102, req=2)
        assert windows.issued[-1] == "108+16/16"  # next(108 - 102 + 2, 32)

    def test_is_given_up_when_all_that_could_follow_is_cached(self, windows, open_file):
        file = open_file()
        issue(file, 100, 8, 6)
        readahead.page_cache_ra_unbounded(file.mapping, 108, 60, -1, demand_end=0)
        file.ra.start, file.ra.size, file.ra.async_size = 0, 4, 3
        nr_requests, nr_windows = len(requests(file)), len(windows.issued)
        assert not touch(file, 102).readahead
        assert (file.ra.start, file.ra.size, file.ra.async_size) == (0, 4, 3)
        assert (len(requests(file)), len(windows.issued)) == (nr_requests, nr_windows)

    def test_is_not_started_without_readahead_and_the_marker_stays(self, windows, open_file):
        file = open_file()
        issue(file, 0, 4, 3)
        file.ra.ra_pages = 0
        assert touch(file, 1).readahead
        assert windows.issued == ["0+4/3"]

    def test_is_started_by_one_of_many(self, windows, open_file):
        file = open_file()
        issue(file, 0, 4, 3)
        for _ in range(3):
            touch(file, 1)
        assert windows.issued == ["0+4/3", "4+8/8"]

    def test_is_started_by_the_first_page_of_a_marked_folio_whichever_page_was_read(self, windows, open_file):
        file = open_file()
        issue(file, 16, 16, 16, order=4)
        file.pread(1, 27 * PAGE)
        assert windows.issued[-1].startswith("32+")

    def test_that_fails_concerns_no_reader(self, open_file):
        data = pages_of(64 * PAGE)
        file = open_file(
            store=FaultyStore(data, lambda number, first, last: OSError(errno.EIO, "gone") if last >= 4 else None)
        )
        assert file.pread(PAGE, 0) == data[:PAGE]
        assert file.pread(PAGE, PAGE) == data[PAGE : 2 * PAGE]
        assert file.inode.wait_idle(PATIENCE_S)
        assert file.mapping.nrpages == 4
        assert file.ra.ra_pages == 32


class TestIssuing:
    """page_cache_ra_order, do_page_cache_ra, page_cache_ra_unbounded."""

    @pytest.mark.parametrize(
        ("start", "size", "order", "expected"),
        [
            (0, 16, 2, [(0, 4), (4, 4), (8, 4), (12, 4)]),
            (6, 10, 2, [(6, 2), (8, 4), (12, 4)]),
            (1, 31, 4, [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16)]),
            (0, 31, 4, [(0, 16), (16, 8), (24, 4), (28, 2), (30, 1)]),
            (0, 5, 9, [(0, 4), (4, 1)]),  # no folio is larger than the window
            (64, 32, 3, [(64, 8), (72, 8), (80, 8), (88, 8)]),
        ],
    )
    def test_folios_are_as_large_as_alignment_and_window_allow(self, start, size, order, expected, open_file):
        file = open_file()
        issue(file, start, size, 0, order)
        assert sizes(file) == expected
        assert requests(file) == [(start, size)]
        assert file.ra.order == min(order, size.bit_length() - 1)

    def test_the_end_of_the_file_makes_folios_small(self, open_file):
        file = open_file(nbytes=21 * PAGE + 5)
        issue(file, 16, 32, 0, order=4)
        assert sizes(file) == [(16, 4), (20, 2)]
        assert file.pread(3 * PAGE, 20 * PAGE) == pages_of(PAGE + 5, 20 * PAGE)

    @pytest.mark.parametrize(
        ("start", "size", "async_size", "order", "expected"),
        [(0, 4, 3, 0, [1]), (0, 32, 32, 3, [0]), (0, 32, 9, 3, [16]), (0, 32, 8, 3, [24]), (6, 26, 20, 2, [12]),
         (0, 32, 0, 0, []), (0, 32, 0, 3, [])],
    )  # fmt: skip
    def test_the_folio_that_holds_the_first_page_of_the_tail_is_marked(
        self, start, size, async_size, order, expected, open_file
    ):
        file = open_file()
        issue(file, start, size, async_size, order)
        assert marked(file) == expected

    @pytest.mark.parametrize(("order", "head"), [(0, [(32, 5)]), (2, [(32, 4), (36, 1)])])
    def test_cached_pages_are_skipped_and_the_rest_is_read_around_them(self, order, head, open_file):
        file = open_file()
        for index in (37, 38, 45):
            readahead.page_cache_ra_unbounded(file.mapping, index, 1, -1, demand_end=0)
        file.inode.store.requests.clear()
        issue(file, 32, 32, 16, order)
        assert requests(file) == [*head, (39, 6), (46, 18)]
        assert sum(nr for _, nr in sizes(file)) == 32
        assert file.pread(32 * PAGE, 32 * PAGE) == pages_of(32 * PAGE, 32 * PAGE)

    def test_a_page_that_is_cached_is_never_marked(self, open_file):
        file = open_file()
        readahead.page_cache_ra_unbounded(file.mapping, 16, 1, -1, demand_end=0)
        readahead.do_page_cache_ra(file.mapping, 0, 32, 16, demand_end=0)
        assert marked(file) == []

    @pytest.mark.parametrize(
        ("nr", "lookahead", "expected"),
        [(8, 3, [5]), (8, 8, [0]), (8, 9, []), (8, 0, []), (40, 10, [11]), (40, 21, [0]), (40, 22, [])],
    )
    def test_the_marker_of_a_plain_window_counts_from_where_the_file_ends(self, nr, lookahead, expected, open_file):
        file = open_file(nr_pages=21)
        readahead.do_page_cache_ra(file.mapping, 0, nr, lookahead, demand_end=0)
        assert marked(file) == expected

    @pytest.mark.parametrize("nbytes", [0, 1, PAGE, PAGE + 1])
    def test_nothing_is_read_behind_the_end(self, nbytes, open_file):
        file = open_file(nbytes=nbytes)
        for index in (nbytes // PAGE + 1, 100, 2**50):
            readahead.page_cache_sync_ra(file.mapping, file.ra, index, 8)
            readahead.force_page_cache_ra(file.mapping, file.ra, index, 8)
            issue(file, index, 8, 4, 2)
        assert requests(file) == []
        assert file.mapping.nrpages == 0

    def test_an_empty_file_is_read_as_empty(self, open_file):
        file = open_file(nbytes=0)
        readahead.page_cache_sync_ra(file.mapping, file.ra, 0, 8)
        assert file.pread(10, 0) == b""
        assert file.mapping.nrpages == 0

    def test_a_window_longer_than_a_batch_keeps_its_folios_large(self, open_file):
        file = open_file(1600, ra_pages=2048)
        issue(file, 1, 1599, 0, order=1)
        assert {nr for index, nr in sizes(file) if 1 < index < 1598} == {2}
        assert sum(nr for _, nr in sizes(file)) == 1599

    def test_forced_readahead_goes_in_pieces_and_marks_nothing(self, open_file):
        file = open_file(1400, io_pages=1300)
        readahead.force_page_cache_ra(file.mapping, file.ra, 7, 5000)
        assert requests(file) == [(7, 512), (519, 512), (1031, 276)]
        assert marked(file) == []
        assert (file.ra.start, file.ra.size) == (0, 0)

    @few(40)
    @given(data=st.data())
    def test_any_window_brings_the_right_bytes(self, frames, data):
        nbytes = data.draw(st.integers(0, 80 * PAGE))
        content = pages_of(nbytes)
        with checked_cache(frames) as cache, cache.open(Store(content)) as file:
            for _ in range(data.draw(st.integers(1, 6))):
                start, size = data.draw(st.integers(0, 90)), data.draw(st.integers(1, 64))
                issue(file, start, size, data.draw(st.integers(0, size)), data.draw(st.integers(0, 9)))
                pos = data.draw(st.integers(0, nbytes + PAGE))
                assert file.pread(9000, pos) == content[pos : pos + 9000]


class TestFailures:
    def test_a_page_that_was_not_asked_for_spoils_nothing(self, open_file):
        data = pages_of(64 * PAGE)
        bad = OSError(errno.EIO, "bad block")
        file = open_file(store=FaultyStore(data, lambda number, first, last: bad if first <= 3 <= last else None))
        assert file.pread(3 * PAGE, 0) == data[: 3 * PAGE]
        assert file.ra.ra_pages == 32
        with pytest.raises(OSError, match="bad block"):
            file.pread(PAGE, 3 * PAGE)

    def test_a_failed_read_damps_readahead_to_a_quarter_until_new_advice(self, open_file):
        failing = True
        file = open_file(
            store=FaultyStore(pages_of(64 * PAGE), lambda *_: OSError(errno.EIO, "bad") if failing else None)
        )
        for expected in (8, 2):
            with pytest.raises(OSError, match="bad"):
                file.pread(10, 0)
            assert file.ra.ra_pages == expected
        failing = False
        assert file.pread(10, 0) == pages_of(10)
        assert file.ra.ra_pages == 2
        file.fadvise(pagecache.FADV_NORMAL)
        assert file.ra.ra_pages == file.inode.ra_pages

    def test_a_cache_smaller_than_the_window_still_reads_right(self, frames):
        content = pages_of(200 * PAGE)
        with checked_cache(frames) as cache, cache.open(Store(content)) as file:
            for pos in range(0, len(content), 50_000):
                assert file.pread(50_000, pos) == content[pos : pos + 50_000]


class TestAdvice:
    def test_sequential_doubles_the_window_and_normal_restores_it(self, open_file):
        file = open_file()
        usual = file.inode.ra_pages
        file.fadvise(pagecache.FADV_RANDOM)
        assert file.ra.ra_pages == 32
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        assert file.ra.ra_pages == 2 * usual
        file.fadvise(pagecache.FADV_NORMAL)
        assert file.ra.ra_pages == usual

    @pytest.mark.parametrize("advice", [pagecache.FADV_NORMAL, pagecache.FADV_SEQUENTIAL])
    def test_random_lasts_until_other_advice(self, advice, open_file):
        file = open_file()
        file.fadvise(pagecache.FADV_RANDOM)
        file.pread(1, 0)
        assert file.mapping.nrpages == 1
        file.fadvise(advice)
        file.pread(1, 5 * PAGE)
        file.pread(1, 6 * PAGE)
        assert file.mapping.nrpages > 3

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [(0, 1, (0, 1)), (PAGE - 1, 2, (0, 2)), (5 * PAGE, 4 * PAGE, (5, 4)), (5 * PAGE + 1, 4 * PAGE, (5, 5)),
         (0, 0, (0, 512)), (500 * PAGE, 0, (500, 12)), (510 * PAGE, 100 * PAGE, (510, 2)), (0, 40 * PAGE, (0, 40))],
    )  # fmt: skip
    def test_willneed_reads_all_pages_touched(self, offset, length, expected, open_file):
        file = open_file()
        file.fadvise(pagecache.FADV_WILLNEED, offset, length)
        first, nr = expected
        wait_until(lambda: file.mincore().count(1) == nr, "the pages")
        assert requests(file) == [expected]
        assert file.mincore() == bytes(first) + b"\1" * nr + bytes(512 - first - nr)

    def test_willneed_behind_the_end_reads_nothing(self, open_file):
        file = open_file()
        file.fadvise(pagecache.FADV_WILLNEED, 512 * PAGE, 10)
        assert requests(file) == []

    def test_willneed_swallows_errors(self, open_file):
        file = open_file(store=FaultyStore(pages_of(9 * PAGE), lambda *_: OSError(errno.EIO, "bad")))
        file.fadvise(pagecache.FADV_WILLNEED)
        wait_until(lambda: file.inode.store.requests and not file.mapping.nrpages, "the read to fail")

    @pytest.mark.parametrize(
        ("offset", "length", "dropped"),
        [
            (0, 0, range(10)),
            (0, PAGE, range(1)),
            (1, PAGE, range(0)),
            (1, 2 * PAGE, range(1, 2)),
            (0, PAGE - 1, range(0)),
            (2 * PAGE, 3 * PAGE + 7, range(2, 5)),
            (8 * PAGE, PAGE + 100, range(8, 10)),  # a partial page, but the file's last
            (8 * PAGE, PAGE + 99, range(8, 9)),
        ],
    )
    def test_dontneed_drops_whole_pages(self, offset, length, dropped, open_file):
        file = open_file(nbytes=9 * PAGE + 100)
        readahead.page_cache_ra_unbounded(file.mapping, 0, 10, -1, demand_end=10)
        file.fadvise(pagecache.FADV_DONTNEED, offset, length)
        assert [index for index in range(10) if not file.mincore()[index]] == list(dropped)

    def test_dontneed_keeps_a_large_folio_that_reaches_out_of_the_range(self, open_file):
        file = open_file()
        issue(file, 0, 32, 0, order=3)
        file.fadvise(pagecache.FADV_DONTNEED, 4 * PAGE, 16 * PAGE)
        assert sizes(file) == [(0, 8), (16, 8), (24, 8)]

    def test_dontneed_keeps_what_a_view_shows(self, open_file):
        file = open_file()
        issue(file, 0, 8, 0)
        with file.view(10, 3 * PAGE) as view:
            file.fadvise(pagecache.FADV_DONTNEED)
            assert sizes(file) == [(3, 1)]
            assert view == pages_of(10, 3 * PAGE)

    @pytest.mark.parametrize(("advice", "offset", "length"), [(6, 0, 0), (-1, 0, 0), (3, -1, 0), (4, 0, -1)])
    def test_senseless_advice_is_refused(self, advice, offset, length, open_file):
        with pytest.raises(ValueError):
            open_file().fadvise(advice, offset, length)
