"""Where the names of databases lead: files of this machine, stores that were given a name, and URLs.

A place opens the store of a database, and what SQLite keeps beside it: journals and write-ahead logs.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from typing import cast

from pagecache._core import Mutex
from pagecache.stores.base import BackingStore
from pagecache.stores.file import FileStore

PREFIX = "store:"


class LocalFiles:
    """Files by path. Context: thread-safe."""

    is_local = True

    def full_name(self, name: str) -> str:
        """Return the path without links, so that a journal lies beside the file itself, whichever way that is named."""
        return os.path.realpath(name)

    def key_of(self, path: str) -> str | None:
        """Return the key that the store of a path has, None if there is no such file."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return f"file:{status.st_dev:x}:{status.st_ino:x}"

    def open(self, path: str, *, writable: bool, create: bool) -> BackingStore:
        """Open a database. Raises OSError."""
        return FileStore(path, ("a+b" if create else "r+b") if writable else "rb")

    def open_beside(self, path: str, database: str, *, writable: bool, create: bool, exclusive: bool) -> BackingStore:
        """Open a journal or log, which gets the permissions and the owner of the database it belongs to. Raises OSError."""
        if create:
            how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else 0)
            like = self._status(database)
            mode = stat.S_IMODE(like.st_mode) & 0o777 if like is not None else 0o644
            is_new = not os.path.exists(path)
            fd = os.open(path, how, mode)
            try:
                if is_new and like is not None:
                    with contextlib.suppress(OSError):
                        os.fchmod(fd, mode)
                        if os.geteuid() == 0:
                            os.fchown(fd, like.st_uid, like.st_gid)
            finally:
                os.close(fd)
        return FileStore(path, "r+b" if writable else "rb")

    @staticmethod
    def _status(path: str) -> os.stat_result | None:
        try:
            return os.stat(path)
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file. An empty one is none, as no journal is in it."""
        status = self._status(path)
        return status is not None and (not stat.S_ISREG(status.st_mode) or status.st_size > 0)

    def is_accessible(self, path: str, *, writable: bool) -> bool:
        """Whether this process may read the file, or read and write it."""
        return os.access(path, os.R_OK | (os.W_OK if writable else 0))

    def delete(self, path: str, *, durable: bool) -> None:
        """Delete a file; durable: that it is gone survives the system. Raises OSError."""
        os.unlink(path)
        if durable:
            self.sync_directory(path)

    def sync_directory(self, path: str) -> None:
        """Make durable which files there are beside a path. Raises OSError."""
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
                raise
        finally:
            os.close(fd)

    def is_moved(self, path: str, store: BackingStore) -> bool:
        """Whether a path has ceased to name the file that is open on it."""
        status = self._status(path)
        return status is None or not os.path.samestat(status, os.fstat(cast(FileStore, store).fd))

    @staticmethod
    def open_temporary() -> BackingStore:
        """Open a file that no other program finds, and that is gone when it is closed. Raises OSError."""
        fd, path = tempfile.mkstemp(prefix="pagecache-sqlite-")
        try:
            return FileStore(path, "r+b")
        finally:
            os.close(fd)
            os.unlink(path)


class Objects:
    """Stores that were given a name.

    make_object: makes the empty, writable store of a name that SQLite wants to create: a journal, a log, a new database.
    Context: thread-safe.
    """

    is_local = False

    def __init__(self, make_object: Callable[[str], BackingStore]):
        self._make_object = make_object
        self._stores: dict[str, BackingStore] = {}
        self._lock = Mutex()

    def add(self, name: str, store: BackingStore) -> None:
        """Give a store a name. Raises ValueError if one with another key has it."""
        with self._lock.held():
            if name in self._stores and self._stores[name].key != store.key:
                raise ValueError(f"another store is named {name!r}")
            self._stores[name] = store

    def full_name(self, name: str) -> str:
        """Return the name."""
        return name

    def key_of(self, name: str) -> str | None:
        """Return the key of a store, None if there is none of that name."""
        with self._lock.held():
            return self._stores[name].key if name in self._stores else None

    def open(self, name: str, *, writable: bool, create: bool) -> BackingStore:
        """Return the store of a name, made if need be. Raises OSError."""
        with self._lock.held():
            store = self._stores.get(name)
            if store is None and create:
                store = self._stores[name] = self._make_object(name)
        if store is None:
            raise FileNotFoundError(errno.ENOENT, "no store has this name: add it to the VFS", name)
        if writable and not (hasattr(store, "writev") and getattr(store, "writable", True)):
            raise OSError(errno.EROFS, "this store cannot be written", name)
        return store

    def open_beside(self, name: str, database: str, *, writable: bool, create: bool, exclusive: bool) -> BackingStore:
        """Return the store of a journal or log, made if need be. Raises OSError."""
        if exclusive and self.key_of(name) is not None:
            raise FileExistsError(errno.EEXIST, "a store has this name", name)
        return self.open(name, writable=writable, create=create)

    def exists(self, name: str) -> bool:
        """Whether a store has that name, and something is in it."""
        with self._lock.held():
            store = self._stores.get(name)
        return store is not None and store.size() > 0

    def is_accessible(self, name: str, *, writable: bool) -> bool:
        """Whether a store can be read, or read and written."""
        with self._lock.held():
            store = self._stores.get(name)
        return store is not None and (not writable or hasattr(store, "writev"))

    def delete(self, name: str, *, durable: bool) -> None:
        """Forget a store. Raises FileNotFoundError."""
        with self._lock.held():
            if self._stores.pop(name, None) is None:
                raise FileNotFoundError(errno.ENOENT, "no store has this name", name)

    def sync_directory(self, name: str) -> None:
        """Do nothing: names are kept in memory."""

    def is_moved(self, name: str, store: BackingStore) -> bool:
        """Return False."""
        return False


class Urls:
    """Objects of URLs that fsspec knows, for reading."""

    is_local = False

    def full_name(self, name: str) -> str:
        """Return the URL."""
        return name

    def key_of(self, name: str) -> str | None:
        """Return None: only the store knows."""
        return None

    def open(self, name: str, *, writable: bool, create: bool) -> BackingStore:
        """Open an object. Raises OSError: EROFS for writing."""
        from pagecache.stores.fsspec import store_of_url

        if writable:
            raise OSError(errno.EROFS, "URLs are opened for reading", name)
        return store_of_url(name)

    def open_beside(self, name: str, database: str, *, writable: bool, create: bool, exclusive: bool) -> BackingStore:
        """Raise OSError: nothing is looked for beside an object that is only read."""
        raise OSError(errno.EROFS, "URLs are opened for reading", name)

    def exists(self, name: str) -> bool:
        """Return False: an object that is only read has neither journal nor log."""
        return False

    def is_accessible(self, name: str, *, writable: bool) -> bool:
        """Whether it may be asked for."""
        return not writable

    def delete(self, name: str, *, durable: bool) -> None:
        """Raise OSError."""
        raise OSError(errno.EROFS, "URLs are opened for reading", name)

    def sync_directory(self, name: str) -> None:
        """Do nothing."""

    def is_moved(self, name: str, store: BackingStore) -> bool:
        """Return False."""
        return False


Place = LocalFiles | Objects | Urls
