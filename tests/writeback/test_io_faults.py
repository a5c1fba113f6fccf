"""A store that fails, brings too little and answers out of order at random: every byte right, nothing left behind."""

import asyncio
import itertools
import random
import threading

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, assert_nothing_is_held, pages_of, wait_until
from support.remote_stores import RandomStore, wait_all_read

import pagecache

NR_OPERATIONS = 10_000 if STRESS else 1000
NR_THREADS = 4
DATA = pages_of(300 * PAGE + 123)
ADVICE = (pagecache.FADV_NORMAL, pagecache.FADV_SEQUENTIAL, pagecache.FADV_RANDOM, pagecache.FADV_WILLNEED,
          pagecache.FADV_DONTNEED, pagecache.FADV_NOREUSE)  # fmt: skip


class Operations:
    """What one thread does with one file, at random: each operation gives the right bytes, or an OSError."""

    def __init__(self, file, seed):
        self.file = file
        self.rng = random.Random(seed)
        self.position = 0
        self.nr_errors = 0

    def run(self, nr):
        """Do `nr` operations; return how many failed."""
        kinds = [self.sequential] * 8 + [self.pread, self.preadinto, self.view] * 2
        kinds += [self.many, self.prefetch, self.advise, self.asynchronous, self.drop_behind]
        for number in range(nr):
            operation = self.rng.choice(kinds)
            try:
                operation()
            except OSError as error:
                assert error.errno == 5, f"operation {number}, {operation.__name__}: {error!r}"
                self.nr_errors += 1
        return self.nr_errors

    def a_range(self):
        """Return (nbytes, offset)."""
        return self.rng.choice([1, 100, PAGE, 3 * PAGE + 7, 40 * PAGE]), self.rng.randrange(len(DATA) + 10)

    def check(self, data, offset, nbytes):
        """Compare what was read; name the first byte that is wrong."""
        expected = DATA[offset : offset + nbytes]
        if bytes(data) != expected:
            bad = next((i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), "length")
            raise AssertionError(f"{nbytes} bytes at {offset} differ at {bad}: {len(data)} bytes came")

    def sequential(self):
        nbytes = self.rng.choice([1000, PAGE, 5 * PAGE])
        data = self.file.pread(nbytes, self.position)
        self.check(data, self.position, nbytes)
        self.position = (self.position + nbytes) % len(DATA)

    def pread(self):
        nbytes, offset = self.a_range()
        self.check(self.file.pread(nbytes, offset), offset, nbytes)

    def preadinto(self):
        nbytes, offset = self.a_range()
        buffer = bytearray(nbytes)
        self.check(buffer[: self.file.preadinto(buffer, offset)], offset, nbytes)

    def view(self):
        nbytes, offset = self.a_range()
        try:
            with self.file.view(nbytes, offset) as view:
                data = bytes(view)
        except pagecache.CacheFullError:  # folios hold parts of it, and a copy has no room
            data = self.file.pread(nbytes, offset)
        self.check(data, offset, nbytes)

    def many(self):
        ranges = [self.a_range() for _ in range(self.rng.randrange(8))]
        parts = self.file.preadv_many(ranges, hole_size=self.rng.choice([0, PAGE, 1 << 16]))
        for (nbytes, offset), data in zip(ranges, parts, strict=True):
            self.check(data, offset, nbytes)

    def prefetch(self):
        nbytes, offset = self.a_range()
        prefetch = self.file.prefetch(offset, nbytes)
        if self.rng.random() < 0.3:
            prefetch.cancel()
        if self.rng.random() < 0.5:
            assert prefetch.wait(PATIENCE_S)

    def advise(self):
        nbytes, offset = self.a_range()
        self.file.fadvise(self.rng.choice(ADVICE), offset, nbytes)

    def asynchronous(self):
        nbytes, offset = self.a_range()
        self.check(asyncio.run(self.file.pread_async(nbytes, offset)), offset, nbytes)

    def drop_behind(self):
        self.file.drop_behind = not self.file.drop_behind


@pytest.mark.parametrize("nr_frames", [8, 64, 4096])
def test_every_byte_is_right_whatever_the_store_does(make_cache, seed, nr_frames):
    cache = make_cache(nr_frames * PAGE)
    store = RandomStore(DATA, seed)
    files = [cache.open(store) for _ in range(NR_THREADS)]
    crew = [Operations(file, seed + number) for number, file in enumerate(files)]
    share = NR_OPERATIONS // NR_THREADS // 3
    Crew(*[lambda each=each: each.run(share) for each in crew]).join_well()
    for file in files:
        wait_all_read(file)
    assert store.nr_errors
    store.is_kind = True
    assert files[0].pread(len(DATA), 0) == DATA
    for file in files:
        wait_until(lambda file=file: file.inode.wait_idle(PATIENCE_S), "background reads")
        file.close()
    assert_nothing_is_held(cache)


@pytest.mark.parametrize("nr_frames", [1, 2, 3])
def test_tiny_caches_too(make_cache, seed, nr_frames):
    cache = make_cache(nr_frames * PAGE)
    with cache.open(RandomStore(DATA, seed)) as file:
        operations = Operations(file, seed)
        operations.run(NR_OPERATIONS // 10)
        wait_all_read(file)
        operations.file.inode.store.is_kind = True
        assert file.pread(len(DATA), 0) == DATA
        wait_all_read(file)
    assert_nothing_is_held(cache)


@pytest.mark.parametrize("fate", ["error", "nothing", "too much", "text", "grow"])
@pytest.mark.parametrize("nth", range(6))
def test_the_nth_request_goes_wrong(make_cache, fate, nth):
    numbers, turns = itertools.count(), threading.Lock()

    class Odd(RandomStore):
        def answer(self, offset, buffers):
            self.is_kind = True
            with turns:
                number = next(numbers)
            done = super().answer(offset, buffers)
            if number != nth:
                return done
            if fate == "error":
                raise OSError(5, "the nth request fails")
            return {"nothing": 0, "too much": done + (1 << 20), "text": "all", "grow": -1}[fate]

    cache = make_cache("1MiB")
    errors = 0
    with cache.open(Odd(DATA, nth)) as file:
        for offset in range(0, len(DATA), PAGE):
            try:
                assert file.pread(PAGE, offset) == DATA[offset : offset + PAGE]
            except OSError:
                errors += 1
                assert file.pread(PAGE, offset) == DATA[offset : offset + PAGE]
        wait_all_read(file)
        assert errors <= 1
        assert errors + cache.stats().readahead_errors >= 1
    assert_nothing_is_held(cache)
