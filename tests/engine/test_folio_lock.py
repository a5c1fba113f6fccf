"""The folio lock: one owner, no lost wake-up, hand-off to the thread that lost too often, and waits that a signal can end.

The rules: docs/kernel.md, the folio lock.

All of it holds with the futex and without it: the last test runs the others with PAGECACHE_FUTEX=0.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
from support import PATIENCE_S, STRESS, Crew, add_page, wait_until

from pagecache._core import AddressSpace, Segment

ROUNDS = 1000  # hand-overs; were each noticed only by the end of a time slice (50 ms), they would outlast PATIENCE_S


class Interrupted(BaseException):
    """What the tests' signal handler raises."""


@pytest.fixture
def mapping():
    """A mapping of a segment that is in order when the test ends."""
    segment = Segment(64, nr_mappings=4)
    yield AddressSpace(segment)
    segment.check()


@pytest.fixture
def folio(mapping):
    """An uptodate folio in the cache."""
    add_page(mapping, 0, b"data")
    folio = mapping.get_folio(0)
    yield folio
    folio.put()


class Interrupt:
    """Makes the main thread's signal handler raise Interrupted; `nr_raised` counts how often it has."""

    def __init__(self):
        self.nr_raised = 0

    def handler(self, signum, frame):
        self.nr_raised += 1
        raise Interrupted

    def __call__(self):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


@pytest.fixture
def interrupt():
    """A function that interrupts what the main thread does, from another thread."""
    interrupt = Interrupt()
    previous = signal.signal(signal.SIGUSR1, interrupt.handler)
    yield interrupt
    signal.signal(signal.SIGUSR1, previous)


