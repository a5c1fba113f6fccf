"""Looking folios up, creating and adding them, and reading through them: filemap step by step.

The rules: docs/kernel.md, lookups, reads and writes.
"""

import errno

import pytest
from support import PAGE, BlockingStore, Crew, FaultyStore, Store, add_page, bytes_of, pages_of, wait_until

import pagecache
from pagecache import filemap, readahead
from pagecache._core import AddressSpace, Segment
from pagecache.filemap import (
    FGP_ACCESSED,
    FGP_CREAT,
    FGP_DONTCACHE,
    FGP_FOR_MMAP,
    FGP_LOCK,
    FGP_NOFS,
    FGP_NOWAIT,
    FGP_STABLE,
    FGP_WRITE,
    FGP_WRITEBEGIN,
    fgf_set_order,
    filemap_add_folio,
    filemap_get_folio,
)

CREATE = FGP_CREAT | FGP_LOCK


@pytest.fixture
def mapping():
    """A mapping of a segment of 64 frames, in order when the test ends."""
    segment = Segment(64, nr_mappings=8)
    yield AddressSpace(segment)
    segment.check()


def abandon(mapping, folio):
    """Take a locked folio without data out of the cache."""
    mapping.remove_folio(folio)
    folio.unlock()
    folio.put()


def keep(folio):
    """Give a locked, new folio (any) data."""
    folio.end_read(True)
    folio.put()


