"""Where the bytes of Zarr keys come from: any Zarr store, or obstore itself with versions checked by every request."""

import asyncio
import errno
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from pagecache.units import PAGE_SIZE

POLL_S = 0.25  # how often somebody who waits for an event loop looks whether it still runs


@dataclass
class Answer:
    """What the first request for a key brought: `data` from byte `start`, and size and version of the whole value.

    version: None where the store has none.
    """

    data: Any
    start: int
    size: int
    version: str | None


class ObjectChangedError(OSError):
    """A value is not the one any more whose size and version are known (ESTALE)."""

    def __init__(self, key: str):
        super().__init__(errno.ESTALE, "the value changed while it was cached: read it again", key)


def run_blocking(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
    """Run a coroutine on an event loop of another thread (None, or one that stopped: Zarr's own) and wait for its result.

    Raises RuntimeError in the thread of that loop, which would wait for itself. When the loop stops meanwhile, or cancels
    the coroutine, raises asyncio.CancelledError: that is no failure of the store, and others who wait for the same bytes
    read them themselves.
    """
    from zarr.core.sync import _get_loop

    if loop is None or not loop.is_running():
        loop = _get_loop()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError("this would block the event loop that it waits for: await the asynchronous method instead")
    future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, loop)
    while True:
        try:
            return future.result(POLL_S)
        except CancelledError:
            raise asyncio.CancelledError("the read was cancelled by its event loop") from None
        except TimeoutError:
            if future.done():
                raise
            if not loop.is_running():
                future.cancel()
                raise asyncio.CancelledError("the event loop of the store stopped during a read") from None


class StoreSource:
    """Reads through a Zarr store, which tells no versions. Writes are seen only when they are made by the same store."""

    has_versions = False

    def __init__(self, store: Store):
        self.store = store
        self.loop: asyncio.AbstractEventLoop | None = None  # where the store was used last
        self.is_local = isinstance(store, LocalStore | MemoryStore)
        # A subclass with a `get` of its own is asked through that.
        self.is_blocking = type(store).get in (LocalStore.get, MemoryStore.get) and hasattr(store, "get_sync")

    async def first(self, key: str, byte_range: Any) -> Answer | None:
        """Make the first request for a key. Returns None if there is no such key."""
        if byte_range is not None:
            return await self.stat(key)
        value = await self.store.get(key, default_buffer_prototype(), None)
        return None if value is None else Answer(value.as_numpy_array(), 0, len(value), None)

    async def stat(self, key: str) -> Answer | None:
        """Ask for the size of a value. Returns None if there is no such key."""
        try:
            return Answer(b"", 0, await self.store.getsize(key), None)
        except FileNotFoundError:
            return None

    def first_blocking(self, key: str, byte_range: Any) -> Answer | None:
        """As `first`, in a thread without an event loop."""
        if not self.is_blocking:
            return run_blocking(self.first(key, byte_range), self.loop)
        if byte_range is not None:
            return self.stat_blocking(key)
        value = self._get_local(key)
        return None if value is None else Answer(value.as_numpy_array(), 0, len(value), None)

    def stat_blocking(self, key: str) -> Answer | None:
        """As `stat`, in a thread without an event loop."""
        if self.is_blocking and isinstance(self.store, LocalStore):
            path = self.store.root / key
            return Answer(b"", 0, path.stat().st_size, None) if path.is_file() else None
        if not self.is_blocking:
            return run_blocking(self.stat(key), self.loop)
        value = self._get_local(key)
        return None if value is None else Answer(b"", 0, len(value), None)

    def _get_local(self, key: str, byte_range: Any = None) -> Any:
        return self.store.get_sync(key, prototype=default_buffer_prototype(), byte_range=byte_range)

    def read(self, key: str, start: int, end: int, version: str | None) -> Any:
        """Return bytes start..end (exclusive) of a value, fewer only at its end. Raises OSError."""
        request, prototype = RangeByteRequest(start, end), default_buffer_prototype()
        if self.is_blocking:
            value = self._get_local(key, request)
        else:
            value = run_blocking(self.store.get(key, prototype, request), self.loop)
        if value is None:
            raise FileNotFoundError(errno.ENOENT, "the key is gone", key)
        return value.as_numpy_array()


