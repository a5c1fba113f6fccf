"""SQLite through the page cache, as a VFS of apsw: `connect(source, cache)`, or `VFS(cache)` for `apsw.Connection`.

Databases may be local files, which other processes use at the same time through SQLite's own VFS, objects of any store
that can be written, and, for reading, objects of URLs.  Rollback journals work in every mode, write-ahead logs with
`PRAGMA locking_mode=EXCLUSIVE`: apsw has no shared memory for a VFS of its own.
"""

try:
    import apsw as _apsw  # noqa: F401
except ImportError as error:
    raise ImportError("SQLite through the cache needs apsw: pip install 'pagecache-engine[sqlite]'") from error

from pagecache.adapters.sqlite.vfs import VFS, connect

__all__ = ["VFS", "connect"]
