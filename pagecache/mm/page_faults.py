"""The way of a page fault: from an area and an address to a translation, or a private copy.

The rules: docs/kernel.md, page faults.
"""

import errno

from pagecache._core import CacheFullError, private_copy
from pagecache.mm.flags import (
    FAULT_FLAG_DEFAULT,
    FAULT_FLAG_ORIG_PTE_VALID,
    FAULT_FLAG_WRITE,
    VM_FAULT_DONE_COW,
    VM_FAULT_ERROR,
    VM_FAULT_LOCKED,
    VM_FAULT_NOPAGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_SHARED,
)
from pagecache.mm.vm_fault import VmFault
from pagecache.mm.vma import VirtualMemoryArea
from pagecache.requests.fill import alloc_folio
from pagecache.units import PAGE_SHIFT

PTRS_PER_PTE = 512  # pages one page table spans: areas begin at a multiple, windows are no larger


def handle_mm_fault(vma: VirtualMemoryArea, address: int, flags: int = FAULT_FLAG_DEFAULT) -> int:
    """Serve a fault at an address of an area.

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
    """Serve a write to a private area: the page gets a copy of its own, which the object never sees."""
    try:
        copy = alloc_folio(vmf.vma.file.mapping.segment)  # before the fault: nothing is locked yet
    except CacheFullError as error:
        return vmf.fail(VM_FAULT_OOM, error)
    with copy:
        result = vmf.vma.ops.fault(vmf)
        if result & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY | VM_FAULT_DONE_COW):
            return result
        folio, vmf.folio = vmf.folio, None
        assert folio is not None
        with folio:
            vmf.vma.private_pages.setdefault(vmf.pgoff, private_copy(copy, folio, vmf.pgoff))
            vmf.vma.page_table.clear(vmf.pgoff, vmf.pgoff + 1)
    return result & ~VM_FAULT_LOCKED | VM_FAULT_DONE_COW


def do_shared_fault(vmf: VmFault) -> int:
    """Serve a write to a shared area: the page is mapped once the file allows it to be written."""
    result = vmf.vma.ops.fault(vmf)
    if result & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY | VM_FAULT_DONE_COW):
        return result
    assert vmf.folio is not None
    if vmf.vma.ops.page_mkwrite is not None:
        vmf.folio.unlock()
        allowed = vmf.vma.ops.page_mkwrite(vmf)
        if allowed & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
            folio, vmf.folio = vmf.folio, None
            folio.put()
            return result & ~VM_FAULT_LOCKED | allowed
    return result & ~VM_FAULT_LOCKED | finish_fault(vmf, VM_FAULT_LOCKED)


def do_fault_around(vmf: VmFault) -> int:
    """Map what is cached in the aligned window of addresses around a fault, inside the area."""
    vma, window = vmf.vma, vmf.vma.mm.fault_around_pages
    pte = (vmf.address >> PAGE_SHIFT) % PTRS_PER_PTE
    in_area = vmf.pgoff - vma.pgoff
    aligned = pte - pte % window
    first = max(aligned, pte - min(pte, in_area))
    last = min(aligned + window, pte + vma.nr_pages - in_area) - 1
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


def not_writable(name: str) -> PermissionError:
    """Return the error for maps that would have to be written."""
    return PermissionError(errno.EACCES, f"the map of {name} cannot be written: it is for reading, or its file is")
