"""Access traces made from a seed: kinds of workload that no recorded trace was chosen for."""

import random
from array import array
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate, islice

NR_ACCESSES = 100_000
ONCE = 10_000_000  # pages from here on are used once


class Zipf:
    """Numbers below `nr`, of which number k is drawn in proportion to 1 / (k + 1) ** exponent."""

    def __init__(self, rng: random.Random, nr: int, exponent: float):
        self.rng = rng
        self.sums = list(accumulate(1 / (k + 1) ** exponent for k in range(nr)))
        self.names = rng.sample(range(nr), nr)  # neighbours in number are no neighbours in popularity

    def rank(self) -> int:
        return bisect(self.sums, self.rng.random() * self.sums[-1])

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.names[self.rank()]


def zipf(rng: random.Random) -> Iterator[int]:
    """A steady popularity."""
    yield from Zipf(rng, 20_000, 0.9)


def drift(rng: random.Random) -> Iterator[int]:
    """Zipf whose ranks move on by one every 20 accesses: what is popular is so for a while."""
    ranks, step = Zipf(rng, 12_000, 0.9), 0
    while True:
        step += 1
        yield (ranks.rank() * 7919 + step // 20) % 24_000


def scans(rng: random.Random) -> Iterator[int]:
    """Zipf, and every so often a scan over old pages."""
    popular = iter(Zipf(rng, 10_000, 1.0))
    while True:
        yield from islice(popular, 9000)
        start = rng.randrange(20_000)
        yield from range(20_000 + start, 20_000 + start + 6000)


def loops(rng: random.Random) -> Iterator[int]:
    """Loops of many lengths, among them some that are a little longer than a cache of each size, one after the other."""
    while True:
        width = round(20_000 * rng.choice((0.0012, 0.012, 0.06, 0.12, 0.23)))
        start = rng.randrange(20_000 - width)
        for _ in range(rng.randint(2, 3 + 6000 // width)):
            yield from range(start, start + width)


def long_loop(rng: random.Random) -> Iterator[int]:
    """One loop, with a few popular pages between."""
    popular, page = iter(Zipf(rng, 500, 0.8)), 0
    while True:
        page = (page + 1) % 8000
        yield 1000 + page
        if rng.random() < 0.3:
            yield next(popular)


def flood(rng: random.Random) -> Iterator[int]:
    """Three of five accesses are to pages that are used once."""
    popular, once = iter(Zipf(rng, 8000, 0.8)), ONCE
    while True:
        if rng.random() < 0.6:
            once += 1
            yield once
        else:
            yield next(popular)


def phases(rng: random.Random) -> Iterator[int]:
    """A phase of one kind after the other: popularity, loop, uniform, moving place."""
    while True:
        base = rng.randrange(8) * 4000
        popular = iter(Zipf(rng, 4000, rng.choice((0.7, 1.1))))
        yield from (base + page for page in islice(popular, 15_000))
        width = rng.randrange(300, 4000)
        yield from (base + step % width for step in range(10_000))
        yield from (base + rng.randrange(1500) for _ in range(8000))
        yield from (base + step // 30 + int(rng.expovariate(1 / 50)) for step in range(10_000))


def blend(rng: random.Random) -> Iterator[int]:
    """Popularity, a loop and a scan at the same time."""
    popular, step, once = iter(Zipf(rng, 6000, 0.9)), 0, ONCE
    while True:
        choice = rng.random()
        if choice < 0.5:
            yield next(popular)
        elif choice < 0.8:
            step += 1
            yield 10_000 + step % 2500
        else:
            once += 1
            yield once


def churn(rng: random.Random) -> Iterator[int]:
    """New pages become popular and stay so for a random while; half of the accesses go to what is new."""
    alive: list[int] = []
    new = 0
    while True:
        if not alive or rng.random() < 0.15:
            new += 1
            alive.append(new)
            if len(alive) > 3000:
                alive.pop(rng.randrange(len(alive)))
        if rng.random() < 0.5:
            yield alive[max(0, len(alive) - 1 - int(rng.expovariate(1 / 100)))]
        else:
            yield rng.choice(alive)


def recency(rng: random.Random) -> Iterator[int]:
    """Stack distances from a wide distribution: the only good rule is least recently used."""
    stack: list[int] = []
    while True:
        depth = int(rng.lognormvariate(5, 1.6))
        page = stack.pop(-1 - depth) if depth < len(stack) else rng.randrange(30_000) + (len(stack) << 16)
        stack.append(page)
        if len(stack) > 12_000:
            del stack[:2000]
        yield page


def streams(rng: random.Random) -> Iterator[int]:
    """Files of popularity by Zipf, read from a random place for a while, eight at a time."""
    files = iter(Zipf(rng, 300, 0.8))
    places = [[0, 0] for _ in range(8)]
    while True:
        place = rng.choice(places)
        if place[1] == 0:
            place[:] = [next(files) * 128 + rng.choice((0, 0, 0, 64)), rng.randint(4, 64)]
        yield place[0]
        place[0] += 1
        place[1] -= 1


def joins(rng: random.Random) -> Iterator[int]:
    """Index lookups (root, node, leaf, row), and now and then a table that is read through twice."""
    rows = iter(Zipf(rng, 30_000, 0.7))
    while True:
        for row in islice(rows, 3000):
            yield from (40_000, 40_001 + row // 1500, 40_100 + row // 30, row)
        table = 50_000 + rng.randrange(3) * 5000
        for _ in range(2):
            yield from range(table, table + 2500)


KINDS = (zipf, drift, scans, loops, long_loop, flood, phases, blend, churn, recency, streams, joins)


def traces(seed: int, nr: int = NR_ACCESSES) -> dict[str, array]:
    """Return a trace of each kind, by name."""
    return {kind.__name__: array("Q", islice(kind(random.Random(f"{seed} {kind.__name__}")), nr)) for kind in KINDS}
