"""A database that is open through the cache, and what its connections share.

Freshness   SQLite may read only what is locked SHARED.  While no connection of this cache holds a lock, others may change
            the file; so the first to become SHARED holds the object's version, and the sixteen bytes in which SQLite
            counts its transactions, against what they were when the last lock was given up, and drops every page if they
            differ.  Time of modification alone would not do: two commits may fall on one tick of the clock.  What is read
            without a lock (the header, once, when a connection opens) comes from the store and is not cached.
Write-back  Pages that a transaction writes are dirty in the cache, and go to the store any time from then on: their
            journal is in the store before.  They are all there before the journal goes (SYNC), and before the lock is
            lowered, as other processes read the store.  What cannot be written when the lock is lowered is discarded:
            it must not be written later without the lock; the journal, which is still there, brings the old pages back.
"""

import contextlib
import ctypes
import errno
import os
import weakref
from typing import Any, cast

import apsw

from pagecache import _core, writeback
from pagecache._core import Mutex
from pagecache.adapters.sqlite import locks
from pagecache.adapters.sqlite.errors import io_error
from pagecache.adapters.sqlite.locks import NONE, SHARED, Holder, ObjectLock
from pagecache.adapters.sqlite.places import Place
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.files.inode import Inode
from pagecache.requests.locality import Locality
from pagecache.stores.base import BackingStore
from pagecache.writeback.passes import WritebackControl

COUNTERS = 24  # offset of the change counter and its neighbours (bytes)
COUNTERS_SIZE = 16
FITTING_PART = 2  # a database of at most half the cache is taken to fit in, beside other objects
SECTOR_SIZE = 4096  # a page of the cache is written as a whole


class CachedFile(File):
    """A file whose failures are reported in SQLite's form. Hits cost nothing for that: only what is slow is wrapped."""

    def _read_slow(self, target: _core.CopyTarget, done: int, pos: int) -> int:
        try:
            return super()._read_slow(target, done, pos)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_READ, error) from error

    def _grown(self, pos: int) -> bool:
        try:
            return super()._grown(pos)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_READ, error) from error

    def _write_slow(self, source: _core.CopySource, done: int, pos: int) -> None:
        try:
            super()._write_slow(source, done, pos)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_WRITE, error) from error

    def _before_change(self, at_end: bool) -> None:
        try:
            super()._before_change(at_end)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_WRITE, error) from error

    def _throttle(self, nbytes: int) -> None:
        """Write back what is dirty: a thread that holds a database's lock must not sleep meanwhile. The next sync reports
        failures."""
        writeback.do_writepages(self.mapping, WritebackControl(range_cyclic=True))

    @property
    def has_dirty_pages(self) -> bool:
        """Whether anything has to be written back, or is on its way."""
        mapping = self.mapping
        return _core.has_mark(mapping, writeback.MARK_DIRTY) or _core.has_mark(mapping, writeback.MARK_WRITEBACK)

    def write_back(self) -> None:
        """Bring everything to the store. Raises OSError."""
        if self.has_dirty_pages:
            self._bring_to_store(durable=False)

    def _bring_to_store(self, *, durable: bool) -> None:
        """Write everything back. A failure in the background that was made good since is none: what could not be written
        stays dirty, so a pass without an error leaves nothing out. Raises OSError."""
        if not self.inode.keeps_failed:
            self._sync_pages(0, writeback.LAST_PAGE, durable=durable, datasync=True)
            return
        error = self.inode.sync_pages(0, writeback.LAST_PAGE, durable=durable, datasync=True)
        self._check_and_advance_wb_err()
        if error is not None:
            raise error

    def write_back_or_discard(self) -> None:
        """Bring everything to the store, or give it up: afterwards nothing is dirty."""
        try:
            self.write_back()
        except Exception:
            if not self.closed:
                self.inode.discard()
                self.inode.invalidate()

    def sync(self) -> None:
        """Make everything durable. Raises apsw.Error."""
        try:
            self._check_usable()
            self._bring_to_store(durable=True)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_FSYNC, error) from error

    def cut(self, size: int) -> None:
        """Set the size (bytes). Raises apsw.Error."""
        try:
            self.truncate(size)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_TRUNCATE, error) from error


class DenseLocality(Locality):
    """Of a database that fits into the cache: a page near a miss is as good as any other, and will be asked for."""

    def note(self, index: int) -> bool:
        """Return True: around each miss the neighbourhood is read, where the store is far."""
        return True


_counters: weakref.WeakKeyDictionary[Inode, bytes] = weakref.WeakKeyDictionary()
"""The transaction counters of each object that has cached pages, as they were when it was locked last."""


