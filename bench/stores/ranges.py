"""Cold random ranges of a file past the kernel's cache: all in one call, by io_uring and by threads, and one by one.

    python -m bench stores.ranges [--size 1GiB] [--ranges 1000] [--rounds 7] [--directory DIR] [--json]

The sides take turns and read other pages in every round, which are cold: the file is opened with O_DIRECT, and the
cache is emptied before.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import pagecache
from bench.stores.scan_direct import make_file
from pagecache.units import parse_size

RANGE_BYTES = 4096
SIDES = ("one by one, io=auto", "in one call, io=io_uring", "in one call, io=threads")


def measure(file: pagecache.File, ranges: list[tuple[int, int]], together: bool) -> float:
    """Return the seconds it takes to read the ranges from a cold cache."""
    file.cache.drop_caches()
    started = time.perf_counter()
    if together:
        data = file.preadv_many(ranges, hole_size=0)
    else:
        data = [file.pread(nbytes, offset) for nbytes, offset in ranges]
    seconds = time.perf_counter() - started
    if [len(piece) for piece in data] != [RANGE_BYTES] * len(ranges):
        raise AssertionError("a range is too short")
    return seconds


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--ranges", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", help="where the file is made; a disk, not tmpfs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nbytes, generator = parse_size(options.size), random.Random(1)
    sides: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "data"
        make_file(path, nbytes)
        caches = {name: pagecache.PageCache("64MiB", io=name.split("io=")[1]) for name in sides}
        files = {name: cache.open(path, direct=True) for name, cache in caches.items()}
        for number in range(options.rounds + 1):
            turn = number % len(sides)
            for name in [*sides][turn:] + [*sides][:turn]:
                pages = generator.sample(range(nbytes // RANGE_BYTES), options.ranges)
                ranges = [(RANGE_BYTES, page * RANGE_BYTES) for page in pages]
                seconds = measure(files[name], ranges, name.startswith("in one call"))
                if number:
                    sides[name].append(seconds)
        for cache in caches.values():
            cache.close()
    if options.json:
        print(json.dumps(sides, indent=1))
        return
    base = statistics.median(sides[SIDES[0]])
    print("| way | best ms | median ms | median of one by one |\n|---|--:|--:|--:|")
    for name, seconds in sides.items():
        median = statistics.median(seconds)
        print(f"| {name} | {min(seconds) * 1000:.1f} | {median * 1000:.1f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
