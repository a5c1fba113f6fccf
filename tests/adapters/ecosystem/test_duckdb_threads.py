"""DuckDB's threads on one handle: sums are right however the file system is registered, whichever thread goes first."""

import threading

import pytest

duckdb = pytest.importorskip("duckdb")
fsspec = pytest.importorskip("fsspec")
from fsspec.implementations.dirfs import DirFileSystem  # noqa: E402

import pagecache  # noqa: E402
import pagecache.adapters.fsspec  # noqa: E402
from pagecache.adapters.duckdb import register  # noqa: E402
from pagecache.files.file import File  # noqa: E402
from pagecache.files.recorded import RecordedFile  # noqa: E402
from pagecache.files.versioned import VersionedFile  # noqa: E402

ROWS = 100_000
NR_QUERIES = 3
SUM = f"SELECT sum(id)::BIGINT, count(*), count(DISTINCT noise) FROM {{}} WHERE id < {ROWS}"
RIGHT = [(ROWS * (ROWS - 1) // 2, ROWS, ROWS)]
RECHECKS = {
    "open": {},
    "recheck=60": {"recheck": 60},
    "recheck=True": {"recheck": True},
    "reload": {"recheck": True, "on_change": "reload"},
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Names and bytes of a Parquet file of many row groups, and of a CSV file of many buffers."""
    directory = tmp_path_factory.mktemp("tables")
    with duckdb.connect() as connection:
        rows = f"SELECT range AS id, hash(range) AS noise FROM range({ROWS})"
        connection.execute(f"COPY ({rows}) TO '{directory}/rows.parquet' (ROW_GROUP_SIZE 4096)")
        connection.execute(f"COPY ({rows}) TO '{directory}/rows.csv'")
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def memory(tables):
    """fsspec's file system in memory, with the tables in it."""
    fs = fsspec.filesystem("memory")
    for name, data in tables.items():
        fs.pipe_file(f"/tables/{name}", data)
    yield fs
    fs.rm("/tables", recursive=True)


@pytest.fixture
def connection():
    with duckdb.connect(config={"threads": 8}) as opened:
        yield opened


@pytest.fixture
def another_seeks_first(monkeypatch):
    """Between a thread's seek and its read another thread seeks, if one wants to."""
    sought = threading.Event()
    by = []

    def planted(kind):
        read, seek = kind.read, kind.seek

        def slow_read(self, *arguments):
            if by[-1:] == [threading.get_ident()]:
                sought.clear()
                sought.wait(0.002)
            return read(self, *arguments)

        def told_seek(self, *arguments):
            result = seek(self, *arguments)
            by.append(threading.get_ident())
            sought.set()
            return result

        monkeypatch.setattr(kind, "read", slow_read)
        monkeypatch.setattr(kind, "seek", told_seek)

    for kind in (File, VersionedFile):
        planted(kind)
    return by


def assert_right(connection, name):
    source = f"read_csv('{name}', buffer_size=2100000)" if name.endswith(".csv") else f"'{name}'"
    query = SUM.format(source)
    for _ in range(NR_QUERIES):
        assert connection.execute(query).fetchall() == RIGHT


@pytest.mark.parametrize("recheck", RECHECKS)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_a_registered_file_system_of_fsspec(connection, memory, make_cache, another_seeks_first, name, recheck):
    fs = fsspec.filesystem("pagecache", fs=memory, skip_instance_cache=True, **RECHECKS[recheck])
    connection.register_filesystem(fs)
    with pagecache.using(make_cache("16MiB")):
        assert_right(connection, f"pagecache://tables/{name}")
    if name.endswith("parquet"):
        assert len(set(another_seeks_first)) > 1  # else nothing was tried


@pytest.mark.parametrize("recheck", RECHECKS)
def test_one_below_another_name(connection, memory, make_cache, another_seeks_first, recheck):
    fs = fsspec.filesystem("pagecache", fs=memory, skip_instance_cache=True, **RECHECKS[recheck])
    below = DirFileSystem(path="/tables", fs=fs, skip_instance_cache=True)
    below.modified = lambda path: fs.modified(f"/tables/{path.removeprefix('dir://')}")
    below._strip_protocol = lambda path: path.removeprefix("dir://").lstrip("/")
    connection.register_filesystem(below)
    with pagecache.using(make_cache("16MiB")):
        assert_right(connection, "dir://rows.parquet")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_the_adapter(connection, make_cache, tables, another_seeks_first, name):
    files = register(connection, make_cache("16MiB"), lambda path: pagecache.MemoryStore(tables[path]))
    assert_right(connection, f"pagecache://{name}")
    files.close()


def test_while_accesses_are_recorded(connection, make_cache, tables, tmp_path, another_seeks_first):
    cache = make_cache("16MiB")
    with cache.record(tmp_path / "trace.npy"):
        files = register(connection, cache, lambda path: pagecache.MemoryStore(tables[path]))
        assert_right(connection, "pagecache://rows.parquet")
        assert isinstance(files.open("rows.parquet"), RecordedFile)
        files.close()


def test_a_cache_of_few_frames(connection, memory, make_cache, another_seeks_first):
    fs = fsspec.filesystem("pagecache", fs=memory, skip_instance_cache=True, recheck=60)
    connection.register_filesystem(fs)
    for frames in (1, 2, 3, 64):
        with pagecache.using(make_cache(frames * 4096)):
            assert_right(connection, "pagecache://tables/rows.parquet")
