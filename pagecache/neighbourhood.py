"""How much to read around a miss that is not part of a stream, where waiting costs more than bytes.

A far store takes hardly longer for 256 KiB than for one page, so a miss of a few pages reads the aligned block around it,
if the object's latest misses lay close together, or an eighth of the pages around is cached: reads at random over a large
object fetch just what is asked for.  Where other pages near by are cached, somebody walks over the object in small steps:
as long as the block four times as large holds cached pages besides this one, that larger block is read instead, up to the
largest request. So a dense walk soon reads in large pieces, and scattered reads stay small.

All sizes here are pages.
"""

from collections import deque

from pagecache._core import AddressSpace
from pagecache.window import is_far

BLOCK_PAGES = 64
SMALL_REQUEST = 8  # whoever asks for more than this knows what there is, and gets just that
GROWTH = 4
NEAR_PAGES = 256  # misses that lie no further apart are close together
RECENT_MISSES = 8  # each miss is compared with so many before it
SCORE_CLOSE, SCORE_MAX = 3, 8  # from which score on misses are close together; a miss far from all others counts twice
DENSE_PART = 8  # where an eighth of the pages around is cached, misses will follow
BUDGET_SHARE = 64  # a block is at most so small a part of the cache


class Locality:
    """Whether the misses of one object lie close together. Racy by design: it steers only how much is read."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT_MISSES)
        self._score = 0

    def note(self, index: int) -> bool:
        """Note a miss of page `index`. Returns whether the latest ones are close together."""
        is_near = any(abs(index - other) <= NEAR_PAGES for other in tuple(self._recent))
        self._recent.append(index)
        self._score = min(self._score + 1, SCORE_MAX) if is_near else max(self._score - 2, 0)
        return self._score >= SCORE_CLOSE


def block_pages(mapping: AddressSpace, index: int, req: int, window: int) -> int:
    """Return the size of the aligned block to read around page `index`, where `req` pages are wanted; 1 where just those
    should be read: because they are many, the store is near, or memory is short.

    window: the largest window of the open file, which is its share of the budget.
    """
    line = mapping.extra
    if req > SMALL_REQUEST or not is_far(line.hints, line.speed):
        return 1
    limit = min(line.request_bytes() >> 12, mapping.segment.nr_frames // BUDGET_SHARE, window)
    if limit < BLOCK_PAGES:
        return 1
    size = BLOCK_PAGES
    while size * GROWTH <= limit and _has_neighbours(mapping, index, size):
        size *= GROWTH
    return size


def reads_around(mapping: AddressSpace, index: int) -> bool:
    """Note a miss of page `index`; whether others are likely to follow around it."""
    outer = index // (GROWTH * BLOCK_PAGES) * GROWTH * BLOCK_PAGES
    is_near = mapping.extra.locality.note(index)
    return is_near or mapping.cachestat(outer, outer + GROWTH * BLOCK_PAGES - 1)[0] * DENSE_PART >= GROWTH * BLOCK_PAGES


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
