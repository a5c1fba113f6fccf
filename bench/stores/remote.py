"""Cold reads of a store with latency: a sequential scan and random reads, through ours and through fsspec's caches.

    python -m bench stores.remote [--size 2GiB] [--latency-ms 20] [--bandwidth 64MiB] [--connections 8]
        [--max-request 16MiB] [--json]

Clients read the same simulated object (bench/common/throttled.py), one after the other; requests and bytes are the store's
own counts.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import pagecache
from bench.common.throttled import ThrottledStore
from pagecache.units import parse_size

SCAN_READ_BYTES = 128 * 1024
RANDOM_READ_BYTES = 4096
RANDOM_READS = 200
FSSPEC_SCAN_BYTES = 256 * 2**20  # slow clients scan less: their speed does not change with the size
FSSPEC_BLOCK_BYTES = 5 * 2**20  # fsspec's default


def fetch_from(cache, offset: int, nbytes: int) -> bytes:
    """Read through one of fsspec's caches."""
    return cache._fetch(offset, offset + nbytes)


def clients(store: ThrottledStore) -> Iterator[tuple[str, int, Callable[[int, int], bytes]]]:
    """Iterate over (name, bytes to scan at most, read(offset, nbytes)) of each client, fresh and cold."""
    with pagecache.PageCache("1GiB") as cache, cache.open(store) as file:
        yield "pagecache", store.nbytes, lambda offset, nbytes: file.pread(nbytes, offset)
    try:
        from fsspec.caching import caches
    except ImportError:
        print("fsspec is not installed: its caches are left out", file=sys.stderr)
        return
    for name in ("readahead", "blockcache", "background", "adaptive"):
        if name in caches:
            cached = caches[name](FSSPEC_BLOCK_BYTES, store.fetch, store.nbytes)
            read = partial(fetch_from, cached)
            yield f"fsspec {name}", FSSPEC_SCAN_BYTES, read


def scan(store: ThrottledStore, read: Callable[[int, int], bytes], nbytes: int) -> dict[str, float]:
    """Read nbytes in order; return speed and what the store saw. One read in eight is compared, inside the time."""
    store.nr_requests = store.nr_bytes = 0
    started = time.perf_counter()
    for offset in range(0, nbytes, SCAN_READ_BYTES):
        data = read(offset, SCAN_READ_BYTES)
        is_compared = offset // SCAN_READ_BYTES % 8 == 0
        if len(data) != SCAN_READ_BYTES or (is_compared and data != store.expected(offset, SCAN_READ_BYTES)):
            raise AssertionError(f"wrong bytes at offset {offset}")
    seconds = time.perf_counter() - started
    return {
        "scan_mib_s": nbytes / seconds / 2**20,
        "scan_requests": store.nr_requests,
        "scan_bytes_ratio": store.nr_bytes / nbytes,
    }


def at_random(store: ThrottledStore, read: Callable[[int, int], bytes], seed: int) -> dict[str, float]:
    """Read single pages at random; return the time of one and the bytes fetched for each byte asked for."""
    store.nr_requests = store.nr_bytes = 0
    generator = random.Random(seed)
    offsets = [generator.randrange(store.nbytes // 4096) * 4096 for _ in range(RANDOM_READS)]
    started = time.perf_counter()
    for offset in offsets:
        if bytes(read(offset, RANDOM_READ_BYTES)) != store.expected(offset, RANDOM_READ_BYTES):
            raise AssertionError(f"wrong bytes at offset {offset}")
    return {
        "random_ms": (time.perf_counter() - started) / RANDOM_READS * 1000,
        "random_bytes_ratio": store.nr_bytes / (RANDOM_READS * RANDOM_READ_BYTES),
    }


def main() -> None:
    """Run all clients and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="2GiB")
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--bandwidth", default="64MiB")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--max-request", default="16MiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = {
        "latency_s": options.latency_ms / 1000,
        "bandwidth_bytes_s": parse_size(options.bandwidth),
        "connections": options.connections,
        "max_request": parse_size(options.max_request),
    }
    limit = options.connections * parse_size(options.bandwidth) / 2**20
    rows: dict[str, dict[str, float]] = {}
    store = ThrottledStore(parse_size(options.size), key="scan", **settings)
    for name, nbytes, read in clients(store):
        rows[name] = scan(store, read, min(nbytes, store.nbytes))
    store = ThrottledStore(parse_size(options.size), key="random", **settings)
    for name, _, read in clients(store):
        rows[name] |= at_random(store, read, seed=1)
    if options.json:
        print(json.dumps({"limit_mib_s": limit, "clients": rows}, indent=1))
        return
    print(f"limit of the store: {limit:.0f} MiB/s")
    print(f"{'':20} {'scan MiB/s':>10} {'of limit':>8} {'requests':>8} {'random ms':>10} {'fetched/asked':>13}")
    for name, row in rows.items():
        print(
            f"{name:20} {row['scan_mib_s']:10.0f} {row['scan_mib_s'] / limit:8.2f} {row['scan_requests']:8.0f} "
            f"{row['random_ms']:10.1f} {row['random_bytes_ratio']:13.2f}"
        )


if __name__ == "__main__":
    main()
