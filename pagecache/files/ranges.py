"""Many ranges in one call: the missing pages of all of them are found first, joined, and fetched in parallel.

Two ranges are joined where reading what lies between them costs less than another request. For a far store that is a gap
of up to latency x bandwidth (the rule of Arrow's `CacheOptions.MakeFromNetworkMetrics`), as long as no more is thrown away
than is wanted; for any other, 64 KiB.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from pagecache.requests import submit
from pagecache.requests.backing import BackedMapping
from pagecache.units import PAGE_SHIFT

HOLE_SIZE = 64 * 1024  # bytes; a cached or unwanted gap up to this size is read through in any case


def missing_runs(
    mapping: BackedMapping, ranges: Sequence[tuple[int, int]], hole_size: int | None = None
) -> list[tuple[int, int]]:
    """Return the runs of pages (first, last) that ranges of (offset, nbytes) lack: in order, joined over holes.

    hole_size: bytes; None: as is worth it for the store.
    """
    pages = sorted(
        (offset >> PAGE_SHIFT, (min(offset + nbytes, mapping.size) - 1) >> PAGE_SHIFT)
        for offset, nbytes in ranges
        if nbytes > 0 and offset < mapping.size
    )
    holes = _Holes(mapping, hole_size)
    runs: list[tuple[int, int]] = []
    for first, last in pages:
        while first <= last:
            first = first + _nr_cached(mapping, first, last)
            if first > last:
                break
            gap_end = _gap_end(mapping, first, last)
            if runs and holes.joins(first - runs[-1][1] - 1, gap_end - first + 1):
                runs[-1] = (runs[-1][0], max(runs[-1][1], gap_end))
            else:
                holes.begin(gap_end - first + 1)
                runs.append((first, gap_end))
            first = gap_end + 1
    return runs


class _Holes:
    """Which holes are read through. All sizes are pages."""

    def __init__(self, mapping: BackedMapping, hole_size: int | None):
        self._always = (HOLE_SIZE if hole_size is None else hole_size) >> PAGE_SHIFT
        backing = mapping.backing
        is_worth_more = hole_size is None and mapping.fd < 0 and backing.is_far()
        self._worth = int(backing.speed.in_flight_bytes) >> PAGE_SHIFT if is_worth_more else 0
        self._most = backing.hints.max_request >> PAGE_SHIFT
        self._wanted = self._thrown_away = 0

    def begin(self, nr_pages: int) -> None:
        """Begin a run with so many pages that are wanted."""
        self._wanted, self._thrown_away = nr_pages, 0

    def joins(self, hole: int, nr_pages: int) -> bool:
        """Whether so many more pages that are wanted, behind a hole, belong to the run; then they do."""
        hole = max(0, hole)
        wanted, thrown_away = self._wanted + nr_pages, self._thrown_away + hole
        if hole > self._always and not (
            hole <= self._worth and thrown_away <= wanted and wanted + thrown_away <= self._most
        ):
            return False
        self._wanted, self._thrown_away = wanted, thrown_away
        return True


def _nr_cached(mapping: BackedMapping, first: int, last: int) -> int:
    return mapping.next_gap(first, last - first + 1) - first


def _gap_end(mapping: BackedMapping, first: int, last: int) -> int:
    """Return the last page of the gap that begins at `first`."""
    return min(last, mapping.next_present(first, last) - 1)


def fetch(mapping: BackedMapping, runs: Sequence[tuple[int, int]]) -> None:
    """Start reading runs of pages; the copy of the bytes waits for them, and reports the errors."""
    step = max(1, mapping.backing.request_bytes() >> PAGE_SHIFT)
    if runs and mapping.backing.reads_whole(mapping):
        step = -(-mapping.size >> PAGE_SHIFT)
        runs = [(0, step - 1)]
    with mapping.shared():
        if mapping.fd < 0:
            for request in submit.requests_for(mapping, runs, step, demanded=True):
                submit.submit_request(mapping, request)
            return
        for first, last in runs:
            for start in range(first, last + 1, step):
                end = min(start + step - 1, last)
                for batch in submit.missing_batches(mapping, start, end, demand_end=end + 1):
                    submit.read_in_background(mapping, batch, step)


def _nr_pages(runs: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in runs)


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


class ReadFile(Protocol):
    """What reading many ranges needs to know of an open file: a `File`."""

    @property
    def mapping(self) -> BackedMapping:
        """The cached pages of its object."""
        ...

    def pread(self, nbytes: int, offset: int, /) -> bytes:
        """Read a range."""
        ...


def read_many(file: ReadFile, ranges: Sequence[tuple[int, int]], hole_size: int | None) -> list[bytes]:
    """Return the bytes of each (offset, nbytes), in order: in groups that fit into half of the cache.

    hole_size: bytes; None: as is worth it for the store. Raises ValueError for negative numbers, OSError.
    """
    if hole_size is not None and hole_size < 0:
        raise ValueError(f"hole_size must not be negative, not {hole_size}")
    for offset, nbytes in ranges:
        if offset < 0 or nbytes < 0:
            raise ValueError(f"range ({offset}, {nbytes}) is negative")
    mapping = file.mapping
    out: list[bytes] = []
    budget = mapping.segment.nr_frames // 2
    for group in groups_of(ranges, budget):
        runs = missing_runs(mapping, group, hole_size) if len(group) > 1 else []
        if hole_size is None and _nr_pages(runs) > budget:
            runs = missing_runs(mapping, group, 0)
        if _nr_pages(runs) <= budget:
            fetch(mapping, runs)
        out += [file.pread(nbytes, offset) for offset, nbytes in group]
    return out
