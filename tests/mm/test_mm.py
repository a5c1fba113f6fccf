"""The software address space: areas, the way of a fault, advice, the mmap lock."""

import errno
import gc
import mmap
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, PATIENCE_S, Crew, Store, checked_cache, pages_of, wait_until
from support.fault_steps import Mapped, SizedStore, in_thread
from support.remote_stores import wait_all_read

import pagecache
from pagecache import mm

NR_PAGES = 40
SPAN = 512 * PAGE


@pytest.fixture
def cache():
    with checked_cache(256) as cache:
        yield cache


@pytest.fixture
def area(cache):
    return Mapped(cache, NR_PAGES)


def layout(space):
    """Return first page, last page, page of the object and flags of every area, relative to the first address."""
    base = min(space.vmas, default=0)
    return [
        ((vma.start - base) // PAGE, (vma.end - base) // PAGE, vma.pgoff, vma.flags & ~(mm.VM_READ | mm.VM_SHARED))
        for vma in space.vmas.values()
    ]


# -- areas -------------------------------------------------------------------------------------------------------------


def test_map_is_rounded_up_to_pages_and_begins_with_a_page_table(area):
    start = area.mm.mmap(area.file, 3 * PAGE + 1, pgoff=5)
    vma = area.mm.vma_lookup(start)
    assert (vma.nr_pages, vma.pgoff, start % SPAN, vma.page_of(start + 2 * PAGE)) == (4, 5, 0, 7)
    assert area.mm.read(start, 3 * PAGE) == area.data[5 * PAGE : 8 * PAGE]
    assert "page 5 of 'sized'" in repr(vma)


@pytest.mark.parametrize("length, pgoff", [(0, 0), (-1, 0), (1, -1), (1 << 64, 0), (PAGE, 1 << 52)])
def test_map_of_an_impossible_range_is_refused(area, length, pgoff):
    with pytest.raises(ValueError, match="cannot map"):
        area.mm.mmap(area.file, length, pgoff=pgoff)


@pytest.mark.parametrize("flags", [0, mmap.MAP_SHARED | mmap.MAP_PRIVATE])
def test_map_is_shared_or_private(area, flags):
    with pytest.raises(OSError, match="MAP_SHARED and MAP_PRIVATE") as caught:
        area.mm.mmap(area.file, PAGE, flags=flags)
    assert caught.value.errno == errno.EINVAL


def test_shared_map_of_a_file_for_reading_is_not_made_for_writing(area):
    with area.cache.open(area.store) as file, pytest.raises(PermissionError, match="cannot be written"):
        area.mm.mmap(file, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED)


def test_write_is_refused(area):
    with pytest.raises(PermissionError, match="sized cannot be written"):
        area.mm.write(area.start, b"x")
    with pytest.raises(OSError, match="nothing is mapped") as caught:
        area.mm.write(area.start - 1, b"x")
    assert caught.value.errno == errno.EFAULT
    area.mm.write(area.start, b"")
    area.assert_released()


def test_area_that_may_not_be_read_is_not(area):
    start = area.mm.mmap(area.file, PAGE, 0)
    with pytest.raises(PermissionError, match="may not be accessed"):
        area.mm.read(start, 1)
    assert area.mm.read(area.mm.mmap(area.file, PAGE, mmap.PROT_EXEC), PAGE) == area.page(0)
    area.assert_released()


def test_find_vma_returns_the_first_area_that_ends_behind(area):
    second = area.mm.mmap(area.file, PAGE)
    first_vma, second_vma = area.mm.vma_lookup(area.start), area.mm.vma_lookup(second)
    assert area.mm.find_vma(0) is first_vma and area.mm.vma_lookup(0) is None
    assert area.mm.find_vma(area.vma.end - 1) is first_vma
    assert area.mm.find_vma(area.vma.end) is second_vma and area.mm.vma_lookup(area.vma.end) is None
    assert area.mm.find_vma(second + PAGE) is None and area.mm.vma_lookup(second + PAGE) is None


@pytest.mark.parametrize(
    "first, last, left",
    [
        (0, 40, []),
        (0, 3, [(0, 37, 3)]),
        (30, 50, [(0, 30, 0)]),
        (10, 12, [(0, 10, 0), (12, 40, 12)]),
        (40, 41, [(0, 40, 0)]),
    ],
)
def test_munmap_divides_areas(area, first, last, left):
    area.mm.read(area.start, NR_PAGES * PAGE)
    area.mm.munmap(area.start + first * PAGE, (last - first) * PAGE)
    assert [entry[:3] for entry in layout(area.mm)] == left
    assert len(area.mapping.maps) == len(left)
    for index in range(NR_PAGES):
        if first <= index < last:
            with pytest.raises(OSError, match="nothing is mapped"):
                area.mm.read(area.start + index * PAGE, 1)
        else:
            assert area.mm.read(area.start + index * PAGE, PAGE) == area.page(index)
    area.assert_released()


def test_munmap_of_nothing_is_no_error_and_of_no_pages_is(area):
    area.mm.munmap(area.vma.end + SPAN, PAGE)
    for start, length in ((1, PAGE), (area.start, 0), (-PAGE, PAGE), (0, 1 << 64)):
        with pytest.raises(OSError, match="no range of pages"):
            area.mm.munmap(start, length)


def test_translations_of_the_pieces_stay(area):
    area.mm.read(area.start, NR_PAGES * PAGE)
    faults, table = area.count("pgfault"), area.vma.page_table
    area.mm.munmap(area.start + 10 * PAGE, PAGE)
    assert [index for index in range(NR_PAGES) if not table.present(index)] == [10]
    assert area.mm.read(area.start + 11 * PAGE, 29 * PAGE) == area.data[11 * PAGE :]
    assert area.count("pgfault") == faults


def test_read_crosses_areas_and_stops_at_holes(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.madvise(area.start + 8 * PAGE, 8 * PAGE, mm.MADV_RANDOM)
    assert area.mm.read(area.start + 100, NR_PAGES * PAGE - 200) == area.data[100:-100]
    with pytest.raises(OSError, match="nothing is mapped"):
        area.mm.read(area.vma.end + SPAN, 1)
    with pytest.raises(OSError, match="nothing is mapped"):
        area.mm.read(area.start + NR_PAGES * PAGE - 1, 2)
    with pytest.raises(ValueError, match="negative"):
        area.mm.read(area.start, -1)
    assert area.mm.read(area.start, 0) == b""
    area.assert_released()


def test_bytes_behind_the_end_in_the_last_page_are_zero_and_pages_behind_are_errors(cache):
    area = Mapped(cache, 3, store=SizedStore(b"x" * (PAGE + 5)))
    assert area.mm.read(area.start, 2 * PAGE) == b"x" * (PAGE + 5) + bytes(PAGE - 5)
    with pytest.raises(mm.BusError, match="page 2 is beyond the end of the file, which has 4101 bytes"):
        area.mm.read(area.start + PAGE, PAGE + 1)
    area.assert_released()


# -- life --------------------------------------------------------------------------------------------------------------


def test_map_keeps_the_file_open(cache):
    area = Mapped(cache, NR_PAGES)
    area.file.close()
    assert area.mm.read(area.start, PAGE) == area.page(0)
    assert area.store.nr_closed == 0
    area.mm.madvise(area.start + PAGE, PAGE, mm.MADV_RANDOM)
    area.mm.munmap(area.start, NR_PAGES * PAGE)
    area.vma = None
    assert area.store.nr_closed == 1


def test_fault_in_flight_keeps_the_file_open(cache):
    area = Mapped(cache, NR_PAGES, vm_flags=mm.VM_RAND_READ)
    area.file.close()
    folio = area.mapping.new_batch(5)
    assert folio.extend(5, 0, -1, 6) == 0
    with in_thread(lambda: area.mm.handle_page_fault(area.address(5))) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        area.vma = None
        area.mm.munmap(area.start, NR_PAGES * PAGE)
        assert area.store.nr_closed == 0
        folio.release()
        with pytest.raises(OSError, match="nothing is mapped"):
            fault.result()
    del fault
    gc.collect()  # the thread's exception knows its frames, and they know the exception
    assert area.store.nr_closed == 1


def test_forgotten_map_gives_everything_back(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.start, PAGE)
    area.file.close()
    gone = weakref.ref(area.mm)
    gc.disable()
    try:
        area.vma = area.mm = None
        assert gone() is None
    finally:
        gc.enable()
    assert area.store.nr_closed == 1 and len(area.mapping.maps) == 0


def test_area_of_a_map_that_is_gone_says_so(area):
    area.mm = None
    with pytest.raises(ReferenceError, match="gone"):
        mm.handle_mm_fault(area.vma, area.start)


def test_areas_of_an_object_can_come_and_go_while_they_are_visited(area):
    keep = [Mapped(area.cache, NR_PAGES, store=area.store) for _ in range(3)]
    visited = iter(area.mapping.maps)
    next(visited)
    keep.append(Mapped(area.cache, NR_PAGES, store=area.store))
    del keep[:3]
    assert len(list(visited)) == 3
    del visited  # without a GIL it keeps what it has visited
    assert len(area.mapping.maps) == 2
    area.mapping.maps.discard(area.vma)
    area.mapping.maps.discard(area.vma)
    assert len(area.mapping.maps) == 1


# -- faults ------------------------------------------------------------------------------------------------------------


def test_each_fault_is_counted_once(area):
    area.mm.read(area.address(20), 1)
    assert (area.count("pgfault"), area.count("pgmajfault"), area.mm.maj_flt, area.mm.min_flt) == (1, 1, 1, 0)
    area.mm.read(area.address(9), 1)
    assert (area.count("pgfault"), area.count("pgmajfault"), area.mm.maj_flt, area.mm.min_flt) == (2, 1, 1, 1)
    area.mm.read(area.address(9), PAGE)
    assert area.count("pgfault") == 2


def test_failed_fault_is_counted(area):
    area.mapping.size = 0
    with pytest.raises(mm.BusError):
        area.mm.read(area.start, 1)
    assert (area.count("pgfault"), area.count("pgmajfault")) == (1, 0)
    area.mapping.size = len(area.data)


def test_fault_on_a_mapped_page_does_nothing(area):
    area.mm.read(area.address(20), 1)
    area.ra.mmap_miss = 7
    area.mm.mmap_lock.lock_shared()
    assert mm.handle_mm_fault(area.vma, area.address(20)) == 0
    area.mm.mmap_lock.unlock_shared()
    assert area.ra.mmap_miss == 7
    area.assert_released()


def test_handle_mm_fault_maps_the_page(area):
    area.bring_in(20)
    area.mm.fault_around_pages = 1
    area.mm.mmap_lock.lock_shared()
    assert mm.handle_mm_fault(area.vma, area.address(20)) == 0
    area.mm.mmap_lock.unlock_shared()
    assert area.mapped() == {20}
    area.assert_released()


def test_fault_operation_may_return_without_the_lock(area):
    area.bring_in(20)

    def fault(vmf):
        vmf.folio = area.mapping.get_folio(20)
        return 0

    area.vma.ops = mm.VmOperations(fault)
    assert area.mm.handle_page_fault(area.address(20)) == 0
    assert area.mapped() == {20}
    area.assert_released()


def test_page_that_is_gone_before_it_can_be_locked_is_not_mapped(area):
    area.bring_in(20)

    def fault(vmf):
        vmf.folio = area.mapping.get_folio(20)
        area.file.invalidate()
        return 0

    area.vma.ops = mm.VmOperations(fault)
    assert area.mm.handle_page_fault(area.address(20)) == mm.VM_FAULT_NOPAGE
    assert area.mapped() == set()
    area.assert_released()


def test_fault_that_completed_without_the_mmap_lock_is_over(area):
    def fault(vmf):
        vmf.drop_mmap_lock()
        return mm.VM_FAULT_COMPLETED | mm.VM_FAULT_NOPAGE

    area.vma.ops = mm.VmOperations(fault)
    assert area.mm.handle_page_fault(area.address(20)) & mm.VM_FAULT_COMPLETED
    area.assert_released()


def test_nowait_has_to_try_again(area):
    area.bring_in(20)
    folio = area.mapping.get_folio(20)
    folio.lock()
    flags = mm.FAULT_FLAG_DEFAULT | mm.FAULT_FLAG_RETRY_NOWAIT
    assert area.mm.handle_page_fault(area.address(20), flags) == mm.VM_FAULT_RETRY
    folio.unlock()
    folio.put()
    area.assert_released()


def test_second_attempt_keeps_the_mmap_lock(cache):
    seen = []

    def fault(vmf):
        seen.append((vmf.flags & mm.FAULT_FLAG_TRIED, vmf.flags & mm.FAULT_FLAG_MISSED))
        if not vmf.flags & mm.FAULT_FLAG_TRIED:
            vmf.drop_mmap_lock()
            return mm.VM_FAULT_RETRY | mm.VM_FAULT_MAJOR
        return mm.VM_FAULT_NOPAGE

    area = Mapped(cache, NR_PAGES)
    area.vma.ops = mm.VmOperations(fault)
    area.mm.handle_page_fault(area.start)
    assert seen == [(0, 0), (mm.FAULT_FLAG_TRIED, mm.FAULT_FLAG_MISSED)]
    area.assert_released()


def test_unmapping_and_evicting_end_translations(area):
    area.mm.read(area.start, NR_PAGES * PAGE)
    assert area.mapped() == set(range(NR_PAGES))
    assert area.vma.unmap_object_pages(3, 5, True) == 2
    assert area.mapped() == set(range(NR_PAGES)) - {3, 4}
    area.mm.read(area.start, NR_PAGES * PAGE)
    wait_all_read(area.file)
    area.cache.drop_caches()
    assert area.mapped() == set()
    assert area.mm.read(area.start, NR_PAGES * PAGE) == area.data
    area.assert_released()


# -- advice ------------------------------------------------------------------------------------------------------------


def test_advice_sets_flags_of_a_range_and_joins_areas_again(area):
    first = area.start + 4 * PAGE
    area.mm.madvise(first, 4 * PAGE, mm.MADV_SEQUENTIAL)
    assert layout(area.mm) == [(0, 4, 0, 0), (4, 8, 4, mm.VM_SEQ_READ), (8, 40, 8, 0)]
    area.mm.madvise(first, 2 * PAGE, mm.MADV_RANDOM)
    assert layout(area.mm)[1:3] == [(4, 6, 4, mm.VM_RAND_READ), (6, 8, 6, mm.VM_SEQ_READ)]
    area.mm.madvise(first + PAGE, PAGE, mm.MADV_SEQUENTIAL)
    assert layout(area.mm)[1:3] == [(4, 5, 4, mm.VM_RAND_READ), (5, 8, 5, mm.VM_SEQ_READ)]
    area.mm.madvise(area.start, NR_PAGES * PAGE, mm.MADV_NORMAL)
    assert layout(area.mm) == [(0, 40, 0, 0)]
    assert len(area.mapping.maps) == 1


def test_advice_about_huge_pages(area):
    area.mm.madvise(area.start, PAGE, mm.MADV_HUGEPAGE)
    assert area.vma.flags & mm.VM_HUGEPAGE
    area.mm.madvise(area.start, PAGE, mm.MADV_NOHUGEPAGE)
    assert area.vma.flags & (mm.VM_HUGEPAGE | mm.VM_NOHUGEPAGE) == mm.VM_NOHUGEPAGE


def test_willneed_reads_and_maps_nothing(area):
    area.mm.madvise(area.start + 4 * PAGE, 5 * PAGE, mm.MADV_WILLNEED)
    assert area.cached() == set(range(4, 9)) and area.mapped() == set()


def test_dontneed_forgets_translations_only(area):
    area.mm.read(area.start, NR_PAGES * PAGE)
    area.mm.madvise(area.start + 4 * PAGE, 5 * PAGE, mm.MADV_DONTNEED)
    assert area.mapped() == set(range(NR_PAGES)) - set(range(4, 9))
    assert area.cached() == set(range(NR_PAGES))


def test_other_advice_is_taken_or_refused(area):
    area.mm.madvise(area.start, PAGE, mmap.MADV_DONTFORK)
    for start, advice, number in ((area.start, 12345, errno.EINVAL), (area.start + 1, mm.MADV_NORMAL, errno.EINVAL)):
        with pytest.raises(OSError) as caught:
            area.mm.madvise(start, PAGE, advice)
        assert caught.value.errno == number


def test_advice_on_a_hole_reaches_what_is_mapped(area):
    area.mm.munmap(area.start + 4 * PAGE, 4 * PAGE)
    with pytest.raises(OSError, match="not mapped") as caught:
        area.mm.madvise(area.start, NR_PAGES * PAGE, mm.MADV_RANDOM)
    assert caught.value.errno == errno.ENOMEM
    assert layout(area.mm) == [(0, 4, 0, mm.VM_RAND_READ), (8, 40, 8, mm.VM_RAND_READ)]


# -- many operations against a model -----------------------------------------------------------------------------------

PAGES = st.integers(0, NR_PAGES - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("map"), PAGES, st.integers(1, 12)),
        st.tuples(st.sampled_from(["unmap", "read", "advise", "forget"]), PAGES, st.integers(1, 12)),
        st.tuples(st.just("drop"), PAGES, PAGES),
    ),
    max_size=30,
)
ADVICE = [mm.MADV_NORMAL, mm.MADV_RANDOM, mm.MADV_SEQUENTIAL, mm.MADV_HUGEPAGE]


