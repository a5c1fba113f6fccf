"""A software address space: files mapped at addresses, read and written through page tables.

The rules: docs/kernel.md, faults.

An access copies through the page table of its area while translations hold, and faults where one does not; an evicted
page only costs another fault.
"""

import errno
import mmap as _mmap

from sortedcontainers import SortedDict

from pagecache import readahead
from pagecache._core import CopySource, CopyTarget, copy_source, new_target
from pagecache.buffers import Buffer
from pagecache.mm.flags import (
    FAULT_FLAG_DEFAULT,
    FAULT_FLAG_MISSED,
    FAULT_FLAG_RETRY_NOWAIT,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_USER,
    FAULT_FLAG_WRITE,
    VM_EXEC,
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_MAJOR,
    VM_FAULT_RETRY,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WRITE,
)
from pagecache.mm.mmap_lock import MmapLock
from pagecache.mm.page_faults import PTRS_PER_PTE, handle_fault, not_writable
from pagecache.mm.vm_fault import VmFault
from pagecache.mm.vma import MappableFile, MappedFile, VirtualMemoryArea, maps_of
from pagecache.requests.backing import BackedMapping
from pagecache.units import PAGE_SHIFT, PAGE_SIZE
from pagecache.writeback.throttle import balance_dirty_pages

FAULT_AROUND_PAGES = 16  # 64 KiB
MMAP_BASE = 1 << 32  # address of the first area
ADDRESS_END = 1 << 63

_ADVICE = {  # advice: (flags it sets, flags it clears)
    _mmap.MADV_NORMAL: (0, VM_SEQ_READ | VM_RAND_READ),
    _mmap.MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    _mmap.MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    _mmap.MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    _mmap.MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
}
_ADVICE_WITHOUT_EFFECT = {
    getattr(_mmap, name)
    for name in ("MADV_DONTFORK", "MADV_DOFORK", "MADV_DONTDUMP", "MADV_DODUMP", "MADV_MERGEABLE", "MADV_UNMERGEABLE")
    if hasattr(_mmap, name)
}


