"""Worker threads for stores written in Python: many stores share the threads, each has a limit of its own.

A `Channel` belongs to one object: it lets `limit` requests run at once and keeps the rest in order.  Requests that a
reader waits for go before readahead.  The threads are daemons that come when there is work and go when there is none, so
that a store that hangs holds up neither other stores, nor closing, nor the end of the program.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_WORKERS = 256
IDLE_TIMEOUT_S = 10.0
WAIT_SLICE_S = 0.05  # a waiting thread looks for signals this often

Task = Callable[[], None]
logger = logging.getLogger("pagecache")


def run_guarded(task: Task) -> None:
    """Run what nobody waits for: an exception is logged, and harms neither the thread nor the tasks behind."""
    try:
        task()
    except BaseException:
        logger.exception("a task in the background failed")


class WorkerPool:
    """Threads on demand. Context: tasks run without any lock of the pool."""

    def __init__(self, max_workers: int = MAX_WORKERS):
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._max_workers = max_workers
        self._nr_workers = 0
        self._nr_idle = 0

    @property
    def nr_workers(self) -> int:
        """Threads there are now, idle ones included."""
        return self._nr_workers

    def run(self, task: Task) -> None:
        """Run a task in some thread, at once if there are fewer than max_workers busy."""
        with self._lock:
            self._tasks.put(task)
            if self._nr_idle >= self._tasks.qsize() or self._nr_workers >= self._max_workers:
                return
            self._nr_workers += 1
        try:
            threading.Thread(target=self._work, name="pagecache-io", daemon=True).start()
        except RuntimeError:  # the system has no thread left: another worker will come by, or this one does the work
            with self._lock:
                self._nr_workers -= 1
            if self._nr_workers == 0:
                run_guarded(self._tasks.get())

    def _work(self) -> None:
        while True:
            with self._lock:
                self._nr_idle += 1
            try:
                task = self._tasks.get(timeout=IDLE_TIMEOUT_S)
            except queue.Empty:
                task = None
            with self._lock:
                self._nr_idle -= 1
                if task is None and self._tasks.empty():
                    self._nr_workers -= 1
                    return
            if task is not None:
                run_guarded(task)
                task = None  # an idle thread keeps nothing alive


class Channel:
    """What one object lets run at once.

    pool: whose threads carry the requests. limit: requests at once, 1 or more.

    Tasks must not wait for `invalidate_lock` or for a folio: whoever holds those may be waiting for a place.
    """

    def __init__(self, pool: WorkerPool, limit: int):
        self._pool = pool
        self.limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._nr_running = 0
        self._nr_urgent = 0  # readers that wait for a place
        self.on_idle: Task | None = None

    @property
    def nr_running(self) -> int:
        """Requests that run now."""
        return self._nr_running

    def submit(self, task: Task) -> None:
        """Run a task in the background when its turn comes."""
        with self._changed:
            self._waiting.append(task)
        self._start_waiting()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits (seconds). Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._nr_running and not self._waiting, timeout_s)

    def _start_waiting(self) -> None:
        """Start as many tasks as there are places that no reader waits for."""
        while True:
            with self._changed:
                task = self._take()
                if task is None:
                    return
                self._nr_running += 1
            self._pool.run(lambda task=task: self._carry(task))

    def _take(self) -> Task | None:
        """Return the next task if there is a place for it. Context: lock held."""
        if self._waiting and self._nr_running + self._nr_urgent < self.limit:
            return self._waiting.popleft()
        return None

    def _carry(self, task: Task | None) -> None:
        while task is not None:
            run_guarded(task)
            with self._changed:
                self._nr_running -= 1
                task = self._take()
                self._nr_running += task is not None
                self._changed.notify_all()
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self.on_idle is not None and not self._nr_running:
            run_guarded(self.on_idle)

    @contextmanager
    def place(self, urgent: bool = True) -> Iterator[None]:
        """A place for a request that the calling thread carries out itself.

        urgent: before all that is waiting; otherwise behind it.
        Context: sleeps while all places are taken; Ctrl-C ends the wait.
        """
        with self._changed:
            self._nr_urgent += urgent
            try:
                while not self._has_place(urgent):
                    self._changed.wait(WAIT_SLICE_S)
                self._nr_running += 1
            finally:
                self._nr_urgent -= urgent
        try:
            yield
        finally:
            with self._changed:
                self._nr_running -= 1
                self._changed.notify_all()
            self._start_waiting()

    def _has_place(self, urgent: bool) -> bool:
        if urgent:
            return self._nr_running < self.limit
        return not self._waiting and self._nr_running + self._nr_urgent < self.limit


# Requests to stores, and calls that may wait for such requests, have threads of their own: a call never takes the thread
# that the request it waits for needs.
shared_pool = WorkerPool()
caller_pool = WorkerPool()


def renew_after_fork() -> None:
    """Give a child process pools of its own: the parent's threads are not in it."""
    global shared_pool, caller_pool
    shared_pool, caller_pool = WorkerPool(), WorkerPool()
