"""Turns: of what several threads may not call at once, each waits until the one before has got its answer."""

import os
import weakref

from pagecache._core import Mutex


class Turns:
    """Turns that threads take: `with turns.lock.held():`. Context: a child of fork() has a lock of its own."""

    def __init__(self) -> None:
        self.lock = Mutex()
        _all.add(self)

    def renew_after_fork(self) -> None:
        """Give a child a lock of its own: the thread that held the parent's is not there."""
        self.lock = Mutex()


_all: "weakref.WeakSet[Turns]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for turns in list(_all):
        turns.renew_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
