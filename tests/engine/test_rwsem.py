"""invalidate_lock: readers share it, a writer is alone, no writer starves, and one that gives up holds no other back.

All of it holds with the futex and without it: the last test runs the others with PAGECACHE_FUTEX=0.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
from support import PATIENCE_S, STRESS, Crew, wait_until

from pagecache._core import AddressSpace, Segment


class Interrupted(BaseException):
    """What the tests' signal handler raises."""


@pytest.fixture
def lock():
    """The invalidate_lock of a mapping, free again when the test ends."""
    segment = Segment(4, nr_mappings=4)
    yield AddressSpace(segment)
    segment.check()


@contextlib.contextmanager
def shared(lock):
    lock.lock_shared()
    try:
        yield
    finally:
        lock.unlock_shared()


@contextlib.contextmanager
def exclusive(lock):
    lock.lock_exclusive()
    try:
        yield
    finally:
        lock.unlock_exclusive()


def is_awaited_by_writer(lock):
    """Whether a writer waits: then no reader is let in, although only readers hold the lock."""
    if lock.trylock_shared():
        lock.unlock_shared()
        return False
    return True


class Interrupt:
    """Interrupts the main thread: called, by the last of three signals, so that it surely waits; `once` at once."""

    def __init__(self):
        self.nr_handled = self.nr_raised = 0
        self.raise_at = None

    def handler(self, signum, frame):
        self.nr_handled += 1
        if self.nr_handled >= self.raise_at:
            self.nr_raised += 1
            raise Interrupted

    def once(self):
        self.raise_at = 0
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def __call__(self):
        self.raise_at = self.nr_handled + 3
        for number in range(self.nr_handled, self.raise_at):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            wait_until(lambda n=number: self.nr_handled > n, "the signal handler")


@pytest.fixture
def interrupt():
    """A function that interrupts the main thread, from another one."""
    interrupt = Interrupt()
    previous = signal.signal(signal.SIGUSR1, interrupt.handler)
    yield interrupt
    signal.signal(signal.SIGUSR1, previous)


class TestSharing:
    def test_readers_hold_it_together(self, lock):
        meeting = threading.Barrier(6)

        def read():
            with shared(lock):
                meeting.wait(PATIENCE_S)

        Crew(*[read] * 6).join_well()

    def test_a_reader_keeps_writers_out(self, lock):
        with shared(lock), shared(lock):
            assert not lock.trylock_exclusive()
            assert lock.trylock_shared()
            lock.unlock_shared()
        assert lock.trylock_exclusive()
        lock.unlock_exclusive()

    def test_a_writer_keeps_all_others_out(self, lock):
        with exclusive(lock):
            assert not lock.trylock_exclusive()
            assert not lock.trylock_shared()
        assert lock.trylock_shared()
        lock.unlock_shared()

    def test_locks_of_mappings_are_independent(self, lock):
        other = AddressSpace(lock.segment)
        with exclusive(lock), exclusive(other):
            assert not other.trylock_shared()
        with exclusive(lock), shared(other):
            assert not lock.trylock_shared()

    @pytest.mark.parametrize(("nr_readers", "nr_writers"), [(0, 4), (4, 1), (2, 2), (24, 8)])
    def test_writers_are_alone_and_readers_are_not_disturbed(self, lock, nr_readers, nr_writers, seed):
        turns = 200 if STRESS else 25
        inside = {"readers": 0, "writers": 0}
        count = [0]
        mutex = threading.Lock()

        def enter(who, by):
            with mutex:
                inside[who] += by
                assert inside["writers"] <= 1
                assert not (inside["writers"] and inside["readers"])

        def read(number):
            rng = random.Random(seed + number)
            for _ in range(turns):
                with shared(lock):
                    enter("readers", 1)
                    before = count[0]
                    time.sleep(rng.choice((0, 0, 0.0001)))
                    assert count[0] == before
                    enter("readers", -1)

        def write():
            for _ in range(turns):
                with exclusive(lock):
                    enter("writers", 1)
                    before = count[0]
                    time.sleep(0)
                    count[0] = before + 1
                    enter("writers", -1)

        Crew(*(lambda n=number: read(n) for number in range(nr_readers)), *[write] * nr_writers).join_well()
        assert count[0] == turns * nr_writers


