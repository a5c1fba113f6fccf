"""Issuing reads: what a reader waits for is read by the reader itself, the rest of a window in the background.

A window larger than one request is cut into requests that run in parallel.  Stores with a descriptor are served by the
engine's own threads or io_uring, without the GIL; stores written in Python by the shared workers, at most
`parallel_requests` at once for each object.
"""

import time
import weakref
from collections.abc import Iterator
from typing import Any

from pagecache import fill
from pagecache._core import AddressSpace, FolioBatch
from pagecache.stores.base import StoreHints
from pagecache.window import StoreSpeed, is_far, request_bytes
from pagecache.workers import Channel

PAGE_SHIFT = 12
EEXIST, ENOSPC = -17, -28  # why a batch ended: a page is there already; the batch is full


class Line:
    """What reading one object needs to know: its store's hints, its speed so far, its channel to the workers."""

    def __init__(self, hints: StoreHints, channel: Channel):
        self.hints = hints
        self.channel = channel
        self.speed = StoreSpeed()
        self.prefetches: weakref.WeakSet[Any] = weakref.WeakSet()  # those that are not done
        self.is_crowded = False  # whether the budget, not the store, limits windows now

    def request_bytes(self) -> int:
        """Return how much one request should carry (bytes)."""
        return request_bytes(self.hints, self.speed)

    def request_pages(self, nr_pages: int) -> int:
        """Return how many pages of a run one request should carry: a far store's connections share a short run."""
        if not is_far(self.hints, self.speed):
            return max(1, self.request_bytes() >> PAGE_SHIFT)
        nr_requests = self.hints.readahead_requests or self.hints.parallel_requests
        part = max(-(-nr_pages // nr_requests), self.hints.preferred_request >> PAGE_SHIFT)
        return max(1, min(part, self.request_bytes() >> PAGE_SHIFT))


def missing_batches(
    mapping: AddressSpace,
    start: int,
    last: int,
    order: int = 0,
    mark: int = -1,
    demand_end: int = 0,
    dropbehind: bool = False,
) -> Iterator[FolioBatch]:
    """Iterate over new batches for the pages start..last (inclusive) that are not cached; ends early without memory, and
    at the end of the file.

    Each batch has to be read, or it is taken out again. Context: invalidate_lock held shared.
    """
    last = min(last, -(-mapping.size >> PAGE_SHIFT) - 1)
    wanted_order = order
    while start <= last:
        batch = mapping.new_batch(start)
        result = batch.extend(last, order, mark, demand_end, dropbehind)
        start = batch.next_index
        if len(batch):
            yield batch
        if result == EEXIST:
            is_missing = mapping.next_gap(start, 1) == start  # the folio was too large for the hole
            order = 0 if is_missing else wanted_order
            start += 0 if is_missing and wanted_order else 1
        elif result not in (0, ENOSPC):
            return


def read_pages(mapping: AddressSpace, batch: FolioBatch, demand_end: int, background: bool = False) -> None:
    """Read a new batch: its first request in the calling thread, what is larger than one in the background.

    demand_end: pages below it were asked for. background: nobody waits for any of it.

    If a request fails, pages that were asked for are asked for once more by themselves, so that a bad page nobody asked
    for spoils nothing; those that were not leave the cache, and the error is only counted.
    Raises OSError for pages that were asked for. Context: invalidate_lock held shared.
    """
    if len(batch) == 0:
        return
    if background:
        read_in_background(mapping, batch)
        return
    per_request = mapping.extra.request_pages(batch.nr_pages)
    if batch.nr_pages > per_request:
        tail = batch.split_off(batch.start + per_request)
        if len(tail):
            read_in_background(mapping, tail)
    start, end = batch.start, batch.next_index
    try:
        read_now(mapping, batch)
    except OSError as error:
        mapping.segment.add_count("readahead_errors", 1)
        if end <= demand_end:
            batch.fail(error)
            raise
        batch.release()
        _read_demanded(mapping, start, demand_end)
    except BaseException:
        batch.release()
        raise


def _read_demanded(mapping: AddressSpace, start: int, demand_end: int) -> None:
    """Read pages start..demand_end - 1 after the window around them failed."""
    last = min(demand_end, -(-mapping.size >> PAGE_SHIFT)) - 1
    for batch in missing_batches(mapping, start, last, demand_end=demand_end):
        read_pages(mapping, batch, batch.next_index)


def read_now(mapping: AddressSpace, batch: FolioBatch, urgent: bool = True) -> None:
    """Read a batch in the calling thread. Raises OSError; then the batch is as before.

    urgent: somebody waits for it, so it goes before readahead.
    """
    if mapping.fd >= 0:
        fill.read_run(mapping, batch)
        return
    with mapping.extra.channel.place(urgent):
        read_timed(mapping, batch)


def read_timed(mapping: AddressSpace, batch: FolioBatch) -> None:
    """Read a batch from a Python store and note how long it took."""
    nbytes = batch.data_bytes()
    started = time.perf_counter()
    fill.read_run(mapping, batch)
    mapping.extra.speed.observe(nbytes, time.perf_counter() - started)


def read_in_background(mapping: AddressSpace, batch: FolioBatch, per_request: int = 0) -> None:
    """Start reading a batch nobody waits for. Errors are only counted; whoever needs such a page reads it again.

    per_request: pages; 0: as many as fit the store.
    """
    if mapping.fd >= 0:
        batch.submit(mapping.fd, mapping.direct, per_request << PAGE_SHIFT or mapping.extra.request_bytes())
        return
    per_request = per_request or mapping.extra.request_pages(batch.nr_pages)
    while len(batch):
        rest = batch.split_off(batch.start + per_request)
        _submit_task(mapping, batch)
        batch = rest


def _submit_task(mapping: AddressSpace, batch: FolioBatch) -> None:
    def task() -> None:
        try:
            read_timed(mapping, batch)
        except BaseException:  # a worker has nobody to raise to: waiters read for themselves and see their own error
            mapping.segment.add_count("readahead_errors", 1)
        finally:
            batch.release()

    mapping.extra.channel.submit(task)
