"""Zarr's `FsspecStore`. Over HTTP and S3 the file system is asked for ranges directly: the answer to the first request
tells size and version, and every further one asks for that version. Any other is asked by the store's own methods.

What the direct request fails with is what the file system's own `_cat_file` would have failed with, so that what the store
takes for a missing key (`allowed_exceptions`) is a missing key here.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from pagecache.adapters.zarr_source import (
    MAX_REQUEST,
    PAGE_SIZE,
    PARALLEL_REQUESTS,
    PREFERRED_REQUEST,
    Answer,
    FewerBytesError,
    MoreBytesError,
    StoreSource,
    WouldBlockError,
    unsized_answer,
    view_of,
    whole_pages,
)
from pagecache.adapters.zarr_steps import Step, Steps
from pagecache.files.aio import in_worker
from pagecache.stores.fsspec import FsspecStore, identity_of, own_instance
from pagecache.stores.validators import Version, version_of

_CONTENT_RANGE = re.compile(r"bytes[ =]\s*(\d+)-(\d+)/(\d+|\*)\s*\Z", re.IGNORECASE)
_NO_CONTENT_RANGE = re.compile(r"bytes[ =]\s*\*/(\d+)\s*\Z", re.IGNORECASE)


class Reply(NamedTuple):
    """What a file system answered: bytes from `start` to `end` (exclusive), as it says; size of the whole object (bytes),
    None if it does not say; and what it says of the version."""

    data: memoryview
    start: int
    end: int
    size: int | None
    info: dict[str, Any]


def range_of(asked: Any) -> str:
    """Return the `Range` header for a Zarr byte range; all of a value is one, too: its answer tells the size besides."""
    if isinstance(asked, SuffixByteRequest):
        return f"bytes=-{asked.suffix + PAGE_SIZE - 1}"  # so that the page in which it begins is whole
    if isinstance(asked, OffsetByteRequest):
        return f"bytes={asked.offset}-"
    return f"bytes={asked.start}-{asked.end - 1}" if isinstance(asked, RangeByteRequest) else "bytes=0-"


async def ask_http(fs: Any, path: str, asked: Any) -> Reply | None:
    """Ask an `HTTPFileSystem` for a range. Returns None for what the answer does not say the place of: something encoded.

    Raises what `_cat_file` raises.
    """
    options = dict(fs.kwargs)
    headers = dict(options.pop("headers", None) or {}) | {"Range": range_of(asked), "Accept-Encoding": "identity"}
    session = await fs.set_session()
    async with session.get(fs.encode_url(path), headers=headers, **options) as answer:
        said = answer.headers
        info = {name: said[name] for name in ("ETag", "Last-Modified") if name in said}
        if answer.status == 416:
            match = _NO_CONTENT_RANGE.match(said.get("Content-Range", ""))
            if match is not None:
                return Reply(memoryview(b""), 0, 0, int(match[1]), info)
        data = await answer.read()
        fs._raise_not_found_for_status(answer, path)
        if said.get("Content-Encoding", "identity") not in ("", "identity"):
            return None
        if answer.status != 206:
            return Reply(view_of(data), 0, len(data), len(data), info)
        return placed(data, said.get("Content-Range", ""), asked, info)


async def ask_s3(fs: Any, path: str, asked: Any) -> Reply | None:
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
    return placed(data, answer["ContentRange"], asked, info)


def placed(data: bytes, content_range: str, asked: Any, info: dict[str, Any]) -> Reply | None:
    """Return the reply that a part is, or None if it does not say which part."""
    match = _CONTENT_RANGE.match(content_range)
    if match is None:
        return None
    start, end = int(match[1]), int(match[2]) + 1
    size = int(match[3]) if match[3] != "*" else end if asked is None and start == 0 else None
    return Reply(view_of(data), start, end, size, info)


class FsspecSource(StoreSource):
    """Reads an `FsspecStore` over a file system that takes conditions. ask: the function for its kind."""

    has_versions = True

    def __init__(self, store: Any, ask: Callable[[Any, str, Any], Coroutine[Any, Any, Reply | None]]):
        super().__init__(store, identity_of_store(store))
        self._ask = ask
        self._own: tuple[int, Any] = (0, None)

    @property
    def fs(self) -> Any:
        """The file system, as this process can use it from any thread."""
        pid, fs = self._own
        if pid != os.getpid():
            fs = own_instance(self.store.fs)
            self._own = (os.getpid(), fs)
        return fs

    def _path_of(self, key: str) -> str:
        root = str(self.store.path).rstrip("/")
        return (f"{root}/{key}" if root else key).rstrip("/")

    def _step(self, begin: Callable[[Any], Coroutine[Any, Any, Any]]) -> Step:
        """Return the step that runs a coroutine over the file system, on its loop."""

        def start() -> Any:
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
                return future.result()
            except BaseException:
                future.cancel()
                raise

        return Step(run, block)

    def first(self, key: str, byte_range: Any) -> Steps[Answer | None]:
        """Make the first request for a range of a value. Returns None if there is no such key."""
        asked, path, asked_at = whole_pages(byte_range), self._path_of(key), time.monotonic()
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
            return FsspecStore(self.fs, self._path_of(key)).version

        return (yield Step(partial(in_worker, ask), ask))

    def backing(self, prefix: str, key: str, size: int, version: Version | None, validator: str) -> Any:
        """Return the backing store of a value: with a version it is that of `cache.open(url)`, and shares its pages."""
        if version is None:
            return super().backing(prefix, key, size, version, validator)
        store = FsspecStore(self.fs, self._path_of(key), version=version)
        store.preferred_request, store.max_request = PREFERRED_REQUEST, MAX_REQUEST
        store.parallel_requests = PARALLEL_REQUESTS
        return store


def identity_of_store(store: Any) -> str:
    """Return what is the same for stores that read the same objects with the same rights, and miss the same ones."""
    fs = getattr(store.fs, "sync_fs", store.fs)  # of a wrapper, which is another one each time
    missing = sorted(f"{error.__module__}.{error.__qualname__}" for error in store.allowed_exceptions)
    return f"fsspec:{identity_of(fs)}:{store.path}:{','.join(missing)}"


def fsspec_source(store: Any) -> StoreSource:
    """Return the source of an `FsspecStore`."""
    fs, cat_file = store.fs, getattr(type(store.fs), "_cat_file", None)
    http, s3 = sys.modules.get("fsspec.implementations.http"), sys.modules.get("s3fs")
    if http is not None and cat_file is http.HTTPFileSystem._cat_file and fs.protocol != "pagecache":
        return FsspecSource(store, ask_http)
    if s3 is not None and cat_file is s3.S3FileSystem._cat_file:
        return FsspecSource(store, ask_s3)
    return StoreSource(store, identity_of_store(store))
