"""filemap_fault step by step: each by itself, driven to where it matters by locks, stores and truncation.

The rules: docs/kernel.md, filemap_fault.
"""

import errno
import signal
import threading

import pytest
from support import PAGE, assert_nothing_is_held, checked_cache, frame_of, pages_of, wait_until
from support.fault_steps import Mapped, in_thread

import pagecache
from pagecache import mm, truncate
from pagecache.filemap import filemap_fault, filemap_get_folio

NR_PAGES = 200
FIRST = mm.FAULT_FLAG_DEFAULT
TRIED = FIRST | mm.FAULT_FLAG_TRIED
NOWAIT = FIRST | mm.FAULT_FLAG_RETRY_NOWAIT


@pytest.fixture
def cache():
    with checked_cache(1024) as cache:
        yield cache


def mapped_random(cache, **options):
    """A map whose faults read single pages."""
    return Mapped(cache, NR_PAGES, vm_flags=mm.VM_RAND_READ, **options)


# -- step 1 and 2 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, page, result", [(5 * PAGE, 5, mm.VM_FAULT_SIGBUS), (5 * PAGE + 1, 5, None)])
def test_step_01_beyond_eof_is_sigbus(cache, size, page, result):
    area = mapped_random(cache)
    area.file.truncate(size)
    vmf, got = area.fault(page)
    assert got == (result or mm.VM_FAULT_RETRY | mm.VM_FAULT_MAJOR)
    if result:
        assert (area.count("pgmajfault"), area.store.requests, vmf.mmap_locked) == (0, [], True)
        assert isinstance(vmf.error, mm.BusError) and vmf.error.errno == errno.EFAULT
        assert "sized" in str(vmf.error) and str(5 * PAGE) in str(vmf.error)
    area.release(vmf)
    area.assert_released()


def test_step_02_hit_takes_a_reference_and_counts_no_major_fault(cache):
    area = mapped_random(cache)
    area.bring_in(7)
    requests = len(area.store.requests)
    vmf, result = area.fault(7)
    assert result == mm.VM_FAULT_LOCKED
    assert vmf.folio.refcount == 1 + 1
    assert area.count("pgmajfault") == 0 and len(area.store.requests) == requests
    area.release(vmf)
    area.assert_released()


# -- step 3: found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, started", [(FIRST, True), (TRIED, False), (NOWAIT, True)])
def test_step_03a_hit_starts_async_readahead_unless_tried(cache, flags, started):
    area = Mapped(cache, NR_PAGES)
    area.mm.read(area.address(100), 1)
    assert area.marked() == [108]
    vmf, result = area.fault(108, flags)
    dropped = flags == FIRST
    assert result == (mm.VM_FAULT_RETRY if dropped else mm.VM_FAULT_LOCKED)
    assert vmf.mmap_locked is not dropped
    assert area.cached() == set(range(84, 148 if started else 116))
    assert area.marked() == [116 if started else 108]
    area.release(vmf)
    area.assert_released()


def test_step_03b_hit_that_is_not_uptodate_takes_invalidate_lock(cache):
    area = mapped_random(cache)
    area.create_empty(9)
    area.store.look = area.invalidate_lock_is_held
    vmf, result = area.fault(9, TRIED)
    assert result == mm.VM_FAULT_LOCKED and area.store.seen == [True]
    assert not area.invalidate_lock_is_held()
    assert vmf.folio.tobytes() == area.page(9)
    assert area.count("pgmajfault") == 0
    area.release(vmf)
    area.assert_released()


def test_step_03b_waits_for_the_thread_that_frees_what_is_below(cache):
    area = mapped_random(cache)
    area.create_empty(9)
    area.mapping.lock_exclusive()
    with in_thread(lambda: area.mm.read(area.address(9), PAGE)) as reader:
        reader.wait_inside("lock_mapping")
        assert area.store.requests == []
        folio = area.mapping.get_folio(9)
        assert folio.refcount == 1 + 1 + 1  # the fault keeps what it has found
        folio.put()
        area.mapping.unlock_exclusive()
        assert reader.result() == area.page(9)
    area.assert_released()


# -- step 4: not found -------------------------------------------------------------------------------------------------


def test_step_04a_locked_area_mapped_meanwhile_is_nopage(cache):
    area = mapped_random(cache)
    area.vma.flags |= mm.VM_LOCKED
    vmf = area.vmf(3, FIRST | mm.FAULT_FLAG_ORIG_PTE_VALID)

    def present(index):  # the page is mapped, and evicted, between the two looks
        return index == 3

    class Table:
        def __init__(self):
            self.present = present

    table, area.vma.page_table = area.vma.page_table, Table()
    assert filemap_fault(vmf) == mm.VM_FAULT_NOPAGE
    area.vma.page_table = table
    assert area.count("pgmajfault") == 0 and area.store.requests == []
    area.release(vmf)
    area.assert_released()


