"""Taking pages out of the cache: truncation, hole punches, invalidation, unmapping.

The rules: docs/kernel.md, truncation and invalidation.

`truncate.py` is called as a file system would call it, and must keep each promise at every size of folio.
"""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Crew, Store, add_page, bytes_of, checked_cache, few, pages_of, wait_until

import pagecache
from pagecache import truncate
from pagecache._core import AddressSpace, Segment

TO_THE_END = -1
NR_PAGES = 64


@pytest.fixture
def mapping():
    """A mapping of 64 pages; its segment of 256 frames is in order when the test ends."""
    segment = Segment(256, nr_mappings=8)
    mapping = AddressSpace(segment)
    mapping.size = NR_PAGES * PAGE
    yield mapping
    segment.check()


@pytest.fixture
def mapped(mapping):
    """A list of the unmappings, (first page, page behind the last, even_cows), that a map of the mapping sees."""
    calls = []

    class Map:
        def unmap_object_pages(self, start, end, even_cows):
            calls.append((start, end, even_cows))

    mapping.maps = [Map()]
    return calls


def fill(mapping, order=0, first=0, last=NR_PAGES):
    """Cache pages first..last - 1 in folios of one order; each byte tells its place."""
    for index in range(first, last, 1 << order):
        assert add_page(mapping, index, pages_of(PAGE << order, index * PAGE), order)


def cached(mapping):
    """Return the cached pages."""
    return [page for index, order, _ in mapping.folios() for page in range(index, index + (1 << order))]


def shape(mapping):
    """Return (first page, pages) of each folio."""
    return [(index, 1 << order) for index, order, _ in mapping.folios()]


def content(mapping):
    """Return the cached bytes by page."""
    out = {}
    for index, order, _ in mapping.folios():
        data = bytes_of(mapping, index)
        out.update({index + i: data[i * PAGE : (i + 1) * PAGE] for i in range(1 << order)})
    return out


def expected_page(page, lstart, lend):
    """Return a page's bytes after removal of bytes lstart..lend (inclusive)."""
    data = bytearray(pages_of(PAGE, page * PAGE))
    begin, end = max(lstart - page * PAGE, 0), min(lend + 1 - page * PAGE, PAGE)
    if begin < end:
        data[begin:end] = bytes(end - begin)
    return bytes(data)


