"""How a range of an object is read, by kind of file system: with conditions where the protocol has them.

Each kind has `info` and `read`; `read` says whether the answer proves that the bytes are of the version asked for.
"""

import errno
import inspect
import re
from typing import Any

from pagecache.stores.destination import Destination
from pagecache.stores.validators import ChangedError, Version

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_LOCAL = ("file", "local", "memory")
_HEADERS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
_PIECE = 256 * 1024  # bytes that are copied at a time


def ranges_of(fs: Any) -> "SyncRanges":
    """Return the way to read from a file system."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if not getattr(fs, "async_impl", False):
        return SyncRanges(remote=not set(protocols) & set(_LOCAL))
    if "http" in protocols and hasattr(fs, "set_session"):
        return HttpRanges()
    if "s3" in protocols and hasattr(fs, "_call_s3"):
        return S3Ranges()
    return AsyncRanges()


class SyncRanges:
    """File systems without coroutines: one request at a time, unless they are local."""

    conditional = False

    def __init__(self, remote: bool = True):
        self.remote = remote
        self.parallel = not remote

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return fs.info(path, **_fresh_options(fs, fs.info, path))

    def read(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        end = start + destination.wanted
        if _reads_ranges(store.fs):
            destination.put(store.fs.cat_file(store.path, start=start, end=end))
            return False
        with _open_unbuffered(store.fs, store.path) as file:
            file.seek(start)
            while not destination.full:
                data = file.read(min(destination.wanted - destination.done, store.max_request))
                if not data:
                    break
                destination.put(data)
        return False


class AsyncRanges(SyncRanges):
    """File systems with coroutines."""

    def __init__(self) -> None:
        super().__init__()
        self.parallel = True

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return store.run(fs._info(path, **_fresh_options(fs, fs._info, path)))

    def read(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        return bool(store.run(self._fetch(store, version, start, destination), destination))

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        destination.put(await store.fs._cat_file(store.path, start=start, end=start + destination.wanted))
        return False


class HttpRanges(AsyncRanges):
    """fsspec's HTTPFileSystem, whose session is used directly: conditions, headers of the answer, no joined copy."""

    conditional = True

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the server says about the object now."""
        return store.run(self._head(store.fs, store.path))

    async def _head(self, fs: Any, path: str) -> dict[str, Any]:
        """Ask by HEAD. fsspec's own `_info` takes every failure for a missing object; it is left what has no HEAD."""
        options = dict(fs.kwargs)
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
        return await fs._info(path)

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        fs, end = store.fs, start + destination.wanted
        options = dict(fs.kwargs)
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
            return _is_proved(answer.headers.get("ETag"), answer.headers.get("Last-Modified"), version)


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


def _is_proved(etag: str | None, modified: str | None, version: Version) -> bool:
    """Whether an answer says that it is of this version. Raises ChangedError if it says the contrary."""
    if etag and version.etag:
        if etag != version.etag:
            raise ChangedError
        return True
    if modified and version.last_modified:
        if modified != version.last_modified:
            raise ChangedError
        return True
    return False


class S3Ranges(AsyncRanges):
    """s3fs: get_object with IfMatch, and the version if the file system knows versions."""

    conditional = True

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        fs, end = store.fs, start + destination.wanted
        bucket, key, version_id = fs.split_path(store.path)
        options = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}", **fs.req_kw}
        if version_id:
            options["VersionId"] = version_id
        if version.strong_etag:
            options["IfMatch"] = version.strong_etag
        try:
            answer = await fs._call_s3("get_object", **options)
        except OSError as error:
            if _s3_code(error) in ("PreconditionFailed", "412", "InvalidRange", "416"):
                raise ChangedError from None
            raise
        body = answer["Body"]
        try:
            while not destination.full:
                piece = await body.read(_PIECE)
                if not piece:
                    break
                destination.put(piece)
        finally:
            body.close()
        return _is_proved(answer.get("ETag"), None, version)


def _s3_code(error: BaseException | None) -> str:
    """Return the code of a refused request: in the chain of causes, as s3fs translates errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


def _fresh_options(fs: Any, function: Any, path: str) -> dict[str, Any]:
    """Return the arguments that keep `info` from answering out of the file system's listings."""
    if "refresh" in inspect.signature(function).parameters:
        return {"refresh": True}
    if getattr(fs, "dircache", None):
        fs.invalidate_cache(path)
    return {}


def _reads_ranges(fs: Any) -> bool:
    """Whether `cat_file` is the file system's own, and not one that opens a file with readahead."""
    from fsspec import AbstractFileSystem

    return type(fs).cat_file is not AbstractFileSystem.cat_file


def _open_unbuffered(fs: Any, path: str) -> Any:
    try:
        return fs.open(path, "rb", cache_type="none")
    except TypeError:  # files that are no AbstractBufferedFile take no cache_type
        return fs.open(path, "rb")
