"""Small objects by the million, beside an earlier build (--base LIB), diskcache, system calls and Zarr's own stores.

    make bench ONLY=objects ARGS="--base /path/to/lib-release --objects 200000"

Each row is measured in turns, in processes of their own, and the median is shown. Times are microseconds an object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

NBYTES = 10_000
NR_HOT = 1000


class Memory:
    """Objects in memory, as a store of each."""

    recheck = False

    def __init__(self, number: int, data: bytes):
        self.key = f"objects/{number}"
        self.data = data
        self.nr_reads = 0

    def size(self) -> int:
        return len(self.data)

    def validator(self) -> str:
        return "v1"

    def readv(self, offset: int, buffers: Any) -> int:
        done = 0
        for buffer in buffers:
            piece = self.data[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
        return done

    def close(self) -> None:
        pass


def per_call_us(call: Callable[[int], Any], numbers: Any) -> float:
    """Return the best of three passes (microseconds a call)."""
    best = float("inf")
    numbers = list(numbers)
    for _ in range(3):
        started = time.perf_counter()
        for number in numbers:
            call(number)
        best = min(best, (time.perf_counter() - started) / len(numbers) * 1e6)
    return best


# -- rows, each in a process of its own --------------------------------------------------------------------------------


def opened(nr_objects: int) -> dict[str, float]:
    """open + read + close of cached objects in memory."""
    import pagecache

    cache, data = pagecache.PageCache("64MiB"), os.urandom(NBYTES)
    stores = [Memory(number, data) for number in range(NR_HOT)]

    def read(number: int) -> None:
        with cache.open(stores[number], recheck=False) as file:
            file.pread(NBYTES, 0)

    return {"open, read, close: in memory": per_call_us(read, range(NR_HOT))}


def local(nr_objects: int) -> dict[str, float]:
    """The same on local files, with its check of the version."""
    import pagecache

    found = {}
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{number}" for number in range(NR_HOT)]
        for path in paths:
            Path(path).write_bytes(os.urandom(NBYTES))
        cache = pagecache.PageCache("64MiB")

        def read(number: int) -> None:
            with cache.open(paths[number]) as file:
                file.pread(NBYTES, 0)

        def calls(number: int) -> None:
            fd = os.open(paths[number], os.O_RDONLY)
            os.fstat(fd)
            os.read(fd, NBYTES)
            os.close(fd)

        found["open, read, close: local file"] = per_call_us(read, range(NR_HOT))
        found["os.open, fstat, read, close"] = per_call_us(calls, range(NR_HOT))
        cache.close()
    return found


def disk_cache(nr_objects: int) -> dict[str, float]:
    """diskcache's dictionary."""
    import diskcache

    with tempfile.TemporaryDirectory() as directory, diskcache.Cache(directory) as cache:
        data = os.urandom(NBYTES)
        for number in range(NR_HOT):
            cache[number] = data
        return {"diskcache.Cache.__getitem__": per_call_us(cache.__getitem__, range(NR_HOT))}


def zarr_get(nr_objects: int) -> dict[str, float]:
    """`get` of a Zarr store, with and without the page cache."""
    import asyncio

    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.buffer.cpu import Buffer
    from zarr.storage import MemoryStore

    import pagecache
    from pagecache.adapters.zarr import PageCacheStore

    data = Buffer.from_bytes(os.urandom(NBYTES))
    inner = MemoryStore({f"c/{number}": data for number in range(NR_HOT)})
    store = PageCacheStore(inner, pagecache.PageCache("64MiB"))
    keys, prototype, found = [f"c/{number}" for number in range(NR_HOT)], default_buffer_prototype(), {}

    async def measure(get: Any) -> float:
        best = float("inf")
        for _ in range(4):
            started = time.perf_counter()
            for key in keys:
                await get(key, prototype)
            best = min(best, (time.perf_counter() - started) / NR_HOT * 1e6)
        return best

    found["Zarr: PageCacheStore.get"] = asyncio.run(measure(store.get))
    found["Zarr: MemoryStore.get"] = asyncio.run(measure(inner.get))
    found["Zarr: PageCacheStore.get_sync"] = per_call_us(
        lambda number: store.get_sync(keys[number], prototype=prototype), range(NR_HOT)
    )
    return found


