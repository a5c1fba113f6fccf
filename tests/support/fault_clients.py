"""Ways to read remote objects with one library each, with and without a cache: what a matrix of faults goes over.

A client reads what `versions` has made: two versions of the same objects, of the same sizes. `Client(server, cache)` reads
through the cache, `Client(server, None)` as the library does without one.
"""

import contextlib
import itertools
import shutil
import sqlite3
import zipfile

import fsspec
import numpy
import pytest

import pagecache
from pagecache.adapters.fsspec import PageCacheFileSystem
from pagecache.stores.fsspec import store_of_url
from support import PAGE, pages_of
from support.faulty_http import changed

ROWS = 24_000
SIDE = 256
SIZE = 6 * PAGE + 1234
RANGES = [(5 * PAGE + 3, 100), (0, 2 * PAGE), (PAGE, SIZE - PAGE)]


class Client:
    """One way to read. path: what the requests contain that are meant. errors: what a read may raise."""

    name: str
    errors: tuple[type[BaseException], ...] = (OSError,)
    looks_anew = False  # after a change it has to be made again
    is_opened_by_library = False  # which asks for the size without the cache

    def __init__(self, server, cache):
        self.server, self.cache = server, cache
        self.closing = contextlib.ExitStack()

    @property
    def path(self):
        return self.name

    @classmethod
    def versions(cls, directory):
        """Return both versions: dicts of names and bytes."""
        raise NotImplementedError

    def prepare(self, when):
        """Get to where a kind of request is made next."""

    def read(self):
        """Open the object and read all of it. Returns what the library makes of it."""
        raise NotImplementedError

    def is_right(self, found, versions):
        """Whether what was read is one of what there is to read."""
        return found in versions

    def look_again(self):
        """Say that the object may be another one, where that has to be said."""

    def close(self):
        self.closing.close()

    def plain_http(self):
        """Return a file system with connections of its own."""
        return fsspec.filesystem("http", skip_instance_cache=True, use_listings_cache=False)


# -- bytes -----------------------------------------------------------------------------------------------------------


class Bytes(Client):
    name = "object"

    @classmethod
    def versions(cls, directory):
        return [{cls.name: pages_of(SIZE)}, {cls.name: changed(pages_of(SIZE))}]

    def __init__(self, server, cache):
        aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, aiohttp.ClientError, ValueError)
        self.http = self.plain_http()

    def open(self):
        """Return an open file."""
        raise NotImplementedError

    def read(self):
        parts = []
        with self.open() if self.cache else self.http.open(self.server.url(self.name)) as file:
            for offset, nbytes in RANGES:
                file.seek(offset)
                parts.append(file.read(nbytes))
        return parts


class OpenUrl(Bytes):
    """`cache.open(url)`."""

    options = {}

    def open(self):
        return self.cache.open(self.server.url(self.name), **self.options)


class OpenUrlLooking(OpenUrl):
    options = {"recheck": True}


class OpenUrlReloading(OpenUrl):
    options = {"recheck": True, "on_change": "reload"}

    def is_right(self, found, versions):
        """Each call is of one version."""
        return all(part in each for part, *each in zip(found, *versions, strict=True))


class Chained(Bytes):
    """`pagecache::http://...`."""

    def __init__(self, server, cache):
        super().__init__(server, cache)
        self.fs = PageCacheFileSystem(fs=self.http, skip_instance_cache=True)

    def open(self):
        with pagecache.using(self.cache):
            return self.fs.open(self.server.url(self.name))


class CacheType(Bytes):
    """`http.open(url, cache_type="pagecache")`."""

    is_opened_by_library = True

    def open(self):
        with pagecache.using(self.cache):
            return self.http.open(self.server.url(self.name), cache_type="pagecache", block_size=PAGE)


