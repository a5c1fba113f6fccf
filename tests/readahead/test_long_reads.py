"""Reads of many pages, copied several folios at a time: right bytes out of folios of all sizes, also while they go."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, STRESS, Crew, checked_cache, few, pages_of, read

import pagecache

SIZE = 700 * PAGE + 123
DATA = pages_of(SIZE)
PIECES = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9)), max_size=12)
READS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(1, 300 * PAGE)), min_size=1, max_size=8)


def fill_in_pieces(cache, file, pieces):
    """Have folios of several orders, by reading some pages alone and others in order."""
    for page, order in pieces:
        file.fadvise(pagecache.FADV_RANDOM if order < 3 else pagecache.FADV_SEQUENTIAL)
        for offset in range(page * PAGE, min(SIZE, (page + (1 << order)) * PAGE), 8 * PAGE):
            file.pread(PAGE, offset)
    file.fadvise(pagecache.FADV_NORMAL)


@given(pieces=PIECES, reads=READS)
@few(25)
def test_right_bytes_whatever_the_folios(frames, pieces, reads):
    with checked_cache(frames) as cache, cache.open(pagecache.MemoryStore(DATA)) as file:
        fill_in_pieces(cache, file, pieces)
        for offset, nbytes in reads:
            for way in ("pread", "preadinto"):
                for _ in range(2):  # the second time more of it is a hit
                    assert read(file, way, nbytes, offset) == DATA[offset : offset + nbytes]


@pytest.mark.parametrize("nbytes", [2 * PAGE, 5 * PAGE + 1, 8 * PAGE, 9 * PAGE, 64 * PAGE, 65 * PAGE + 7, 200 * PAGE])
@pytest.mark.parametrize("advice", [pagecache.FADV_RANDOM, pagecache.FADV_SEQUENTIAL])
def test_hits_of_every_alignment(make_cache, advice, nbytes):
    with make_cache(1024 * PAGE).open(pagecache.MemoryStore(DATA)) as file:
        file.fadvise(advice)
        for offset in range(0, SIZE, PAGE):
            file.pread(1, offset)
        missed = file.cache.stats().misses
        for offset in (0, 1, PAGE - 1, PAGE, 7 * PAGE + 64, 100 * PAGE + 4095, SIZE - nbytes):
            assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
        assert file.cache.stats().misses == missed


@pytest.mark.stress
def test_pages_that_leave_while_many_are_read(make_cache, rng):
    """A small cache evicts all the time, one thread drops pages, and another writes what is there already."""
    seeds = [rng.randrange(1 << 30) for _ in range(4)]
    with make_cache(160 * PAGE).open(pagecache.MemoryStore(DATA), "r+b") as file:

        def read_many(seed):
            mine = random.Random(seed)
            for _ in range(1000 if STRESS else 60):
                offset, nbytes = mine.randrange(SIZE), mine.randrange(1, 90 * PAGE)
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]

        def disturb():
            mine = random.Random(seeds[3])
            for _ in range(1000 if STRESS else 60):
                page = mine.randrange(690)
                file.fadvise(pagecache.FADV_DONTNEED, page * PAGE, 8 * PAGE)
                file.pwrite(DATA[page * PAGE : (page + 2) * PAGE], page * PAGE)

        Crew(*(lambda seed=seed: read_many(seed) for seed in seeds[:3]), disturb).join_well()