def test_step_04b_miss_counts_one_major_fault(cache):
    area = Mapped(cache, NR_PAGES)
    vmf, result = area.fault(50, FIRST)
    assert result == mm.VM_FAULT_RETRY | mm.VM_FAULT_MAJOR
    assert area.count("pgmajfault") == 1
    vmf, result = area.fault(50, TRIED)
    assert result == mm.VM_FAULT_LOCKED
    assert area.count("pgmajfault") == 1
    area.release(vmf)
    area.assert_released()


def test_step_04b_page_that_left_between_the_attempts_is_not_counted_again(cache):
    area = Mapped(cache, NR_PAGES)
    area.fault(50, FIRST)
    area.file.invalidate(50 * PAGE, PAGE)
    missed = area.ra.mmap_miss
    vmf, result = area.fault(50, TRIED | mm.FAULT_FLAG_MISSED)
    assert result == mm.VM_FAULT_LOCKED | mm.VM_FAULT_MAJOR
    assert (area.count("pgmajfault"), area.ra.mmap_miss) == (1, missed)
    area.release(vmf)
    area.assert_released()


@pytest.mark.parametrize("flags, dropped", [(FIRST, True), (TRIED, False), (NOWAIT, False), (0, False)])
def test_step_04c_miss_reads_ahead_without_the_mmap_lock_if_it_may(cache, flags, dropped):
    area = Mapped(cache, NR_PAGES)
    area.store.look = lambda: area.mm.mmap_lock.nr_readers
    vmf, result = area.fault(50, flags)
    assert area.store.requests == [(34 * PAGE, 32 * PAGE)]
    assert area.store.seen == [0 if dropped else 1]
    assert result == mm.VM_FAULT_MAJOR | (mm.VM_FAULT_RETRY if dropped else mm.VM_FAULT_LOCKED)
    area.release(vmf)
    area.assert_released()


def test_step_04c_failed_readahead_is_no_error(cache):
    area = Mapped(cache, NR_PAGES)
    area.store.error = OSError(errno.EIO, "bad sector")
    vmf = area.vmf(50, TRIED)
    area.store.look = lambda: len(area.store.requests) > 1 and setattr(area.store, "error", None)
    assert filemap_fault(vmf) == mm.VM_FAULT_LOCKED | mm.VM_FAULT_MAJOR
    assert vmf.folio.tobytes() == area.page(50)
    assert area.count("readahead_errors") == 1
    area.release(vmf)
    area.assert_released()


def test_step_04d_retry_find_creates_the_folio_under_invalidate_lock(cache):
    area = mapped_random(cache)
    area.mapping.lock_exclusive()
    with in_thread(lambda: area.fault_and_leave(50, TRIED)) as fault:
        fault.wait_inside("lock_mapping")
        assert area.mapping.nrpages == 0
        area.mapping.unlock_exclusive()
        vmf, result = fault.result()
    assert result == mm.VM_FAULT_LOCKED | mm.VM_FAULT_MAJOR
    assert area.cached() == {50}
    area.release(vmf)
    area.assert_released()


def full_cache(cache, **options):
    """A map in a cache whose frames are all pinned by views."""
    area = Mapped(cache, NR_PAGES, **options)
    views = [area.file.view(1, index * PAGE) for index in range(cache.stats().nr_frames)]
    return area, views


def test_step_04e_create_failure_is_oom():
    with checked_cache(2) as cache:
        area, views = full_cache(cache, vm_flags=mm.VM_RAND_READ)
        vmf, result = area.fault(50, FIRST)
        assert result == mm.VM_FAULT_OOM | mm.VM_FAULT_MAJOR
        assert isinstance(vmf.error, pagecache.CacheFullError) and vmf.error.nr_pinned == 2
        assert vmf.mmap_locked and not area.invalidate_lock_is_held()
        area.release(vmf)
        with pytest.raises(pagecache.CacheFullError, match="2 are pinned"):
            area.mm.read(area.address(50), 1)
        for view in views:
            view.release()
        assert area.mm.read(area.address(50), PAGE) == area.page(50)
        assert_nothing_is_held(cache)


