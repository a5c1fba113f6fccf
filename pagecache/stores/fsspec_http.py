"""How an object is read through fsspec's HTTPFileSystem: conditions, headers of the answer, no joined copy.

Size and version are asked for by HEAD, as that moves nothing.  But what counts is what GET does: where HEAD says nothing,
an error, or that there is nothing, a GET for the first byte decides (URLs may be signed for GET only, and servers know no
HEAD).  Its answer is a part, with the size of the whole, or all of the object: then there are no ranges, and what has come
is used.  An object whose length is not stated is read once to find it.
"""

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pagecache.stores.described import Described, Memory, WholeAnswerError
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncBody, AsyncRanges
from pagecache.stores.fsspec_protocols import AsyncFileSystem, FsspecObject
from pagecache.stores.http_answers import (
    check_whole,
    checked_part,
    copy_part,
    length_of,
    part_of,
    size_beside_part,
    version_info_of,
)
from pagecache.stores.in_order import PIECE, Body, BytesBody
from pagecache.stores.validators import ChangedError, Version, encoding_of, is_proved, validator_of

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

UNSTATED_MAX = 256 * 1024 * 1024  # bytes that are read to find out how large an object is, unless whole_up_to is larger
KEPT_MAX = 16 * 1024 * 1024  # bytes of them that are kept for the first read: one request's
IDLE_TIMEOUT_S = 300.0  # how long an answer that is read in order may bring nothing
_NOT_NOW = (408, 429)  # what does not mean that HEAD is always refused
_heads_refused = Memory()  # origins where a GET answered what HEAD did not
_heads_untrue = Memory()  # keys of objects of which HEAD says something else than GET
_measured = Memory()  # sizes of objects that are not stated, by key and what else is said


class HttpFileSystem(AsyncFileSystem, Protocol):
    """What is used of fsspec's HTTPFileSystem besides."""

    kwargs: Mapping[str, Any]

    async def set_session(self) -> "ClientSession": ...

    def encode_url(self, url: str) -> "URL": ...

    def _raise_not_found_for_status(self, answer: "ClientResponse", url: str) -> None: ...


_Object = FsspecObject[HttpFileSystem]


def _body_of(store: _Object, answer: "ClientResponse", is_proved: bool) -> AsyncBody:
    return AsyncBody(store, answer.content.read, answer.close, is_proved, lambda: int(answer.content.total_bytes))


def _cannot_be_decoded(error: BaseException | None) -> bool:
    """Whether aiohttp failed to decode what came: it does so as soon as all of a small answer is there."""
    while error is not None and type(error).__name__ != "ContentEncodingError":
        error = error.__cause__
    return error is not None


