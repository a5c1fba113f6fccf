"""Truncation and invalidation: taking pages out of the cache.

The rules: docs/kernel.md, truncation and invalidation.

`invalidate_lock` exclusive is held until what is below the pages has been freed too, so that no thread reads the
old bytes back in between.  Reads of cached pages do not take it: they return old bytes, or stop at the new size.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator

from pagecache import _core
from pagecache._core import Folio
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import look_of
from pagecache.units import LAST_PAGE, PAGE_SHIFT, PAGE_SIZE

TO_THE_END = -1


# -- removing for good -------------------------------------------------------------------------------------------------


def truncate_inode_pages_range(mapping: BackedMapping, lstart: int, lend: int = TO_THE_END) -> None:
    """Remove bytes lstart..lend (inclusive; -1: to the end) from the cache, dirty or not.

    Whole pages are removed; in pages that stay the bytes are zeroed. On return no page of the range is cached, and
    none was missed: whatever was added meanwhile was swept again.
    Context: invalidate_lock exclusive, or no other thread may add pages; may sleep on folio locks and on write-back.
    """
    if mapping.empty:
        return
    start = -(-lstart >> PAGE_SHIFT)
    end = (lend + 1) >> PAGE_SHIFT if lend != TO_THE_END else LAST_PAGE
    _truncate_unlocked(mapping, start, end)
    start, end = _truncate_edges(mapping, lstart, lend, start, end)
    _truncate_blocking(mapping, start, end)


def truncate_inode_pages(mapping: BackedMapping, lstart: int) -> None:
    """Remove everything from byte lstart on."""
    truncate_inode_pages_range(mapping, lstart)


def _truncate_unlocked(mapping: BackedMapping, start: int, end: int) -> None:
    """First pass: whatever is neither locked nor under write-back, without waiting."""
    index: int | None = start
    while index is not None and index < end:
        index = _core.truncate_unlocked(mapping, index, end)


def _truncate_edges(mapping: BackedMapping, lstart: int, lend: int, start: int, end: int) -> tuple[int, int]:
    """Truncate the folios that lie over the edges. Returns the pages that are left to remove."""
    last_byte = lend if lend != TO_THE_END else (LAST_PAGE << PAGE_SHIFT) - 1
    first_edge, last_edge = lstart >> PAGE_SHIFT, last_byte >> PAGE_SHIFT
    same = False
    with locked(lock_cached(mapping, first_edge)) as folio:
        if folio is not None:
            after = folio.index + folio.nr_pages
            same = last_edge < after
            if not truncate_inode_partial_folio(mapping, folio, lstart, last_byte):
                start = after
                if same:
                    end = first_edge
    if not same and lend != TO_THE_END:
        with locked(lock_cached(mapping, last_edge)) as folio:
            if folio is not None:
                first = folio.index
                if not truncate_inode_partial_folio(mapping, folio, lstart, last_byte):
                    end = first
    return start, end


@contextlib.contextmanager
def locked(folio: Folio | None) -> Iterator[Folio | None]:
    """Unlock and put a locked folio, if there is one, when the block ends."""
    try:
        yield folio
    finally:
        if folio is not None:
            folio.unlock()
            folio.put()


def lock_cached(mapping: BackedMapping, index: int) -> Folio | None:
    """Return the folio of a page, locked, or None."""
    while True:
        folio = mapping.get_folio(index)
        if folio is None:
            return None
        try:
            folio.lock(look_of(mapping))
        except BaseException:
            folio.put()
            raise
        if folio.is_page_of(mapping, index):
            return folio
        folio.unlock()
        folio.put()


def truncate_inode_partial_folio(mapping: BackedMapping, folio: Folio, lstart: int, lend: int) -> bool:
    """Remove bytes lstart..lend (inclusive) of a locked folio: zeroes them, or removes the folio if it is covered.

    A large folio is split at the edge. Returns False if it was dirty and could not be split: then it is kept, zeroed.
    """
    folio.wait_writeback()
    first, length = folio.index << PAGE_SHIFT, folio.nr_pages << PAGE_SHIFT
    begin = max(lstart - first, 0)
    end = min(lend + 1 - first, length)
    if begin == 0 and end == length:
        truncate_folio(mapping, folio)
        return True
    if not folio.zero_unshared(begin, end - begin):
        return _cut_shared_folio(mapping, folio, begin, end)
    if folio.nr_pages == 1:
        return True
    if _split_at_cuts(mapping, folio, first, begin, end, length):
        return True
    if folio.dirty:
        return False
    truncate_folio(mapping, folio)
    return True


def _split_at_cuts(mapping: BackedMapping, folio: Folio, first: int, begin: int, end: int, length: int) -> bool:
    if not folio.split((first + begin) >> PAGE_SHIFT):
        return False
    if end < length:
        with locked(trylock_cached(mapping, (first + end) >> PAGE_SHIFT)) as tail:
            if tail is not None:
                tail.split((first + end) >> PAGE_SHIFT)
    return True


def trylock_cached(mapping: BackedMapping, index: int) -> Folio | None:
    folio = mapping.get_folio(index)
    if folio is None:
        return None
    if folio.trylock():
        if folio.is_page_of(mapping, index):
            return folio
        folio.unlock()
    folio.put()
    return None


def _cut_shared_folio(mapping: BackedMapping, folio: Folio, begin: int, end: int) -> bool:
    """Truncate a folio that views or readers hold, and that may not change: it leaves the cache as it is; a dirty one is
    replaced by a truncated copy."""
    if folio.dirty:
        copy = _core.copy_folio(mapping, folio)
        if copy is None:
            folio.zero(begin, end - begin)
            return False
        copy.zero(begin, end - begin)
        mapping.replace_folio(folio, copy)
        copy.unlock()
        return True
    truncate_folio(mapping, folio)
    return True


def truncate_folio(mapping: BackedMapping, folio: Folio) -> None:
    """Remove a locked folio of the mapping: unmaps it, forgets that it is dirty."""
    if folio.mapping_number == mapping.number:
        unmap_mapping_pages(mapping, folio.index, folio.nr_pages)
        mapping.remove_folio(folio)


def _truncate_blocking(mapping: BackedMapping, start: int, end: int) -> None:
    """Second pass: waits for every folio that is left, and starts over until a sweep finds none. What reaches over an
    edge, because it could not be split, is removed as well if it is clean."""
    clean = False
    while not clean:
        clean = True
        index: int | None = start
        while index is not None and index < end:
            folios, index = _core.find_folios(mapping, index, end)
            with referenced(folios):
                for folio in folios:
                    folio.lock(look_of(mapping))
                    try:
                        folio.wait_writeback()
                        is_whole = start <= folio.index and folio.index + folio.nr_pages <= end
                        if is_whole or not folio.dirty:
                            clean = False
                            truncate_folio(mapping, folio)
                    finally:
                        folio.unlock()


@contextlib.contextmanager
def referenced(folios: list[Folio]) -> Iterator[None]:
    """Put the folios when the block ends, even if an exception keeps the list alive."""
    try:
        yield
    finally:
        for folio in folios:
            folio.put()


def truncate_setsize(mapping: BackedMapping, size: int) -> None:
    """Set i_size, then remove what is behind it: readers see the new size before a page goes.

    Context: invalidate_lock exclusive, taken by the caller before and held until the store was truncated too.
    """
    old_size = mapping.size
    if size > old_size:
        _zero_old_tail(mapping, old_size)
    mapping.size = size
    truncate_pagecache(mapping, size)


def _zero_old_tail(mapping: BackedMapping, old_size: int) -> None:
    """Zero what lies behind the end of the file in its last page, before it becomes part of the file."""
    offset = old_size & (PAGE_SIZE - 1)
    with locked(lock_cached(mapping, old_size >> PAGE_SHIFT) if offset else None) as folio:
        if folio is not None and folio.uptodate:
            begin = old_size - (folio.index << PAGE_SHIFT)
            folio.zero(begin, (folio.nr_pages << PAGE_SHIFT) - begin)


def wait_for_folios(mapping: BackedMapping, start: int) -> None:
    """Wait until each folio that begins at page `start` or behind was neither locked nor under write-back for a moment.

    Context: invalidate_lock exclusive, and i_size in front of them: no read and no write-back of them begins.
    """
    index: int | None = start
    while index is not None:
        folios, index = _core.find_folios(mapping, index, LAST_PAGE)
        with referenced(folios):
            for folio in folios:
                if folio.index >= start and (folio.locked or folio.writeback):
                    folio.lock(look_of(mapping))
                    try:
                        folio.wait_writeback()
                    finally:
                        folio.unlock()


def truncate_pagecache(mapping: BackedMapping, size: int) -> None:
    """Remove what is behind the new size: unmap, truncate, and unmap again what was copied on write in between."""
    hole = -(-size >> PAGE_SHIFT)
    unmap_mapping_pages(mapping, hole, 0, even_cows=True)
    truncate_inode_pages(mapping, size)
    unmap_mapping_pages(mapping, hole, 0, even_cows=True)


def truncate_pagecache_range(mapping: BackedMapping, lstart: int, lend: int) -> None:
    """Remove bytes lstart..lend (inclusive) for a hole punch: private copies survive.

    Context: invalidate_lock exclusive, held over this and the freeing of what is below.
    """
    first = -(-lstart >> PAGE_SHIFT)
    after = (lend + 1) >> PAGE_SHIFT
    if after > first:
        unmap_mapping_pages(mapping, first, after - first)
    truncate_inode_pages_range(mapping, lstart, lend)


# -- invalidation ------------------------------------------------------------------------------------------------------


def invalidate_mapping_pages(mapping: BackedMapping, start: int, end: int) -> int:
    """Remove clean, unused pages start..end (inclusive) without waiting; what is left leaves next.

    Returns the pages removed.
    """
    removed = 0
    index: int | None = start
    while index is not None and index <= end:
        index, gone, _ = _core.invalidate_unlocked(mapping, index, end + 1)
        removed += gone
    return removed


def invalidate_inode_pages2_range(
    mapping: BackedMapping, start: int, end: int, launder: Callable[[Folio], None] | None = None
) -> None:
    """Remove pages start..end (inclusive), waiting for locks and write-back; large folios go whole.

    launder: called with each dirty, locked folio, may write it and make it clean. Dirty pages stay: after the others
    were removed, OSError with EBUSY is raised. Shadows go too.
    """
    error: OSError | None = None
    index: int | None = start
    while index is not None and index <= end:
        folios, index = _core.find_folios(mapping, index, end + 1)
        with referenced(folios):
            for folio in folios:
                try:
                    _invalidate_folio2(mapping, folio, launder)
                except OSError as failed:
                    error = failed
    if error is not None:
        raise error


def _invalidate_folio2(mapping: BackedMapping, folio: Folio, launder: Callable[[Folio], None] | None) -> None:
    folio.lock(look_of(mapping))
    try:
        if folio.mapping_number != mapping.number:
            return
        folio.wait_writeback()
        unmap_mapping_pages(mapping, folio.index, folio.nr_pages)
        if folio.dirty and launder is not None:
            launder(folio)
        if folio.mapping_number != mapping.number or not mapping.remove_unless_dirty(folio):
            raise OSError(
                errno.EBUSY,
                f"page {folio.index} of {mapping.name} is dirty and cannot be invalidated: fsync first",
            )
    finally:
        folio.unlock()


# -- unmapping ---------------------------------------------------------------------------------------------------------


def unmap_mapping_pages(mapping: BackedMapping, start: int, nr: int, *, even_cows: bool = False) -> None:
    """Unmap pages start..start + nr - 1 (nr 0: all behind) of the object from every map of it.

    even_cows: private copies too, as truncation must.
    """
    end = start + nr if nr else LAST_PAGE
    for memory_area in tuple(mapping.maps or ()):
        memory_area.unmap_object_pages(start, end, even_cows)


def unmap_mapping_range(mapping: BackedMapping, holebegin: int, holelen: int, even_cows: bool) -> None:
    """The same for bytes: pages that lie wholly in the hole, all behind holebegin if holelen is 0."""
    start = -(-holebegin >> PAGE_SHIFT)
    if holelen == 0:
        unmap_mapping_pages(mapping, start, 0, even_cows=even_cows)
        return
    end = (holebegin + holelen) >> PAGE_SHIFT
    if end > start:
        unmap_mapping_pages(mapping, start, end - start, even_cows=even_cows)
