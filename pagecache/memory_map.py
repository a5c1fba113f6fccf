"""A software address space: areas that map files, their page tables, and the way of a fault through them (K1.1).

An access copies through the page table of its area while translations hold, and faults where one does not.  A
translation holds no reference (docs/decisions/0003-page-tables-hold-no-references.md), so an evicted page only costs
another fault.
"""

import errno
import mmap as _mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sortedcontainers import SortedDict

from pagecache import filemap, readahead
from pagecache._core import AddressSpace, CopyTarget, PageTable, new_target
from pagecache.mm_types import (
    FAULT_FLAG_DEFAULT,
    FAULT_FLAG_MISSED,
    FAULT_FLAG_ORIG_PTE_VALID,
    FAULT_FLAG_RETRY_NOWAIT,
    FAULT_FLAG_TRIED,
    FAULT_FLAG_USER,
    FAULT_FLAG_WRITE,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_EXEC,
    VM_FAULT_COMPLETED,
    VM_FAULT_DONE_COW,
    VM_FAULT_ERROR,
    VM_FAULT_LOCKED,
    VM_FAULT_MAJOR,
    VM_FAULT_NOPAGE,
    VM_FAULT_RETRY,
    VM_FAULT_SIGSEGV,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WRITE,
    MmapLock,
    VmFault,
)

FAULT_AROUND_PAGES = 16  # 64 KiB
PTRS_PER_PTE = 512  # pages one page table spans: areas begin at a multiple, windows never cross one
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


class MappedFile:
    """A file as its areas hold it: the object stays open until the last area, and the last fault in it, is gone."""

    __slots__ = ("_inode", "file", "mapping", "ra")

    def __init__(self, file: Any) -> None:
        file.inode.acquire()
        self._inode = file.inode
        self.file = file
        self.mapping: AddressSpace = file.mapping
        self.ra = file.ra

    @property
    def is_random(self) -> bool:
        """Whether the file is advised to be read at random."""
        return self.file.is_random

    def __del__(self) -> None:
        if hasattr(self, "_inode"):
            self._inode.release()


class MappedAreas:
    """The areas that map one object, held weakly (i_mmap): what truncation has to visit."""

    def __init__(self) -> None:
        self._areas: dict[int, weakref.ref[VirtualMemoryArea]] = {}

    def add(self, area: "VirtualMemoryArea") -> None:
        """Register an area until it is discarded or gone. Context: any thread; takes no lock."""
        areas, key = self._areas, id(area)
        areas[key] = weakref.ref(area, lambda gone: areas.pop(key, None))

    def discard(self, area: "VirtualMemoryArea") -> None:
        """Forget an area."""
        self._areas.pop(id(area), None)

    def __len__(self) -> int:
        return len(self._areas)

    def __iter__(self) -> "Iterator[VirtualMemoryArea]":
        areas = [reference() for reference in list(self._areas.values())]
        return iter([area for area in areas if area is not None])


_maps_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _maps_lock
    _maps_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def maps_of(mapping: AddressSpace) -> MappedAreas:
    """Return the areas that map an object."""
    if mapping.maps is None:
        with _maps_lock:
            if mapping.maps is None:
                mapping.maps = MappedAreas()
    return mapping.maps


class VmOperations(NamedTuple):
    """How the pages of an area come: what its faults call."""

    fault: Callable[[VmFault], int]
    map_pages: Callable[[VmFault, int, int], int] | None = None
    page_mkwrite: Callable[[VmFault], int] | None = None


FILE_OPERATIONS = VmOperations(filemap.filemap_fault, filemap.filemap_map_pages)