class Obspec(Bytes):
    """`cache.open(ObspecStore(store, key))`."""

    def __init__(self, server, cache):
        obstore = pytest.importorskip("obstore", reason="obstore is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, ValueError, obstore.exceptions.BaseError)
        self.store = obstore_of(server)

    def read(self):
        if self.cache is None:
            size = self.store.head(self.name)["size"]
            return [bytes(self.store.get_range(self.name, start=at, end=min(size, at + n))) for at, n in RANGES]
        return super().read()

    def open(self):
        return self.cache.open(pagecache.ObspecStore(self.store, self.name))


def obstore_of(server):
    """Return obstore's client of a server, which tries nothing again."""
    import obstore

    client = {"allow_http": True, "timeout": "20s"}
    return obstore.store.HTTPStore.from_url(server.url(""), client_options=client, retry_config={"max_retries": 0})


# -- tables, images, databases -----------------------------------------------------------------------------------------


class Duck(Client):
    name = "rows.parquet"

    @classmethod
    def versions(cls, directory):
        duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
        made = []
        for number in range(2):
            with duckdb.connect() as connection:
                path = directory / f"{number}.parquet"
                rows = f"SELECT {number * ROWS} + range AS id, {number}::TINYINT AS version FROM range({ROWS})"
                connection.execute(f"COPY ({rows}) TO '{path}' (ROW_GROUP_SIZE 4096, COMPRESSION uncompressed)")
            made.append({cls.name: path.read_bytes()})
        return made

    def __init__(self, server, cache):
        import duckdb

        super().__init__(server, cache)
        self.connection = self.closing.enter_context(duckdb.connect(config={"threads": 4}))
        self.errors = (duckdb.Error, OSError)

    def query(self, name):
        query = f"SELECT count(*), sum(id)::BIGINT, min(version), max(version) FROM '{name}'"
        return self.connection.execute(query).fetchall()


class DuckAdapter(Duck):
    def __init__(self, server, cache):
        from pagecache.adapters.duckdb import register

        super().__init__(server, cache)
        if cache is None:
            self.connection.register_filesystem(self.plain_http())
        else:
            self.files = register(self.connection, cache, lambda path: store_of_url(server.url(path)))
            self.closing.callback(self.files.close)

    def read(self):
        return self.query(f"pagecache://{self.name}" if self.cache else self.server.url(self.name))

    def look_again(self):
        if self.cache:
            self.files.invalidate_cache()


class DuckRegistered(Duck):
    options = {}

    def __init__(self, server, cache):
        super().__init__(server, cache)
        fs = self.plain_http()
        if cache:
            self.closing.enter_context(pagecache.using(cache))
            fs = PageCacheFileSystem(fs=fs, skip_instance_cache=True, **self.options)
        self.connection.register_filesystem(fs)

    def read(self):
        return self.query(("pagecache://" if self.cache else "") + self.server.url(self.name))


class DuckReloading(DuckRegistered):
    options = {"recheck": True, "on_change": "reload"}


class Rasterio(Client):
    name = "image.tif"

    @classmethod
    def versions(cls, directory):
        rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
        numpy = pytest.importorskip("numpy")
        made = []
        for number in range(2):
            path = directory / f"{number}.tif"
            with rasterio.open(path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16", tiled=True,
                               blockxsize=64, blockysize=64, crs="EPSG:3857",
                               transform=rasterio.transform.from_origin(0, 0, 1, 1)) as raster:  # fmt: skip
                raster.write(numpy.arange(SIDE * SIDE, dtype="uint16").reshape(1, SIDE, SIDE) ^ (number << 15))
            made.append({cls.name: path.read_bytes()})
        return made

    def __init__(self, server, cache):
        import rasterio

        from pagecache.adapters.rasterio import PageCacheOpener

        super().__init__(server, cache)
        aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        self.errors = (OSError, rasterio.errors.RasterioError, aiohttp.ClientError)
        if cache is None:
            self.http = self.plain_http()
        else:
            self.opener = PageCacheOpener(cache, lambda path: store_of_url(server.url(path)))
            self.closing.callback(self.opener.close)

    def read(self):
        import rasterio

        if self.cache is None:
            with self.http.open(self.server.url(self.name)) as file, rasterio.open(file) as raster:
                return raster.read(1).tobytes()
        with self.opener.guard(), rasterio.open(self.name, opener=self.opener, sharing=False) as raster:
            return raster.read(1).tobytes()

    def look_again(self):
        if self.cache:
            self.opener.invalidate()


class Arrow(Client):
    name = "rows.parquet"
    versions = Duck.versions

    def __init__(self, server, cache):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, pyarrow.ArrowException, aiohttp.ClientError)
        self.http = self.plain_http()

    def read(self):
        import pyarrow.parquet as pq

        url = self.server.url(self.name)
        with self.cache.open(url) if self.cache else self.http.open(url) as file:
            table = pq.read_table(file, pre_buffer=False)
        return table["id"].to_numpy().tobytes(), table["version"].to_numpy().tobytes()