class TestGetFolio:
    """filemap_get_folio: one test, or more, for each flag."""

    def test_a_hit_comes_back_referenced_unlocked_and_untouched(self, mapping):
        add_page(mapping, 7)
        folio = filemap_get_folio(mapping, 7)
        assert (folio.index, folio.refcount, folio.locked, folio.referenced) == (7, 2, False, False)
        folio.put()

    def test_any_page_of_a_large_folio_finds_it(self, mapping):
        add_page(mapping, 16, order=3)
        assert {filemap_get_folio(mapping, index).index for index in range(16, 24)} == {16}
        assert filemap_get_folio(mapping, 15) is None
        assert filemap_get_folio(mapping, 24) is None

    def test_a_miss_is_none(self, mapping):
        assert filemap_get_folio(mapping, 7) is None
        assert filemap_get_folio(mapping, 7, FGP_LOCK | FGP_ACCESSED | FGP_NOWAIT) is None

    def test_a_shadow_is_a_miss(self, mapping):
        add_page(mapping, 7)
        mapping.segment.reclaim(64)
        assert isinstance(mapping.get_entry(7), int)
        assert filemap_get_folio(mapping, 7) is None

    def test_accessed_notes_a_hit(self, mapping):
        add_page(mapping, 7)
        folio = filemap_get_folio(mapping, 7, FGP_ACCESSED)
        assert (folio.referenced, folio.active) == (True, False)
        assert filemap_get_folio(mapping, 7, FGP_ACCESSED).active
        folio.put()

    def test_accessed_makes_a_new_folio_referenced(self, mapping):
        for flags, referenced in ((CREATE, False), (CREATE | FGP_ACCESSED, True)):
            folio = filemap_get_folio(mapping, flags, flags)
            assert folio.referenced == referenced
            keep(folio)

    def test_lock_returns_it_locked(self, mapping):
        add_page(mapping, 7)
        folio = filemap_get_folio(mapping, 7, FGP_LOCK)
        assert folio.locked
        folio.unlock()
        folio.put()

    def test_lock_waits_and_looks_again_when_the_folio_was_truncated(self, mapping):
        add_page(mapping, 7, b"old")
        folio = mapping.get_folio(7)
        folio.lock()
        crew = Crew(lambda: filemap_get_folio(mapping, 7, CREATE))
        wait_until(lambda: folio.waiters, "the lookup")
        mapping.remove_folio(folio)
        add_page(mapping, 7, b"new")
        folio.unlock()
        folio.put()
        (found,) = crew.join_well()
        assert found.is_page_of(mapping, 7)
        assert found.tobytes()[:3] == b"new"
        found.unlock()
        found.put()

    def test_nowait_does_not_wait_for_the_lock(self, mapping):
        add_page(mapping, 7)
        folio = filemap_get_folio(mapping, 7, FGP_LOCK)
        with pytest.raises(BlockingIOError) as caught:
            filemap_get_folio(mapping, 7, FGP_LOCK | FGP_NOWAIT)
        assert caught.value.errno == errno.EAGAIN
        filemap_get_folio(mapping, 7, FGP_NOWAIT).put()
        folio.unlock()
        folio.put()

    def test_nowait_does_not_wait_for_memory(self, mapping):
        held = [mapping.segment.alloc_folio() for _ in range(64)]
        with pytest.raises(BlockingIOError) as caught:
            filemap_get_folio(mapping, 7, CREATE | FGP_NOWAIT)
        assert caught.value.errno == errno.EAGAIN
        del held
        keep(filemap_get_folio(mapping, 7, CREATE | FGP_NOWAIT))

    def test_create_takes_memory_that_becomes_free_while_it_waits(self, mapping):
        held = [mapping.segment.alloc_folio() for _ in range(64)]
        crew = Crew(lambda: filemap_get_folio(mapping, 7, CREATE), lambda: [folio.put() for folio in held])
        folio, _ = crew.join_well()
        keep(folio)

    def test_create_makes_a_locked_folio_without_data(self, mapping):
        folio = filemap_get_folio(mapping, 7, CREATE)
        assert (folio.index, folio.order, folio.locked, folio.uptodate) == (7, 0, True, False)
        assert mapping.nrpages == 1
        abandon(mapping, folio)

    def test_create_returns_what_is_there(self, mapping):
        add_page(mapping, 7, b"there")
        folio = filemap_get_folio(mapping, 7, CREATE)
        assert folio.uptodate
        assert folio.tobytes()[:5] == b"there"
        folio.unlock()
        folio.put()

    def test_create_needs_lock_or_for_mmap(self, mapping):
        with pytest.raises(ValueError, match="FGP_LOCK"):
            filemap_get_folio(mapping, 7, FGP_CREAT)
        assert mapping.empty

    def test_for_mmap_returns_a_new_folio_unlocked(self, mapping):
        folio = filemap_get_folio(mapping, 7, FGP_CREAT | FGP_FOR_MMAP)
        assert (folio.locked, folio.uptodate) == (False, False)
        folio.put()
        assert not filemap_get_folio(mapping, 7, FGP_CREAT | FGP_FOR_MMAP).locked

    def test_write_suppresses_the_judgement_by_the_shadow(self, mapping):
        for index, flags in ((1, FGP_WRITE), (2, 0)):
            add_page(mapping, index)
            mapping.segment.reclaim(64)
            before = mapping.segment.counters()["workingset_refault_file"]
            keep(filemap_get_folio(mapping, index, CREATE | flags))
            assert mapping.segment.counters()["workingset_refault_file"] - before == (0 if flags else 1)

    def test_dontcache_marks_a_new_folio_and_other_lookups_clear_it(self, mapping):
        keep(filemap_get_folio(mapping, 7, CREATE | FGP_DONTCACHE))
        assert filemap_get_folio(mapping, 7, FGP_DONTCACHE).dropbehind
        assert not filemap_get_folio(mapping, 7).dropbehind
        assert not filemap_get_folio(mapping, 7, FGP_DONTCACHE).dropbehind

    def test_dontcache_does_not_mark_what_is_there(self, mapping):
        add_page(mapping, 7)
        assert not filemap_get_folio(mapping, 7, FGP_DONTCACHE).dropbehind

    def test_stable_and_nofs_change_nothing_for_clean_folios(self, mapping):
        add_page(mapping, 7, b"data")
        folio = filemap_get_folio(mapping, 7, FGP_STABLE | FGP_NOFS)
        assert folio.tobytes()[:4] == b"data"
        assert not folio.locked
        folio.put()

    def test_write_begin_locks_creates_and_writes(self, mapping):
        assert FGP_WRITEBEGIN == FGP_LOCK | FGP_WRITE | FGP_CREAT | FGP_STABLE
        folio = filemap_get_folio(mapping, 7, FGP_WRITEBEGIN)
        assert folio.locked
        abandon(mapping, folio)


