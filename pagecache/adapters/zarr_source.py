"""Where the bytes of Zarr keys come from: any Zarr store, asked by its own methods.

What a source may conclude, and from what:

* A key is absent if `get` of the wrapped store returned None, or if the same request failed with what makes that `get`
  return None. No question after size or existence decides it: file systems answer those with "no" when they mean "I could
  not find out".
* A size is what came with the bytes, or what `getsize` says once bytes of the value have come. If that fails, the value is
  read as without a cache. What `getsize` says is believed of what lies inside; what depends on where the value ends is
  answered once its last bytes have come, and ended there.
* Bytes are those of a range if they are as many as the range and the size make them. More are an error; fewer make the
  value be read whole, as then only its bytes can tell its size.
"""

import asyncio
import contextlib
import errno
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, NamedTuple, TypeVar

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype

from pagecache.adapters.zarr_steps import Step, Steps
from pagecache.stores.abandoned import lending
from pagecache.stores.apart import call_apart
from pagecache.stores.attempts import NO_ATTEMPTS, TimeLimitError, is_limited, time_left_s
from pagecache.stores.base import BackingStore
from pagecache.stores.destination import Destination
from pagecache.stores.validators import Version
from pagecache.units import PAGE_SIZE

POLL_S = 0.25  # how often a thread that waits for an event loop looks whether it still runs
PREFERRED_REQUEST = 1024 * 1024
MAX_REQUEST = 16 * 1024 * 1024
PARALLEL_REQUESTS = 8
_Result = TypeVar("_Result")


