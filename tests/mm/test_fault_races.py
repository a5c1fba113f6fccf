"""Faults against each other, against truncation, and against a store that fails.

The rules: docs/kernel.md, races of truncation.
"""

import errno
import sys
import threading

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, checked_cache
from support.fault_steps import Mapped, SizedStore, in_thread

from pagecache import mm, truncate

NR_PAGES = 200
FIRST = mm.FAULT_FLAG_DEFAULT
TRIED = FIRST | mm.FAULT_FLAG_TRIED


@pytest.fixture
def cache():
    with checked_cache(1024) as cache:
        yield cache


def mapped_random(cache, **options):
    """A map whose faults read single pages."""
    return Mapped(cache, NR_PAGES, vm_flags=mm.VM_RAND_READ, **options)


def test_race_fault_has_the_folio_locked_first(cache):
    """It maps the page, the truncation that waited for it unmaps it again, and the next access is an error."""
    area = mapped_random(cache)
    area.bring_in(5)
    vmf, result = area.fault(5)
    assert result == mm.VM_FAULT_LOCKED
    with in_thread(lambda: area.file.truncate(2 * PAGE)) as cut:
        cut.wait_inside("wait_for_folios")
        assert mm.finish_fault(vmf, result) == 0
        vmf.drop_mmap_lock()
        cut.result()
    assert area.mapped() == set()
    with pytest.raises(mm.BusError, match="beyond the end"):
        area.mm.read(area.address(5), 1)
    area.assert_released()


@pytest.mark.parametrize("flags", [FIRST, TRIED])
def test_race_truncation_first(cache, flags):
    """The fault finds its page gone, waits for the truncation, and sees the new size."""
    area = mapped_random(cache)
    area.bring_in(5)
    area.mapping.lock_exclusive()
    folio = area.mapping.get_folio(5)
    folio.lock()
    with in_thread(lambda: area.mm.handle_page_fault(area.address(5), flags)) as fault:
        fault.wait_inside("lock_folio_maybe_drop_mmap")
        area.mapping.size = 2 * PAGE
        truncate.truncate_folio(area.mapping, folio)
        folio.unlock()
        fault.wait_inside("lock_mapping")
        assert area.mapping.nrpages == 0
        area.mapping.unlock_exclusive()
        with pytest.raises(mm.BusError, match="beyond the end"):
            fault.result()
    folio.put()
    assert area.file.pread(PAGE, 5 * PAGE) == b""
    area.assert_released()


def test_eight_threads_that_want_one_cold_page_read_it_once(cache):
    area = mapped_random(cache)
    results = Crew(*[lambda: area.mm.read(area.address(5), PAGE)] * 8).join_well()
    assert results == [area.page(5)] * 8
    assert area.store.requests == [(5 * PAGE, PAGE)]
    area.assert_released()


def test_eight_threads_that_want_one_bad_page_all_get_the_error(cache):
    area = mapped_random(cache)
    area.store.error = OSError(errno.ENXIO, "no such device")
    results = Crew(*[lambda: area.mm.read(area.address(5), PAGE)] * 8).join()
    assert [type(result) for result in results] == [mm.BusError] * 8
    assert {result.errno for result in results} == {errno.ENXIO}
    area.assert_released()


class Cutting:
    """One thread that truncates and extends a file, while others read a map of it and know what they may see."""

    def __init__(self, cache, rng, number):
        self.data = rng.randbytes(24 * PAGE).replace(b"\0", b"1")
        self.area = Mapped(cache, 24, store=SizedStore(self.data, key=f"cut {number}"))
        self.rng = rng
        self.announced = self.done = len(self.data)
        self.reads = threading.Semaphore(0)
        self.stop = False

    def cut(self):
        """Truncate a bit more each time; bytes that were truncated are zeros ever after."""
        try:
            while self.done > PAGE:
                for _ in range(4):
                    assert self.reads.acquire(timeout=PATIENCE_S)
                self.announced = self.rng.randrange(self.done * 3 // 4, self.done)
                self.area.file.truncate(self.announced)
                self.done = self.announced
                self.area.file.truncate(self.rng.randrange(self.done, len(self.data) + 1))
        finally:
            self.stop = True

    def read(self, seed):
        """Read at random; each byte is as the truncations before, during and after the read allow."""
        rng = type(self.rng)(seed)
        while not self.stop:
            cut_before, offset = self.done, rng.randrange(len(self.data))
            nbytes = rng.randrange(1, min(3 * PAGE, len(self.data) - offset) + 1)
            try:
                got = self.area.mm.read(self.area.start + offset, nbytes)
            except mm.BusError as error:
                assert error.errno == errno.EFAULT
                got = b""
            self.check(got, offset, self.announced, cut_before)
            self.reads.release()

    def check(self, got, offset, kept, cut_before):
        """Bytes below `kept` are the file's, those from `cut_before` on zeros, those between one or the other."""
        expected = self.data[offset : offset + len(got)]
        sure = max(0, kept - offset)
        assert got[:sure] == expected[:sure]
        gone = max(0, cut_before - offset)
        assert not any(got[gone:])
        assert all(byte in (0, right) for byte, right in zip(got[sure:gone], expected[sure:gone], strict=True))


@pytest.fixture
def often_switching():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("frames", [1, 2, 3, 64, 1024])
def test_faults_against_truncation_show_no_byte_of_what_was_truncated_before(frames, rng, often_switching):
    with checked_cache(frames) as cache:
        for number in range(300 if STRESS else 3):
            cutting = Cutting(cache, rng, number)
            seeds = [rng.randrange(2**32) for _ in range(3)]
            Crew(cutting.cut, *[lambda seed=seed: cutting.read(seed) for seed in seeds]).join_well()  # noqa: B023
            cutting.area.assert_released()
            cutting.area.file.close()


def test_two_maps_of_one_object_are_both_unmapped(cache):
    area, other = mapped_random(cache), None
    other = Mapped(cache, NR_PAGES, store=area.store)
    for each in (area, other):
        each.mm.read(each.address(5), 1)
        assert 5 in each.mapped()
    area.file.truncate(PAGE)
    assert area.mapped() | other.mapped() == set()
    area.file.truncate(NR_PAGES * PAGE)
    assert other.mm.read(other.address(5), PAGE) == bytes(PAGE)
    area.assert_released()
