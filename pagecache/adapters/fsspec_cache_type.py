"""`fs.open(path, cache_type="pagecache")`: the cache of a file of any fsspec file system is the process's page cache."""

import errno
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from fsspec.caching import BaseCache

from pagecache.default import default_cache
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.validators import validator_of, version_of

_numbers = itertools.count(1)


class FetcherStore:
    """What a function brings that is given a start and an end, and nothing is known of besides the size (bytes)."""

    latency = "remote"
    parallel_requests = 1

    def __init__(self, fetcher: Callable[[int, int], Any], size: int):
        self._fetcher = fetcher
        self._size = size
        self.key = f"fetcher:{next(_numbers)}"

    def size(self) -> int:
        """Return the size (bytes)."""
        return self._size

    def validator(self) -> None:
        """Return None: nothing is known."""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled."""
        done = 0
        with memoryview(self._fetcher(offset, offset + sum(map(len, buffers)))) as data:
            for buffer in buffers:
                nbytes = min(len(buffer), len(data) - done)
                buffer[:nbytes] = data[done : done + nbytes]
                done += nbytes
        return done

    def close(self) -> None:
        """Do nothing."""


class PageCacheType(BaseCache):
    """A file's share of the page cache.

    Files of one file system and path share their pages, with each other and with `pagecache::` over the same target, as
    long as they are of one version. A fetcher that belongs to no file has pages of its own.
    recheck, on_change: as for `PageCache.open`, given as `cache_options`. whole_up_to: as for FsspecStore, likewise.
    """

    name = "pagecache"

    def __init__(
        self,
        blocksize: int,
        fetcher: Callable[[int, int], bytes],
        size: int,
        recheck: bool | str | float = "open",
        on_change: str = "error",
        whole_up_to: int | str = 0,
    ):
        super().__init__(blocksize, fetcher, size)
        self._options: dict[str, Any] = {"recheck": recheck, "on_change": on_change}
        self._whole_up_to = whole_up_to
        self._file: Any = None
        owner = getattr(fetcher, "__self__", None)
        if getattr(owner, "fs", None) is None or not isinstance(getattr(owner, "path", None), str):
            store: Any = FetcherStore(fetcher, size)
        else:
            store = _store_of(owner, recheck, whole_up_to)
            if not store.is_immutable and store.size() != size:
                raise OSError(errno.ESTALE, f"{store.name} was replaced while it was being opened: open it again")
        self._file = default_cache().open(store, **self._options)

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        start, stop = start or 0, self.size if stop is None else min(stop, self.size)
        if start >= stop:
            return b""
        data: bytes | None = self._file.pread_cached(stop - start, start)
        if data is not None:
            self.hit_count += 1
            return data
        self.miss_count += 1
        self.total_requested_bytes += stop - start
        return self._file.pread(stop - start, start)

    def close(self) -> None:
        """Close the file; its pages stay cached."""
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return PageCacheType, (self.blocksize, self.fetcher, self.size, *self._options.values(), self._whole_up_to)


def _store_of(owner: Any, recheck: bool | str | float, whole_up_to: int | str) -> FsspecStore:
    """Return the store of an fsspec file's object, with the version that the file was opened on, if it knows one."""
    details = getattr(owner, "_details", None) or {}
    version = None
    if validator_of(details) is not None and recheck is not False:
        version = version_of(details, owner.path, time.monotonic())
    return FsspecStore(owner.fs, owner.path, recheck=recheck, version=version, whole_up_to=whole_up_to)
