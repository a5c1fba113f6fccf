"""How long a cached read takes, beside `os.pread` and slicing the standard library's `mmap`.

The three take turns, so that whatever else the machine does befalls all of them.
"""

import mmap
import os
import random
import statistics
import time
from dataclasses import dataclass

import pagecache

READ_BYTES = 4096
READS = 20_000
ROUNDS = 9
WARMING_PASSES_MAX = 10


@dataclass
class Timing:
    """Nanoseconds of one cached read, three ways: the median of interleaved rounds."""

    region_bytes: int
    read_bytes: int
    reads: int
    rounds: int
    misses: int
    pagecache_ns: float
    os_pread_ns: float
    mmap_ns: float


def time_cached_reads(cache: pagecache.PageCache, file: pagecache.File, path: str, nbytes: int, seed: int) -> Timing:
    """Time reads at random page offsets within the first `nbytes` of a file.

    Arguments:
        cache: the cache under `file`, for its count of misses.
        file: the file, opened in the cache.
        path: the same file, for the kernel.
        nbytes: how much of the file to read from; it must fit into the cache.
        seed: seed of the offsets.
    Returns:
        The medians, and how many of the reads missed (which should be none).
    """
    nr_pages = max(nbytes // READ_BYTES, 1)
    generator = random.Random(seed)
    offsets = [generator.randrange(nr_pages) * READ_BYTES for _ in range(READS)]
    with open(path, "rb") as plain, mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        for offset in range(0, nr_pages * READ_BYTES, READ_BYTES):
            mapping[offset]
        make_resident(cache, file, nr_pages)
        misses_before = cache.stats().misses
        rounds = [
            (preads_ns(file, offsets), os_preads_ns(plain.fileno(), offsets), slices_ns(mapping, offsets))
            for _ in range(ROUNDS)
        ]
        misses = cache.stats().misses - misses_before
    pagecache_ns, os_pread_ns, mmap_ns = (statistics.median(column) / READS for column in zip(*rounds, strict=True))
    return Timing(
        region_bytes=nr_pages * READ_BYTES,
        read_bytes=READ_BYTES,
        reads=READS,
        rounds=ROUNDS,
        misses=misses,
        pagecache_ns=pagecache_ns,
        os_pread_ns=os_pread_ns,
        mmap_ns=mmap_ns,
    )


def make_resident(cache: pagecache.PageCache, file: pagecache.File, nr_pages: int) -> None:
    """Read the first pages of a file until they have pushed out what the cache held before."""
    for _ in range(WARMING_PASSES_MAX):
        misses_before = cache.stats().misses
        for page in range(nr_pages):
            file.pread(READ_BYTES, page * READ_BYTES)
        if cache.stats().misses == misses_before:
            return


def preads_ns(file: pagecache.File, offsets: list[int]) -> int:
    """Return how long reading a page at each offset takes through the cache."""
    pread = file.pread
    start = time.perf_counter_ns()
    for offset in offsets:
        pread(READ_BYTES, offset)
    return time.perf_counter_ns() - start


def os_preads_ns(descriptor: int, offsets: list[int]) -> int:
    """Return how long reading a page at each offset takes with `os.pread`."""
    pread = os.pread
    start = time.perf_counter_ns()
    for offset in offsets:
        pread(descriptor, READ_BYTES, offset)
    return time.perf_counter_ns() - start


def slices_ns(mapping: mmap.mmap, offsets: list[int]) -> int:
    """Return how long slicing a page at each offset out of a mapping takes."""
    start = time.perf_counter_ns()
    for offset in offsets:
        mapping[offset : offset + READ_BYTES]
    return time.perf_counter_ns() - start
