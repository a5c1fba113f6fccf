"""How much to read ahead: windows that fit the store and the budget.

The kernel's limit (`ra_pages`, from the store's preferred request) suits a disk behind a queue.  A store that is far
(`requests.speed`) is read by requests so large that waiting hardly counts.  To keep all connections busy while a reader
waits for the second half of a window, a window has to hold twice `parallel_requests` of them: the next one is asked for
when the first part is there. A window that has not grown so far yet is split over all connections, so that it arrives and
grows as fast as it can.

A window is also bounded by its share of the budget: all streams together may hold a quarter of the frames in windows,
so a thousand open files do not each hold one.
"""

from pagecache.requests.speed import StoreSpeed, is_far, request_bytes
from pagecache.stores.base import StoreHints
from pagecache.units import PAGE_SIZE

BUDGET_SHARE = 4  # all windows together: a quarter of the frames
MIN_WINDOW_PAGES = 4


def wanted_pages(hints: StoreHints, speed: StoreSpeed) -> int:
    """Return the window that keeps all connections of a store busy (pages)."""
    if hints.latency == "device" or is_far(hints, speed):
        return 2 * (hints.readahead_requests or hints.parallel_requests) * request_bytes(hints, speed) // PAGE_SIZE
    return hints.preferred_request // PAGE_SIZE


def share_pages(nr_frames: int, nr_streams: int) -> int:
    """Return what one of so many streams may hold in its window, of a budget of nr_frames (pages)."""
    share = nr_frames // (BUDGET_SHARE * max(1, nr_streams))
    return min(max(share, MIN_WINDOW_PAGES), nr_frames)


def window_pages(hints: StoreHints, speed: StoreSpeed, nr_frames: int, nr_streams: int) -> int:
    """Return the largest window of one stream (pages).

    nr_frames: the budget. nr_streams: files that are being read ahead of, this one included.
    """
    return max(1, min(wanted_pages(hints, speed), share_pages(nr_frames, nr_streams)))
