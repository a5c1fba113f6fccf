"""Zarr's `FsspecStore`. Over HTTP and S3 the file system is asked for ranges directly: the answer to the first request
tells size and version, and every further one asks for that version. File systems without coroutines, which Zarr has called
by threads of its own, are called by those that read, in the turns that such a one needs (stores/fsspec_instances.py). Any
other is asked by the store's own methods.

What the direct request fails with is what the file system's own `_cat_file` would have failed with, so that what the store
takes for a missing key (`allowed_exceptions`) is a missing key here.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype

from pagecache.adapters.zarr_source import (
    MAX_REQUEST,
    PARALLEL_REQUESTS,
    PREFERRED_REQUEST,
    Answer,
    FewerBytesError,
    MoreBytesError,
    StoreSource,
    WouldBlockError,
    run_blocking,
    unsized_answer,
    view_of,
    whole_pages,
)
from pagecache.adapters.zarr_steps import Step, Steps
from pagecache.files.aio import in_worker
from pagecache.stores.attempts import time_left_s, time_limit_error
from pagecache.stores.base import BackingStore
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.fsspec_http import HttpFileSystem
from pagecache.stores.fsspec_instances import Callers, Instance, identity_of, instance_of, own_instance
from pagecache.stores.fsspec_kinds import WRAPPER, is_kind, is_local, is_thread_safe, unwrapped
from pagecache.stores.fsspec_protocols import AsyncFileSystem
from pagecache.stores.fsspec_s3 import S3FileSystem
from pagecache.stores.http_answers import part_of, size_beside_part, version_info_of
from pagecache.stores.validators import Version, encoding_of, version_of
from pagecache.units import PAGE_SIZE

if TYPE_CHECKING:
    from zarr.storage import FsspecStore as ZarrStore


class Reply(NamedTuple):
    """What a file system answered: bytes from `start` to `end` (exclusive), as it says; size of the whole object (bytes),
    None if it does not say; and what it says of the version."""

    data: memoryview
    start: int
    end: int
    size: int | None
    info: dict[str, Any]


def range_of(asked: ByteRequest | None) -> str:
    """Return the `Range` header for a Zarr byte range; all of a value is one, too: its answer tells the size besides."""
    if isinstance(asked, SuffixByteRequest):
        return f"bytes=-{asked.suffix + PAGE_SIZE - 1}"  # so that the page in which it begins is whole
    if isinstance(asked, OffsetByteRequest):
        return f"bytes={asked.offset}-"
    return f"bytes={asked.start}-{asked.end - 1}" if isinstance(asked, RangeByteRequest) else "bytes=0-"


async def ask_http(fs: HttpFileSystem, path: str, asked: ByteRequest | None) -> Reply | None:
    """Ask an `HTTPFileSystem` for a range. Returns None for what the answer does not say the place of: something encoded.

    Raises what `_cat_file` raises.
    """
    options = dict(fs.kwargs)
    headers = dict(options.pop("headers", None) or {}) | {"Range": range_of(asked), "Accept-Encoding": "identity"}
    session = await fs.set_session()
    async with session.get(fs.encode_url(path), headers=headers, **options) as answer:
        said = version_info_of(answer.headers)
        size = size_beside_part(answer.headers) if answer.status == 416 else None
        if size is not None:
            return Reply(memoryview(b""), 0, 0, size, said)
        data = await answer.read()
        fs._raise_not_found_for_status(answer, path)
        if encoding_of(answer.headers) is not None:
            return None
        if answer.status != 206:
            return Reply(view_of(data), 0, len(data), len(data), said)
        return placed(data, answer.headers, asked, said)


async def ask_s3(fs: S3FileSystem, path: str, asked: ByteRequest | None) -> Reply | None:
    """Ask an `S3FileSystem` for a range. Raises what `_cat_file` raises."""
    bucket, key, version_id = fs.split_path(path)
    options = {"Bucket": bucket, "Key": key, "Range": range_of(asked), **fs.req_kw}
    if version_id:
        options["VersionId"] = version_id
    answer = await fs._call_s3("get_object", **options)
    body = answer["Body"]
    try:
        data = await body.read()
    finally:
        body.close()
    info = {name: answer.get(name) for name in ("ETag", "VersionId", "LastModified")}
    if "ContentRange" not in answer:
        return Reply(view_of(data), 0, int(answer["ContentLength"]), int(answer["ContentLength"]), info)
    return placed(data, {"Content-Range": answer["ContentRange"]}, asked, info)


def placed(data: bytes, headers: Mapping[str, str], asked: ByteRequest | None, info: dict[str, Any]) -> Reply | None:
    """Return the reply that a part is, or None if it does not say which part."""
    part = part_of(headers)
    if part is None:
        return None
    size = part.end if part.size is None and asked is None and part.start == 0 else part.size
    return Reply(view_of(data), part.start, part.end, size, info)


class FsspecSource(StoreSource):
    """Reads an `FsspecStore` over a file system that takes conditions. ask: the function for its kind."""

    has_versions = True

    def __init__(
        self, store: "ZarrStore", ask: Callable[[Any, str, ByteRequest | None], Coroutine[Any, Any, Reply | None]]
    ):
        super().__init__(store, identity_of_store(store))
        self._ask = ask
        self._own: tuple[int, AsyncFileSystem | None] = (0, None)

    @property
    def fs(self) -> AsyncFileSystem:
        """The file system, as this process can use it from any thread."""
        pid, fs = self._own
        if fs is None or pid != os.getpid():
            fs = cast(AsyncFileSystem, own_instance(self.store.fs))
            self._own = (os.getpid(), fs)
        return fs

    def _step(self, begin: Callable[[Any], Coroutine[Any, Any, Any]]) -> Step:
        """Return the step that runs a coroutine over the file system, on its loop."""

        def start() -> Future[Any]:
            fs = self.fs
            return asyncio.run_coroutine_threadsafe(begin(fs), fs.loop)

        async def run() -> Any:
            fs = self.fs
            return await (begin(fs) if fs.loop is asyncio.get_running_loop() else asyncio.wrap_future(start()))

        def block() -> Any:
            if asyncio._get_running_loop() is self.fs.loop:
                raise WouldBlockError
            future = start()
            try:
                return future.result(time_left_s())
            except BaseException as error:
                is_late = isinstance(error, TimeoutError) and not future.done()
                future.cancel()
                if is_late:
                    raise time_limit_error(self.attempts.timeout_s) from None
                raise

        return Step(run, block)

    def first(self, key: str, byte_range: ByteRequest | None) -> Steps[Answer | None]:
        """Make the first request for a range of a value. Returns None if there is no such key."""
        asked, path, asked_at = whole_pages(byte_range), path_of(self.store, key), time.monotonic()
        try:
            reply = yield self._step(lambda fs: self._ask(fs, path, asked))
        except self.store.allowed_exceptions:
            return None
        except OSError as error:
            if "not satisfiable" not in str(error):
                raise
            return (yield from self._behind_end(key, error))
        if reply is None:
            return (yield from super().first(key, byte_range))
        nbytes, wanted = len(reply.data), reply.end - reply.start
        if nbytes != wanted:
            raise (FewerBytesError if nbytes < wanted else MoreBytesError)(key, nbytes, wanted)
        if reply.size is None:
            if isinstance(byte_range, SuffixByteRequest):
                return Answer(reply.data[max(0, nbytes - byte_range.suffix) :], 0, None)
            return unsized_answer(reply.data, byte_range, RangeByteRequest(reply.start, reply.end))
        version = version_of({**reply.info, "size": reply.size}, path, asked_at)
        return Answer(reply.data, reply.start, reply.size, version if version.validator is not None else None)

    def _behind_end(self, key: str, error: OSError) -> Steps[Answer]:
        """Return the answer that nothing is in a range which S3 has refused. Raises that refusal if it knows no size."""
        try:
            version = yield from self.stat(key)
        except Exception:
            raise error from None
        return Answer(memoryview(b""), 0, version.size, version if version.validator is not None else None)

    def stat(self, key: str) -> Steps[Version]:
        """Ask for size and version of a value. Raises OSError."""

        def ask() -> Version:
            return FsspecStore(self.fs, path_of(self.store, key), **self.attempts._asdict()).version

        version: Version = yield Step(partial(in_worker, ask), ask)
        return version

    def backing(self, prefix: str, key: str, size: int, version: Version | None, validator: str) -> BackingStore:
        """Return the backing store of a value: with a version it is that of `cache.open(url)`, and shares its pages."""
        if version is None:
            return super().backing(prefix, key, size, version, validator)
        store = FsspecStore(self.fs, path_of(self.store, key), version=version, **self.attempts._asdict())
        store.preferred_request, store.max_request = PREFERRED_REQUEST, MAX_REQUEST
        store.parallel_requests = PARALLEL_REQUESTS
        return store


class CalledSource(StoreSource):
    """Reads an `FsspecStore` over a file system without coroutines: as that does, but in the calling thread."""

    is_blocking = True

    def __init__(self, store: "ZarrStore", instance: Instance | None = None):
        super().__init__(store)
        self._instance = instance_of(store.fs) if instance is None else instance
        self.identity = identity_of_store(store, self._instance.identity)
        self.is_local = is_local(self._instance.template)
        self.parallel_requests = PARALLEL_REQUESTS if self._instance.is_parallel else 1
        self.background_reads = self._instance.background_reads

    async def get(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what the wrapped store has of a key; None if there is no such key."""
        return await in_worker(self.get_blocking, key, byte_range)

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """As `get`, in the calling thread."""
        span: dict[str, int | None] = {}
        if isinstance(byte_range, RangeByteRequest):
            span = {"start": byte_range.start, "end": byte_range.end}
        elif isinstance(byte_range, OffsetByteRequest):
            span = {"start": byte_range.offset, "end": None}
        elif isinstance(byte_range, SuffixByteRequest):
            span = {"start": -byte_range.suffix, "end": None}
        try:
            with self._instance.turn() as fs:
                return view_of(fs.cat_file(path_of(self.store, key), **span))
        except self.store.allowed_exceptions:
            return None

    async def getsize(self, key: str) -> int:
        """Return the size of a value (bytes)."""
        return int(await in_worker(self.getsize_blocking, key))

    def getsize_blocking(self, key: str) -> int:
        """As `getsize`, in the calling thread."""
        with self._instance.turn() as fs:
            return int(fs.info(path_of(self.store, key))["size"])

    def write_blocking(self, key: str, value: Buffer) -> None:
        """Write a value, as `FsspecStore.set` does, in the calling thread."""
        self.store._check_writable()
        with self._instance.turn() as fs:
            fs.pipe_file(path_of(self.store, key), value.to_bytes())

    def delete_blocking(self, key: str) -> None:
        """Remove a key, as `FsspecStore.delete` does, in the calling thread."""
        self.store._check_writable()
        with contextlib.suppress(FileNotFoundError, *self.store.allowed_exceptions), self._instance.turn() as fs:
            fs.rm(path_of(self.store, key))


