"""rasterio and GDAL: `rasterio.open(path, opener=PageCacheOpener(cache, open_store))`.

GDAL does not cache what Python openers read. This opener serves its single reads from the cache, and its reads of many
ranges (the tiles of a window) with one call that fetches what is missing in parallel.
"""

import posixpath
from collections.abc import Callable
from typing import Any

from rasterio.abc import MultiByteRangeResourceContainer

from pagecache.adapters.objects import Objects
from pagecache.file import File


class PageCacheOpener(MultiByteRangeResourceContainer):
    """What `rasterio.open(path, opener=...)` takes: objects of one cache, by path.

    cache: a `PageCache`. open_store: makes the store (or local path) of a path; raises FileNotFoundError, at the latest
    when the store is asked for its size, if there is none. siblings: whether GDAL may look for side files (`.ovr`,
    `.aux.xml`, `.msk`, world files), a request each; without, only paths that were opened exist.

    Objects are looked up once and taken for immutable until `invalidate`.
    Context: GDAL calls from any thread, with the GIL.
    """

    def __init__(self, cache: Any, open_store: Callable[[str], Any], *, siblings: bool = False):
        self._objects = Objects(cache, open_store)
        self._siblings = siblings
        self._opened: set[str] = set()

    def open(self, path: str, mode: str = "r", **kwds: Any) -> File:
        """Open a path for reading. Returns a `File`, whose `get_byte_ranges` GDAL uses. Raises OSError."""
        if mode not in ("r", "rb"):
            raise OSError(30, f"mode {mode!r}: rasters are read through the cache, not written", path)
        file = self._objects.open(path)
        self._opened.add(path)
        return file

    def isfile(self, path: str) -> bool:
        """Whether there is such an object: one that was opened, or, with siblings, any."""
        return path in self._opened or (self._siblings and self._objects.exists(path))

    def isdir(self, path: str) -> bool:
        """Whether an object that was opened is below this path."""
        return any(opened.startswith(path.rstrip("/") + "/") for opened in self._opened)

    def ls(self, path: str) -> list[str]:
        """Return the names of the objects in a directory that were opened."""
        directory = path.rstrip("/")
        return sorted(posixpath.basename(opened) for opened in self._opened if posixpath.dirname(opened) == directory)

    def mtime(self, path: str) -> int:
        """Return when the object was last modified, or first seen (seconds): the same whenever it is asked."""
        return self._objects.modified_s(path)

    def size(self, path: str) -> int:
        """Return the size of an object (bytes)."""
        return self._objects.size(path)

    def rm(self, path: str) -> None:
        """Raise OSError: rasters are read through the cache."""
        raise OSError(30, "rasters are read through the cache, not removed", path)

    def invalidate(self, path: str | None = None) -> None:
        """Look an object (None: all of them) up anew when it is opened next."""
        self._objects.invalidate(path)

    def close(self) -> None:
        """Close what is kept open."""
        self._objects.close()
