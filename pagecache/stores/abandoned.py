"""Calls that no thread waits for any more: what they wait for themselves is given up, so that no page stays locked by a
request whose reader is gone.

A caller that can be cancelled (asyncio), or for which no thread waits from the beginning (readahead), makes the blocking
call in a worker under a `Call` of its own.  What the worker waits for meanwhile is registered with the call, the innermost
last.  `abandon` ends it, as far as it can be ended; the worker then leaves by `Abandoned`, as the main thread does by
KeyboardInterrupt.  Where a wait cannot be ended, because a store blocks in a call of its own, the worker stays there, but
what it was filling is taken away from it (`requests/filling.py`), and it finds that out when it comes back.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar, TypeVarTuple

from pagecache._core import LockGuard, Mutex
from pagecache.weak_members import WeakMembers

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class Abandoned(BaseException):
    """No thread waits for this call any more. It says nothing about the bytes, so it is no error of theirs."""


class Call:
    """A blocking call that may be abandoned from another thread.

    in_background: whether no thread waits for it even now. returns: whether the thread that makes it has to come back when
    it is abandoned, though a store blocks. holds: locks of mappings that the call has taken (`sharing`).
    """

    def __init__(self, in_background: bool = False, returns: bool = False) -> None:
        self.in_background = in_background
        self.returns = returns
        self.is_abandoned = False
        self.holds: list[LockGuard] = []
        self._lock = Mutex()
        self._end_waits: list[Callable[[], object]] = []
        self._let_gos: list[Callable[[], object]] = []

    def abandon(self) -> None:
        """End the waits that the call is in, and any that it begins."""
        with self._lock.held():
            self.is_abandoned = True
            end_waits = self._end_waits[::-1]
        for end_wait in end_waits:
            end_wait()

    def check(self) -> None:
        """Raise Abandoned if no thread waits for the call."""
        if self.is_abandoned:
            raise Abandoned

    @contextlib.contextmanager
    def waiting(self, end_wait: Callable[[], object]) -> Iterator[None]:
        """A wait that `end_wait` ends. Raises Abandoned if no thread waits for the call any more."""
        with self._lock.held():
            self.check()
            self._end_waits.append(end_wait)
        try:
            yield
        finally:
            with self._lock.held():
                self._end_waits.remove(end_wait)

    @contextlib.contextmanager
    def lending(self, let_go: Callable[[], object]) -> Iterator[None]:
        """A use of buffers that `let_go` ends at any moment, from any thread: once it has returned, they are untouched."""
        with self._lock.held():
            self._let_gos.append(let_go)
        try:
            yield
        finally:
            with self._lock.held():
                self._let_gos.remove(let_go)

    def let_go(self) -> bool:
        """End the use of buffers that the call is in. Returns whether it has said how."""
        with self._lock.held():
            let_gos = self._let_gos[::-1]
        for let_go in let_gos:
            let_go()
        return bool(let_gos)

    def run(self, function: Callable[[*_Arguments], _Result], *args: *_Arguments) -> _Result:
        """Make the call in this thread."""
        before = current_call()
        _threads.call = self
        try:
            return function(*args)
        finally:
            _threads.call = before


class Calls:
    """Calls that are abandoned together: the reads of a query that is interrupted. Context: any thread."""

    def __init__(self) -> None:
        self._calls: WeakMembers[Call] = WeakMembers()

    def run(self, function: Callable[[*_Arguments], _Result], *args: *_Arguments) -> _Result:
        """Make a call in this thread. Raises InterruptedError (EINTR) if it is abandoned."""
        call = Call(returns=True)
        self._calls.add(call)
        try:
            return call.run(function, *args)
        except Abandoned:
            raise InterruptedError(errno.EINTR, "the read was interrupted") from None
        finally:
            self._calls.discard(call)

    def abandon(self) -> None:
        """Abandon all calls that are being made."""
        for call in self._calls:
            call.abandon()


_threads = threading.local()


def current_call() -> Call | None:
    """Return the call that this thread carries out, if it may be abandoned."""
    return getattr(_threads, "call", None)


def waiting(end_wait: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """A wait of the thread's call, if it carries one out, as `Call.waiting`."""
    call = current_call()
    return contextlib.nullcontext() if call is None else call.waiting(end_wait)


def lending(let_go: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """A use of buffers in the thread's call, if it carries one out, as `Call.lending`."""
    call = current_call()
    return contextlib.nullcontext() if call is None else call.lending(let_go)
