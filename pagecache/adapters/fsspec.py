"""fsspec file systems through the page cache: `pagecache::s3://bucket/key`, and `cache_type="pagecache"` for any `fs.open`.

    import fsspec, pagecache.adapters.fsspec

    with fsspec.open("pagecache::https://host/data.parquet") as file: ...
    pandas.read_parquet("pagecache::s3://bucket/data.parquet", storage_options={"s3": {"anon": True}})

All file systems and handles of a process share the budget of `pagecache.default_cache()`, or of the cache of the innermost
`pagecache.using`. Importing this module registers both; an installed package registers the file system by itself.
"""

import asyncio
import contextlib
import datetime
import errno
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pagecache.extras import needs
from pagecache.files.file import File
from pagecache.files.versioned import VersionedFile
from pagecache.stores.fsspec_protocols import FileSystem

with needs("fsspec", __name__):
    import fsspec
    from fsspec.asyn import AsyncFileSystem, sync
    from fsspec.implementations.chained import ChainedFileSystem

from pagecache.adapters.ages import Ages, last_modified_s
from pagecache.adapters.fsspec_cache_type import PageCacheType
from pagecache.adapters.fsspec_delegation import Delegation
from pagecache.adapters.fsspec_handles import Handles
from pagecache.adapters.fsspec_streams import ReadStream, WriteStream
from pagecache.adapters.fsspec_target import Target
from pagecache.cache import PageCache
from pagecache.default import default_cache, forget_everywhere
from pagecache.options import check_options, check_spelling, constructor_parameters
from pagecache.stores.attempts import checked_attempts
from pagecache.stores.call_options import key_part, request_options
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.signed_urls import checked_names, url_without
from pagecache.stores.validators import Version, checked_recheck
from pagecache.units import parse_size

# options of the file system that a call may have for itself
OF_A_CALL = ("recheck", "on_change", "whole_up_to", "timeout_s", "retries")
OF_FSSPEC = ("use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache")  # for any file system
_PREFIXES = ("pagecache::", "pagecache://")
ALL = 1 << 62  # more bytes than any object has: a read ends where the object ends
_Result = TypeVar("_Result")


