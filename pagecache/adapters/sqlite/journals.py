"""What SQLite keeps beside a database: journals, write-ahead logs and temporary files.

A rollback journal is written once, in order, and read only after a failure: it goes to the store at once, past the cache.
So it is never younger there than a page of the database that it protects, even without any sync.  A write-ahead log is
read as the database is, and is cached as it is; `DatabaseFile` brings it to the store when a transaction ends, and before
pages go from it into the database.
"""

import contextlib
from collections.abc import Callable
from typing import cast

import apsw

from pagecache.adapters.sqlite.database import SECTOR_SIZE, CachedFile, Database
from pagecache.adapters.sqlite.errors import io_error
from pagecache.adapters.sqlite.places import Place
from pagecache.cache import PageCache
from pagecache.stores.base import BackingStore, WritableStore


class _NoLocks:
    """The methods of files that only the holder of the database's lock uses."""

    __slots__ = ()

    def xLock(self, level: int) -> None:
        """Do nothing."""

    def xUnlock(self, level: int) -> None:
        """Do nothing."""

    def xCheckReservedLock(self) -> bool:
        """Return False."""
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:
        """Return False: no operation is known."""
        return False

    def xSectorSize(self) -> int:
        """Return how much a write touches at least (bytes)."""
        return SECTOR_SIZE

    def xDeviceCharacteristics(self) -> int:
        """Return 0: SQLite may rely on nothing."""
        return 0


class _SyncsDirectory:
    """Makes durable, with the first sync, that a new file is there."""

    __slots__ = ("_is_new", "_name", "_place")

    def __init__(self, place: Place, name: str, *, is_new: bool):
        self._place, self._name, self._is_new = place, name, is_new

    def __call__(self) -> None:
        if self._is_new:
            try:
                self._place.sync_directory(self._name)
            except OSError as error:
                raise io_error(apsw.SQLITE_IOERR_DIR_FSYNC, error) from error
            self._is_new = False


class JournalFile(_NoLocks):
    """A file that is written and read past the cache.

    store: closed with it. sync_directory: called after each sync.
    """

    __slots__ = ("_store", "_sync_directory")

    def __init__(self, store: BackingStore, sync_directory: Callable[[], None] | None = None):
        self._store = cast(WritableStore, store)  # read-only ones are never written
        self._sync_directory = sync_directory

    def xRead(self, amount: int, offset: int) -> bytes:
        """Return bytes, fewer only at the end."""
        buffer, done = bytearray(amount), 0
        try:
            while done < amount:
                got = self._store.readv(offset + done, [memoryview(buffer)[done:]])
                if got == 0:
                    break
                done += got
        except Exception as error:  # of whatever library reads
            raise io_error(apsw.SQLITE_IOERR_READ, error) from error
        return bytes(buffer[:done])

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write all of the bytes."""
        done = 0
        try:
            while done < len(data):
                wrote = self._store.writev(offset + done, [memoryview(data)[done:]])
                if wrote == 0:
                    raise OSError(f"{self._store.key} took no bytes")
                done += wrote
        except Exception as error:
            raise io_error(apsw.SQLITE_IOERR_WRITE, error) from error

    def xTruncate(self, size: int) -> None:
        """Set the size (bytes)."""
        try:
            self._store.truncate(size)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_TRUNCATE, error) from error

    def xSync(self, flags: int) -> None:
        """Make everything durable, and that the file is there."""
        try:
            self._store.sync(True)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_FSYNC, error) from error
        if self._sync_directory is not None:
            self._sync_directory()

    def xFileSize(self) -> int:
        """Return the size (bytes)."""
        try:
            return int(self._store.size())
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_FSTAT, error) from error

    def xClose(self) -> None:
        """Close the store."""
        self._store.close()


class LogFile(_NoLocks):
    """A write-ahead log, cached. It belongs to one connection, which holds the database exclusively."""

    __slots__ = ("_cache", "_database", "_file", "_sync_directory", "xRead", "xWrite")

    def __init__(self, cache: PageCache, file: CachedFile, database: Database | None, sync_directory: Callable[[], None]):
        self._cache = cache
        self._file = file
        self._database = database
        self._sync_directory = sync_directory
        self.xRead, self.xWrite = file.pread, file.pwrite
        if database is not None:
            database.log = file

    def xTruncate(self, size: int) -> None:
        """Set the size (bytes)."""
        self._file.cut(size)

    def xSync(self, flags: int) -> None:
        """Make everything durable, and that the file is there."""
        self._file.sync()
        self._sync_directory()

    def xFileSize(self) -> int:
        """Return the size (bytes)."""
        return int(self._file.mapping.size)

    def xClose(self) -> None:
        """Close the file, of which nothing stays cached: the next one of its name is another."""
        if self._database is not None and self._database.log is self._file:
            self._database.log = None
        key = self._file.mapping.key
        self._file.write_back_or_discard()
        try:
            self._file.close()
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_CLOSE, error) from error
        finally:
            with contextlib.suppress(ValueError, RuntimeError):
                self._cache.forget(key)


def make_journal(place: Place, name: str, store: BackingStore, *, is_new: bool) -> JournalFile:
    """Return the handle of a journal."""
    return JournalFile(store, _SyncsDirectory(place, name, is_new=is_new))


def make_log(
    cache: PageCache, place: Place, name: str, store: BackingStore, database: Database | None, *, is_new: bool
) -> LogFile:
    """Return the handle of a write-ahead log. Raises OSError."""
    cache.forget(store.key)
    mode = "r+b" if getattr(store, "writable", True) else "rb"
    file = cache.open_store(store, mode, file_type=CachedFile)
    return LogFile(cache, file, database, _SyncsDirectory(place, name, is_new=is_new))