class Sqlite(Client):
    name = "rows.db"

    @classmethod
    def versions(cls, directory):
        pytest.importorskip("apsw", reason="apsw is not installed")
        made = []
        for number in range(2):
            path = directory / f"{number}.db"
            with contextlib.closing(sqlite3.connect(path)) as plain, plain:
                plain.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
                plain.executemany("INSERT INTO t VALUES(?, ?)", ((n, f"{number}{n:08}" * 20) for n in range(2000)))
            made.append({cls.name: path.read_bytes()})
        return made

    def __init__(self, server, cache):
        import apsw

        aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, apsw.Error, sqlite3.Error, aiohttp.ClientError)
        self.http = self.plain_http()

    def read(self):
        """Without a cache there is nothing but to get all of it."""
        from pagecache.adapters.sqlite import connect

        if self.cache is None:
            with contextlib.closing(sqlite3.connect(":memory:")) as db:
                db.deserialize(self.http.cat_file(self.server.url(self.name)))
                return db.execute("SELECT * FROM t").fetchall()
        with contextlib.closing(connect(self.server.url(self.name), self.cache)) as db:
            return db.execute("SELECT * FROM t").fetchall()


# -- arrays ------------------------------------------------------------------------------------------------------------

OLD = numpy.arange(64 * 64, dtype="i4").reshape(64, 64)
FILL = -7
PART = (slice(8, 16), slice(8, 24))
SHAPES = {"sharded": {"shards": (32, 32), "chunks": (8, 8)}, "plain": {"chunks": (32, 32)}}


