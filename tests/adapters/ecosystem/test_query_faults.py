"""What query engines get of a server with faults: an error, never wrong data; right data as soon as the server is well."""

import contextlib
import itertools
import sqlite3

import pytest
from support.faulty_http import FAULTS, MATRIX, FaultyServer

import pagecache

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem
from pagecache.stores.fsspec import store_of_url

ROWS = 24_000
SIDE = 256
ABSENT = ("no such file", "not found", "no files found", "does not exist", "no such object")


class Rows:
    """A way to read an object, which has two versions of one size, with one library."""

    name: str

    def __init__(self, server, cache):
        self.server, self.cache = server, cache
        self.closing = contextlib.ExitStack()

    @classmethod
    def versions(cls, directory):
        """Return the bytes of both versions."""
        raise NotImplementedError

    def read(self):
        """Open the object and read all of it. Returns what the library makes of it."""
        raise NotImplementedError

    def look_again(self):
        """Say that the object may be another one, where that has to be said."""

    def close(self):
        self.closing.close()


class Duck(Rows):
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
            made.append(path.read_bytes())
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
        self.files = register(self.connection, cache, lambda path: store_of_url(server.url(path)))
        self.closing.callback(self.files.close)

    def read(self):
        return self.query(f"pagecache://{self.name}")

    def look_again(self):
        self.files.invalidate_cache()


class DuckRegistered(Duck):
    options = {}

    def __init__(self, server, cache):
        super().__init__(server, cache)
        self.closing.enter_context(pagecache.using(cache))
        fs = PageCacheFileSystem(target_protocol="http", skip_instance_cache=True, **self.options)
        self.connection.register_filesystem(fs)

    def read(self):
        return self.query(f"pagecache://{self.server.url(self.name)}")


class DuckReloading(DuckRegistered):
    options = {"recheck": True, "on_change": "reload"}


class Rasterio(Rows):
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
            made.append(path.read_bytes())
        return made

    def __init__(self, server, cache):
        import rasterio

        from pagecache.adapters.rasterio import PageCacheOpener

        super().__init__(server, cache)
        self.opener = PageCacheOpener(cache, lambda path: store_of_url(server.url(path)))
        self.closing.callback(self.opener.close)
        self.errors = (OSError, rasterio.errors.RasterioError)

    def read(self):
        import rasterio

        with self.opener.guard(), rasterio.open(self.name, opener=self.opener, sharing=False) as raster:
            return raster.read(1).tobytes()

    def look_again(self):
        self.opener.invalidate()


class Arrow(Rows):
    name = "rows.parquet"
    versions = Duck.versions

    def __init__(self, server, cache):
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        super().__init__(server, cache)
        self.errors = (OSError, pyarrow.ArrowException)

    def read(self):
        import pyarrow.parquet as pq

        with self.cache.open(self.server.url(self.name)) as file:
            table = pq.read_table(file, pre_buffer=False)
        return table["id"].to_numpy().tobytes(), table["version"].to_numpy().tobytes()


class Sqlite(Rows):
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
            made.append(path.read_bytes())
        return made

    def __init__(self, server, cache):
        import apsw

        super().__init__(server, cache)
        self.errors = (OSError, apsw.Error)

    def read(self):
        from pagecache.adapters.sqlite import connect

        with contextlib.closing(connect(self.server.url(self.name), self.cache)) as db:
            return db.execute("SELECT * FROM t").fetchall()


KINDS = {
    "DuckDB": DuckAdapter,
    "DuckDB, pagecache::http": DuckRegistered,
    "DuckDB, reload": DuckReloading,
    "rasterio": Rasterio,
    "Arrow": Arrow,
    "SQLite": Sqlite,
}


LATER = [(fault, "second range") for fault in FAULTS]
CASES = [
    (kind, fault, when)
    for kind in KINDS
    for fault, when in [*MATRIX, *LATER]
    if kind != "DuckDB, reload" or fault in ("503", "cut in body", "changed")  # which differs in what a change does
]


class Server(FaultyServer):
    """A faulty server whose objects change into others that their libraries can read."""

    def __init__(self):
        self.next_data = {}
        super().__init__()

    def _make(self, fault, answer):
        if fault != "changed":
            super()._make(fault, answer)
            return
        name = answer.path.partition("?")[0].lstrip("/")
        self.put(name, self.next_data[name])
        self.answer_again(answer)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: both versions of what a kind reads, and what is read of each, from a server without faults."""
    known = {}

    def of(kind):
        if kind not in known:
            versions = KINDS[kind].versions(tmp_path_factory.mktemp("versions"))
            assert len(versions[0]) == len(versions[1])
            seen = []
            with pagecache.PageCache("8MiB") as cache, Server() as server:
                for data in versions:
                    server.put(KINDS[kind].name, data)
                    rows = KINDS[kind](server, cache)
                    seen.append(rows.read())
                    rows.close()
            assert seen[0] != seen[1]
            known[kind] = (versions, seen)
        return known[kind]

    return of


@pytest.fixture
def server():
    """A server of its own for each test: what a server answers to HEAD is remembered of it."""
    with Server() as running:
        yield running


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "fault", "when"), CASES)
def test_an_error_never_wrong_data_and_right_data_afterwards(made, server, make_cache, kind, fault, when):
    (first, second), (right, right_later) = made(kind)
    name = KINDS[kind].name
    server.put(name, first)
    server.next_data[name] = second
    rows = KINDS[kind](server, make_cache("8MiB"))
    numbers = itertools.count(1)
    is_second = lambda answer: answer.is_range_request and next(numbers) == 2  # noqa: E731
    server.fail(fault, is_second if when == "second range" else when)
    try:
        found = rows.read()
    except rows.errors as error:
        assert server.struck, f"there was no fault, but {error!r}"
        found = error
    assert server.struck == [fault]
    has_changed = "changed" in server.struck
    if not isinstance(found, Exception):
        assert found == right or (has_changed and found == right_later)
    elif fault != "404":
        assert not isinstance(found, FileNotFoundError)
        assert not any(words in str(found).lower() for words in ABSENT), found
    server.heal()
    if has_changed:
        rows.look_again()
    wanted = right_later if has_changed else right
    assert rows.read() == wanted
    assert rows.read() == wanted
    rows.close()
