"""Which cache is used where none is named, and what happens to all caches when the program ends."""

import atexit
import logging
import os
from types import TracebackType

from pagecache._core import Mutex
from pagecache.cache import PageCache
from pagecache.files import reopening
from pagecache.stats import server
from pagecache.units import LAST_PAGE, MAX_BUDGET_BYTES, PAGE_SIZE, memory_limit
from pagecache.writeback.flusher import WrittenInode, busy_flushers

logger = logging.getLogger("pagecache")
DEFAULT_SHARE = 4  # the default cache has a quarter of memory

_lock = Mutex()
_chosen: list["using"] = []
_default_lock = Mutex()
_default: PageCache | None = None


class using:
    """`with pagecache.using(cache):` makes a cache the default one, for `default_cache` and the file systems over it.

    It counts for the whole process, as libraries read in threads of their own. Blocks may be nested; where blocks of
    several threads overlap, the one entered last counts.
    """

    def __init__(self, cache: PageCache):
        self.cache = cache

    def __enter__(self) -> PageCache:
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


def chosen_cache() -> PageCache | None:
    """Return the cache of the innermost `using` that can still be used, or None."""
    with _lock.held():
        for block in reversed(_chosen):
            if not block.cache.closed and not block.cache.segment.dead:
                return block.cache
    return None


def default_cache(size: int | str | None = None) -> PageCache:
    """Return the cache of the innermost `using`, or the process's own.

    That one is made on first use, as large as PAGECACHE_SIZE in the environment says, else `size`, else 25 % of the memory
    that the process may use. Raises ValueError for a size that is none.
    """
    global _default
    chosen = chosen_cache()
    if chosen is not None:
        return chosen
    with _default_lock.held():
        if _default is None or _default.closed or _default.segment.dead:
            _default = _cache_of_environment(size)
        return _default


def _cache_of_environment(size: int | str | None) -> PageCache:
    """Return a cache as large as PAGECACHE_SIZE says, else `size`, else a quarter of memory, as far as one can be."""
    named = os.environ.get("PAGECACHE_SIZE")
    if not named:
        return PageCache(size or min(memory_limit() // DEFAULT_SHARE, MAX_BUDGET_BYTES))
    try:
        return PageCache(named)
    except ValueError as error:
        raise ValueError(f"PAGECACHE_SIZE in the environment: {error}") from None


def forget_everywhere(*keys: str, whole: bool = True) -> None:
    """Let objects be opened as new the next time, in every cache of the process; see `PageCache.forget`."""
    for cache in list(server.caches):
        if not cache.closed and not cache.segment.dead:
            cache.forget(*keys, whole=whole)


def _at_exit() -> None:
    """Write back what the program left dirty, and say what could not be written."""
    for flusher in busy_flushers():
        if not flusher.segment.dead:
            for inode in flusher.inodes():
                _write_at_exit(inode)


def _write_at_exit(inode: WrittenInode) -> None:
    error: BaseException | None
    try:
        error = inode.sync_pages(0, LAST_PAGE, durable=True)
    except BaseException as outside:  # of a store, or a signal: the other objects have their turn
        error = outside
    if error is not None:
        nbytes = inode.mapping.cachestat(0, LAST_PAGE)[1] * PAGE_SIZE
        logger.critical("up to %d bytes that were written to %s are lost: %s", nbytes, inode.name, error)


def _after_fork_in_child() -> None:
    """Give a child locks of its own, and none of the parent's caches."""
    global _lock, _default_lock
    _lock, _default_lock = Mutex(), Mutex()
    _chosen.clear()


reopening.reopen_through(default_cache)
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
