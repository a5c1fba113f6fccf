"""Readers without a lock against writers: what they load is there, is theirs, and never gets older."""

import os
import random
import threading
import time

import pytest

from pagecache._core import _hammer_load

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
SECONDS = 20 if STRESS else 1
ROUNDS = 100_000
VERSION_BITS = 16
VERSIONS = 1 << VERSION_BITS

pytestmark = pytest.mark.stress


class Readers:
    """Threads that load indices without a lock for as long as a with block runs, and what they counted."""

    def __init__(self, xa, *groups):
        self.xa, self.groups = xa, groups
        self.counts = [{} for _ in groups]
        self.stop = False

    def read(self, indices, counts):
        """Load until it is to stop."""
        while not self.stop:
            for name, count in _hammer_load(self.xa, indices, ROUNDS, VERSION_BITS).items():
                counts[name] = counts.get(name, 0) + count

    def __enter__(self):
        self.threads = [threading.Thread(target=self.read, args=each)
                        for each in zip(self.groups, self.counts, strict=True)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        for thread in self.threads:
            thread.join()
        for counts in self.counts:
            assert counts["wrong"] == counts["backwards"] == 0, counts
            assert counts["hits"] + counts["absent"] >= ROUNDS


def versions():
    """Yield growing versions for about SECONDS, and start again at 0 never."""
    end = time.monotonic() + SECONDS
    version = 0
    while time.monotonic() < end:
        for _ in range(20):
            yield min(version, VERSIONS - 1)
            version += 1


def entry(index, version):
    """Return the value that belongs at an index."""
    return index << VERSION_BITS | version


def test_present_entries_are_found_while_the_tree_grows_and_shrinks(xa):
    xa[0] = entry(0, 0)
    with Readers(xa, [0]) as readers:
        for version in versions():
            xa[1] = "b"
            xa[1 << 30] = "c"
            xa[0] = entry(0, version)
            del xa[1 << 30]
            xa[64] = "d"
            del xa[1]
            del xa[64]
    assert readers.counts[0]["absent"] == 0, readers.counts


def test_present_entries_are_found_while_nodes_are_reused(xa, rng):
    present = [3, 70, 5000]
    for i in present:
        xa[i] = entry(i, 0)
    with Readers(xa, present) as readers:
        for version in versions():
            others = [rng.randrange(1 << 20) for _ in range(10)]
            for i in others:
                if i not in present:
                    xa[i] = entry(4097, version)
            for i in present:
                xa[i] = entry(i, version)
            for i in others:
                if i not in present:
                    xa.erase(i)
    assert readers.counts[0]["absent"] == 0, readers.counts


def test_entries_that_come_and_go_are_old_new_or_absent(xa):
    changing = [0, 64, 4096 + 5]
    with Readers(xa, changing, changing) as readers:
        for version in versions():
            for i in changing:
                xa[i] = entry(i, version)
            xa[1 << 40] = "far"
            for i in random.sample(changing, 3):
                del xa[i]
            del xa[1 << 40]
    for counts in readers.counts:
        assert counts["absent"] > 0


def test_present_entries_are_found_while_they_are_split_and_joined(xa):
    xa.store(512, entry(512, 0), 9)
    xa.store(4096, entry(4096, 0), 4)
    with Readers(xa, [512, 4096]) as readers:
        for version in versions():
            xa.split(512, version % 7)
            xa[512] = entry(512, version)
            xa.store(512, entry(512, version), 9)
            xa.split(4096, 2)
            xa.store(4096, entry(4096, version), 2 + version % 5)
            xa.store(4096, entry(4096, version), 4)
            if version % 3 == 0:
                xa.store(1 << 20, "x", 12)
                xa.erase(1 << 20)
    assert readers.counts[0]["absent"] == 0, readers.counts


def test_writers_in_several_threads(xa):
    failures = []

    def write(number):
        rng = random.Random(number)
        mine = [number * 100_000 + rng.randrange(50_000) for _ in range(300)]
        try:
            for _ in range(10 if STRESS else 2):
                for i in mine:
                    xa[i] = (number, i)
                    xa.set_mark(i, number % 3)
                for i in mine:
                    assert xa[i] == (number, i)
                    xa.find_after(i)
                for i in set(mine):
                    assert xa.erase(i) == (number, i)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert xa.empty