class VirtualMemoryArea:
    """A range of addresses that maps consecutive pages of one file.

    start, end: byte addresses, multiples of the page size. pgoff: page of the object at `start`. flags: VM_*.
    page_table: shared with the other areas of the same `MemoryMap.mmap`.
    Context: changed with the mmap lock held exclusively.
    """

    __slots__ = ("__weakref__", "_mm", "end", "file", "flags", "mmap_lock", "ops", "page_table", "pgoff", "start")

    def __init__(self, mm: "MemoryMap", start: int, end: int, flags: int, pgoff: int, file: MappedFile) -> None:
        self._mm = weakref.ref(mm)
        self.mmap_lock = mm.mmap_lock
        self.start = start
        self.end = end
        self.flags = flags
        self.pgoff = pgoff
        self.file = file
        self.ops = FILE_OPERATIONS
        self.page_table = PageTable(file.mapping, pgoff, (end - start) >> PAGE_SHIFT)
        maps_of(file.mapping).add(self)

    @property
    def mm(self) -> "MemoryMap":
        """The address space the area belongs to."""
        mm = self._mm()
        if mm is None:
            raise ReferenceError("the memory map of this area is gone")
        return mm

    @property
    def nr_pages(self) -> int:
        """Size (pages)."""
        return (self.end - self.start) >> PAGE_SHIFT

    def page_of(self, address: int) -> int:
        """Return the page of the object that an address shows."""
        return self.pgoff + ((address - self.start) >> PAGE_SHIFT)

    def unmap_object_pages(self, start: int, end: int, even_cows: bool = False) -> int:
        """Forget the translations of the object's pages [start, end). Returns how many there were.

        even_cows: private copies too; areas that are only read have none.
        """
        return self.page_table.clear(max(start, self.pgoff), min(end, self.pgoff + self.nr_pages))

    def read_present(self, target: CopyTarget, done: int, address: int, nbytes: int) -> int:
        """Copy the mapped beginning of nbytes at an address to target[done:]. Returns the bytes copied."""
        position = (self.pgoff << PAGE_SHIFT) + address - self.start
        return self.page_table.read_into(target, done, position, nbytes)

    def split(self, address: int) -> "VirtualMemoryArea":
        """Cut the area in two; returns the upper one, which keeps the translations."""
        upper = VirtualMemoryArea.__new__(VirtualMemoryArea)
        for name in ("_mm", "mmap_lock", "end", "flags", "file", "ops", "page_table"):
            setattr(upper, name, getattr(self, name))
        upper.start = address
        upper.pgoff = self.page_of(address)
        maps_of(self.file.mapping).add(upper)
        self.end = address
        return upper

    def continues(self, lower: "VirtualMemoryArea") -> bool:
        """Whether this area and the one below could be one."""
        return lower.end == self.start and lower.page_table is self.page_table and lower.flags == self.flags

    def __repr__(self) -> str:
        name = self.file.mapping.name
        return f"<VirtualMemoryArea {self.start:#x}-{self.end:#x} flags={self.flags:#x} page {self.pgoff} of {name!r}>"


# -- the way of a fault ------------------------------------------------------------------------------------------------


def handle_mm_fault(vma: VirtualMemoryArea, address: int, flags: int = FAULT_FLAG_DEFAULT) -> int:
    """Serve a fault at an address of an area (K1.1).

    flags: FAULT_FLAG_*. Returns VM_FAULT_* bits. The mmap lock was dropped if they hold RETRY (without RETRY_NOWAIT)
    or COMPLETED, and whenever an exception is raised: what a signal handler raised during a wait.
    Context: mmap lock held shared.
    """
    return handle_fault(VmFault(vma, address, flags))


def handle_fault(vmf: VmFault) -> int:
    """The same for a fault that is described already: vmf.error explains an error."""
    mm = vmf.vma.mm
    segment = vmf.vma.file.mapping.segment
    try:
        result = _handle_pte_fault(vmf)
    except BaseException:
        if vmf.mmap_locked:
            vmf.drop_mmap_lock()
        raise
    if not result & VM_FAULT_RETRY:
        segment.add_count("pgfault", 1)
        mm.count_fault(result, vmf.flags)
    return result


def _handle_pte_fault(vmf: VmFault) -> int:
    """Find out what kind of fault this is: none, a read, or one of two kinds of write."""
    vmf.orig_pte = vmf.vma.page_table.present(vmf.pgoff)
    vmf.flags |= FAULT_FLAG_ORIG_PTE_VALID
    if not vmf.flags & FAULT_FLAG_WRITE:
        return 0 if vmf.orig_pte else do_read_fault(vmf)
    if not vmf.vma.flags & VM_SHARED:
        return do_cow_fault(vmf)
    return do_shared_fault(vmf)


def do_read_fault(vmf: VmFault) -> int:
    """Map a page for reading: with its cached neighbours, or by the area's fault operation."""
    if vmf.vma.ops.map_pages is not None and vmf.vma.mm.fault_around_pages > 1:
        result = do_fault_around(vmf)
        if result:
            return result
    result = vmf.vma.ops.fault(vmf)
    if result & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY | VM_FAULT_DONE_COW):
        return result
    return result & ~VM_FAULT_LOCKED | finish_fault(vmf, result)


def do_cow_fault(vmf: VmFault) -> int:
    """Refuse a write to a private area: there are no private copies."""
    return vmf.fail(VM_FAULT_SIGSEGV, not_writable(vmf.vma.file.mapping.name))


