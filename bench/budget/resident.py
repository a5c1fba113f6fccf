"""What is resident of a cache's segment for each kind of access, as a part of its budget.

    make bench ONLY=resident ARGS="--size 256MiB"

Resident is Pss of the segment's areas in /proc/self/smaps, beside what `cache.stats().memory` says of it.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pagecache
from pagecache.units import PAGE_SIZE, format_size, parse_size

MIB = 1 << 20
FAR_BYTES = 8 << 40
PARTS = ("pages", "free", "descriptors", "nodes", "records", "tables")


class Filled:
    """A store of so many bytes that touches each page it is asked for, and nothing more."""

    background_reads = False

    def __init__(self, nbytes: int, key: str):
        self.nbytes, self.key = nbytes, key

    def size(self) -> int:
        return self.nbytes

    def validator(self) -> str:
        return "1"

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        for buffer in buffers:
            buffer[::PAGE_SIZE] = b"\1" * len(buffer[::PAGE_SIZE])
        return sum(map(len, buffers))

    def close(self) -> None:
        pass


def resident_bytes(cache: pagecache.PageCache) -> int:
    """Return the Pss of a cache's segment (bytes)."""
    first = cache.segment.base_address
    end = first + cache.segment.mapped_bytes
    total, is_inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        area = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if area:
            is_inside = first <= int(area[1], 16) and int(area[2], 16) <= end
        elif is_inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def scan(cache: pagecache.PageCache) -> None:
    """Read twice the budget in order."""
    with cache.open(Filled(2 * cache.size, f"scan{cache.size}")) as file:
        for offset in range(0, 2 * cache.size, MIB):
            file.pread(MIB, offset)


def read_far_apart(cache: pagecache.PageCache, path: Path) -> None:
    """Read single pages of a file of 8 TiB, twice as many as the budget has."""
    chooser = random.Random(1)
    with cache.open(str(path)) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        for _ in range(2 * cache.size // PAGE_SIZE):
            file.pread(1, chooser.randrange(FAR_BYTES))


def read_objects(cache: pagecache.PageCache) -> None:
    """Read objects of 10 KB, twice as many as fit."""
    for number in range(cache.size // 6144):
        with cache.open(Filled(10_000, f"object{number}")) as file:
            file.pread(10_000, 0)


def main() -> int:
    """Print the table. Returns 1 if a row is beyond 1.018."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="256MiB", help="budget (default: %(default)s)")
    size = parse_size(parser.parse_args().size)
    worst = 0.0
    with tempfile.TemporaryDirectory() as directory:
        far = Path(directory) / "far"
        with far.open("wb") as file:
            file.truncate(FAR_BYTES)
        print(f"| budget {format_size(size)}: after | resident / budget | " + " | ".join(PARTS) + " | seconds |")
        print("|---|--:|" + "--:|" * (len(PARTS) + 1))
        with pagecache.PageCache(size, max_size=2 * size) as cache:
            steps: list[tuple[str, Callable[[], None]]] = [
                ("a scan of twice the budget", lambda: scan(cache)),
                ("single pages of 8 TiB", lambda: read_far_apart(cache, far)),
                ("many objects of 10 KB", lambda: read_objects(cache)),
                ("the scan again", lambda: scan(cache)),
                ("growing to twice the budget", lambda: cache.resize(2 * size)),
                ("a scan of twice that", lambda: scan(cache)),
                ("shrinking to the budget", lambda: cache.resize(size)),
                ("shrinking to a half", lambda: cache.resize(size // 2)),
            ]
            for name, step in steps:
                started = time.perf_counter()
                step()
                seconds = time.perf_counter() - started
                ratio, memory = resident_bytes(cache) / cache.size, cache.stats().memory
                worst = max(worst, ratio)
                cells = " | ".join(f"{memory[part] / cache.size:.2%}" for part in PARTS)
                print(f"| {name} | {ratio:.4f} | {cells} | {seconds:.2f} |", flush=True)
    return int(worst > 1.018)


if __name__ == "__main__":
    sys.exit(main())
