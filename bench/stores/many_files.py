"""Many files open at once, each read in order in turn, under a budget that gives each of them a few pages.

    python -m bench stores.many_files [--files 1000] [--budget 64MiB] [--file-size 1MiB] [--read 4096] [--json]

The ideal: every page is fetched once, in requests of a file's share of what windows may hold together (a quarter of the
budget, as readahead/window.py says), or of one read, if that is larger. Memory is that of the process beyond what it had
with all files open and nothing read; the frames are a part of it.
"""

import argparse
import json
import time
from pathlib import Path

import pagecache
from pagecache.readahead.window import BUDGET_SHARE, MIN_WINDOW_PAGES
from pagecache.units import parse_size

PAGE_SIZE = 4096


class CountedStore:
    """One object whose bytes tell their place; counts requests and bytes."""

    latency = "device"
    preferred_request = 128 * 1024
    max_request = 16 * 1024 * 1024
    parallel_requests = 8

    def __init__(self, key: str, nbytes: int):
        self.key, self.nbytes = key, nbytes
        self.nr_requests = self.nr_bytes = 0

    def size(self) -> int:
        return self.nbytes

    def validator(self) -> str:
        return "1"

    def readv(self, offset: int, buffers) -> int:
        self.nr_requests += 1
        done = 0
        for buffer in buffers:
            for start in range(0, len(buffer), PAGE_SIZE):
                buffer[start : start + 8] = (offset + done + start).to_bytes(8, "little")
            done += len(buffer)
        self.nr_bytes += done
        return done

    def close(self) -> None:
        """Nothing is held."""


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


def measure(nr_files: int, budget: int, file_bytes: int, read_bytes: int) -> dict[str, float]:
    """Read all files in turn; return what it took."""
    window = max(MIN_WINDOW_PAGES, budget // PAGE_SIZE // BUDGET_SHARE // nr_files) * PAGE_SIZE
    ideal = nr_files * -(-file_bytes // max(window, read_bytes))
    stores = [CountedStore(f"file-{number}", file_bytes) for number in range(nr_files)]
    with pagecache.PageCache(budget) as cache:
        files = [cache.open(store) for store in stores]
        before = most = resident_bytes()
        started = time.perf_counter()
        for offset in range(0, file_bytes, read_bytes):
            for file in files:
                data = file.pread(read_bytes, offset)
                if int.from_bytes(data[:8], "little") != offset:
                    raise AssertionError(f"wrong bytes at offset {offset}")
            most = max(most, resident_bytes())
        seconds = time.perf_counter() - started
        refaults = cache.stats().workingset_refault_file
    requests, fetched = sum(s.nr_requests for s in stores), sum(s.nr_bytes for s in stores)
    return {
        "read_bytes": read_bytes,
        "ideal_requests": ideal,
        "requests": requests,
        "requests_ratio": requests / ideal,
        "fetched_ratio": fetched / (nr_files * file_bytes),
        "refaults": refaults,
        "memory_mib": (most - before) / 2**20,
        "budget_mib": budget / 2**20,
        "mib_s": nr_files * file_bytes / seconds / 2**20,
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--budget", default="64MiB")
    parser.add_argument("--file-size", default="1MiB")
    parser.add_argument("--read", type=int, nargs="*", default=[4096, 131072])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = parse_size(options.budget), parse_size(options.file_size)
    rows = [measure(options.files, *sizes, nbytes) for nbytes in options.read]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("| read at a time | requests | of the ideal | fetched / file bytes | memory MiB | budget MiB | MiB/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['read_bytes']} | {row['requests']} | {row['requests_ratio']:.2f} | {row['fetched_ratio']:.3f} "
            f"| {row['memory_mib']:.1f} | {row['budget_mib']:.0f} | {row['mib_s']:.0f} |"
        )


if __name__ == "__main__":
    main()
