"""What one node of a cluster costs, measured on this machine: the inputs of bench/cluster/simulation.py.

    python -m bench cluster.costs [--json FILE]

* a cached read of 1 MiB, in one thread;
* a peer: reads of 1 MiB from the page server of another process over TCP, by 1 and by 4 threads, with the processor time of
  both processes for each GiB;
* a second level: the same reads from a real Valkey (or Redis) server, whose processor time is
  counted too;
* one connection to a page server that is kept open: memory of the server's process;
* finding the owner of an extent among 1,000 members, the first time and again.
"""

import argparse
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

from support.value_servers import ValueServer, valkey_program

import pagecache
from bench.common.throttled import ThrottledStore
from pagecache.adapters.peers import Member, PeerGroup, transport
from pagecache.adapters.peers.membership import Membership, object_digest
from pagecache.adapters.valkey import SecondLevel, TieredStore

MIB = 2**20
OBJECT_BYTES = 256 * MIB
EXTENT_BYTES = 8 * MIB
READ_BYTES = MIB
SECONDS = 1.0  # of one round
ROUNDS = 3  # the fastest counts
NR_CONNECTIONS = 256
NR_MEMBERS = 1000


def origin() -> ThrottledStore:
    """Return an origin that costs nothing."""
    return ThrottledStore(OBJECT_BYTES, key="costs", latency_s=0.0, bandwidth_bytes_s=1e12, connections=64)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far (seconds)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def member(number: int, port: int) -> Member:
    """Return a member as on a machine of its own, so that TCP is used."""
    return Member(f"member {number}", f"127.0.0.1:{port}", f"host {number}")


def serve(pipe: Any) -> None:
    """Be the other member: serve until the pipe ends."""
    with pagecache.PageCache("512MiB") as cache:
        group = PeerGroup([], member(1, 0), cache=cache, resolver=lambda name: origin(), timeout_s=5.0)
        pipe.send(group.me)
        group.update([group.me, pipe.recv()])
        with cache.open(origin()) as file:
            for offset in range(0, OBJECT_BYTES, READ_BYTES):
                file.pread(READ_BYTES, offset)
            pipe.send("ready")
            pipe.recv()
        group.close()


def best_rate(store: Any, offsets: list[int], nr_threads: int, pids: dict[str, int]) -> dict[str, float]:
    """Return the fastest of several rounds."""
    return max((rate(store, offsets, nr_threads, pids) for _ in range(ROUNDS)), key=lambda found: found["mib_s"])


def rate(store: Any, offsets: list[int], nr_threads: int, pids: dict[str, int]) -> dict[str, float]:
    """Read in so many threads for a while; returns MiB/s, and seconds of processor time for each GiB by process."""
    counts, ends_at = [0] * nr_threads, time.perf_counter() + SECONDS
    before = {name: cpu_s(pid) for name, pid in pids.items()}

    def read(number: int) -> None:
        buffer = memoryview(bytearray(READ_BYTES))
        while time.perf_counter() < ends_at:
            store.readv(offsets[(number + counts[number] * nr_threads) % len(offsets)], [buffer])
            counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=read, args=(number,)) for number in range(nr_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nbytes, seconds = sum(counts) * READ_BYTES, time.perf_counter() - started
    used = {f"{name}_cpu_s_per_gib": (cpu_s(pid) - before[name]) / nbytes * 2**30 for name, pid in pids.items()}
    return {"mib_s": nbytes / MIB / seconds, "ms_per_read": seconds * nr_threads / sum(counts) * 1000, **used}


def peer_costs() -> dict[str, Any]:
    """Measure reads from another process's page server, and what a connection to it costs."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    server = pipe.recv()
    with pagecache.PageCache("64MiB") as cache, PeerGroup([], member(2, 0), cache=cache, timeout_s=5.0) as group:
        pipe.send(group.me)
        group.update([server, group.me])
        assert pipe.recv() == "ready"
        store = group.store(origin())
        digest = object_digest(store.key, "1")
        offsets = [at for at in range(0, OBJECT_BYTES, READ_BYTES) if group.source(store.key, digest, at, READ_BYTES)]
        pids = {"reader": os.getpid(), "server": process.pid or 0}
        found: dict[str, Any] = {f"threads_{number}": best_rate(store, offsets, number, pids) for number in (1, 4)}
        counts = store.source_counts()
        assert counts["origin_requests"] == 0, counts
        before = resident_bytes(process.pid or 0)
        wires = []
        for _ in range(NR_CONNECTIONS):
            wires.append(transport.dial(server, False, 5.0, None))
            transport.greet_as_client(wires[-1], b"")
        time.sleep(0.5)
        found["connection_bytes"] = max(0, resident_bytes(process.pid or 0) - before) // NR_CONNECTIONS
        for wire in wires:
            wire.close()
        pipe.send("end")
    process.join()
    return found


def second_level_costs() -> dict[str, Any]:
    """Measure reads from a server of values."""
    found: dict[str, Any] = {"program": Path(valkey_program() or "none").name}
    options = {"queue_bytes": "512MiB", "patience_s": 30, "timeout_s": 30}
    with ValueServer() as server, SecondLevel(server.url, **options) as level:
        store = TieredStore(origin(), level)
        buffer = memoryview(bytearray(READ_BYTES))
        offsets = list(range(0, OBJECT_BYTES, READ_BYTES))
        for offset in offsets:
            store.readv(offset, [buffer])
        level.flush()
        fetched = store.source_counts()["origin_requests"]
        pids = {"reader": os.getpid(), "server": server.process.pid}
        found |= {f"threads_{number}": best_rate(store, offsets, number, pids) for number in (1, 4)}
        assert store.source_counts()["origin_requests"] == fetched
    return found


def hit_costs() -> dict[str, float]:
    """Measure cached reads."""
    with pagecache.PageCache("512MiB") as cache, cache.open(origin()) as file:
        buffer = bytearray(READ_BYTES)
        offsets = range(0, 64 * MIB, READ_BYTES)
        times = []
        for _ in range(10):
            started = time.perf_counter()
            for offset in offsets:
                file.preadinto(buffer, offset)
            times.append((time.perf_counter() - started) / len(offsets))
    return {"ms_per_read": min(times) * 1000, "mib_s": READ_BYTES / MIB / min(times)}


def owner_costs() -> dict[str, float]:
    """Measure placement among many members."""
    names = [f"10.0.{number // 250}.{number % 250}:7400" for number in range(NR_MEMBERS)]
    members = [Member(name, name, name) for name in names]
    membership, digest = Membership(members, members[0].name), object_digest("key", "1")
    started = time.perf_counter()
    for extent in range(200):
        membership.owner(digest, extent)
    first = (time.perf_counter() - started) / 200
    started = time.perf_counter()
    for _ in range(100):
        for extent in range(200):
            membership.owner(digest, extent)
    return {"first_us": first * 1e6, "again_us": (time.perf_counter() - started) / 20_000 * 1e6}


def main() -> None:
    """Measure, and print or write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    found = {"hit": hit_costs(), "owner_of_1000": owner_costs(), "peer": peer_costs(), "second_level": second_level_costs()}
    text = json.dumps(found, indent=1)
    if options.json:
        Path(options.json).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
