"""The ways to read an object of an fsspec file system through the cache, for tests that go through all of them."""

from typing import Any

import pagecache
from support import PAGE

WAYS = ("open", "cat_file", "cat_ranges", "cat", "two parts", "cache_type", "store")


def read(way: str, target: Any, path: str, **options: Any) -> bytes:
    """Read an object whole, in one of the ways, with options of the call."""
    from pagecache.adapters.fsspec import PageCacheFileSystem
    from pagecache.stores.fsspec import FsspecStore

    if way == "store":
        with pagecache.default_cache().open(FsspecStore(target, path, options=options)) as file:
            return file.read()
    if way == "cache_type":
        with target.open(path, cache_type="pagecache", **({"block_size": PAGE} | options)) as file:
            return b"".join(iter(lambda: file.read(7 * PAGE), b""))  # at once it would go past the cache
    system = PageCacheFileSystem(fs=target)
    if way == "open":
        with system.open(path, **options) as file:
            return file.read()
    if way == "cat_ranges":
        return b"".join(system.cat_ranges([path] * 2, [0, 5], [5, None], on_error="raise", **options))
    if way == "cat":
        return system.cat([path], **options)[system._strip_protocol(path)]
    if way == "two parts":
        return system.cat_file(path, 0, 5, **options) + system.cat_file(path, 5, **options)
    return system.cat_file(path, **options)