class TestOrders:
    @pytest.mark.parametrize(
        ("nbytes", "order"),
        [(0, 0), (1, 0), (PAGE, 0), (2 * PAGE - 1, 0), (2 * PAGE, 1), (3 * PAGE, 1), (65536, 4), (2 << 20, 9),
         (1 << 40, 9)],
    )  # fmt: skip
    def test_hint_is_the_largest_folio_that_the_bytes_fill(self, nbytes, order):
        segment = Segment(1024, nr_mappings=4)
        mapping = AddressSpace(segment)
        folio = filemap_get_folio(mapping, 512, CREATE | fgf_set_order(nbytes))
        assert (folio.index, folio.order) == (512, order)
        abandon(mapping, folio)

    @pytest.mark.parametrize(("index", "order"), [(0, 4), (16, 4), (8, 3), (20, 2), (22, 1), (23, 0), (48, 4)])
    def test_an_unaligned_index_gets_a_smaller_folio(self, mapping, index, order):
        folio = filemap_get_folio(mapping, index, CREATE | fgf_set_order(65536))
        assert (folio.index, folio.order) == (index, order)
        abandon(mapping, folio)

    @pytest.mark.parametrize(("present", "order"), [(31, 3), (24, 3), (20, 2), (18, 1), (17, 0)])
    def test_what_is_cached_behind_makes_the_folio_smaller(self, mapping, present, order):
        add_page(mapping, present)
        folio = filemap_get_folio(mapping, 16, CREATE | fgf_set_order(65536))
        assert (folio.index, folio.order) == (16, order)
        assert mapping.nrpages == 1 + (1 << order)
        abandon(mapping, folio)

    def test_a_faster_thread_wins_and_its_folio_is_returned(self, mapping, monkeypatch):
        """EEXIST at the page itself: look it up again."""
        alloc = filemap.read._alloc_for

        def slow(*args):
            add_page(mapping, 16, b"first")
            return alloc(*args)

        monkeypatch.setattr(filemap.read, "_alloc_for", slow)
        folio = filemap_get_folio(mapping, 16, CREATE | fgf_set_order(65536))
        assert folio.order == 0
        assert folio.tobytes()[:5] == b"first"
        folio.unlock()
        folio.put()

    def test_short_memory_makes_the_folio_smaller(self, mapping):
        held = [mapping.segment.alloc_folio() for _ in range(64)]
        frames = sorted(held, key=lambda folio: folio.frame)
        for folio in frames[32:34]:
            folio.put()
        folio = filemap_get_folio(mapping, 16, CREATE | fgf_set_order(65536))
        assert folio.order == 1
        abandon(mapping, folio)
        del held, frames

    def test_an_order_that_is_too_large_is_capped(self, mapping):
        folio = filemap_get_folio(mapping, 512, CREATE | 63 << 26)
        assert folio.order == 6
        abandon(mapping, folio)


class TestAddFolio:
    def test_comes_back_locked_with_a_reference_for_each_page(self, mapping):
        folio = mapping.segment.alloc_folio(3)
        filemap_add_folio(mapping, folio, 8)
        assert (folio.index, folio.locked, folio.refcount, mapping.nrpages) == (8, True, 9, 8)
        assert mapping.segment.counters()["nr_file_pages"] == 8
        abandon(mapping, folio)

    @pytest.mark.parametrize(("present", "order"), [(8, 0), (11, 0), (15, 0), (8, 1), (0, 4), (12, 2)])
    def test_refuses_a_range_with_a_cached_page(self, mapping, present, order):
        add_page(mapping, present, order=order)
        folio = mapping.segment.alloc_folio(3)
        with pytest.raises(FileExistsError) as caught:
            filemap_add_folio(mapping, folio, 8)
        assert caught.value.errno == errno.EEXIST
        assert (folio.locked, folio.refcount, folio.mapping_number, folio.index) == (False, 1, 0, 8)
        assert mapping.nrpages == 1 << order
        folio.put()

    def test_does_not_mind_neighbours(self, mapping):
        add_page(mapping, 7)
        add_page(mapping, 16)
        folio = mapping.segment.alloc_folio(3)
        filemap_add_folio(mapping, folio, 8)
        abandon(mapping, folio)

    def test_refuses_an_index_that_is_not_aligned_and_a_folio_that_is_in_use(self, mapping):
        folio = mapping.segment.alloc_folio(1)
        with pytest.raises(ValueError, match="aligned"):
            mapping.add_folio(folio, 3)
        filemap_add_folio(mapping, folio, 4)
        with pytest.raises(ValueError, match="in a mapping"):
            mapping.add_folio(folio, 8)
        abandon(mapping, folio)

    def shadow(self, mapping, index, order=0):
        add_page(mapping, index, order=order)
        assert mapping.segment.reclaim(64) == 1 << order

    def shadows(self, mapping, indexes):
        return [index for index in indexes if isinstance(mapping.get_entry(index), int)]

    def test_takes_the_place_of_shadows(self, mapping):
        for index in (8, 9, 13):
            self.shadow(mapping, index)
        folio = mapping.segment.alloc_folio(3)
        filemap_add_folio(mapping, folio, 8)
        assert self.shadows(mapping, range(20)) == []
        assert mapping.segment.counters()["workingset_refault_file"] == 8
        abandon(mapping, folio)

    @pytest.mark.parametrize(("order", "index", "new_order"), [(3, 10, 0), (4, 20, 2), (5, 32, 0), (2, 7, 0)])
    def test_leaves_the_rest_of_a_larger_shadow(self, mapping, order, index, new_order):
        first = index >> order << order
        self.shadow(mapping, first, order)
        value = mapping.get_entry(first)
        assert self.shadows(mapping, range(first, first + (1 << order))) == [*range(first, first + (1 << order))]
        folio = mapping.segment.alloc_folio(new_order)
        filemap_add_folio(mapping, folio, index)
        rest = set(range(first, first + (1 << order))) - set(range(index, index + (1 << new_order)))
        assert set(self.shadows(mapping, range(first - 1, first + (1 << order) + 1))) == rest
        assert {mapping.get_entry(index) for index in rest} == {value}
        keep(folio)

    @pytest.mark.parametrize(("nth", "is_enough"), [(1, False), (2, False), (3, False), (4, True)])
    def test_without_index_nodes_fails_and_changes_nothing(self, mapping, nth, is_enough):
        """Page 100 beside page 0 needs three nodes."""
        add_page(mapping, 0)
        before = mapping.segment.counters()
        folio = mapping.segment.alloc_folio()
        mapping.segment.fail_node_allocation(nth)
        if is_enough:
            filemap_add_folio(mapping, folio, 100)
            abandon(mapping, folio)
        else:
            with pytest.raises(pagecache.CacheFullError):
                filemap_add_folio(mapping, folio, 100)
            assert (folio.locked, folio.refcount, folio.mapping_number) == (False, 1, 0)
            folio.put()
        mapping.segment.fail_node_allocation(0)
        assert mapping.segment.counters() == before
        add_page(mapping, 100)
        assert mapping.nrpages == 2