class Database:
    """What the connections of one cache to one object share.

    Context: `lock.mutex` guards `nr_locked`.
    """

    def __init__(self, place: Place, name: str, inode: Inode, lock: ObjectLock):
        self.place = place
        self.name = name
        self.inode = inode
        self.lock = lock
        self.nr_open = 0
        self.nr_locked = 0  # connections that hold a lock
        self._counters = _counters.get(inode)
        self.log: CachedFile | None = None  # the write-ahead log, while one is open

    @property
    def store(self) -> BackingStore:
        """What serves the object. Raises OSError if the cache is closed."""
        if self.inode.store is None:
            raise OSError(errno.EBADF, f"cannot use {self.name}: the cache is closed")
        return self.inode.store

    def _present_counters(self) -> bytes:
        """Return the counters that are in the store, b"" where its version tells every change."""
        fd = self.inode.mapping.fd
        return os.pread(fd, COUNTERS_SIZE, COUNTERS) if fd >= 0 else b""

    def begin_use(self) -> None:
        """Make sure that no cached page is older than the lock that was just taken. Raises OSError.

        Context: lock.mutex held; may wait for the store.
        """
        inode = self.inode
        if inode.store is None:
            raise OSError(errno.EBADF, f"cannot use {self.name}: the cache is closed")
        if self.nr_locked == 0:
            counters = self._present_counters()
            if counters != self._counters or not inode.mapping.backing.is_current(inode.mapping):
                inode.invalidate()
                self._counters = _counters[inode] = counters
        self.nr_locked += 1

    def end_use(self) -> None:
        """Note that a connection gives its lock up. Context: lock.mutex held."""
        self.nr_locked -= 1

    def note_own_commit(self) -> None:
        """Take what is in the store for known. Context: the connection that wrote it holds its lock."""
        try:
            self._counters = _counters[self.inode] = self._present_counters()
        except OSError:
            self._counters = None
            _counters.pop(self.inode, None)


class DatabaseFile:
    """One connection's handle of a database: the methods that apsw calls for SQLite.

    apsw looks `xRead` and `xWrite` up on each call, so they are the methods of the cached file themselves: a hit runs no
    Python code. Context: SQLite calls one handle from one thread at a time.
    """

    __slots__ = ("_database", "_file", "_holder", "_is_unlocked", "_vfs", "xRead", "xWrite")

    def __init__(self, vfs: Any, database: Database, file: CachedFile, *, locks_itself: bool):
        self._vfs = vfs  # which has to live as long as SQLite uses it
        self._database = database
        self._file = file
        self._holder = Holder()
        self._is_unlocked = not locks_itself
        self.xWrite = file.pwrite
        self.xRead = file.pread if self._is_unlocked else self._read_unlocked
        if self._is_unlocked:
            with database.lock.mutex.held():
                database.begin_use()

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _read_unlocked(self, amount: int, offset: int) -> bytes:
        buffer = bytearray(amount)
        try:
            got = self._database.store.readv(offset, [memoryview(buffer)])
        except Exception as error:  # of whatever library reads
            raise io_error(apsw.SQLITE_IOERR_READ, error) from error
        return bytes(buffer[:got])

    def xFileSize(self) -> int:
        """Return the size (bytes)."""
        if self._holder.level or self._is_unlocked:
            return int(self._file.mapping.size)
        try:
            return int(self._database.store.size())
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_FSTAT, error) from error

    def xTruncate(self, size: int) -> None:
        """Set the size (bytes)."""
        self._file.cut(size)

    def xSync(self, flags: int) -> None:
        """Make everything durable that was written."""
        self._file.sync()

    # -- locks ---------------------------------------------------------------------------------------------------------

    def xLock(self, level: int) -> None:
        """Raise the lock, or say that others are busy. The first SHARED lock makes stale pages go."""
        database, holder = self._database, self._holder
        try:
            with database.lock.mutex.held():
                before = holder.level
                if not database.lock.lock(holder, level):
                    raise locks.busy()
                if before == NONE != holder.level:
                    self._begin_use()
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_LOCK, error) from error

    def _begin_use(self) -> None:
        """Context: lock.mutex held."""
        try:
            self._database.begin_use()
        except BaseException:
            self._database.lock.unlock(self._holder, NONE)
            raise
        self.xRead = self._file.pread

    def xUnlock(self, level: int) -> None:
        """Lower the lock; before, what was written goes to the store, where others read it."""
        database, holder = self._database, self._holder
        if holder.level > SHARED:
            self._file.write_back_or_discard()
        try:
            with database.lock.mutex.held():
                before = holder.level
                if before > SHARED:
                    database.note_own_commit()
                if level == NONE != before:
                    self.xRead = self._read_unlocked
                    database.end_use()
                database.lock.unlock(holder, level)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_UNLOCK, error) from error

    def xCheckReservedLock(self) -> bool:
        """Whether any connection prepares to write, or writes."""
        try:
            with self._database.lock.mutex.held():
                return self._database.lock.is_reserved(self._holder)
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_CHECKRESERVEDLOCK, error) from error

    # -- the rest ------------------------------------------------------------------------------------------------------

    def xFileControl(self, operation: int, pointer: int) -> bool:
        """Act on what SQLite says it is about to do. Returns whether the operation is known."""
        if operation in (apsw.SQLITE_FCNTL_SYNC, apsw.SQLITE_FCNTL_CKPT_DONE):
            self._write_back(self._file)
        elif operation in (apsw.SQLITE_FCNTL_CKPT_START, apsw.SQLITE_FCNTL_COMMIT_PHASETWO):
            if self._database.log is not None:
                self._write_back(self._database.log)
        elif operation == apsw.SQLITE_FCNTL_HAS_MOVED:
            store = self._file.inode.store
            is_moved = store is not None and self._database.place.is_moved(self._database.name, store)
            ctypes.c_int.from_address(pointer).value = is_moved
        elif operation == apsw.SQLITE_FCNTL_LOCKSTATE:
            ctypes.c_int.from_address(pointer).value = self._holder.level
        else:
            return False
        return True

    @staticmethod
    def _write_back(file: CachedFile) -> None:
        try:
            file.write_back()
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_WRITE, error) from error

    def xSectorSize(self) -> int:
        """Return how much a write touches at least (bytes)."""
        return SECTOR_SIZE

    def xDeviceCharacteristics(self) -> int:
        """Return what SQLite may rely on: nothing but that an object which cannot be written does not change."""
        if self._database.place.is_local or self._file.inode.writable:
            return 0
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xClose(self) -> None:
        """Give the handle up."""
        if self._holder.level > NONE:
            with contextlib.suppress(apsw.Error):
                self.xUnlock(NONE)
        elif self._is_unlocked:
            self._file.write_back_or_discard()
            with self._database.lock.mutex.held():
                self._database.note_own_commit()
                self._database.end_use()
        close_database(self._vfs.cache, self._database, self._file)


