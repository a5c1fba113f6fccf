"""fsspec file systems through the page cache: `pagecache::s3://bucket/key`, and `cache_type="pagecache"` for any `fs.open`.

    import fsspec, pagecache.adapters.fsspec

    with fsspec.open("pagecache::https://host/data.parquet") as file: ...
    pandas.read_parquet("pagecache::s3://bucket/data.parquet", storage_options={"s3": {"anon": True}})

All file systems and handles of a process share the budget of `pagecache.default_cache()`, or of the cache of the innermost
`pagecache.using`. Importing this module registers both; an installed package registers the file system by itself.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.chained import ChainedFileSystem

from pagecache.adapters.fsspec_cache_type import PageCacheType
from pagecache.adapters.fsspec_delegation import Delegation
from pagecache.adapters.fsspec_handles import Handles
from pagecache.cache import PageCache
from pagecache.default import default_cache, forget_everywhere
from pagecache.files.aio import in_worker
from pagecache.stores.fsspec import FsspecStore, identity_of, own_instance
from pagecache.stores.validators import checked_recheck
from pagecache.units import parse_size

ALL = 1 << 62  # more bytes than any object has: a read ends where the object ends
_Result = TypeVar("_Result")


class PageCacheFileSystem(Delegation, ChainedFileSystem, AsyncFileSystem):
    """A file system whose reads go through the page cache; everything else is the target's.

    target_protocol, target_options, fs: the target, by name and options or as an instance. size: the budget, if the
    process has no default cache yet (see `default_cache`). recheck, on_change: as for `PageCache.open`; `cat_file`,
    `cat_ranges` and their like keep an object open from its first use until `invalidate_cache`, so recheck="open" looks at
    it once, and an object that changed raises ESTALE once and is then read anew. whole_up_to: as for FsspecStore.

    Instances pickle as their arguments, and can be used in a child of fork() and from any thread or event loop. A hit of
    `cat_file`, `cat_ranges` and of open files needs no event loop.
    """

    protocol = "pagecache"
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fs: Any = None,
        *,
        fo: str | None = None,
        size: int | str | None = None,
        recheck: bool | str | float = "open",
        on_change: str = "error",
        whole_up_to: int | str = 0,
        **options: Any,
    ):
        super().__init__(**options)
        if (fs is None) == (target_protocol is None):
            raise ValueError("give either fs or target_protocol, as in 'pagecache::s3://bucket/key'")
        self.recheck = checked_recheck(recheck)
        self.on_change = on_change
        self.whole_up_to = parse_size(whole_up_to)
        self.size_of_cache = size
        self.target_protocol = target_protocol
        self._make_target: Callable[[], Any] = (
            (lambda: own_instance(fs))
            if target_protocol is None
            else (lambda: fsspec.filesystem(target_protocol, **(target_options or {})))
        )
        self._target = self._make_target()
        self._handles = Handles()
        self._handles_pid = os.getpid()
        self._identity = identity_of(self._target)
        self.sep, self.root_marker = self._target.sep, self._target.root_marker
        own_strip = type(self)._strip_protocol
        self._strip_protocol = lambda path: self.fs._strip_protocol(own_strip(path))
        self._parent = self._target._parent

    @property
    def fs(self) -> Any:
        """The target file system."""
        if self._handles_pid != os.getpid():
            self._renew()
        return self._target

    @property
    def loop(self) -> Any:
        """The loop of synchronous calls that need one."""
        if self._pid != os.getpid():
            self._renew()
        return self._loop

    def _renew(self) -> None:
        """Become usable in a child of fork(): with a loop, a target and handles of its own."""
        self._pid = self._handles_pid = os.getpid()
        self._loop = None if self.asynchronous else fsspec.asyn.get_loop()
        self._handles = Handles()
        self._target = self._make_target()

    @property
    def page_cache(self) -> PageCache:
        """The cache that reads go through now."""
        return default_cache(self.size_of_cache)

    # -- open files ----------------------------------------------------------------------------------------------------

    def _store(self, path: str) -> FsspecStore:
        """Return a store of an object, with what is known of its version, if that is recent enough."""
        known = self._handles.known_version(path, self.recheck)
        return FsspecStore(self.fs, path, recheck=self.recheck, version=known, whole_up_to=self.whole_up_to)

    def _open_file(self, path: str) -> Any:
        store = self._store(path)
        file = self.page_cache.open(store, recheck=self.recheck, on_change=self.on_change)
        self._handles.note_version(path, store.known_version)
        return file

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        """Open for reading through the cache, for writing on the target."""
        if mode != "rb":
            return self._open_written(path, mode, *args, **kwargs)
        file = self._open_file(path)
        file.path, file.fs = path, self
        return file

    def _with_handle(self, path: str, call: Callable[[Any], _Result]) -> _Result:
        """Call with the file that is kept open for a path."""
        while True:
            file = self._handles.get(path, self.page_cache) or self._handles.put(path, self._open_file(path))
            try:
                return call(file)
            except ValueError:
                if not file.closed:  # else it was one too many open, or its cache was closed
                    raise
                self._handles.drop(path, file)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    self._handles.drop(path, file)
                raise

    # -- reading -------------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes [start, end) of an object; negative numbers count from its end."""
        path = self._strip_protocol(path)
        return self._with_handle(path, lambda file: _slice(file, start, end))

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data = self._cached_range(self._strip_protocol(path), start, end)
        return data if data is not None else await in_worker(self.cat_file, path, start, end)

    def _cached_range(self, path: str, start: int | None, end: int | None) -> bytes | None:
        """Return a range if all of it is cached, and known to be recent enough; never waits."""
        if self._handles_pid != os.getpid():
            self._renew()
        file = self._handles.get(path, self.page_cache)
        if file is None or (start or 0) < 0 or (end or 0) < 0:
            return None
        start, end = start or 0, ALL if end is None else end
        if start >= file.size or start >= end:
            return None
        try:
            return file.pread_cached(end - start, start)
        except ValueError:  # closed meanwhile
            return None

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Return many ranges of many objects: what is missing of one object is fetched in parallel.

        max_gap: bytes between ranges that may be read through. on_error: "return" puts exceptions into the list.
        """
        starts, ends = _as_list(starts, len(paths)), _as_list(ends, len(paths))
        found = [self._cached_range(self._strip_protocol(p), s, e) for p, s, e in zip(paths, starts, ends, strict=True)]
        if all(data is not None for data in found):
            return found
        missing = {self._strip_protocol(path) for path, data in zip(paths, found, strict=True) if data is None}
        if len(missing) == 1:
            return self._fill_in(found, missing.pop(), paths, starts, ends, max_gap, on_error)
        return sync(fsspec.asyn.get_loop(), self._cat_ranges, paths, starts, ends, max_gap, on_error=on_error)

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        import asyncio

        starts, ends = _as_list(starts, len(paths)), _as_list(ends, len(paths))
        found = [self._cached_range(self._strip_protocol(p), s, e) for p, s, e in zip(paths, starts, ends, strict=True)]
        missing = {self._strip_protocol(path) for path, data in zip(paths, found, strict=True) if data is None}
        await asyncio.gather(
            *(in_worker(self._fill_in, found, path, paths, starts, ends, max_gap, on_error) for path in missing)
        )
        return found

    def _fill_in(
        self,
        found: list[Any],
        path: str,
        paths: list[str],
        starts: Sequence[int | None],
        ends: Sequence[int | None],
        max_gap: int | None,
        on_error: str,
    ) -> list[Any]:
        """Put the ranges of one object into their places in the list that are None."""
        places = [n for n, data in enumerate(found) if data is None and self._strip_protocol(paths[n]) == path]
        wanted = [(starts[n], ends[n]) for n in places]
        try:
            parts: Sequence[Any] = self._with_handle(path, lambda file: _slices(file, wanted, max_gap))
        except Exception as error:
            if on_error != "return":
                raise
            parts = [error] * len(places)
        for n, part in zip(places, parts, strict=True):
            found[n] = part
        return found

    # -- what is known -------------------------------------------------------------------------------------------------

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return what the target says about a path."""
        return self.fs.info(self._strip_protocol(path), **kwargs)

    def ukey(self, path: str) -> str:
        """Return what changes when the object does: its validator, or what the target takes for it."""
        path = self._strip_protocol(path)
        return FsspecStore(self.fs, path).validator() or self.fs.ukey(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what is cached of a path and all below it, or of the whole target. Open files keep their version."""
        path = None if path is None else self._strip_protocol(path)
        self.fs.invalidate_cache(path)
        self._handles.forget(path)
        forget_everywhere(f"fsspec:{self._identity}:" + (path or ""), whole=path is not None)


def _as_list(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value] * count
    if len(values) != count:
        raise ValueError(f"{count} paths, but {len(values)} starts or ends")
    return values


def _bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return (nbytes, offset) of a range given as Python slices are."""
    start, end, _ = slice(start, end).indices(size)
    return max(0, end - start), start


def _of_one_version(file: Any, call: Callable[[Any], _Result]) -> _Result:
    with_one_version = getattr(file, "with_one_version", None)
    return call(file) if with_one_version is None else with_one_version(call)


def _slice(file: Any, start: int | None, end: int | None) -> bytes:
    return _of_one_version(file, lambda one: one.pread(*_bounds(one.size, start, end)))


def _slices(file: Any, wanted: Sequence[tuple[int | None, int | None]], max_gap: int | None) -> list[bytes]:
    options = {} if max_gap is None else {"hole_size": max(0, max_gap)}
    return _of_one_version(
        file, lambda one: one.preadv_many([_bounds(one.size, start, end) for start, end in wanted], **options)
    )


fsspec.register_implementation("pagecache", PageCacheFileSystem, clobber=True)
fsspec.caching.register_cache(PageCacheType, clobber=True)
