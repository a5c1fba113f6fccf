"""Threads on demand, and what one object lets run at once."""

import functools
import gc
import os
import signal
import subprocess
import sys
import threading

import pytest
from support import PATIENCE_S, STRESS, Crew, wait_until

from pagecache.requests.workers import RequestQueue
from pagecache.stores import worker_pool
from pagecache.stores.worker_pool import WorkerPool


class Interrupted(BaseException):
    """What a signal handler raises."""


class Gate:
    """Tasks that wait to be let go, and note in which order they began and how many ran at once."""

    def __init__(self):
        self.open = threading.Event()
        self.begun = []
        self.nr_running = self.most_running = 0
        self._lock = threading.Lock()

    def task(self, name):
        """Return a task that passes the gate."""

        def run():
            with self._lock:
                self.begun.append(name)
                self.nr_running += 1
                self.most_running = max(self.most_running, self.nr_running)
            assert self.open.wait(PATIENCE_S)
            with self._lock:
                self.nr_running -= 1

        return run


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


class TestPool:
    def test_starts_threads_only_when_none_is_idle(self):
        pool, done = WorkerPool(), threading.Event()
        for _ in range(20):
            done.clear()
            pool.run(done.set)
            assert done.wait(PATIENCE_S)
            wait_until(lambda: pool._nr_idle == pool.nr_workers, "the worker to be idle")
        assert pool.nr_workers == 1

    def test_never_counts_on_a_worker_that_has_just_taken_a_task(self):
        """Else two that need each other would be left to one thread."""
        pool = WorkerPool()
        for _ in range(1000 * (10 if STRESS else 1)):
            both = threading.Barrier(3)
            for task in (int, functools.partial(both.wait, PATIENCE_S), functools.partial(both.wait, PATIENCE_S)):
                pool.run(task)
            both.wait(PATIENCE_S)

    def test_runs_what_hangs_beside_all_others(self, gate):
        pool, done = WorkerPool(), threading.Event()
        for number in range(8):
            pool.run(gate.task(number))
        pool.run(done.set)
        assert done.wait(PATIENCE_S)
        assert gate.most_running == 8

    def test_never_has_more_threads_than_it_may(self, gate):
        pool = WorkerPool(max_workers=3)
        for number in range(10):
            pool.run(gate.task(number))
        wait_until(lambda: gate.nr_running == 3, "three tasks to run")
        assert pool.nr_workers == 3
        gate.open.set()
        wait_until(lambda: len(gate.begun) == 10 and gate.nr_running == 0, "all tasks to end")
        assert gate.most_running == 3

    def test_survives_a_task_that_raises(self, caplog):
        pool, done = WorkerPool(max_workers=1), threading.Event()
        pool.run(lambda: 1 / 0)
        pool.run(done.set)
        assert done.wait(PATIENCE_S)
        assert pool.nr_workers == 1
        assert "ZeroDivisionError" in caplog.text

    def test_threads_go_when_there_is_nothing_to_do(self, monkeypatch):
        monkeypatch.setattr(worker_pool, "IDLE_TIMEOUT_S", 0.01)
        pool, done = WorkerPool(), threading.Event()
        pool.run(done.set)
        assert done.wait(PATIENCE_S)
        wait_until(lambda: pool.nr_workers == 0, "the thread to end")
        done.clear()
        pool.run(done.set)
        assert done.wait(PATIENCE_S)

    def test_does_the_work_itself_where_no_thread_can_be_had(self, monkeypatch):
        def no_thread(*args):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(worker_pool._thread, "start_new_thread", no_thread)
        pool, ran = WorkerPool(), []
        pool.run(lambda: ran.append(1))
        assert ran == [1]
        assert pool.nr_workers == 0

    def test_makes_do_with_the_one_thread_that_can_be_had(self, monkeypatch):
        def no_thread(self):
            raise RuntimeError("can't start new thread")

        pool, done = WorkerPool(), threading.Event()
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        pool.run(done.set)
        assert done.wait(PATIENCE_S)
        assert pool.nr_workers == 1

    def test_a_signal_while_a_thread_is_started_loses_no_task(self, rng):
        """The main thread hands tasks over and is interrupted again and again: each task runs, or was never handed over."""

        armed = []

        def interrupt(number, frame):
            if armed:
                armed.clear()
                raise Interrupted

        ran, before = [], signal.signal(signal.SIGALRM, interrupt)
        gc.disable()  # other libraries' callbacks in the collector would swallow the exception
        try:
            for number in range(2000 if STRESS else 200):
                pool = WorkerPool()
                try:
                    armed.append(1)
                    signal.setitimer(signal.ITIMER_REAL, rng.random() * 3e-4 + 1e-6)
                    pool.run(functools.partial(ran.append, number))
                    armed.clear()
                except Interrupted:
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
                pool.run(functools.partial(ran.append, -number - 1))  # finds a worker for what was left behind
                wait_until(lambda p=pool, n=number: -n - 1 in ran and not p._tasks, "the tasks to run")
                assert not pool._lock.is_held
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()
        wait_until(lambda: pool._nr_idle == pool.nr_workers, "the workers to be idle")

    def test_a_forked_child_has_threads_of_its_own(self):
        code = (
            "import os, pagecache, threading\n"
            "cache = pagecache.PageCache('1MiB')\n"
            "done = threading.Event()\n"
            "pagecache.requests.workers.shared_pool.run(done.set); done.wait()\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    done = threading.Event()\n"
            "    pagecache.requests.workers.shared_pool.run(done.set)\n"
            "    os._exit(0 if done.wait(20) else 1)\n"
            "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        )
        assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60, env=os.environ).returncode == 0


