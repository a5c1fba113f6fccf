"""The page cache of one file: looking folios up, and reading through them.

The rules: docs/kernel.md, lookups, reads and writes.

These are the kernel's algorithms step by step; each step is one operation of the engine.  Reads of cached bytes never
come here: the file's own methods serve them.
"""

import errno
from typing import Protocol

from pagecache._core import CacheFullError, CopyTarget, FileRaState, Folio, FolioBatch
from pagecache.readahead.ondemand import page_cache_async_ra, page_cache_sync_ra
from pagecache.requests import fill, replicas
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import look_of, sharing
from pagecache.units import MAX_FOLIO_ORDER, PAGE_SHIFT

FGP_ACCESSED, FGP_LOCK, FGP_CREAT, FGP_WRITE, FGP_NOFS, FGP_NOWAIT = (1 << bit for bit in range(6))
FGP_FOR_MMAP, FGP_STABLE, FGP_DONTCACHE = (1 << bit for bit in range(6, 9))
FGP_WRITEBEGIN = FGP_LOCK | FGP_WRITE | FGP_CREAT | FGP_STABLE
_FGP_ORDER_SHIFT = 26

DIRECT_CREATE_TRIES = 3  # failed rounds after which a reader takes a folio of its own instead of a window
QUARTER = 4


class ReadFile(Protocol):
    """What reading needs to know of an open file: a `File`."""

    is_random: bool

    @property
    def mapping(self) -> BackedMapping:
        """The cached pages of its object."""
        ...

    @property
    def ra(self) -> FileRaState:
        """What readahead knows of it."""
        ...

    @property
    def drop_behind(self) -> bool:
        """Whether what was read leaves the cache."""
        ...

    def fit_window(self) -> None:
        """Fit the readahead window to what is known of the store now."""
        ...


def fgf_set_order(nbytes: int) -> int:
    """Return the flag bits that ask for folios fit for nbytes."""
    order = max(0, nbytes.bit_length() - 1 - PAGE_SHIFT) if nbytes > 0 else 0
    return min(order, MAX_FOLIO_ORDER) << _FGP_ORDER_SHIFT


# -- lookup and insertion ----------------------------------------------------------------------------------------------


def nr_file_pages(mapping: BackedMapping) -> int:
    """Return how many pages the object has now."""
    return -(-mapping.size >> PAGE_SHIFT)