@given(steps=STEPS)
def test_areas_agree_with_a_dictionary_of_pages(frames, steps):
    data = pages_of(NR_PAGES * PAGE)
    with checked_cache(frames) as cache, cache.open(Store(data)) as file:
        space, model = mm.MemoryMap(), {}
        for step, at, extent in steps:
            address = mm.MMAP_BASE + at * PAGE
            inside = range(at, at + extent)
            if step == "map":
                start = (space.mmap(file, extent * PAGE, pgoff=min(at, NR_PAGES - extent)) - mm.MMAP_BASE) // PAGE
                model.update((start + number, min(at, NR_PAGES - extent) + number) for number in range(extent))
            elif step == "unmap":
                space.munmap(address, extent * PAGE)
                for page in inside:
                    model.pop(page, None)
            elif step == "read":
                expected = b"".join(data[model[p] * PAGE : (model[p] + 1) * PAGE] for p in inside if p in model)
                if all(page in model for page in inside):
                    assert space.read(address, extent * PAGE) == expected
                else:
                    with pytest.raises(OSError, match="nothing is mapped"):
                        space.read(address, extent * PAGE)
            elif step in ("advise", "forget"):
                advice = mm.MADV_DONTNEED if step == "forget" else ADVICE[extent % len(ADVICE)]
                try:
                    space.madvise(address, extent * PAGE, advice)
                except OSError as error:
                    assert error.errno == errno.ENOMEM and not all(page in model for page in inside)
            else:
                cache.drop_caches()
        shown = {
            (vma.start - mm.MMAP_BASE) // PAGE + number: vma.pgoff + number
            for vma in space.vmas.values()
            for number in range(vma.nr_pages)
        }
        assert shown == model
        assert all(space.vmas[start].start == start for start in space.vmas)


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_readers_share_and_a_writer_excludes():
    lock, leave = mm.MmapLock(), [threading.Event(), threading.Event()]

    def share(number):
        lock.lock_shared()
        assert leave[number].wait(PATIENCE_S)
        lock.unlock_shared()

    def write():
        lock.lock_exclusive()
        assert lock.write_locked and lock.nr_readers == 0
        lock.unlock_exclusive()

    with in_thread(lambda: share(0)) as first, in_thread(lambda: share(1)) as second:
        wait_until(lambda: lock.nr_readers == 2, "both to share the lock")
        with in_thread(write) as writer:
            writer.wait_inside("_wait_until")
            with in_thread(lambda: share(1)) as late:
                late.wait_inside("lock_shared")
                late.wait_inside("_wait_until")  # behind the writer, though readers hold the lock
                assert lock.nr_readers == 2
                leave[0].set()
                first.result()
                writer.wait_inside("_wait_until")
                leave[1].set()
                for each in (second, writer, late):
                    each.result()
    assert lock.nr_readers == 0 and not lock.write_locked


