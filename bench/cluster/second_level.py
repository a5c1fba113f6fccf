"""A second level beside its origin: cold scans and random reads of one object, for several sizes of extents.

    python -m bench cluster.second_level [--size 256MiB] [--latency-ms 20] [--bandwidth 64MiB] [--connections 8]
        [--extents 64KiB,256KiB,1MiB,4MiB] [--servers valkey,memcached] [--json]

The origin is simulated (bench/common/throttled.py); the server is a real one (support/value_servers.py), on this machine,
by a Unix socket. Each line reads with an empty page cache: the origin alone, then through an empty server (which it fills),
then through the filled one; of three scans the fastest counts. Random reads are single pages; the server holds all of them.
One read in eight is compared.
"""

import argparse
import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.value_servers import ValueServer, memcached_program, valkey_program

import pagecache
from bench.common.throttled import ThrottledStore
from pagecache.adapters.valkey import SecondLevel, TieredStore
from pagecache.units import format_size, parse_size

SCAN_READ_BYTES = 128 * 1024
RANDOM_READS = 300
ROUNDS = 3  # of each scan; the fastest counts
MEMCACHED_EXTENT_MAX = 512 * 1024


def scan(store: Any, origin: ThrottledStore) -> dict[str, float]:
    """Read all of a store in order through an empty cache; returns speed and what the origin saw."""
    origin.nr_requests = origin.nr_bytes = 0
    with pagecache.PageCache("512MiB") as cache, cache.open(store) as file:
        started = time.perf_counter()
        for offset in range(0, origin.nbytes, SCAN_READ_BYTES):
            data = file.pread(SCAN_READ_BYTES, offset)
            if offset // SCAN_READ_BYTES % 8 == 0 and data != origin.expected(offset, len(data)):
                raise AssertionError(f"wrong bytes at {offset}")
        seconds = time.perf_counter() - started
    return {"scan_mib_s": origin.nbytes / seconds / 2**20, "origin_ratio": origin.nr_bytes / origin.nbytes}


def best_scan(stores: Iterable[Any], origin: ThrottledStore) -> dict[str, float]:
    """Return the fastest of several scans, each of a store of its own."""
    return max((scan(store, origin) for store in stores), key=lambda found: found["scan_mib_s"])


def at_random(store: Any, origin: ThrottledStore, nr_reads: int) -> dict[str, float]:
    """Read single pages through an empty cache; returns the median time of one, and bytes of the origin for each."""
    origin.nr_requests = origin.nr_bytes = 0
    generator, times = random.Random(1), []
    with pagecache.PageCache("512MiB") as cache, cache.open(store) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        for _ in range(nr_reads):
            offset = generator.randrange(origin.nbytes // 4096) * 4096
            started = time.perf_counter()
            data = file.pread(4096, offset)
            times.append(time.perf_counter() - started)
            if data != origin.expected(offset, 4096):
                raise AssertionError(f"wrong bytes at {offset}")
    return {"random_ms": sorted(times)[nr_reads // 2] * 1000, "random_origin_kib": origin.nr_bytes / nr_reads / 1024}


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure everything."""
    settings = {
        "latency_s": options.latency_ms / 1000,
        "bandwidth_bytes_s": parse_size(options.bandwidth),
        "connections": options.connections,
    }
    origin = ThrottledStore(parse_size(options.size), **settings)
    found = [{"way": "origin", "extent": "-", **best_scan([origin] * ROUNDS, origin), **at_random(origin, origin, 50)}]
    for kind in options.servers.split(","):
        for extent in options.extents.split(","):
            if kind == "memcached" and parse_size(extent) > MEMCACHED_EXTENT_MAX:
                continue
            found += through(kind, extent, origin)
    return found


def through(kind: str, extent: str, origin: ThrottledStore) -> list[dict[str, Any]]:
    """Measure one server with one size of extents, empty and filled."""
    options = ("-m", "1024") if kind == "memcached" else ()
    with ValueServer(kind, *options) as server:
        program = valkey_program() if kind == "valkey" else memcached_program()
        with SecondLevel(server.url, extent_bytes=extent, queue_bytes="256MiB", prefix="random") as level:
            empty: dict[str, Any] = at_random(TieredStore(origin, level), origin, 50)
        scans = []
        for number in range(ROUNDS):
            server.say(b"flush_all\r\n" if kind == "memcached" else b"FLUSHALL\r\n")
            with SecondLevel(server.url, extent_bytes=extent, queue_bytes="256MiB", prefix=str(number)) as level:
                scans.append(scan(TieredStore(origin, level), origin))
                level.flush()
                if number < ROUNDS - 1:
                    continue
                full = best_scan([TieredStore(origin, level) for _ in range(ROUNDS)], origin)
                full |= at_random(TieredStore(origin, level), origin, RANDOM_READS)
        empty |= max(scans, key=lambda found: found["scan_mib_s"])
        name = Path(program or kind).name
    return [{"way": f"{name}, empty", "extent": extent, **empty}, {"way": f"{name}, filled", "extent": extent, **full}]


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="256MiB")
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--bandwidth", default="64MiB")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--extents", default="64KiB,256KiB,1MiB,4MiB")
    parser.add_argument("--servers", default=",".join(
        name for name, program in (("valkey", valkey_program()), ("memcached", memcached_program())) if program
    ))  # fmt: skip
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = rows(options)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{format_size(parse_size(options.size))}, {options.latency_ms:g} ms")
    print(f"{'':26} {'extent':>7} {'scan MiB/s':>10} {'origin/size':>11} {'random ms':>9} {'origin KiB/read':>15}")
    for row in found:
        print(
            f"{row['way']:26} {row['extent']:>7} {row['scan_mib_s']:10.0f} {row['origin_ratio']:11.3f} "
            f"{row['random_ms']:9.2f} {row['random_origin_kib']:15.0f}"
        )


if __name__ == "__main__":
    main()
