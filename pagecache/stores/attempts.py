"""How often a request to a store is tried, and for how long: `timeout_s` for each try, `retries` more tries if the error is
one that can pass (passing.py), with a pause before each that doubles, and is never the same for two clients.

One request takes at most

    timeout_s * (retries + 1) + the pauses

whatever it consists of (HEAD and GET, a look at the version behind it): a request within a try is part of that try.  What
the library below does by itself happens within a try, too.
"""

import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from pagecache._core import EventCount
from pagecache.stores.abandoned import current_call, waiting
from pagecache.stores.passing import can_pass, retry_after_s

FIRST_PAUSE_S = 0.2
PAUSE_MAX_S = 20.0
RETRY_AFTER_MAX_S = 60.0  # a server that wants to be left alone for longer is not waited for
_threads = threading.local()
_Result = TypeVar("_Result")
logger = logging.getLogger("pagecache")


class TimeLimitError(TimeoutError):
    """A try has taken as long as it may (ETIMEDOUT)."""


def pause(seconds: float) -> None:
    """Wait (seconds). Raises Abandoned if no thread waits for the thread's call. Context: a signal ends the wait."""
    ends, call, changed = time.monotonic() + seconds, current_call(), EventCount()
    seen = changed.value
    with waiting(changed.advance):
        while (left := ends - time.monotonic()) > 0:
            if call is not None:
                call.check()
            changed.wait(seen, left)


class Attempts(NamedTuple):
    """How a store's requests are tried. timeout_s: of each try; None: as long as the library takes. retries: further tries
    after an error that can pass."""

    timeout_s: float | None = None
    retries: int = 0

    def run(self, name: str, function: Callable[[], _Result]) -> _Result:
        """Return what a request brings, tried as often as it may be. name: of the object, for messages.

        Raises what the last try raised; TimeoutError if that took too long. Context: as the function, and waits.
        """
        if self == NO_ATTEMPTS or _left_s() is not None:  # or it is part of a try
            return function()
        number = 0
        while True:
            try:
                with limited(self.timeout_s):
                    return function()
            except Exception as error:
                pause_s = self.pause_s(name, error, number)
                if pause_s is None:
                    raise
            pause(pause_s)
            number += 1

    def pause_s(self, name: str, error: Exception, number: int) -> float | None:
        """Return how long to wait after a try has failed (seconds); None if there is to be no other one.

        number: of the try, from 0.
        """
        if number >= self.retries or not can_pass(error):
            return None
        wanted_s = retry_after_s(error)
        if wanted_s > RETRY_AFTER_MAX_S:
            return None
        pause_s: float = max(wanted_s, random.uniform(0.5, 1.0) * min(PAUSE_MAX_S, FIRST_PAUSE_S * 2**number))
        logger.debug("%s: try %d of %d failed, next in %.2f s: %s", name, number + 1, self.retries + 1, pause_s, error)
        return pause_s

    def merged(self, others: "Attempts") -> "Attempts":
        """Return these, with what others say where they say something."""
        return Attempts(self.timeout_s if others.timeout_s is None else others.timeout_s, others.retries or self.retries)


NO_ATTEMPTS = Attempts()


def checked_attempts(timeout_s: float | None = None, retries: int = 0) -> Attempts:
    """Return how requests are tried. Raises TypeError, ValueError for what is no time or no number."""
    if timeout_s is not None and (isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float))):
        raise TypeError(f"timeout_s must be a number of seconds or None, not {timeout_s!r}")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise ValueError(f"timeout_s must be more than 0 (seconds; None: as long as the library takes), not {timeout_s!r}")
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an int, not {retries!r}")
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, not {retries}")
    return Attempts(timeout_s, retries)


@contextmanager
def limited(timeout_s: float | None, ends: float | None = None) -> Iterator[None]:
    """A try of this thread, which may take so many seconds.

    ends: when it does (monotonic seconds), if it has begun already.
    """
    if ends is None:
        ends = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    _threads.ends, _threads.timeout_s = ends, timeout_s
    try:
        yield
    finally:
        _threads.ends = None


def _left_s() -> float | None:
    """Return how long the try that this thread is in may take yet; None if it is in none."""
    ends: float | None = getattr(_threads, "ends", None)
    left_s: float | None = None if ends is None else max(0.0, ends - time.monotonic())
    return left_s


def is_limited() -> bool:
    """Whether this thread is in a try that has to end."""
    left_s = _left_s()
    return left_s is not None and left_s < float("inf")


def time_left_s() -> float | None:
    """Return how long the try that this thread is in may take yet (seconds); None: as long as it takes. Raises
    TimeLimitError when it is over."""
    left_s = _left_s()
    if left_s is None or left_s == float("inf"):
        return None
    if left_s <= 0:
        raise time_limit_error(_threads.timeout_s)
    return left_s


def time_limit_error(timeout_s: float | None) -> TimeLimitError:
    """Return the error of a try that was given up."""
    return TimeLimitError(errno.ETIMEDOUT, f"no answer within {timeout_s} s (timeout_s)")


def no_limit_error(kind: str) -> ValueError:
    """Return the error for a time limit that cannot be kept. kind: of file system, or of store."""
    return ValueError(
        f"timeout_s cannot end a call of {kind}, which only its user's threads may make: give it a time limit of its own, "
        "or say thread_safe=True"
    )