class TestGetPages:
    """filemap_get_pages and filemap_update_page, step by step."""

    @pytest.fixture
    def open_store(self, make_cache):
        """A function that opens a store in a cache of 256 frames."""
        opened = []

        def open_store(store):
            opened.append(make_cache(256 * PAGE).open(store))
            return opened[-1]

        yield open_store
        for file in opened:
            file.close()

    @pytest.fixture
    def file(self, open_store):
        """A file of 100 pages."""
        return open_store(Store(pages_of(100 * PAGE)))

    def batch_of(self, file, pos, nbytes):
        """Return (first page, page behind the last) of what filemap_get_pages brings."""
        batch = filemap.filemap_get_pages(file, pos, nbytes)
        assert batch.last_uptodate
        result = batch.folio(0).index, batch.next_index
        batch.release()
        return result

    def test_a_batch_has_at_most_31_folios(self, file):
        readahead.page_cache_ra_unbounded(file.mapping, 0, 64, -1, demand_end=64)
        assert self.batch_of(file, 0, 64 * PAGE) == (0, 31)

    def test_a_batch_begins_with_the_folio_that_holds_the_position(self, file):
        add_page(file.mapping, 8, order=3)
        assert self.batch_of(file, 13 * PAGE + 5, PAGE) == (8, 16)

    def test_a_batch_ends_before_a_hole(self, file):
        readahead.page_cache_ra_unbounded(file.mapping, 0, 5, -1, demand_end=5)
        assert self.batch_of(file, 0, 20 * PAGE) == (0, 5)

    def test_a_batch_ends_with_a_marked_folio_and_the_next_window_is_started(self, file):
        readahead.page_cache_ra_unbounded(file.mapping, 0, 8, 4, demand_end=8)
        assert self.batch_of(file, 0, 8 * PAGE) == (0, 5)
        assert not file.mapping.get_folio(4).readahead
        assert file.mapping.nrpages > 8

    def test_a_batch_ends_before_a_folio_that_is_not_uptodate(self, file):
        readahead.page_cache_ra_unbounded(file.mapping, 0, 3, -1, demand_end=3)
        folio = filemap_get_folio(file.mapping, 3, CREATE)
        assert self.batch_of(file, 0, 8 * PAGE) == (0, 3)
        abandon(file.mapping, folio)

    def test_one_folio_that_is_not_read_yet_is_read(self, file):
        filemap_get_folio(file.mapping, 3, FGP_CREAT | FGP_FOR_MMAP).put()
        assert self.batch_of(file, 3 * PAGE, PAGE) == (3, 4)
        assert bytes_of(file.mapping, 3) == pages_of(PAGE, 3 * PAGE)
        assert file.inode.store.requests == [(3 * PAGE, PAGE)]

    def test_a_folio_that_is_being_read_is_waited_for_without_a_reference(self, open_store):
        store = BlockingStore(pages_of(8 * PAGE))
        file = open_store(store)
        crew = Crew(lambda: file.pread(10, 0), lambda: file.pread(10, 5))
        assert store.entered.wait(30)
        folio = file.mapping.get_folio(0)
        wait_until(lambda: folio.waiters, "the second reader")
        wait_until(lambda: folio.refcount == 3, "the second reader to let go")  # cache, the reader, and this test
        folio.put()
        store.go_on.set()
        assert crew.join_well() == [store.data[:10], store.data[5:15]]
        assert len(store.requests) == 1

    def test_a_folio_truncated_while_it_was_looked_at_is_looked_up_again(self, file):
        file.pread(1, 0)
        folio = file.mapping.get_folio(0)
        folio.lock()
        file.mapping.remove_folio(folio)
        folio.unlock()
        assert not filemap.filemap_update_page(file.mapping, file.ra, folio)
        assert file.pread(5, 0) == pages_of(5)

    def test_a_folio_made_uptodate_meanwhile_is_taken(self, file):
        file.pread(1, 0)
        folio = file.mapping.get_folio(0)
        assert filemap.filemap_update_page(file.mapping, file.ra, folio)
        assert not folio.locked
        folio.put()

    def test_a_failed_read_leaves_nothing_readable_and_the_next_one_reads_again(self, open_store):
        nr_failures = 3
        store = FaultyStore(pages_of(PAGE), lambda n, *_: OSError(errno.ENXIO, "no") if n < nr_failures else None)
        file = open_store(store)
        with pytest.raises(OSError, match="no") as caught:
            filemap.filemap_get_pages(file, 0, 10)
        assert caught.value.errno == errno.ENXIO
        assert file.mapping.nrpages == 0
        filemap_get_folio(file.mapping, 0, FGP_CREAT | FGP_FOR_MMAP).put()
        for _ in range(nr_failures - 1):
            with pytest.raises(OSError, match="no"):
                filemap.filemap_get_pages(file, 0, 10)
        assert file.pread(10, 0) == pages_of(10)


