"""Truncation and re-extension against reads, views, maps and prefetches, judged byte by byte.

The store's bytes say which truncation brought them and where they stand. What a read returns must be, byte by byte, what
the file held at some moment between its begin and its end: nothing from behind the end, nothing stale.
"""

import random
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest
from support import PAGE, PATIENCE_S, STRESS, checked_cache

import pagecache
from pagecache.mm import BusError

MAX_PAGES = 48
SECONDS = 30 if STRESS else 3
WORD = 8


class State(NamedTuple):
    """The file between two truncations: its size, and its parts as (begin, end, version); version 0 is zeros."""

    size: int
    parts: tuple[tuple[int, int, int], ...]

    def content(self, pos, nbytes):
        """Return the bytes from pos on as an array; what lies behind the end is zero."""
        out = np.zeros(nbytes, dtype=np.uint8)
        for begin, end, version in self.parts:
            begin, end = max(begin, pos), min(end, pos + nbytes)
            if begin < end and version:
                out[begin - pos : end - pos] = coded(version, begin, end)
        return out


def coded(version, begin, end):
    """Return bytes begin..end - 1 of what truncation `version` brought."""
    words = np.arange(begin // WORD, -(-end // WORD), dtype=np.uint64) | np.uint64(version << 32)
    return words.view(np.uint8)[begin % WORD : begin % WORD + end - begin]


def truncated(state, size, version):
    """Return the state after a truncation. New bytes are zero up to the end of their page, as the cache makes them; those
    of the pages behind carry the version."""
    parts = [(begin, min(end, size), by) for begin, end, by in state.parts if begin < size]
    if size > state.size:
        edge = min(-(-state.size // PAGE) * PAGE, size)
        parts += [(state.size, edge, 0), (edge, size, version)]
    return State(size, tuple(part for part in parts if part[0] < part[1]))


class CodedStore(pagecache.MemoryStore):
    """A writable store that fills what a truncation adds with the bytes of the next state."""

    def __init__(self, state):
        super().__init__(state.content(0, state.size).tobytes())
        self.next_state = state

    def truncate(self, size):
        super().truncate(size)
        with self._lock.held():
            self._data[:] = self.next_state.content(0, size).tobytes()


class History:
    """The states of the file. A read may show those from the last that had come about when it began on."""

    def __init__(self, state):
        self.states = [state]
        self.nr_done = 1

    def check_read(self, first, pos, nbytes, got):
        """Check what a read of nbytes at pos returned that began when `first` was the last state."""
        states = self.states[first:]
        lengths = [max(0, min(nbytes, state.size - pos)) for state in states]
        assert min(lengths) <= len(got) <= max(lengths), f"{len(got)} bytes, legal were {lengths}"
        self._check_bytes(states, pos, got, [state.size for state in states])

    def check_map(self, first, pos, got):
        """Check what a map showed: behind the end, up to the end of its page, there are zeros."""
        states = self.states[first:]
        self._check_bytes(states, pos, got, [-(-state.size // PAGE) * PAGE for state in states])

    def may_be_beyond(self, first, pos, nbytes):
        """Whether some page of the range was behind the end."""
        return any((pos + nbytes - 1) // PAGE * PAGE >= state.size for state in self.states[first:])

    @staticmethod
    def _check_bytes(states, pos, got, ends):
        array = np.frombuffer(got, dtype=np.uint8)
        right = np.zeros(len(got), dtype=bool)
        offsets = np.arange(pos, pos + len(got))
        for state, end in zip(states, ends, strict=True):
            right |= (array == state.content(pos, len(got))) & (offsets < end)
            if right.all():
                return
        bad = int(np.argmin(right))
        legal = [(state.size, int(state.content(pos + bad, 1)[0])) for state in states]
        raise AssertionError(f"byte {pos + bad} is {array[bad]}, legal were (size, byte): {legal}")


class Schedule:
    """Threads that read one file in all ways while another truncates it."""

    def __init__(self, cache, seed):
        state = truncated(State(0, ()), 20 * PAGE, 1)
        self.history = History(state)
        self.store = CodedStore(state)
        self.cache = cache
        self.file = cache.open(self.store, "r+b")
        self.seed = seed
        self.deadline = time.monotonic() + SECONDS / 2
        self.counts = {}
        self.errors = []

    def run(self):
        """Run all until the time is over. Raises the first error of any."""
        works = [self.truncate, self.read, self.read, self.look, self.map, self.disturb]
        threads = [threading.Thread(target=self.guard, args=item, daemon=True) for item in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS + PATIENCE_S)
            assert not thread.is_alive(), "a thread hangs"
        if self.errors:
            raise self.errors[0]

    def guard(self, number, work):
        steps = work(random.Random(self.seed + number))
        try:
            while time.monotonic() < self.deadline and not self.errors:
                next(steps)
                self.counts[work.__name__] = self.counts.get(work.__name__, 0) + 1
        except BaseException as error:
            self.errors.append(error)
        finally:
            steps.close()

    def somewhere(self, rng):
        return rng.randrange(MAX_PAGES * PAGE), rng.choice((1, 100, PAGE, 9000, 10 * PAGE))

    def truncate(self, rng):
        for version in range(2, 1 << 30):
            size = rng.choice((rng.randrange(MAX_PAGES * PAGE), rng.randrange(MAX_PAGES) * PAGE, 0, 20 * PAGE + 5))
            self.store.next_state = truncated(self.history.states[-1], size, version)
            self.history.states.append(self.store.next_state)
            self.file.truncate(size)
            self.history.nr_done += 1
            yield

    def read(self, rng):
        with self.cache.open(self.store, "rb") as file:
            while True:
                pos, nbytes = self.somewhere(rng)
                first = self.history.nr_done - 1
                got = file.pread(nbytes, pos)
                self.history.check_read(first, pos, nbytes, got)
                yield

    def look(self, rng):
        """Views, which also stay what they are."""
        while True:
            pos, nbytes = self.somewhere(rng)
            first = self.history.nr_done - 1
            try:
                view = self.file.view(nbytes, pos)
            except pagecache.CacheFullError:  # folios hold parts of it, and a copy has no room
                yield
                continue
            with view:
                taken = bytes(view)
                self.history.check_read(first, pos, nbytes, taken)
                yield
                assert view == taken, "a live view changed"

    def map(self, rng):
        """A map, made anew from time to time, as its length is that of the file."""
        while True:
            try:
                area = self.file.mmap()
            except ValueError:  # the file is empty
                yield
                continue
            with area:
                for _ in range(50):
                    pos = rng.randrange(len(area))
                    nbytes = min(rng.choice((1, 100, 2 * PAGE)), len(area) - pos)
                    first = self.history.nr_done - 1
                    try:
                        got = area[pos : pos + nbytes]
                    except BusError:
                        assert self.history.may_be_beyond(first, pos, nbytes)
                    else:
                        self.history.check_map(first, pos, got)
                    yield

    def disturb(self, rng):
        while True:
            pos = rng.randrange(MAX_PAGES) * PAGE
            choice = rng.randrange(5)
            if choice == 0:
                self.cache.drop_caches()
            elif choice == 1:
                self.file.prefetch(pos, 8 * PAGE).wait(PATIENCE_S)
            elif choice == 2:
                self.file.fadvise(pagecache.FADV_DONTNEED, pos, 9 * PAGE)
            else:
                self.cache.segment.reclaim(4)
            yield


@pytest.mark.stress
@pytest.mark.parametrize("nr_frames", [16, 256])
def test_no_read_shows_a_byte_that_was_not_there(nr_frames, seed):
    with checked_cache(nr_frames) as cache:
        schedule = Schedule(cache, seed)
        with schedule.file:
            schedule.run()
            last = schedule.history.states[-1]
            expected = last.content(0, last.size).tobytes()
            assert schedule.store.tobytes() == expected
            assert schedule.file.pread(MAX_PAGES * PAGE, 0) == expected
        assert set(schedule.counts) == {"truncate", "read", "look", "map", "disturb"}
        assert min(schedule.counts.values()) > 20
