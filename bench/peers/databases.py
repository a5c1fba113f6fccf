"""Databases in the process, with the blocks of the file under their numbers."""

from typing import Any

from .peer import BlockPeer, Data

KEY_BYTES = 8


class Database(BlockPeer):
    """Keys are bytes, made beforehand: making them is not what is measured."""

    kind = "cache"
    get = "get(keys[number])"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.keys = [number.to_bytes(KEY_BYTES, "big") for number in range(data.nbytes // self.block_bytes)]

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the lookup, the keys and what joins blocks."""
        return {**super().names(nbytes), "keys": self.keys}

    def touch(self) -> None:
        """Read everything once."""
        get: Any = self.getter()
        for key in self.keys:
            get(key)


class Lmdb(Database):
    """A B+ tree in a mapped file; each thread has a read transaction."""

    name = "lmdb get"
    modules = ("lmdb",)
    buffers = False

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import lmdb

        path = data.directory / f"lmdb-{self.buffers}"
        self.environment = lmdb.open(str(path), map_size=4 * data.nbytes + (1 << 20), sync=False)
        with self.environment.begin(write=True) as transaction:
            for number, block in data.blocks(self.block_bytes):
                transaction.put(self.keys[number], block, append=True)
        self.transactions: list[Any] = []
        self.touch()

    def getter(self) -> object:
        """Begin a transaction and return its lookup."""
        transaction = self.environment.begin(buffers=self.buffers)
        self.transactions.append(transaction)
        return transaction.get

    def close(self) -> None:
        """End the transactions and close the database."""
        for transaction in self.transactions:
            transaction.abort()
        self.environment.close()


class LmdbBuffers(Lmdb):
    """The same without copies."""

    name = "lmdb get, buffers=True"
    buffers = True


class RocksDict(Database):
    """RocksDB with everything in its block cache, uncompressed."""

    name = "rocksdict, LRU block cache"
    modules = ("rocksdict",)

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import rocksdict

        tables = rocksdict.BlockBasedOptions()
        tables.set_block_size(self.block_bytes)
        tables.set_cache_index_and_filter_blocks(True)
        self.block_cache = self.make_cache(rocksdict, 4 * data.nbytes + (8 << 20))
        tables.set_block_cache(self.block_cache)
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_block_based_table_factory(tables)
        self.database = rocksdict.Rdict(str(data.directory / type(self).__name__), options)
        for number, block in data.blocks(self.block_bytes):
            self.database.put(self.keys[number], block)
        self.database.flush()
        self.database.compact_range(None, None)
        self.touch()

    def make_cache(self, rocksdict: Any, nbytes: int) -> Any:
        """Return a block cache."""
        return rocksdict.Cache(nbytes)

    def getter(self) -> object:
        """Return the lookup."""
        return self.database.get

    def close(self) -> None:
        """Close the database."""
        self.database.close()


class RocksDictHyperClock(RocksDict):
    """The same with the lock-free cache."""

    name = "rocksdict, HyperClockCache"

    def make_cache(self, rocksdict: Any, nbytes: int) -> Any:
        """Return a block cache."""
        return rocksdict.Cache.new_hyper_clock_cache(nbytes, self.block_bytes + 400)


class DiskCache(BlockPeer):
    """SQLite and files; the file of the database is mapped."""

    name = "diskcache.Cache"
    kind = "cache"
    modules = ("diskcache",)

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        import diskcache

        self.cache = diskcache.Cache(
            str(data.directory / "diskcache"),
            size_limit=16 * data.nbytes,
            disk_min_file_size=1 << 20,
            sqlite_mmap_size=4 * data.nbytes,
            statistics=0,
            eviction_policy="none",
        )
        with self.cache.transact():
            for number, block in data.blocks(self.block_bytes):
                self.cache.set(number, block)
        for number in range(data.nbytes // self.block_bytes):
            self.cache.get(number)

    def getter(self) -> object:
        """Return the lookup."""
        return self.cache.get

    def close(self) -> None:
        """Close the database."""
        self.cache.close()


PEERS = (Lmdb, LmdbBuffers, RocksDict, RocksDictHyperClock, DiskCache)
