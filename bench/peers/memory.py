"""Caches of Python objects in memory, filled with the blocks of the file."""

import functools
import os
import threading
from typing import Any

from .peer import BlockPeer, Data


class LruCache(BlockPeer):
    """The standard library's decorator around os.pread."""

    name = "functools.lru_cache"
    kind = "cache"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.descriptor = os.open(data.path, os.O_RDONLY)
        nr_blocks = data.nbytes // self.block_bytes

        @functools.lru_cache(maxsize=nr_blocks)
        def get(number: int) -> bytes:
            return os.pread(self.descriptor, self.block_bytes, number * self.block_bytes)

        self.cached = get
        for number in range(nr_blocks):
            get(number)

    def getter(self) -> object:
        """Return the decorated function."""
        return self.cached

    def close(self) -> None:
        """Empty the cache."""
        self.cached.cache_clear()
        os.close(self.descriptor)


class LruCacheOfLargeBlocks(LruCache):
    """The same with blocks as fsspec chooses them."""

    name = "functools.lru_cache, 64 KiB blocks"
    block_bytes = 65536


class Mapping(BlockPeer):
    """A cache with the interface of a mapping."""

    kind = "cache"
    cache: Any

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.cache = self.make(data.nbytes // self.block_bytes)
        for number, block in data.blocks(self.block_bytes):
            self.cache[number] = block

    def make(self, nr_blocks: int) -> Any:
        """Return an empty cache of that many blocks."""
        raise NotImplementedError

    def getter(self) -> object:
        """Return the lookup."""
        return self.cache.__getitem__

    def close(self) -> None:
        """Empty the cache."""
        self.cache.clear()


class Cachetools(Mapping):
    """cachetools as it is: for one thread only."""

    name = "cachetools.LRUCache, no lock"
    modules = ("cachetools",)

    def make(self, nr_blocks: int) -> Any:
        """Return an empty cache of that many blocks."""
        import cachetools

        return cachetools.LRUCache(nr_blocks)


class CachetoolsLocked(Cachetools):
    """cachetools as threads must use it."""

    name = "cachetools.LRUCache and a lock"

    def getter(self) -> object:
        """Return the lookup with the lock held."""
        lock, cache = threading.Lock(), self.cache

        def get(number: int) -> bytes:
            with lock:
                return cache[number]

        return get


class Cachebox(Mapping):
    """A cache written in Rust."""

    name = "cachebox.LRUCache"
    modules = ("cachebox",)

    def make(self, nr_blocks: int) -> Any:
        """Return an empty cache of that many blocks."""
        import cachebox

        return cachebox.LRUCache(nr_blocks)


class Theine(BlockPeer):
    """W-TinyLFU; larger than the file, for it admits by frequency and would turn blocks away."""

    name = "theine.Cache"
    kind = "cache"
    modules = ("theine",)
    get = "get(number)[0]"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import theine

        self.cache = theine.Cache(2 * data.nbytes // self.block_bytes)
        for number, block in data.blocks(self.block_bytes):
            self.cache.set(number, block)
        lost = sum(self.cache.get(number)[0] is None for number in range(data.nbytes // self.block_bytes))
        if lost:
            raise ValueError(f"theine did not keep {lost} blocks")

    def getter(self) -> object:
        """Return the lookup."""
        return self.cache.get

    def close(self) -> None:
        """Empty the cache and end its thread."""
        self.cache.clear()
        self.cache.close()


PEERS = (LruCache, LruCacheOfLargeBlocks, Cachetools, CachetoolsLocked, Cachebox, Theine)
