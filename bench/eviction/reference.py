"""Reference simulators: libcachesim for classic policies and Belady's, theine for W-TinyLFU."""

import multiprocessing
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path

SECONDS_MAX = 300  # of one run; some do not end
CLASSES = {
    "LRU": "LRU", "FIFO": "FIFO", "CLOCK": "Clock", "ARC": "ARC", "LIRS": "LIRS", "2Q": "TwoQ", "S3-FIFO": "S3FIFO",
    "SIEVE": "Sieve", "Belady": "Belady",
}  # fmt: skip
NAMES = ("LRU", "FIFO", "CLOCK", "ARC", "LIRS", "2Q", "S3-FIFO", "SIEVE", "W-TinyLFU", "Belady")
BELADY = "Belady"
NO_NEXT = -1
HASH_POWER = 16  # of two: buckets to begin with


def write_oracle(path: Path, pages: array) -> None:
    """Write a trace as oracleGeneral: time, object, size 1, place of the next access."""
    import numpy as np

    following = [NO_NEXT] * len(pages)
    seen: dict[int, int] = {}
    for at in range(len(pages) - 1, -1, -1):
        following[at] = seen.get(pages[at], NO_NEXT)
        seen[pages[at]] = at
    records = np.zeros(len(pages), dtype=np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")]))
    records["time"] = np.arange(len(pages))
    records["object"] = np.frombuffer(pages, dtype=np.uint64) + 1
    records["size"] = 1
    records["next"] = following
    records.tofile(path)


def run_libcachesim(path: str, name: str, nr_frames: int) -> float:
    """Return the miss ratio of one of CLASSES."""
    import libcachesim

    reader = libcachesim.TraceReader(path, trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    return getattr(libcachesim, CLASSES[name])(cache_size=nr_frames, hashpower=HASH_POWER).process_trace(reader)[0]


def run_theine(pages: array, nr_frames: int) -> float:
    """Return the miss ratio of W-TinyLFU."""
    import theine

    cache = theine.Cache(nr_frames)
    misses = 0
    for page in pages:
        if not cache.get(page)[1]:
            misses += 1
            cache.set(page, True)
    cache.close()
    return misses / len(pages)


def apart(function: Callable[..., float], *arguments: object) -> float | None:
    """Return what a function returns in a process of its own; None if it ended that, or did not end."""
    context = multiprocessing.get_context("fork")
    inner, outer = context.Pipe(duplex=False)
    process = context.Process(target=lambda: outer.send(function(*arguments)))
    process.start()
    outer.close()
    try:
        return inner.recv() if inner.poll(SECONDS_MAX) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def run_all(pages: array, sizes: list[int], names: tuple[str, ...] = NAMES) -> list[dict[str, float | None]]:
    """Return the miss ratios by policy for each size in pages; None where a simulator failed, or had no room for a queue
    (it then says that everything missed, though something is used twice in a row or others hit)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "trace")
        write_oracle(path, pages)

        def miss_ratio(name: str, size: int) -> float | None:
            return apart(run_theine, pages, size) if name == "W-TinyLFU" else apart(run_libcachesim, str(path), name, size)

        return [{name: miss_ratio(name, size) for name in names} for size in sizes]
