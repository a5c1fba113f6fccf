"""Which way a range of an object is read, by kind of file system of fsspec: with conditions where the protocol has them."""

from typing import Any

from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.fsspec_gcs import GcsRanges
from pagecache.stores.fsspec_http import HttpRanges
from pagecache.stores.fsspec_kinds import is_asynchronous, is_local
from pagecache.stores.fsspec_protocols import FileSystem
from pagecache.stores.fsspec_reference import ReferenceRanges
from pagecache.stores.fsspec_s3 import S3Ranges
from pagecache.stores.fsspec_sync import SyncRanges


def ranges_of(fs: FileSystem) -> SyncRanges[Any]:
    """Return the way to read from a file system."""
    if not is_asynchronous(fs):
        return SyncRanges(remote=not is_local(fs))
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
    if "http" in protocols and hasattr(fs, "set_session"):
        return HttpRanges()
    if "s3" in protocols and hasattr(fs, "_call_s3"):
        return S3Ranges()
    if "reference" in protocols and hasattr(fs, "references"):
        return ReferenceRanges()
    if "gcs" in protocols and hasattr(fs, "_process_object"):
        return GcsRanges()
    return AsyncRanges()
