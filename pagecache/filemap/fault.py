"""Faults of mapped files: `filemap_fault` step by step, and mapping what is cached around one.

The rules: docs/kernel.md, faults.

A file brings these operations to its areas as `generic_file_vm_ops`, so what serves a fault is known to the file alone.
"""

import errno

from pagecache._core import CacheFullError, Folio
from pagecache.filemap.fault_readahead import do_async_mmap_readahead, do_sync_mmap_readahead, maybe_unlock_mmap_for_io
from pagecache.filemap.read import (
    FGP_CREAT,
    FGP_FOR_MMAP,
    FGP_NOWAIT,
    filemap_get_folio,
    nr_file_pages,
    read_folio_synchronously,
)
from pagecache.filemap.write import filemap_page_mkwrite
from pagecache.mm import flags
from pagecache.mm.vm_fault import BusError, FaultFile, FaultWalk, VmFault, VmOperations
from pagecache.requests import fill
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import look_of
from pagecache.units import PAGE_SHIFT


def filemap_fault(vmf: VmFault) -> int:
    """Bring in the page of a fault.

    Returns VM_FAULT_* bits: LOCKED with vmf.folio locked and referenced, NOPAGE, RETRY (the mmap lock was dropped,
    unless RETRY_NOWAIT forbids it), or an error, with vmf.error; and MAJOR if the page was not cached.
    Raises what a signal handler raises; then everything that was taken is given back, except the mmap lock.
    Context: mmap lock held shared; takes invalidate_lock shared and the folio lock.
    """
    if vmf.pgoff >= nr_file_pages(vmf.vma.file.mapping):
        return _beyond_end(vmf)
    walk = FaultWalk(vmf)
    try:
        result = _fault_lookup(vmf, walk)
        if result & flags.VM_FAULT_NOPAGE:
            return result
        return result | _fault_fill(vmf, walk)
    except BaseException:
        walk.give_back()
        raise


def _beyond_end(vmf: VmFault) -> int:
    mapping = vmf.vma.file.mapping
    reason = f"page {vmf.pgoff} is beyond the end of the file, which has {mapping.size} bytes now"
    text = f"cannot access {mapping.name} at offset {vmf.pgoff << PAGE_SHIFT}: {reason}"
    return vmf.fail(flags.VM_FAULT_SIGBUS, BusError(errno.EFAULT, text))


def _fault_lookup(vmf: VmFault, walk: FaultWalk) -> int:
    """Look for the page, and read ahead: around a miss, behind a marked hit. Returns MAJOR, NOPAGE or 0."""
    walk.folio = walk.mapping.get_folio(vmf.pgoff)
    if walk.folio is not None:
        if not vmf.flags & flags.FAULT_FLAG_TRIED:
            walk.fpin = do_async_mmap_readahead(vmf, walk.folio)
        if not walk.folio.uptodate:
            walk.lock_mapping()
        return 0
    if _is_mapped_meanwhile(vmf):
        return flags.VM_FAULT_NOPAGE
    if not vmf.flags & flags.FAULT_FLAG_MISSED:
        walk.mapping.segment.add_count("pgmajfault", 1)
        walk.fpin = do_sync_mmap_readahead(vmf)
    return flags.VM_FAULT_MAJOR


def _is_mapped_meanwhile(vmf: VmFault) -> bool:
    """Whether another thread has mapped the page of a locked area, so that this fault is no major one."""
    vma = vmf.vma
    if not vmf.flags & flags.FAULT_FLAG_ORIG_PTE_VALID or not vma.flags & flags.VM_LOCKED:
        return False
    return vma.page_table.present(vmf.pgoff)


def _fault_fill(vmf: VmFault, walk: FaultWalk) -> int:
    """Lock the page, creating and reading it as needed, until it can be mapped or the fault has to be retried."""
    while True:
        if walk.folio is None:
            result = _fault_retry_find(vmf, walk)
            if result:
                return result
        folio = walk.folio
        assert folio is not None
        walk.folio_locked, walk.fpin = lock_folio_maybe_drop_mmap(vmf, folio, walk.fpin)
        if not walk.folio_locked:
            return _out_retry(walk)
        if not folio.is_page_of(walk.mapping, vmf.pgoff):  # truncated while this thread waited
            walk.put_folio()
        elif folio.uptodate:
            return _fault_finish(vmf, walk)
        elif not walk.mapping_locked:  # it was uptodate when it was found
            walk.put_folio()
        else:
            result = _fault_read(vmf, walk)
            if result:
                return result


def _fault_retry_find(vmf: VmFault, walk: FaultWalk) -> int:
    """Find or create the folio under invalidate_lock. Returns 0, or the result of a fault that cannot go on."""
    walk.lock_mapping()
    while walk.folio is None:
        if vmf.pgoff >= nr_file_pages(walk.mapping):  # no page is added behind the end, where it would be found later
            if walk.fpin is not None:
                return _out_retry(walk)
            walk.unlock_mapping()
            return _beyond_end(vmf)
        try:
            walk.folio = filemap_get_folio(walk.mapping, vmf.pgoff, FGP_CREAT | FGP_FOR_MMAP | FGP_NOWAIT)
        except BlockingIOError:
            try:
                _fault_wait_and_create(vmf, walk)
            except CacheFullError as error:
                if walk.fpin is not None:
                    return _out_retry(walk)
                walk.unlock_mapping()
                return vmf.fail(flags.VM_FAULT_OOM, error)
    return 0


