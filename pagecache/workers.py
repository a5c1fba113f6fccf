"""Worker threads for stores written in Python: many stores share the threads, each has a limit of its own.

A `Channel` belongs to one object: it lets `limit` requests run at once and keeps the rest in order.  Requests that a
reader waits for go before readahead.  The threads are daemons that come when there is work and go when there is none, so
that a store that hangs holds up neither other stores, nor closing, nor the end of the program.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_WORKERS = 256
IDLE_TIMEOUT_S = 10.0
WAIT_SLICE_S = 0.05  # a waiting thread looks for signals this often

Task = Callable[[], None]


class WorkerPool:
    """Threads on demand. Context: tasks run without any lock of the pool; they must not raise."""

    def __init__(self, max_workers: int = MAX_WORKERS):
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._max_workers = max_workers
        self._nr_workers = 0
        self._nr_idle = 0

    def run(self, task: Task) -> None:
        """Run a task in some thread, at once if there are fewer than max_workers busy."""
        with self._lock:
            self._tasks.put(task)
            if self._nr_idle >= self._tasks.qsize() or self._nr_workers >= self._max_workers:
                return
            self._nr_workers += 1
        threading.Thread(target=self._work, name="pagecache-io", daemon=True).start()

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
                task()


class Channel:
    """What one object lets run at once.

    pool: whose threads carry the requests. limit: requests at once, 1 or more.
    """

    def __init__(self, pool: WorkerPool, limit: int):
        self._pool = pool
        self.limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._nr_running = 0
        self._nr_urgent = 0

    @property
    def nr_running(self) -> int:
        """Requests that run now."""
        return self._nr_running

    def submit(self, task: Task) -> None:
        """Run a task in the background when its turn comes."""
        with self._changed:
            if self._nr_running >= self.limit or self._nr_urgent:
                self._waiting.append(task)
                return
            self._nr_running += 1
        self._pool.run(lambda: self._carry(task))

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing runs or waits (seconds). Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._nr_running and not self._waiting, timeout_s)

    def _carry(self, task: Task | None) -> None:
        while task is not None:
            try:
                task()
            finally:
                task = self._next()

    def _next(self) -> Task | None:
        """Give the place to the next task, or back."""
        with self._changed:
            if self._waiting and not self._nr_urgent:
                return self._waiting.popleft()
            self._nr_running -= 1
            self._changed.notify_all()
            return None

    @contextmanager
    def urgent(self) -> Iterator[None]:
        """A place for a request that the calling thread carries out itself, before all that is waiting.

        Context: sleeps while all places are taken; Ctrl-C ends the wait.
        """
        with self._changed:
            self._nr_urgent += 1
            try:
                while self._nr_running >= self.limit:
                    self._changed.wait(WAIT_SLICE_S)
                self._nr_running += 1
            finally:
                self._nr_urgent -= 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        task = self._next()
        if task is not None:
            self._pool.run(lambda: self._carry(task))


shared_pool = WorkerPool()


def renew_after_fork() -> None:
    """Give a child process a pool of its own: the parent's threads are not in it."""
    global shared_pool
    shared_pool = WorkerPool()
