"""Zarr v3: `zarr.open(PageCacheStore(store))`.

Every key is an object of the page cache: partial reads of shards share pages, are joined and read ahead; many readers of
one cold key make one request; a hit takes no trip through an event loop, neither from the asynchronous methods nor from
the synchronous ones.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any, Literal

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from pagecache.adapters.zarr_source import Answer, run_blocking, source_of
from pagecache.adapters.zarr_values import LoadCancelled, Value, Values
from pagecache.files.aio import in_worker
from pagecache.units import PAGE_SIZE

MISS = object()
INLINE_BYTES_MAX = 1024 * 1024  # what is copied into the cache by the thread of the event loop
ESTALE = 116


def span_of(byte_range: Any, size: int) -> tuple[int, int]:
    """Return (offset, nbytes) of a Zarr byte range in a value of so many bytes. Raises ValueError for what is none."""
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        start, end = byte_range.start, byte_range.end
    elif isinstance(byte_range, OffsetByteRequest):
        start, end = byte_range.offset, size
    elif isinstance(byte_range, SuffixByteRequest):
        start, end = max(0, size - byte_range.suffix), size
    else:
        raise ValueError(f"Unexpected byte_range, got {byte_range}.")
    return start, max(0, min(end, size) - start)


class PageCacheStore(WrapperStore[Store]):
    """A Zarr store read through a page cache.

    store: any Zarr store; with `zarr.storage.ObjectStore` the versions of the objects (ETag) are checked by every request.
    cache: a `PageCache`; None: the process's own. recheck: when cached keys are compared with the store: False, never;
    True, at each read; a number, when so many seconds have passed; "open", once for each store that is opened. What has
    changed, and what has no version to compare, is read anew. name: stores with one name on one cache are taken for the
    same and share pages; None: only the forms of this one (`with_read_only`) share.

    Keys that do not exist are remembered too. Writes and deletes through this store are seen at once by all its forms;
    others' writes when a key is rechecked: until then a read raises OSError (ESTALE) rather than mix two versions, if the
    store has versions.

    Pickles as the wrapped store and the settings, without contents; unpickled, it uses the process's own cache.
    Context: thread-safe. Methods that end in _sync may block; in the thread of an event loop that the wrapped store needs
    they raise RuntimeError instead.
    """

    def __init__(
        self,
        store: Store,
        cache: Any = None,
        *,
        recheck: bool | float | Literal["open"] = False,
        name: str | None = None,
        _values: Values | None = None,
    ):
        if not (recheck == "open" or (isinstance(recheck, (bool, int, float)) and recheck >= 0)):
            raise ValueError(f'recheck must be True, False, "open" or a number of seconds, not {recheck!r}')
        super().__init__(store)
        self._recheck = recheck
        self._name = name
        self._opened_s = time.monotonic()
        self._values = _values if _values is not None else Values.of(cache, name)
        self._source = source_of(store)

    def _with_store(self, store: Store) -> "PageCacheStore":
        return type(self)(store, recheck=self._recheck, name=self._name, _values=self._values)

    def __reduce__(self) -> Any:
        return _unpickle, (type(self), self._store, self._recheck, self._name)

    def __str__(self) -> str:
        return f"pagecache-{self._store}"

    def __repr__(self) -> str:
        return f"PageCacheStore({self._store!r})"

    @property
    def cache(self) -> Any:
        """The cache that this store reads through."""
        return self._values.cache

    # -- what is cached ------------------------------------------------------------------------------------------------

    def _is_fresh(self, value: Value) -> bool:
        """Whether a known value need not be compared with the store."""
        if self._recheck is False:
            return True
        if self._recheck == "open":
            return value.checked_s >= self._opened_s
        return self._recheck is not True and time.monotonic() - value.checked_s < float(self._recheck)

    def _known(self, key: str) -> Value | None:
        """Return what is known of a key, if it may be used as it is."""
        value = self._values.get(key)
        return value if value is not None and self._is_fresh(value) else None

    def _cached(self, key: str, byte_range: Any) -> Any:
        """Return the bytes of a range, or None for a key that does not exist, or MISS."""
        value = self._known(key)
        if value is None:
            return MISS
        return self._cached_of(value, byte_range)

    def _cached_of(self, value: Value, byte_range: Any) -> Any:
        if value.size is None:
            return None
        offset, nbytes = span_of(byte_range, value.size)
        if nbytes == 0:
            return b""
        if value.file is None:
            return MISS
        try:
            data = value.file.pread_cached(nbytes, offset)
        except (ValueError, RuntimeError):  # closed, or of the parent process
            return MISS
        return MISS if data is None else data

    def _read(self, key: str, value: Value, byte_range: Any) -> Any:
        """Return the bytes of a range of a known value, or MISS when it has to be looked up again. May block."""
        if value.size is None:
            return None
        file = self._values.file_of(key, value)
        if file is None:
            return MISS
        offset, nbytes = span_of(byte_range, value.size)
        # The first page of a file begins a stream; the first chunk of a shard does not.
        file.is_random = offset < PAGE_SIZE and nbytes < value.size // 2
        try:
            return file.pread(nbytes, offset)
        except ValueError:
            if file.closed:  # the key was written, or many others were opened
                return MISS
            raise
        except OSError as error:
            if error.errno == ESTALE or isinstance(error.__cause__, FileNotFoundError):
                self._values.forget(key)
            raise

    def _settle(self, key: str, old: Value, answer: Answer | None) -> bool:
        """Whether a value that was due for a check is still the same; if not it is forgotten."""
        if answer is None:
            same = old.size is None
        else:
            same = answer.version is not None and (answer.size, answer.version) == (old.size, old.answer_version)
        if same:
            old.checked_s = time.monotonic()
        else:
            self._values.forget(key)
        return same

    # -- reading, asynchronously ---------------------------------------------------------------------------------------

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """Return a value or a part of it, None if there is no such key. Raises OSError, ValueError."""
        data = self._cached(key, byte_range)
        if data is MISS:
            self._source.loop = asyncio.get_running_loop()
            data = await self._get_slow(key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def _get_slow(self, key: str, byte_range: Any) -> Any:
        span_of(byte_range, 0)
        value = self._values.get(key)
        if value is not None and not self._is_fresh(value):
            value = await self._check(key, value)
        while True:
            if value is None:
                value, answer = await self._load(key, byte_range)
                if byte_range is None:
                    return None if answer is None else bytes(answer.data)
            data = self._cached_of(value, byte_range)
            if data is MISS:
                data = await in_worker(self._read, key, value, byte_range)
            if data is not MISS:
                return data
            value = None

    async def _check(self, key: str, old: Value) -> Value | None:
        """Compare a known value with the store. Returns it if it is the same still."""
        if not self._source.has_versions:
            self._values.forget(key)
            return None
        return old if self._settle(key, old, await self._source.stat(key)) else None

    async def _load(self, key: str, byte_range: Any) -> tuple[Value, Answer | None]:
        """Make the first request for a key, or wait for somebody else's. Returns what is known of it then."""
        while True:
            loading, is_mine = self._values.begin_load(key)
            if is_mine:
                break
            try:
                answer = await asyncio.shield(asyncio.wrap_future(loading))
            except LoadCancelled:
                continue
            value = self._values.get(key)
            if value is not None and not loading.is_stale and (byte_range is not None or _is_whole(answer)):
                return value, answer
            if value is not None and byte_range is None and not loading.is_stale:
                whole = await in_worker(self._read, key, value, None)
                if whole is not MISS:
                    return value, _whole(value, whole)
        try:
            answer = await self._source.first(key, byte_range)
        except BaseException as error:
            self._values.fail_load(key, loading, error)
            raise
        value = self._values.end_load(key, loading, self._source, answer)
        if answer is not None:
            if len(answer.data) <= INLINE_BYTES_MAX:
                self._values.keep(key, value, answer)
            else:
                await in_worker(self._values.keep, key, value, answer)
            if byte_range is None and not _is_whole(answer):
                raise AssertionError("a request for a whole value brought a part")
        return value, answer

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Return many parts, in order."""
        return list(await asyncio.gather(*[self.get(key, prototype, byte_range) for key, byte_range in key_ranges]))

    async def _get_many(self, requests: Iterable[tuple[str, BufferPrototype, Any]]) -> AsyncGenerator[Any, None]:
        wanted = list(requests)
        buffers = await asyncio.gather(*[self.get(*request) for request in wanted])
        for (key, _, _), buffer in zip(wanted, buffers, strict=True):
            yield key, buffer

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[Any], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield (number, part) of many parts of one value: what is missing is joined and fetched in parallel.

        Raises BaseExceptionGroup with a FileNotFoundError if there is no such key.
        """
        if not byte_ranges:
            return
        await self.get(key, prototype, byte_ranges[0])
        parts = await in_worker(self._read_ranges, key, byte_ranges)
        yield [(number, prototype.buffer.from_bytes(part)) for number, part in enumerate(parts)]

    def _read_ranges(self, key: str, byte_ranges: Sequence[Any]) -> Sequence[Any]:
        value = self._values.get(key)
        if value is None or value.size is None:
            raise BaseExceptionGroup(f"cannot read parts of {key!r}", [FileNotFoundError(key)])
        file = self._values.file_of(key, value)
        if file is not None:
            spans = [span_of(wanted, value.size) for wanted in byte_ranges]
            try:
                return file.preadv_many([(nbytes, offset) for offset, nbytes in spans])
            except ValueError:
                if not file.closed:
                    raise
        return [self._get_blocking(key, wanted) for wanted in byte_ranges]

    # -- reading, synchronously ----------------------------------------------------------------------------------------

    @property
    def _supports_sync_io(self) -> bool:
        """Whether Zarr should read by threads that call `get_sync`: for far stores its event loop asks for more at once."""
        return self._source.is_blocking

    def get_sync(self, key: str, *, prototype: BufferPrototype | None = None, byte_range: Any = None) -> Buffer | None:
        """As `get`; a hit needs no event loop. Raises RuntimeError where it would block the loop that it waits for."""
        data = self._cached(key, byte_range)
        if data is MISS:
            data = self._get_blocking(key, byte_range)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def _get_blocking(self, key: str, byte_range: Any) -> Any:
        span_of(byte_range, 0)
        value = self._values.get(key)
        if value is not None and not self._is_fresh(value):
            value = self._check_blocking(key, value)
        while True:
            if value is None:
                value, answer = self._load_blocking(key, byte_range)
                if byte_range is None and (answer is None or _is_whole(answer)):
                    return None if answer is None else bytes(answer.data)
            data = self._read(key, value, byte_range)
            if data is not MISS:
                return data
            value = None

    def _check_blocking(self, key: str, old: Value) -> Value | None:
        if not self._source.has_versions:
            self._values.forget(key)
            return None
        return old if self._settle(key, old, self._source.stat_blocking(key)) else None

    def _load_blocking(self, key: str, byte_range: Any) -> tuple[Value, Answer | None]:
        while True:
            loading, is_mine = self._values.begin_load(key)
            if is_mine:
                break
            try:
                answer = loading.result()
            except LoadCancelled:
                continue
            value = self._values.get(key)
            if value is not None and not loading.is_stale:
                return value, answer
        try:
            answer = self._source.first_blocking(key, byte_range)
        except BaseException as error:
            self._values.fail_load(key, loading, error)
            raise
        value = self._values.end_load(key, loading, self._source, answer)
        if answer is not None:
            self._values.keep(key, value, answer)
        return value, answer

    def get_ranges_sync(
        self, key: str, byte_ranges: Sequence[Any], *, prototype: BufferPrototype, **_: Any
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As `get_ranges`, all at once."""
        if not byte_ranges:
            return []
        self.get_sync(key, prototype=prototype, byte_range=byte_ranges[0])
        parts = self._read_ranges(key, byte_ranges)
        return [(number, prototype.buffer.from_bytes(part)) for number, part in enumerate(parts)]

    # -- questions -----------------------------------------------------------------------------------------------------

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        value = self._known(key)
        return value.size is not None if value is not None else await self._store.exists(key)

    async def getsize(self, key: str) -> int:
        """Return the size of a value (bytes). Raises FileNotFoundError."""
        value = self._known(key)
        if value is None:
            return await self._store.getsize(key)
        if value.size is None:
            raise FileNotFoundError(key)
        return value.size

    # -- writing -------------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value to the store. No reader that begins afterwards sees the old one."""
        self._values.forget(key)
        try:
            await self._store.set(key, value)
        finally:
            self._values.forget(key)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value to the store unless there is one."""
        try:
            await self._store.set_if_not_exists(key, value)
        finally:
            self._values.forget(key)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*[self.set(key, value) for key, value in values])

    async def delete(self, key: str) -> None:
        """Remove a key from the store."""
        self._values.forget(key)
        try:
            await self._store.delete(key)
        finally:
            self._values.forget(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys below a prefix from the store."""
        try:
            await self._store.delete_dir(prefix)
        finally:
            self._values.forget_prefix(prefix.rstrip("/") + "/" if prefix else "")

    async def clear(self) -> None:
        """Remove all keys from the store."""
        try:
            await self._store.clear()
        finally:
            self._values.forget_prefix("")

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`."""
        self._write_blocking(key, "set_sync", self._store.set, value)

    def delete_sync(self, key: str) -> None:
        """As `delete`."""
        self._write_blocking(key, "delete_sync", self._store.delete)

    def _write_blocking(self, key: str, name: str, method: Any, *args: Any) -> None:
        self._values.forget(key)
        try:
            blocking = getattr(self._store, name, None) if getattr(self._store, "_supports_sync_io", True) else None
            if blocking is not None:
                blocking(key, *args)
            else:
                run_blocking(method(key, *args), self._source.loop)
        finally:
            self._values.forget(key)

    # -- the cache -----------------------------------------------------------------------------------------------------

    def invalidate(self, key: str | None = None) -> None:
        """Read a key (None: all keys) anew when it is used next: somebody else may have written it."""
        if key is None:
            self._values.forget_prefix("")
        else:
            self._values.forget(key)

    def close(self) -> None:
        """Close the wrapped store. What is cached stays, for the other forms of this store."""
        self._values.close_files()
        self._store.close()


def _is_whole(answer: Answer | None) -> bool:
    return answer is None or len(answer.data) == answer.size


def _whole(value: Value, data: bytes | None) -> Answer | None:
    return None if data is None else Answer(data, 0, len(data), value.answer_version)


def _unpickle(kind: type[PageCacheStore], store: Store, recheck: Any, name: str | None) -> PageCacheStore:
    return kind(store, recheck=recheck, name=name)
