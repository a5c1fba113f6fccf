"""The goals of speed as one table: our time over another's for the same work, the two sides taking turns.

Both sides run plain `for` loops over the same offsets in the same process. A row gives the best and the median round
of each side, the ratio of both, and the goal that the ratio is held against.
"""

import argparse
import io
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pagecache
from bench.common import workload
from bench.common.workload import FILE_BYTES, KIB, MIB, MISSES, PAGE_BYTES, random_offsets, read_count

ROUNDS_MIN = 7
LINE_BYTES = 100
LINES = 200_000

Loop = Callable[[], None]


@dataclass
class Work:
    """One row to measure: two loops that do the same, and what their ratio should be."""

    name: str
    against: str
    goal: float
    reads: int
    ours: Loop
    theirs: Loop
    before_ours: Loop = lambda: None


@dataclass
class Row:
    """One measured row: nanoseconds of one read, best and median."""

    work: Work
    ours_ns: tuple[float, float]
    theirs_ns: tuple[float, float]

    @property
    def ratios(self) -> tuple[float, float]:
        """Ours over theirs, of the best rounds and of the medians."""
        return self.ours_ns[0] / self.theirs_ns[0], self.ours_ns[1] / self.theirs_ns[1]


class Bench:
    """The file under all the ways of reading it that are compared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = io.FileIO(path)
        self.descriptor = self.plain.fileno()
        self.mapping = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)
        self.memory = memoryview(self.mapping)
        for offset in range(0, FILE_BYTES, PAGE_BYTES):
            self.mapping[offset]

    def close(self) -> None:
        """Let go of the file."""
        self.memory.release()
        self.mapping.close()
        self.plain.close()

    def pread_and_slice(self, file: pagecache.File, nbytes: int) -> tuple[Loop, Loop, int]:
        """Return loops of `pread(nbytes)` and of slicing the mapping, and how many reads they make."""
        offsets = random_offsets(nbytes, read_count(nbytes))
        pread, mapping = file.pread, self.mapping

        def ours() -> None:
            for offset in offsets:
                pread(nbytes, offset)

        def theirs() -> None:
            for offset in offsets:
                mapping[offset : offset + nbytes]

        return ours, theirs, len(offsets)

    def pread_and_os_pread(self, file: pagecache.File, nbytes: int) -> tuple[Loop, Loop, int]:
        """Return loops of `pread(nbytes)` and of `os.pread`, and how many reads they make."""
        offsets = random_offsets(nbytes, read_count(nbytes))
        pread, os_pread, descriptor = file.pread, os.pread, self.descriptor

        def ours() -> None:
            for offset in offsets:
                pread(nbytes, offset)

        def theirs() -> None:
            for offset in offsets:
                os_pread(descriptor, nbytes, offset)

        return ours, theirs, len(offsets)

    def preadinto_and_preadv(self, file: pagecache.File) -> tuple[Loop, Loop, int]:
        """Return loops of `preadinto` and `os.preadv` of a page, and how many reads they make."""
        offsets = random_offsets(PAGE_BYTES)
        buffer = bytearray(PAGE_BYTES)
        buffers = [buffer]
        preadinto, preadv, descriptor = file.preadinto, os.preadv, self.descriptor

        def ours() -> None:
            for offset in offsets:
                preadinto(buffer, offset)

        def theirs() -> None:
            for offset in offsets:
                preadv(descriptor, buffers, offset)

        return ours, theirs, len(offsets)

    def view_and_memoryview(self, file: pagecache.File) -> tuple[Loop, Loop, int]:
        """Return loops of `view` of a page and of slicing a memoryview, and how many reads they make."""
        offsets = random_offsets(PAGE_BYTES)
        view, memory = file.view, self.memory

        def ours() -> None:
            for offset in offsets:
                view(PAGE_BYTES, offset)

        def theirs() -> None:
            for offset in offsets:
                memory[offset : offset + PAGE_BYTES]

        return ours, theirs, len(offsets)

    def lines(self, file: pagecache.File) -> tuple[Loop, Loop, int]:
        """Return loops of short reads in order, ours and io.BufferedReader's, and how many reads they make."""
        reader = io.BufferedReader(self.plain)

        def ours() -> None:
            read = file.read
            file.seek(0)
            for _ in range(LINES):
                read(LINE_BYTES)

        def theirs() -> None:
            read = reader.read
            reader.seek(0)
            for _ in range(LINES):
                read(LINE_BYTES)

        return ours, theirs, LINES


