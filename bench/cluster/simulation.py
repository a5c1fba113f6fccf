"""A cluster on paper: what the origin and the network carry as it grows to a thousand workers, and which limit comes first.

    python -m bench cluster.simulation [--costs FILE] [--workers 1,10,100,1000] [--skew 1.0] [--seed 1] [--markdown]
        [--chart FILE]

Every worker reads extents of a common data set at random, some more often than others (Zipf), at a fixed rate.  Placement
is the real one (`Membership.owner`: rendezvous hashing by mmh3); each worker has a cache of a fixed number of extents, of
which the least recently used leaves.  An extent comes from the worker's own cache, else from its owner's, else from the
origin, which the owner then asks and keeps; what becomes of the reader's copy is `replicate`:

    plain   no peers: what is not cached comes from the origin
    none    a copy is not kept
    hot     a copy is the next to leave, unless it is used once more before
    all     a copy is kept as others are

The shares of hits after warming up are counted; traffic is shares times the rate. Limits are held against what one node was
measured to do (bench/cluster/costs.py, --costs) and against what is assumed of the rest (`ASSUMED`).
"""

import argparse
import json
import random
from bisect import bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from pagecache.adapters.peers.membership import Member, Membership, object_digest

MIB, GIB = 2**20, 2**30
EXTENT_BYTES = 8 * MIB
NR_EXTENTS = 32768  # 256 GiB
CACHE_EXTENTS = 64  # 512 MiB a worker
MEASURED_READS = 200_000  # in all, at least
ASSUMED = {
    "read_mib_s": 50.0,  # of each worker: what its program reads
    "origin_gib_s": 11.6,  # 100 Gbit/s between cluster and origin
    "nic_gib_s": 2.9,  # 25 Gbit/s a worker: each has a machine of its own
    "descriptors": 1024,  # the usual limit of one process
}
SECOND_LEVEL = "one server of a second level instead"
RATE_GIB_S = ASSUMED["read_mib_s"] / 1024
WAYS = ("plain", "none", "hot", "all")
MEASURED_COSTS = Path(__file__).with_name("costs.json")


class Cache:
    """Extents, the least recently used first."""

    def __init__(self) -> None:
        self._extents: OrderedDict[int, None] = OrderedDict()

    def has(self, extent: int) -> bool:
        """Whether it holds an extent, which is then used."""
        if extent not in self._extents:
            return False
        self._extents.move_to_end(extent)
        return True

    def add(self, extent: int, last: bool = True) -> None:
        """Take an extent in; what is used least leaves. last: False makes it the next to leave."""
        if len(self._extents) >= CACHE_EXTENTS:
            self._extents.popitem(last=False)
        self._extents[extent] = None
        self._extents.move_to_end(extent, last=last)

    def __iter__(self) -> Any:
        return iter(self._extents)


@dataclass
class Shares:
    """What became of the reads: parts of all of them. hottest: what the busiest owner serves, in reads of one worker."""

    workers: int
    way: str
    local: float
    peer: float
    origin: float
    hottest: float
    distinct: int  # extents of which the cluster holds at least one copy
    held: int  # copies in all


class Cluster:
    """Workers with their caches. way: one of WAYS. owners: numbers of workers by extent."""

    def __init__(self, nr_workers: int, way: str, owners: list[int]):
        self.nr_workers = nr_workers
        self.way = way
        self.caches = [Cache() for _ in range(nr_workers)]
        self._owners = owners
        self.count()

    def count(self) -> None:
        """Count from zero."""
        self.local = self.peer = self.origin = 0
        self.served: Counter[int] = Counter()

    def read(self, worker: int, extent: int) -> None:
        """Read one extent."""
        own = self.caches[worker]
        if own.has(extent):
            self.local += 1
            return
        owner = self._owners[extent]
        if self.way == "plain" or owner == worker:
            self.origin += 1
            own.add(extent)
            return
        self.served[owner] += 1
        if self.caches[owner].has(extent):
            self.peer += 1
        else:
            self.origin += 1
            self.caches[owner].add(extent)
        if self.way != "none":
            own.add(extent, last=self.way == "all")


def owners_of(nr_workers: int, extents: set[int]) -> list[int]:
    """Return the numbers of the owners of extents, by the placement that is used."""
    names = [f"10.0.{number // 250}.{number % 250}:7400" for number in range(nr_workers)]
    members = [Member(name, name, name) for name in names]
    numbers = {member.name: number for number, member in enumerate(members)}
    membership, digest = Membership(members, members[0].name), object_digest("https://data.example.org/set", "etag")
    owners = [0] * NR_EXTENTS
    for extent in extents:
        owner = membership.owner(digest, extent)
        owners[extent] = numbers[owner.name] if owner is not None else 0
    return owners


