"""Workers of a Dask cluster are killed while others read: is every byte right, and how long did the longest read take?

    python -m bench cluster.kill [--size 256MiB] [--workers 4] [--kills 20] [--latency-ms 20] [--timeout-ms 200]

In each round all caches are dropped, all workers read the object, and one that is chosen at random is killed (SIGKILL) half
way, and another one started. Reads of the workers that live are timed one by one; the bound is the timeout of a peer
and one read of the origin, measured in the same cluster without any peers.
"""

import argparse
import random
import time
from typing import Any

import mmh3
from support.dask_workers import DaskWorkers
from support.http_server import ObjectServer

from bench.cluster.scan import BLOCK_BYTES, READ_BYTES
from pagecache.units import parse_size


def timed_reads(url: str) -> tuple[bytes, list[float], dict[str, Any]]:
    """Read an object in order; return its hash, the seconds of each read, and what the cache counted."""
    import pagecache

    hasher, seconds = mmh3.mmh3_x64_128(), []
    with pagecache.default_cache().open(url) as file:
        for offset in range(0, file.size, READ_BYTES):
            started = time.perf_counter()
            data = file.pread(READ_BYTES, offset)
            seconds.append(time.perf_counter() - started)
            hasher.update(data)
        return hasher.digest(), seconds, file.stats().as_dict()


def drop_caches() -> None:
    """Drop what a worker has cached."""
    import pagecache

    pagecache.default_cache().drop_caches()


def leave_group() -> None:
    """Have a worker read from the origin alone."""
    from pagecache.adapters.dask import current_group

    group = current_group()
    assert group is not None
    group.cache.through(None)


def kill_one(workers: DaskWorkers, server: ObjectServer, nr_requests: int, rng: random.Random, futures: list[Any]) -> None:
    """Kill a worker when the origin has had so many requests, and start another one."""
    while server.count() < nr_requests and not all(future.done() for future in futures):
        time.sleep(0.001)
    workers.kill(rng.choice(sorted(workers.processes)))
    workers.start()


def main() -> None:
    """Run all rounds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="256MiB")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--timeout-ms", type=float, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    from distributed import Client, LocalCluster

    from pagecache.adapters.dask import PageCachePlugin

    print(f"seed {options.seed}")
    nbytes, rng = parse_size(options.size), random.Random(options.seed)
    data = b"".join(rng.randbytes(min(BLOCK_BYTES, nbytes - at)) for at in range(0, nbytes, BLOCK_BYTES))
    digest, reads, failures, sent = mmh3.mmh3_x64_128(data).digest(), [], 0, []
    cluster = LocalCluster(n_workers=0, dashboard_address=None)
    with (
        ObjectServer(delay_s=options.latency_ms / 1000) as server,
        cluster,
        Client(cluster) as client,
        DaskWorkers(cluster.scheduler_address, options.workers) as workers,
    ):
        url = server.put("object", data)
        client.register_plugin(PageCachePlugin(options.size, timeout_s=options.timeout_ms / 1000))
        for number in range(options.kills):
            workers.wait_for(client, 60)
            client.run(drop_caches)
            server.forget()
            futures = [client.submit(timed_reads, url, pure=False, retries=9) for _ in range(options.workers)]
            kill_one(workers, server, rng.randrange(2, nbytes // READ_BYTES // 2), rng, futures)
            if number == options.kills // 2:
                workers.start()
            for found, seconds, counts in client.gather(futures):
                assert found == digest, "wrong bytes"
                reads += seconds
                failures += counts["peer_failures"]
            sent.append(server.bytes_sent() / nbytes)
        workers.wait_for(client, 60)
        client.run(leave_group)
        client.run(drop_caches)
        plain = [second for _, seconds, _ in client.run(timed_reads, url).values() for second in seconds]
        started = time.perf_counter()
    reads.sort()
    print(f"{options.kills} kills, one worker added: {len(reads):,} reads, every byte right; {failures} requests failed")
    print(f"a read took {reads[len(reads) // 2] * 1000:.1f} ms in the median, {reads[-1] * 1000:.0f} ms at most")
    print(f"without peers, all workers at once, {max(plain) * 1000:.0f} ms at most")
    print(f"the origin sent {sum(sent) / len(sent):.2f} times the object in the mean, {max(sent):.2f} at most")
    print(f"closing took {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