def hot_works(bench: Bench, file: pagecache.File, folios: str) -> Iterator[Work]:
    """Yield the works on a wholly cached file; goals are for large folios and for small ones."""
    large = folios == "large"
    for nbytes, slice_goal, pread_goal in ((64, 0.9 if large else 1.25, 0.4 if large else 0.55),
                                           (4 * KIB, 0.8 if large else 1.0, 0.45 if large else 0.6)):  # fmt: skip
        name = f"pread({nbytes}), {folios}"
        yield work(name, "slicing mmap", slice_goal, bench.pread_and_slice(file, nbytes))
        yield work(name, "os.pread", pread_goal, bench.pread_and_os_pread(file, nbytes))
    for nbytes in (64 * KIB, MIB):
        name = f"pread({nbytes}), {folios}"
        yield work(name, "slicing mmap", 0.95 if large else 1.5, bench.pread_and_slice(file, nbytes))
    yield work(f"preadinto(4096), {folios}", "os.preadv", 0.45 if large else 0.6, bench.preadinto_and_preadv(file))
    yield work(f"view(4096), {folios}", "slicing memoryview", 2.0 if large else 5.0, bench.view_and_memoryview(file))
    if large:
        yield work("read(100) in order", "io.BufferedReader", 0.8, bench.lines(file))


def cold_work(bench: Bench, cache: pagecache.PageCache, file: pagecache.File) -> Work:
    """Return the work of reading pages that are in the kernel's cache and not in ours."""
    offsets = workload.shuffled_pages(FILE_BYTES, seed=5)[:MISSES]
    pread, os_pread, descriptor = file.pread, os.pread, bench.descriptor

    def ours() -> None:
        for offset in offsets:
            pread(PAGE_BYTES, offset)

    def theirs() -> None:
        for offset in offsets:
            os_pread(descriptor, PAGE_BYTES, offset)

    return Work("cold pread(4096) at random", "os.pread", 5.0, len(offsets), ours, theirs, cache.drop_caches)


def work(name: str, against: str, goal: float, loops: tuple[Loop, Loop, int]) -> Work:
    """Return a row to measure."""
    ours, theirs, reads = loops
    return Work(name, against, goal, reads, ours, theirs)


def measured(each: Work, rounds: int) -> Row:
    """Time both sides of a row in turns, after one round of each that does not count."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + 1):
        each.before_ours()
        turns = [(each.ours, ours), (each.theirs, theirs)]
        for loop, times in turns if number % 2 else reversed(turns):
            start = time.perf_counter_ns()
            loop()
            times.append((time.perf_counter_ns() - start) / each.reads)
    summary = [(min(times[1:]), statistics.median(times[1:])) for times in (ours, theirs)]
    return Row(each, *summary)


def measure_all(path: Path, rounds: int) -> tuple[list[Row], float]:
    """Measure every row on the file at `path`; return them and the cache's memory beyond the cached bytes (a share)."""
    bench = Bench(path)
    rows = []
    for folios in workload.FOLIOS:
        with pagecache.PageCache(workload.CACHE_BYTES) as cache, workload.open_cached(cache, path, folios) as file:
            for each in hot_works(bench, file, folios):
                progress(each)
                rows.append(measured(each, rounds))
            stats = cache.stats()
            overhead = stats.overhead_bytes / stats.resident_bytes
    with pagecache.PageCache(2 * MISSES * PAGE_BYTES) as cache, cache.open(path, "rb") as file:
        file.fadvise(pagecache.FADV_RANDOM)
        each = cold_work(bench, cache, file)
        progress(each)
        rows.append(measured(each, rounds))
    bench.close()
    return rows, overhead


def progress(each: Work) -> None:
    """Say on a terminal which row is being measured."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{each.name} against {each.against}", end="\r", file=sys.stderr, flush=True)


def table(rows: list[Row], overhead: float) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| work | ns, best | ns, median | against | ns, best | ns, median | ratio, best | ratio, median | goal | met |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        best, median = row.ratios
        lines.append(
            f"| {row.work.name} | {row.ours_ns[0]:,.0f} | {row.ours_ns[1]:,.0f} | {row.work.against} "
            f"| {row.theirs_ns[0]:,.0f} | {row.theirs_ns[1]:,.0f} | {best:.2f} | {median:.2f} "
            f"| {row.work.goal:.2f} | {'yes' if median <= row.work.goal else 'no'} |"
        )
    met = "yes" if overhead <= 0.018 else "no"
    lines.append(f"| memory beyond the cached bytes, small | | | cached bytes | | | {overhead:.2%} | | 1.80% | {met} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help=f"rounds of each row, at least {ROUNDS_MIN}")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        path = workload.make_file(Path(directory))
        print(table(*measure_all(path, max(arguments.rounds, ROUNDS_MIN))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
