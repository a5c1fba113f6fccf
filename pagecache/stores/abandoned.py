"""Calls that no thread waits for any more: what they wait for themselves is given up, so that no page stays locked by a
request whose reader is gone.

A caller that can be cancelled (asyncio) runs the blocking call in a worker under a `Call` of its own.  `abandon` ends the
wait that the worker is in, if it can be ended; the worker then leaves by `Abandoned`, as the main thread does by
KeyboardInterrupt: the folios that it was filling leave the cache, and other readers of them read them again.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar, TypeVarTuple

from pagecache._core import Mutex

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class Abandoned(BaseException):
    """No thread waits for this call any more. It says nothing about the bytes, so it is no error of theirs."""


class Call:
    """A blocking call that may be abandoned from another thread."""

    def __init__(self) -> None:
        self._lock = Mutex()
        self._end_wait: Callable[[], object] | None = None
        self.is_abandoned = False

    def abandon(self) -> None:
        """End the wait that the call is in, and any that it begins."""
        with self._lock.held():
            self.is_abandoned = True
            end_wait = self._end_wait
        if end_wait is not None:
            end_wait()

    @contextlib.contextmanager
    def waiting(self, end_wait: Callable[[], object]) -> Iterator[None]:
        """A wait that `end_wait` ends. Raises Abandoned if no thread waits for the call any more."""
        with self._lock.held():
            if self.is_abandoned:
                raise Abandoned
            self._end_wait = end_wait
        try:
            yield
        finally:
            with self._lock.held():
                self._end_wait = None

    def run(self, function: Callable[[*_Arguments], _Result], *args: *_Arguments) -> _Result:
        """Make the call in this thread."""
        _threads.call = self
        try:
            return function(*args)
        finally:
            _threads.call = None


_threads = threading.local()


def current_call() -> Call | None:
    """Return the call that this thread carries out, if it may be abandoned."""
    return getattr(_threads, "call", None)