# -- which databases are open ------------------------------------------------------------------------------------------


class _Table:
    """The databases that are open through one cache, by key."""

    def __init__(self) -> None:
        self.lock = Mutex()
        self.databases: dict[str, Database] = {}


_tables: weakref.WeakKeyDictionary[PageCache, _Table] = weakref.WeakKeyDictionary()
_tables_lock = Mutex()


def _table_of(cache: PageCache) -> _Table:
    with _tables_lock.held():
        return _tables.setdefault(cache, _Table())


def open_database(
    cache: PageCache, place: Place, name: str, *, writable: bool, create: bool
) -> tuple[Database, CachedFile]:
    """Open a file on a database, on the inode of those that have it open already. Raises OSError, ValueError."""
    table = _table_of(cache)
    mode = "r+b" if writable else "rb"
    with table.lock.held():
        key = place.key_of(name)
        database = table.databases.get(key) if key is not None and (writable or place.is_local) else None
        if database is None or (writable and not database.inode.writable):
            store = place.open(name, writable=writable, create=create)
            fit_folios(store)
            database = table.databases.get(store.key)
            if database is None or not (writable or database.inode.writable or database.inode.is_version(store)):
                return _new_database(cache, table, place, name, store, mode)
            file = cache.open_shared(database.inode, store, mode, CachedFile)
        else:
            file = cache.open_shared(database.inode, None, mode, CachedFile)
        database.nr_open += 1
        return database, file


def _new_database(
    cache: PageCache, table: _Table, place: Place, name: str, store: BackingStore, mode: str
) -> tuple[Database, CachedFile]:
    key = store.key
    file = cache.open_store(store, mode, file_type=CachedFile)
    try:
        database = Database(place, name, file.inode, locks.lock_of(key, name if place.is_local else None))
    except BaseException:
        file.close()
        raise
    if file.mapping.size <= cache.size // FITTING_PART:
        file.mapping.backing.locality = DenseLocality()
    database.nr_open = 1
    table.databases[key] = database
    return database, file


def close_database(cache: PageCache, database: Database, file: CachedFile) -> None:
    """Close a file on a database; with the last one it is no longer open. Raises apsw.Error."""
    table = _table_of(cache)
    with table.lock.held():
        database.nr_open -= 1
        if database.nr_open == 0 and table.databases.get(file.mapping.key) is database:
            del table.databases[file.mapping.key]
        try:
            file.close()
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_CLOSE, error) from error


def database_named(cache: PageCache, name: str) -> Database | None:
    """Return the database of a name that is open, if there is one."""
    table = _table_of(cache)
    with table.lock.held():
        return next((found for found in table.databases.values() if found.name == name), None)


def fit_folios(store: BackingStore) -> None:
    """Have a store's folios be as large as the pages of the database that is in it, so that each is found in one step, and
    a write touches no other. A store that does not take attributes keeps its own way."""
    header = bytearray(18)
    try:
        got = store.readv(0, [memoryview(header)]) if store.size() >= len(header) else 0
    except Exception:  # of whatever library reads; the first read through the cache tells
        return
    if got == len(header) and header.startswith(b"SQLite format 3\0"):
        page_size = int.from_bytes(header[16:18], "big")
        page_size = 65536 if page_size == 1 else page_size
    else:
        page_size = 4096
    with contextlib.suppress(AttributeError):
        cast(Any, store).folio_order = max(0, page_size.bit_length() - 13)