def reads_of(nr_workers: int, skew: float, seed: int) -> list[tuple[int, int]]:
    """Return (worker, extent) of all reads, the first half for warming up."""
    generator = random.Random(seed)
    shuffled = list(range(NR_EXTENTS))
    generator.shuffle(shuffled)
    sums = list(accumulate(1 / rank**skew for rank in range(1, NR_EXTENTS + 1)))
    each = max(6 * CACHE_EXTENTS, MEASURED_READS // nr_workers) * 2
    return [
        (number % nr_workers, shuffled[min(NR_EXTENTS - 1, bisect_right(sums, generator.random() * sums[-1]))])
        for number in range(each * nr_workers)
    ]


def simulate(nr_workers: int, way: str, reads: list[tuple[int, int]], owners: list[int]) -> Shares:
    """Return what becomes of the second half of the reads."""
    cluster, half = Cluster(nr_workers, way, owners), len(reads) // 2
    for worker, extent in reads[:half]:
        cluster.read(worker, extent)
    cluster.count()
    for worker, extent in reads[half:]:
        cluster.read(worker, extent)
    nr, each = len(reads) - half, (len(reads) - half) / nr_workers
    held = Counter(extent for cache in cluster.caches for extent in cache)
    hottest = max(cluster.served.values(), default=0) / each
    return Shares(
        nr_workers, way, cluster.local / nr, cluster.peer / nr, cluster.origin / nr, hottest, len(held), held.total()
    )  # fmt: skip


def limits(shares: Shares, costs: dict[str, Any]) -> dict[str, float]:
    """Return how far each limit is used: 1.0 is all of it."""
    rate, nr_workers = RATE_GIB_S, shares.workers
    served_gib_s = shares.hottest * rate
    received_gib_s = (shares.peer + shares.origin) * rate
    peer = costs["peer"]["threads_4"]
    has_peers = shares.way != "plain"
    cpu = rate * shares.local * 1024 * costs["hit"]["ms_per_read"] / 1000
    if has_peers:
        cpu += received_gib_s * peer["reader_cpu_s_per_gib"]
    return {
        "origin": shares.origin * nr_workers * rate / ASSUMED["origin_gib_s"],
        "hottest owner": served_gib_s * 1024 / peer["mib_s"] if has_peers else 0.0,
        "network of a worker": max(served_gib_s, received_gib_s) / ASSUMED["nic_gib_s"],
        "a reader's processor": cpu,
        "descriptors": 2 * (nr_workers - 1) / ASSUMED["descriptors"] if has_peers else 0.0,
        SECOND_LEVEL: shares.origin * nr_workers * rate * 1024 / costs["second_level"]["threads_4"]["mib_s"],
    }


def rows_of(workers: list[int], skew: float, seed: int, costs: dict[str, Any]) -> list[tuple[Shares, dict[str, float]]]:
    """Simulate every size in every way."""
    found = []
    for nr_workers in workers:
        reads = reads_of(nr_workers, skew, seed)
        owners = owners_of(nr_workers, {extent for _, extent in reads})
        for way in WAYS:
            shares = simulate(nr_workers, way, reads, owners)
            found.append((shares, limits(shares, costs)))
    return found


def shown(rows: list[tuple[Shares, dict[str, float]]], markdown: bool) -> str:
    """Return the table."""
    rate = RATE_GIB_S
    lines = [["workers", "replicate", "own %", "peers %", "origin %", "origin GiB/s", "peers GiB/s", "hottest owner GiB/s",
              "distinct GiB", "copies", "first limit", "used"]]  # fmt: skip
    for shares, used in rows:
        own = {name: value for name, value in used.items() if name != SECOND_LEVEL}
        first = max(own, key=lambda name: own[name])
        lines.append([
            str(shares.workers), shares.way, f"{shares.local * 100:.1f}", f"{shares.peer * 100:.1f}",
            f"{shares.origin * 100:.1f}", f"{shares.origin * shares.workers * rate:.2f}",
            f"{shares.peer * shares.workers * rate:.2f}", f"{shares.hottest * rate:.3f}",
            f"{shares.distinct * EXTENT_BYTES / GIB:.0f}", f"{shares.held / max(1, shares.distinct):.1f}", first,
            f"{own[first] * 100:.0f} %",
        ])  # fmt: skip
    if markdown:
        lines.insert(1, ["---:" if at not in (1, 10) else "---" for at in range(len(lines[0]))])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def draw(rows: list[tuple[Shares, dict[str, float]]], path: str) -> None:
    """Draw what the origin carries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for way in WAYS:
        points = [(shares.workers, shares.origin * shares.workers * RATE_GIB_S) for shares, _ in rows if shares.way == way]
        axes.plot(*zip(*points, strict=True), marker="o", label=way)
    axes.axhline(ASSUMED["origin_gib_s"], color="grey", linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="GiB/s from the origin")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Simulate, and print a table and how far each limit is used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", default=str(MEASURED_COSTS), help="JSON of bench/cluster/costs.py")
    parser.add_argument("--workers", default="1,10,100,300,1000")
    parser.add_argument("--skew", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--chart", help="SVG file to draw, with matplotlib")
    options = parser.parse_args()
    costs = json.loads(Path(options.costs).read_text())
    rows = rows_of([int(number) for number in options.workers.split(",")], options.skew, options.seed, costs)
    print(shown(rows, options.markdown))
    if options.chart:
        draw(rows, options.chart)
    for shares, used in rows:
        parts = ", ".join(f"{name} {value * 100:.0f} %" for name, value in used.items() if value)
        print(f"{shares.workers} {shares.way}: {parts}")


if __name__ == "__main__":
    main()
