"""Putting a whole object in place of the version it was made of, and of no other.

A change of an object began with some version of it, or with none.  If there is another one by now, others have put it,
and it must not be lost: the put is refused with ESTALE.

* Each put asks for the present version first, and compares.
* S3 through s3fs or obstore, and servers that take PUT, are asked for the same in the request itself (`If-Match`,
  `If-None-Match: *`), so nothing can come between; where they answer that they cannot, or ignore it, the comparison is all.
* Other file systems have no conditions: what is put by others between comparison and put is overwritten.
* A store that tells no versions apart tells nothing here either.
"""

import errno
import mimetypes
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple, cast

from pagecache.stores.errors import meant_error
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.fsspec_http import HttpFileSystem
from pagecache.stores.fsspec_instances import Instance
from pagecache.stores.fsspec_protocols import AsyncFileSystem, FileSystem
from pagecache.stores.fsspec_s3 import S3FileSystem, s3_code
from pagecache.stores.validators import Version, version_of

PART_BYTES = 64 << 20  # of an upload in several parts
PIECE_BYTES = 1 << 20
REFUSED = ("PreconditionFailed", "412")
UNKNOWN_TO_STORE = ("NotImplemented", "501")
NOT_THIS_VERSION = ("PreconditionError", "AlreadyExistsError")  # of obstore, by name
NO_MODE = ("NotImplementedError", "NotSupportedError")


class Put(NamedTuple):
    """What is put. instance, remote: where. path: of a local file with the bytes. base: the version it replaces, None for
    none."""

    instance: Instance
    remote: str
    path: str
    base: Version | None

    @property
    def etag(self) -> str | None:
        """The entity tag of the version that is replaced, if it may stand in a condition."""
        return self.base.strong_etag if self.base is not None else None


def present_version(instance: Instance, remote: str) -> Version | None:
    """Return the version that is there now, None for none. Raises OSError."""
    asked_at = time.monotonic()
    try:
        info = described(instance, remote)
    except FileNotFoundError:
        return None
    return version_of({"size": 0, **info}, remote, asked_at)


def described(instance: Instance, remote: str) -> Mapping[str, Any]:
    """Return what the store says of an object now. Raises OSError: for a directory some say that there is no such
    object."""
    answer = FsspecStore(instance, remote, recheck=False).describe()
    if answer.body is not None:
        answer.body.close()
    return answer.info


def put(wanted: Put) -> Version | None:
    """Put a file as an object. Returns the version it is now, as far as that is known.

    Raises OSError: ESTALE if the object is not of the version that is to be replaced; what the store raises.
    """
    from fsspec.asyn import sync

    _compare(wanted, present_version(wanted.instance, wanted.remote))
    conditional = _conditional_put(wanted.instance.template)
    try:
        with wanted.instance.turn() as fs:
            loop = None if conditional is None else cast(AsyncFileSystem, fs).loop
            etag = NotImplemented if conditional is None else sync(loop, conditional, fs, wanted)
            if etag is NotImplemented:
                fs.put_file(wanted.path, wanted.remote)
                etag = None
            fs.invalidate_cache(os.path.dirname(wanted.remote))
    except OSError as error:
        raise meant_error(error, wanted.remote) or error from error
    except Exception as error:
        raise _meant(error, wanted.remote) from error
    now = present_version(wanted.instance, wanted.remote)
    if etag and now is not None and now.etag and now.etag != etag:
        return replace(now, etag=etag, validator=f"ETag={etag}")  # replaced already: the next put is refused
    return now


def stale_put(remote: str) -> OSError:
    """Return the error for an object that was replaced meanwhile."""
    reason = "others have replaced this object: copy yours under another name, or empty it and write it again"
    return OSError(errno.ESTALE, reason, remote)


def _meant(error: Exception, remote: str) -> OSError:
    return meant_error(error, remote) or OSError(errno.EIO, f"the object could not be put: {error}", remote)


def _compare(wanted: Put, now: Version | None) -> None:
    base = wanted.base
    if (base is None) != (now is None):
        raise stale_put(wanted.remote)
    if base is None or now is None or None in (base.validator, now.validator):
        return
    if base.validator != now.validator:
        raise stale_put(wanted.remote)


# -- conditions --------------------------------------------------------------------------------------------------------


