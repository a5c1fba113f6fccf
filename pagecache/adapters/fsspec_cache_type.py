"""`fs.open(path, cache_type="pagecache")`: the cache of a file of any fsspec file system is the process's page cache."""

import errno
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pagecache.extras import needs
from pagecache.files.file import File
from pagecache.files.versioned import VersionedFile

with needs("fsspec", __name__):
    from fsspec.caching import BaseCache

from pagecache.default import default_cache
from pagecache.options import check_options
from pagecache.stores.attempts import Attempts, checked_attempts, no_limit_error
from pagecache.stores.call_options import request_options
from pagecache.stores.destination import Destination, TooLongError
from pagecache.stores.errors import encoded_error
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.validators import encoding_of, validator_of, version_of

_KNOWN = ("fsspec.implementations.http", "s3fs.", "gcsfs.")  # whose files keep the options of their call as expected
_numbers = itertools.count(1)


class FetcherStore:
    """What a function brings that is given a start and an end, and nothing is known of besides the size (bytes)."""

    latency = "remote"
    parallel_requests = 1
    background_reads = False  # it is not known what else is done with what it reads from

    def __init__(self, fetcher: Callable[[int, int], Any], size: int, retries: int = 0):
        self._attempts = Attempts(None, retries)
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
        return self._attempts.run(self.key, lambda: self._read(offset, buffers))

    def _read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        destination = Destination(buffers)
        try:
            destination.put(self._fetcher(offset, offset + destination.wanted))
        except TooLongError as error:
            raise encoded_error(error, None) from None
        finally:
            destination.detach()
        return destination.done

    def close(self) -> None:
        """Do nothing."""


class PageCacheType(BaseCache):
    """A file's share of the page cache.

    Files of one file system and path share their pages, with each other and with `pagecache::` over the same target, as
    long as they are of one version and were opened with the same options. A fetcher that belongs to no file, and a file
    whose options are not known, have pages of their own.
    recheck, on_change: as for `PageCache.open`, given as `cache_options`. whole_up_to, thread_safe, timeout_s, retries: as
    for FsspecStore, likewise.
    Raises TypeError for another option, ValueError for a time limit that cannot be kept.
    """

    name = "pagecache"
    _file: File | VersionedFile | None = None  # None: it was never opened

    def __init__(
        self,
        blocksize: int,
        fetcher: Callable[[int, int], bytes],
        size: int,
        recheck: bool | str | float = "open",
        on_change: str = "error",
        whole_up_to: int | str = 0,
        thread_safe: bool | None = None,
        timeout_s: float | None = None,
        retries: int = 0,
        **unknown: Any,
    ):
        known = ("recheck", "on_change", "whole_up_to", "thread_safe", "timeout_s", "retries")
        check_options(unknown, known, "cache_options of 'pagecache'")
        super().__init__(blocksize, fetcher, size)
        self._options: dict[str, Any] = {"recheck": recheck, "on_change": on_change}
        self._how: dict[str, Any] = {"whole_up_to": whole_up_to, "thread_safe": thread_safe}
        self._how |= checked_attempts(timeout_s, retries)._asdict()
        owner = getattr(fetcher, "__self__", None)
        store = None
        if getattr(owner, "fs", None) is not None and isinstance(getattr(owner, "path", None), str):
            store = _store_of(owner, recheck, self._how)
        if store is None:
            if timeout_s is not None:
                raise no_limit_error("a fetcher")
        elif not store.serves_ranges and store.version.encoding is not None and store.size() != size:
            how = f"is stored with Content-Encoding {store.version.encoding}, in {size} bytes, and has {store.size()}"
            raise OSError(errno.ENOTSUP, f"{store.name} {how}: read it as pagecache::{store.name}, or with cat_file")
        elif not store.is_immutable and store.size() != size:
            sizes = f"it has {store.size()} bytes, the file was made for {size}"
            raise OSError(errno.ESTALE, f"{store.name} was replaced while it was being opened ({sizes}): open it again")
        self._file = default_cache().open(store or FetcherStore(fetcher, size, retries), **self._options)

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        start, stop = start or 0, self.size if stop is None else min(stop, self.size)
        if start >= stop:
            return b""
        assert self._file is not None
        data = self._file.pread_cached(stop - start, start)
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
        options = (*self._options.values(), *self._how.values())
        return PageCacheType, (self.blocksize, self.fetcher, self.size, *options)


def _store_of(owner: Any, recheck: bool | str | float, how: Mapping[str, Any]) -> FsspecStore | None:
    """Return the store of an fsspec file's object, with the version that the file was opened on, if it knows one, and the
    options of the call that opened it. None if these are not known."""
    options = _options_of(owner)
    if options is None:
        return None
    details = getattr(owner, "_details", None) or {}
    version = None
    is_of_live_object = "generation" in options and str(details.get("generation")) != str(options["generation"])
    is_known = validator_of(details) is not None and encoding_of(details) is None and not is_of_live_object
    if is_known and recheck is not False:
        version = version_of(details, owner.path, time.monotonic())
    store = FsspecStore(owner.fs, owner.path, version=version, options=options, recheck=recheck, **how)
    if encoding_of(details) is not None and store.known_version is None:
        store.refresh()  # it may have another size than is stated
    return store


def _options_of(owner: Any) -> dict[str, Any] | None:
    """Return the options of the call that opened a file: what it keeps, and its file system does not have.

    None for options of a library that is not known: only the file itself knows how they go into requests.
    """
    fs = owner.fs
    options = {name: value for name, value in vars(owner).items() if name in ("version_id", "generation") and value}
    kept = {**vars(owner).get("kwargs", {}), **vars(owner).get("s3_additional_kwargs", {})}
    usual = {**(getattr(fs, "kwargs", None) or {}), **getattr(fs, "s3_additional_kwargs", {})}
    options |= {name: value for name, value in kept.items() if name not in usual or usual[name] != value}
    if "req_kw" in vars(owner) and owner.req_kw != getattr(fs, "req_kw", {}):
        options["requester_pays"] = bool(owner.req_kw)
    options = request_options(options)
    is_known = any(base.__module__.startswith(_KNOWN) for base in type(fs).__mro__)
    return options if is_known or not options else None