class PageCacheFileSystem(Delegation, ChainedFileSystem, AsyncFileSystem):
    """A file system whose reads go through the page cache; everything else is the target's.

    target_protocol, target_options, fs: the target, by name and options or as an instance. size: the budget, if the
    process has no default cache yet (see `default_cache`). recheck, on_change: as for `PageCache.open`; `cat_file`,
    `cat_ranges` and their like keep an object open from its first use until `invalidate_cache`, so recheck="open" looks at
    it once, and an object that changed raises ESTALE once and is then read anew. whole_up_to, timeout_s, retries: as for
    FsspecStore. These may also be given to one call. thread_safe, key_without: as for FsspecStore. All other options of
    `open`, `cat_file` and their like are the target's: they go to each of its requests, and what they brought is served to
    calls with the same options only.
    Raises TypeError for an option that it does not have.

    Instances pickle as their arguments, and can be used in a child of fork() and from any thread or event loop. A hit of
    `cat_file`, `cat_ranges` and of open files needs no event loop.
    """

    protocol = "pagecache"
    local_file = False  # `open_local` is for files that others can open, too
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fs: FileSystem | None = None,
        *,
        fo: str | None = None,
        size: int | str | None = None,
        recheck: bool | str | float = "open",
        on_change: str = "error",
        whole_up_to: int | str = 0,
        thread_safe: bool | None = None,
        key_without: str | Sequence[str] = (),
        timeout_s: float | None = None,
        retries: int = 0,
        **options: Any,
    ):
        check_options(options, self._parameters(), "pagecache://", "options of the target go into target_options={...}, or "
                      f"{target_protocol or 'PROTOCOL'}={{...}} beside a URL")  # fmt: skip
        super().__init__(**options)
        if (fs is None) == (target_protocol is None):
            raise ValueError("give either fs or target_protocol, as in 'pagecache::s3://bucket/key'")
        self.recheck = checked_recheck(recheck)
        self.on_change = on_change
        self.whole_up_to = parse_size(whole_up_to)
        self.key_without = checked_names(key_without)
        self.attempts = checked_attempts(timeout_s, retries)
        self.size_of_cache = size
        self.target_protocol = target_protocol
        self._target = Target(fs, target_protocol, target_options or {}, thread_safe)
        self._handles = Handles()
        self._ages = Ages()
        self._handles_pid = os.getpid()
        rules = self._target.template
        self._has_links = hasattr(rules, "islink") and hasattr(rules, "symlink")
        self.sep, self.root_marker = rules.sep, rules.root_marker
        self._strip_protocol = self._stripped
        self._parent = lambda path: rules._parent(self.without_protocol(path))

    @property
    def fs(self) -> Any:
        """The target file system, for any use; the cache may read from another instance."""
        return self.target.fs

    @property
    def target(self) -> Target:
        """What objects are read from, and what everything else is asked of."""
        if self._handles_pid != os.getpid():
            self._renew()
        return self._target

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop of synchronous calls that need one."""
        if self._pid != os.getpid():
            self._renew()
        return self._loop

    def _renew(self) -> None:
        """Become usable in a child of fork(): with a loop, a target and handles of its own."""
        self._pid = self._handles_pid = os.getpid()
        self._loop = None if self.asynchronous else fsspec.asyn.get_loop()
        self._handles = Handles()
        self._ages = Ages()
        self._target = self._target.renewed()

    @property
    def page_cache(self) -> PageCache:
        """The cache that reads go through now."""
        return default_cache(self.size_of_cache)

    @classmethod
    def _parameters(cls) -> set[str]:
        """Return the names of the options that this class has."""
        return constructor_parameters(cls) - {"self", "args", "kwargs", "options", "storage_options"} | set(OF_FSSPEC)

    # -- names ---------------------------------------------------------------------------------------------------------

    def without_protocol(self, path: Any) -> Any:
        """Return a path, or each of several, as the target knows it: without this file system's own prefix."""
        return _each(self._without_prefix, path)

    def _stripped(self, path: Any) -> Any:
        """Return a path, or each of several, as the target writes it."""
        strip = self._target.template._strip_protocol
        if type(path) is str and not path.startswith(_PREFIXES):
            return strip(path)
        return _each(strip, self.without_protocol(path))

    def _without_prefix(self, path: str) -> str:
        if not path.startswith(_PREFIXES):
            return path
        path = path.partition("::" if path.startswith("pagecache::") else "://")[2]
        is_chain = "fo" in self.target.template.storage_options
        return path.partition("::")[0] if is_chain else path  # of a chain, the first is the target's

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path, which `fsspec.open` opens again: chained, as the target is. A name with this file
        system's own protocol before it is one already."""
        if name.startswith(self._own_names):
            return name
        target, chain = self.target.template, [f"{self.protocol}"]
        chain.append(target.unstrip_protocol(self._strip_protocol(name)))
        options = target.storage_options
        while isinstance(options.get("fo"), str) and options.get("target_protocol"):
            inner = options["fo"]
            chain.append(inner if "://" in inner else f"{options['target_protocol']}://{inner}")
            options = options.get("target_options") or {}
        return "::".join(chain)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """Return the paths that match a pattern. If that has this file system's own protocol before it, so have they: by it
        DuckDB finds the file system again. So it asks whether there is an object, too: raises OSError then if that cannot
        be found out, which targets take for an absence."""
        if path.startswith(self._own_names) and not kwargs and not any(sign in path for sign in "*?["):
            with contextlib.suppress(IsADirectoryError):
                try:
                    self._version_of(self._strip_protocol(path))
                except FileNotFoundError:
                    return []
                return [path]
        found = super().glob(path, maxdepth=maxdepth, **kwargs)
        prefix = next((prefix for prefix in self._own_names if path.startswith(prefix)), "")
        if isinstance(found, dict):
            return {prefix + name: info for name, info in found.items()}
        return [prefix + name for name in found]

    @property
    def _own_names(self) -> tuple[str, ...]:
        """How names begin that say by themselves whose they are."""
        protocols = (self.protocol,) if isinstance(self.protocol, str) else self.protocol
        return tuple(f"{protocol}://" for protocol in protocols)

    @property
    def fsid(self) -> str:
        """What the target is called in all sessions."""
        fsid: str = self.fs.fsid
        return fsid

    # -- open files ----------------------------------------------------------------------------------------------------

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of one call that matter. Raises TypeError for a misspelled one."""
        if not options:
            return options
        options = request_options(options)
        if any(name not in OF_A_CALL for name in options):
            check_spelling(options, OF_A_CALL, inspect.signature(self.target.template._open).parameters, "pagecache://")
        return options

    def _open_file(self, path: str, options: Mapping[str, Any] = {}) -> Any:
        """Open a file with the options of a call, on what is known of its version, if that is recent enough."""
        own: dict[str, Any] = {"recheck": self.recheck, "on_change": self.on_change, "whole_up_to": self.whole_up_to}
        own |= self.attempts._asdict()
        own |= {name: options[name] for name in OF_A_CALL if name in options}
        recheck, on_change = checked_recheck(own.pop("recheck")), own.pop("on_change")
        name, epoch = _name_of(path, options), self._handles.epoch
        known = self._handles.known_version(name, recheck)
        theirs = {name: value for name, value in options.items() if name not in OF_A_CALL}
        how: dict[str, Any] = {**own, "recheck": recheck, "key_without": self.key_without}
        store = FsspecStore(self.instance, path, version=known, options=theirs, **how)
        file = self.page_cache.open(store, recheck=recheck, on_change=on_change)
        self._handles.note_version(name, store.known_version, epoch)
        if epoch != self._handles.epoch:  # something was changed meanwhile, perhaps this: the next one looks again
            forget_everywhere(store.key)
        return file

    def _open(
        self, path: str, mode: str = "rb", block_size: int | str | None = None, autocommit: bool = True, **kwargs: Any
    ) -> Any:
        """Open for reading through the cache, for writing on the target."""
        if mode != "rb":
            return self.open_written(path, mode, block_size, autocommit, kwargs)
        file = self._open_file(path, self._checked(kwargs))
        file.path, file.fs = path, self
        return file

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a file for coroutines: for reading through the cache, for writing on the target.

        Raises ValueError for text or compression; OSError; what the target raises if it has no such files.
        """
        if "b" not in mode or kwargs.get("compression"):
            raise ValueError("files for coroutines are of bytes as they are: give a mode with 'b', and no compression")
        path = self._strip_protocol(path)
        if mode == "rb":
            return ReadStream(await self._blocking(self._open_file, path, self._checked(kwargs)))
        stream = await self._on_target("open_async", path, mode=mode, **kwargs)
        return WriteStream(stream, lambda: self.forget_changed([path]))

    def _with_handle(
        self, path: str, options: Mapping[str, Any], call: Callable[[File | VersionedFile], _Result]
    ) -> _Result:
        """Call with the file that is kept open for a path, read with these options."""
        name = _name_of(path, options)
        while True:
            file, is_kept = self._handles.get(name, self.page_cache), True
            if file is None:
                epoch = self._handles.epoch
                file, is_kept = self._handles.put(name, self._open_file(path, options), epoch)
            try:
                return call(file)
            except ValueError:
                if not file.closed:  # else it was one too many open, or its cache was closed
                    raise
                self._handles.drop(name, file)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    self._handles.drop(name, file)
                raise
            finally:
                if not is_kept:
                    file.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes [start, end) of an object; negative numbers count from its end."""
        path = self._strip_protocol(path)
        options = self._checked(kwargs) if kwargs else kwargs
        return self._with_handle(path, options, lambda file: _slice(file, start, end))

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data = self._cached_range(_name_of(self._strip_protocol(path), self._checked(kwargs)), start, end)
        return data if data is not None else await self._blocking(lambda: self.cat_file(path, start, end, **kwargs))

    def _cached_range(self, name: str, start: int | None, end: int | None) -> bytes | None:
        """Return a range if all of it is cached, and known to be recent enough; never waits.

        name: of the handle: a path with its options.
        """
        if self._handles_pid != os.getpid():
            self._renew()
        file = self._handles.get(name, self.page_cache)
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
        starts: Iterable[int | None] | int | None,
        ends: Iterable[int | None] | int | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Return many ranges of many objects: what is missing of one object is fetched in parallel.

        max_gap: bytes between ranges that may be read through. on_error: "return" puts exceptions into the list.
        """
        wanted = _Wanted(self, paths, starts, ends, max_gap, on_error, self._checked(kwargs))
        missing = wanted.look()
        if not missing:
            return wanted.found
        if len(missing) == 1:
            return wanted.fill(missing.pop())
        found: list[Any] = sync(fsspec.asyn.get_loop(), wanted.fill_all, missing)
        return found

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Iterable[int | None] | int | None,
        ends: Iterable[int | None] | int | None,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        wanted = _Wanted(self, paths, starts, ends, max_gap, on_error, self._checked(kwargs))
        return await wanted.fill_all(wanted.look())

    # -- what is known -------------------------------------------------------------------------------------------------

    def modified(self, path: str) -> Any:
        """Return when an object was changed, as its target says; else as its server does (Last-Modified); else since when
        this version is known: the same as long as the validator is."""
        try:
            return super().modified(path)
        except NotImplementedError:
            path = self._strip_protocol(path)
        version = self._version_of(path)
        said = last_modified_s(version)
        seconds = said if said is not None else self._ages.since_s(path, version.validator)
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    def _version_of(self, path: str) -> Version:
        """Return the version of an object, as recent as `recheck` wants it. Raises OSError."""
        version = self._handles.known_version(path, self.recheck)
        if version is None:
            epoch, store = self._handles.epoch, self._store_of(path, recheck=self.recheck)
            version = store.version
            self._handles.note_version(path, version, epoch)
        return version

    def ukey(self, path: str) -> str:
        """Return what changes when the object does: its validator, or what the target takes for it."""
        path = self._strip_protocol(path)
        return self._store_of(path).validator() or str(self._in_turn("ukey", path))

    def _store_of(self, path: str, **how: Any) -> FsspecStore:
        """Return the store of a path, to be asked what the object is."""
        return FsspecStore(self.instance, path, **how, **self.attempts._asdict())

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what is cached of a path and all below it, or of the whole target. Open files keep their version."""
        self._forget(None if path is None else {self._strip_protocol(path)})

    def forget_changed(self, paths: list[str]) -> None:
        """Forget what is cached of paths that an operation has changed, or tried to, and of all below them."""
        if not paths:
            return
        if self.changed_in_transaction is not None:  # to be forgotten again when it ends
            self.changed_in_transaction.update(paths)
        literal = (re.split("[*?[]", path, maxsplit=1)[0] for path in paths)  # a pattern stands for what is beside it
        beside = [start.rpartition("/")[0] for start, path in zip(literal, paths, strict=True) if start != path]
        self._forget({self._strip_protocol(path) for path in (*paths, *beside)})

    def _forget(self, paths: set[str] | None) -> None:
        """Forget what is cached of the target's paths and of all below them, or of the whole target."""
        if paths is None or not all(path.strip("/") for path in paths):  # one is the root
            self._in_turn("invalidate_cache", None)
            self._handles.forget(None)
            forget_everywhere(f"fsspec:{self.instance.identity}:", whole=False)
            return
        for path in paths:
            self._in_turn("invalidate_cache", path)
        known = {path.rstrip("/") for path in paths} | {os.path.realpath(path) for path in paths if self._has_links}
        self._handles.forget(known)
        names = [url_without(path, self.key_without) for path in known]
        forget_everywhere(*(f"fsspec:{self.instance.identity}:{name}" for name in names))


