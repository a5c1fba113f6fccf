"""Readahead: reading what will be asked for next.

The rules: docs/kernel.md, readahead.

A window of pages is read when a page is missed, and the first page of its tail carries a *marker*.  A read of the
marked page starts the next window while the tail is still unread, so a sequential reader never waits.  The state of one
open file (`FileRaState`) is updated without locks: each step computes from what it has read once, so that the state may be
wrong, and then only speed is lost, but is never impossible.

All sizes here are pages, unless a name says bytes.
"""


from pagecache._core import FileRaState, Folio
from pagecache.readahead.neighbourhood import block_pages, is_small, part_to_read, reads_around
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import sharing
from pagecache.requests.submit import ENOSPC, missing_batches, read_block, read_pages
from pagecache.units import MAX_FOLIO_ORDER, PAGE_SHIFT

MIN_FOLIO_PAGES = 1
RA_PAGES_DEFAULT = 32  # 128 KiB
FORCE_CHUNK_PAGES = 512  # force_page_cache_ra works in pieces of 2 MiB
MMAP_LOTSAMISS = 100


# -- the formulas ------------------------------------------------------------------------------------------------------


def max_window(ra: FileRaState, req: int) -> int:
    """Return the largest window for a request: ra_pages, or more for a request that is larger and a store that can."""
    if req > ra.ra_pages and ra.io_pages > ra.ra_pages:
        return min(req, ra.io_pages)
    return ra.ra_pages


def init_ra_size(req: int, max_pages: int) -> int:
    """Return the size of the first window of a stream."""
    size = 1 << (req - 1).bit_length() if req > 0 else 1
    if size <= max_pages // 32:
        return size * 4
    if size <= max_pages // 4:
        return size * 2
    return max_pages


def next_ra_size(current: int, max_pages: int) -> int:
    """Return the size of the window after one of `current` pages."""
    if current < max_pages // 16:
        return current * 4
    if current <= max_pages // 2:
        return current * 2
    return max_pages


# -- entry points ------------------------------------------------------------------------------------------------------


def page_cache_sync_ra(mapping: BackedMapping, ra: FileRaState, index: int, req: int, *, random: bool = False) -> None:
    """Read ahead on a miss of page `index`, where `req` pages from there are wanted.

    random: the file is advised to be read at random: exactly the request is read.
    Raises OSError only if pages that were asked for could not be read.
    Context: no lock held; takes invalidate_lock shared.
    """
    if ra.ra_pages == 0:
        req, random = 1, True
    if random:
        force_page_cache_ra(mapping, ra, index, req)
        return
    part = part_to_read(mapping, index, req, ra.ra_pages)
    if part is not None:
        read_block(mapping, *part, index, ra.dropbehind)
        do_page_cache_ra(mapping, index, req, 0, demand_end=index + req, dropbehind=ra.dropbehind)
        return
    max_pages = max_window(ra, req)
    previous = ra.prev_pos >> PAGE_SHIFT if ra.prev_pos >= 0 else None
    sequential = previous is not None and 0 <= index - previous <= 1
    if index == 0 or req > max_pages or sequential:
        size = max(init_ra_size(req, max_pages), min(block_pages(mapping, index, req, ra.ra_pages), max_pages))
        async_size = size - req if size > req else size // 2
        if req > ra.ra_pages and mapping.backing.is_crowded:
            async_size = 0  # what is asked for is more than this file's share already: nothing beyond it
        ra.start, ra.size, ra.async_size = index, size, async_size
    else:
        gap = mapping.prev_gap(index - 1, max_pages)
        contiguous = index - gap - 1
        if contiguous <= req:
            if not is_small(mapping, ra.ra_pages):
                read_around(mapping, ra, index, req)
            do_page_cache_ra(mapping, index, req, 0, demand_end=index + req, dropbehind=ra.dropbehind)
            return
        if gap == -1:
            contiguous *= 2
        ra.start, ra.size, ra.async_size = index, min(contiguous + req, max_pages), 1
    ra.order = 0
    page_cache_ra_order(mapping, ra, demand_end=index + req)


def page_cache_async_ra(mapping: BackedMapping, ra: FileRaState, index: int, folio: Folio, req: int) -> None:
    """Start the next window when a marked folio is touched; errors concern no reader yet and are only counted.

    Context: no lock held; takes invalidate_lock shared.
    """
    if ra.ra_pages == 0 or folio.writeback:
        return
    nr_pages = folio.nr_pages
    if not folio.test_clear_readahead():
        return
    max_pages = max_window(ra, req)
    start, size = ra.start, ra.size
    expected = (start + size - ra.async_size) // nr_pages * nr_pages
    if index == expected:
        start, size = start + size, max(size, next_ra_size(size, max_pages))
    else:
        start = mapping.next_gap(index + 1, max_pages)
        if start - index > max_pages:
            return
        size = next_ra_size(start - index + req, max_pages)
    ra.order = order = ra.order + 2
    align = 1 << min(order, (max_pages & -max_pages).bit_length() - 1)
    end = (start + size) // align * align
    if end > start:
        size = end - start
    ra.start, ra.size, ra.async_size = start, size, size
    page_cache_ra_order(mapping, ra, demand_end=0, background=True)


