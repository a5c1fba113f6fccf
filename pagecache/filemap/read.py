"""The page cache of one file: looking folios up, reading through them, faulting them in (K1, K2).

These are the kernel's algorithms step by step; each step is one operation of the engine.  Reads of cached bytes never
come here: the file's own methods serve them.
"""

import errno
from typing import Any

from pagecache.mm import flags
from pagecache.requests import fill, replicas
from pagecache._core import AddressSpace, CopyTarget, FileRaState, Folio, FolioBatch
from pagecache.mm.flags import FaultWalk, VmFault
from pagecache.filemap.fault_readahead import do_async_mmap_readahead, do_sync_mmap_readahead, maybe_unlock_mmap_for_io
from pagecache.readahead.ondemand import MAX_FOLIO_ORDER, PAGE_SHIFT, page_cache_async_ra, page_cache_sync_ra

FGP_ACCESSED, FGP_LOCK, FGP_CREAT, FGP_WRITE, FGP_NOFS, FGP_NOWAIT = (1 << bit for bit in range(6))
FGP_FOR_MMAP, FGP_STABLE, FGP_DONTCACHE = (1 << bit for bit in range(6, 9))
FGP_WRITEBEGIN = FGP_LOCK | FGP_WRITE | FGP_CREAT | FGP_STABLE
_FGP_ORDER_SHIFT = 26

DIRECT_CREATE_TRIES = 3  # failed rounds after which a reader takes a folio of its own instead of a window
QUARTER = 4


def fgf_set_order(nbytes: int) -> int:
    """Return the flag bits that ask for folios fit for nbytes."""
    order = max(0, nbytes.bit_length() - 1 - PAGE_SHIFT) if nbytes > 0 else 0
    return min(order, MAX_FOLIO_ORDER) << _FGP_ORDER_SHIFT


# -- lookup and insertion ----------------------------------------------------------------------------------------------


def filemap_get_folio(mapping: AddressSpace, index: int, fgp_flags: int = 0) -> Folio | None:
    """Look up the folio that caches page `index`, and act on the FGP flags (K2.2).

    Returns the folio, referenced (and locked with FGP_LOCK, or when created without FGP_FOR_MMAP), or None when there
    is none and FGP_CREAT is not given. Raises BlockingIOError (EAGAIN) where FGP_NOWAIT would have to wait, and
    CacheFullError. FGP_CREAT needs FGP_LOCK or FGP_FOR_MMAP (ValueError).
    Context: may sleep on the folio lock; takes no invalidate_lock.
    """
    if fgp_flags & FGP_CREAT and not fgp_flags & (FGP_LOCK | FGP_FOR_MMAP):
        raise ValueError("FGP_CREAT needs FGP_LOCK or FGP_FOR_MMAP")
    while True:
        folio = mapping.get_folio(index)
        if folio is not None:
            if _act_on_found(mapping, index, folio, fgp_flags):
                return folio
            continue
        if not fgp_flags & FGP_CREAT:
            return None
        folio = _create_folio(mapping, index, fgp_flags)
        if folio is not None:
            return folio


def _act_on_found(mapping: AddressSpace, index: int, folio: Folio, fgp_flags: int) -> bool:
    """Do with a folio that was found what the flags say; False, and it is put, when it was truncated meanwhile."""
    locked = False
    try:
        if fgp_flags & FGP_LOCK:
            if not folio.trylock():
                if fgp_flags & FGP_NOWAIT:
                    raise BlockingIOError(errno.EAGAIN, f"page {index} of {mapping.name} is locked")
                folio.lock()
            locked = True
            if not folio.is_page_of(mapping, index):
                folio.unlock()
                folio.put()
                return False
        if fgp_flags & FGP_ACCESSED:
            folio.mark_accessed()
        if fgp_flags & FGP_STABLE:
            folio.wait_writeback()
    except BaseException:
        if locked:
            folio.unlock()
        folio.put()
        raise
    if not fgp_flags & FGP_DONTCACHE and folio.dropbehind:
        folio.set_dropbehind(False)
    return True


