"""How fast is a sequential scan of a cold file through a small cache, beside plain unbuffered reads?"""

import pytest

import pagecache
from bench.common.workload import FILE_BYTES, KIB, MIB

CACHE_BYTES = 64 * MIB


@pytest.mark.parametrize("nbytes", [64 * KIB, MIB])
def bench_scan(measure, path, nbytes):
    buffer = bytearray(nbytes)
    with pagecache.PageCache(CACHE_BYTES) as cache, cache.open(path, "rb") as file:

        def loop():
            file.seek(0)
            while file.readinto(buffer):
                pass

        measure(loop, FILE_BYTES // nbytes, setup=cache.drop_caches)


def bench_scan_in_lines(measure, path):
    with pagecache.PageCache(CACHE_BYTES) as cache, cache.open(path, "rb") as file:

        def loop():
            file.seek(0)
            for _ in range(100_000):
                file.read(100)

        measure(loop, 100_000)


@pytest.mark.parametrize("nbytes", [64 * KIB, MIB])
def bench_plain_scan(measure, path, nbytes):
    buffer = bytearray(nbytes)
    with open(path, "rb", buffering=0) as file:

        def loop():
            file.seek(0)
            while file.readinto(buffer):
                pass

        measure(loop, FILE_BYTES // nbytes)