class TestChannel:
    def test_never_runs_more_than_its_limit(self, gate):
        request_queue = RequestQueue(WorkerPool(), 3)
        for number in range(9):
            request_queue.submit(gate.task(number))
        wait_until(lambda: gate.nr_running == 3, "three tasks to run")
        assert request_queue.nr_running == 3
        gate.open.set()
        assert request_queue.wait_idle(PATIENCE_S)
        assert gate.most_running == 3
        assert sorted(gate.begun) == list(range(9))

    def test_runs_in_order(self, gate):
        request_queue = RequestQueue(WorkerPool(), 1)
        for number in range(9):
            request_queue.submit(gate.task(number))
        gate.open.set()
        assert request_queue.wait_idle(PATIENCE_S)
        assert gate.begun == list(range(9))

    def test_a_reader_that_waits_goes_before_readahead(self, gate):
        request_queue, order = RequestQueue(WorkerPool(), 1), []

        def reader():
            with request_queue.place():
                order.append("reader")

        request_queue.submit(gate.task("first"))
        wait_until(lambda: gate.nr_running == 1, "the place to be taken")
        request_queue.submit(lambda: order.append("readahead"))
        thread = threading.Thread(target=reader)
        thread.start()
        wait_until(lambda: request_queue._places.nr_urgent_waiting == 1, "the reader to wait")
        gate.open.set()
        thread.join(PATIENCE_S)
        assert request_queue.wait_idle(PATIENCE_S)
        assert order == ["reader", "readahead"]

    def test_one_without_waiters_goes_behind_readahead(self, gate):
        request_queue, order = RequestQueue(WorkerPool(), 1), []
        entered = threading.Event()

        def prefetcher():
            entered.set()
            with request_queue.place(urgent=False):
                order.append("prefetch")

        request_queue.submit(gate.task("first"))
        wait_until(lambda: gate.nr_running == 1, "the place to be taken")
        request_queue.submit(lambda: order.append("readahead"))
        thread = threading.Thread(target=prefetcher)
        thread.start()
        assert entered.wait(PATIENCE_S)
        gate.open.set()
        thread.join(PATIENCE_S)
        assert order == ["readahead", "prefetch"]

    @pytest.mark.parametrize("limit", [1, 2, 4])
    def test_readers_and_readahead_together_stay_inside_the_limit(self, limit, rng):
        request_queue, lock = RequestQueue(WorkerPool(), limit), threading.Lock()
        state = {"now": 0, "most": 0, "ran": 0}

        def request():
            with lock:
                state["now"] += 1
                state["most"] = max(state["most"], state["now"])
                state["ran"] += 1
            threading.Event().wait(0.0002)
            with lock:
                state["now"] -= 1

        def reader():
            for _ in range(40):
                with request_queue.place(urgent=rng.random() < 0.7):
                    request()

        def submitter():
            for _ in range(40):
                request_queue.submit(request)

        Crew(reader, submitter, reader, submitter).join_well()
        assert request_queue.wait_idle(PATIENCE_S)
        assert state["ran"] == 160
        assert state["most"] <= limit
        assert request_queue.nr_running == 0

    def test_places_that_readers_gave_back_are_used_again(self, gate):
        """While a reader waits, others end: their places must not stay empty afterwards."""
        request_queue, blockers = RequestQueue(WorkerPool(), 4), Gate()
        inside, leave = threading.Event(), threading.Event()

        def reader():
            with request_queue.place():
                inside.set()
                assert leave.wait(PATIENCE_S)

        for number in range(4):
            request_queue.submit(blockers.task(number))
        wait_until(lambda: blockers.nr_running == 4, "all places to be taken")
        for number in range(8):
            request_queue.submit(gate.task(number))
        thread = threading.Thread(target=reader)
        thread.start()
        wait_until(lambda: request_queue._places.nr_urgent_waiting == 1, "the reader to wait")
        blockers.open.set()
        assert inside.wait(PATIENCE_S)
        wait_until(lambda: gate.nr_running == 3, "the other places to be taken")
        leave.set()
        thread.join(PATIENCE_S)
        wait_until(lambda: gate.nr_running == 4, "all places to be taken")
        gate.open.set()
        assert request_queue.wait_idle(PATIENCE_S)

    def test_a_task_that_raises_gives_its_place_back(self, caplog):
        request_queue, ran = RequestQueue(WorkerPool(), 1), []
        request_queue.submit(lambda: 1 / 0)
        request_queue.submit(lambda: ran.append(1))
        assert request_queue.wait_idle(PATIENCE_S)
        assert ran == [1]
        assert "ZeroDivisionError" in caplog.text

    def test_a_reader_that_raises_gives_its_place_back(self):
        request_queue = RequestQueue(WorkerPool(), 1)
        with pytest.raises(KeyboardInterrupt), request_queue.place():
            raise KeyboardInterrupt
        with request_queue.place():
            assert request_queue.nr_running == 1
        assert request_queue.nr_running == 0

    def test_waiting_for_it_to_be_idle_can_end_early(self, gate):
        request_queue = RequestQueue(WorkerPool(), 1)
        request_queue.submit(gate.task(1))
        assert not request_queue.wait_idle(0.01)
        gate.open.set()
        assert request_queue.wait_idle(PATIENCE_S)