def force_page_cache_ra(mapping: BackedMapping, ra: FileRaState, index: int, nr: int, *, demanded: bool = True) -> None:
    """Read nr pages from `index` on in pieces of 2 MiB, without markers and without touching the state."""
    nr = min(nr, max(ra.io_pages, ra.ra_pages))
    while nr > 0:
        piece = min(nr, FORCE_CHUNK_PAGES)
        demand_end = index + piece if demanded else 0
        do_page_cache_ra(mapping, index, piece, 0, demand_end=demand_end, dropbehind=ra.dropbehind)
        index += piece
        nr -= piece


def read_around(mapping: BackedMapping, ra: FileRaState, index: int, req: int) -> None:
    """Read the neighbourhood of a miss that is no part of a stream, where the store is far and misses lie close together;
    errors are only counted."""
    size = block_pages(mapping, index, req, ra.ra_pages)
    if size > req and reads_around(mapping, index):
        first = index // size * size
        read_block(mapping, first, max(first + size, index + req), index, ra.dropbehind)


def wanted_order(mapping: BackedMapping) -> int:
    """Return the order that the store wants folios to have, -1 if it does not mind."""
    return mapping.backing.hints.folio_order if mapping.backing is not None else -1


# -- issuing -----------------------------------------------------------------------------------------------------------


def page_cache_ra_order(mapping: BackedMapping, ra: FileRaState, *, demand_end: int, background: bool = False) -> None:
    """Read the window of the state with folios of its order, as large as alignment and the file's end allow.

    demand_end: pages below it were asked for: if they cannot be read, the error is raised. background: no reader waits,
    all of it is read by others.
    """
    start, size = ra.start, ra.size
    if start >= -(-mapping.size >> PAGE_SHIFT) or size == 0:
        return
    order = min(MAX_FOLIO_ORDER, ra.order, size.bit_length() - 1)
    if ra.io_pages:
        order = min(order, ra.io_pages.bit_length() - 1)  # a folio is read by one request
    wanted = wanted_order(mapping)
    if wanted >= 0:
        order = wanted
    backing = mapping.backing
    ra.order = order = backing.order_of_request(order)
    async_size = ra.async_size
    mark = start + size - async_size
    index, result = start, 0
    with sharing(mapping):
        limit = min(-(-mapping.size >> PAGE_SHIFT), start + size) - 1
        while index <= limit and result in (0, ENOSPC):
            batch = mapping.new_batch(index)
            result = batch.extend(backing.last_of_request(index, limit), order, mark, demand_end, ra.dropbehind)
            index = batch.next_index
            read_pages(mapping, batch, demand_end, background)
    if index <= limit:
        left = start + size - index
        do_page_cache_ra(
            mapping, index, left, async_size, demand_end=demand_end, dropbehind=ra.dropbehind, background=background
        )


def do_page_cache_ra(
    mapping: BackedMapping,
    index: int,
    nr: int,
    lookahead: int,
    *,
    demand_end: int,
    dropbehind: bool = False,
    background: bool = False,
) -> None:
    """Read nr pages from `index` on that are not cached yet, clipped to the file; marks the page `lookahead` pages
    before the end of what is left."""
    nr_file_pages = -(-mapping.size >> PAGE_SHIFT)
    if index >= nr_file_pages:
        return
    nr = min(nr, nr_file_pages - index)
    mark = index + nr - lookahead if 0 < lookahead <= nr else -1
    page_cache_ra_unbounded(
        mapping, index, nr, mark, demand_end=demand_end, dropbehind=dropbehind, background=background
    )


def page_cache_ra_unbounded(
    mapping: BackedMapping,
    index: int,
    nr: int,
    mark: int,
    *,
    demand_end: int,
    dropbehind: bool = False,
    background: bool = False,
) -> None:
    """Read nr pages from `index` on with folios of one page, or as large as the store wants them, around those that are
    cached.

    Context: takes invalidate_lock shared.
    """
    with sharing(mapping):
        order = max(0, wanted_order(mapping))
        for batch in missing_batches(mapping, index, index + nr - 1, order, mark, demand_end, dropbehind):
            read_pages(mapping, batch, demand_end, background)