class HttpRanges(AsyncRanges[HttpFileSystem]):
    """fsspec's HTTPFileSystem, whose session is used directly: conditions, headers of the answer, no joined copy."""

    conditional = True

    @staticmethod
    def request_options(store: _Object) -> dict[str, Any]:
        """Return the arguments of a request: those of the file system, and of the call, which count for more."""
        return {**store.fs.kwargs, **store.options}

    async def _get(
        self,
        store: _Object,
        span: str | None = None,
        version: Version | None = None,
        **options: Any,
    ) -> "ClientResponse":
        """Ask for an object, or a part of it. Returns the answer, to be closed; 412 and 416 are no errors here. Raises what
        the library raises; ChangedError for a part of what is encoded."""
        options = {**self.request_options(store), **options}
        headers = {**dict(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span}"
        if version is not None and version.strong_etag and store.sends_conditions:
            headers["If-Match"] = version.strong_etag
        session = await store.fs.set_session()
        try:
            answer = await session.get(store.fs.encode_url(store.path), headers=headers, **options)
        except Exception as error:
            if span is not None and _cannot_be_decoded(error):
                raise ChangedError("a part of the object comes with a Content-Encoding") from error
            raise
        try:
            if answer.status not in (412, 416):
                store.fs._raise_not_found_for_status(answer, store.path)
                if answer.status not in (200, 206):
                    raise OSError(errno.EIO, f"the server answered with status {answer.status}")
        except BaseException:
            answer.close()
            raise
        return answer

    # -- size and version ----------------------------------------------------------------------------------------------

    def describe(self, store: _Object) -> Described:
        """Return what the server says about the object now."""
        return store.run(self._describe(store))

    def doubt_head(self, store: _Object) -> None:
        """Do not believe what HEAD says about an object any more: GET says something else."""
        _heads_untrue.note(store.key)

    async def _describe(self, store: _Object) -> Described:
        is_refused = None
        if not _heads_untrue.get(store.key) and not _heads_refused.get(store.origin):
            info, is_refused = await self._head(store)
            if info is not None:
                return Described(info, serves_ranges=False if info.pop("partial", True) is False else None, by_head=True)
        described = await self._describe_by_get(store)
        if is_refused and described.serves_ranges:
            _heads_refused.note(store.origin)
        return described

    async def _head(self, store: _Object) -> tuple[dict[str, Any] | None, bool]:
        """Ask by HEAD. Returns (what it says, if that says all; whether it was refused). Raises what a GET would meet as
        well: there is no server, or no answer in time."""
        import aiohttp

        options = self.request_options(store)
        headers = {**dict(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
        options = {"allow_redirects": True, **options, "headers": headers}
        session = await store.fs.set_session()
        try:
            async with session.head(store.fs.encode_url(store.path), **options) as answer:
                length = length_of(answer.headers)
                if answer.status != 200 or not length:
                    return None, 400 <= answer.status < 500 and answer.status not in _NOT_NOW
                info = {**version_info_of(answer.headers), "size": length}
                if answer.headers.get("Accept-Ranges", "").strip().lower() == "none":
                    info["partial"] = False
                return info, False
        except (aiohttp.ClientConnectorError, TimeoutError):
            raise
        except (aiohttp.ClientError, OSError):
            return None, False

    async def _describe_by_get(self, store: _Object) -> Described:
        try:
            answer = await self._get(store, "0-0")
        except ChangedError:
            answer = await self._get(store)
        try:
            part = part_of(answer.headers)
            if answer.status == 200 and part is None:
                return await self._describe_whole(store, answer)
            said = version_info_of(answer.headers)
            size = size_beside_part(answer.headers) if answer.status == 416 else None
            if part is not None and encoding_of(said) is None:
                await answer.read()  # one byte
                size = part.size if part.size is not None else await self._size_by_last_byte(store)
            answer.close()
            if size is not None and (part is not None or size == 0):
                return Described({**said, "size": size}, serves_ranges=True)
            answer = await self._get(store)  # a part of what is encoded, or of an object without a size, is nothing to read
            return await self._describe_whole(store, answer)
        except BaseException:
            answer.close()
            raise

    async def _size_by_last_byte(self, store: _Object) -> int | None:
        """Return the size of an object of which parts can be had, but whose size is not said."""
        answer = await self._get(store, "-1")
        try:
            part = part_of(answer.headers) if answer.status == 206 else None
            return None if part is None else part.end
        finally:
            answer.close()

    async def _describe_whole(self, store: _Object, answer: "ClientResponse") -> Described:
        """Return what an answer with all of an object says; how large that is, it may have to be read for."""
        if answer.status != 200 or part_of(answer.headers) is not None:
            raise OSError(errno.EIO, f"the server answered with status {answer.status} where no part was asked for")
        said = version_info_of(answer.headers)
        known = (store.key, validator_of(said))
        size = length_of(answer.headers)
        if size is None and known[1] is not None:
            size = _measured.get(known)
        is_proved = known[1] is not None
        if size is not None:
            return Described({**said, "size": size}, serves_ranges=False, body=_body_of(store, answer, is_proved))
        size, data = await self._read_all(answer, max(UNSTATED_MAX, store.whole_up_to))
        _measured.note(known, size)
        body = None if data is None else BytesBody(data, is_proved)
        return Described({**said, "size": size}, serves_ranges=False, body=body)

    async def _read_all(self, answer: "ClientResponse", limit: int) -> tuple[int, bytes | None]:
        """Read an answer to its end. Returns (how many bytes came, all of them if they are few)."""
        pieces: list[bytes] = []
        size = 0
        while piece := await answer.content.read(PIECE):
            size += len(piece)
            if size > limit:
                encoding = encoding_of(answer.headers)
                how = f"it is sent with Content-Encoding {encoding}" if encoding else "the server states no length"
                remedy = "give the size that it may have as whole_up_to, or read it without a cache"
                raise OSError(errno.EFBIG, f"{how} and serves no ranges, and it is larger than {limit} bytes: {remedy}")
            if size <= KEPT_MAX:
                pieces.append(piece)
        return size, b"".join(pieces) if size <= KEPT_MAX else None

    # -- bytes ---------------------------------------------------------------------------------------------------------

    async def _fetch(self, store: _Object, version: Version, start: int, destination: Destination) -> bool:
        end = min(start + destination.wanted, version.size)
        if start >= end:
            return True
        answer = await self._get(store, f"{start}-{end - 1}", version)
        is_handed_over = False
        try:
            if answer.status in (412, 416):  # the range was inside the version that is known
                raise ChangedError(f"the server answered with status {answer.status}", is_refusal=answer.status == 412)
            is_of_version = self._is_of_version(answer, version)
            if answer.status == 200 and part_of(answer.headers) is None:
                check_whole(answer.headers, version)
                body = _body_of(store, answer, is_of_version)
                is_handed_over = True
                raise WholeAnswerError(body)
            part = checked_part(answer.headers, start, version)
            store.add_surplus(await copy_part(answer.content.read, part, start, min(end, part.end), destination))
            return is_of_version
        finally:
            if not is_handed_over:
                answer.close()

    @staticmethod
    def _is_of_version(answer: "ClientResponse", version: Version) -> bool:
        return is_proved(answer.headers.get("ETag"), answer.headers.get("Last-Modified"), version)

    def open_body(self, store: _Object, version: Version) -> Body:
        """Ask for all of the object, which is of a version. Raises ChangedError if it is not."""
        return store.run(self._open_body(store, version))

    async def _open_body(self, store: _Object, version: Version) -> AsyncBody:
        import aiohttp

        session = await store.fs.set_session()
        options = {}
        if "timeout" not in self.request_options(store) and session.timeout == aiohttp.client.DEFAULT_TIMEOUT:
            options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=IDLE_TIMEOUT_S)
        answer = await self._get(store, None, version, **options)
        try:
            if answer.status != 200:
                raise ChangedError(f"the server answered with status {answer.status}", is_refusal=answer.status == 412)
            check_whole(answer.headers, version)
            return _body_of(store, answer, self._is_of_version(answer, version))
        except BaseException:
            answer.close()
            raise