def test_thread_that_shares_the_lock_may_share_it_again_and_may_exclude():
    lock = mm.MmapLock()
    lock.lock_shared()
    lock.lock_shared()
    assert lock.nr_readers == 1
    lock.unlock_shared()
    lock.unlock_shared()
    assert lock.nr_readers == 0
    lock.lock_shared()
    lock.lock_exclusive()
    assert lock.nr_readers == 0
    with in_thread(lock.unlock_exclusive):
        pass
    assert lock.write_locked  # it was not that thread's to give back
    lock.unlock_exclusive()
    assert not lock.write_locked


def test_writer_that_gives_up_lets_readers_in():
    class Stop(Exception):
        pass

    class Interrupted:
        value = 0

        def wait(self, seen, timeout_s):
            raise Stop

        def advance(self):
            pass

    lock, leave = mm.MmapLock(), threading.Event()
    with in_thread(lambda: (lock.lock_shared(), leave.wait(PATIENCE_S), lock.unlock_shared())):
        wait_until(lambda: lock.nr_readers == 1, "the other thread to share the lock")
        lock._changed, changed = Interrupted(), lock._changed
        with pytest.raises(Stop):
            lock.lock_exclusive()
        lock._changed = changed
        lock.lock_shared()
        assert lock.nr_readers == 2
        leave.set()