class ObstoreSource:
    """Reads through obstore: every answer tells size and version, and every request but the first asks for that version."""

    has_versions = True
    is_local = False
    is_blocking = True

    def __init__(self, store: Store):
        import obstore

        self.loop: asyncio.AbstractEventLoop | None = None
        self._api: Any = obstore
        self._store = store.store

    @staticmethod
    def _range_of(byte_range: Any) -> dict[str, Any]:
        """Return the options of a request for whole pages around a range: what is cached is pages."""
        if isinstance(byte_range, SuffixByteRequest):
            return {"range": {"suffix": byte_range.suffix + PAGE_SIZE - 1}}
        if isinstance(byte_range, OffsetByteRequest):
            return {"range": {"offset": byte_range.offset // PAGE_SIZE * PAGE_SIZE}}
        if isinstance(byte_range, RangeByteRequest):
            end = max(byte_range.end, byte_range.start + 1)
            return {"range": (byte_range.start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE)}
        return {}

    @staticmethod
    def _version_of(meta: Any) -> str | None:
        return meta.get("e_tag") or meta.get("version")

    async def first(self, key: str, byte_range: Any) -> Answer | None:
        """Make the first request for a key. Returns None if there is no such key."""
        try:
            got = await self._api.get_async(self._store, key, options=self._range_of(byte_range))
            data = await got.bytes_async()
        except FileNotFoundError:
            return None
        except self._api.exceptions.BaseError:
            if byte_range is None:
                raise
            return await self.stat(key)  # nothing there, at that range, or the service knows no such range
        return Answer(memoryview(data), got.range[0], got.meta["size"], self._version_of(got.meta))

    async def stat(self, key: str) -> Answer | None:
        """Ask for size and version of a value. Returns None if there is no such key."""
        try:
            meta = await self._api.head_async(self._store, key)
        except FileNotFoundError:
            return None
        return Answer(b"", 0, meta["size"], self._version_of(meta))

    def first_blocking(self, key: str, byte_range: Any) -> Answer | None:
        """As `first`, in a thread without an event loop."""
        try:
            got = self._api.get(self._store, key, options=self._range_of(byte_range))
            data = got.bytes()
        except FileNotFoundError:
            return None
        except self._api.exceptions.BaseError:
            if byte_range is None:
                raise
            return self.stat_blocking(key)
        return Answer(memoryview(data), got.range[0], got.meta["size"], self._version_of(got.meta))

    def stat_blocking(self, key: str) -> Answer | None:
        """As `stat`, in a thread without an event loop."""
        try:
            meta = self._api.head(self._store, key)
        except FileNotFoundError:
            return None
        return Answer(b"", 0, meta["size"], self._version_of(meta))

    def read(self, key: str, start: int, end: int, version: str | None) -> Any:
        """Return bytes start..end (exclusive) of a value. Raises OSError: ESTALE if it has another version."""
        options: dict[str, Any] = {"range": (start, end)}
        if version is not None and version.startswith('"'):
            options["if_match"] = version
        try:
            got = self._api.get(self._store, key, options=options)
        except self._api.exceptions.PreconditionError:
            raise ObjectChangedError(key) from None
        if version is not None and self._version_of(got.meta) != version:
            raise ObjectChangedError(key)
        return memoryview(got.bytes())


def source_of(store: Store) -> StoreSource | ObstoreSource:
    """Return what reads the values of a Zarr store best."""
    from zarr.storage import ObjectStore

    return ObstoreSource(store) if type(store) is ObjectStore else StoreSource(store)


class ValueStore:
    """The value of one key as a backing store; its size is known, and so are some bytes while they are cached."""

    preferred_request = 1024 * 1024
    max_request = 16 * 1024 * 1024
    parallel_requests = 8

    def __init__(self, source: StoreSource | ObstoreSource, name: str, key: str, answer: Answer, version: str):
        self.key = self.name = f"{name}/{key}"
        self.origin = name
        self.latency = "local" if source.is_local else "remote"
        self._source, self._path = source, key
        self._size, self._version, self._origin_version = answer.size, version, answer.version
        self._known = threading.local()

    def size(self) -> int:
        """Return the size of the value (bytes)."""
        return self._size

    def validator(self) -> str:
        """Return what tells this version from all others that the cache has seen."""
        return self._version

    def know(self, start: int, data: Any) -> None:
        """Read bytes of the value from here, not from the store, in this thread until it knows b"" at 0."""
        self._known.start, self._known.data = start, memoryview(data).cast("B") if len(data) else b""

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers with one request. Raises OSError."""
        nbytes = min(sum(map(len, buffers)), max(0, self._size - offset))
        if nbytes == 0:
            return 0
        start, data = getattr(self._known, "start", 0), getattr(self._known, "data", b"")
        if start <= offset and offset + nbytes <= start + len(data):
            data = data[offset - start : offset - start + nbytes]
        else:
            data = memoryview(self._source.read(self._path, offset, offset + nbytes, self._origin_version)).cast("B")
        done = 0
        for buffer in buffers:
            piece = data[done : done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
        return done

    def close(self) -> None:
        """Do nothing: the Zarr store is closed by whoever opened it."""