def test_step_04e_create_failure_is_retry_once_the_mmap_lock_was_dropped():
    with checked_cache(2) as cache:
        area, views = full_cache(cache)
        vmf, result = area.fault(50, FIRST)
        assert result == mm.VM_FAULT_RETRY | mm.VM_FAULT_MAJOR
        assert not vmf.mmap_locked and vmf.error is None
        for view in views:
            view.release()
        assert_nothing_is_held(cache)


def test_step_04e_waits_for_memory_without_invalidate_lock():
    with checked_cache(2) as cache:
        area, views = full_cache(cache, vm_flags=mm.VM_RAND_READ)
        held = area.mapping.get_folio(0)
        views[0].release()  # now one frame is not pinned by a view, only referenced: worth waiting for
        with in_thread(lambda: area.mm.read(area.address(50), PAGE)) as reader:
            reader.wait_inside("alloc_folio")
            wait_until(lambda: not area.invalidate_lock_is_held(), "the fault to give invalidate_lock back")
            held.put()
            assert reader.result() == area.page(50)
        views[1].release()
        area.assert_released()


# -- step 5: the folio lock --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, dropped", [(FIRST, True), (TRIED, False)])
def test_step_05_waiting_for_the_folio_lock_may_drop_the_mmap_lock(cache, flags, dropped):
    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    with in_thread(lambda: area.fault_and_leave(5, flags)) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        wait_until(lambda: area.mm.mmap_lock.nr_readers == (0 if dropped else 1), "the mmap lock")
        folio.unlock()
        vmf, result = fault.result()
    assert result == (mm.VM_FAULT_RETRY if dropped else mm.VM_FAULT_LOCKED)
    folio.put()
    area.release(vmf)
    area.assert_released()


def test_step_05_nowait_gives_up_with_the_mmap_lock_held(cache):
    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    vmf, result = area.fault(5, NOWAIT)
    assert result == mm.VM_FAULT_RETRY and vmf.mmap_locked
    assert area.mm.mmap_lock.nr_readers == 1
    folio.unlock()
    folio.put()
    area.release(vmf)
    area.assert_released()


@pytest.mark.parametrize("flags", [FIRST, TRIED])
def test_step_05_signal_that_raises_ends_the_wait_and_releases_everything(cache, flags):
    class Stop(Exception):
        pass

    def stop(number, frame):
        raise Stop

    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    main = threading.main_thread()

    def interrupt():
        wait_until(main_waits, "the main thread to wait")
        signal.pthread_kill(main.ident, signal.SIGUSR1)

    def main_waits():
        return frame_of(main.ident).f_code.co_name == "lock_folio_maybe_drop_mmap"

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with in_thread(interrupt), pytest.raises(Stop):
            area.mm.handle_page_fault(area.address(5), flags)
    finally:
        signal.signal(signal.SIGUSR1, before)
    folio.unlock()
    folio.put()
    area.assert_released()


# -- steps 6 to 10 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [FIRST, TRIED])
def test_step_06_truncated_while_waiting_is_looked_up_again(cache, flags):
    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    with in_thread(lambda: area.fault_and_leave(5, flags)) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        area.mapping.remove_folio(folio)
        folio.unlock()
        vmf, result = fault.result()
    if flags == TRIED:
        assert result == mm.VM_FAULT_LOCKED and vmf.folio.frame != folio.frame
        assert vmf.folio.tobytes() == area.page(5)
    else:
        assert result == mm.VM_FAULT_RETRY
    assert area.cached() == {5} and len(area.store.requests) == 2
    folio.put()
    area.release(vmf)
    area.assert_released()


def test_step_07_not_uptodate_any_more_is_looked_up_under_invalidate_lock(cache):
    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    area.store.look = area.invalidate_lock_is_held
    with in_thread(lambda: area.fault_and_leave(5, TRIED)) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        assert not area.invalidate_lock_is_held()
        folio.clear_uptodate()
        folio.unlock()
        vmf, result = fault.result()
    assert result == mm.VM_FAULT_LOCKED and vmf.folio.uptodate
    assert area.store.seen == [True]
    folio.put()
    area.release(vmf)
    area.assert_released()


def test_step_07_reads_on_demand_and_looks_up_again(cache):
    area = mapped_random(cache)
    vmf, result = area.fault(5, TRIED)
    assert result == mm.VM_FAULT_LOCKED | mm.VM_FAULT_MAJOR
    assert area.store.requests == [(5 * PAGE, PAGE)]
    assert vmf.folio.tobytes() == area.page(5)
    area.release(vmf)
    area.assert_released()


