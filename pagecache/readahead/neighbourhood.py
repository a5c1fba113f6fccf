"""How much to read around a miss that is not part of a stream, where waiting costs more than bytes.

A far store takes hardly longer for 256 KiB than for one page, so a miss of a few pages reads the aligned block around it,
if the object's latest misses lay close together, or an eighth of the pages around is cached: reads at random over a large
object fetch just what is asked for.  Where other pages near by are cached, a reader walks over the object in small steps:
as long as the block four times as large holds cached pages besides this one, that larger block is read instead, up to the
largest request. So a dense walk soon reads in large pieces, and scattered reads stay small.

An object that is *small* need not be guessed at. With `free` = latency x bandwidth, the bytes whose transfer takes as long
as one request waits, each miss may read around as many: nothing takes more than twice the time then, whatever is read
afterwards.  So misses earn `free` each, and a miss reads the largest aligned block that has been earned and not spent, and
all of the object as soon as that will do, but nothing more by the rules above.  Where bandwidth is not known, one miss
reads 1 MiB to measure it.  Small are objects of up to 64 MiB and a sixteenth of the cache; about larger ones the promise
above holds.

All sizes here are pages.
"""


from pagecache.requests.backing import BackedMapping, Backing
from pagecache.requests.speed import PROBE_PAGES, TRUSTED_GROWTH
from pagecache.units import PAGE_SHIFT

BLOCK_PAGES = 64
SMALL_REQUEST = 8  # a reader that asks for more than this knows what there is, and gets just that
GROWTH = 4
DENSE_PART = 8  # where an eighth of the pages around is cached, misses will follow
BUDGET_SHARE = 64  # a block is at most so small a part of the cache
SMALL_OBJECT = 16384  # no larger object is small
SMALL_SHARE = 16  # nor one that is a larger part of the cache


def block_pages(mapping: BackedMapping, index: int, req: int, window: int) -> int:
    """Return the size of the aligned block to read around page `index`, where `req` pages are wanted; 1 where just those
    should be read: because they are many, the store is near, or memory is short.

    window: the largest window of the open file, which is its share of the budget.
    """
    backing = mapping.backing
    if req > SMALL_REQUEST or not backing.is_far():
        return 1
    limit = min(backing.request_bytes() >> PAGE_SHIFT, mapping.segment.nr_frames // BUDGET_SHARE, window)
    if limit < BLOCK_PAGES:
        return 1
    size = BLOCK_PAGES
    while size * GROWTH <= limit and _has_neighbours(mapping, index, size):
        size *= GROWTH
    return size


def reads_around(mapping: BackedMapping, index: int) -> bool:
    """Note a miss of page `index`; whether others are likely to follow around it."""
    outer = index // (GROWTH * BLOCK_PAGES) * GROWTH * BLOCK_PAGES
    is_near = mapping.backing.locality.note(index)
    return is_near or mapping.cachestat(outer, outer + GROWTH * BLOCK_PAGES - 1)[0] * DENSE_PART >= GROWTH * BLOCK_PAGES


def _has_neighbours(mapping: BackedMapping, index: int, size: int) -> bool:
    """Whether the block GROWTH times as large has cached pages beside the block of so many pages around `index`."""
    first, outer = index // size * size, index // (size * GROWTH) * size * GROWTH
    if first > outer and mapping.next_present(outer, first - 1) < first:
        return True
    end = outer + size * GROWTH
    return first + size < end and mapping.next_present(first + size, end - 1) < end


# -- small objects -----------------------------------------------------------------------------------------------------


def is_small(mapping: BackedMapping, window: int) -> bool:
    """Whether the object is one that misses may bring whole, as its store is far. window: as for `block_pages`."""
    if mapping.backing.hints.latency != "remote":
        return False
    limit = min(SMALL_OBJECT, mapping.segment.nr_frames // SMALL_SHARE)
    return mapping.size <= (min(limit, window) if mapping.backing.is_crowded else limit) << PAGE_SHIFT


def part_to_read(mapping: BackedMapping, index: int, req: int, window: int) -> tuple[int, int] | None:
    """Note a miss of page `index`, where `req` pages are wanted. Returns (first, end) of the pages to read if the object
    is read whole or is small and its store far; None if just those that are wanted, or by windows. window: as for
    `block_pages`."""
    if mapping.backing.reads_whole(mapping):
        return 0, -(-mapping.size >> PAGE_SHIFT)
    return _part_of_small_object(mapping, index, req) if is_small(mapping, window) else None


def _part_of_small_object(mapping: BackedMapping, index: int, req: int) -> tuple[int, int] | None:
    backing = mapping.backing
    backing.locality.nr_misses += 1
    worth = _worth_pages(backing)
    if worth == 0:
        return None
    nr_pages = -(-mapping.size >> PAGE_SHIFT)
    first, end = 0, nr_pages
    missing = nr_pages - mapping.cachestat(0, nr_pages - 1)[0]
    if worth < missing:
        size = 1 << worth.bit_length() - 1
        first = index // size * size
        end = min(max(first + size, index + req), nr_pages)
        missing = end - first - mapping.cachestat(first, end - 1)[0]
    if missing <= req:
        return None
    backing.locality.nr_read_around += missing
    return first, end


def _worth_pages(backing: Backing) -> int:
    """Return how much the misses of an object are worth reading at once, beyond what was read; 0: nothing yet."""
    if backing.locality.nr_misses < 2 or not backing.is_far():
        return 0
    known = backing.speed.largest_bytes >> PAGE_SHIFT
    if known < PROBE_PAGES // 2:
        return PROBE_PAGES
    earned = backing.locality.nr_misses * int(backing.speed.free_bytes) >> PAGE_SHIFT
    return max(0, min(earned - backing.locality.nr_read_around, TRUSTED_GROWTH * known))
