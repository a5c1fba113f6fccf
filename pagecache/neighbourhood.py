"""How much to read around a miss that is not part of a stream, where waiting costs more than bytes.

A far store takes hardly longer for 256 KiB than for one page, so a miss of a few pages reads the aligned block around it.
Where other pages near by are cached, somebody walks over the object in small steps: as long as the block four times as
large holds cached pages besides this one, that larger block is read instead, up to the largest request. So a dense walk
soon reads in large pieces, and scattered reads stay small.

All sizes here are pages.
"""

from pagecache._core import AddressSpace
from pagecache.submit import Line
from pagecache.window import is_far

BLOCK_PAGES = 64
SMALL_REQUEST = 8  # whoever asks for more than this knows what there is, and gets just that
GROWTH = 4
BUDGET_SHARE = 64  # a block is at most so small a part of the cache


def block_pages(mapping: AddressSpace, index: int, req: int, window: int) -> int:
    """Return the size of the aligned block to read around page `index`, where `req` pages are wanted; 1 where just those
    should be read: because they are many, the store is near, or memory is short.

    window: the largest window of the open file, which is its share of the budget.
    """
    line: Line = mapping.extra
    if req > SMALL_REQUEST or not is_far(line.hints, line.speed):
        return 1
    limit = min(line.request_bytes() >> 12, mapping.segment.nr_frames // BUDGET_SHARE, window)
    if limit < BLOCK_PAGES:
        return 1
    size = BLOCK_PAGES
    while size * GROWTH <= limit and _has_neighbours(mapping, index, size):
        size *= GROWTH
    return size


def _has_neighbours(mapping: AddressSpace, index: int, size: int) -> bool:
    """Whether the block GROWTH times as large has cached pages beside the block of so many pages around `index`."""
    first, outer = index // size * size, index // (size * GROWTH) * size * GROWTH
    if first > outer and mapping.next_present(outer, first - 1) < first:
        return True
    end = outer + size * GROWTH
    return first + size < end and mapping.next_present(first + size, end - 1) < end


def missing_around(mapping: AddressSpace, index: int, req: int, size: int) -> tuple[int, int]:
    """Return (first, end) of the run of missing pages around the missing page `index`: within its block of `size`, and up
    to the end of the `req` pages that were asked for."""
    block = first = index // size * size
    while first < index:
        present = mapping.next_present(first, index - 1)
        if present >= index:
            break
        first = mapping.next_gap(present, index - present)
    end = max(block + size, index + req)
    return first, mapping.next_present(index + 1, end - 1) if index + 1 < end else end