def test_step_07_reads_without_the_mmap_lock_on_the_first_attempt(cache):
    area = mapped_random(cache)
    area.store.look = lambda: area.mm.mmap_lock.nr_readers
    assert area.mm.read(area.address(5), PAGE) == area.page(5)
    assert area.store.seen == [0]
    area.assert_released()


def test_step_07_error_of_the_first_attempt_is_left_to_the_second(cache):
    area = mapped_random(cache)
    area.store.error = OSError(errno.EIO, "bad sector")
    vmf, result = area.fault(5, FIRST)
    assert result == mm.VM_FAULT_RETRY | mm.VM_FAULT_MAJOR and vmf.error is None
    vmf, result = area.fault(5, TRIED)
    assert result & mm.VM_FAULT_SIGBUS and vmf.mmap_locked
    assert isinstance(vmf.error, mm.BusError) and vmf.error.errno == errno.EIO
    assert "sized at offset 20480: bad sector" in str(vmf.error)
    assert vmf.error.__cause__.__cause__ is area.store.error
    area.release(vmf)
    area.assert_released()


def test_step_07_error_is_not_remembered(cache):
    area = mapped_random(cache)
    area.store.error = OSError(errno.EIO, "bad sector")
    with pytest.raises(mm.BusError):
        area.mm.read(area.address(5), 1)
    area.store.error = None
    assert area.mm.read(area.address(5), PAGE) == area.page(5)
    area.assert_released()


def test_step_07_error_shrinks_readahead_of_the_file_to_a_quarter(cache):
    area = mapped_random(cache)
    area.store.error = OSError(errno.EIO, "bad sector")
    area.release(area.fault(5, TRIED)[0])
    assert area.ra.ra_pages == 8
    area.file.fadvise(pagecache.FADV_NORMAL)
    assert area.ra.ra_pages >= 64


def test_step_08_fault_that_dropped_the_mmap_lock_is_retried_and_hits(cache):
    area = Mapped(cache, NR_PAGES)
    area.mm.handle_page_fault(area.address(50))
    assert (area.count("pgfault"), area.count("pgmajfault")) == (1, 1)
    assert len(area.store.requests) == 1
    assert 50 in area.mapped()
    area.assert_released()


def test_step_09_size_is_checked_again_under_the_folio_lock(cache):
    area = mapped_random(cache)
    area.bring_in(5)
    folio = area.mapping.get_folio(5)
    folio.lock()
    with in_thread(lambda: area.fault_and_leave(5, TRIED)) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        area.mapping.size = 5 * PAGE  # truncation sets the size first
        folio.unlock()
        vmf, result = fault.result()
    assert result == mm.VM_FAULT_SIGBUS and vmf.folio is None
    assert vmf.error.errno == errno.EFAULT
    folio.put()
    area.release(vmf)
    truncate.truncate_inode_pages(area.mapping, 5 * PAGE)
    area.assert_released()


def test_step_10_returns_locked_with_lock_and_reference(cache):
    area = Mapped(cache, NR_PAGES)
    area.bring_in(5)
    vmf, result = area.fault(5)
    assert result == mm.VM_FAULT_LOCKED
    assert vmf.folio.locked and vmf.folio.is_page_of(area.mapping, 5) and vmf.folio.refcount == 2
    assert vmf.mmap_locked and not area.invalidate_lock_is_held()
    area.release(vmf)
    area.assert_released()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad sector"), RuntimeError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("flags", [FIRST, TRIED])
@pytest.mark.parametrize("vm_flags", [0, mm.VM_RAND_READ, mm.VM_SEQ_READ])
def test_out_retry_releases_everything(cache, error, flags, vm_flags):
    area = Mapped(cache, NR_PAGES, vm_flags=vm_flags)
    area.store.error = error
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else mm.BusError
    with pytest.raises(expected):
        area.mm.handle_page_fault(area.address(50), flags)
    area.assert_released()
    assert area.cached() == set()


def test_fault_needs_a_page_and_finds_large_folios(cache):
    area = mapped_random(cache)
    folio = filemap_get_folio(area.mapping, 16, pagecache.filemap.FGP_CREAT | pagecache.filemap.FGP_LOCK | 2 << 26)
    folio.unlock()
    vmf, result = area.fault(18, TRIED)
    assert result == mm.VM_FAULT_LOCKED
    assert (vmf.folio.index, vmf.folio.order) == (16, 2)
    assert vmf.folio.tobytes() == pages_of(4 * PAGE, 16 * PAGE)
    folio.put()
    area.release(vmf)
    area.assert_released()
