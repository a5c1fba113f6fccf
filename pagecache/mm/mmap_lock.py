"""The lock of a software address space."""

import threading
from collections.abc import Callable

from pagecache._core import EventCount, Mutex

WAIT_SLICE_S = 0.05  # a waiting thread looks again this often, even if nothing wakes it


class MmapLock:
    """The lock of an address space: faults share it, changes of the areas exclude them.

    A waiting writer keeps new readers out, so it waits only for the faults that are under way. The lock knows its
    threads: to share it again, or to give back what one does not hold, does nothing. So take it inside `try` and give
    it back in `finally`; an exception from outside, wherever it strikes, then blocks no other thread.
    Context: waits may be interrupted by a signal handler that raises.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._changed = EventCount()
        self._readers: set[int] = set()
        self._writer = 0
        self._writers_waiting: set[int] = set()

    @property
    def nr_readers(self) -> int:
        """Threads that share the lock now."""
        return len(self._readers)

    @property
    def write_locked(self) -> bool:
        """Whether a thread excludes all others now."""
        return self._writer != 0

    def lock_shared(self) -> None:
        """Share the lock with other readers."""
        me = threading.get_ident()
        if me not in self._readers:
            self._wait_until(lambda: self._try_share(me))

    def _try_share(self, me: int) -> bool:
        with self._lock.held():
            if self._writer or self._writers_waiting:
                return False
            self._readers.add(me)
            return True

    def unlock_shared(self) -> None:
        """Give this thread's share back, if it has one."""
        with self._lock.held():
            self._readers.discard(threading.get_ident())
            if self._writers_waiting and not self._readers:
                self._changed.advance()

    def lock_exclusive(self) -> None:
        """Exclude all other threads; a share that this thread has is given back first."""
        me = threading.get_ident()
        self.unlock_shared()
        try:
            self._writers_waiting.add(me)
            self._wait_until(lambda: self._try_exclude(me))
        finally:
            self._writers_waiting.discard(me)
            self._changed.advance()

    def _try_exclude(self, me: int) -> bool:
        with self._lock.held():
            if self._writer or self._readers:
                return False
            self._writer = me
            return True

    def unlock_exclusive(self) -> None:
        """Let the others in, if this thread has kept them out."""
        if self._writer == threading.get_ident():
            self._writer = 0
        self._changed.advance()

    def _wait_until(self, is_taken: Callable[[], bool]) -> None:
        while True:
            seen = self._changed.value
            if is_taken():
                return
            self._changed.wait(seen, WAIT_SLICE_S)