def _create_folio(mapping: AddressSpace, index: int, fgp_flags: int) -> Folio | None:
    """Create the folio of a missing page: the order asked for, then smaller ones; None if somebody else was faster."""
    order = min(fgp_flags >> _FGP_ORDER_SHIFT, MAX_FOLIO_ORDER)
    if index & ((1 << order) - 1):
        order = (index & -index).bit_length() - 1
    while True:
        folio = _alloc_for(mapping, order, fgp_flags)
        result = -errno.ENOMEM
        if folio is not None:
            first = index >> order << order
            result = mapping.add_folio(
                folio,
                first,
                referenced=bool(fgp_flags & FGP_ACCESSED),
                dropbehind=bool(fgp_flags & FGP_DONTCACHE),
                writing=bool(fgp_flags & FGP_WRITE),
            )
            if result == 0:
                if fgp_flags & FGP_FOR_MMAP and not fgp_flags & FGP_LOCK:
                    folio.unlock()
                return folio
            folio.put()
        if order > 0:
            order -= 1
        elif result == -errno.EEXIST:
            return None
        elif fgp_flags & FGP_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, f"no memory for page {index} of {mapping.name} without waiting")
        else:
            raise fill.cache_full(mapping.segment)


def _alloc_for(mapping: AddressSpace, order: int, fgp_flags: int) -> Folio | None:
    if order > 0:
        return mapping.segment.alloc_folio(order, False)
    if fgp_flags & FGP_NOWAIT:
        return mapping.segment.alloc_folio(0, False)
    return fill.alloc_folio(mapping.segment)


def filemap_add_folio(mapping: AddressSpace, folio: Folio, index: int) -> None:
    """Add a new folio to the cache; it comes back locked (K2.3).

    Raises FileExistsError (EEXIST) when a page of its range is cached, CacheFullError when index nodes ran out.
    """
    result = mapping.add_folio(folio, index)
    if result == -errno.EEXIST:
        raise FileExistsError(errno.EEXIST, f"page {index} of {mapping.name} is cached already")
    if result != 0:
        raise fill.cache_full(mapping.segment)


# -- reading -----------------------------------------------------------------------------------------------------------


def filemap_read(file, target: CopyTarget, done: int, pos: int) -> int:
    """Read the rest of a range that the hit path could not serve: target[done:] from byte pos + done on (K2.5).

    Returns the bytes that target holds in the end, fewer than its length only at the end of the file. Raises OSError
    if any of the bytes cannot be read: a short result would look like the end of the file.
    """
    mapping: AddressSpace = file.mapping
    ra: FileRaState = file.ra
    wanted, had = len(target), done
    last_pos = pos + done if done else ra.prev_pos
    while done < wanted:
        nr_cuts = mapping.nr_cuts
        if pos + done >= mapping.size:
            break
        batch = filemap_get_pages(file, pos + done, wanted - done)
        try:
            left = min(wanted - done, mapping.size - pos - done)
            if left <= 0:
                break
            copied = batch.copy_to(target, done, pos + done, left, last_pos, nr_cuts)
            done += copied
            last_pos = pos + done
            if file.drop_behind:
                batch.drop_behind()
            elif mapping.extra.replicate != "all":
                copies.leave_copies(mapping, batch, pos + done)
        finally:
            batch.release()
    done = max(0, min(done, mapping.size - pos))
    ra.prev_pos = pos + done
    mapping.count_miss(max(0, done - had))
    return done


