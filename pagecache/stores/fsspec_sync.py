"""How a range of an object is read from a file system of fsspec that has no coroutines.

Each kind of file system has `info` and `read`; `read` says whether the answer proves that the bytes are of the version
asked for.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from pagecache.stores.call_options import check_taken, takes
from pagecache.stores.destination import Destination
from pagecache.stores.validators import Version


class SyncRanges:
    """File systems without coroutines. remote: whether they are not of this machine."""

    conditional = False

    def __init__(self, remote: bool = True):
        self.remote = remote

    def check_options(self, store: Any) -> None:
        """Check that the requests of an object take the options of its store. Raises TypeError."""
        fs = store.template
        read, name = (fs.cat_file, "cat_file") if self._reads_ranges(store) else (fs._open, "open")
        check_taken(read, store.options, f"{type(fs).__name__}.{name}")
        check_taken(fs.info, store.options, f"{type(fs).__name__}.info")

    def info(self, store: Any) -> dict[str, Any]:
        """Return what the file system says about the object now."""
        fs, path = store.fs, store.path
        return fs.info(path, **fresh_options(fs, fs.info, path), **store.options)

    @staticmethod
    def _reads_ranges(store: Any) -> bool:
        """Whether `cat_file` is the file system's own, not one that opens a file with readahead, and takes the options."""
        from fsspec import AbstractFileSystem

        fs = store.template
        return type(fs).cat_file is not AbstractFileSystem.cat_file and takes(fs.cat_file, store.options)

    def read(self, store: Any, version: Version, start: int, destination: Destination) -> bool:
        """Fill the destination from byte `start`; whether the bytes are known to be of this version."""
        end = start + destination.wanted
        if self._reads_ranges(store):
            destination.put(store.fs.cat_file(store.path, start=start, end=end, **store.options))
            return False
        with _open_unbuffered(store.fs, store.path, store.options) as file:
            file.seek(start)
            while not destination.full:
                data = file.read(min(destination.wanted - destination.done, store.max_request))
                if not data:
                    break
                destination.put(data)
        return False


def fresh_options(fs: Any, function: Any, path: str) -> dict[str, Any]:
    """Return the arguments that keep `info` from answering out of the file system's listings."""
    if "refresh" in inspect.signature(function).parameters:
        return {"refresh": True}
    if getattr(fs, "dircache", None):
        fs.invalidate_cache(path)
    return {}


def _open_unbuffered(fs: Any, path: str, options: Mapping[str, Any]) -> Any:
    try:
        return fs.open(path, "rb", cache_type="none", **options)
    except TypeError:  # files that are no AbstractBufferedFile take no cache_type
        return fs.open(path, "rb", **options)
