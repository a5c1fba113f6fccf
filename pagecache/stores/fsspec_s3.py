"""How a range of an object is read from s3fs: get_object with IfMatch, and the version, if it knows versions."""

import errno
from collections.abc import Mapping
from typing import Any, Protocol

from pagecache.options import check_options
from pagecache.stores.described import Described, WholeAnswerError
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncBody, AsyncRanges
from pagecache.stores.fsspec_protocols import AsyncFileSystem, FileSystem, FsspecObject
from pagecache.stores.http_answers import check_whole, checked_part, copy_part, part_of
from pagecache.stores.in_order import Body
from pagecache.stores.validators import ChangedError, Version, is_proved

_METHODS = ("GetObject", "HeadObject", "PutObject")  # s3fs gives each the options of a file that it has
_REFUSALS = ("PreconditionFailed", "412")
_NAMES = ("ETag", "LastModified", "VersionId", "StorageClass", "ContentType")


class S3FileSystem(AsyncFileSystem, Protocol):
    """What is used of s3fs besides."""

    kwargs: Mapping[str, Any]
    req_kw: Mapping[str, Any]

    def split_path(self, path: str) -> tuple[str, str, str | None]: ...

    async def set_session(self) -> object: ...

    async def get_s3(self, bucket: str) -> Any: ...

    async def _call_s3(self, method: str, *kinds: Mapping[str, Any], **options: Any) -> dict[str, Any]: ...


_Object = FsspecObject[S3FileSystem]


class S3Ranges(AsyncRanges[S3FileSystem]):
    """s3fs: get_object with IfMatch, and the version if the file system knows versions."""

    conditional = True

    def check_options(self, store: _Object) -> None:
        """Do nothing: the names are those of the service's own calls, and checked when it is asked."""

    @staticmethod
    def reads_ranges(store: FsspecObject[FileSystem]) -> bool:
        """Return True: what `_cat_file` of s3fs does not take, the request does."""
        return True

    def info(self, store: _Object) -> dict[str, Any]:
        """Return what the service says about the object now."""
        return store.run(self._head(store)) if store.options else super().info(store)

    @staticmethod
    async def _request_options(store: _Object) -> dict[str, Any]:
        """Return the arguments of a request for the object. Raises TypeError for an option that no request has."""
        fs, options = store.fs, dict(store.options)
        bucket, key, path_version = fs.split_path(store.path)
        version_id = options.pop("version_id", None) or path_version
        request: dict[str, Any] = {"Bucket": bucket, "Key": key, **fs.req_kw}
        if version_id:
            request["VersionId"] = version_id
        if options.pop("requester_pays", None):
            request["RequestPayer"] = "requester"
        elif store.options.get("requester_pays") is False and fs.req_kw:
            request["RequestPayer"] = None  # takes back what the file system says
        if options:
            await fs.set_session()
            service = (await fs.get_s3(bucket)).meta.service_model
            known = {name for method in _METHODS for name in service.operation_model(method).input_shape.members}
            check_options(options, known | {"version_id", "requester_pays"}, f"{type(fs).__name__}.open")
        return request | options

    async def _head(self, store: _Object) -> dict[str, Any]:
        """Ask for the object with the options of the call, which s3fs' own `_info` does not take."""
        said = await store.fs._call_s3("head_object", store.fs.kwargs, **await self._request_options(store))
        return {"size": said["ContentLength"], "type": "file", **{name: said.get(name) for name in _NAMES}}

    def describe(self, store: _Object) -> Described:
        """Return what the service says about the object now: where HEAD is refused, when a GET asks for its first byte."""
        try:
            return Described(self.info(store))
        except (FileNotFoundError, TypeError):
            raise
        except Exception:
            return store.run(self._describe_by_get(store))

    async def _describe_by_get(self, store: _Object) -> Described:
        try:
            answer = await self._get(store, "0-0")
        except ChangedError:  # an object that is empty has no such range
            answer = await self._get(store)
        said = {"type": "file", **{name: answer.get(name) for name in _NAMES}}
        part = part_of(_headers_of(answer))
        if part is not None and part.size is not None:
            answer["Body"].close()
            return Described({**said, "size": part.size}, serves_ranges=True)
        size = answer["ContentLength"]
        if part is not None or not isinstance(size, int):
            answer["Body"].close()
            raise OSError(errno.EIO, "the service does not say how large the object is", store.name)
        return Described({**said, "size": size}, serves_ranges=False, body=_body_of(store, answer, bool(said["ETag"])))

    async def _get(self, store: _Object, span: str | None = None, version: Version | None = None) -> dict[str, Any]:
        """Ask for an object, or a part of it. Returns the answer, whose body has to be closed. Raises ChangedError if it is
        refused under a condition, or the part does not exist; else what s3fs raises."""
        options = await self._request_options(store)
        if span is not None:
            options["Range"] = f"bytes={span}"
        if version is not None and version.strong_etag and store.sends_conditions:
            options["IfMatch"] = version.strong_etag
        try:
            return await store.fs._call_s3("get_object", **options)
        except OSError as error:
            code = s3_code(error)
            if code in _REFUSALS or code in ("InvalidRange", "416"):
                raise ChangedError(f"the service answered {code}", is_refusal=code in _REFUSALS) from None
            raise

    async def _fetch(self, store: _Object, version: Version, start: int, destination: Destination) -> bool:
        end = min(start + destination.wanted, version.size)
        if start >= end:
            return True
        answer = await self._get(store, f"{start}-{end - 1}", version)
        body, headers = answer["Body"], _headers_of(answer)
        try:
            is_of_version = is_proved(answer.get("ETag"), None, version)
            if part_of(headers) is None and _status_of(answer) == 200:
                check_whole(headers, version)
                body = None
                raise WholeAnswerError(_body_of(store, answer, is_of_version))
            part = checked_part(headers, start, version)
            store.add_surplus(await copy_part(body.read, part, start, min(end, part.end), destination))
            return is_of_version
        finally:
            if body is not None:
                body.close()

    def open_body(self, store: _Object, version: Version) -> Body:
        """Ask for all of the object, which is of a version. Raises ChangedError if it is not."""
        return store.run(self._open_body(store, version))

    async def _open_body(self, store: _Object, version: Version) -> AsyncBody:
        answer = await self._get(store, None, version)
        try:
            check_whole(_headers_of(answer), version)
            return _body_of(store, answer, is_proved(answer.get("ETag"), None, version))
        except BaseException:
            answer["Body"].close()
            raise


def _body_of(store: _Object, answer: dict[str, Any], is_proved: bool) -> AsyncBody:
    stream = answer["Body"]
    return AsyncBody(store, stream.read, stream.close, is_proved)


def _headers_of(answer: dict[str, Any]) -> dict[str, str]:
    """Return what an answer says about its length; what it brings is as it is stored, whatever the encoding."""
    said = {"Content-Range": answer.get("ContentRange"), "Content-Length": answer.get("ContentLength")}
    return {name: str(value) for name, value in said.items() if value is not None}


def _status_of(answer: dict[str, Any]) -> int:
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def s3_code(error: BaseException | None) -> str:
    """Return the code of a refused request: in the chain of causes, as s3fs translates errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
