"""A directory, or the objects of a URL, mounted through a cache (FUSE): any program reads and writes through it.

    from pagecache.adapters.fuse import mount

    mount("/srv/data", "/mnt/data", cache=pagecache.PageCache("1GiB"))

`library` finds mfusepy and libfuse, `session` is one mount, `directory` serves a directory with `files`, `fallocation` and
`unlinked` and `linked`, `objects` the objects of an fsspec file system with `object_files`.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from pagecache.cache import PageCache
from pagecache.default import default_cache

__all__ = ["mount"]

ENDED = (7, 8)  # what libfuse returns when a mount that was served ends by a signal, or is aborted


def mount(
    source: str,
    mountpoint: str,
    *,
    cache: PageCache | None = None,
    kernel_cache: bool = False,
    read_only: bool = False,
    allow_other: bool = False,
    ready: Callable[[], None] | None = None,
    xattrs: dict[str, bytes] | None = None,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Mount a source, and serve it until it is unmounted (fusermount3 -u, SIGINT, SIGTERM, SIGHUP).

    source: a directory, or a URL that fsspec knows. mountpoint: an empty directory outside the source. cache: whose pages
    are used, the default one if not given; it stays open, written back. kernel_cache: let the kernel keep pages too,
    which makes shared maps possible. read_only: refuse changes. allow_other: let other users in, as permissions say.
    ready: called when the mount is there. xattrs: extended attributes to show on its root. storage_options: for the file
    system of a URL. options: `direct`, `recheck`, `on_change` as for `PageCache.open`; `write_back` for a URL: see docs.
    Raises ImportError with what to install, OSError.
    Context: blocks the calling thread, which must be the main one for the signals to be heard.
    """
    from pagecache.adapters.fuse.session import Session, caller

    cache = default_cache() if cache is None else cache
    _check_mountpoint(source, mountpoint)
    if "://" in source and not source.startswith("file://"):
        from pagecache.adapters.fuse.objects import ObjectOperations

        operations: Any = ObjectOperations(
            cache, source, storage_options or {}, kernel_cache=kernel_cache, ready=ready, **options
        )
        read_only = read_only or not operations.can_write
    else:
        from pagecache.adapters.fuse.directory import DirectoryOperations

        operations = DirectoryOperations(
            cache, source.removeprefix("file://"), kernel_cache=kernel_cache,
            caller=caller if allow_other and os.geteuid() == 0 else None, ready=ready, **options,
        )  # fmt: skip
    operations.virtual_xattrs.update(xattrs or {})
    fuse_options: dict[str, Any] = {"fsname": source.replace(",", "%2c"), "subtype": "pagecache"}
    fuse_options["default_permissions"] = True
    if allow_other:
        fuse_options["allow_other"] = True
    if read_only:
        fuse_options["ro"] = True
    try:
        Session(operations, mountpoint, **fuse_options)
    except RuntimeError as error:
        if error.args[0] in ENDED:
            return
        reason = f"cannot mount {source}: libfuse ended with {error}, and says why on standard error"
        raise OSError(errno.EIO, reason, mountpoint) from error
    finally:
        operations.finish()
        cache.sync()


def _check_mountpoint(source: str, mountpoint: str) -> None:
    """Refuse what libfuse would refuse less clearly, or what would wait for itself."""
    if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), mountpoint)
    if "://" in source:
        return
    inner, outer = os.path.realpath(mountpoint), os.path.realpath(source)
    if os.path.commonpath([inner, outer]) == outer:
        raise OSError(errno.EINVAL, f"the mount point must be outside of its source {source}", mountpoint)
