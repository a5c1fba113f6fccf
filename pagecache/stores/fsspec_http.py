"""How a range of an object is read from fsspec's HTTPFileSystem: conditions, headers of the answer, no joined copy."""

import errno
import re
from typing import Any

from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.validators import ChangedError, Version, is_proved

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_HEADERS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
_PIECE = 256 * 1024  # bytes that are copied at a time


class HttpRanges(AsyncRanges):
    """fsspec's HTTPFileSystem, whose session is used directly: conditions, headers of the answer, no joined copy."""

    conditional = True

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the server says about the object now."""
        return store.run(self._head(store, store.fs, store.path))

    @staticmethod
    def request_options(store: Any) -> dict[str, Any]:
        """Return the arguments of a request: those of the file system, and of the call, which count for more."""
        return {**store.fs.kwargs, **store.options}

    async def _head(self, store: Any, fs: Any, path: str) -> dict[str, Any]:
        """Ask by HEAD. fsspec's own `_info` takes every failure for a missing object; it is left what has no HEAD."""
        options = self.request_options(store)
        headers = {**dict(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
        session = await fs.set_session()
        async with session.head(fs.encode_url(path), **{"allow_redirects": True, **options, "headers": headers}) as answer:
            said = answer.headers
            if answer.status not in (405, 501) and (answer.status >= 400 or "Content-Length" in said):
                fs._raise_not_found_for_status(answer, path)
                info: dict[str, Any] = {name: said[name] for name in _HEADERS if name in said}
                if said.get("Content-Encoding", "identity") in ("identity", ""):
                    info["size"] = int(said["Content-Length"])
                return info
        return await fs._info(path, **{name: value for name, value in store.options.items() if name not in fs.kwargs})

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        fs, end = store.fs, start + destination.wanted
        options = self.request_options(store)
        headers = dict(options.pop("headers", None) or {})
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if version.strong_etag:
            headers["If-Match"] = version.strong_etag
        session = await fs.set_session()
        async with session.get(fs.encode_url(store.path), headers=headers, **options) as answer:
            if answer.status in (412, 416):  # the range was inside the version that is known
                raise ChangedError
            fs._raise_not_found_for_status(answer, store.path)
            _check_length(answer.headers, answer.status, version, start)
            skip = start if answer.status != 206 else 0  # a server without ranges sends all there is
            async for piece in answer.content.iter_chunked(_PIECE):
                if skip:
                    skip, piece = max(0, skip - len(piece)), piece[skip:]
                destination.put(piece)
                if destination.full:
                    break
            return is_proved(answer.headers.get("ETag"), answer.headers.get("Last-Modified"), version)


def _check_length(headers: Any, status: int, version: Version, start: int) -> None:
    """Check that an answer is the range asked for, of an object of the known size."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if status == 206:
        if match is None or int(match[1]) != start:
            said = headers.get("Content-Range")
            raise OSError(errno.EIO, f"the server answered with the range {said!r} where byte {start} was asked for")
        if match[3] != "*" and int(match[3]) != version.size:
            raise ChangedError
    elif headers.get("Content-Length", str(version.size)) != str(version.size):
        raise ChangedError