def spin_until(condition):
    """Wait without sleeping for what is about to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0)


def make_designated(folio):
    """Return when a waiter of the folio, which the caller has locked, is promised the lock."""
    wait_until(lambda: folio.handoff, "a waiter to be promised the lock")


class TestOwnership:
    def test_one_owner_at_a_time(self, folio):
        assert folio.trylock()
        assert folio.locked
        assert not folio.trylock()
        folio.unlock()
        assert not folio.locked
        folio.lock()
        assert folio.locked
        folio.unlock()

    def test_unlocking_what_is_not_locked_is_an_error(self, folio):
        with pytest.raises(RuntimeError, match="not locked"):
            folio.unlock()
        with pytest.raises(RuntimeError, match="not locked"):
            folio.end_read(True)

    def test_locks_of_folios_are_independent(self, mapping):
        folios = []
        for index in range(8):
            add_page(mapping, index)
            folios.append(mapping.get_folio(index))
        for folio in folios:
            folio.lock()
        for folio in folios[::-1]:
            folio.unlock()

    @pytest.mark.parametrize(("nr_threads", "nr_folios"), [(2, 1), (8, 1), (8, 3), (64, 4)])
    def test_threads_exclude_each_other_and_all_get_their_turn(self, mapping, nr_threads, nr_folios, seed):
        turns = (200 if STRESS else 40) // (nr_threads // 8 or 1) or 1
        counts, inside = [0] * nr_folios, [0] * nr_folios
        for index in range(nr_folios):
            add_page(mapping, index)

        def work(number):
            rng = random.Random(seed + number)
            for _ in range(turns):
                index = rng.randrange(nr_folios)
                folio = mapping.get_folio(index)
                folio.lock()
                inside[index] += 1
                assert inside[index] == 1
                before = counts[index]
                time.sleep(0)
                counts[index] = before + 1
                inside[index] -= 1
                folio.unlock()
                folio.put()

        Crew(*(lambda n=number: work(n) for number in range(nr_threads))).join_well()
        assert sum(counts) == nr_threads * turns

    @pytest.mark.parametrize("nr_threads", [2, 5])
    def test_trylock_gives_the_lock_to_one(self, folio, nr_threads):
        for _ in range(50):
            won = Crew(*[folio.trylock] * nr_threads).join_well()
            assert sum(won) == 1
            folio.unlock()


class TestWakeUp:
    def test_no_hand_over_is_lost(self, folio):
        turn = [0]

        def work():
            for number in range(ROUNDS):
                folio.lock()
                turn[0] = number + 1
                folio.unlock()
                spin_until(lambda n=number: turn[0] == -n - 1)

        folio.lock()
        crew = Crew(work)
        for number in range(ROUNDS):
            spin_until(lambda: folio.waiters)
            folio.unlock()
            spin_until(lambda n=number: turn[0] == n + 1)
            folio.lock()
            turn[0] = -number - 1
        folio.unlock()
        crew.join_well()

    def test_all_who_wait_for_a_read_are_woken(self, mapping):
        for index in range(40):
            folio = mapping.segment.alloc_folio()
            mapping.add_folio(folio, index)
            crew = Crew(*[folio.wait_unlocked] * 8)
            if index % 2:
                wait_until(lambda f=folio: f.waiters, "the first waiter")
            folio.end_read(True)
            crew.join_well()
            assert folio.uptodate

    def test_no_thread_sees_a_folio_unlocked_before_it_is_uptodate(self, mapping):
        folios = [mapping.segment.alloc_folio() for _ in range(60)]
        for index, folio in enumerate(folios):
            mapping.add_folio(folio, index)

        def look():
            for folio in folios:
                folio.wait_unlocked()
                assert folio.uptodate

        def watch():
            for folio in folios:
                while folio.locked:
                    time.sleep(0)
                assert folio.uptodate

        def finish():
            for folio in folios:
                folio.end_read(True)

        Crew(look, watch, finish, watch, look).join_well()

    def test_a_failed_read_wakes_too_and_leaves_no_data(self, mapping):
        folio = mapping.segment.alloc_folio()
        mapping.add_folio(folio, 3)
        crew = Crew(folio.lock)
        wait_until(lambda: folio.waiters, "the waiter")
        folio.end_read(False)
        crew.join_well()
        assert folio.locked
        assert not folio.uptodate
        mapping.remove_folio(folio)
        folio.unlock()

    def test_a_wait_without_a_reference_hinders_no_other(self, mapping):
        folio = mapping.segment.alloc_folio()
        mapping.add_folio(folio, 3)
        waiting = mapping.get_folio(3)
        crew = Crew(lambda: waiting.wait_unlocked(drop=True))
        wait_until(lambda: folio.waiters, "the waiter")
        assert folio.refcount == 2
        with pytest.raises(ValueError, match="dropped"):
            waiting.index  # noqa: B018
        folio.end_read(True)
        crew.join_well()

    def test_a_wait_ends_when_the_frame_has_become_another_folio(self, mapping):
        folio = mapping.segment.alloc_folio()
        mapping.add_folio(folio, 3)
        waiting = mapping.get_folio(3)
        frame = folio.frame
        crew = Crew(lambda: waiting.wait_unlocked(drop=True))
        wait_until(lambda: folio.waiters, "the waiter")
        mapping.remove_folio(folio)
        folio.unlock()
        folio.put()
        other = mapping.segment.alloc_folio()
        assert other.frame == frame
        mapping.add_folio(other, 9)
        crew.join_well()
        assert other.locked
        other.end_read(True)


class TestHandOff:
    def test_an_unlucky_waiter_is_promised_the_lock_and_gets_it(self, folio):
        """No other thread can take the lock between the unlock and the waiter's wake-up."""
        for _ in range(3):
            folio.lock()
            crew = Crew(folio.lock)
            make_designated(folio)
            folio.unlock()
            assert folio.locked
            assert not folio.trylock()
            crew.join_well()
            assert not folio.handoff
            folio.unlock()
            assert not folio.locked

    def test_only_one_of_many_is_promised_and_all_get_the_lock(self, folio):
        order = []

        def take():
            folio.lock()
            order.append(threading.get_ident())
            folio.unlock()

        folio.lock()
        crew = Crew(*[take] * 6)
        make_designated(folio)
        folio.unlock()
        crew.join_well()
        assert len(set(order)) == 6

    def test_a_waiter_gets_its_turn_against_one_that_never_rests(self, folio):
        got = threading.Event()
        folio.lock()

        def wait():
            folio.lock()
            got.set()
            folio.unlock()

        crew = Crew(wait)
        deadline = time.monotonic() + PATIENCE_S
        while not got.is_set():
            assert time.monotonic() < deadline
            folio.unlock()
            folio.lock()
        folio.unlock()
        crew.join_well()

    def test_a_read_that_ends_with_a_waiter_promised_is_uptodate_for_it(self, mapping):
        folio = mapping.segment.alloc_folio()
        mapping.add_folio(folio, 1)
        seen = []

        def wait():
            folio.lock()
            seen.append(folio.uptodate)
            folio.unlock()

        crew = Crew(wait)
        make_designated(folio)
        folio.end_read(True)
        crew.join_well()
        assert seen == [True]


