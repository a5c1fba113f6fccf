"""Calls that block in code of their own, carried out by another thread: the one that wants the answer waits for it here, so
that the wait can end before the call does.

obstore does not look for signals while it waits, and nothing ends a wait for a socket from outside.  When the wait ends,
the thread is left to the call, and its answer is dropped.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from pagecache._core import EventCount
from pagecache.stores.abandoned import current_call, waiting
from pagecache.stores.worker_pool import WorkerPool

_pool = WorkerPool()
_Result = TypeVar("_Result")


class _Answer(Generic[_Result]):
    """What a call brings. Context: written once by one thread, read by another one after `is_there`."""

    def __init__(self) -> None:
        self.changed = EventCount()
        self.is_there = False
        self.result: _Result
        self.error: BaseException | None = None

    def bring(self, function: Callable[[], _Result]) -> None:
        """Make the call. Context: the other thread."""
        try:
            self.result = function()
        except BaseException as error:
            self.error = error
        self.is_there = True
        self.changed.advance()


def call_apart(function: Callable[[], _Result], left_s: Callable[[], float | None]) -> _Result:
    """Return what a function returns, which another thread calls.

    left_s: how long to wait yet (seconds; None: for ever); it raises what the wait is to end with. Raises what the function
    raises, what a signal handler raises, and Abandoned if no thread waits for this one's call: then the function may go on,
    and has to see for itself that it does no harm.
    """
    answer: _Answer[_Result] = _Answer()
    call = current_call()
    _pool.run(partial(answer.bring, function if call is None else partial(call.run, function)))
    with waiting(answer.changed.advance):
        while not answer.is_there:
            seen = answer.changed.value
            if not answer.is_there:
                if call is not None:
                    call.check()
                answer.changed.wait(seen, left_s())
    if answer.error is not None:
        raise answer.error
    return answer.result


def _after_fork_in_child() -> None:
    """Give a child a pool of its own: the parent's threads are not in it."""
    global _pool
    _pool = WorkerPool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
