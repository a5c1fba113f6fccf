"""What faults read ahead, and what they map around themselves: the numbers.

The rules: docs/kernel.md, readahead of a fault.
"""

import pytest
from support import PAGE, checked_cache
from support.fault_steps import Mapped

import pagecache
from pagecache import mm
from pagecache.filemap import FGP_CREAT, FGP_LOCK, fgf_set_order, filemap_get_folio, filemap_map_pages

NR_PAGES = 200
FIRST = mm.FAULT_FLAG_DEFAULT
TRIED = FIRST | mm.FAULT_FLAG_TRIED


@pytest.fixture
def cache():
    with checked_cache(4096) as cache:
        yield cache


def window_of(ra):
    """Return start, size and tail of the current window."""
    return ra.start, ra.size, ra.async_size


# -- a miss ------------------------------------------------------------------------------------------------------------


def test_reads_around_the_miss(cache):
    area = Mapped(cache, NR_PAGES)
    area.ra.order = 4
    area.mm.read(area.address(100), 1)
    assert window_of(area.ra) == (84, 32, 8)
    assert area.cached() == set(range(84, 116))
    assert area.marked() == [108]
    assert area.store.requests == [(84 * PAGE, 32 * PAGE)]
    assert {order for _, order, _ in area.mapping.folios()} == {0}
    assert area.ra.prev_pos == -1


@pytest.mark.parametrize("page, start, end", [(3, 0, 32), (16, 0, 32), (17, 1, 33), (190, 174, 200)])
def test_reading_around_stays_inside_the_file(cache, page, start, end):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.address(page), 1)
    assert area.cached() == set(range(start, end))


@pytest.mark.parametrize(
    "before, after, pages", [(0, 1, 32), (99, 100, 32), (100, 101, 1), (999, 1000, 1), (1000, 1000, 1)]
)
def test_many_misses_turn_reading_around_off(cache, before, after, pages):
    area = Mapped(cache, NR_PAGES)
    area.ra.mmap_miss = before
    area.release(area.fault(100)[0])
    assert (area.ra.mmap_miss, len(area.cached())) == (after, pages)


def test_sequential_map_reads_as_read_does(cache):
    area = Mapped(cache, NR_PAGES, vm_flags=mm.VM_SEQ_READ)
    area.release(area.fault(0)[0])
    assert window_of(area.ra) == (0, 32, 16) and area.ra.mmap_miss == 0
    assert area.cached() == set(range(32)) and area.marked() == [16]


def test_sequential_map_reads_a_plain_window_in_a_cold_file(cache):
    area = Mapped(cache, NR_PAGES, vm_flags=mm.VM_SEQ_READ)
    area.mm.read(area.address(100), 1)
    assert area.cached() == set(range(100, 132)) and area.marked() == []
    assert window_of(area.ra) == (0, 0, 0)


def test_random_map_reads_one_page(cache):
    area = Mapped(cache, NR_PAGES, vm_flags=mm.VM_RAND_READ)
    area.release(area.fault(100)[0])
    assert area.cached() == {100} and area.ra.mmap_miss == 0


@pytest.mark.parametrize("vm_flags", [0, mm.VM_SEQ_READ])
def test_file_without_readahead_reads_one_page(cache, vm_flags):
    area = Mapped(cache, NR_PAGES, vm_flags=vm_flags)
    area.ra.ra_pages = 0
    area.release(area.fault(100)[0])
    assert area.cached() == {100} and area.ra.mmap_miss == 0


def test_sequential_map_of_a_random_file_reads_exactly_what_it_asks_for(cache):
    area = Mapped(cache, NR_PAGES, vm_flags=mm.VM_SEQ_READ)
    area.file.fadvise(pagecache.FADV_RANDOM)
    area.mm.read(area.address(0), 1)
    assert area.cached() == set(range(32)) and area.marked() == []


@pytest.mark.parametrize("vm_flags, size", [(0, 1024), (mm.VM_RAND_READ, 512)])
def test_huge_page_map_reads_huge_folios(cache, vm_flags, size):
    area = Mapped(cache, 2048, vm_flags=mm.VM_HUGEPAGE | vm_flags)
    area.mm.read(area.address(700), 1)
    assert window_of(area.ra) == (512, size, 512)
    assert area.cached() == set(range(512, 512 + size))
    assert {order for _, order, _ in area.mapping.folios()} == {9}
    assert area.marked() == ([1024] if size == 1024 else [512])


