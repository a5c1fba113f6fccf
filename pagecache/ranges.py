"""Many ranges in one call: the missing pages of all of them are found first, joined, and fetched in parallel."""

import threading
from collections.abc import Sequence
from typing import Any

from pagecache import prefetch, submit
from pagecache._core import AddressSpace

PAGE_SHIFT = 12
HOLE_SIZE = 64 * 1024  # bytes; a cached or unwanted gap up to this size is read through


def missing_runs(mapping: AddressSpace, ranges: Sequence[tuple[int, int]], hole_pages: int) -> list[tuple[int, int]]:
    """Return the runs of pages (first, last) that ranges of (offset, nbytes) lack, ascending, joined over small holes."""
    pages = sorted(
        (offset >> PAGE_SHIFT, (min(offset + nbytes, mapping.size) - 1) >> PAGE_SHIFT)
        for offset, nbytes in ranges
        if nbytes > 0 and offset < mapping.size
    )
    runs: list[tuple[int, int]] = []
    for first, last in pages:
        while first <= last:
            first = first + _nr_cached(mapping, first, last)
            if first > last:
                break
            gap_end = _gap_end(mapping, first, last)
            if runs and first - runs[-1][1] - 1 <= hole_pages:
                runs[-1] = (runs[-1][0], max(runs[-1][1], gap_end))
            else:
                runs.append((first, gap_end))
            first = gap_end + 1
    return runs


def _nr_cached(mapping: AddressSpace, first: int, last: int) -> int:
    return mapping.next_gap(first, last - first + 1) - first


def _gap_end(mapping: AddressSpace, first: int, last: int) -> int:
    """Return the last page of the gap that begins at `first`."""
    return min(last, mapping.next_present(first, last) - 1)


def fetch(mapping: AddressSpace, runs: Sequence[tuple[int, int]]) -> None:
    """Read runs of pages in parallel and wait for them. Errors are left to whoever reads the bytes."""
    step = max(1, mapping.extra.request_bytes() >> PAGE_SHIFT)
    pieces = [
        (start, min(start + step - 1, last)) for first, last in runs for start in range(first, last + 1, step)
    ]
    if mapping.fd >= 0:
        _fetch_by_engine(mapping, pieces)
    elif len(pieces) == 1:
        return
    else:
        _fetch_by_workers(mapping, pieces)


def _fetch_by_engine(mapping: AddressSpace, pieces: Sequence[tuple[int, int]]) -> None:
    """Start all reads; the copies that follow wait for the folios they need."""
    with mapping.shared():
        for first, last in pieces:
            for batch in submit.missing_batches(mapping, first, last, demand_end=last + 1):
                batch.submit(mapping.fd, mapping.direct, (last - first + 1) << PAGE_SHIFT)


def _fetch_by_workers(mapping: AddressSpace, pieces: Sequence[tuple[int, int]]) -> None:
    left = threading.Semaphore(0)

    def task(first: int, last: int) -> None:
        try:
            prefetch.read_missing(mapping, first, last)
        except BaseException:  # whoever reads these bytes asks again and sees the error
            mapping.segment.add_count("readahead_errors", 1)
        finally:
            left.release()

    for first, last in pieces:
        mapping.extra.channel.submit(lambda first=first, last=last: task(first, last))
    for _ in pieces:
        while not left.acquire(timeout=0.05):
            pass


def read_many(file: Any, ranges: Sequence[tuple[int, int]], hole_size: int) -> list[bytes]:
    """Return the bytes of each (offset, nbytes), in order."""
    for offset, nbytes in ranges:
        if offset < 0 or nbytes < 0:
            raise ValueError(f"range ({offset}, {nbytes}) is negative")
    runs = missing_runs(file.mapping, ranges, hole_size >> PAGE_SHIFT)
    budget = file.mapping.segment.nr_frames // 2
    if runs and sum(last - first + 1 for first, last in runs) <= budget:
        fetch(file.mapping, runs)
    return [file.pread(nbytes, offset) for offset, nbytes in ranges]
