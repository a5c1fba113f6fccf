"""rasterio and GDAL: `rasterio.open(path, opener=PageCacheOpener(cache, open_store))`.

GDAL does not cache what Python openers read; this one reads through the cache, all tiles of a window at once.

What a Python opener raises does not arrive: rasterio's callbacks print it and report success. So a failed read is
answered with too few bytes, which GDAL takes for the error that it is, with one exception: where it cannot read the index
of the tiles, GDAL 3.10 fills the window with zeros and says nothing. `PageCacheOpener.guard` raises in every case:

    with opener.guard():
        pixels = raster.read(1, window=window)
"""

import contextlib
import io
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pagecache.cache import PageCache
from pagecache.extras import needs

with needs("rasterio", __name__):
    from rasterio.abc import MultiByteRangeResourceContainer

from pagecache.adapters.objects import Objects
from pagecache.files.file import File

SIDE_FILES = (".aux", ".aux.xml", ".msk", ".ovr")  # what GDAL tries to open where it cannot list a directory
MADE_UP = ("test", "test/test")  # what rasterio asks an opener for, to see whether it is one
READ_ONLY = "rasters are read through the cache, not changed"


class Resource(io.RawIOBase):
    """An open raster: a `File` whose failures GDAL understands, and the opener remembers."""

    def __init__(self, opener: "PageCacheOpener", file: File):
        super().__init__()
        self._opener = opener
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes; none when they cannot be read."""
        try:
            return self._file.read(size)
        except BaseException as error:
            self._opener.note(error)
            return b""

    def get_byte_ranges(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read ranges (bytes); what is missing is fetched in parallel. Raises OSError."""
        try:
            return self._file.get_byte_ranges(offsets, sizes)
        except BaseException as error:
            met = self._opener.note(error)
            raise met from met.__cause__

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position. Returns the new one. Raises ValueError, OSError."""
        try:
            return self._file.seek(offset, whence)
        except BaseException as error:
            met = self._opener.note(error)
            raise met from met.__cause__

    def tell(self) -> int:
        """Return the position (bytes)."""
        return self._file.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file; its pages stay cached."""
        if not self.closed:
            self._file.close()
        super().close()


class PageCacheOpener(MultiByteRangeResourceContainer):
    """What `rasterio.open(path, opener=...)` takes: objects of one cache, by path.

    cache: a `PageCache`. open_store: makes the store (or local path) of a path; raises FileNotFoundError, at the latest
    when the store is asked for its size, if there is none. siblings: whether GDAL may look for side files (`.ovr`,
    `.aux.xml`, `.msk`, world files), a request each; without, only paths that were opened exist.

    Objects are looked up once and taken for immutable until `invalidate`.
    Context: GDAL calls from any thread, with the GIL.
    """

    def __init__(self, cache: PageCache, open_store: Callable[[str], Any], *, siblings: bool = False):
        self.last_error: BaseException | None = None
        self._guards: dict[int, list[BaseException]] = {}
        self._objects = Objects(cache, open_store, keeps_absence=self._is_beside)
        self._siblings = siblings
        self._opened: set[str] = set()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """A context manager that raises, at its end, the first error that opening or reading met meanwhile, in any thread.

        Raises OSError, in place of what rasterio raised.
        """
        met: list[BaseException] = []
        self._guards[id(met)] = met
        try:
            yield
        except Exception as error:
            if met:
                raise met[0] from error
            raise
        finally:
            del self._guards[id(met)]
        if met:
            raise met[0]

    def note(self, error: BaseException) -> BaseException:
        """Remember what a read met, for the guards. Returns what was met first.

        What a read raises stays pending in the thread, and GDAL 3.12 asks again: Python takes whatever is called then for
        an error of its own (SystemError), whose cause is the one that counts.
        """
        while isinstance(error, SystemError) and error.__cause__ is not None:
            error = error.__cause__
        self.last_error = error
        for met in list(self._guards.values()):
            met.append(error)
        return error

    def open(self, path: str, mode: str = "r", **kwds: Any) -> Resource:
        """Open a path for reading. Raises OSError."""
        if mode not in ("r", "rb"):
            raise OSError(30, f"mode {mode!r}: {READ_ONLY}", path)
        if not self._siblings and path.lower().endswith(SIDE_FILES):
            raise FileNotFoundError(2, "siblings are not looked for", path)
        try:
            file = self._objects.open(path)
        except FileNotFoundError:
            raise
        except BaseException as error:
            self.note(error)
            raise
        self._opened.add(path)
        return Resource(self, file)

    def _is_beside(self, path: str) -> bool:
        """Whether a path may be a side file of what was opened, which GDAL asks for again and again, or is made up."""
        stems = (posixpath.splitext(opened)[0] for opened in tuple(self._opened) if opened != path)
        return path in MADE_UP or any(path.startswith(stem) for stem in stems)

    def isfile(self, path: str) -> bool:
        """Whether there is such an object: one that was opened, or, with siblings, any."""
        return path in self._opened or (self._siblings and self._objects.exists(path))

    def _check_worth(self, path: str) -> None:
        """Raise FileNotFoundError for what need not be looked up: rasterio asks for "test", GDAL for siblings."""
        if not self._siblings and path not in self._opened:
            raise FileNotFoundError(2, "not opened, and siblings are not looked for", path)

    def isdir(self, path: str) -> bool:
        """Whether an object that was opened is below this path."""
        return any(opened.startswith(path.rstrip("/") + "/") for opened in self._opened)

    def ls(self, path: str) -> list[str]:
        """Return the names of the objects in a directory that were opened."""
        directory = path.rstrip("/")
        return sorted(posixpath.basename(opened) for opened in self._opened if posixpath.dirname(opened) == directory)

    def mtime(self, path: str) -> int:
        """Return when the object was last modified, or first seen (seconds): the same whenever it is asked."""
        self._check_worth(path)
        return self._objects.modified_s(path)

    def size(self, path: str) -> int:
        """Return the size of an object (bytes). Raises FileNotFoundError, OSError."""
        self._check_worth(path)
        return self._objects.size(path)

    def rm(self, path: str) -> None:
        """Raise OSError."""
        raise OSError(30, READ_ONLY, path)

    def invalidate(self, path: str | None = None) -> None:
        """Look an object (None: all of them) up anew when it is opened next."""
        self._objects.invalidate(path)

    def close(self) -> None:
        """Close what is kept open."""
        self._objects.close()