def _name_of(path: str, options: Mapping[str, Any]) -> str:
    """Return what the handle of a path with the options of a call is called."""
    return path + key_part(options) if options else path


def _each(function: Callable[[str], str], path: Any) -> Any:
    """Return what a function returns for a path, or each of several; what is none is as it was."""
    if isinstance(path, (list, tuple, set)):
        return type(path)(_each(function, item) for item in path)
    if isinstance(path, dict):
        return {_each(function, item): value for item, value in path.items()}
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    return function(text) if isinstance(text, str) else path


class _Wanted:
    """The ranges of one call, and what has been found of them."""

    def __init__(
        self,
        fs: PageCacheFileSystem,
        paths: list[str],
        starts: Iterable[int | None] | int | None,
        ends: Iterable[int | None] | int | None,
        max_gap: int | None,
        on_error: str,
        options: Mapping[str, Any],
    ):
        self.fs = fs
        self.paths = [fs._strip_protocol(path) for path in paths]
        self.starts, self.ends = _as_list(starts, len(paths)), _as_list(ends, len(paths))
        self.max_gap = max_gap
        self.on_error = on_error
        self.options = options
        self.found: list[Any] = [None] * len(paths)

    def look(self) -> set[str]:
        """Take what is cached. Returns the paths of which something is missing."""
        names = [_name_of(path, self.options) for path in self.paths] if self.options else self.paths
        ranges = zip(names, self.starts, self.ends, strict=True)
        self.found = [self.fs._cached_range(name, start, end) for name, start, end in ranges]
        return {path for path, data in zip(self.paths, self.found, strict=True) if data is None}

    async def fill_all(self, missing: set[str]) -> list[Any]:
        """Read what is missing of some objects, each in a worker if the target can be read there."""
        await asyncio.gather(*(self.fs._blocking(self.fill, path) for path in missing))
        return self.found

    def fill(self, path: str) -> list[Any]:
        """Read what is missing of one object, and put it, or the error, into its places."""
        places = [n for n, data in enumerate(self.found) if data is None and self.paths[n] == path]
        wanted = [(self.starts[n], self.ends[n]) for n in places]
        try:
            parts: Sequence[Any] = self.fs._with_handle(
                path, self.options, lambda file: _slices(file, wanted, self.max_gap)
            )
        except Exception as error:
            if self.on_error != "return":
                raise
            parts = [error] * len(places)
        for n, part in zip(places, parts, strict=True):
            self.found[n] = part
        return self.found