class TestWaiting:
    def test_the_last_reader_lets_the_writer_in(self, lock):
        lock.lock_shared()
        lock.lock_shared()
        crew = Crew(lock.lock_exclusive)
        wait_until(lambda: is_awaited_by_writer(lock), "the writer to wait")
        lock.unlock_shared()
        assert is_awaited_by_writer(lock)
        lock.unlock_shared()
        crew.join_well()
        assert not lock.trylock_shared()
        lock.unlock_exclusive()

    def test_a_writer_lets_all_readers_in(self, lock):
        lock.lock_exclusive()
        meeting = threading.Barrier(4)

        def read():
            with shared(lock):
                meeting.wait(PATIENCE_S)

        crew = Crew(*[read] * 4)
        lock.unlock_exclusive()
        crew.join_well()

    def test_a_writer_does_not_starve_among_readers_that_overlap(self, lock):
        done = threading.Event()
        started = threading.Barrier(5)

        def read():
            with shared(lock):
                started.wait(PATIENCE_S)
                time.sleep(0)
            while not done.is_set():
                with shared(lock):
                    time.sleep(0.0005)

        def write():
            started.wait(PATIENCE_S)
            try:
                for _ in range(20):
                    with exclusive(lock):
                        pass
            finally:
                done.set()

        Crew(*[read] * 4, write).join_well()

    def test_new_readers_wait_behind_a_waiting_writer(self, lock):
        order = []
        lock.lock_shared()

        def write():
            with exclusive(lock):
                order.append("writer")

        def read():
            with shared(lock):
                order.append("reader")

        writer = Crew(write)
        wait_until(lambda: is_awaited_by_writer(lock), "the writer to wait")
        reader = Crew(read)
        assert order == []
        lock.unlock_shared()
        writer.join_well()
        reader.join_well()
        assert order == ["writer", "reader"]

    def test_readers_do_not_starve_among_writers_that_overlap(self, lock):
        """Two writers take turns for ever: one of them always waits."""
        done = threading.Event()

        def write():
            while not done.is_set():
                with exclusive(lock):
                    time.sleep(0)

        def read():
            try:
                for _ in range(20):
                    with shared(lock):
                        pass
            finally:
                done.set()

        Crew(write, write, read).join_well()

    def test_waiting_readers_come_between_two_writers(self, lock):
        order = []
        lock.lock_exclusive()

        def write():
            with exclusive(lock):
                order.append("writer")

        def read():
            with shared(lock):
                order.append("reader")

        readers = Crew(*[read] * 3)
        wait_until(lambda: lock.nr_waiting == (3, 0), "the readers to wait")
        writer = Crew(write)
        wait_until(lambda: lock.nr_waiting == (3, 1), "the writer to wait")
        lock.unlock_exclusive()
        readers.join_well()
        writer.join_well()
        assert order == ["reader"] * 3 + ["writer"]

    def test_no_hand_over_is_lost(self, lock):
        """Were each noticed only by the end of a time slice (50 ms), this would outlast PATIENCE_S."""
        rounds = 1000

        def work():
            for _ in range(rounds):
                with exclusive(lock):
                    pass

        crew = Crew(work)
        while crew.threads[0].is_alive():
            with shared(lock):
                time.sleep(0)
        crew.join_well()


class TestInterrupts:
    def interrupted(self, take, is_waiting, interrupt):
        crew = Crew(lambda: (wait_until(is_waiting, "the main thread to wait"), interrupt()))
        with pytest.raises(Interrupted):
            take()
        crew.join_well()

    def test_an_interrupted_writer_lets_readers_in_again(self, lock, interrupt):
        lock.lock_shared()
        self.interrupted(lock.lock_exclusive, lambda: is_awaited_by_writer(lock), interrupt)
        assert lock.trylock_shared()
        lock.unlock_shared()
        lock.unlock_shared()
        assert lock.trylock_exclusive()
        lock.unlock_exclusive()

    def test_readers_that_an_interrupted_writer_held_back_go_on(self, lock, interrupt):
        lock.lock_shared()
        crew = []

        def is_waiting():
            if not crew and is_awaited_by_writer(lock):
                crew.append(Crew(*[lambda: (lock.lock_shared(), lock.unlock_shared())] * 3))
            return bool(crew)

        self.interrupted(lock.lock_exclusive, is_waiting, interrupt)
        crew[0].join_well()
        lock.unlock_shared()

    @pytest.mark.parametrize("held", ["shared", "exclusive"])
    def test_a_waiting_writer_can_be_interrupted(self, lock, interrupt, held):
        started = threading.Event()
        with {"shared": shared, "exclusive": exclusive}[held](lock):
            crew = Crew(lambda: (started.wait(PATIENCE_S), interrupt()))
            with pytest.raises(Interrupted):
                started.set()
                lock.lock_exclusive()
            crew.join_well()
        with exclusive(lock):
            assert not lock.trylock_shared()

    def test_a_waiting_reader_can_be_interrupted(self, lock, interrupt):
        with exclusive(lock):
            self.interrupted(lock.lock_shared, lambda: lock.nr_waiting == (1, 0), interrupt)
            assert lock.nr_waiting == (0, 0)
        assert lock.trylock_exclusive()
        lock.unlock_exclusive()

    def test_an_interrupted_reader_whose_turn_it_is_lets_writers_in(self, lock, interrupt, seed):
        """Whether the interrupt or the turn comes first."""
        rng = random.Random(seed)

        def turn_and_interrupt():
            wait_until(lambda: lock.nr_waiting[0] == 1, "the main thread to wait")
            actions = [lock.unlock_exclusive, interrupt.once]
            rng.shuffle(actions)
            for action in actions:
                action()

        for number in range(200 if STRESS else 40):
            lock.lock_exclusive()
            crew = Crew(turn_and_interrupt)
            is_held = False
            try:
                lock.lock_shared()
                is_held = True
                wait_until(lambda n=number: interrupt.nr_raised > n, "the interrupt")
            except Interrupted as error:
                is_held = is_held or not any(
                    frame.filename.endswith(".pxi") for frame in traceback.extract_tb(error.__traceback__)
                )
            crew.join_well()
            if is_held:
                lock.unlock_shared()
            assert lock.nr_waiting == (0, 0)
            assert lock.trylock_exclusive()
            lock.unlock_exclusive()


def test_all_of_this_holds_without_the_futex():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not without", __file__]
    environment = {**os.environ, "PAGECACHE_FUTEX": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10 * PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