class TestInterrupts:
    def assert_lockable_by_others(self, folio):
        """Another thread can lock and unlock."""

        def take():
            folio.lock()
            folio.unlock()

        Crew(take).join_well()
        assert not folio.locked
        assert not folio.handoff

    def interrupt_lock(self, folio, interrupt, ready):
        """Wait for the lock in the main thread until `ready` holds and a signal comes."""

        def send():
            wait_until(ready, "the main thread to wait")
            interrupt()

        crew = Crew(send)
        with pytest.raises(Interrupted):
            folio.lock()
        crew.join_well()

    def test_ctrl_c_ends_a_wait(self, folio):
        folio.lock()

        def press():
            wait_until(lambda: folio.waiters, "the main thread to wait")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        crew = Crew(press)
        with pytest.raises(KeyboardInterrupt):
            folio.lock()
        crew.join_well()
        assert folio.locked
        folio.unlock()
        self.assert_lockable_by_others(folio)

    def test_a_waiter_that_gives_up_leaves_the_lock_to_others(self, folio, interrupt):
        folio.lock()
        self.interrupt_lock(folio, interrupt, lambda: folio.waiters)
        folio.unlock()
        self.assert_lockable_by_others(folio)

    def test_a_promised_waiter_that_gives_up_leaves_the_lock_to_others(self, folio, interrupt):
        folio.lock()
        self.interrupt_lock(folio, interrupt, lambda: folio.handoff)
        assert not folio.handoff
        folio.unlock()
        assert not folio.locked
        self.assert_lockable_by_others(folio)

    def test_others_wait_on_when_the_promised_one_gives_up(self, folio, interrupt):
        folio.lock()
        taken = threading.Event()
        late = threading.Thread(target=lambda: (folio.lock(), taken.set(), folio.unlock()), daemon=True)

        def send():
            wait_until(lambda: folio.handoff, "the promise")
            late.start()
            interrupt()

        crew = Crew(send)
        with pytest.raises(Interrupted):
            folio.lock()
        crew.join_well()
        folio.unlock()
        assert taken.wait(PATIENCE_S)
        late.join(PATIENCE_S)

    def test_an_interrupt_that_meets_the_hand_over_loses_no_lock(self, folio, interrupt, seed):
        """Whatever comes first, afterwards the lock is the waiter's or no thread's."""
        rng = random.Random(seed)
        for number in range(60 if STRESS else 12):
            folio.lock()
            crew = Crew(lambda: self.unlock_and_interrupt(folio, interrupt, rng))
            is_mine = None
            try:
                folio.lock()
                is_mine = True
                wait_until(lambda n=number: interrupt.nr_raised > n, "the interrupt")
            except Interrupted as error:
                if is_mine is None:  # it came out of the wait, or right after the lock was taken
                    is_mine = not any(name.endswith(".pxi") for name, *_ in traceback.extract_tb(error.__traceback__))
            crew.join_well()
            assert folio.locked == is_mine
            if is_mine:
                folio.unlock()
            self.assert_lockable_by_others(folio)

    def unlock_and_interrupt(self, folio, interrupt, rng):
        spin_until(lambda: folio.waiters)
        if rng.random() < 0.5:
            make_designated(folio)
        actions = [interrupt, folio.unlock]
        rng.shuffle(actions)
        for action in actions:
            action()

    def test_signals_that_raise_nothing_do_not_end_a_wait(self, folio):
        nr_signals = [0]

        def note(signum, frame):
            nr_signals[0] += 1

        previous = signal.signal(signal.SIGUSR1, note)
        try:
            folio.lock()

            def send():
                for number in range(20):
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                    wait_until(lambda n=number: nr_signals[0] > n, "the handler")
                folio.unlock()

            crew = Crew(send)
            folio.lock()
            crew.join_well()
            assert nr_signals[0] == 20
            folio.unlock()
        finally:
            signal.signal(signal.SIGUSR1, previous)

    @pytest.mark.parametrize("drop", [False, True])
    def test_a_wait_for_a_read_can_be_interrupted(self, mapping, interrupt, drop):
        folio = mapping.segment.alloc_folio()
        mapping.add_folio(folio, 0)
        waiting = mapping.get_folio(0)
        crew = Crew(lambda: (wait_until(lambda: folio.waiters, "the main thread"), interrupt()))
        with pytest.raises(Interrupted):
            waiting.wait_unlocked(drop)
        crew.join_well()
        assert folio.locked
        folio.end_read(True)
        self.assert_lockable_by_others(folio)


def test_all_of_this_holds_without_the_futex():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not without", __file__]
    environment = {**os.environ, "PAGECACHE_FUTEX": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10 * PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
