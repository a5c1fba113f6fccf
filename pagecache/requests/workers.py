"""What one object lets run at once: many stores share threads, each has a limit of its own.

A `RequestQueue` belongs to one object: it lets `limit` requests run at once and keeps the rest in order.  Requests that a
reader waits for go before readahead.  The threads are those of `worker_pool.py`.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagecache._core import Places
from pagecache.stores.worker_pool import Task, WorkerPool, run_guarded

POLL_S = 0.001  # how often a worker looks where nothing wakes it


def _nothing() -> None:
    """Return None."""


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
        self.while_waiting: Callable[[], Task | None] = _nothing  # returns what is called while a thread waits for a place

    @property
    def limit(self) -> int:
        """Requests that may run at once."""
        return self._places.limit

    def narrow(self, limit: int) -> None:
        """Let no more requests than `limit` run at once from now on."""
        self._places.narrow(limit)

    def lend(self, may_overlap: bool = False) -> bool:
        """Let one request more run until `take_back`, as one that runs will never be used.

        may_overlap: also where requests are made one at a time. Returns whether it did.
        """
        if self.limit == 1 and not may_overlap:
            return False
        self._places.lend()
        self.wake()
        return True

    def take_back(self) -> None:
        """End a `lend`."""
        self._places.take_back()

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
        Raises Abandoned while it waits, if no thread waits for the thread's call any more.
        Context: sleeps while all places are taken; Ctrl-C ends the wait.
        """
        try:
            if urgent:
                with self._places.urgent(self.while_waiting()):
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
            look = self.while_waiting()
            if look is not None:
                look()
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
