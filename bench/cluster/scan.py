"""A Dask cluster whose workers all read one object: what the origin sends, and how long it takes, for each way of reading.

    python -m bench cluster.scan [--size 1GiB] [--workers 4] [--latency-ms 20] [--cache 512MiB] [--only NAME] [--json]

Every worker reads the whole object in order, all at the same time, and hashes what it reads; the hash is compared. The
origin is the HTTP server of the tests, which counts its bytes, in the process that starts the cluster.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import mmh3
from support.http_server import ObjectServer

from pagecache.units import parse_size

READ_BYTES = 1 << 20
BLOCK_BYTES = 5 * 2**20  # fsspec's default


def digest_of(read: Callable[[int, int], bytes], nbytes: int) -> tuple[bytes, float, float]:
    """Read all in order; return the hash, the seconds, and the longest read (seconds)."""
    hasher, longest, started = mmh3.mmh3_x64_128(), 0.0, time.perf_counter()
    for offset in range(0, nbytes, READ_BYTES):
        before = time.perf_counter()
        data = read(offset, min(READ_BYTES, nbytes - offset))
        longest = max(longest, time.perf_counter() - before)
        hasher.update(data)
    return hasher.digest(), time.perf_counter() - started, longest


def by_fsspec(url: str, nbytes: int, cache_type: str) -> tuple[bytes, float, float]:
    """Read through one of fsspec's caches, with the defaults."""
    import fsspec

    with fsspec.filesystem("http").open(url, block_size=BLOCK_BYTES, cache_type=cache_type) as file:
        return digest_of(lambda offset, length: file.seek(offset) * 0 or file.read(length), nbytes)


def by_plain_requests(url: str, nbytes: int) -> tuple[bytes, float, float]:
    """Read with one request for each read call."""
    import fsspec

    system = fsspec.filesystem("http")
    return digest_of(lambda offset, length: system.cat_file(url, start=offset, end=offset + length), nbytes)


def by_pagecache(url: str, nbytes: int) -> tuple[bytes, float, float]:
    """Read through the worker's page cache."""
    import pagecache

    with pagecache.default_cache().open(url) as file:
        return digest_of(lambda offset, length: file.pread(length, offset), nbytes)


WAYS: dict[str, Callable[[str, int], Any]] = {
    "plain requests": by_plain_requests,
    "fsspec readahead": lambda url, nbytes: by_fsspec(url, nbytes, "readahead"),
    "fsspec blockcache": lambda url, nbytes: by_fsspec(url, nbytes, "blockcache"),
    "fsspec background": lambda url, nbytes: by_fsspec(url, nbytes, "background"),
    "pagecache alone": by_pagecache,
    "pagecache peers": by_pagecache,
    "peers, again": by_pagecache,
}


def measure(name: str, server: ObjectServer, options: argparse.Namespace, digest: bytes, nbytes: int) -> dict[str, Any]:
    """Let a new cluster read the object in one way; return what it cost."""
    from distributed import Client, LocalCluster

    from pagecache.adapters.dask import PageCachePlugin, cluster_stats

    url, row = server.url("object"), {}
    is_group = name in ("pagecache peers", "peers, again")
    cluster = LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        if is_group:
            client.register_plugin(PageCachePlugin(options.cache, replicate=options.replicate))
        elif name == "pagecache alone":
            client.run(set_size, options.cache)
        if name == "peers, again":
            client.run(WAYS[name], url, nbytes)
        server.forget()
        started = time.perf_counter()
        results = client.run(WAYS[name], url, nbytes)
        row["seconds"] = time.perf_counter() - started
        for worker, (found, _, _) in results.items():
            assert found == digest, f"{worker} read wrong bytes"
        row |= {
            "origin_ratio": server.bytes_sent() / nbytes,
            "origin_requests": server.count(),
            "longest_read_s": max(longest for _, _, longest in results.values()),
        }
        if is_group:
            total = cluster_stats(client)["total"]
            row |= {name: total[name] for name in ("peer_bytes", "peer_failures", "evicted_pages")}
    return row


def set_size(size: str) -> None:
    """Have the default cache of a worker made with this budget."""
    import os

    os.environ["PAGECACHE_SIZE"] = size


def main() -> None:
    """Run all ways and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--cache", default="512MiB")
    parser.add_argument("--replicate", default="hot")
    parser.add_argument("--only", action="append", choices=list(WAYS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nbytes = parse_size(options.size)
    generator = random.Random(1)
    data = b"".join(generator.randbytes(min(BLOCK_BYTES, nbytes - at)) for at in range(0, nbytes, BLOCK_BYTES))
    digest, rows = mmh3.mmh3_x64_128(data).digest(), {}
    with ObjectServer(delay_s=options.latency_ms / 1000) as server:
        server.put("object", data)
        del data
        for name in options.only or WAYS:
            rows[name] = measure(name, server, options, digest, nbytes)
            if not options.json:
                shown = " ".join(f"{key}={value:,.3f}" for key, value in rows[name].items())
                print(f"{name:20} {shown}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