def filemap_get_folio(mapping: BackedMapping, index: int, fgp_flags: int = 0) -> Folio | None:
    """Look up the folio that caches page `index`, and act on the FGP flags.

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


def _act_on_found(mapping: BackedMapping, index: int, folio: Folio, fgp_flags: int) -> bool:
    """Do with a folio that was found what the flags say; False, and it is put, when it was truncated meanwhile."""
    locked = False
    try:
        if fgp_flags & FGP_LOCK:
            if not folio.trylock():
                if fgp_flags & FGP_NOWAIT:
                    raise BlockingIOError(errno.EAGAIN, f"page {index} of {mapping.name} is locked")
                folio.lock(look_of(mapping))
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


def _create_folio(mapping: BackedMapping, index: int, fgp_flags: int) -> Folio | None:
    """Create the folio of a missing page: the order asked for, then smaller ones; None if another thread was faster."""
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


def _alloc_for(mapping: BackedMapping, order: int, fgp_flags: int) -> Folio | None:
    if order > 0:
        return mapping.segment.alloc_folio(order, False)
    if fgp_flags & FGP_NOWAIT:
        return mapping.segment.alloc_folio(0, False)
    return fill.alloc_folio(mapping.segment)


def filemap_add_folio(mapping: BackedMapping, folio: Folio, index: int) -> None:
    """Add a new folio to the cache; it comes back locked.

    Raises FileExistsError (EEXIST) when a page of its range is cached, CacheFullError when index nodes ran out.
    """
    result = mapping.add_folio(folio, index)
    if result == -errno.EEXIST:
        raise FileExistsError(errno.EEXIST, f"page {index} of {mapping.name} is cached already")
    if result != 0:
        raise fill.cache_full(mapping.segment)


# -- reading -----------------------------------------------------------------------------------------------------------


def filemap_read(file: ReadFile, target: CopyTarget, done: int, pos: int) -> int:
    """Read the rest of a range that the hit path could not serve: target[done:] from byte pos + done on.

    Returns the bytes that target holds in the end, fewer than its length only at the end of the file. Raises OSError
    if any of the bytes cannot be read: a short result would look like the end of the file.
    """
    mapping, ra = file.mapping, file.ra
    wanted, had = len(target), done
    last_pos = pos + done if done else ra.prev_pos
    while done < wanted:
        nr_truncations = mapping.nr_truncations
        if pos + done >= mapping.size:
            break
        batch = filemap_get_pages(file, pos + done, wanted - done)
        try:
            left = min(wanted - done, mapping.size - pos - done)
            if left <= 0:
                break
            copied = batch.copy_to(target, done, pos + done, left, last_pos, nr_truncations)
            done += copied
            last_pos = pos + done
            if file.drop_behind:
                replicas.keep_unread(mapping, batch, pos + done)
                batch.drop_behind()
            elif mapping.backing.replicate != "all":
                replicas.leave_replicas(mapping, batch, pos + done)
        finally:
            batch.release()
    done = max(0, min(done, mapping.size - pos))
    ra.prev_pos = pos + done
    mapping.count_miss(max(0, done - had))
    return done


def filemap_get_pages(file: ReadFile, pos: int, nbytes: int) -> FolioBatch:
    """Bring in pages from byte `pos` on: a batch whose first folio is uptodate and holds that byte.

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
            read = _read_missing(file, index, last, readahead=tries <= DIRECT_CREATE_TRIES)
            if read is None:
                continue
            batch = read
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


def _read_missing(file: ReadFile, index: int, last: int, *, readahead: bool) -> FolioBatch | None:
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
    except CacheFullError:
        raise
    except OSError:
        ra.ra_pages //= QUARTER
        raise


def _start_next_window(mapping: BackedMapping, ra: FileRaState, batch: FolioBatch, last: int) -> None:
    try:
        with batch.last() as folio:
            page_cache_async_ra(mapping, ra, folio.index, folio, last - folio.index)
    except BaseException:
        batch.release()
        raise


def filemap_create_folio(mapping: BackedMapping, index: int) -> FolioBatch | None:
    """Read one missing page into a folio of its own; None if it is to be looked up again: another thread added it, or
    the file was truncated.

    Raises OSError and CacheFullError.
    """
    with fill.alloc_folio(mapping.segment) as folio:
        with sharing(mapping):
            if index >= nr_file_pages(mapping):
                return None
            result = mapping.add_folio(folio, index)
            if result == -errno.EEXIST:
                return None
            if result != 0:
                raise fill.cache_full(mapping.segment)
            fill.read_locked_folio(mapping, folio)
        return mapping.found(folio)


def filemap_update_page(mapping: BackedMapping, ra: FileRaState, folio: Folio) -> bool:
    """Make a cached folio uptodate: wait for the read in flight, or read it. False: look it up again.

    Raises OSError: of the read that was waited for, or of one's own.
    """
    with sharing(mapping):
        if folio.trylock():
            return _update_locked(mapping, ra, folio)
    fill.wait_for_folio(mapping, folio)
    return False


def _update_locked(mapping: BackedMapping, ra: FileRaState, folio: Folio) -> bool:
    if folio.mapping_number != mapping.number:
        folio.unlock()
        return False
    if folio.uptodate:
        folio.unlock()
        return True
    read_folio_synchronously(mapping, ra, folio)
    return True


def read_folio_synchronously(mapping: BackedMapping, ra: FileRaState, folio: Folio) -> None:
    """Read one locked folio and unlock it. A failure damps readahead of the open file to a quarter."""
    try:
        fill.read_locked_folio(mapping, folio)
    except OSError:
        ra.ra_pages //= QUARTER
        raise
