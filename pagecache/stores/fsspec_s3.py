"""How a range of an object is read from s3fs: get_object with IfMatch, and the version, if it knows versions."""

from typing import Any

from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.validators import ChangedError, Version, is_proved

_PIECE = 256 * 1024  # bytes that are copied at a time


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
        return is_proved(answer.get("ETag"), None, version)


def _s3_code(error: BaseException | None) -> str:
    """Return the code of a refused request: in the chain of causes, as s3fs translates errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
