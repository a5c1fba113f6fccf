"""Issuing reads: what a reader waits for is read by the reader itself, the rest of a window in the background.

A window larger than one request is divided into requests that run in parallel.  Stores with a descriptor are served by the
engine's own threads or io_uring, without the GIL; stores written in Python by the shared workers, at most
`parallel_requests` at once for each object.  A store without `background_reads` is read by the reader alone: first what it
waits for, then the rest.
"""

import time
from collections.abc import Iterator, Sequence

from pagecache._core import FolioBatch
from pagecache.requests import fill
from pagecache.requests.backing import BackedMapping
from pagecache.requests.filling import sharing
from pagecache.stores.abandoned import Call
from pagecache.stores.base import NoRangesError
from pagecache.units import PAGE_SHIFT

BLOCK_ORDER = 4  # folios of a block are no larger: it may be used in parts
EEXIST, ENOSPC = -17, -28  # why a batch ended: a page is there already; the batch is full


def missing_batches(
    mapping: BackedMapping,
    start: int,
    last: int,
    order: int = 0,
    mark: int = -1,
    demand_end: int = 0,
    dropbehind: bool = False,
) -> Iterator[FolioBatch]:
    """Iterate over new batches for the pages start..last (inclusive) that are not cached; ends early without memory, and
    at the end of the file. No batch crosses what no request of the store crosses.

    Each batch has to be read, or it is taken out again. Context: invalidate_lock held shared.
    """
    last = min(last, -(-mapping.size >> PAGE_SHIFT) - 1)
    backing = mapping.backing
    order = wanted_order = backing.order_of_request(order)
    while start <= last:
        batch = mapping.new_batch(start)
        result = batch.extend(backing.last_of_request(start, last), order, mark, demand_end, dropbehind)
        start = batch.next_index
        if len(batch):
            yield batch
        if result == EEXIST:
            is_missing = mapping.next_gap(start, 1) == start  # the folio was too large for the hole
            order = 0 if is_missing else wanted_order
            start += 0 if is_missing and wanted_order else 1
        elif result not in (0, ENOSPC):
            return


def read_pages(mapping: BackedMapping, batch: FolioBatch, demand_end: int, background: bool = False) -> None:
    """Read a new batch: its first request in the calling thread, what is larger than one in the background, or behind
    it where the store knows no background.

    demand_end: pages below it were asked for. background: no reader waits for any of it.

    If a request fails, pages that were asked for are asked for once more by themselves, so that a bad page no reader asked
    for spoils nothing; those that were not leave the cache, and the error is only counted.
    Raises OSError for pages that were asked for. Context: invalidate_lock held shared.
    """
    if len(batch) == 0:
        return
    if background:
        read_in_background(mapping, batch)
        return
    per_request = mapping.backing.request_pages(batch.nr_pages)
    tail = batch.split_off(batch.start + per_request) if batch.nr_pages > per_request else None
    if tail is not None and mapping.backing.hints.background_reads:
        read_in_background(mapping, tail)
        tail = None
    try:
        _read_first(mapping, batch, demand_end)
    except BaseException:
        if tail is not None:
            tail.release()
        raise
    if tail is not None:
        read_in_background(mapping, tail)


def _read_first(mapping: BackedMapping, batch: FolioBatch, demand_end: int) -> None:
    """Read the first request of a batch in the calling thread. Raises as `read_pages`."""
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


def read_block(mapping: BackedMapping, first: int, end: int, index: int, dropbehind: bool = False) -> None:
    """Read the missing pages first..end - 1, of which a reader waits for page `index`: the request that brings it is made
    by the calling thread, the others are made in the background meanwhile. Errors are only counted.

    Context: takes invalidate_lock shared.
    """
    own: list[FolioBatch] = []
    with sharing(mapping):
        per_request = mapping.backing.block_request_pages(mapping, end - first)
        try:
            for request in requests_for(mapping, [(first, end - 1)], per_request, dropbehind=dropbehind):
                if any(batch.start <= index < batch.next_index for batch in request):
                    own = request
                else:
                    submit_request(mapping, request)
            if own:
                with mapping.backing.request_queue.place(True):
                    read_timed(mapping, own)
        except OSError:
            mapping.segment.add_count("readahead_errors", 1)
        finally:
            _release(own)