def _conditional_put(fs: FileSystem) -> Callable[[Any, Put], Coroutine[Any, Any, Any]] | None:
    """Return a coroutine that puts under a condition: it returns the new entity tag, or NotImplemented, with nothing done,
    if the store says that it cannot. None: there is none for this file system."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if hasattr(fs, "_construct_store") and hasattr(fs, "_split_path"):
        return _put_obstore
    if "s3" in protocols and hasattr(fs, "_call_s3"):
        return _put_s3
    if "http" in protocols and hasattr(fs, "set_session"):
        return _put_http
    return None


async def _put_s3(fs: S3FileSystem, wanted: Put) -> object:
    """s3fs: its own put_file knows no IfMatch, and does not say what the object is then."""
    bucket, key, _ = fs.split_path(wanted.remote)
    place = {"Bucket": bucket, "Key": key}
    condition = {"IfMatch": wanted.etag} if wanted.etag else {} if wanted.base is not None else {"IfNoneMatch": "*"}
    kind, _ = mimetypes.guess_type(key)
    more = {"ContentType": kind} if kind else {}
    size = os.path.getsize(wanted.path)
    try:
        with open(wanted.path, "rb") as file:
            if size <= PART_BYTES:
                answer = await fs._call_s3("put_object", **place, Body=file.read(), **more, **condition)
            else:
                answer = await _upload_parts(fs, place, file, more, condition)
    except OSError as error:
        code = s3_code(error)
        if code in REFUSED or (code == "NoSuchKey" and wanted.base is not None):
            raise stale_put(wanted.remote) from None
        if code in UNKNOWN_TO_STORE:
            return NotImplemented
        raise
    return answer.get("ETag")


async def _upload_parts(
    fs: S3FileSystem, place: dict[str, str], file: BinaryIO, more: dict[str, str], condition: dict[str, str]
) -> dict[str, Any]:
    """Upload in parts; the condition counts when they are put together."""
    upload = await fs._call_s3("create_multipart_upload", **place, **more)
    try:
        parts: list[dict[str, Any]] = []
        while data := file.read(PART_BYTES):
            number = len(parts) + 1
            answer = await fs._call_s3(
                "upload_part", **place, UploadId=upload["UploadId"], PartNumber=number, Body=data
            )
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        done: dict[str, Any] = await fs._call_s3(
            "complete_multipart_upload", **place, UploadId=upload["UploadId"], MultipartUpload={"Parts": parts}, **condition
        )
        return done
    except BaseException:
        await fs._call_s3("abort_multipart_upload", **place, UploadId=upload["UploadId"])
        raise


async def _put_http(fs: HttpFileSystem, wanted: Put) -> object:
    """fsspec's own put_file is a POST, which no server takes for a replacement."""
    options = dict(fs.kwargs)
    headers = dict(options.pop("headers", None) or {})
    headers["Content-Length"] = str(os.path.getsize(wanted.path))
    if wanted.etag:
        headers["If-Match"] = wanted.etag
    elif wanted.base is None:
        headers["If-None-Match"] = "*"
    session = await fs.set_session()
    with open(wanted.path, "rb") as file:
        data = _pieces(file)
        async with session.put(fs.encode_url(wanted.remote), data=data, headers=headers, **options) as answer:
            if answer.status == 412:
                raise stale_put(wanted.remote)
            if answer.status in (405, 501):
                raise OSError(errno.EOPNOTSUPP, "the server does not take objects (PUT)", wanted.remote)
            fs._raise_not_found_for_status(answer, wanted.remote)
            return answer.headers.get("ETag")


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while data := file.read(PIECE_BYTES):
        yield data


async def _put_obstore(fs: Any, wanted: Put) -> object:
    """obstore's file system for fsspec: the store below it knows conditions."""
    bucket, key = fs._split_path(wanted.remote)
    mode: Any = "create" if wanted.base is None else {"e_tag": wanted.base.etag} if wanted.base.etag else "overwrite"
    try:
        with open(wanted.path, "rb") as file:
            answer = await fs._construct_store(bucket).put_async(key, file, mode=mode)
    except Exception as error:
        if type(error).__name__ in NOT_THIS_VERSION:
            raise stale_put(wanted.remote) from None
        if type(error).__name__ in NO_MODE:
            return NotImplemented
        raise
    return answer["e_tag"]