def do_shared_fault(vmf: VmFault) -> int:
    """Refuse a write to a shared area: its operations have no page_mkwrite."""
    return vmf.fail(VM_FAULT_SIGSEGV, not_writable(vmf.vma.file.mapping.name))


def do_fault_around(vmf: VmFault) -> int:
    """Map what is cached in the aligned window of addresses around a fault, inside the area and one page table."""
    vma, window = vmf.vma, vmf.vma.mm.fault_around_pages
    pte = (vmf.address >> PAGE_SHIFT) % PTRS_PER_PTE
    in_area = vmf.pgoff - vma.pgoff
    aligned = pte - pte % window
    first = max(aligned, pte - min(pte, in_area))
    last = min(aligned + window, PTRS_PER_PTE, pte + vma.nr_pages - in_area) - 1
    assert vma.ops.map_pages is not None
    return vma.ops.map_pages(vmf, vmf.pgoff + first - pte, vmf.pgoff + last - pte)


def finish_fault(vmf: VmFault, result: int) -> int:
    """Install the translation of the fault's page under its folio lock; then lock and reference go.

    Returns 0, or NOPAGE if the page was truncated before it could be locked here.
    """
    folio, vmf.folio = vmf.folio, None
    assert folio is not None
    if not result & VM_FAULT_LOCKED:
        folio.lock()
    try:
        if not folio.is_page_of(vmf.vma.file.mapping, vmf.pgoff):
            return VM_FAULT_NOPAGE
        vmf.vma.page_table.set(vmf.pgoff, folio)
        return 0
    finally:
        folio.unlock()
        folio.put()


def not_writable(name: Any) -> PermissionError:
    """Return the error for maps that would have to be written."""
    return PermissionError(errno.EACCES, f"the map of {name} cannot be written: maps are for reading (ACCESS_READ)")


# -- the address space -------------------------------------------------------------------------------------------------


class MemoryMap:
    """A software address space: files mapped at addresses, read through page tables.

    vmas: the areas by start address. mmap_lock: shared by faults, exclusive for changes. fault_around_pages: size of
    the window that a fault maps from the cache, a power of two. maj_flt, min_flt: faults that had to read, and others.
    Any number of threads may use it.
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
        file: Any,
        length: int,
        prot: int = _mmap.PROT_READ,
        flags: int = _mmap.MAP_SHARED,
        pgoff: int = 0,
    ) -> int:
        """Map a file; the map keeps it open.

        length: bytes, rounded up to pages; what lies beyond the end of the file raises BusError when read. prot:
        PROT_READ, perhaps PROT_EXEC. flags: MAP_SHARED or MAP_PRIVATE. pgoff: first page of the object.
        Returns the address. Raises ValueError, OSError (EINVAL), and PermissionError for PROT_WRITE.
        Context: takes the mmap lock exclusively.
        """
        nr_pages = -(-length >> PAGE_SHIFT)
        if length <= 0 or pgoff < 0 or pgoff + nr_pages > ADDRESS_END >> PAGE_SHIFT:
            raise ValueError(f"cannot map {length} bytes from page {pgoff} on: outside any file")
        if bool(flags & _mmap.MAP_SHARED) == bool(flags & _mmap.MAP_PRIVATE):
            raise OSError(errno.EINVAL, "flags must have one of MAP_SHARED and MAP_PRIVATE")
        if prot & _mmap.PROT_WRITE:
            raise not_writable(file.mapping.name)
        vm_flags = VM_SHARED if flags & _mmap.MAP_SHARED else 0
        vm_flags |= VM_READ if prot & _mmap.PROT_READ else 0
        vm_flags |= VM_EXEC if prot & _mmap.PROT_EXEC else 0
        held = MappedFile(file)
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
        """Unmap the pages of a range of addresses, cutting areas that reach over its ends; holes are no error.

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
                vma.unmap_object_pages(vma.pgoff, vma.pgoff + vma.nr_pages)
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
        vma = self.find_vma(address)
        return vma if vma is not None and vma.start <= address else None

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
                    vma.unmap_object_pages(first, last + 1)
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

    def write(self, address: int, data: Any) -> None:
        """Refuse to write: raises PermissionError (EACCES), or OSError (EFAULT) where nothing is mapped."""
        if len(data):
            self.handle_page_fault(address, FAULT_FLAG_DEFAULT | FAULT_FLAG_USER | FAULT_FLAG_WRITE)

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