class Answer(NamedTuple):
    """What a request for a value brought: `data` from byte `start` on.

    size: of the whole value (bytes); None if nothing tells it: then `data` is the range that was asked for.
    version: None where the store tells none. is_sure: whether the size came with the bytes, or they have shown it.
    is_placed: whether `start` is certain, so that the bytes may be cached.
    """

    data: memoryview
    start: int
    size: int | None
    version: Version | None = None
    is_sure: bool = True
    is_placed: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether all of the value is here."""
        return self.start == 0 and len(self.data) == self.size

    def part(self, byte_range: ByteRequest | None) -> memoryview | None:
        """Return the bytes of a range, or None if they are not here."""
        if self.size is None:
            return self.data
        offset, nbytes = span_of(byte_range, self.size)
        start = offset - self.start
        return self.data[start : start + nbytes] if start >= 0 and start + nbytes <= len(self.data) else None


class ObjectChangedError(OSError):
    """A value is not the one any more whose size and version are known (ESTALE)."""

    def __init__(self, key: str, reason: str = "the value changed while it was cached: read it again"):
        super().__init__(errno.ESTALE, reason, key)


class FewerBytesError(OSError):
    """A store brought fewer bytes than the size that it tells makes them (EIO)."""

    def __init__(self, key: str, nbytes: int, wanted: int):
        super().__init__(errno.EIO, f"the store brought {nbytes} bytes where {wanted} were asked for", key)


class MoreBytesError(OSError):
    """A store brought more bytes than it was asked for: it is not known which they are (EIO)."""

    def __init__(self, key: str, nbytes: int, wanted: int):
        reason = f"the store brought {nbytes} bytes where {wanted} were asked for: it may not know ranges"
        super().__init__(errno.EIO, reason, key)


class WouldBlockError(RuntimeError):
    """A thread would wait for the event loop that it runs."""

    def __init__(self) -> None:
        super().__init__("this would block the event loop that it waits for: await the asynchronous method instead")


def view_of(value: Any) -> memoryview:
    """Return the bytes of a buffer of Zarr, or of Python."""
    data = value.as_numpy_array() if hasattr(value, "as_numpy_array") else value
    return memoryview(data).cast("B") if len(data) else memoryview(b"")


def span_of(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
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
    nbytes = (end if end < size else size) - start
    return start, nbytes if nbytes > 0 else 0


def whole_pages(byte_range: ByteRequest | None) -> ByteRequest | None:
    """Return the range of whole pages around one: what is cached is pages. The end of a value has no known place."""
    if isinstance(byte_range, OffsetByteRequest):
        return OffsetByteRequest(byte_range.offset // PAGE_SIZE * PAGE_SIZE)
    if isinstance(byte_range, RangeByteRequest):
        end = max(byte_range.end, byte_range.start + 1)
        return RangeByteRequest(byte_range.start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE)
    return byte_range


def ends_there(byte_range: ByteRequest | None, size: int) -> bool:
    """Whether bytes of a range, which are as many as a size makes them, show that the value has that size: more would have
    come if there were any."""
    return not isinstance(byte_range, SuffixByteRequest) and sum(span_of(byte_range, size)) == size


def needs_end(byte_range: ByteRequest | None, size: int) -> bool:
    """Whether the bytes of a range depend on where a value ends."""
    return not isinstance(byte_range, RangeByteRequest) or byte_range.end > size


def most_bytes(byte_range: ByteRequest | None) -> int | None:
    """Return how many bytes a range has at most, or None."""
    if isinstance(byte_range, RangeByteRequest):
        return max(0, int(byte_range.end) - int(byte_range.start))
    return int(byte_range.suffix) if isinstance(byte_range, SuffixByteRequest) else None


def unsized_answer(data: memoryview, byte_range: ByteRequest | None, asked: ByteRequest) -> Answer:
    """Return the answer of which only the bytes are known. byte_range: what is wanted. asked: the range they are of."""
    if isinstance(byte_range, RangeByteRequest):
        start = byte_range.start - asked.start
        data = data[start : start + byte_range.end - byte_range.start]
    elif isinstance(byte_range, OffsetByteRequest):
        data = data[byte_range.offset - asked.offset :]
    return Answer(data, 0, None)


def run_blocking(begin: Callable[[], Coroutine[Any, Any, _Result]], loop: asyncio.AbstractEventLoop | None) -> _Result:
    """Run a coroutine on an event loop of another thread (None, or one that stopped: Zarr's own) and wait for its result.

    begin: makes the coroutine; once more, for Zarr's own loop, if the first one stops or cancels it meanwhile, which is
    that one's affair. Raises WouldBlockError in the thread of the loop, which would wait for itself, and
    asyncio.CancelledError when Zarr's loop ends.
    """
    from zarr.core.sync import _get_loop

    if loop is not None and loop.is_running():
        with contextlib.suppress(_LoopEndedError):
            return _run_on(begin, loop)
    try:
        return _run_on(begin, _get_loop())
    except _LoopEndedError:
        raise asyncio.CancelledError("Zarr's event loop ended during a read") from None


class _LoopEndedError(Exception):
    """An event loop stopped, or cancelled what it ran."""


def _run_on(begin: Callable[[], Coroutine[Any, Any, _Result]], loop: asyncio.AbstractEventLoop) -> _Result:
    """Run a coroutine on an event loop of another thread, and wait for its result."""
    if asyncio._get_running_loop() is loop:
        raise WouldBlockError
    coroutine = begin()
    try:
        future: Future[_Result] = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # it was closed just now
        coroutine.close()
        raise _LoopEndedError from None
    while True:
        try:
            left_s = time_left_s()
        except TimeLimitError:
            future.cancel()
            raise
        try:
            return future.result(POLL_S if left_s is None else min(POLL_S, left_s))
        except CancelledError:
            raise _LoopEndedError from None
        except TimeoutError:
            if future.done():
                raise
            if not loop.is_running():
                future.cancel()
                raise _LoopEndedError from None


class StoreSource:
    """Reads through the methods of a Zarr store, which tells no versions.

    identity: what is the same for stores that read the same values with the same rights, in this process; None if nothing
    tells. anchor: an object that has to live as long as the identity is used, which names its address; None: none has.
    has_versions: whether `stat` tells versions. is_blocking: whether a thread without an event loop can read.
    parallel_requests, background_reads: as of a BackingStore. attempts: how requests are tried.
    """

    has_versions = False
    is_local = False
    is_blocking = False
    parallel_requests = PARALLEL_REQUESTS
    background_reads = True
    attempts = NO_ATTEMPTS

    def __init__(self, store: Store, identity: str | None = None, anchor: object = None):
        self.store = store
        self.identity = identity
        self.anchor = anchor
        self.loop: asyncio.AbstractEventLoop | None = None  # where the store was used last

    def limited(self, function: Callable[[], _Result]) -> _Result:
        """Return what a call that blocks brings: another thread makes it, if it has to end in time, and does not see to
        that itself, as one does that waits for an event loop. Raises TimeLimitError."""
        return call_apart(function, time_left_s) if self.is_blocking and is_limited() else function()

    # -- the wrapped store ---------------------------------------------------------------------------------------------

    async def get(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what the wrapped store has of a key; None if there is no such key."""
        value = await self.store.get(key, default_buffer_prototype(), byte_range)
        return None if value is None else view_of(value)

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """As `get`, in a thread without an event loop."""
        return run_blocking(partial(self.get, key, byte_range), self.loop)

    async def getsize(self, key: str) -> int:
        """Return the size of a value (bytes). Raises whatever the wrapped store raises."""
        return int(await self.store.getsize(key))

    def getsize_blocking(self, key: str) -> int:
        """As `getsize`, in a thread without an event loop."""
        return run_blocking(partial(self.getsize, key), self.loop)

    def write_blocking(self, key: str, value: Buffer) -> None:
        """Write a value, in a thread without an event loop."""
        if getattr(self.store, "_supports_sync_io", True) and hasattr(self.store, "set_sync"):
            self.store.set_sync(key, value)
        else:
            run_blocking(partial(self.store.set, key, value), self.loop)

    def delete_blocking(self, key: str) -> None:
        """Remove a key, in a thread without an event loop."""
        if getattr(self.store, "_supports_sync_io", True) and hasattr(self.store, "delete_sync"):
            self.store.delete_sync(key)
        else:
            run_blocking(partial(self.store.delete, key), self.loop)

    def open_blocking(self) -> None:
        """Open the wrapped store, in a thread without an event loop."""
        if type(self.store)._open is Store._open:
            self.store._is_open = True  # which is all it does
        else:
            run_blocking(self.store._open, self.loop)

    # -- what is asked -------------------------------------------------------------------------------------------------

    def first(self, key: str, byte_range: ByteRequest | None) -> Steps[Answer | None]:
        """Make the first request for a range of a value. Returns None if there is no such key."""
        reads_for_size = type(self.store).getsize is Store.getsize  # which is made of `get`
        asked = None if reads_for_size else whole_pages(byte_range)
        data = yield Step(partial(self.get, key, asked), partial(self.get_blocking, key, asked))
        if data is None or asked is None:
            return None if data is None else Answer(data, 0, len(data))
        try:
            size = yield Step(partial(self.getsize, key), partial(self.getsize_blocking, key))
        except Exception:  # the bytes are there; what is not known is where they end
            return unsized_answer(data, byte_range, asked)
        return self._placed(key, data, asked, size) or (yield from self.first(key, None))

    @staticmethod
    def _placed(key: str, data: memoryview, asked: ByteRequest | None, size: int) -> Answer | None:
        """Return the answer of bytes and size, or None if there are too few of the one for the other."""
        offset, wanted = span_of(asked, size)
        most = most_bytes(asked)
        if most is not None and len(data) > most:
            raise MoreBytesError(key, len(data), wanted)
        if len(data) != wanted:
            return None
        return Answer(data, offset, size, None, ends_there(asked, size), not isinstance(asked, SuffixByteRequest))

    def stat(self, key: str) -> Steps[Version]:
        """Ask for the present version of a value, where there are versions. Raises what the store raises."""
        raise NotImplementedError

    def read(self, key: str, start: int, end: int, version: Version | None) -> memoryview:
        """Return bytes start..end (exclusive) of a value that has them. Raises OSError: ESTALE if it is another one."""
        data = self.get_blocking(key, RangeByteRequest(start, end))
        if data is None:
            raise ObjectChangedError(key, "the key is gone: read it again")
        if len(data) > end - start:
            raise MoreBytesError(key, len(data), end - start)
        if len(data) < end - start:
            raise FewerBytesError(key, len(data), end - start)
        return data

    def backing(self, prefix: str, key: str, size: int, version: Version | None, validator: str) -> BackingStore:
        """Return the backing store of a value. prefix: of the key of its pages. validator: tells its version from all
        others that the cache has seen."""
        return ValueStore(self, prefix, key, size, version, validator)


class ValueStore:
    """The value of one key as a backing store, of a size that is known."""

    preferred_request = PREFERRED_REQUEST
    max_request = MAX_REQUEST
    key_scope = "process"  # without versions that others know, only this process knows what its bytes are

    def __init__(self, source: StoreSource, prefix: str, key: str, size: int, version: Version | None, validator: str):
        self.key = self.name = f"{prefix}/{key}"
        self.origin = prefix
        self.latency = "local" if source.is_local else "remote"
        self.parallel_requests, self.background_reads = source.parallel_requests, source.background_reads
        self._source, self._path = source, key
        self._size, self._version, self._validator = size, version, validator

    def size(self) -> int:
        """Return the size of the value (bytes)."""
        return self._size

    def validator(self) -> str:
        """Return what tells this version from all others that the cache has seen."""
        return self._validator

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers with one request. Raises OSError."""
        nbytes = min(sum(map(len, buffers)), max(0, self._size - offset))
        if nbytes == 0:
            return 0
        source = self._source
        read = partial(source.read, self._path, offset, offset + nbytes, self._version)
        data = source.attempts.run(self.name, lambda: source.limited(read))
        destination = Destination(buffers)
        with lending(destination.detach):
            destination.put(data)
        return destination.done

    def close(self) -> None:
        """Do nothing: the Zarr store is closed by its opener."""