def many(nr_objects: int) -> dict[str, float]:
    """Opening and closing with few and with many objects known: descriptors without data."""
    import pagecache
    from pagecache._core import Segment

    found = {}
    for nr in (NR_HOT, nr_objects):
        cache = pagecache.PageCache(0, segment=Segment(max(nr, 1 << 12), data=False))
        for number in range(nr):
            cache.open(Memory(number, b"x" * 100)).close()
        step = max(1, nr // NR_HOT)
        name = "few" if nr == NR_HOT else "many"
        found[f"open, close: {name} objects known"] = per_call_us(
            lambda number, cache=cache: cache.open(Memory(number, b"x" * 100)).close(), range(0, nr, step)
        )
        cache.close()
    return found


def resident(nr_objects: int) -> dict[str, float]:
    """All objects pass through a cache that holds a part of them; then a skewed second pass."""
    import random

    import pagecache

    nr_bytes = max(16 << 20, nr_objects * 1024)
    data = memoryview(os.urandom(NBYTES * 2))
    before = _pss_bytes()
    cache, rng, most = pagecache.PageCache(nr_bytes), random.Random(1), 0
    started = time.perf_counter()
    for number in range(nr_objects):
        with cache.open(Memory(number, data[number % NBYTES : number % NBYTES + NBYTES])) as file:
            assert file.pread(NBYTES, 0) == data[number % NBYTES : number % NBYTES + NBYTES]
        if number % 5000 == 0:
            most = max(most, _pss_bytes() - before)
    passed_s = time.perf_counter() - started
    hits = cache.stats().hits
    for _ in range(nr_objects):
        number = int(nr_objects * rng.random() ** 4)
        with cache.open(Memory(number, data[number % NBYTES : number % NBYTES + NBYTES])) as file:
            assert file.pread(NBYTES, 0) == data[number % NBYTES : number % NBYTES + NBYTES]
    most = max(most, _pss_bytes() - before)
    hits = cache.stats().hits - hits
    cache.check()
    return {
        "first pass": passed_s / nr_objects * 1e6,
        "resident / budget (%)": most / nr_bytes * 100,
        "skewed pass: hits (%)": hits / nr_objects * 100,
    }


def _pss_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def zarr_chunks(nr_objects: int) -> dict[str, float]:
    """Two passes over an array of chunks of 32 KB on local files; seconds of the second, and store calls in it."""
    import numpy
    import zarr
    from zarr.storage import LocalStore

    import pagecache
    from pagecache.adapters.zarr import PageCacheStore

    nr = max(nr_objects // 20, 100)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        made = zarr.create_array(
            LocalStore(directory), shape=(nr * 8192,), chunks=(8192,), dtype="float32", compressors=None, filters=None
        )
        made[:] = numpy.arange(nr * 8192, dtype="float32")
        cache = pagecache.PageCache(nr * 40_000 + (16 << 20))
        for name, store in (
            ("Zarr, second pass: PageCacheStore", PageCacheStore(LocalStore(directory), cache, recheck=False)),
            ("Zarr, second pass: LocalStore", LocalStore(directory)),
        ):
            array = zarr.open_array(store, mode="r")
            times = []
            for _ in range(3):
                reads = cache.stats().store_reads
                started = time.perf_counter()
                total = array[:]
                times.append((time.perf_counter() - started) / nr * 1e6)
                assert total[-1] == made.shape[0] - 1
            found[name] = min(times[1:])
            if "Page" in name:
                found["Zarr, second pass: store calls"] = cache.stats().store_reads - reads
    return found


ROWS = {row.__name__: row for row in (opened, local, disk_cache, zarr_get, many, resident, zarr_chunks)}
OF_BASE = ("opened", "local", "zarr_get")


# -- in turns ----------------------------------------------------------------------------------------------------------


def measured(row: str, nr_objects: int, base: str | None) -> dict[str, float]:
    """Measure a row in a process of its own, of an earlier build if one is given."""
    environment = dict(os.environ)
    if base:
        paths = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join([base, *paths[1:]])
    command = [sys.executable, "-P", "-m", "bench.objects", "--row", row, "--objects", str(nr_objects)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    """Print the table, or one row as JSON."""
    parser = argparse.ArgumentParser(prog="make bench ONLY=objects", description=__doc__)
    parser.add_argument("--base", help="an earlier build: a folder with the package")
    parser.add_argument("--objects", type=int, default=100_000, help="how many are many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", choices=list(ROWS), action="append")
    parser.add_argument("--only", choices=list(ROWS), action="append", help="rows to measure")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(ROWS[arguments.row[0]](arguments.objects)))
        return 0
    found: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for row in arguments.only or ROWS:
            for name, value in measured(row, arguments.objects, None).items():
                found.setdefault(name, []).append(value)
            if arguments.base and row in OF_BASE:
                for name, value in measured(row, arguments.objects, arguments.base).items():
                    found.setdefault(f"{name}, earlier build", []).append(value)
    for name, values in found.items():
        print(f"{name:50} {median(values):10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