class Arrays(Client):
    """A part of an array in Zarr's format 3, `sharded` or not."""

    name = "a"
    layout = "plain"
    looks_anew = True

    @property
    def path(self):
        return f"{self.name}/c/0/0"

    @classmethod
    def tree(cls, directory):
        """Write both versions as directories; returns their names."""
        zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 is not installed")
        roots = []
        for number in range(2):
            root = directory / f"{number}"
            options = {"shape": OLD.shape, "dtype": "i4", "compressors": None, "fill_value": FILL} | SHAPES[cls.layout]
            group = zarr.open_group(zarr.storage.LocalStore(root), mode="w")
            group.create_array(cls.name, **options)[...] = OLD + number * 100_000
            roots.append(root)
        return roots

    @classmethod
    def versions(cls, directory):
        return [{str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
                for root in cls.tree(directory)]  # fmt: skip

    def __init__(self, server, cache):
        aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        obstore = pytest.importorskip("obstore", reason="obstore is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, ValueError, TypeError, zipfile.BadZipFile, aiohttp.ClientError)
        self.errors += (obstore.exceptions.BaseError, ExceptionGroup)
        self.look_again()

    def source(self):
        """Return the store that is wrapped."""
        raise NotImplementedError

    def look_again(self):
        from pagecache.adapters.zarr import PageCacheStore

        store = self.source()
        self.store = store if self.cache is None else PageCacheStore(store, self.cache)
        self.array = self.opened()

    def prepare(self, when):
        """The size of a value is asked for where some of it is cached, and another store has read it."""
        if when == "size" and self.cache is not None:
            self.read()
            self.look_again()

    def opened(self):
        import zarr

        return zarr.open_array(self.store, path=self.name, mode="r")

    def read(self):
        found = self.array[PART]
        return "fill" if (found == FILL).all() else found.tobytes()


class FsspecPlain(Arrays):
    def source(self):
        import zarr

        return zarr.storage.FsspecStore.from_url(self.server.url("").rstrip("/"), read_only=True)


class FsspecSharded(FsspecPlain):
    layout = "sharded"


class ObjectPlain(Arrays):
    def source(self):
        import zarr

        return zarr.storage.ObjectStore(obstore_of(self.server), read_only=True)


class ObjectSharded(ObjectPlain):
    layout = "sharded"


class LocalPlain(Arrays):
    """Of files: `server` is a directory, whose files have the faults that files can have."""

    def source(self):
        import zarr

        return zarr.storage.LocalStore(self.server.root)


class LocalSharded(LocalPlain):
    layout = "sharded"


class ZipPlain(Arrays):
    """Of an archive that is opened anew for each read."""

    def source(self):
        import zarr

        return zarr.storage.ZipStore(self.server.pack())

    def read(self):
        self.closing.close()
        self.look_again()
        self.closing.callback(self.store.close)
        return super().read()


class ZipSharded(ZipPlain):
    layout = "sharded"


class Files:
    """Objects as files of a directory, or as an archive, in place of a server."""

    FAULTS = ("404", "403", "500", "too short", "too long", "changed")

    def __init__(self, root):
        self.root = root / "tree"
        self.archive = root / "tree.zip"
        self.struck = []
        self.objects, self.next_objects, self._numbers = {}, {}, itertools.count()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        shutil.rmtree(self.root, ignore_errors=True)

    def put_all(self, objects):
        """Have these objects."""
        self.objects = objects
        for name, data in objects.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_bytes(data)

    def fail(self, fault, when, *, path):
        """Damage the file of a path, or the archive, for which these faults are a file's."""
        self.struck.append(fault)
        file = self.root / path
        data = file.read_bytes()
        if fault == "changed":
            self.put_all(self.next_objects)
            return
        file.unlink()
        if fault in ("403", "500"):  # cannot be opened, and cannot be read
            file.symlink_to(file.name if fault == "403" else "/proc/self/mem")
        elif fault != "404":
            file.write_bytes(data[: len(data) // 2] if fault == "too short" else data + bytes(1 + len(data) // 16))

    def heal(self):
        """Have what there was, or what there is now."""
        self.put_all(self.objects)

    def pack(self):
        """Return the archive of the files as they are; a file that cannot be read is a damaged member."""
        bad = []
        with zipfile.ZipFile(self.archive, "w") as packed:
            for file in sorted(self.root.rglob("*")):
                if file.is_symlink():
                    bad.append(str(file.relative_to(self.root)))
                    packed.writestr(bad[-1], b"\0" * 4096)
                elif file.is_file():
                    packed.write(file, file.relative_to(self.root))
        with zipfile.ZipFile(self.archive) as packed, open(self.archive, "r+b") as raw:
            for name in bad:
                raw.seek(packed.getinfo(name).header_offset)
                raw.write(b"\xff")
        return self.archive


CLIENTS = {
    "cache.open(url)": OpenUrl,
    "cache.open(url, recheck=True)": OpenUrlLooking,
    "cache.open(url, on_change='reload')": OpenUrlReloading,
    "pagecache::": Chained,
    "cache_type=": CacheType,
    "ObspecStore": Obspec,
    "PageCacheStore(FsspecStore)": FsspecPlain,
    "PageCacheStore(FsspecStore), sharded": FsspecSharded,
    "PageCacheStore(ObjectStore)": ObjectPlain,
    "PageCacheStore(ObjectStore), sharded": ObjectSharded,
    "PageCacheStore(LocalStore)": LocalPlain,
    "PageCacheStore(LocalStore), sharded": LocalSharded,
    "PageCacheStore(ZipStore)": ZipPlain,
    "PageCacheStore(ZipStore), sharded": ZipSharded,
    "Arrow": Arrow,
    "DuckDB": DuckAdapter,
    "DuckDB, pagecache://": DuckRegistered,
    "DuckDB, reload": DuckReloading,
    "rasterio": Rasterio,
    "SQLite": Sqlite,
}
