"""How a range of an object is read from a file system of fsspec that has no coroutines.

Each kind of file system has `describe`, `read` and `open_body`; `read` says whether the answer proves that the bytes are of
the version asked for.

A file system may state the size of what it stores, and serve something else: objects with a Content-Encoding, which the
service or the library decodes. Where it says so, and where it states no size, all of the object is what `cat_file` brings.
"""

import errno
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic

from pagecache.stores.call_options import are_read_by_cat_file, check_taken
from pagecache.stores.described import Described, Memory, WholeAnswerError
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_kinds import ARROW, archive_version, is_kind
from pagecache.stores.fsspec_protocols import FileSystem, FileSystemT, FsspecObject, ReadableFile
from pagecache.stores.in_order import Body, BytesBody
from pagecache.stores.validators import ChangedError, Version, encoding_of, validator_of

WHOLE_MAX = 256 * 1024 * 1024  # bytes of an object that is read whole because its size is not what is stated
_PROBE = 64  # bytes that show whether an object is served as it is stored
_MAGIC = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}  # what is encoded begins so
_measured = Memory()  # (size that an object really has, whether it has ranges), by key and what is stated


class SyncRanges(Generic[FileSystemT]):
    """File systems without coroutines. remote: whether they are not of this machine."""

    conditional = False

    def __init__(self, remote: bool = True):
        self.remote = remote

    def check_options(self, store: FsspecObject[FileSystemT]) -> None:
        """Check that the requests of an object take the options of its store. Raises TypeError."""
        fs = store.template
        read, name = (fs.cat_file, "cat_file") if self.reads_ranges(store) else (fs._open, "open")
        check_taken(read, store.options, f"{type(fs).__name__}.{name}")
        check_taken(fs.info, store.options, f"{type(fs).__name__}.info")

    def info(self, store: FsspecObject[FileSystemT]) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return _with_version(fs, fs.info(path, **fresh_options(fs, fs.info, path), **store.options))

    def describe(self, store: FsspecObject[FileSystemT]) -> Described:
        """Return what is known of the object now, with the size that it really has."""
        info = self.info(store)
        size, encoding = info.get("size"), encoding_of(info)
        if info.get("type") == "directory" or (isinstance(size, int) and (encoding is None or size == 0)):
            return Described(info)
        of_version = (store.key, validator_of(info))
        fact, body = _measured.get(of_version) if of_version[1] is not None else None, None
        if fact is None:
            if isinstance(size, int) and self._is_served_as_stored(store, size, str(encoding)):
                fact = (size, True)
            else:
                body = self._read_whole(store, size, encoding)
                fact = (body.nbytes, False)
            _measured.note(of_version, fact)
        real_size, serves_ranges = fact
        return Described({**info, "size": real_size}, serves_ranges=serves_ranges, body=body)

    def _read_whole(self, store: FsspecObject[FileSystemT], size: int | None, encoding: str | None) -> BytesBody:
        if size is not None and size > max(WHOLE_MAX, store.whole_up_to):
            how = f"it is stored with Content-Encoding {encoding}, and is not read as it is stored"
            remedy = "give the size that it has as whole_up_to, or read it without a cache"
            raise OSError(errno.EFBIG, f"{how}: {remedy}", store.name)
        return BytesBody(self.cat_whole(store), False)

    def _is_served_as_stored(self, store: FsspecObject[FileSystemT], size: int, encoding: str) -> bool:
        """Whether a range of an object is that of what is stored: decoding brings something else."""
        nbytes = min(size, _PROBE)
        try:
            data = self.cat(store, 0, nbytes)
        except Exception:  # of a part that cannot be decoded by itself; the whole will show
            return False
        return len(data) == nbytes and data[:4].startswith(_MAGIC.get(encoding.lower(), b"")[:nbytes])

    def cat(self, store: FsspecObject[FileSystemT], start: int, end: int) -> bytes:
        """Return the bytes [start, end) of the object, as the file system brings them."""
        return store.fs.cat_file(store.path, start=start, end=end, **store.options)

    def cat_whole(self, store: FsspecObject[FileSystemT]) -> bytes:
        """Return all of the object."""
        return store.fs.cat_file(store.path, **store.options)

    def doubt_head(self, store: FsspecObject[FileSystemT]) -> None:
        """Do nothing: there is one way to ask."""

    def open_body(self, store: FsspecObject[FileSystemT], version: Version) -> Body:
        """Read all of the object, which is of a version. Raises ChangedError if it is not as large."""
        body = BytesBody(self.cat_whole(store), False)
        if body.nbytes != version.size:
            raise ChangedError(f"the object has {body.nbytes} bytes, not {version.size}")
        return body

    @staticmethod
    def reads_ranges(store: FsspecObject[FileSystem]) -> bool:
        """Whether `cat_file` is the file system's own, not one that opens a file with readahead, and takes the options."""
        from fsspec import AbstractFileSystem

        fs = store.template
        if is_kind(fs, ARROW):  # which has one of its own that fails for ranges from the beginning
            return False
        is_its_own = type(fs).cat_file is not AbstractFileSystem.cat_file
        return is_its_own and are_read_by_cat_file(fs, "cat_file", store.options)

    def read(self, store: FsspecObject[FileSystemT], version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        end = start + destination.wanted
        if self.reads_ranges(store):
            put_range(self.cat(store, start, end), version, destination)
            return False
        with _open_unbuffered(store.fs, store.path, store.options) as file:
            file.seek(start)
            while not destination.full:
                data = file.read(min(destination.wanted - destination.done, store.max_request))
                if not data:
                    break
                destination.put(data)
        return False


def put_range(data: bytes, version: Version, destination: Destination) -> None:
    """Fill a destination with what `cat_file` brought. Raises WholeAnswerError if that is all of the object and more than
    the range, TooLongError if it is something else."""
    if len(data) > destination.wanted and len(data) == version.size:
        raise WholeAnswerError(BytesBody(data, False))
    destination.put(data)


def fresh_options(fs: FileSystem, function: Callable[..., Any], path: str) -> dict[str, Any]:
    """Return the arguments that keep `info` from answering out of the file system's listings."""
    if "refresh" in inspect.signature(function).parameters:
        return {"refresh": True}
    if getattr(fs, "dircache", None):
        fs.invalidate_cache(path)
        fs.invalidate_cache(fs._parent(path))  # what knows an object may be the listing of its directory
    return {}


def _with_version(fs: FileSystem, info: dict[str, Any]) -> dict[str, Any]:
    """Return an `info` with what distinguishes versions under a name that is known for it."""
    archive = archive_version(fs)
    if archive is not None:  # a member may have the same time and size as in another archive of that name
        member = [info.get(name) for name in ("mtime", "chksum", "date_time", "CRC")]
        return {**info, "version": f"{member} of {archive}"}
    modified = info.get("modify")
    if isinstance(modified, str) and modified.isdigit():  # of MLSD, to the second; `ls -l` gives minutes or days
        return {**info, "mtime": modified}
    return info


def _open_unbuffered(fs: FileSystem, path: str, options: Mapping[str, Any]) -> ReadableFile:
    try:
        return fs.open(path, "rb", cache_type="none", **options)
    except TypeError:  # files that are no AbstractBufferedFile take no cache_type
        return fs.open(path, "rb", **options)
