"""SQLite through the page cache, as a VFS of apsw: `connect(source, cache)`, or `VFS(cache)` for `apsw.Connection`.

Databases may be local files, which other processes use at the same time through SQLite's own VFS, objects of any store
that can be written, and, for reading, objects of URLs.  Rollback journals work in every mode, write-ahead logs with
`PRAGMA locking_mode=EXCLUSIVE`: apsw has no shared memory for a VFS of its own.
"""

from pagecache.extras import needs

with needs("sqlite", __name__):
    import apsw as _apsw  # noqa: F401

from pagecache.adapters.sqlite.vfs import VFS, connect

__all__ = ["VFS", "connect"]
