"""A cold sequential scan past the kernel's cache: ours against fio and against the kernel's own buffered read.

    python -m bench stores.scan_direct [--size 1GiB] [--rounds 5] [--cache 256MiB] [--directory DIR] [--json]

fio reads 1 MiB at queue depth 8; ours reads 128 KiB at a time in a plain loop, and the kernel is asked for the same,
with the file dropped from its cache before. All take turns in rotated order: disks here have a burst budget. The caches
are made once and are smaller than the file, so that reclaim is a part of what is measured.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pagecache
from pagecache.units import parse_size

READ_BYTES = 128 * 1024
OURS = {
    "io=auto": {},
    "io=io_uring": {"io": "io_uring"},
    "io=threads": {"io": "threads"},
    "io_uring, registered": {"io": "io_uring", "register_frames": True},
}


def make_file(path: Path, nbytes: int) -> None:
    """Write a file of random bytes, to the disk."""
    block = os.urandom(1 << 24)
    with path.open("wb") as file:
        for start in range(0, nbytes, len(block)):
            file.write(block[: nbytes - start])
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path) -> None:
    """Take the file out of the kernel's cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def by_fio(path: Path, nbytes: int) -> float:
    """Return the bytes per second that fio reports."""
    command = [
        "fio", "--name=scan", f"--filename={path}", "--rw=read", "--bs=1M", "--iodepth=8", "--ioengine=io_uring",
        "--direct=1", f"--size={nbytes}", "--readonly", "--output-format=json",
    ]  # fmt: skip
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(report[report.index("{") :])["jobs"][0]["read"]["bw_bytes"]


def by_kernel(path: Path, nbytes: int) -> float:
    """Return the bytes per second of buffered reads of the cold file."""
    buffer = bytearray(READ_BYTES)
    fd = os.open(path, os.O_RDONLY)
    started = time.perf_counter()
    while os.readv(fd, [buffer]):
        pass
    seconds = time.perf_counter() - started
    os.close(fd)
    return nbytes / seconds


def by_us(cache: pagecache.PageCache) -> Callable[[Path, int], float]:
    """Return a function that scans through a cache."""

    def scan(path: Path, nbytes: int) -> float:
        cache.drop_caches()
        buffer = bytearray(READ_BYTES)
        with cache.open(path, direct=True) as file:
            started = time.perf_counter()
            while file.readinto(buffer):
                pass
            return nbytes / (time.perf_counter() - started)

    return scan


def measure(path: Path, nbytes: int, rounds: int, cache_size: str) -> dict[str, list[float]]:
    """Return the bytes per second of each client in each round; one round more goes before, unmeasured."""
    clients: dict[str, Callable[[Path, int], float]] = {"kernel, buffered": by_kernel}
    if shutil.which("fio"):
        clients["fio"] = by_fio
    caches = {name: pagecache.PageCache(cache_size, **options) for name, options in OURS.items()}
    clients |= {f"pagecache {name}": by_us(cache) for name, cache in caches.items()}
    names, results = list(clients), {name: [] for name in clients}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            drop(path)
            speed = clients[name](path, nbytes)
            if number:
                results[name].append(speed)
    for cache in caches.values():
        cache.close()
    return results


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", default="256MiB")
    parser.add_argument("--directory", help="where the file is made; a disk, not tmpfs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path, nbytes = Path(directory) / "data", parse_size(options.size)
        make_file(path, nbytes)
        results = measure(path, nbytes, options.rounds, options.cache)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    base = statistics.median(results["fio"]) if "fio" in results else 0.0
    print("| client | best MiB/s | median MiB/s | median of fio's |\n|---|--:|--:|--:|")
    for name, speeds in results.items():
        median = statistics.median(speeds)
        ratio = f"{median / base:.2f}" if base else "-"
        print(f"| {name} | {max(speeds) / 2**20:.0f} | {median / 2**20:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
