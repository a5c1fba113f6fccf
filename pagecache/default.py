"""Which cache is used where none is named."""

from types import TracebackType
from typing import Any

from pagecache._core import Mutex

_lock = Mutex()
_chosen: list["using"] = []


class using:
    """`with pagecache.using(cache):` makes a cache the default one, for `default_cache` and the file systems over it.

    It counts for the whole process, as libraries read in threads of their own. Blocks may be nested; where blocks of
    several threads overlap, the one entered last counts.
    """

    def __init__(self, cache: Any):
        self.cache = cache

    def __enter__(self) -> Any:
        self.cache.stats()  # raises for what is no cache, or is closed
        with _lock.held():
            _chosen.append(self)
        return self.cache

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with _lock.held():
            for place in reversed(range(len(_chosen))):
                if _chosen[place] is self:
                    del _chosen[place]
                    return


def chosen_cache() -> Any:
    """Return the cache of the innermost `using` that can still be used, or None."""
    with _lock.held():
        for block in reversed(_chosen):
            if not block.cache.closed and not block.cache.segment.dead:
                return block.cache
    return None


def renew_after_fork() -> None:
    """Give a child a lock of its own, and none of the parent's caches."""
    global _lock
    _lock = Mutex()
    _chosen.clear()