def _as_list(value: Iterable[int | None] | int | None, count: int) -> list[int | None]:
    values = list(value) if isinstance(value, Iterable) else [value] * count
    if len(values) != count:
        raise ValueError(f"{count} paths, but {len(values)} starts or ends")
    return values


def _bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return (nbytes, offset) of a range given as Python slices are."""
    start, end, _ = slice(start, end).indices(size)
    return max(0, end - start), start


def _of_one_version(file: File | VersionedFile, call: Callable[[File], _Result]) -> _Result:
    return file.with_one_version(call) if isinstance(file, VersionedFile) else call(file)


def _slice(file: File | VersionedFile, start: int | None, end: int | None) -> bytes:
    return _of_one_version(file, lambda one: one.pread(*_bounds(one.size, start, end)))


def _slices(
    file: File | VersionedFile, wanted: Sequence[tuple[int | None, int | None]], max_gap: int | None
) -> list[bytes]:
    hole_size = None if max_gap is None else max(0, max_gap)
    return _of_one_version(
        file, lambda one: one.preadv_many([_bounds(one.size, start, end) for start, end in wanted], hole_size=hole_size)
    )


fsspec.register_implementation("pagecache", PageCacheFileSystem, clobber=True)
fsspec.caching.register_cache(PageCacheType, clobber=True)
