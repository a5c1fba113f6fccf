"""Zarr's `ObjectStore` over obstore: every answer tells size and version, and every request but the first asks for that
version. Whole values are asked for as ranges too: then the answer says how large the value is, besides bringing it."""

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer

from pagecache.adapters.zarr_source import (
    MAX_REQUEST,
    PARALLEL_REQUESTS,
    PREFERRED_REQUEST,
    Answer,
    FewerBytesError,
    MoreBytesError,
    StoreSource,
    view_of,
    whole_pages,
)
from pagecache.adapters.zarr_steps import Step, Steps
from pagecache.stores.base import BackingStore
from pagecache.stores.obspec import ObspecStore, identity_of
from pagecache.stores.validators import Version, version_of
from pagecache.units import PAGE_SIZE

if TYPE_CHECKING:
    from zarr.storage import ObjectStore

_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # for which ObjectStore.get returns None


class ObstoreSource(StoreSource):
    """Reads through obstore itself."""

    has_versions = True
    is_blocking = True

    def __init__(self, store: "ObjectStore"):
        import obstore

        super().__init__(store, f"obstore:{identity_of(store.store)}")
        self._api = obstore
        self._objects = store.store
        self._knows_ranges = True
        self.is_local = type(self._objects).__name__ in ("LocalStore", "MemoryStore")

    # -- the first request ---------------------------------------------------------------------------------------------

    def _options(self, byte_range: ByteRequest | None) -> dict[str, Any]:
        """Return the options of a request for whole pages around a range."""
        asked = whole_pages(byte_range)
        if isinstance(asked, SuffixByteRequest):
            return {"range": {"suffix": asked.suffix + PAGE_SIZE - 1}}
        if isinstance(asked, OffsetByteRequest):
            return {"range": {"offset": asked.offset}}
        if isinstance(asked, RangeByteRequest):
            return {"range": (asked.start, asked.end)}
        return {"range": {"offset": 0}} if self._knows_ranges else {}

    def _is_refused_range(self, error: BaseException) -> bool:
        """Whether a request may have failed for its range alone: there is nothing there, or no ranges are known."""
        return self.is_local or isinstance(error, self._api.exceptions.NotSupportedError) or " 416 " in str(error)

    def first(self, key: str, byte_range: ByteRequest | None) -> Steps[Answer | None]:
        """Make the first request for a range of a value. Returns None if there is no such key."""
        try:
            return (yield from self._asked(key, self._options(byte_range)))
        except _ABSENT:
            return None
        except self._api.exceptions.BaseError as error:
            if not self._is_refused_range(error):
                raise
            refused = error
        if byte_range is not None:  # of a part, the size may do: a range that is refused is behind the end, or empty
            try:
                version = yield from self.stat(key)
            except Exception:
                raise refused from None
            return Answer(view_of(b""), 0, version.size, version if version.validator is not None else None)
        try:
            answer = yield from self._asked(key, {})
        except _ABSENT:
            return None
        if answer.size and isinstance(refused, self._api.exceptions.NotSupportedError):
            self._knows_ranges = False
        return answer

    def _asked(self, key: str, options: dict[str, Any]) -> Steps[Answer]:
        """Make one request."""
        asked_at = time.monotonic()
        get, get_async = self._api.get, self._api.get_async
        got = yield Step(
            partial(get_async, self._objects, key, options=options), partial(get, self._objects, key, options=options)
        )
        data = view_of((yield Step(got.bytes_async, got.bytes)))
        start, end = got.range
        if len(data) != end - start:
            raise (FewerBytesError if len(data) < end - start else MoreBytesError)(key, len(data), end - start)
        version = version_of(got.meta, key, asked_at)
        return Answer(data, start, version.size, version if version.validator is not None else None)

    def stat(self, key: str) -> Steps[Version]:
        """Ask for size and version of a value. Raises what obstore raises."""
        asked_at = time.monotonic()
        meta = yield Step(partial(self._api.head_async, self._objects, key), partial(self._api.head, self._objects, key))
        return version_of(meta, key, asked_at)

    # -- the wrapped store ---------------------------------------------------------------------------------------------

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what there is of a key; None if there is no such key."""
        options: dict[str, Any] = {}
        if isinstance(byte_range, SuffixByteRequest):
            options = {"range": {"suffix": byte_range.suffix}}
        elif isinstance(byte_range, OffsetByteRequest):
            options = {"range": {"offset": byte_range.offset}}
        elif isinstance(byte_range, RangeByteRequest):
            options = {"range": (byte_range.start, byte_range.end)}
        try:
            return view_of(self._api.get(self._objects, key, options=options).bytes())
        except _ABSENT:
            return None

    def write_blocking(self, key: str, value: Buffer) -> None:
        """Write a value. Raises ValueError if the store is for reading only."""
        self.store._check_writable()
        self._api.put(self._objects, key, value.as_buffer_like())

    def delete_blocking(self, key: str) -> None:
        """Remove a key. Raises ValueError if the store is for reading only."""
        self.store._check_writable()
        with contextlib.suppress(FileNotFoundError):
            self._api.delete(self._objects, key)

    def backing(self, prefix: str, key: str, size: int, version: Version | None, validator: str) -> BackingStore:
        """Return the backing store of a value."""
        if version is None:
            return super().backing(prefix, key, size, version, validator)
        store = ObspecStore(self._objects, key, version=version, **self.attempts._asdict())
        store.preferred_request, store.max_request = PREFERRED_REQUEST, MAX_REQUEST
        store.parallel_requests = PARALLEL_REQUESTS
        return store