def requests_for(
    mapping: BackedMapping,
    runs: Sequence[tuple[int, int]],
    per_request: int,
    *,
    demanded: bool = False,
    dropbehind: bool = False,
) -> Iterator[list[FolioBatch]]:
    """Iterate over requests for the missing pages of runs (first, last) of pages, each a list of new batches: what is
    cached already between two batches is read through, where that costs less than another request.

    per_request: most pages of one. demanded: whether all of them were asked for.
    Context: as `missing_batches`; for Python stores only.
    """
    backing = mapping.backing
    hole = backing.hole_pages()
    for first, last in runs:
        request: list[FolioBatch] = []
        demand_end = last + 1 if demanded else 0
        for batch in missing_batches(mapping, first, last, BLOCK_ORDER, demand_end=demand_end, dropbehind=dropbehind):
            while len(batch):
                room = per_request
                if request:
                    is_near = batch.start - request[-1].next_index <= hole
                    is_near = is_near and backing.last_of_request(request[0].start, batch.start) == batch.start
                    room = request[0].start + per_request - batch.start if is_near else 0
                if room < max(1, min(per_request // 2, batch.nr_pages)):
                    whole, request, room = request, [], per_request
                    yield whole
                rest = batch.split_off(batch.start + room)
                request.append(batch)
                batch = rest
        if request:
            yield request


def _release(batches: Sequence[FolioBatch]) -> None:
    for batch in batches:
        batch.release()


def _read_demanded(mapping: BackedMapping, start: int, demand_end: int) -> None:
    """Read pages start..demand_end - 1 after the window around them failed."""
    last = min(demand_end, -(-mapping.size >> PAGE_SHIFT)) - 1
    for batch in missing_batches(mapping, start, last, demand_end=demand_end):
        read_pages(mapping, batch, batch.next_index)


def read_now(mapping: BackedMapping, batch: FolioBatch, urgent: bool = True) -> None:
    """Read a batch in the calling thread. Raises OSError; then the batch is as before.

    urgent: a reader waits for it, so it goes before readahead.
    """
    if mapping.fd >= 0:
        fill.read_run(mapping, batch)
        return
    with mapping.backing.request_queue.place(urgent):
        read_timed(mapping, [batch])


def read_timed(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    """Read batches from a Python store by one request and note how long it took."""
    if mapping.backing.reads_in_order:
        _read_in_order(mapping, batches)
        return
    try:
        _read_and_observe(mapping, batches)
    except NoRangesError:
        _read_in_order(mapping, batches)


def _read_and_observe(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    nbytes = (batches[-1].start - batches[0].start << PAGE_SHIFT) + batches[-1].data_bytes()
    started = time.perf_counter()
    fill.read_runs(mapping, batches)
    mapping.backing.speed.observe(nbytes, time.perf_counter() - started)


def _read_in_order(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    """Read batches of an object that the store has to read from its beginning, and with them all else of it that is not
    cached, if it is one to be read whole."""
    before: list[FolioBatch] = []
    behind: list[FolioBatch] = []
    try:
        if mapping.backing.reads_whole(mapping):
            before += missing_batches(mapping, 0, batches[0].start - 1, BLOCK_ORDER)
            behind += missing_batches(mapping, batches[-1].next_index, -(-mapping.size >> PAGE_SHIFT) - 1, BLOCK_ORDER)
        _read_and_observe(mapping, [*before, *batches, *behind])
    finally:
        _release(before + behind)


def read_in_background(mapping: BackedMapping, batch: FolioBatch, per_request: int = 0) -> None:
    """Start reading a batch no reader waits for. Errors are only counted; a reader that needs such a page reads it again.

    per_request: pages; 0: as many as fit the store.
    Context: a store without `background_reads` is read here and now, which raises what a signal handler raises.
    """
    if mapping.fd >= 0:
        batch.submit(mapping.fd, mapping.direct, per_request << PAGE_SHIFT or mapping.backing.request_bytes())
        return
    per_request = per_request or mapping.backing.request_pages(batch.nr_pages)
    while len(batch):
        rest = batch.split_off(batch.start + per_request)
        submit_request(mapping, [batch])
        batch = rest


def submit_request(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    """Start reading new batches of a Python store by one request, as `read_in_background`."""
    if not mapping.backing.hints.background_reads:
        _read_here(mapping, batches)
        return

    call = Call(in_background=True)

    def task() -> None:
        try:
            call.run(read_timed, mapping, batches)
        except BaseException:  # a worker has no caller to raise to: waiters read for themselves and see their own error
            mapping.segment.add_count("readahead_errors", 1)
        finally:
            _release(batches)

    mapping.backing.request_queue.submit(task)


def _read_here(mapping: BackedMapping, batches: Sequence[FolioBatch]) -> None:
    """Read batches that no reader waits for in the calling thread: the store may be entered by no other one."""
    try:
        with mapping.backing.request_queue.place():
            read_timed(mapping, batches)
    except Exception:  # as in the background: a reader that needs such a page reads it again, with its own error
        mapping.segment.add_count("readahead_errors", 1)
    finally:
        _release(batches)
