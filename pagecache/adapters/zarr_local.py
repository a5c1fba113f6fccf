"""Zarr stores on this machine: they are read without an event loop. Files and archives tell versions, which are looked at
before and after each read; memory does not."""

import errno
import os
import stat
import time
import zipfile
from collections.abc import Callable, Coroutine
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype

from pagecache.adapters.zarr_source import (
    Answer,
    FewerBytesError,
    MoreBytesError,
    ObjectChangedError,
    StoreSource,
    run_blocking,
    span_of,
    view_of,
    whole_pages,
)
from pagecache.adapters.zarr_steps import Step, Steps
from pagecache.files.aio import in_worker
from pagecache.stores.validators import Version

if TYPE_CHECKING:
    from zarr.storage import LocalStore, MemoryStore, ZipStore

_Result = TypeVar("_Result")
_GONE = (FileNotFoundError, NotADirectoryError)


class MemorySource(StoreSource):
    """Reads a `MemoryStore`: values are there as a whole, and nothing tells one from the next of its name. Two stores over
    one dictionary read the same."""

    is_local = True
    is_blocking = True

    def __init__(self, store: "MemoryStore"):
        super().__init__(store, f"memory:{id(store._store_dict)}", store._store_dict)

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what the store has of a key; None if there is no such key."""
        value = self.store.get_sync(key, prototype=default_buffer_prototype())
        if value is None:
            return None
        data = view_of(value)
        offset, nbytes = span_of(byte_range, len(data))
        return data[offset : offset + nbytes]

    def first(self, key: str, byte_range: ByteRequest | None) -> Steps[Answer | None]:
        """Return a range of a value, None if there is no such key. Waits for nothing."""
        yield from ()
        data = self.get_blocking(key, None)
        if data is None:
            return None
        offset, nbytes = span_of(whole_pages(byte_range), len(data))
        return Answer(data[offset : offset + nbytes], offset, len(data))


class VersionedSource(StoreSource):
    """Reads what can be looked at cheaply: `present` tells size and version of a value now."""

    has_versions = True
    is_local = True
    is_blocking = True

    def present(self, key: str) -> Version:
        """Return the version of a value. Raises OSError: FileNotFoundError or NotADirectoryError if there is none."""
        raise NotImplementedError

    def first(self, key: str, byte_range: ByteRequest | None) -> Steps[Answer | None]:
        """Read a range of a value for the first time, in a worker. Returns None if there is no such key."""
        read = partial(self._first, key, byte_range)
        answer: Answer | None = yield Step(partial(in_worker, read), read)
        return answer

    def _first(self, key: str, byte_range: ByteRequest | None) -> Answer | None:
        asked = whole_pages(byte_range)
        before = self._looked_up(key)
        data = self.get_blocking(key, asked)
        if data is None:
            return None
        after = self._looked_up(key)
        if before is None or after is None or before.validator != after.validator:  # it changes while it is read
            return Answer(data, 0, len(data)) if byte_range is None else self._first(key, None)
        offset, nbytes = span_of(asked, before.size)
        if len(data) != nbytes:
            raise (FewerBytesError if len(data) < nbytes else MoreBytesError)(key, len(data), nbytes)
        return Answer(data, offset, before.size, before)

    def _looked_up(self, key: str) -> Version | None:
        """Return the version of a value, or None if it cannot be found out: then `get` tells why."""
        try:
            return self.present(key)
        except OSError:
            return None

    def stat(self, key: str) -> Steps[Version]:
        """Return the present version of a value. Raises OSError."""
        yield from ()
        return self.present(key)

    def read(self, key: str, start: int, end: int, version: Version | None) -> memoryview:
        """Return bytes start..end (exclusive) of a value. Raises OSError: ESTALE if it has another version, or none."""
        self._check(key, version)
        data = super().read(key, start, end, version)
        self._check(key, version)
        return data

    def _check(self, key: str, version: Version | None) -> None:
        if version is None:
            return
        try:
            if self.present(key).validator == version.validator:
                return
        except _GONE:
            raise ObjectChangedError(key, "the key is gone: read it again") from None
        raise ObjectChangedError(key)


class LocalSource(VersionedSource):
    """Reads a `LocalStore`: a version is a file, its time of modification and its size."""

    def __init__(self, store: "LocalStore"):
        super().__init__(store, f"local:{os.path.abspath(store.root)}")
        self._root = store.root

    def present(self, key: str) -> Version:
        """Return the version of a file. Raises OSError."""
        checked_at = time.monotonic()
        status = os.stat(self._root / key)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", key)
        validator = f"file {status.st_dev:x}:{status.st_ino:x} mtime={status.st_mtime_ns} size={status.st_size}"
        return Version(status.st_size, validator, None, None, checked_at)

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what the store has of a key; None if there is no such key."""
        value = self.store.get_sync(key, prototype=default_buffer_prototype(), byte_range=byte_range)
        return None if value is None else view_of(value)

    def open_blocking(self) -> None:
        """Open the store."""
        self.store._ensure_open_sync()


class ZipSource(VersionedSource):
    """Reads a `ZipStore`: a version is the archive, the member's place in it, its checksum and its size."""

    def __init__(self, store: "ZipStore"):
        path = getattr(store, "path", None)
        super().__init__(store, None if path is None else f"zip:{os.path.abspath(path)}")

    def present(self, key: str) -> Version:
        """Return the version of a member, by what is known of the archive. Raises OSError."""
        checked_at = time.monotonic()
        store = cast("ZipStore", self.store)
        if not store._is_open:
            self.open_blocking()
        with store._lock:
            archive = store._zf
            try:
                member = archive.getinfo(key)
            except KeyError:
                raise FileNotFoundError(errno.ENOENT, "there is no such member", key) from None
            place = _place_of(archive, is_fixed=store._zmode == "r")
        validator = f"{place} member {member.header_offset:x} crc={member.CRC:x} size={member.file_size}"
        return Version(member.file_size, validator, None, None, checked_at)

    def get_blocking(self, key: str, byte_range: ByteRequest | None) -> memoryview | None:
        """Return what the store has of a key; None if there is no such key."""
        prototype = default_buffer_prototype()
        value = finished(lambda: self.store.get(key, prototype, byte_range), self)
        return None if value is None else view_of(value)

    def write_blocking(self, key: str, value: Buffer) -> None:
        """Add a member to the archive."""
        finished(lambda: self.store.set(key, value), self)

    def delete_blocking(self, key: str) -> None:
        """Remove a member. Raises NotImplementedError if there is one."""
        finished(lambda: self.store.delete(key), self)

    def open_blocking(self) -> None:
        """Open the archive."""
        finished(self.store._open, self)


def _place_of(archive: zipfile.ZipFile, is_fixed: bool) -> str:
    """Return what distinguishes an open archive from others; is_fixed: nothing adds to it."""
    try:
        status = os.fstat(cast(IO[bytes], archive.fp).fileno())
    except (AttributeError, OSError):  # it is no file
        return "archive"
    place = f"archive {status.st_dev:x}:{status.st_ino:x}"
    return f"{place} mtime={status.st_mtime_ns} size={status.st_size}" if is_fixed else place


def finished(begin: Callable[[], Coroutine[Any, Any, _Result]], source: StoreSource) -> _Result:
    """Return the result of a coroutine that waits for nothing, without an event loop; one that does gets the source's."""
    coroutine = begin()
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: _Result = ended.value
        return result
    except RuntimeError:  # it wants a loop
        pass
    coroutine.close()
    return run_blocking(begin, source.loop)