class TestReadEnd:
    """The end of the file: no byte behind it is ever returned."""

    @pytest.fixture
    def store(self):
        return pagecache.MemoryStore(pages_of(5 * PAGE + 100))

    @pytest.mark.parametrize("pos", [0, 1, 5 * PAGE, 5 * PAGE + 99, 5 * PAGE + 100, 6 * PAGE, 2**62])
    @pytest.mark.parametrize("nbytes", [0, 1, 100, 101, PAGE, 6 * PAGE, 2**40])
    def test_a_read_ends_with_the_file(self, make_cache, store, pos, nbytes):
        with make_cache(64 * PAGE).open(store) as file:
            for _ in range(2):
                assert file.pread(nbytes, pos) == store.tobytes()[pos : pos + nbytes]

    def test_bytes_behind_the_end_are_zero_in_memory(self, make_cache, store):
        with make_cache(64 * PAGE).open(store) as file:
            file.pread(1, 5 * PAGE)
            assert bytes_of(file.mapping, 5) == store.tobytes()[5 * PAGE :] + bytes(PAGE - 100)

    def test_the_size_is_read_after_the_pages(self, make_cache, store):
        """A file truncated while its pages are read shows nothing from behind the new end."""
        with make_cache(64 * PAGE).open(store) as file:
            reading = file.inode.store.readv

            def cut(offset, buffers):
                done = reading(offset, buffers)
                file.mapping.size = 3 * PAGE + 7
                return done

            file.mapping.host = type("Cut", (), {"readv": staticmethod(cut), "validator": store.validator})
            assert file.pread(6 * PAGE, PAGE) == store.tobytes()[PAGE : 3 * PAGE + 7]
            file.mapping.size = store.size()

    def test_repeated_reads_within_a_folio_are_one_access(self, make_cache, store):
        with make_cache(64 * PAGE, policy="kernel").open(store) as file:
            for pos in range(0, PAGE, 100):
                file.pread(100, pos)
            assert not file.mapping.get_folio(0).active
            file.pread(100, 2 * PAGE)
            file.pread(100, 0)
            assert file.mapping.get_folio(0).active

    def test_prev_pos_is_behind_the_last_byte_read(self, make_cache, store):
        with make_cache(64 * PAGE).open(store) as file:
            for pos, nbytes, expected in ((0, 10, 10), (5 * PAGE, 500, 5 * PAGE + 100), (PAGE, PAGE, 2 * PAGE)):
                for _ in range(2):
                    file.pread(nbytes, pos)
                    assert file.ra.prev_pos == expected