def filemap_get_pages(file, pos: int, nbytes: int) -> FolioBatch:
    """Bring in pages from byte `pos` on: a batch whose first folio is uptodate and holds that byte (K2.5).

    The batch may be empty, or not uptodate, only when pos is behind the end of the file now.
    Raises OSError. Context: no lock held; takes invalidate_lock shared; may wait for the store.
    """
    mapping, ra = file.mapping, file.ra
    index = pos >> PAGE_SHIFT
    last = (pos + nbytes + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT
    tries = 0
    while True:
        tries += 1
        batch = mapping.get_read_batch(index, last - 1)
        if pos >= mapping.size:
            return batch
        if len(batch) == 0:
            batch = _read_missing(file, index, last, readahead=tries <= DIRECT_CREATE_TRIES)
            if batch is None:
                continue
        if batch.last_readahead:
            file.fit_window()
            _start_next_window(mapping, ra, batch, last)
        if batch.last_uptodate:
            return batch
        if len(batch) > 1:
            batch.drop_last()
            return batch
        with batch.last() as folio:
            batch.release()
            if filemap_update_page(mapping, ra, folio):
                return mapping.found(folio)


def _read_missing(file, index: int, last: int, *, readahead: bool) -> FolioBatch | None:
    """Read page `index`, and what else readahead decides up to page `last` or behind; None: look it up again.

    Raises OSError; a failed read damps readahead of the open file to a quarter.
    """
    mapping, ra = file.mapping, file.ra
    try:
        if readahead:
            if not file.is_random:
                file.fit_window()
            page_cache_sync_ra(mapping, ra, index, last - index, random=file.is_random)
            batch = mapping.get_read_batch(index, last - 1)
            if len(batch) > 0:
                return batch
        return filemap_create_folio(mapping, index)
    except fill.CacheFullError:
        raise
    except OSError:
        ra.ra_pages //= QUARTER
        raise


def _start_next_window(mapping: AddressSpace, ra: FileRaState, batch: FolioBatch, last: int) -> None:
    try:
        with batch.last() as folio:
            page_cache_async_ra(mapping, ra, folio.index, folio, last - folio.index)
    except BaseException:
        batch.release()
        raise


def filemap_create_folio(mapping: AddressSpace, index: int) -> FolioBatch | None:
    """Read one missing page into a folio of its own; None if it is to be looked up again: somebody else added it, or
    the file was cut.

    Raises OSError and CacheFullError.
    """
    with fill.alloc_folio(mapping.segment) as folio:
        with mapping.shared():
            if index >= nr_file_pages(mapping):
                return None
            result = mapping.add_folio(folio, index)
            if result == -errno.EEXIST:
                return None
            if result != 0:
                raise fill.cache_full(mapping.segment)
            fill.read_locked_folio(mapping, folio)
        return mapping.found(folio)


def filemap_update_page(mapping: AddressSpace, ra: FileRaState, folio: Folio) -> bool:
    """Make a cached folio uptodate: wait for the read in flight, or read it. False: look it up again.

    Raises OSError: of the read that was waited for, or of one's own.
    """
    with mapping.shared():
        if folio.trylock():
            return _update_locked(mapping, ra, folio)
    fill.wait_for_folio(mapping, folio)
    return False


def _update_locked(mapping: AddressSpace, ra: FileRaState, folio: Folio) -> bool:
    if folio.mapping_number != mapping.number:
        folio.unlock()
        return False
    if folio.uptodate:
        folio.unlock()
        return True
    read_folio_synchronously(mapping, ra, folio)
    return True


def read_folio_synchronously(mapping: AddressSpace, ra: FileRaState, folio: Folio) -> None:
    """Read one locked folio and unlock it. A failure damps readahead of the open file to a quarter."""
    try:
        fill.read_locked_folio(mapping, folio)
    except OSError:
        ra.ra_pages //= QUARTER
        raise


# -- faults ------------------------------------------------------------------------------------------------------------


def filemap_fault(vmf: VmFault) -> int:
    """Bring in the page of a fault (K1.2).

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


def nr_file_pages(mapping: AddressSpace) -> int:
    """Return how many pages the object has now."""
    return -(-mapping.size >> PAGE_SHIFT)


def _beyond_end(vmf: VmFault) -> int:
    mapping = vmf.vma.file.mapping
    reason = f"page {vmf.pgoff} is beyond the end of the file, which has {mapping.size} bytes now"
    text = f"cannot access {mapping.name} at offset {vmf.pgoff << PAGE_SHIFT}: {reason}"
    return vmf.fail(flags.VM_FAULT_SIGBUS, flags.BusError(errno.EFAULT, text))


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
            except fill.CacheFullError as error:
                if walk.fpin is not None:
                    return _out_retry(walk)
                walk.unlock_mapping()
                return vmf.fail(flags.VM_FAULT_OOM, error)
    return 0


def _fault_wait_and_create(vmf: VmFault, walk: FaultWalk) -> None:
    """Wait for memory without invalidate_lock, for whoever holds the memory may be waiting for the lock. No folio is
    found if the file was cut meanwhile."""
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
    bus_error = flags.BusError(error.errno, error.strerror)
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


def lock_folio_maybe_drop_mmap(vmf: VmFault, folio: Folio, fpin: Any) -> tuple[bool, Any]:
    """Lock a folio; the mmap lock is dropped before a wait, if this attempt may.

    Returns (whether it is locked, the kept file). It is not when RETRY_NOWAIT forbids waiting: the mmap lock is kept.
    Raises what a signal handler raises while it waits.
    """
    if folio.trylock():
        return True, fpin
    if vmf.flags & flags.FAULT_FLAG_RETRY_NOWAIT:
        return False, fpin
    fpin = maybe_unlock_mmap_for_io(vmf, fpin)
    folio.lock()
    return True, fpin


def filemap_map_pages(vmf: VmFault, start_pgoff: int, end_pgoff: int) -> int:
    """Map pages start_pgoff..end_pgoff (inclusive) that are cached and ready, around a fault (K1.5).

    Returns NOPAGE if the page of the fault was mapped, else 0.
    Context: mmap lock held; waits for nobody.
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


def _next_ready_folio(mapping: AddressSpace, index: int) -> Folio | None:
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