def test_lock_admits_one_writer_or_many_readers(rng):
    lock, inside, seen = mm.MmapLock(), [], []

    def work(seed):
        local = type(rng)(seed)
        for _ in range(200):
            writes = local.random() < 0.2
            (lock.lock_exclusive if writes else lock.lock_shared)()
            inside.append(writes)
            seen.append(sum(inside) == 0 or len(inside) == 1)
            inside.remove(writes)
            (lock.unlock_exclusive if writes else lock.unlock_shared)()

    Crew(*[lambda seed=seed: work(seed) for seed in range(4)]).join_well()
    assert all(seen) and lock.nr_readers == 0 and not lock.write_locked


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nr_frames", [1, 3, 64])
def test_maps_change_while_others_read(nr_frames, rng):
    with checked_cache(nr_frames) as cache:
        area = Mapped(cache, NR_PAGES)
        done = threading.Event()
        seeds = [rng.randrange(2**32) for _ in range(3)]

        def change(seed):
            local = type(rng)(seed)
            try:
                for _ in range(60):
                    start = area.mm.mmap(area.file, 4 * PAGE, pgoff=local.randrange(NR_PAGES - 4))
                    area.mm.read(start, 1)
                    area.mm.madvise(area.start + local.randrange(NR_PAGES) * PAGE, PAGE, local.choice(ADVICE))
                    area.mm.munmap(start, local.randrange(1, 5) * PAGE)
            finally:
                done.set()

        def read(seed):
            local = type(rng)(seed)
            while not done.is_set():
                index = local.randrange(NR_PAGES - 2)
                got = area.mm.read(area.start + index * PAGE + 5, 2 * PAGE)
                assert got == area.data[index * PAGE + 5 :][: 2 * PAGE]

        Crew(lambda: change(seeds[0]), lambda: read(seeds[1]), lambda: read(seeds[2])).join_well()
        area.assert_released()


def test_names_are_public():
    assert [name for name in mm.__all__ if not hasattr(mm, name)] == []
    assert {"VM_FAULT_RETRY", "FAULT_FLAG_TRIED", "VM_SEQ_READ", "BusError", "MemoryMap"} <= set(mm.__all__)
    assert issubclass(mm.BusError, OSError) and pagecache.mm is mm
