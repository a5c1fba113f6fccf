"""The caches of fsspec's buffered files, with the whole file in them."""

import os
from typing import Any

from .peer import Data, Peer

STEP_BYTES = 1 << 20


class FsspecCache(Peer):
    """One of fsspec.caching; the method called is the one its files call."""

    kind = "cache"
    modules = ("fsspec.caching",)
    cache_class = ""
    block_bytes = 65536

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import fsspec.caching

        self.descriptor = os.open(data.path, os.O_RDONLY)
        self.fetched_bytes = 0
        self.cache = getattr(fsspec.caching, self.cache_class)(fetcher=self.fetch, size=data.nbytes, **self.options())
        self.fill()

    def options(self) -> dict[str, Any]:
        """Return the cache's other arguments."""
        return {"blocksize": self.block_bytes, "maxblocks": self.data.nbytes // self.block_bytes + 1}

    def fetch(self, start: int, end: int) -> bytes:
        """Read the file."""
        self.fetched_bytes += end - start
        return os.pread(self.descriptor, end - start, start)

    def fill(self) -> None:
        """Read the file through the cache in order."""
        step = min(STEP_BYTES, self.data.nbytes)
        for start in range(0, self.data.nbytes, step):
            self.cache._fetch(start, start + step)

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the call."""
        return ("fetch(offset, offset + nbytes)",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the cache's method."""
        return {"fetch": self.cache._fetch}

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


class BlockCache(FsspecCache):
    """Blocks in an lru_cache."""

    name = "fsspec blockcache, 64 KiB blocks"
    cache_class = "BlockCache"


class BlockCacheOfPages(BlockCache):
    """The same with blocks of a page."""

    name = "fsspec blockcache, 4 KiB blocks"
    block_bytes = 4096


class BackgroundBlockCache(FsspecCache):
    """Blocks in an lru_cache; the next one is fetched by a thread."""

    name = "fsspec background, 64 KiB blocks"
    cache_class = "BackgroundBlockCache"


class MMapCache(FsspecCache):
    """Blocks in a temporary file that is mapped."""

    name = "fsspec mmap"
    cache_class = "MMapCache"

    def options(self) -> dict[str, Any]:
        """Return the cache's other arguments."""
        return {"blocksize": self.block_bytes}


class WholeFile(FsspecCache):
    """A cache of one range of bytes, which is all of the file here: no lookup at all."""

    def options(self) -> dict[str, Any]:
        """Return the cache's other arguments."""
        return {"blocksize": self.data.nbytes}

    def fill(self) -> None:
        """Read the file at once."""
        self.cache._fetch(0, self.data.nbytes)


class BytesCache(WholeFile):
    """One range."""

    name = "fsspec bytes, whole file"
    cache_class = "BytesCache"


class ReadAheadCache(WholeFile):
    """One range."""

    name = "fsspec readahead, whole file"
    cache_class = "ReadAheadCache"


PEERS = (BlockCache, BlockCacheOfPages, BackgroundBlockCache, MMapCache, BytesCache, ReadAheadCache)