class OneAtATimeSource(CalledSource):
    """Reads an `FsspecStore` over a file system with coroutines which stands on one that is not for threads, and calls that
    in threads of its own: a reference file system over a tar file. It is asked by the store's own methods."""

    is_blocking = False

    def __init__(self, store: "ZarrStore"):
        super().__init__(store, Callers(store.fs))

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """As `get`, in a thread without an event loop."""
        with self._instance.turn():
            value = run_blocking(partial(self.store.get, key, default_buffer_prototype(), byte_range), self.loop)
        return None if value is None else view_of(value)

    def getsize_blocking(self, key: str) -> int:
        """As `getsize`, in a thread without an event loop."""
        with self._instance.turn():
            return int(run_blocking(partial(self.store.getsize, key), self.loop))


def path_of(store: "ZarrStore", key: str) -> str:
    """Return the path of a key, as an `FsspecStore` makes it."""
    root = str(store.path).rstrip("/")
    return (f"{root}/{key}" if root else key).rstrip("/")


def identity_of_store(store: "ZarrStore", identity: str | None = None) -> str:
    """Return what is the same for stores that read the same objects with the same rights, and miss the same ones.

    identity: of the file system, if it is known.
    """
    missing = sorted(f"{error.__module__}.{error.__qualname__}" for error in store.allowed_exceptions)
    return f"fsspec:{identity or identity_of(unwrapped(store.fs))}:{store.path}:{','.join(missing)}"


def fsspec_source(store: "ZarrStore") -> StoreSource:
    """Return the source of an `FsspecStore`."""
    fs, cat_file = store.fs, getattr(type(store.fs), "_cat_file", None)
    http, s3 = sys.modules.get("fsspec.implementations.http"), sys.modules.get("s3fs")
    if fs.protocol == "pagecache":
        return StoreSource(store, identity_of_store(store))
    if is_kind(fs, WRAPPER):
        return CalledSource(store)
    if not is_thread_safe(fs):
        return OneAtATimeSource(store)
    if http is not None and cat_file is http.HTTPFileSystem._cat_file:
        return FsspecSource(store, ask_http)
    if s3 is not None and cat_file is s3.S3FileSystem._cat_file:
        return FsspecSource(store, ask_s3)
    return StoreSource(store, identity_of_store(store))
