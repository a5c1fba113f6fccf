"""Files that travel to other processes: as how to open them again and where they were, never as contents."""

from collections.abc import Callable
from typing import Any, Protocol

from pagecache.stores.base import BackingStore

_REOPENED_AS = {"w+b": "r+b", "x+b": "r+b"}


class OpenedFile(Protocol):
    """What travels needs of an open file: a `File`."""

    mode: str

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        ...

    @property
    def inode(self) -> "OpenedInode":
        """The object."""
        ...


class OpenedInode(Protocol):
    """What travels needs of an object: an `Inode`."""

    @property
    def store(self) -> BackingStore | None:
        """What serves it."""
        ...


class ReopenedFile(Protocol):
    """A file that was opened again."""

    def seek(self, offset: int, /) -> int:
        """Move the position."""
        ...


class OpeningCache(Protocol):
    """What files are opened through: a `PageCache`."""

    def open(self, source: BackingStore, mode: Any, **options: Any) -> ReopenedFile:
        """Open an object."""
        ...


Reduced = tuple[Callable[..., ReopenedFile], tuple[Any, ...]]  # for pickle

_cache_of_process: Callable[[], OpeningCache] | None = None


def reopen_through(cache_of_process: Callable[[], OpeningCache]) -> None:
    """Set how the cache is had that files are opened through again; `default`, which is above, does."""
    global _cache_of_process
    _cache_of_process = cache_of_process


def reduced(file: OpenedFile, position: int, options: dict[str, Any]) -> Reduced:
    """Return what pickle needs of an open file: the store, which pickles as its name, mode and position.

    options: further arguments of `PageCache.open`. Raises ValueError for a closed file.
    """
    if file.closed:
        raise ValueError("I/O operation on closed file")
    return reopened, (file.inode.store, _REOPENED_AS.get(file.mode, file.mode), position, options)


def reopened(store: BackingStore, mode: str, position: int, options: dict[str, Any]) -> ReopenedFile:
    """Open a file once more, through the default cache of this process. Raises as `PageCache.open`."""
    assert _cache_of_process is not None, "pagecache.default is imported with the package"
    file = _cache_of_process().open(store, mode, **options)
    file.seek(position)
    return file