class MemoryMap:
    """A software address space: files mapped at addresses, read through page tables.

    vmas: the areas by start address. mmap_lock: shared by faults, exclusive for changes. fault_around_pages: size of
    the window that a fault maps from the cache, a power of two up to 512. maj_flt, min_flt: faults that had to read,
    and others. Any number of threads may use it.
    """

    def __init__(self) -> None:
        self.vmas: SortedDict[int, VirtualMemoryArea] = SortedDict()
        self.mmap_lock = MmapLock()
        self.fault_around_pages = FAULT_AROUND_PAGES
        self.maj_flt = 0
        self.min_flt = 0
        self._next_start = MMAP_BASE

    def count_fault(self, result: int, flags: int) -> None:
        """Count a fault that is over: as major if it missed, or could not be served at the first attempt."""
        if result & VM_FAULT_MAJOR or flags & FAULT_FLAG_TRIED:
            self.maj_flt += 1
        else:
            self.min_flt += 1

    # -- areas ---------------------------------------------------------------------------------------------------------

    def mmap(
        self,
        file: MappableFile,
        length: int,
        prot: int = _mmap.PROT_READ,
        flags: int = _mmap.MAP_SHARED,
        pgoff: int = 0,
    ) -> int:
        """Map a file; the map keeps it open.

        length: bytes, rounded up to pages; what lies beyond the end of the file raises BusError when read. prot:
        PROT_READ, perhaps PROT_WRITE and PROT_EXEC. flags: MAP_SHARED, or MAP_PRIVATE (stores stay in the map). pgoff:
        first page of the object. Returns the address. Raises ValueError, OSError (EINVAL), and PermissionError when the
        file cannot be read, or not be written as the map asks for.
        Context: takes the mmap lock exclusively.
        """
        nr_pages = -(-length >> PAGE_SHIFT)
        if length <= 0 or pgoff < 0 or pgoff + nr_pages > ADDRESS_END >> PAGE_SHIFT:
            raise ValueError(f"cannot map {length} bytes from page {pgoff} on: outside any file")
        if bool(flags & _mmap.MAP_SHARED) == bool(flags & _mmap.MAP_PRIVATE):
            raise OSError(errno.EINVAL, "flags must have one of MAP_SHARED and MAP_PRIVATE")
        vm_flags = VM_SHARED if flags & _mmap.MAP_SHARED else 0
        writes = bool(prot & _mmap.PROT_WRITE and vm_flags)
        if not file.may_read or (writes and not file.may_write):
            raise not_writable(file.mapping.name)
        vm_flags |= VM_READ if prot & _mmap.PROT_READ else 0
        vm_flags |= VM_WRITE if prot & _mmap.PROT_WRITE else 0
        vm_flags |= VM_EXEC if prot & _mmap.PROT_EXEC else 0
        held = MappedFile(file, writes)
        try:
            self.mmap_lock.lock_exclusive()
            start = self._next_start
            end = start + (nr_pages << PAGE_SHIFT)
            span = PTRS_PER_PTE << PAGE_SHIFT
            self.vmas[start] = VirtualMemoryArea(self, start, end, vm_flags, pgoff, held)
            self._next_start = (end + span) // span * span
        finally:
            self.mmap_lock.unlock_exclusive()
        return start

    def munmap(self, start: int, length: int) -> None:
        """Unmap the pages of a range of addresses, dividing areas that reach over its ends; holes are no error.

        start, length: bytes; start is a multiple of the page size. Raises OSError (EINVAL).
        Context: takes the mmap lock exclusively.
        """
        end = self._end_of_range(start, length)
        try:
            self.mmap_lock.lock_exclusive()
            gone = self._cut_out(start, end)  # what they hold is given up when the lock is not held any more
            for vma in gone:
                del self.vmas[vma.start]
                maps_of(vma.file.mapping).discard(vma)
                vma.unmap_object_pages(vma.pgoff, vma.pgoff + vma.nr_pages, even_cows=True)
        finally:
            self.mmap_lock.unlock_exclusive()

    def find_vma(self, address: int) -> VirtualMemoryArea | None:
        """Return the first area that ends behind an address: it contains it or lies above. Context: mmap lock held."""
        position = self.vmas.bisect_right(address)
        if position > 0 and self.vmas.peekitem(position - 1)[1].end > address:
            position -= 1
        return self.vmas.peekitem(position)[1] if position < len(self.vmas) else None

    def vma_lookup(self, address: int) -> VirtualMemoryArea | None:
        """Return the area that contains an address. Context: mmap lock held."""
        position = self.vmas.bisect_right(address)
        if position == 0:
            return None
        vma = self.vmas.peekitem(position - 1)[1]
        return vma if address < vma.end else None

    def _end_of_range(self, start: int, length: int) -> int:
        if start % PAGE_SIZE or length <= 0 or start < 0 or start + length > ADDRESS_END:
            raise OSError(errno.EINVAL, f"{length} bytes at {start:#x} are no range of pages")
        return start + (-(-length >> PAGE_SHIFT) << PAGE_SHIFT)

    def _areas(self, start: int, end: int) -> list[VirtualMemoryArea]:
        """Return the areas that overlap a range."""
        first = self.find_vma(start)
        if first is None:
            return []
        return [self.vmas[key] for key in self.vmas.irange(first.start, end, inclusive=(True, False))]

    def _cut_out(self, start: int, end: int) -> list[VirtualMemoryArea]:
        """Return the areas inside a range, after those over its ends were split there."""
        for vma in self._areas(start, end):
            for address in (start, end):
                if vma.start < address < vma.end:
                    upper = vma.split(address)
                    self.vmas[upper.start] = vma = upper
        return self._areas(start, end)

    def _merge(self, start: int, end: int) -> None:
        """Join neighbouring areas of a range, and of its ends, that have become alike."""
        lower = None
        for vma in self._areas(max(start - 1, 0), end + 1):
            if lower is not None and vma.continues(lower):
                lower.end = vma.end
                del self.vmas[vma.start]
                maps_of(vma.file.mapping).discard(vma)
            else:
                lower = vma

    # -- advice --------------------------------------------------------------------------------------------------------

    def madvise(self, start: int, length: int, advice: int) -> None:
        """Advise how a range will be used.

        start, length: bytes; start is a multiple of the page size. advice: MADV_NORMAL, SEQUENTIAL, RANDOM, HUGEPAGE,
        NOHUGEPAGE (how faults read ahead), WILLNEED (start reading), DONTNEED (forget translations; pages stay
        cached); advice about dumps, forks and merging has no effect.
        Raises OSError: EINVAL, or ENOMEM when part of the range is not mapped, after the rest was advised.
        """
        end = self._end_of_range(start, length)
        if advice in _ADVICE:
            areas = self._advise_flags(start, end, *_ADVICE[advice])
        elif advice in (_mmap.MADV_WILLNEED, _mmap.MADV_DONTNEED) or advice in _ADVICE_WITHOUT_EFFECT:
            areas = self._advise_pages(start, end, advice)
        else:
            raise OSError(errno.EINVAL, f"unknown advice {advice!r}")
        if areas != (end - start) >> PAGE_SHIFT:
            raise OSError(errno.ENOMEM, f"part of {length} bytes at {start:#x} is not mapped")

    def _advise_flags(self, start: int, end: int, to_set: int, to_clear: int) -> int:
        """Change the flags of a range. Returns the pages that are mapped in it."""
        nr_pages = 0
        try:
            self.mmap_lock.lock_exclusive()
            for vma in self._cut_out(start, end):
                vma.flags = vma.flags & ~to_clear | to_set
                nr_pages += vma.nr_pages
            self._merge(start, end)
        finally:
            self.mmap_lock.unlock_exclusive()
        return nr_pages

    def _advise_pages(self, start: int, end: int, advice: int) -> int:
        """Forget, or start to read, the pages of a range. Returns the pages that are mapped in it."""
        wanted = []
        try:
            self.mmap_lock.lock_shared()
            for vma in self._areas(start, end):
                first, last = vma.page_of(max(start, vma.start)), vma.page_of(min(end, vma.end) - 1)
                wanted.append((vma.file, first, last - first + 1))
                if advice == _mmap.MADV_DONTNEED:
                    vma.unmap_object_pages(first, last + 1, even_cows=True)
        finally:
            self.mmap_lock.unlock_shared()
        if advice == _mmap.MADV_WILLNEED:
            for file, first, nr_pages in wanted:
                readahead.force_page_cache_ra(file.mapping, file.ra, first, nr_pages, demanded=False)
        return sum(nr_pages for _, _, nr_pages in wanted)

    # -- access --------------------------------------------------------------------------------------------------------

    def read(self, address: int, nbytes: int) -> bytes:
        """Read nbytes at an address.

        Raises BusError where a page cannot be had, OSError (EFAULT) where nothing is mapped, CacheFullError.
        Context: takes the mmap lock shared; may wait for the store.
        """
        if nbytes < 0:
            raise ValueError(f"nbytes must not be negative, not {nbytes}")
        result, target = new_target(nbytes)
        self.read_into(target, 0, address, nbytes)
        return result

    def read_into(self, target: CopyTarget, done: int, address: int, nbytes: int) -> None:
        """Copy nbytes at an address to target[done:]. Raises and waits as `read`."""
        end = done + nbytes
        while done < end:
            copied = self._read_present(target, done, address, end - done)
            done += copied
            address += copied
            if copied == 0:
                self.handle_page_fault(address)

    def _read_present(self, target: CopyTarget, done: int, address: int, nbytes: int) -> int:
        try:
            self.mmap_lock.lock_shared()
            vma = self.vma_lookup(address)
            if vma is None:
                return 0
            return vma.read_present(target, done, address, min(nbytes, vma.end - address))
        finally:
            self.mmap_lock.unlock_shared()

    def write(self, address: int, data: Buffer) -> None:
        """Store bytes at an address: into the object, or, in a private area, into the map alone.

        Raises as `read`, and PermissionError (EACCES) where the area may not be written; what was stored before stays.
        Context: takes the mmap lock shared; may wait for the store.
        """
        with memoryview(data) as view:
            self.write_from(copy_source(view.tobytes()), 0, address, view.nbytes)

    def write_from(self, source: CopySource, done: int, address: int, nbytes: int) -> None:
        """Store source[done:], nbytes of it, at an address. Raises and waits as `write`."""
        end, flags = done + nbytes, FAULT_FLAG_DEFAULT | FAULT_FLAG_USER | FAULT_FLAG_WRITE
        mapping = None
        while done < end:
            stored, found = self._write_present(source, done, address, end - done)
            mapping = found or mapping
            done += stored
            address += stored
            if stored == 0:
                self.handle_page_fault(address, flags)
        if mapping is not None:
            balance_dirty_pages(mapping, (nbytes >> PAGE_SHIFT) + 1)

    def _write_present(
        self, source: CopySource, done: int, address: int, nbytes: int
    ) -> "tuple[int, BackedMapping | None]":
        try:
            self.mmap_lock.lock_shared()
            vma = self.vma_lookup(address)
            if vma is None or not vma.flags & VM_WRITE:
                return 0, None
            stored = vma.write_present(source, done, address, min(nbytes, vma.end - address))
            return stored, vma.file.mapping if vma.flags & VM_SHARED else None
        finally:
            self.mmap_lock.unlock_shared()

    def msync(self, start: int, length: int) -> None:
        """Make what was stored in a range of addresses durable (MS_SYNC). Raises OSError, as `File.fsync`."""
        end = self._end_of_range(start, length)
        try:
            self.mmap_lock.lock_shared()
            areas = [
                (vma.file, vma.page_of(max(start, vma.start)), vma.page_of(min(end, vma.end) - 1))
                for vma in self._areas(start, end)
                if vma.flags & VM_SHARED
            ]
        finally:
            self.mmap_lock.unlock_shared()
        for held, first, last in areas:
            held.file._sync_pages(first, last, durable=True)

    def handle_page_fault(self, address: int, flags: int = FAULT_FLAG_DEFAULT | FAULT_FLAG_USER) -> int:
        """Bring in and map the page at an address: what a processor's page fault does.

        Returns VM_FAULT_* bits; RETRY only for a caller that gave RETRY_NOWAIT. Raises as `read`, and PermissionError.
        Context: takes the mmap lock shared; a first attempt that has to wait drops it meanwhile.
        """
        while True:
            try:
                self.mmap_lock.lock_shared()
                vma = self.vma_lookup(address)
                if vma is None or not vma.flags & _access_flags(flags):
                    raise _segmentation_fault(vma, address, flags)
                vmf = VmFault(vma, address, flags)
                result = handle_fault(vmf)
            finally:
                self.mmap_lock.unlock_shared()
            if result & VM_FAULT_ERROR:
                assert vmf.error is not None
                raise vmf.error
            if result & VM_FAULT_COMPLETED or not result & VM_FAULT_RETRY or flags & FAULT_FLAG_RETRY_NOWAIT:
                return result
            flags |= FAULT_FLAG_TRIED
            if result & VM_FAULT_MAJOR:
                flags |= FAULT_FLAG_MISSED


def _access_flags(flags: int) -> int:
    """Return the area flags of which an access needs one."""
    return VM_WRITE if flags & FAULT_FLAG_WRITE else VM_READ | VM_WRITE | VM_EXEC


def _segmentation_fault(vma: VirtualMemoryArea | None, address: int, flags: int) -> OSError:
    if vma is None:
        return OSError(errno.EFAULT, f"nothing is mapped at address {address:#x}")
    if flags & FAULT_FLAG_WRITE:
        return not_writable(vma.file.mapping.name)
    return PermissionError(errno.EACCES, f"the map of {vma.file.mapping.name} at {address:#x} may not be accessed")
