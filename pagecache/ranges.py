"""Many ranges in one call: the missing pages of all of them are found first, joined, and fetched in parallel."""

from collections.abc import Iterator, Sequence
from typing import Any

from pagecache import submit
from pagecache._core import AddressSpace

PAGE_SHIFT = 12
HOLE_SIZE = 64 * 1024  # bytes; a cached or unwanted gap up to this size is read through


def missing_runs(mapping: AddressSpace, ranges: Sequence[tuple[int, int]], hole_pages: int) -> list[tuple[int, int]]:
    """Return the runs of pages (first, last) that ranges of (offset, nbytes) lack: in order, joined over holes."""
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
    """Start reading runs of pages; whoever copies the bytes waits for them, and sees the errors."""
    step = max(1, mapping.extra.request_bytes() >> PAGE_SHIFT)
    with mapping.shared():
        for first, last in runs:
            for start in range(first, last + 1, step):
                end = min(start + step - 1, last)
                for batch in submit.missing_batches(mapping, start, end, demand_end=end + 1):
                    submit.read_in_background(mapping, batch, step)


def groups_of(ranges: Sequence[tuple[int, int]], budget: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Iterate over ranges of (offset, nbytes) in groups of at most `budget` pages together, or of one range."""
    start, nr_pages = 0, 0
    for number, (offset, nbytes) in enumerate(ranges):
        pages = ((offset + nbytes - 1) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) + 1 if nbytes else 0
        if nr_pages + pages > budget and number > start:
            yield ranges[start:number]
            start, nr_pages = number, 0
        nr_pages += pages
    yield ranges[start:]


def read_many(file: Any, ranges: Sequence[tuple[int, int]], hole_size: int) -> list[bytes]:
    """Return the bytes of each (offset, nbytes), in order: in groups that fit into half of the cache.

    hole_size: bytes. Raises ValueError for negative numbers, OSError.
    """
    if hole_size < 0:
        raise ValueError(f"hole_size must not be negative, not {hole_size}")
    for offset, nbytes in ranges:
        if offset < 0 or nbytes < 0:
            raise ValueError(f"range ({offset}, {nbytes}) is negative")
    mapping, out = file.mapping, []
    budget = mapping.segment.nr_frames // 2
    for group in groups_of(ranges, budget):
        runs = missing_runs(mapping, group, hole_size >> PAGE_SHIFT) if len(group) > 1 else []
        if sum(last - first + 1 for first, last in runs) <= budget:
            fetch(mapping, runs)
        out += [file.pread(nbytes, offset) for offset, nbytes in group]
    return out