def _fault_wait_and_create(vmf: VmFault, walk: FaultWalk) -> None:
    """Wait for memory without invalidate_lock, since what holds the memory may be waiting for the lock. No folio is
    found if the file was truncated meanwhile."""
    mapping = walk.mapping
    while walk.folio is None:
        walk.unlock_mapping()
        folio: Folio | None = fill.alloc_folio(mapping.segment)
        try:
            walk.lock_mapping()
            assert folio is not None
            if vmf.pgoff >= nr_file_pages(mapping):
                return
            result = mapping.add_folio(folio, vmf.pgoff)
            if result == 0:
                folio.unlock()
                walk.folio, folio = folio, None
                return
        finally:
            if folio is not None:
                folio.put()
        if result != -errno.EEXIST:
            raise fill.cache_full(mapping.segment)
        walk.folio = mapping.get_folio(vmf.pgoff)


def _fault_read(vmf: VmFault, walk: FaultWalk) -> int:
    """Read the locked folio, dropping the mmap lock if that is allowed.

    Returns 0 (look the page up again), RETRY, or SIGBUS. An error that is found with the mmap lock dropped is left to
    the next attempt, which reads again.
    """
    walk.fpin = maybe_unlock_mmap_for_io(vmf, walk.fpin)
    error = None
    assert walk.folio is not None
    walk.folio_locked = False  # reading unlocks it, whatever happens
    try:
        read_folio_synchronously(walk.mapping, vmf.vma.file.ra, walk.folio)
    except OSError as failed:
        error = failed
    if walk.fpin is not None:
        return _out_retry(walk)
    walk.put_folio()
    if error is None:
        return 0
    walk.unlock_mapping()
    try:
        if error.errno == errno.ESTALE and walk.mapping.backing.look_closer():
            return 0
    except OSError as failed:
        error = failed
    bus_error = BusError(error.errno, error.strerror)
    bus_error.__cause__ = error
    return vmf.fail(flags.VM_FAULT_SIGBUS, bus_error)


def _fault_finish(vmf: VmFault, walk: FaultWalk) -> int:
    """Hand the uptodate, locked folio over, if the size still allows it."""
    if walk.fpin is not None:
        return _out_retry(walk)
    walk.unlock_mapping()
    if vmf.pgoff >= nr_file_pages(walk.mapping):
        walk.put_folio()
        return _beyond_end(vmf)
    vmf.folio, walk.folio = walk.folio, None
    return flags.VM_FAULT_LOCKED


def _out_retry(walk: FaultWalk) -> int:
    walk.give_back()
    return flags.VM_FAULT_RETRY


def lock_folio_maybe_drop_mmap(vmf: VmFault, folio: Folio, fpin: FaultFile | None) -> tuple[bool, FaultFile | None]:
    """Lock a folio; the mmap lock is dropped before a wait, if this attempt may.

    Returns (whether it is locked, the kept file). It is not when RETRY_NOWAIT forbids waiting: the mmap lock is kept.
    Raises what a signal handler raises while it waits.
    """
    if folio.trylock():
        return True, fpin
    if vmf.flags & flags.FAULT_FLAG_RETRY_NOWAIT:
        return False, fpin
    fpin = maybe_unlock_mmap_for_io(vmf, fpin)
    folio.lock(look_of(vmf.vma.file.mapping))
    return True, fpin


def filemap_map_pages(vmf: VmFault, start_pgoff: int, end_pgoff: int) -> int:
    """Map pages start_pgoff..end_pgoff (inclusive) that are cached and ready, around a fault.

    Returns NOPAGE if the page of the fault was mapped, else 0.
    Context: mmap lock held; waits for nothing.
    """
    mapping, ra = vmf.vma.file.mapping, vmf.vma.file.ra
    end_pgoff = min(end_pgoff, nr_file_pages(mapping) - 1)
    mmap_miss, credit, result = ra.mmap_miss, 0, 0
    uptodate = mapping.mincore(start_pgoff, max(0, end_pgoff - start_pgoff + 1))
    index = start_pgoff + uptodate.find(1)
    while index >= start_pgoff:
        after = index + 1
        folio = _next_ready_folio(mapping, index)
        if folio is not None:
            try:
                after = min(folio.index + folio.nr_pages, end_pgoff + 1)
                if not folio.workingset:
                    credit += after - index
                if _map_folio_range(vmf, folio, index, after):
                    result = flags.VM_FAULT_NOPAGE
            finally:
                folio.unlock()
                folio.put()
        index = start_pgoff + uptodate.find(1, after - start_pgoff)
    ra.mmap_miss = max(0, mmap_miss - credit)
    return result


def _next_ready_folio(mapping: BackedMapping, index: int) -> Folio | None:
    """Return the folio of a page, locked, if it can be mapped without waiting.

    A marked one is left to a fault of its own, which starts the next window.
    """
    folio = mapping.get_folio(index)
    if folio is None:
        return None
    if not folio.locked and folio.uptodate and not folio.readahead and folio.trylock():
        if folio.is_page_of(mapping, index) and folio.uptodate and index < nr_file_pages(mapping):
            return folio
        folio.unlock()
    folio.put()
    return None


def _map_folio_range(vmf: VmFault, folio: Folio, start: int, end: int) -> bool:
    """Map pages [start, end) of a locked folio that are not mapped yet; whether the fault's page was among them."""
    page_table = vmf.vma.page_table
    mapped = False
    for index in range(start, end):
        if not page_table.present(index):
            page_table.set(index, folio)
            mapped = mapped or index == vmf.pgoff
    return mapped


generic_file_vm_ops = VmOperations(filemap_fault, filemap_map_pages, filemap_page_mkwrite)
