"""What tests of the read surface share: stores that misbehave on purpose, threads that start and end together, and
waiting for a condition instead of for a clock."""

import contextlib
import faulthandler
import gc
import itertools
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from hypothesis import settings

import pagecache
from pagecache._core import MemoryWait
from pagecache.readahead import ondemand

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
NOBODY = 65534  # a user who owns nothing

PAGE = 4096
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
WAYS = ("pread", "preadinto", "view", "iter_views")
PATIENCE_S = int(os.environ.get("PAGECACHE_TEST_SECONDS", 120)) // 4  # then a test says what it waits for in vain


def few(examples):
    """Settings of a Hypothesis test that gets so many examples, unless the tests run for long."""
    if STRESS:
        return settings()
    return settings(max_examples=examples)


def pages_of(size, start=0):
    """Return `size` bytes in which each page, and each place in it, differs from all others."""
    words = range(start // 8, (start + size) // 8 + 1)
    return b"".join(word.to_bytes(8, "little") for word in words)[:size]


class Store:
    """The least that is a store: the bytes of one object, and a list of the requests that came."""

    def __init__(self, data, key="object"):
        self.data = data
        self.key = key
        self.version = "1"
        self.requests = []
        self.nr_closed = 0
        self._lock = threading.Lock()

    def size(self):
        return len(self.data)

    def validator(self):
        return self.version

    def readv(self, offset, buffers):
        with self._lock:
            self.requests.append((offset, sum(map(len, buffers))))
        return self.answer(offset, buffers)

    def answer(self, offset, buffers):
        """Fill the buffers; what a misbehaving store overrides."""
        done = 0
        for buffer in buffers:
            piece = self.data[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
        return done

    def close(self):
        self.nr_closed += 1


class FaultyStore(Store):
    """Raises what `fault(number, first, last)` returns, which knows the request: its number, first and last page."""

    def __init__(self, data, fault, key="faulty"):
        super().__init__(data, key)
        self.fault = fault
        self._numbers = itertools.count()

    def answer(self, offset, buffers):
        nbytes = sum(map(len, buffers))
        error = self.fault(next(self._numbers), offset // PAGE, (offset + nbytes - 1) // PAGE)
        if error is not None:
            raise error
        return super().answer(offset, buffers)


class ShortStore(Store):
    """Brings at most `limit` bytes at a time."""

    def __init__(self, data, limit, key="short"):
        super().__init__(data, key)
        self.limit = limit

    def answer(self, offset, buffers):
        done = 0
        for buffer in buffers:
            wanted = min(len(buffer), self.limit - done)
            done += super().answer(offset + done, [buffer[:wanted]])
        return done


class BlockingStore(Store):
    """Answers when it may. `entered` is set as soon as a request waits; `error`: what it then raises, once."""

    def __init__(self, data, key="blocking"):
        super().__init__(data, key)
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.error = None

    def answer(self, offset, buffers):
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S), "no test let the store answer"
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().answer(offset, buffers)


def is_too_long_to_copy(file, nbytes, offset):
    """Whether a view of a range has to be of one folio: its copy would not fit into one, or into half of the cache."""
    nbytes = max(0, min(nbytes, file.size - offset))
    nr_pages = 1 << ((nbytes - 1) // PAGE).bit_length() if nbytes else 0
    return nr_pages > min(512, file.cache.stats().nr_frames // 2)


def read(file, way, nbytes, offset):
    """Read a range in one of the four ways; returns the bytes. What is too long for a view is read by several."""
    if way == "pread":
        return file.pread(nbytes, offset)
    if way == "preadinto":
        buffer = bytearray(b"\xa5" * (nbytes + 2))
        done = file.preadinto(memoryview(buffer)[1:-1], offset)
        assert buffer[0] == 0xA5
        assert set(buffer[1 + done :]) == {0xA5}
        return bytes(buffer[1 : 1 + done])
    if way == "view":
        try:
            with file.view(nbytes, offset) as view:
                return bytes(view)
        except pagecache.CacheFullError:
            if not is_too_long_to_copy(file, nbytes, offset):
                raise
    pieces = []
    for view in file.iter_views(nbytes, offset):
        pieces.append(bytes(view))
        view.release()
    return b"".join(pieces)


def wait_until(condition, what):
    """Return when the condition holds; fail when it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.001)


def drop_pages(cache, nr_pages):
    """Drop at least so many pages, and return how many were dropped. A thread that has read a folio in the background lets
    go of it after it has unlocked it, so the first try may find it in use."""
    nr_dropped = 0

    def are_dropped():
        nonlocal nr_dropped
        nr_dropped += cache.drop_caches()
        return nr_dropped >= nr_pages

    wait_until(are_dropped, f"{nr_pages} pages to be dropped")
    return nr_dropped


def frame_of(ident):
    """Return the frame that a thread (its `ident`) runs now, or None.

    Without the collector meanwhile: CPython 3.11 may run it while it lists the frames, and let go of what it lists.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(ident)
    finally:
        if was_enabled:
            gc.enable()


def nr_threads_waiting(threads):
    """Count the threads that are in the engine's wait for another thread's read: they will get what it gives."""
    frames = [frame_of(thread.ident) for thread in threads]
    return sum(frame is not None and frame.f_code.co_name == "wait_for_folio" for frame in frames)


def assert_same(found, expected, start=0):
    """Check that bytes, which begin at offset `start`, are those expected; says where they differ."""
    if found == expected:
        return
    pairs = zip(found, expected, strict=False)
    differing = [at for at, (one, other) in enumerate(pairs) if one != other] or [min(len(found), len(expected))]
    first, last = differing[0], differing[-1]
    raise AssertionError(
        f"{len(found)} bytes, {len(expected)} expected; {len(differing)} differ, from {start + first} (byte "
        f"{(start + first) % PAGE} of page {(start + first) // PAGE}) to {start + last}: "
        f"{bytes(found[first : first + 8]).hex()} instead of {bytes(expected[first : first + 8]).hex()}"
    )


def stacks():
    """Return where all threads are now."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode()


class Crew:
    """Threads that start together; `join` returns what each returned, or the exception that it raised."""

    def __init__(self, *targets):
        self._barrier = threading.Barrier(len(targets))
        self.results = [None] * len(targets)
        self.threads = [
            threading.Thread(target=self._run, args=(number, target), daemon=True)
            for number, target in enumerate(targets)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number, target):
        try:
            self._barrier.wait(PATIENCE_S)
            self.results[number] = target()
        except BaseException as error:
            self.results[number] = error

    def join(self):
        deadline = time.monotonic() + PATIENCE_S
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a thread hangs\n{stacks()}"
        return self.results

    def join_well(self):
        """Join threads of which none may fail."""
        results = self.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


class WatchedMemoryWait:
    """A MemoryWait that calls `on_wait` with the timeout before each of its sleeps."""

    def __init__(self, segment, on_wait):
        self._wait = MemoryWait(segment)
        self._on_wait = on_wait

    def __enter__(self):
        self._wait.__enter__()
        return self

    def __exit__(self, *exc):
        self._wait.__exit__(*exc)

    def look(self, attempt):
        return self._wait.look(attempt)

    def wait(self, timeout_s):
        self._on_wait(timeout_s)
        self._wait.wait(timeout_s)


class WindowLog:
    """What readahead issues: windows as "start+size/async", plain reads as "start:size"."""

    def __init__(self, monkeypatch):
        self.issued = []
        self._in_window = False
        self._order, self._plain = ondemand.page_cache_ra_order, ondemand.do_page_cache_ra
        monkeypatch.setattr(ondemand, "page_cache_ra_order", self._log_window)
        monkeypatch.setattr(ondemand, "do_page_cache_ra", self._log_plain)

    def _log_window(self, mapping, ra, **options):
        self.issued.append(f"{ra.start}+{ra.size}/{ra.async_size}")
        self._in_window = True
        try:
            self._order(mapping, ra, **options)
        finally:
            self._in_window = False

    def _log_plain(self, mapping, index, nr, lookahead, **options):
        if not self._in_window:
            self.issued.append(f"{index}:{nr}")
        self._plain(mapping, index, nr, lookahead, **options)


def add_page(mapping, index, data=b"", order=0):
    """Cache an uptodate folio that begins with these bytes; returns whether there was room and none there yet."""
    folio = mapping.segment.alloc_folio(order)
    if folio is None or mapping.add_folio(folio, index) != 0:
        return False
    batch = mapping.adopt(folio)
    for buffer in batch.memory(len(data)):  # one folio is one piece
        with memoryview(buffer) as view:
            view[:] = data
    batch.end_read(len(data))
    return True


def bytes_of(mapping, index):
    """Return the bytes of the folio that caches a page, or None."""
    folio = mapping.get_folio(index)
    return None if folio is None else folio.tobytes()


@contextlib.contextmanager
def checked_cache(frames, **options):
    """A cache of so many page frames, whose every invariant is checked at the end."""
    with pagecache.PageCache(frames * PAGE, **options) as cache:
        yield cache
        cache.check()


def let_time_pass(path):
    """Wait until a foreign change of a file gets another time than its last one: clocks of file systems tick,
    before Linux 6.13 a few hundred times a second."""
    with tempfile.TemporaryFile(dir=os.path.dirname(path)) as probe:
        while os.fstat(probe.fileno()).st_ctime_ns <= os.stat(path).st_ctime_ns:
            os.pwrite(probe.fileno(), b"x", 0)


def nr_descriptors():
    """Count the open descriptors of this process: no garbage, and no sockets, which libraries close at any time."""
    gc.collect()
    targets = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            targets.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(not target.startswith("socket:") for target in targets)


def assert_nothing_is_held(cache):
    """Check that no page frame is lost: all are free once the cache has dropped what it holds."""
    cache.check()
    cache.drop_caches()
    cache.check()
    stats = cache.stats()
    assert (stats.nr_file_pages, stats.nr_free_pages, stats.nr_pinned) == (0, stats.nr_frames, 0)
