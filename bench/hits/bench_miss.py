"""What does a read cost that misses, while the kernel has the file's bytes?"""

import os

import pytest

import pagecache
from bench.common.workload import FILE_BYTES, MISSES, PAGE_BYTES, shuffled_pages


@pytest.fixture(scope="module")
def offsets():
    """Distinct pages in random order, so that every read of a round misses."""
    return shuffled_pages(FILE_BYTES, seed=3)[:MISSES]


def bench_cold_pread(measure, path, offsets):
    with pagecache.PageCache(2 * MISSES * PAGE_BYTES) as cache, cache.open(path, "rb") as file:
        file.fadvise(pagecache.FADV_RANDOM)
        pread = file.pread

        def loop():
            for offset in offsets:
                pread(PAGE_BYTES, offset)

        measure(loop, len(offsets), setup=cache.drop_caches)


def bench_cold_pread_evicting(measure, path, offsets):
    with pagecache.PageCache(MISSES * PAGE_BYTES // 4) as cache, cache.open(path, "rb") as file:
        file.fadvise(pagecache.FADV_RANDOM)
        pread = file.pread

        def loop():
            for offset in offsets:
                pread(PAGE_BYTES, offset)

        measure(loop, len(offsets))


def bench_os_pread(measure, descriptor, offsets):
    pread = os.pread

    def loop():
        for offset in offsets:
            pread(descriptor, PAGE_BYTES, offset)

    measure(loop, len(offsets))