class TestTruncateRange:
    @pytest.mark.parametrize("order", [0, 1, 3, 6])
    def test_everything_behind_a_byte_goes(self, mapping, order):
        fill(mapping, order)
        truncate.truncate_inode_pages(mapping, 20 * PAGE)
        assert cached(mapping) == list(range(20))
        truncate.truncate_inode_pages(mapping, 0)
        assert mapping.empty
        assert mapping.nrpages == 0

    @pytest.mark.parametrize("order", [0, 2, 4, 6])
    @pytest.mark.parametrize(
        ("lstart", "lend"),
        [(0, TO_THE_END), (5, TO_THE_END), (PAGE, 2 * PAGE - 1), (10 * PAGE + 7, 20 * PAGE + 9), (3, 5),
         (33 * PAGE - 1, 33 * PAGE), (0, 64 * PAGE - 1), (63 * PAGE + 1, TO_THE_END), (17 * PAGE, 18 * PAGE + 100),
         (16 * PAGE + 1, 32 * PAGE - 1), (100 * PAGE, TO_THE_END)],
    )  # fmt: skip
    def test_whole_pages_go_and_partial_pages_are_zeroed(self, mapping, order, lstart, lend):
        fill(mapping, order)
        truncate.truncate_inode_pages_range(mapping, lstart, lend)
        end = lend if lend != TO_THE_END else 2**60
        whole = range(-(-lstart // PAGE), (end + 1) // PAGE)
        found = content(mapping)
        assert set(found) == {page for page in range(NR_PAGES) if page not in whole}
        for page, data in found.items():
            assert data == expected_page(page, lstart, end)

    def test_a_large_folio_is_split_only_where_it_must_be(self, mapping):
        fill(mapping, 5)
        truncate.truncate_inode_pages_range(mapping, 42 * PAGE + 10, 50 * PAGE + 10)
        assert shape(mapping) == [
            (0, 32), (32, 8), (40, 2), (42, 1), (50, 1), (51, 1), (52, 4), (56, 8),
        ]  # fmt: skip

    def test_pieces_of_a_split_folio_keep_what_is_known_of_it(self, mapping):
        fill(mapping, 4, 0, 16)
        with mapping.get_folio(0) as folio:
            folio.mark_accessed()
        truncate.truncate_inode_pages(mapping, 9 * PAGE)
        for index, _, uptodate in mapping.folios():
            with mapping.get_folio(index) as folio:
                assert (uptodate, folio.referenced, folio.refcount) == (True, True, folio.nr_pages + 1)

    @pytest.mark.parametrize("cut", [PAGE, 100 * PAGE + 5, 256 * PAGE, 300 * PAGE, 511 * PAGE + 1])
    @pytest.mark.parametrize("end", [TO_THE_END, 400 * PAGE + 9])
    def test_a_large_folio_that_cannot_be_split_is_dropped_where_it_is_truncated(self, cut, end):
        """Without index nodes: it is clean, so it can be read again."""
        segment = Segment(1024, nr_mappings=4)
        mapping = AddressSpace(segment)
        fill(mapping, 9, 0, 512)
        segment.fail_node_allocation(1)
        end = end if end > cut else TO_THE_END
        truncate.truncate_inode_pages_range(mapping, cut, end)
        segment.fail_node_allocation(0)
        end = 2**60 if end == TO_THE_END else end
        for page, data in content(mapping).items():
            assert page * PAGE < cut or (page + 1) * PAGE > end + 1
            assert data == expected_page(page, cut, end)
        segment.check()

    def test_shadows_go_too(self, mapping):
        fill(mapping)
        mapping.segment.reclaim(256)
        assert mapping.nrpages == 0
        truncate.truncate_inode_pages_range(mapping, 10 * PAGE, 20 * PAGE - 1)
        left = [page for page in range(NR_PAGES) if mapping.get_entry(page) is not None]
        assert left == [page for page in range(NR_PAGES) if not 10 <= page < 20]
        truncate.truncate_inode_pages(mapping, 0)
        assert mapping.empty

    def test_locked_folios_are_waited_for(self, mapping):
        fill(mapping)
        folio = mapping.get_folio(30)
        folio.lock()
        crew = Crew(lambda: truncate.truncate_inode_pages(mapping, 0))
        wait_until(lambda: folio.waiters, "the truncation to wait")
        assert cached(mapping) == [30]
        folio.unlock()
        crew.join_well()
        assert mapping.empty
        folio.put()

    def test_pages_that_come_while_it_waits_are_swept_too(self, mapping):
        fill(mapping)
        folio = mapping.get_folio(30)
        folio.lock()
        crew = Crew(lambda: truncate.truncate_inode_pages(mapping, 5 * PAGE))
        wait_until(lambda: folio.waiters, "the truncation to wait")
        fill(mapping, 0, 6, 9)
        folio.unlock()
        crew.join_well()
        assert cached(mapping) == list(range(5))
        folio.put()

    def test_a_folio_that_is_held_leaves_and_keeps_its_bytes(self, mapping):
        fill(mapping, 2)
        folio = mapping.get_folio(8)
        for lstart in (9 * PAGE + 100, 0):
            truncate.truncate_inode_pages(mapping, lstart)
            assert folio.tobytes() == pages_of(4 * PAGE, 8 * PAGE)
        assert (folio.mapping_number, folio.refcount, folio.index) == (0, 1, 8)
        folio.put()

    def test_an_empty_mapping_is_no_work(self, mapping, mapped):
        truncate.truncate_inode_pages(mapping, 0)
        assert mapped == []

    def test_an_interrupt_while_it_waits_leaves_nothing_locked(self, mapping, monkeypatch):
        fill(mapping, 4)

        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(truncate, "_split_at_cuts", interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            truncate.truncate_inode_pages(mapping, 20 * PAGE)
        mapping.segment.check()
        monkeypatch.undo()
        truncate.truncate_inode_pages(mapping, 20 * PAGE)
        assert cached(mapping) == list(range(20))
        del caught

    @few(60)
    @given(data=st.data())
    def test_any_truncations_of_any_folios_leave_the_right_bytes(self, data):
        segment = Segment(512, nr_mappings=4)
        mapping = AddressSpace(segment)
        model = {}
        for _ in range(data.draw(st.integers(1, 5))):
            for index in data.draw(st.lists(st.integers(0, 127), max_size=8)):
                order = data.draw(st.integers(0, 5))
                first = index >> order << order
                if not any(page in model for page in range(first, first + (1 << order))):
                    add_page(mapping, first, pages_of(PAGE << order, first * PAGE), order)
                    model.update({first + i: pages_of(PAGE, (first + i) * PAGE) for i in range(1 << order)})
            lstart = data.draw(st.integers(0, 130 * PAGE))
            lend = data.draw(st.one_of(st.just(2**60 - 1), st.integers(lstart, 130 * PAGE)))
            truncate.truncate_inode_pages_range(mapping, lstart, lend if lend < 2**59 else TO_THE_END)
            for page in list(model):
                begin, end = max(lstart - page * PAGE, 0), min(lend + 1 - page * PAGE, PAGE)
                if begin == 0 and end == PAGE:
                    del model[page]
                elif begin < end:
                    model[page] = model[page][:begin] + bytes(end - begin) + model[page][end:]
            assert content(mapping) == model
        truncate.truncate_inode_pages(mapping, 0)
        segment.check()
        assert segment.counters()["nr_free_pages"] == 512


class TestSetSize:
    def test_the_size_changes_before_a_page_goes_and_maps_are_cleared_before_and_after(self, mapping, monkeypatch):
        fill(mapping)
        events = []

        class Map:
            def unmap_object_pages(self, start, end, even_cows):
                events.append((start, even_cows, mapping.size, mapping.nrpages))

        mapping.maps = [Map()]
        truncate.truncate_setsize(mapping, 10 * PAGE + 5)
        behind = [event for event in events if event[0] == 11]
        assert behind == [(11, True, 10 * PAGE + 5, 64), (11, True, 10 * PAGE + 5, 11)]

    @pytest.mark.parametrize("order", [0, 2, 6])
    @pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 5 * PAGE + 123, 63 * PAGE + 1])
    def test_what_comes_back_when_it_grows_again_is_zero(self, mapping, order, size):
        fill(mapping, order)
        truncate.truncate_setsize(mapping, size)
        truncate.truncate_setsize(mapping, NR_PAGES * PAGE)
        assert mapping.size == NR_PAGES * PAGE
        for page, data in content(mapping).items():
            assert page * PAGE < size
            assert data == expected_page(page, size, 2**60)

    def test_bytes_behind_the_end_are_zeroed_when_it_grows(self, mapping):
        """Whatever got there, through a map or a store that brought too much."""
        mapping.size = 100
        fill(mapping, 0, 0, 1)
        truncate.truncate_setsize(mapping, 3 * PAGE)
        assert content(mapping)[0] == expected_page(0, 100, 2**60)

    def test_growing_removes_nothing(self, mapping):
        fill(mapping, 2)
        truncate.truncate_setsize(mapping, 100 * PAGE)
        assert (mapping.size, mapping.nrpages) == (100 * PAGE, 64)


class TestHolePunch:
    def test_unmaps_the_whole_pages_once_and_spares_private_copies(self, mapping, mapped):
        fill(mapping)
        truncate.truncate_pagecache_range(mapping, 10 * PAGE + 1, 20 * PAGE + 1)
        assert (11, 20, False) in mapped
        assert not any(even_cows for _, _, even_cows in mapped)
        assert mapping.size == NR_PAGES * PAGE
        assert cached(mapping) == [page for page in range(NR_PAGES) if not 11 <= page < 20]

    def test_inside_one_page_unmaps_nothing_and_zeroes(self, mapping, mapped):
        fill(mapping)
        truncate.truncate_pagecache_range(mapping, 10 * PAGE + 1, 10 * PAGE + 99)
        assert mapped == []
        assert content(mapping)[10] == expected_page(10, 10 * PAGE + 1, 10 * PAGE + 99)


class TestInvalidate:
    """invalidate_mapping_pages: clean, unused pages, without waiting."""

    def test_removes_pages_of_the_range_and_counts_them(self, mapping):
        fill(mapping)
        assert truncate.invalidate_mapping_pages(mapping, 10, 19) == 10
        assert cached(mapping) == [page for page in range(NR_PAGES) if not 10 <= page < 20]
        assert truncate.invalidate_mapping_pages(mapping, 0, 2**52 - 1) == 54
        assert mapping.empty

    def test_shadows_count_and_go(self, mapping):
        fill(mapping, 0, 0, 10)
        mapping.segment.reclaim(256)
        assert truncate.invalidate_mapping_pages(mapping, 0, 100) == 10
        assert mapping.empty

    def test_what_is_locked_or_held_stays_and_goes_next(self, mapping):
        fill(mapping, 0, 0, 10)
        locked, held = mapping.get_folio(2), mapping.get_folio(7)
        locked.lock()
        held.mark_accessed()
        assert truncate.invalidate_mapping_pages(mapping, 0, 9) == 8
        assert cached(mapping) == [2, 7]
        assert not held.referenced
        locked.unlock()
        locked.put()
        held.put()
        assert truncate.invalidate_mapping_pages(mapping, 0, 9) == 2

    def test_large_folios_go_whole_or_not_at_all(self, mapping):
        fill(mapping, 3)
        assert truncate.invalidate_mapping_pages(mapping, 4, 43) == 32
        assert shape(mapping) == [(0, 8), (40, 8), (48, 8), (56, 8)]

    def test_what_a_view_shows_stays(self, make_cache):
        data = pages_of(8 * PAGE)
        cache = make_cache(16 * PAGE)
        with cache.open(Store(data)) as file:
            file.pread(len(data), 0)
            with file.view(100, 3 * PAGE) as view:
                cache.drop_caches()
                assert cached(file.mapping) == [3]
                assert view == data[3 * PAGE : 3 * PAGE + 100]
            assert cache.drop_caches() == 1


class TestInvalidateStrong:
    """invalidate_inode_pages2_range: all pages, waiting for them."""

    def test_removes_what_is_held_and_overlapping_folios_whole(self, mapping):
        fill(mapping, 3)
        held = mapping.get_folio(8)
        truncate.invalidate_inode_pages2_range(mapping, 10, 17)
        assert shape(mapping) == [(0, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8)]
        assert held.tobytes() == pages_of(8 * PAGE, 8 * PAGE)
        held.put()

    def test_waits_for_the_lock(self, mapping):
        fill(mapping)
        folio = mapping.get_folio(5)
        folio.lock()
        crew = Crew(lambda: truncate.invalidate_inode_pages2_range(mapping, 0, NR_PAGES))
        wait_until(lambda: folio.waiters, "the invalidation to wait")
        folio.unlock()
        crew.join_well()
        assert mapping.empty
        folio.put()

    def test_unmaps_and_clears_shadows(self, mapping, mapped):
        fill(mapping, 0, 0, 5)
        mapping.segment.reclaim(256)
        fill(mapping, 0, 5, 8)
        truncate.invalidate_inode_pages2_range(mapping, 0, 20)
        assert mapping.empty
        assert [(start, end) for start, end, _ in mapped] == [(5, 6), (6, 7), (7, 8)]

    def test_a_folio_that_was_removed_while_it_waited_is_no_error(self, mapping):
        fill(mapping, 0, 0, 1)
        folio = mapping.get_folio(0)
        folio.lock()
        crew = Crew(lambda: truncate.invalidate_inode_pages2_range(mapping, 0, 9))
        wait_until(lambda: folio.waiters, "the invalidation to wait")
        mapping.remove_folio(folio)
        folio.unlock()
        folio.put()
        crew.join_well()

    def test_an_error_does_not_keep_the_rest_in_the_cache(self, mapping, monkeypatch):
        fill(mapping, 0, 0, 5)
        remove = truncate._invalidate_folio2

        def refuse_one(mapping, folio, launder):
            if folio.index == 2:
                raise OSError(errno.EBUSY, "busy")
            remove(mapping, folio, launder)

        monkeypatch.setattr(truncate, "_invalidate_folio2", refuse_one)
        with pytest.raises(OSError, match="busy"):
            truncate.invalidate_inode_pages2_range(mapping, 0, 9)
        assert cached(mapping) == [2]


class TestUnmap:
    @pytest.mark.parametrize(
        ("begin", "length", "expected"),
        [(0, 0, (0, 2**52 - 1)), (PAGE, 2 * PAGE, (1, 3)), (1, 0, (1, 2**52 - 1)), (PAGE + 1, 3 * PAGE, (2, 4)),
         (PAGE + 1, PAGE, None), (5, 10, None)],
    )  # fmt: skip
    @pytest.mark.parametrize("even_cows", [False, True])
    def test_a_byte_range_unmaps_its_whole_pages(self, mapping, mapped, begin, length, expected, even_cows):
        truncate.unmap_mapping_range(mapping, begin, length, even_cows)
        assert mapped == ([(*expected, even_cows)] if expected else [])


class TestLiveViews:
    """What a view shows never changes, whatever happens to the file."""

    @pytest.fixture
    def store(self):
        return pagecache.MemoryStore(pages_of(40 * PAGE))

    @pytest.mark.parametrize("size", [0, 5 * PAGE, 8 * PAGE, 8 * PAGE + 50, 8 * PAGE + 2000, 9 * PAGE])
    def test_truncation(self, store, frames, size):
        data = store.tobytes()
        with (
            checked_cache(max(frames, 2)) as cache,
            cache.open(store, "r+b") as file,
            file.view(1000, 8 * PAGE) as view,
        ):
            file.truncate(size)
            file.truncate(40 * PAGE)
            assert file.pread(PAGE, 8 * PAGE) == store.tobytes()[8 * PAGE : 9 * PAGE]
            for index in range(20, 30):
                file.pread(1, index * PAGE)
            assert view == data[8 * PAGE : 8 * PAGE + 1000]

    def test_a_view_taken_while_the_page_is_being_truncated(self, store, make_cache, monkeypatch):
        """One that shows truncated bytes as they were keeps them; none ever sees them turn to zeros."""
        data = store.tobytes()
        with make_cache(64 * PAGE).open(store, "r+b") as file:
            file.pread(PAGE, 8 * PAGE)
            views = []
            cut = truncate.truncate_inode_partial_folio

            def take_view_then_cut(*args):
                views.append(file.view(1000, 8 * PAGE))
                return cut(*args)

            monkeypatch.setattr(truncate, "truncate_inode_partial_folio", take_view_then_cut)
            file.truncate(8 * PAGE + 100)
            (view,) = views
            assert view == data[8 * PAGE : 8 * PAGE + len(view)]
            assert len(view) == 100
            view.release()
            assert file.pread(PAGE, 8 * PAGE) == data[8 * PAGE : 8 * PAGE + 100]

    def test_invalidation(self, store, make_cache):
        data = store.tobytes()
        with make_cache(64 * PAGE).open(store) as file, file.view(1000, 8 * PAGE) as view:
            store.replace(bytes(40 * PAGE))
            file.invalidate()
            assert file.pread(1000, 8 * PAGE) == bytes(1000)
            assert view == data[8 * PAGE : 8 * PAGE + 1000]
