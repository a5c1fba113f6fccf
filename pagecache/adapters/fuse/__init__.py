"""A directory, or the objects of a URL, mounted through a cache (FUSE): any program reads and writes through it.

    from pagecache.adapters.fuse import mount

    mount("/srv/data", "/mnt/data", cache=pagecache.PageCache("1GiB"))

From the kernel to the cache: `mounting` puts the mount in its place, `session` reads requests and `answers` tells them
apart, by the structures of `protocol`.  `directory` serves a directory: `nodes` and `beneath` find its files, `credentials`
says with whose rights, `entries` lists, `files` are the open ones, over the descriptors of `stores`, with `fallocation`.
`objects` serves the objects of an fsspec file system, with `object_files`.  What needs nothing but an open file is answered
by the engine (`handles`).
"""

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pagecache.cache import PageCache
from pagecache.default import default_cache
from pagecache.options import check_options

__all__ = ["mount"]

COUNTS = b"user.pagecache.requests"  # extended attribute of a mount's root: where its requests were answered
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
logger = logging.getLogger("pagecache.fuse")


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

    source: a directory, or a URL that fsspec knows. mountpoint: a directory that is neither in the source nor above it;
    what is in it is hidden. cache: whose pages are used, the default one if not given; it stays open, written back.
    kernel_cache: let the kernel keep pages too. read_only: refuse changes. allow_other: let other users in, as permissions
    say. ready: called when the mount is there. xattrs: extended attributes to show on its root. storage_options: for the
    file system of a URL. options: `direct`, `recheck`, `on_change` as for `PageCache.open`; `write_back` for a URL: see
    docs. Raises ImportError with what to install, OSError, TypeError for another option.
    Context: blocks the calling thread, which must be the main one for the signals to be heard.
    """
    from pagecache.adapters.fuse import mounting
    from pagecache.adapters.fuse.handles import counts_text
    from pagecache.adapters.fuse.protocol import Init
    from pagecache.adapters.fuse.session import Session

    cache = default_cache() if cache is None else cache
    is_url = "://" in source and not source.startswith("file://")
    check_options(options, ("recheck", "on_change", "write_back" if is_url else "direct"), "mount")
    mounting.check(mountpoint, None if is_url else source.removeprefix("file://"))
    operations: Any
    if is_url:
        from pagecache.adapters.fuse.objects import ObjectOperations

        operations = ObjectOperations(
            cache, source, storage_options or {}, kernel_cache=kernel_cache, mountpoint=mountpoint, **options
        )
    else:
        from pagecache.adapters.fuse.directory import DirectoryOperations

        serves_others = allow_other and os.geteuid() == 0
        operations = DirectoryOperations(
            cache, source.removeprefix("file://"), kernel_cache=kernel_cache, serves_others=serves_others, **options
        )
    for name, value in (xattrs or {}).items():
        operations.virtual_xattrs[os.fsencode(name)] = functools.partial(bytes, value)
    operations.virtual_xattrs[COUNTS] = lambda: counts_text(operations.files.handles)
    read_only = read_only or not operations.can_write
    try:
        place = mounting.Mountpoint(
            mountpoint, source, subtype="pagecache", read_only=read_only, allow_other=allow_other
        )
        session = Session(operations, place.fd)
        try:
            session.start()
            if not kernel_cache and not session.allowed & Init.DIRECT_IO_ALLOW_MMAP:
                logger.warning("files of %s cannot be mapped shared: this kernel (before Linux 6.6) allows it only with"
                               " kernel_cache (--kernel-cache)", mountpoint)  # fmt: skip
            with _signals(session.wake):
                if ready is not None:
                    ready()
                session.wait()
        finally:
            place.unmount()
            session.end()
    finally:
        try:
            operations.finish()
        finally:  # an object that could not be put keeps nothing else from being written
            cache.sync()


@contextlib.contextmanager
def _signals(wake: Callable[..., None]) -> Iterator[None]:
    """Within the block the signals that end a mount call a function, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, wake) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
