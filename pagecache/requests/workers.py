"""Worker threads for stores written in Python: many stores share the threads, each has a limit of its own.

A `RequestQueue` belongs to one object: it lets `limit` requests run at once and keeps the rest in order.  Requests that a
reader waits for go before readahead.  The threads are daemons that come when there is work and go when there is none,
so that a store that hangs holds up neither other stores, nor closing, nor the end of the program.
"""

import _thread
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVarTuple

from pagecache._core import Mutex, Places

MAX_WORKERS = 256
IDLE_TIMEOUT_S = 10.0
POLL_S = 0.001  # how often a worker looks where nothing wakes it

Task = Callable[[], None]
_Arguments = TypeVarTuple("_Arguments")
logger = logging.getLogger("pagecache")


def run_guarded(task: Task) -> None:
    """Run what no thread waits for: an exception is logged, and harms neither the thread nor the tasks behind."""
    try:
        task()
    except BaseException:
        logger.exception("a task in the background failed")


def start_thread(name: str, target: Callable[[*_Arguments], None], *args: *_Arguments) -> threading.Thread:
    """Start a daemon thread. Returns it; it may not run yet. Raises RuntimeError if the system has none left.

    Context: `Thread.start` waits for the new thread on a lock that an exception out of a signal handler would leave
    locked, with the new thread behind it for ever. Signals strike the main thread only, so another one starts it.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)

    def start() -> None:
        try:
            thread.start()
        except RuntimeError:  # the system has no further thread, but this one
            target(*args)

    if threading.current_thread() is threading.main_thread():
        _thread.start_new_thread(start, ())
    else:
        thread.start()
    return thread


class WorkerPool:
    """Threads on demand. Context: tasks run without any lock of the pool."""

    def __init__(self, max_workers: int = MAX_WORKERS):
        self._lock = Mutex()  # guards all but the queue
        self._tasks: deque[Task] = deque()
        self._wake_ups: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each idle worker that has to look
        self._max_workers = max_workers
        self._nr_workers = 0
        self._nr_idle = 0

    @property
    def nr_workers(self) -> int:
        """Threads there are now, idle ones included."""
        return self._nr_workers

    def run(self, task: Task) -> None:
        """Run a task in some thread, at once if there are fewer than max_workers busy."""
        with self._lock.held():
            self._tasks.append(task)
            if self._nr_idle:
                self._wake_ups.put(None)
            if self._nr_idle >= len(self._tasks) or self._nr_workers >= self._max_workers:
                return
        try:
            start_thread("pagecache-io", self._work)
        except RuntimeError:  # the system has no thread left: another worker will come by, or this one does the work
            if self._nr_workers == 0:
                with suppress(IndexError):
                    run_guarded(self._tasks.popleft())

    def _work(self) -> None:
        with self._lock.held():  # counted here, where no signal strikes
            if self._nr_workers >= self._max_workers:
                return
            self._nr_workers += 1
        while True:
            with self._lock.held():
                task = self._tasks.popleft() if self._tasks else None
                self._nr_idle += task is None
            if task is None:
                is_late = self._wait()
                with self._lock.held():  # a task is taken and a worker no longer idle at the same time
                    self._nr_idle -= 1
                    task = self._tasks.popleft() if self._tasks else None
                    if task is None and is_late:
                        self._nr_workers -= 1
                        return
            if task is not None:
                run_guarded(task)
                task = None  # an idle thread keeps nothing alive

    def _wait(self) -> bool:
        """Wait for something to do. Returns whether that took too long."""
        try:
            self._wake_ups.get(timeout=IDLE_TIMEOUT_S)
        except queue.Empty:
            return True
        return False


class RequestQueue:
    """What one object lets run at once.

    pool: whose threads carry the requests. limit: requests at once, 1 or more.

    Places are counted by the engine, and tasks are taken out of the queue by the workers only: a signal that ends a
    function of the main thread half way leaves a task in the queue at worst, and `wake` finds a worker for it.
    Tasks must not wait for `invalidate_lock` or for a folio: their holders may be waiting for a place.
    """

    def __init__(self, pool: WorkerPool, limit: int):
        self._pool = pool
        self._places = Places(limit)
        self._waiting: deque[Task] = deque()
        self.on_idle: Task | None = None  # called, without a lock, whenever the last request has ended

    @property
    def limit(self) -> int:
        """Requests that may run at once."""
        return self._places.limit

    def narrow(self, limit: int) -> None:
        """Let no more requests than `limit` run at once from now on."""
        self._places.narrow(limit)

    @property
    def nr_running(self) -> int:
        """Requests that run now."""
        return self._places.taken

    def submit(self, task: Task) -> None:
        """Run a task in the background when its turn comes."""
        self._waiting.append(task)
        self.wake()

    def wake(self) -> None:
        """See to it that a worker carries out what waits, if anything may run."""
        if self._waiting and self._places.taken < self.limit:
            self._pool.run(self._drain)

    def _drain(self) -> None:
        """Carry out tasks while there are some and a place is free. Context: a worker thread."""
        while self._waiting and self._places.take():
            try:
                self._drain_one()
            finally:
                self._places.give()
        if not self._places.taken and not self._waiting and self.on_idle is not None:
            run_guarded(self.on_idle)

    def _drain_one(self) -> None:
        try:
            task = self._waiting.popleft()
        except IndexError:
            return
        run_guarded(task)

    @contextmanager
    def place(self, urgent: bool = True) -> Iterator[None]:
        """A place for a request that the calling thread carries out itself.

        urgent: before all that is waiting; otherwise behind it, which only workers may ask for.
        Context: sleeps while all places are taken; Ctrl-C ends the wait.
        """
        try:
            if urgent:
                with self._places.urgent():
                    yield
            else:
                self._wait_in_line()
                try:
                    yield
                finally:
                    self._places.give()
        finally:
            self.wake()

    def _wait_in_line(self) -> None:
        while self._waiting or not self._places.take():
            self.wake()
            time.sleep(POLL_S)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits (seconds). Returns whether that is so."""
        ends = time.monotonic() + timeout_s
        while self._waiting or self._places.taken:
            if time.monotonic() > ends:
                return False
            self.wake()
            time.sleep(POLL_S)
        return True


# Requests to stores, and calls that may wait for such requests, have threads of their own: a call never takes the
# thread that the request it waits for needs.
shared_pool = WorkerPool()
caller_pool = WorkerPool()


def _after_fork_in_child() -> None:
    """Give a child process pools of its own: the parent's threads are not in it."""
    global shared_pool, caller_pool
    shared_pool, caller_pool = WorkerPool(), WorkerPool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
