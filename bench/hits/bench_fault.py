"""What do the first and the later touches of a page cost through the object that `File.mmap()` returns?"""

import mmap

import pytest

import pagecache
from bench.common.workload import FILE_BYTES, MISSES, PAGE_BYTES, random_offsets, shuffled_pages


def touch(mapping, offsets):
    """Return a loop that reads one byte at each offset."""

    def loop():
        for offset in offsets:
            mapping[offset]

    return loop


def bench_major_fault(measure, path):
    offsets = shuffled_pages(FILE_BYTES, seed=4)[:MISSES]
    with pagecache.PageCache(2 * MISSES * PAGE_BYTES) as cache, cache.open(path, "rb") as file:
        file.fadvise(pagecache.FADV_RANDOM)
        with file.mmap() as mapping:

            def forget():
                mapping.madvise(mmap.MADV_DONTNEED)
                cache.drop_caches()

            measure(touch(mapping, offsets), len(offsets), setup=forget)


@pytest.mark.parametrize("nbytes", [1, PAGE_BYTES])
def bench_present(measure, cached_file, nbytes):
    offsets = random_offsets(PAGE_BYTES)
    with cached_file.mmap() as mapping:

        def loop():
            for offset in offsets:
                mapping[offset : offset + nbytes]

        measure(loop, len(offsets))


def bench_stdlib_present(measure, mapping):
    offsets = random_offsets(PAGE_BYTES)
    measure(touch(mapping, offsets), len(offsets))
