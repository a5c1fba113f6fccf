"""Ctrl-C: every wait can be interrupted, and an interrupt anywhere leaves nothing behind that another reader would
stumble on."""

import contextlib
import gc
import os
import signal
import threading
import time

import pytest
from support import (
    PAGE,
    STRESS,
    BlockingStore,
    Crew,
    Store,
    assert_nothing_is_held,
    frame_of,
    pages_of,
    read,
    wait_until,
)

import pagecache

DATA = pages_of(100 * PAGE)


@pytest.fixture(autouse=True)
def interrupts():
    """SIGINT raises KeyboardInterrupt, even if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def by_pthread_kill():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def by_kill():
    os.kill(os.getpid(), signal.SIGINT)


def is_stuck(ident):
    """Whether a thread has not moved for a while: it waits in the engine, or in the store."""
    frame = frame_of(ident)
    place = (frame, frame.f_lasti)
    for _ in range(10):
        time.sleep(0.002)
        frame = frame_of(ident)
        if (frame, frame.f_lasti) != place:
            return False
    return True


def interrupted(call, send=by_pthread_kill):
    """Make a call that waits, and interrupt it as soon as it does."""
    started = threading.Event()
    main = threading.main_thread().ident

    def interrupt():
        started.wait()
        wait_until(lambda: is_stuck(main), "the main thread to wait")
        send()

    sender = Crew(interrupt)
    with pytest.raises(KeyboardInterrupt):
        started.set()
        call()
        pytest.fail("the call came back")
    sender.join_well()


class TestWaits:
    @pytest.fixture
    def hung(self, make_cache):
        """A cache whose store hangs in the read of page 5 for another thread: (cache, file, store, that thread)."""
        store = BlockingStore(DATA)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            crew = Crew(lambda: file.pread(PAGE, 5 * PAGE))
            assert store.entered.wait(30)
            yield cache, file, store, crew
            store.go_on.set()
            assert crew.join() == [DATA[5 * PAGE : 6 * PAGE]]
            assert file.pread(len(DATA), 0) == DATA
            assert_nothing_is_held(cache)

    @pytest.mark.parametrize("send", [by_pthread_kill, by_kill])
    @pytest.mark.parametrize("way", ["pread", "preadinto", "view", "iter_views", "read", "readline"])
    def test_for_a_page_that_another_thread_reads(self, hung, way, send):
        _, file, _, _ = hung
        file.seek(5 * PAGE)
        calls = {
            "pread": lambda: file.pread(10, 5 * PAGE),
            "preadinto": lambda: file.preadinto(bytearray(10), 5 * PAGE),
            "view": lambda: file.view(10, 5 * PAGE),
            "iter_views": lambda: list(file.iter_views(10, 5 * PAGE)),
            "read": lambda: file.read(10),
            "readline": lambda: file.readline(10),
        }
        interrupted(calls[way], send)
        assert file.tell() == 5 * PAGE

    def test_for_the_position_of_a_file_that_is_being_read(self, make_cache):
        store = BlockingStore(DATA)
        with make_cache("1MiB").open(store) as file:
            crew = Crew(lambda: file.read(PAGE))
            assert store.entered.wait(30)
            for call in (lambda: file.read(1), lambda: file.seek(0), lambda: file.readinto(bytearray(1))):
                interrupted(call)
            store.go_on.set()
            assert crew.join() == [DATA[:PAGE]]
            assert file.read(PAGE) == DATA[PAGE : 2 * PAGE]

    def test_for_readers_before_pages_are_invalidated(self, hung):
        _, file, store, _ = hung
        interrupted(file.invalidate)
        assert len(store.requests) == 1
        store.go_on.set()
        assert file.pread(PAGE, 50 * PAGE) == DATA[50 * PAGE : 51 * PAGE]

    def test_for_a_truncation_in_a_store_that_hangs(self, make_cache):
        entered, go_on = threading.Event(), threading.Event()

        class HangsInTruncate(pagecache.MemoryStore):
            def truncate(self, size):
                entered.set()
                assert go_on.wait(30)
                super().truncate(size)

        with make_cache("1MiB").open(HangsInTruncate(DATA), "r+b") as file:
            crew = Crew(lambda: file.truncate(10 * PAGE))
            assert entered.wait(30)
            interrupted(lambda: file.pread(10, 5 * PAGE))
            go_on.set()
            assert crew.join() == [10 * PAGE]
            assert file.pread(len(DATA), 0) == DATA[: 10 * PAGE]

    def test_for_memory_that_another_read_holds(self, make_cache):
        cache = make_cache(PAGE)
        store = BlockingStore(DATA)
        with cache.open(store) as file, cache.open(Store(DATA, key="other")) as other:
            crew = Crew(lambda: file.pread(10, 5 * PAGE))
            assert store.entered.wait(30)
            interrupted(lambda: other.pread(10, 0))
            store.go_on.set()
            assert crew.join() == [DATA[5 * PAGE :][:10]]
            assert other.pread(10, 0) == DATA[:10]

    def test_in_the_store_itself(self, make_cache):
        store = BlockingStore(DATA)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            interrupted(lambda: file.pread(PAGE, 5 * PAGE))
            cache.check()
            assert file.mincore()[5] == 0
            store.go_on.set()
            assert file.pread(PAGE, 5 * PAGE) == DATA[5 * PAGE : 6 * PAGE]
            assert len(store.requests) == 2

    def test_goes_on_after_a_handler_that_raises_nothing(self, hung):
        _, file, store, _ = hung
        calls = []
        signal.signal(signal.SIGINT, lambda number, frame: calls.append(number) or store.go_on.set())
        main = threading.main_thread().ident
        sender = Crew(lambda: (wait_until(lambda: is_stuck(main), "the main thread to wait"), by_kill()))
        assert file.pread(PAGE, 5 * PAGE) == DATA[5 * PAGE : 6 * PAGE]
        sender.join_well()
        assert calls == [signal.SIGINT]


def use_at_random(file, rng):
    """Use a file in all ways until something interrupts."""
    while True:
        offset, way = rng.randrange(len(DATA)), rng.randrange(6)
        if way == 0:
            assert file.pread(5000, offset) == DATA[offset : offset + 5000]
        elif way == 1:
            assert read(file, "view", 100, offset) == DATA[offset : offset + 100]
        elif way == 2:
            file.seek(offset)
            file.read(9000)
        elif way == 3:
            assert b"".join(file.iter_views(9000, offset)) == DATA[offset : offset + 9000]
        elif way == 4:
            file.invalidate(offset, 9000)
        else:
            file.fadvise(pagecache.FADV_WILLNEED, offset, 9000)


@contextlib.contextmanager
def without_collector():
    """No garbage collection of its own accord: a signal that lands in one is lost there."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.stress
@pytest.mark.parametrize("nr_frames", [1, 3, 64])
def test_an_interrupt_at_any_moment_leaves_no_lock_and_no_reference(make_cache, nr_frames, rng):
    cache = make_cache(nr_frames * PAGE)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with cache.open(pagecache.MemoryStore(DATA)) as file, without_collector():
        for _ in range(20_000 if STRESS else 1500):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.001 + 1e-6)
                use_at_random(file, rng)
            except KeyboardInterrupt:
                pass
            if cache.stats().nr_pinned:
                gc.collect()
            cache.check()
        assert file.pread(len(DATA), 0) == DATA
