"""Files that travel to other processes: as how to open them again and where they were, never as contents."""

from collections.abc import Callable
from typing import Any

_REOPENED_AS = {"w+b": "r+b", "x+b": "r+b"}

_cache_of_process: Callable[[], Any] | None = None


def reopen_through(cache_of_process: Callable[[], Any]) -> None:
    """Set how the cache is had that files are opened through again; `default`, which is above, does."""
    global _cache_of_process
    _cache_of_process = cache_of_process


def reduced(file: Any, position: int, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what pickle needs of an open file: the store, which pickles as its name, mode and position.

    options: further arguments of `PageCache.open`. Raises ValueError for a closed file.
    """
    if file.closed:
        raise ValueError("I/O operation on closed file")
    return reopened, (file.inode.store, _REOPENED_AS.get(file.mode, file.mode), position, options)


def reopened(store: Any, mode: str, position: int, options: dict[str, Any]) -> Any:
    """Open a file once more, through the default cache of this process. Raises as `PageCache.open`."""
    assert _cache_of_process is not None, "pagecache.default is imported with the package"
    file = _cache_of_process().open(store, mode, **options)
    file.seek(position)
    return file
