"""Fixtures of the benchmarks: the file, and caches that hold it."""

import mmap
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

import pagecache
from bench.common import workload


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """A real file of 256 MiB."""
    return workload.make_file(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session", params=workload.FOLIOS)
def cached_file(request, path):
    """The file wholly cached, in large folios or in small ones."""
    with pagecache.PageCache(workload.CACHE_BYTES) as cache, workload.open_cached(cache, path, request.param) as file:
        yield file


@pytest.fixture(scope="session")
def mapping(path):
    """The file mapped by the standard library's mmap, every page touched."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset in range(0, len(mapped), workload.PAGE_BYTES):
            mapped[offset]
        yield mapped


@pytest.fixture(scope="session")
def descriptor(path):
    """A descriptor of the file, whose bytes the kernel has cached."""
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def measure(benchmark):
    """Time a loop: `measure(loop, reads, setup=None)` records the nanoseconds of one read as well."""

    def run(loop, reads, setup=None):
        def prepare():
            setup()  # what it returns is not for the loop

        options = {"setup": prepare} if setup else {"warmup_rounds": 1}
        benchmark.pedantic(loop, rounds=7, iterations=1, **options)
        if benchmark.stats is not None:
            benchmark.extra_info["reads"] = reads
            benchmark.extra_info["best_ns"] = benchmark.stats.stats.min / reads * 1e9
            benchmark.extra_info["median_ns"] = benchmark.stats.stats.median / reads * 1e9

    return run
