"""Truncation and extension against reads and faults, in threads: nothing from beyond a size or before a truncation."""

import os
import random
import sys
import time
from pathlib import Path

import pytest

import pagecache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import PAGE, Crew

SECONDS = 30 if os.environ.get("PAGECACHE_STRESS") == "1" else 3
SIZE = 48 * PAGE + 123
PATTERN = bytes(1 + place % 251 for place in range(SIZE))
OPERATIONS = 60  # on one object; then another begins


class History:
    """An object of non-zero bytes that is truncated and extended with zeros, and what of it may be seen when.

    `sizes` gets a size before the object does, `nr_done` counts afterwards. Below the smallest size so far the bytes are
    the first ones; behind it, once the truncation is over, they are zero whatever size the object gets.
    """

    def __init__(self, cache):
        self.store = pagecache.MemoryStore(PATTERN)
        self.file = cache.open(self.store, "r+b")
        self.sizes = [SIZE]
        self.nr_done = 1

    def truncate(self, size):
        self.sizes.append(size)
        self.file.truncate(size)
        self.nr_done += 1

    def read(self, read, nbytes, offset, unit=1):
        """Read, and judge what came against all the sizes that the object may have had meanwhile.

        unit: of which there may be a part beyond a size: a map shows the rest of the last page.
        """
        done = self.nr_done
        cut = min(self.sizes[:done])
        data = read(nbytes, offset)
        sizes = self.sizes[done - 1 :]
        kept = min(self.sizes)
        assert offset + len(data) <= max(-(-max(sizes) // unit) * unit, offset), "bytes from beyond every size"
        zeros = data[max(0, cut - offset) :]
        assert zeros.count(0) == len(zeros), f"a byte from before a truncation, {nbytes} at {offset}, truncated at {cut}"
        whole = min(len(data), max(0, kept - offset))
        assert data[:whole] == PATTERN[offset : offset + whole], f"wrong bytes, {nbytes} at {offset}"
        return min(sizes) - offset, len(data)

    def pread(self, nbytes, offset):
        least, got = self.read(self.file.pread, nbytes, offset)
        assert got >= min(nbytes, max(0, least)), "bytes are missing that were there all the time"

    def fault(self, nbytes, offset):
        try:
            with self.file.mmap() as mapped:
                self.read(lambda nbytes, offset: mapped[offset : offset + nbytes], nbytes, offset, unit=PAGE)
        except (ValueError, pagecache.mm.BusError):
            pass  # empty at the moment, or the map goes beyond the end of the file: no bytes, no harm


def truncate_at_random(history, rng):
    for _ in range(OPERATIONS):
        history.truncate(rng.randrange(SIZE + 1) if rng.random() < 0.7 else rng.randrange(SIZE // PAGE) * PAGE)


def read_until_done(history, way, rng):
    nr_reads = 0
    while history.nr_done <= OPERATIONS:
        way(rng.choice((1, 100, PAGE, 3 * PAGE, SIZE)), rng.randrange(SIZE))
        nr_reads += 1
    return nr_reads


@pytest.mark.stress
@pytest.mark.parametrize("nr_frames", [2, 3, 16, 256])
def test_truncation_against_reads_and_faults(make_cache, nr_frames, seed):
    cache = make_cache(nr_frames * PAGE)
    rng = random.Random(seed)
    ends = time.monotonic() + SECONDS / 4
    nr_reads = 0
    while time.monotonic() < ends:
        history = History(cache)
        ways = [history.pread, history.pread, history.fault, history.fault]
        seeds = [rng.random() for _ in range(5)]
        results = Crew(
            lambda history=history, seeds=seeds: truncate_at_random(history, random.Random(seeds[4])),
            *(
                lambda history=history, way=way, one=one: read_until_done(history, way, random.Random(one))
                for way, one in zip(ways, seeds, strict=False)
            ),
        ).join_well()
        nr_reads += sum(results[1:])
        history.file.close()
        cache.check()
    assert nr_reads > 0
