"""The lock of the Python layers and what they sleep on: an exception out of a signal handler leaves nothing locked."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support import PATIENCE_S, STRESS, Crew, wait_until

from pagecache._core import EventCount, Mutex


class Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.fixture
def alarms():
    """SIGALRM raises Interrupted."""

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def without_alarm():
    """Stop the timer, also if it goes off at that moment."""
    while True:
        try:
            return signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            pass


class TestMutex:
    def test_one_thread_at_a_time(self):
        mutex, inside, seen = Mutex(), [], []

        def work():
            for _ in range(5000 if STRESS else 500):
                with mutex.held():
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()

        Crew(*[work] * 4).join_well()
        assert set(seen) == {1}
        assert not mutex.is_held

    def test_the_thread_that_holds_it_may_take_it_again(self):
        mutex = Mutex()
        with mutex.held():
            with mutex.held():
                assert mutex.is_held
            assert mutex.is_held
            with pytest.raises(ZeroDivisionError), mutex.held():
                raise ZeroDivisionError
            assert mutex.is_held
        assert not mutex.is_held

    def test_a_hold_ends_with_its_object(self):
        mutex = Mutex()
        guard = mutex.held()
        guard.__enter__()
        assert mutex.is_held
        del guard
        assert not mutex.is_held

    def test_a_guard_that_is_not_entered_holds_nothing(self):
        mutex = Mutex()
        guard = mutex.held()
        assert not mutex.is_held
        guard.__exit__(None, None, None)
        assert not mutex.is_held

    def test_waiters_all_get_it(self):
        mutex, order = Mutex(), []

        def work():
            with mutex.held():
                order.append(threading.get_ident())

        with mutex.held():
            crew = Crew(*[work] * 8)
            time.sleep(0.01)
            assert order == []
        crew.join_well()
        assert len(set(order)) == 8

    def test_an_interrupt_ends_the_wait_and_others_go_on(self, alarms):
        mutex, taken, leave = Mutex(), threading.Event(), threading.Event()

        def hold():
            with mutex.held():
                taken.set()
                assert leave.wait(PATIENCE_S)

        def follow():
            with mutex.held():
                pass

        holder = Crew(hold)
        assert taken.wait(PATIENCE_S)
        follower = Crew(follow)
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with mutex.held():
                pytest.fail("two hold it")
        leave.set()
        holder.join_well()
        follower.join_well()
        with mutex.held():
            pass

    @pytest.mark.stress
    def test_an_interrupt_at_any_moment_leaves_it_free(self, alarms, rng):
        mutex, done = Mutex(), threading.Event()

        def compete():
            while not done.is_set():
                with mutex.held():
                    pass

        def use():
            while True:
                with mutex.held(), mutex.held():
                    sum(range(20))

        crew = Crew(compete)
        try:
            for _ in range(20_000 if STRESS else 1500):
                with contextlib.suppress(Interrupted):
                    signal.setitimer(signal.ITIMER_REAL, rng.random() * 3e-4 + 1e-6)
                    use()
        finally:
            without_alarm()
            done.set()
        crew.join_well()
        assert not mutex.is_held


class TestEventCount:
    def test_no_change_is_missed(self):
        count, box = EventCount(), []
        rounds = 5000 if STRESS else 500

        def give():
            for number in range(rounds):
                while True:
                    seen = count.value
                    if not box:
                        break
                    assert count.wait(seen, PATIENCE_S)
                box.append(number)
                count.advance()

        def take():
            for number in range(rounds):
                while True:
                    seen = count.value
                    if box:
                        break
                    assert count.wait(seen, PATIENCE_S)
                assert box.pop() == number
                count.advance()

        Crew(give, take).join_well()

    def test_waits_only_so_long(self):
        count = EventCount()
        assert not count.wait(count.value, 0)
        assert not count.wait(count.value, -1.0)
        assert not count.wait(count.value, 0.06)
        seen = count.value
        count.advance()
        assert count.wait(seen, 0)
        assert count.wait(seen)

    def test_wakes_all(self):
        count = EventCount()
        seen, waiting = count.value, []

        def wait():
            waiting.append(1)
            assert count.wait(seen)

        crew = Crew(*[wait] * 6)
        wait_until(lambda: len(waiting) == 6, "all to wait")
        count.advance()
        crew.join_well()

    def test_an_interrupt_ends_the_wait(self, alarms):
        count = EventCount()
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            count.wait(count.value)


@pytest.mark.skipif(os.environ.get("PAGECACHE_FUTEX") == "0", reason="this is that run")
def test_all_of_it_without_the_futex():
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(command, env={**os.environ, "PAGECACHE_FUTEX": "0"}, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout
