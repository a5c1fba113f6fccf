"""Threads on demand for calls that block. They are daemons that come when there is work and go when there is none, so that
a store that hangs holds up neither other stores, nor closing, nor the end of the program.
"""

import _thread
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVarTuple

from pagecache._core import Mutex

MAX_WORKERS = 256
IDLE_TIMEOUT_S = 10.0

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
