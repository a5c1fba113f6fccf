"""Zarr v3: `zarr.open(PageCacheStore(store))`.

Every key is an object of the page cache: partial reads of shards share pages, are joined and read ahead; many readers of
one cold key make one request; a hit takes no trip through an event loop, neither from the asynchronous methods nor from
the synchronous ones.

    zarr_source, zarr_local, zarr_obstore, zarr_fsspec    what is asked, and what follows from the answer; by kind of store
    zarr_values                                           what is known of keys, beyond the life of a store
    zarr_reading                                          how a value is read, with or without an event loop (zarr_steps)
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from pagecache.cache import PageCache
from pagecache.extras import needs

with needs("zarr", __name__):
    from zarr.abc.store import ByteRequest, RangeByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
    from zarr.storage import FsspecStore, WrapperStore

from pagecache.adapters.zarr_opening import Opening
from pagecache.adapters.zarr_reading import MISS, Reader
from pagecache.adapters.zarr_sources import source_of
from pagecache.adapters.zarr_steps import Step, awaited, blocked, only
from pagecache.adapters.zarr_values import Values, opened_s, values_of
from pagecache.options import check_options, check_spelling
from pagecache.stores.attempts import checked_attempts, no_limit_error

OPTIONS = ("cache", "name", "recheck", "timeout_s", "retries")


class PageCacheStore(WrapperStore[Store]):
    """A Zarr store read through a page cache.

    store: any Zarr store. cache: a `PageCache`; None: the process's own.
    recheck: when keys that are known are compared with the store: "open", once for each PageCacheStore that is made, at
    the first use of the key; False, never, for arrays that do not change; True, at each read; a number, when so many
    seconds have passed. What has changed, and what has no version to compare, is read anew. Keys that do not exist are
    known, too.
    name: in place of what the store reads: stores of one name on one cache are taken for the same. Stores that cannot tell
    what they read need it to find what another store of their kind has cached.
    timeout_s, retries: as for `pagecache.FsspecStore`, of what is asked of the wrapped store to read.

    What is known, and the pages, are shared by all stores that read the same with the same rights (URL and options that
    matter, path, archive), and outlive them: a store that is made anew, or unpickled, begins with them. Forms of one store
    (`with_read_only`) and its pickled copies count as one that was made. Writes and deletes through a store are seen at
    once by all that share with it; others' writes when a key is rechecked: until then a read raises OSError (ESTALE) rather
    than mix two versions, if the store has versions.

    A key is absent only if `get` of the wrapped store says so. What cannot be found out is an error: the store's own where
    it was asked for the first time, OSError for a part of a value that is known.

    Pickles as the wrapped store and the settings, without contents; unpickled, it uses the process's own cache.
    Raises ValueError for a recheck that is none, TypeError for an option that there is not.
    Context: thread-safe. Methods that end in _sync may block; in the thread of an event loop that the wrapped store needs
    they raise RuntimeError instead.
    """

    def __init__(
        self,
        store: Store,
        cache: PageCache | None = None,
        *,
        recheck: bool | float | Literal["open"] = "open",
        name: str | None = None,
        timeout_s: float | None = None,
        retries: int = 0,
        _values: Values | None = None,
        _opening: str | None = None,
        **options: Any,
    ):
        check_options(options, OPTIONS, "PageCacheStore")
        if not (recheck == "open" or (isinstance(recheck, (bool, int, float)) and recheck >= 0)):
            raise ValueError(f'recheck must be True, False, "open" or a number of seconds, not {recheck!r}')
        attempts = checked_attempts(timeout_s, retries)
        super().__init__(store)
        self._recheck = recheck
        self._name = name
        self._opening_id = _opening or uuid.uuid4().hex
        self._source = source_of(store)
        self._source.attempts = attempts
        if timeout_s is not None and not self._source.background_reads:
            raise no_limit_error(str(store))
        self._values = _values if _values is not None else values_of(cache, name, self._source)
        self._opening = Opening(self._source)
        self._reader = Reader(self._values, self._source, recheck, opened_s(self._opening_id), self._opening)

    @classmethod
    async def open(
        cls,
        store_cls: type[Store],
        *args: Any,
        cache: PageCache | None = None,
        recheck: bool | float | Literal["open"] = "open",
        name: str | None = None,
        timeout_s: float | None = None,
        retries: int = 0,
        **kwargs: Any,
    ) -> "PageCacheStore":
        """Make a store of a class, open it, and return it wrapped. kwargs: of the class."""
        check_spelling(kwargs, OPTIONS, (), "PageCacheStore.open")
        store = store_cls(*args, **kwargs)
        await store._ensure_open()
        return cls(store, cache, recheck=recheck, name=name, timeout_s=timeout_s, retries=retries)

    def _with_store(self, store: Store) -> "PageCacheStore":
        return type(self)(store, **self._how(), _values=self._values, _opening=self._opening_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self._store, self._how(), self._opening_id)

    def _how(self) -> dict[str, Any]:
        """Return the settings of this store."""
        return {"recheck": self._recheck, "name": self._name, **self._source.attempts._asdict()}

    def __str__(self) -> str:
        return f"pagecache-{self._store}"

    def __repr__(self) -> str:
        return f"PageCacheStore({self._store!r})"

    @property
    def cache(self) -> PageCache:
        """The cache that this store reads through."""
        return self._values.cache

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _ensure_open(self) -> None:
        if not self._opening.is_done:
            await awaited(self._opening.steps())

    # -- reading, asynchronously ---------------------------------------------------------------------------------------

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value or a part of it, None if there is no such key. Raises OSError, ValueError, and what the wrapped
        store raises."""
        data = self._reader.cached(key, byte_range)
        if data is MISS:
            self._source.loop = asyncio.get_running_loop()
            data = await awaited(self._reader.fetch(key, byte_range))
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Return many parts, in order."""
        return list(await asyncio.gather(*[self.get(key, prototype, byte_range) for key, byte_range in key_ranges]))

    async def _get_many(self, requests: Iterable[tuple[str, BufferPrototype, Any]]) -> AsyncGenerator[Any, None]:
        wanted = list(requests)
        buffers = await asyncio.gather(*[self.get(*request) for request in wanted])
        for (key, _, _), buffer in zip(wanted, buffers, strict=True):
            yield key, buffer

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield (number, part) of many parts of one value: what is missing is joined and fetched in parallel.

        Raises BaseExceptionGroup with a FileNotFoundError if there is no such key; what `get` raises.
        """
        if not byte_ranges:
            return
        self._source.loop = asyncio.get_running_loop()
        parts = await awaited(self._reader.fetch_ranges(key, byte_ranges))
        if parts is MISS:
            buffers = await self.get_partial_values(prototype, [(key, byte_range) for byte_range in byte_ranges])
            parts = None if None in buffers else [buffer.as_numpy_array() for buffer in buffers]
        yield _numbered(key, parts, prototype)

    # -- reading, synchronously ----------------------------------------------------------------------------------------

    @property
    def _supports_sync_io(self) -> bool:
        """Whether Zarr should read by threads that call `get_sync`: for far stores its event loop asks for more at once."""
        return self._source.is_blocking

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As `get`; a hit needs no event loop. Raises RuntimeError where it would block the loop that it waits for."""
        data = self._reader.cached(key, byte_range)
        if data is MISS:
            data = blocked(self._reader.fetch(key, byte_range))
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def get_ranges_sync(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As `get_ranges`, all at once."""
        if not byte_ranges:
            return []
        parts = blocked(self._reader.fetch_ranges(key, byte_ranges))
        if parts is MISS:
            found = [blocked(self._reader.fetch(key, byte_range)) for byte_range in byte_ranges]
            parts = None if None in found else found
        return _numbered(key, parts, prototype)

    # -- questions -----------------------------------------------------------------------------------------------------

    async def exists(self, key: str) -> bool:
        """Whether there is such a key. Raises what the wrapped store raises, where that is not its answer to everything."""
        value = self._reader.known(key)
        if value is not None:
            return value.size is not None
        await self._ensure_open()
        if type(self._store) is not FsspecStore:
            return bool(await self._store.exists(key))
        self._source.loop = asyncio.get_running_loop()
        return await awaited(self._reader.fetch(key, RangeByteRequest(0, 1))) is not None

    async def getsize(self, key: str) -> int:
        """Return the size of a value (bytes). Raises FileNotFoundError."""
        value = self._reader.known(key)
        if value is None:
            await self._ensure_open()
            step = Step(partial(self._store.getsize, key), _not_blocking)
            return int(await awaited(self._reader.attempted(key, lambda: only(step))))
        if value.size is None:
            raise FileNotFoundError(key)
        return value.size

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the size of all values below a prefix (bytes)."""
        await self._ensure_open()
        return int(await self._store.getsize_prefix(prefix))

    async def is_empty(self, prefix: str) -> bool:
        """Whether there are no keys below a prefix."""
        await self._ensure_open()
        return bool(await self._store.is_empty(prefix))

    def list(self) -> AsyncIterator[str]:
        """Iterate over all keys."""
        return self._listed(lambda: self._store.list())

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the keys that begin with a prefix."""
        return self._listed(lambda: self._store.list_prefix(prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the names directly below a prefix."""
        return self._listed(lambda: self._store.list_dir(prefix))

    async def _listed(self, begin: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
        await self._ensure_open()
        async for key in begin():
            yield key

    # -- writing -------------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value to the store. No reader that begins afterwards sees the old one."""
        await self._written(key, self._store.set, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value to the store unless there is one."""
        await self._written(key, self._store.set_if_not_exists, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await asyncio.gather(*[self.set(key, value) for key, value in values])

    async def delete(self, key: str) -> None:
        """Remove a key from the store."""
        await self._written(key, self._store.delete)

    async def _written(self, key: str, method: Callable[..., Awaitable[None]], *args: Any) -> None:
        await self._ensure_open()
        self._values.forget(key)
        try:
            await method(key, *args)
        finally:
            self._values.forget(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys below a prefix from the store."""
        await self._ensure_open()
        try:
            await self._store.delete_dir(prefix)
        finally:
            self._values.forget_prefix(prefix.rstrip("/") + "/" if prefix else "")

    async def clear(self) -> None:
        """Remove all keys from the store."""
        await self._ensure_open()
        try:
            await self._store.clear()
        finally:
            self._values.forget_prefix("")

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`."""
        self._written_blocking(key, self._source.write_blocking, value)

    def delete_sync(self, key: str) -> None:
        """As `delete`."""
        self._written_blocking(key, self._source.delete_blocking)

    def _written_blocking(self, key: str, method: Callable[..., None], *args: Any) -> None:
        if not self._opening.is_done:
            blocked(self._opening.steps())
        self._values.forget(key)
        try:
            method(key, *args)
        finally:
            self._values.forget(key)

    # -- the cache -----------------------------------------------------------------------------------------------------

    def invalidate(self, key: str | None = None) -> None:
        """Read a key (None: all keys) anew when it is used next: others may have written it."""
        if key is None:
            self._values.forget_prefix("")
        else:
            self._values.forget(key)

    def close(self) -> None:
        """Close the wrapped store. What is cached stays, for all that read the same."""
        self._values.close_files()
        if self._opening.is_done:
            self._store.close()


def _numbered(key: str, parts: Sequence[Any] | None, prototype: BufferPrototype) -> Sequence[tuple[int, Buffer | None]]:
    """Return parts of a value with their numbers. Raises BaseExceptionGroup if there is no such key."""
    if parts is None:
        raise BaseExceptionGroup(f"cannot read parts of {key!r}", [FileNotFoundError(key)])
    return [(number, prototype.buffer.from_bytes(part)) for number, part in enumerate(parts)]


def _not_blocking() -> None:
    raise NotImplementedError("this is asked for in an event loop only")


def _unpickle(kind: type[PageCacheStore], store: Store, how: dict[str, Any], opening: str) -> PageCacheStore:
    return kind(store, **how, _opening=opening)