def test_sequential_huge_page_map_counts_no_misses(cache):
    area = Mapped(cache, 2048, vm_flags=mm.VM_HUGEPAGE | mm.VM_SEQ_READ)
    area.ra.mmap_miss = 1000
    area.release(area.fault(700)[0])
    assert area.ra.mmap_miss == 1000 and len(area.cached()) == 1024


@pytest.mark.parametrize("vm_flags", [0, mm.VM_RAND_READ])
@pytest.mark.parametrize("page, start, end", [(100, 96, 120), (92, 90, 120)])
def test_code_is_read_in_aligned_folios_inside_the_area(cache, vm_flags, page, start, end):
    area = Mapped(cache, NR_PAGES, pgoff=90, length=30 * PAGE, vm_flags=mm.VM_EXEC | vm_flags)
    area.mm.read(area.address(page), 1)
    assert window_of(area.ra) == (start, end - start, 0)
    assert area.cached() == set(range(start, end)) and area.marked() == []


# -- a hit -------------------------------------------------------------------------------------------------------------


def test_marked_page_starts_the_next_window(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.address(100), 1)
    area.mm.read(area.address(108), 1)
    assert window_of(area.ra) == (116, 32, 32)
    assert area.cached() == set(range(84, 148)) and area.marked() == [116]
    assert area.count("pgmajfault") == 1


def test_marked_page_of_a_random_map_starts_nothing(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.address(100), 1)
    area.vma.flags |= mm.VM_RAND_READ
    area.mm.read(area.address(108), 1)
    assert area.cached() == set(range(84, 116)) and area.marked() == [108]


def test_sequential_reader_of_a_map_misses_once(cache):
    area = Mapped(cache, NR_PAGES)
    for index in range(NR_PAGES):
        assert area.mm.read(area.address(index), PAGE) == area.page(index)
    assert area.count("pgmajfault") == 1


@pytest.mark.parametrize("before, locked, after", [(7, False, 6), (0, False, 0), (7, True, 7)])
def test_hit_takes_one_miss_back_unless_the_folio_is_locked(cache, before, locked, after):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(5)
    area.ra.mmap_miss = before
    folio = area.mapping.get_folio(5)
    if locked:
        folio.lock()
    area.release(area.fault(5, FIRST | mm.FAULT_FLAG_RETRY_NOWAIT)[0])
    assert area.ra.mmap_miss == after
    if locked:
        folio.unlock()


# -- around the fault --------------------------------------------------------------------------------------------------


def map_around(area, page):
    """Fault on a cached page. Returns the pages that are mapped then."""
    assert area.mm.handle_page_fault(area.address(page)) == mm.VM_FAULT_NOPAGE
    return area.mapped()


def test_window_is_sixteen_aligned_pages(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(64))
    assert map_around(area, 21) == set(range(16, 32))


@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_window_can_be_another(cache, size):
    area = Mapped(cache, NR_PAGES)
    area.mm.fault_around_pages = size
    area.bring_in(*range(NR_PAGES))
    area.mm.handle_page_fault(area.address(21))
    first = 21 // size * size
    assert area.mapped() == set(range(first, first + size))


def test_window_is_aligned_in_addresses_and_clamped_to_the_area(cache):
    area = Mapped(cache, NR_PAGES, pgoff=5, length=20 * PAGE)
    area.bring_in(*range(64))
    assert map_around(area, 5 + 18) == set(range(5 + 16, 5 + 20))
    assert map_around(area, 5 + 3) == set(range(5, 5 + 20))


def test_window_does_not_reach_over_the_start_of_a_divided_area(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(64))
    area.mm.munmap(area.start, 20 * PAGE)
    area.mm.handle_page_fault(area.address(21))
    assert [area.vma.page_table.present(index) for index in (19, 20, 21, 31, 32)] == [False, True, True, True, False]


