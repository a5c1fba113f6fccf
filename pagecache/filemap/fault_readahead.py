"""Readahead of mapped files: around a page that a fault misses, behind a marked one that it finds.

The rules: docs/kernel.md, readahead of a fault.

The state is the open file's, as for reads; what is particular here is that a fault, before it waits for a store, drops
the mmap lock if it may, and that many misses in a row turn reading around them off.
"""


from pagecache._core import FileRaState, Folio
from pagecache.mm.flags import (
    FAULT_FLAG_RETRY_NOWAIT,
    VM_EXEC,
    VM_HUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    fault_flag_allow_retry_first,
)
from pagecache.mm.vm_fault import FaultFile, VmFault
from pagecache.readahead.ondemand import (
    MMAP_LOTSAMISS,
    page_cache_async_ra,
    page_cache_ra_order,
    page_cache_sync_ra,
)
from pagecache.units import MAX_FOLIO_ORDER

MMAP_MISS_MAX = 10 * MMAP_LOTSAMISS  # where counting misses of a map stops
EXEC_FOLIO_ORDER = 4  # of folios read for code: 64 KiB


def maybe_unlock_mmap_for_io(vmf: VmFault, fpin: FaultFile | None) -> FaultFile | None:
    """Drop the mmap lock before something slow, if this attempt may; the file is kept instead.

    Returns the kept file, or None when the lock is still held.
    """
    if fpin is not None:
        return fpin
    if fault_flag_allow_retry_first(vmf.flags) and not vmf.flags & FAULT_FLAG_RETRY_NOWAIT:
        fpin = vmf.vma.file
        vmf.drop_mmap_lock()
    return fpin


def do_sync_mmap_readahead(vmf: VmFault) -> FaultFile | None:
    """Read ahead on a miss of a map. Returns the kept file if the mmap lock was dropped, or None.

    What cannot be read is not an error here: the fault reads its own page again.
    """
    file, flags = vmf.vma.file, vmf.vma.flags
    file.fit_window()
    mapping, ra = file.mapping, file.ra
    if not flags & VM_HUGEPAGE:
        if (flags & VM_RAND_READ and not flags & VM_EXEC) or ra.ra_pages == 0:
            return None
        if flags & VM_SEQ_READ or mapping.backing.reads_whole(mapping):
            fpin = maybe_unlock_mmap_for_io(vmf, None)
            try:
                page_cache_sync_ra(mapping, ra, vmf.pgoff, ra.ra_pages, random=file.is_random)
            except OSError:
                pass
            return fpin
    if not flags & VM_SEQ_READ:
        ra.mmap_miss = min(ra.mmap_miss + 1, MMAP_MISS_MAX)
        if ra.mmap_miss > MMAP_LOTSAMISS:
            return None
    _set_window(vmf, ra)
    fpin = maybe_unlock_mmap_for_io(vmf, None)
    page_cache_ra_order(mapping, ra, demand_end=0)
    return fpin


def _set_window(vmf: VmFault, ra: FileRaState) -> None:
    """Set the window around a miss: huge folios, aligned ones for code, or half before and half behind."""
    vma = vmf.vma
    if vma.flags & VM_HUGEPAGE:
        ra.start = vmf.pgoff >> MAX_FOLIO_ORDER << MAX_FOLIO_ORDER
        ra.async_size = 1 << MAX_FOLIO_ORDER
        ra.size = 1 << MAX_FOLIO_ORDER + (0 if vma.flags & VM_RAND_READ else 1)
        ra.order = MAX_FOLIO_ORDER
    elif vma.flags & VM_EXEC:
        align = 1 << EXEC_FOLIO_ORDER
        start = max(vmf.pgoff // align * align, vma.pgoff)
        ra.start = start
        ra.size = min(-(-(start + ra.ra_pages) // align) * align, vma.pgoff + vma.nr_pages) - start
        ra.async_size = 0
        ra.order = EXEC_FOLIO_ORDER
    else:
        ra.start = max(0, vmf.pgoff - ra.ra_pages // 2)
        ra.size = ra.ra_pages
        ra.async_size = ra.ra_pages // 4
        ra.order = 0


def do_async_mmap_readahead(vmf: VmFault, folio: Folio) -> FaultFile | None:
    """Note a hit of a map, and start the next window if the folio is marked.

    Returns the kept file if the mmap lock was dropped, or None.
    """
    file = vmf.vma.file
    ra = file.ra
    if vmf.vma.flags & VM_RAND_READ or ra.ra_pages == 0:
        return None
    if not folio.locked:  # a locked one is another thread's miss
        ra.mmap_miss = max(0, ra.mmap_miss - 1)
    if not folio.readahead:
        return None
    file.fit_window()
    fpin = maybe_unlock_mmap_for_io(vmf, None)
    page_cache_async_ra(file.mapping, ra, vmf.pgoff, folio, ra.ra_pages)
    return fpin
