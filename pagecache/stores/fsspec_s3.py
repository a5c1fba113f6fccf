"""How a range of an object is read from s3fs: get_object with IfMatch, and the version, if it knows versions."""

from typing import Any

from pagecache.options import check_options
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.validators import ChangedError, Version, is_proved

_PIECE = 256 * 1024  # bytes that are copied at a time
_METHODS = ("GetObject", "HeadObject", "PutObject")  # s3fs gives each the options of a file that it has
_NAMES = ("ETag", "LastModified", "VersionId", "StorageClass", "ContentType")


class S3Ranges(AsyncRanges):
    """s3fs: get_object with IfMatch, and the version if the file system knows versions."""

    conditional = True

    def check_options(self, store: Any) -> None:
        """Do nothing: the names are those of the service's own calls, and checked when it is asked."""

    @staticmethod
    def _reads_ranges(store: Any) -> bool:
        """Return True: what `_cat_file` of s3fs does not take, the request does."""
        return True

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the service says about the object now."""
        return store.run(self._head(store)) if store.options else super().info(store)

    @staticmethod
    async def _request_options(store: Any) -> dict[str, Any]:
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

    async def _head(self, store: Any) -> dict[str, Any]:
        """Ask for the object with the options of the call, which s3fs' own `_info` does not take."""
        said = await store.fs._call_s3("head_object", store.fs.kwargs, **await self._request_options(store))
        return {"size": said["ContentLength"], "type": "file", **{name: said.get(name) for name in _NAMES}}

    async def _fetch(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        fs, end = store.fs, start + destination.wanted
        options = await self._request_options(store) | {"Range": f"bytes={start}-{end - 1}"}
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
        return is_proved(answer.get("ETag"), None, version)


def _s3_code(error: BaseException | None) -> str:
    """Return the code of a refused request: in the chain of causes, as s3fs translates errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