def test_window_does_not_cross_a_page_table(cache):
    area = Mapped(cache, 600)
    area.mm.fault_around_pages = 512
    area.bring_in(*range(500, 530))
    assert map_around(area, 505) == set(range(500, 512))


def test_window_ends_with_the_file(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(16))
    area.mapping.size = 5 * PAGE + 1
    assert map_around(area, 2) == set(range(6))
    area.mapping.size = NR_PAGES * PAGE


def test_window_ends_with_the_file_inside_a_large_folio(cache):
    area = Mapped(cache, NR_PAGES)
    folio = filemap_get_folio(area.mapping, 4, FGP_CREAT | FGP_LOCK | fgf_set_order(4 * PAGE))
    folio.mark_uptodate()
    folio.unlock()
    folio.put()
    area.mapping.size = 5 * PAGE + 1
    assert map_around(area, 4) == {4, 5}
    area.mapping.size = NR_PAGES * PAGE


def test_pages_that_are_not_ready_are_left_out(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(0, 1, 2, 4, 5)
    area.create_empty(3)
    locked = area.mapping.get_folio(4)
    locked.lock()
    assert map_around(area, 1) == {0, 1, 2, 5}
    locked.unlock()


def test_marked_page_is_left_to_a_fault_of_its_own(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.address(100), 1)
    assert area.marked() == [108]
    assert area.mapped() == set(range(96, 112)) - {108}


def test_large_folio_is_mapped_as_far_as_the_window(cache):
    area = Mapped(cache, 2048, vm_flags=mm.VM_HUGEPAGE | mm.VM_RAND_READ)
    area.file.fadvise(pagecache.FADV_WILLNEED, 0, PAGE)
    area.mm.read(area.address(600), 1)
    area.mapping.get_folio(512).test_clear_readahead()
    assert map_around(area, 700) >= set(range(688, 704))


@pytest.mark.parametrize("start, end, result", [(0, 15, 0x100), (8, 15, 0), (0, 1, 0x100), (2, 15, 0)])
def test_nopage_says_that_the_page_of_the_fault_was_mapped(cache, start, end, result):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(16))
    vmf = area.vmf(1)
    assert filemap_map_pages(vmf, start, end) == result
    assert area.mapped() == set(range(start, end + 1))
    area.release(vmf)


def test_page_that_is_mapped_already_stays_and_is_no_nopage(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(16))
    for expected in (mm.VM_FAULT_NOPAGE, 0):
        vmf = area.vmf(1)
        assert filemap_map_pages(vmf, 0, 15) == expected
        area.release(vmf)


@pytest.mark.parametrize("before, after", [(0, 0), (9, 0), (16, 0), (40, 24)])
def test_each_page_considered_takes_one_miss_back(cache, before, after):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(*range(20))
    area.ra.mmap_miss = before
    map_around(area, 3)
    assert area.ra.mmap_miss == after


def test_recently_evicted_folios_give_no_credit():
    with checked_cache(64, policy="kernel") as cache:
        area = Mapped(cache, NR_PAGES)
        area.bring_in(*range(16))
        held = [area.mapping.get_folio(index) for index in range(4)]
        while not all(folio.workingset for folio in held):
            for folio in held:
                folio.mark_accessed()
            cache.segment.reclaim(8)
        area.ra.mmap_miss = 40
        area.bring_in(*range(16))
        others = sum(not area.mapping.get_folio(index).workingset for index in range(16))
        map_around(area, 3)
        assert area.ra.mmap_miss == 40 - others
        assert others <= 12
        for folio in held:
            folio.put()


# -- what maps of small caches read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 64])
@pytest.mark.parametrize("vm_flags", [0, mm.VM_SEQ_READ, mm.VM_RAND_READ, mm.VM_HUGEPAGE, mm.VM_EXEC])
def test_small_caches_serve_every_kind_of_map(frames, vm_flags):
    with checked_cache(frames) as cache:
        area = Mapped(cache, NR_PAGES, vm_flags=vm_flags)
        for index in (100, 101, 3, 199, 0, 108, 108, 50):
            assert area.mm.read(area.address(index) + 7, 100) == area.page(index)[7:107]
        area.assert_released()
