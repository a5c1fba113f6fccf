"""From what a user opens - a path, a URL, a store - to a store."""

import errno
import os
from collections.abc import Mapping
from typing import Any

from pagecache.files.modes import Name
from pagecache.options import OF_OPEN, unknown_option
from pagecache.stores.base import BackingStore, is_writable
from pagecache.stores.file import FileStore


def store_of(
    source: Name | BackingStore,
    mode: str,
    *,
    direct: bool,
    recheck: bool | str | float | None,
    storage_options: Mapping[str, Any],
) -> BackingStore:
    """Return the store that a source leads to. Arguments and errors are those of `PageCache.open`."""
    if isinstance(source, str) and "://" in source:
        if not source.startswith("file://"):
            return _store_of_url(source, mode, recheck, storage_options)
        source = source[len("file://") :]
    if storage_options:
        raise unknown_option(min(storage_options), OF_OPEN, "PageCache.open", "options of file systems are for URLs")
    if isinstance(source, (str, bytes, os.PathLike)):
        return FileStore(source, mode, direct=direct, empties=False)
    missing = [name for name in ("key", "size", "validator", "readv", "close") if not hasattr(source, name)]
    if missing:
        raise TypeError(f"{type(source).__name__} is neither a path nor a store: it lacks {', '.join(missing)}")
    if mode != "rb" and not is_writable(source):
        reason = "it is open for reading only" if hasattr(source, "writev") else "it has no writev"
        raise OSError(errno.EROFS, f"store {source.key!r} cannot be written: {reason}", str(source.key))
    return source


def _store_of_url(
    url: str, mode: str, recheck: bool | str | float | None, storage_options: Mapping[str, Any]
) -> BackingStore:
    from pagecache.stores.fsspec import store_of_url

    if url.startswith(":"):
        raise ValueError(f"cannot open {url}: give a path, a URL or a store")
    if mode != "rb":
        raise OSError(errno.EROFS, "URLs are opened for reading: use mode 'rb'", url)
    return store_of_url(url, recheck="open" if recheck is None else recheck, **storage_options)
