"""DuckDB: `register(connection, cache, open_store)`, then `SELECT ... FROM 'pagecache://path'`.

DuckDB's own cache of external files does not cover file systems registered from Python since 2.0. From 1.3 to 1.5 it does,
and would keep the same bytes once more, outside the cache's budget: `register` turns it off there. DuckDB opens a file
several times a query and asks for size and time of modification at each open: here both are looked up once.
"""

import datetime
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pagecache.cache import PageCache
from pagecache.extras import needs

with needs("duckdb", __name__):
    import fsspec

from pagecache.adapters.objects import Objects
from pagecache.files.file import File
from pagecache.options import check_options
from pagecache.stores.abandoned import Calls

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PROTOCOL = "pagecache"


class PageCacheFiles(fsspec.AbstractFileSystem):
    """The objects of one cache, by path, as the file system that `register_filesystem` takes. It reads only.

    cache: a `PageCache`. open_store: makes the store (or local path) of a path; raises FileNotFoundError, at the latest
    when the store is asked for its size, if there is none. protocol: what stands before `://` in names. glob: returns the
    paths that a pattern stands for; None: patterns with `*` stand for nothing.

    Objects are looked up once and taken for immutable until `invalidate_cache`.
    Context: thread-safe, as DuckDB reads from many threads, and since 2.0 with one handle in all of them
    (`File.seeks_by_thread`). A read waits for its store without the GIL and takes no lock
    that another thread could hold while it wants the GIL.
    """

    cachable = False

    def __init__(
        self,
        cache: PageCache,
        open_store: Callable[[str], Any],
        *,
        protocol: str = PROTOCOL,
        glob: Callable[[str], list[str]] | None = None,
    ):
        super().__init__()
        self.protocol = protocol
        self._objects = Objects(cache, open_store)
        self._reads = Calls()
        self._glob = glob

    def _path_of(self, name: str) -> str:
        return name.removeprefix(f"{self.protocol}://")

    def open(self, path: str, mode: str = "rb", **options: Any) -> File:
        """Open an object for reading. In any thread a read begins where that thread has sought. Raises OSError."""
        if mode not in ("rb", "r"):
            raise OSError(30, f"mode {mode!r}: files are read through the cache, not written", path)
        file = self._objects.open(self._path_of(path))
        file.seeks_by_thread = True
        file.calls = self._reads
        return file

    def interrupt(self, connection: "DuckDBPyConnection") -> None:
        """Interrupt the query of a connection, as its own `interrupt` does, and the reads that it waits for: DuckDB itself
        waits until they return. Those of other connections' queries through this file system end as well, with an OSError
        (EINTR). Context: any thread but the one of the query."""
        connection.interrupt()
        self._reads.abandon()

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return name, size (bytes) and type of an object. Raises FileNotFoundError."""
        path = self._path_of(path)
        return {"name": path, "size": self._objects.size(path), "type": "file"}

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is such an object."""
        return self._objects.exists(self._path_of(path))

    def isfile(self, path: str) -> bool:
        """Whether there is such an object."""
        return self.exists(path)

    def isdir(self, path: str) -> bool:
        """Return False: objects have no directories."""
        return False

    def glob(self, path: str, **options: Any) -> list[str]:
        """Return the paths that a pattern stands for, without those that do not exist."""
        path = self._path_of(path)
        paths = self._glob(path) if self._glob is not None else [] if "*" in path else [path]
        return [found for found in paths if self._objects.exists(found)]

    def modified(self, path: str) -> datetime.datetime:
        """Return when an object was last modified, or first seen: the same whenever it is asked."""
        seconds = self._objects.modified_s(self._path_of(path))
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    def unstrip_protocol(self, name: str) -> str:
        """Return a path with the protocol before it."""
        return f"{self.protocol}://{self._path_of(name)}"

    def invalidate_cache(self, path: str | None = None) -> None:
        """Look an object (None: all of them) up anew when it is used next."""
        self._objects.invalidate(None if path is None else self._path_of(path))

    def close(self) -> None:
        """Close what is kept open."""
        self._objects.close()


def register(
    connection: "DuckDBPyConnection",
    cache: PageCache,
    open_store: Callable[[str], Any],
    *,
    external_file_cache: bool = False,
    **options: Any,
) -> PageCacheFiles:
    """Let a DuckDB connection read through a cache: names that begin with `pagecache://`.

    connection: of DuckDB. external_file_cache: whether DuckDB 1.3 to 1.5 may keep what it reads of remote files in memory,
    these among them; else its setting `enable_external_file_cache` is turned off, for all files of the connection's
    database. The others as for `PageCacheFiles`. Returns the file system. Raises TypeError for another
    option.
    """
    check_options(options, ("external_file_cache", "glob", "protocol"), "register")
    files = PageCacheFiles(cache, open_store, **options)
    if not external_file_cache and _keeps_what_it_reads():
        _turn_off_cache(connection)
    connection.register_filesystem(files)
    return files


def _keeps_what_it_reads() -> bool:
    """Whether DuckDB's cache of external files covers file systems registered from Python."""
    import duckdb

    version = tuple(int(part) for part in duckdb.__version__.split(".")[:2])
    return (1, 3) <= version < (2, 0)


def _turn_off_cache(connection: "DuckDBPyConnection") -> None:
    import duckdb

    try:
        with connection.cursor() as other:  # the connection may have results that are not fetched yet
            other.execute("SET GLOBAL enable_external_file_cache = false")
    except duckdb.Error as error:  # its configuration may be locked
        warnings.warn(f"DuckDB keeps what it reads through the cache once more: {error}", RuntimeWarning, stacklevel=3)
