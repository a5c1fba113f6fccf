"""The VFS: it finds the place of a name and makes the handles that SQLite asks for."""

import itertools
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import apsw

from pagecache._core import Mutex
from pagecache.adapters.sqlite import journals
from pagecache.adapters.sqlite.database import DatabaseFile, database_named, open_database
from pagecache.adapters.sqlite.errors import io_error, is_refusal, open_error, sqlite_error
from pagecache.adapters.sqlite.places import PREFIX, LocalFiles, Objects, Place, Urls
from pagecache.cache import PageCache
from pagecache.default import default_cache
from pagecache.options import unknown_option
from pagecache.stores import MemoryStore
from pagecache.stores.base import BackingStore

MAX_PATHNAME = 4096  # bytes
SUFFIXES = ("-journal", "-wal")
ACCESS_EXISTS = apsw.SQLITE_ACCESS_EXISTS
JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_numbers = itertools.count(1)


class VFS(apsw.VFS):
    """Databases through a page cache, for apsw: `apsw.Connection(name, vfs=vfs.name)`.

    cache: a `PageCache`; the process's own if None. name: under which apsw knows it; by default one that is not in use.
    makedefault: whether connections that name no VFS use it. make_object: makes the store of a journal, a log or a new
    database beside stores that were added, given its name; by default in memory.

    A name is a path, a URL that fsspec knows (for reading), or what `add` returned. `unregister` ends it, when its
    connections are closed. Context: thread-safe.
    """

    def __init__(
        self,
        cache: PageCache | None = None,
        *,
        name: str | None = None,
        makedefault: bool = False,
        make_object: Callable[[str], BackingStore] | None = None,
    ):
        self.cache: PageCache = cache if cache is not None else default_cache()
        self.name = name if name is not None else f"pagecache-{next(_numbers)}"
        self._files = LocalFiles()
        self._objects = Objects(make_object or (lambda name: MemoryStore()))
        self._urls = Urls()
        super().__init__(self.name, "", makedefault, MAX_PATHNAME)

    def add(self, store: BackingStore, name: str | None = None) -> str:
        """Give a store a name. Returns what a connection is opened with. Raises ValueError if another store has it."""
        full = PREFIX + (name if name is not None else str(store.key))
        self._objects.add(full, store)
        return full

    def _place_of(self, name: str) -> Place:
        if name[0] == "/":
            return self._files
        if name.startswith(PREFIX):
            return self._objects
        return self._urls if "://" in name else self._files

    # -- what SQLite calls ---------------------------------------------------------------------------------------------

    def xFullPathname(self, name: str) -> str:
        """Return the name by which a file is known, however it is named."""
        return str(self._place_of(name).full_name(name))

    def xAccess(self, name: str, flags: int) -> bool:
        """Whether there is such a file, or it may be read and written."""
        if flags == ACCESS_EXISTS and name[0] == "/" and not os.access(name, os.F_OK):
            return False  # the usual answer, twice in each transaction
        place = self._place_of(name)
        try:
            if flags == ACCESS_EXISTS:
                return bool(place.exists(name))
            return bool(place.is_accessible(name, writable=flags == apsw.SQLITE_ACCESS_READWRITE))
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_ACCESS, error) from error

    def xDelete(self, name: str, syncdir: bool) -> None:
        """Delete a file; syncdir: that it is gone is durable afterwards."""
        try:
            self._place_of(name).delete(name, durable=syncdir)
        except FileNotFoundError as error:
            raise sqlite_error(apsw.SQLITE_IOERR_DELETE_NOENT, str(error)) from None
        except OSError as error:
            raise io_error(apsw.SQLITE_IOERR_DELETE, error) from error

    def xSleep(self, microseconds: int) -> int:
        """Wait for a lock that another connection holds. Context: without the GIL, which that connection may want."""
        time.sleep(microseconds / 1_000_000)
        return microseconds

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """Open a file. flags: how, and, put in by this, how it was opened in the end."""
        try:
            if name is None or not flags[0] & (JOURNALS | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_DB):
                flags[1] = flags[0]
                return journals.JournalFile(self._files.open_temporary())
            if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
                return self._open_database(name, flags)
            return self._open_beside(str(name), flags)
        except (OSError, ImportError, ValueError) as error:
            raise open_error(error) from error

    def _open_database(self, uri: Any, flags: list[int]) -> DatabaseFile:
        name = uri if isinstance(uri, str) else uri.filename()
        unlocked = not isinstance(uri, str) and (uri.uri_boolean("nolock", False) or uri.uri_boolean("immutable", False))
        place = self._place_of(name)
        writable, create = bool(flags[0] & apsw.SQLITE_OPEN_READWRITE), bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        flags[1] = flags[0]
        try:
            database, file = open_database(self.cache, place, name, writable=writable, create=create)
        except OSError as error:
            if not writable or not is_refusal(error):
                raise
            database, file = open_database(self.cache, place, name, writable=False, create=False)
            writable = False
        if not writable:
            flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        is_constant = not place.is_local and not file.inode.writable
        return DatabaseFile(self, database, file, locks_itself=not (unlocked or is_constant))

    def _open_beside(self, name: str, flags: list[int]) -> Any:
        place = self._place_of(name)
        writable, create = bool(flags[0] & apsw.SQLITE_OPEN_READWRITE), bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        exclusive = create and bool(flags[0] & apsw.SQLITE_OPEN_EXCLUSIVE)
        owner = _database_of(name)
        store = place.open_beside(name, owner, writable=writable, create=create, exclusive=exclusive)
        flags[1] = flags[0]
        if not flags[0] & apsw.SQLITE_OPEN_WAL:
            return journals.make_journal(place, name, store, is_new=create)
        return journals.make_log(self.cache, place, name, store, database_named(self.cache, owner), is_new=create)


def _database_of(name: str) -> str:
    """Return the name of the database that a journal or log belongs to: NAME-journal, NAME-wal, NAME-mj0123456789."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name.rpartition("-mj")[0] or name


_default_vfs: weakref.WeakKeyDictionary[PageCache, weakref.ref[VFS]] = weakref.WeakKeyDictionary()
_default_lock = Mutex()


def vfs_of(cache: PageCache) -> VFS:
    """Return a VFS on a cache, the same as long as it is used."""
    with _default_lock.held():
        reference = _default_vfs.get(cache)
        vfs = reference() if reference is not None else None
        if vfs is None:
            vfs = VFS(cache)
            _default_vfs[cache] = weakref.ref(vfs)
        return vfs


def connect(source: Any, cache: PageCache | None = None, *, flags: int | None = None, **options: Any) -> apsw.Connection:
    """Open a database through a cache.

    source: a path, a URL that fsspec knows (for reading), or a BackingStore. cache: a `PageCache`; the process's own if
    None. flags: SQLITE_OPEN_*; by default reading and writing, made if missing. options: for the file system of a URL.
    Returns an `apsw.Connection`. Raises apsw.Error; ImportError, OSError when a URL cannot be opened.
    """
    vfs = vfs_of(cache if cache is not None else default_cache())
    if isinstance(source, str) and source.startswith("file://"):
        source = source[len("file://") :]
    if isinstance(source, str) and "://" in source and not source.startswith(PREFIX):
        from pagecache.stores.fsspec import store_of_url

        source = store_of_url(source, **options)  # so that what is wrong with it is reported at once
    elif options:
        raise unknown_option(min(options), ("cache", "flags"), "connect", "options of file systems are for URLs")
    name = vfs.add(source) if hasattr(source, "readv") else str(source)
    how = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if flags is None else flags
    return apsw.Connection(name, flags=how, vfs=vfs.name)
