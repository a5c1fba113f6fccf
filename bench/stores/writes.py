"""Writes: into the cache, and from it to the disk.

    python -m bench stores.writes rewrite   [--size 1GiB] [--rounds 7] [--directory DIR]
    python -m bench stores.writes writeback [--size 1GiB] [--rounds 5] [--directory DIR]
    python -m bench stores.writes fsync     [--rounds 7] [--directory DIR]

rewrite: a cached file is rewritten by `pwrite`s of 64 KiB (and 4 KiB) in order, ours against os.pwrite into the kernel's
page cache; pages are clean when a round begins, and neither side may start to write back before it ends. writeback: so
much dirty data to the disk and made durable, ours against fio with the same block size. fsync: what it takes with one
dirty page in files of which ever more is cached. All take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pagecache
from pagecache.units import parse_size

MIB = 1 << 20
BLOCK = 64 * 1024
WRITEBACK_BLOCK = 2 * MIB


def make_file(path: Path, nbytes: int) -> Path:
    """Write a file of random bytes, to the disk."""
    block = os.urandom(16 * MIB)
    with path.open("wb") as file:
        for start in range(0, nbytes, len(block)):
            file.write(block[: nbytes - start])
        file.flush()
        os.fsync(file.fileno())
    return path


def large_cache(nbytes: int) -> pagecache.PageCache:
    """Return a cache that holds so many bytes, all of them dirty if need be, without starting to write."""
    return pagecache.PageCache(nbytes + nbytes // 4, dirty_limit="95%", dirty_background="94%")


def seconds(work: Callable[[], None]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(name: str, ours: list[float], theirs: list[float], nbytes: int) -> None:
    """Print best and median of both sides, and the ratio of their speeds."""
    best, median = min(theirs) / min(ours), statistics.median(theirs) / statistics.median(ours)
    speeds = [nbytes / statistics.median(side) / MIB for side in (ours, theirs)]
    print(f"{name:<44} ours {speeds[0]:7.0f} MiB/s  theirs {speeds[1]:7.0f} MiB/s  speed ratio {best:5.2f} best, "
          f"{median:5.2f} median", flush=True)  # fmt: skip


def rewrite(directory: Path, nbytes: int, rounds: int) -> None:
    """Measure rewriting a cached file."""
    path = make_file(directory / "rewrite", nbytes)
    for folios in ("large", "small"):
        with large_cache(nbytes) as cache, cache.open(path, "r+b") as file:
            if folios == "small":
                file.fadvise(pagecache.FADV_RANDOM)
            for offset in range(0, nbytes, 4096 if folios == "small" else MIB):
                file.pread(4096 if folios == "small" else MIB, offset)
            for block in (BLOCK, 4096):
                _rewrite_rounds(f"rewrite, {block // 1024} KiB, {folios} folios", file, path, nbytes, block, rounds)


def _rewrite_rounds(name: str, file: pagecache.File, path: Path, nbytes: int, block: int, rounds: int) -> None:
    data = os.urandom(block)
    ours: list[float] = []
    theirs: list[float] = []
    fd = os.open(path, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    while os.read(fd, 16 * MIB):
        pass

    def by_ours() -> None:
        pwrite = file.pwrite
        for offset in range(0, nbytes, block):
            pwrite(data, offset)

    def by_kernel() -> None:
        pwrite = os.pwrite
        for offset in range(0, nbytes, block):
            pwrite(fd, data, offset)

    sides = [(ours, by_ours, file.fsync), (theirs, by_kernel, lambda: os.fsync(fd))]
    for number in range(rounds):
        for times, work, clean in sides if number % 2 else reversed(sides):
            times.append(seconds(work))
            clean()
    os.close(fd)
    report(name, ours, theirs, nbytes)


def writeback(directory: Path, nbytes: int, rounds: int) -> None:
    """Measure write-back to the disk."""
    for direct in (False, True):
        path = make_file(directory / "ours", nbytes)
        other = make_file(directory / "fio", nbytes)
        with large_cache(nbytes) as cache, cache.open(path, "r+b", direct=direct) as file:
            times = _writeback_rounds(file, other, nbytes, rounds, direct)
        report(f"write-back, {'O_DIRECT' if direct else 'buffered'}, 2 MiB", *times, nbytes)


def _writeback_rounds(
    file: pagecache.File, other: Path, nbytes: int, rounds: int, direct: bool
) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    theirs: list[float] = []
    block = os.urandom(WRITEBACK_BLOCK)
    for number in range(rounds):
        if number % 2:
            theirs.append(by_fio(other, nbytes, direct))
        ours.append(_write_and_sync(file, block, nbytes))
        if not number % 2:
            theirs.append(by_fio(other, nbytes, direct))
    return ours, theirs


def _write_and_sync(file: pagecache.File, block: bytes, nbytes: int) -> float:
    for offset in range(0, nbytes, len(block)):
        file.pwrite(block, offset)
    return seconds(file.fsync)


def by_fio(path: Path, nbytes: int, direct: bool) -> float:
    """Return how long fio takes to rewrite a file in order and to sync it (seconds)."""
    command = [
        "fio", "--name=write", f"--filename={path}", "--rw=write", f"--bs={WRITEBACK_BLOCK}", "--ioengine=psync",
        f"--direct={int(direct)}", "--end_fsync=1", f"--size={nbytes}", "--overwrite=0", "--output-format=json",
    ]  # fmt: skip
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = json.loads(text[text.index("{") :])["jobs"][0]
    return job["job_runtime"] / 1000


class NullStore:
    """A store whose writes and syncs cost nothing, so that what is left is ours."""

    latency = "local"
    parallel_requests = 1
    writable = True

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self.key = f"null:{nbytes}"

    def size(self) -> int:
        """Return the size."""
        return self.nbytes

    def validator(self) -> str:
        """Return what never changes."""
        return "1"

    def readv(self, offset: int, buffers: list[memoryview]) -> int:
        """Bring zeros."""
        return sum(map(len, buffers))

    def writev(self, offset: int, buffers: list[memoryview]) -> int:
        """Take everything."""
        return sum(map(len, buffers))

    def truncate(self, size: int) -> None:
        """Take the size."""
        self.nbytes = size

    def sync(self, datasync: bool = False) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def fsync(directory: Path, rounds: int) -> None:
    """Measure fsync with one dirty page."""
    sizes = [16 * MIB, 128 * MIB, 1024 * MIB]
    with pagecache.PageCache(1280 * MIB) as cache:
        files = [cache.open(NullStore(nbytes), "r+b") for nbytes in sizes]
        for file, nbytes in zip(files, sizes, strict=True):
            for offset in range(0, nbytes, MIB):
                file.pread(MIB, offset)
        times: list[list[float]] = [[] for _ in sizes]
        for number in range(rounds * 100):
            for file, nbytes, taken in zip(files, sizes, times, strict=True):
                file.pwrite(b"x", number % 16 * (nbytes // 16))
                taken.append(seconds(file.fsync))
        for taken, file in zip(times, files, strict=True):
            cached = file.cachestat().nr_cache * 4096 // MIB
            print(f"fsync, 1 dirty page of {cached:5d} MiB cached: {statistics.median(taken) * 1e6:6.1f} us median")
            file.close()


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rewrite", "writeback", "fsync"))
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        if options.what == "rewrite":
            rewrite(Path(directory), parse_size(options.size), options.rounds)
        elif options.what == "writeback":
            writeback(Path(directory), parse_size(options.size), options.rounds)
        else:
            fsync(Path(directory), options.rounds)


if __name__ == "__main__":
    main()
