"""Linux's page cache as an embeddable engine: one memory budget for all files, objects and threads of a program.

    import pagecache

    cache = pagecache.PageCache("1GiB")
    with cache.open("data.bin") as file:
        header = file.pread(64, 0)
"""

from typing import TYPE_CHECKING

from pagecache import filemap, mm, readahead, stores, truncate, writeback
from pagecache._core import CacheFullError, XArray
from pagecache.cache import PageCache
from pagecache.default import default_cache, using
from pagecache.files.file import (
    ACCESS_COPY,
    ACCESS_DEFAULT,
    ACCESS_READ,
    ACCESS_WRITE,
    FADV_DONTNEED,
    FADV_NOREUSE,
    FADV_NORMAL,
    FADV_RANDOM,
    FADV_SEQUENTIAL,
    FADV_WILLNEED,
    CacheStat,
    File,
)
from pagecache.files.versioned import VersionedFile
from pagecache.headers import get_include
from pagecache.stats import FileStats, Stats, serve_stats
from pagecache.stores import BackingStore, FileStore, FsspecStore, MemoryStore, ObspecStore

__version__ = "0.1.0"
__all__ = [
    "ACCESS_COPY", "ACCESS_DEFAULT", "ACCESS_READ", "ACCESS_WRITE", "BackingStore", "CacheFullError", "CacheStat",
    "FADV_DONTNEED", "FADV_NOREUSE", "FADV_NORMAL", "FADV_RANDOM", "FADV_SEQUENTIAL", "FADV_WILLNEED", "File",
    "FileStats", "FileStore", "FsspecStore", "MemoryStore", "ObspecStore", "PageCache", "Stats", "VersionedFile", "XArray",
    "default_cache", "filemap", "get_include", "mm", "readahead", "serve_stats", "stores", "truncate", "using", "writeback",
]  # fmt: skip

if not TYPE_CHECKING:  # which would take every name for one of these
    _MOVED = {"live": "pagecache.stats.server", "prefetch": "pagecache.files.prefetch"}  # until version 0.2

    def __getattr__(name):
        """Find a module where it was documented before, for one version."""
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib
        import warnings

        warnings.warn(f"{__name__}.{name} is {_MOVED[name]} now", DeprecationWarning, stacklevel=2)
        return importlib.import_module(_MOVED[name])
