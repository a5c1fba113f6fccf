"""DuckDB on cached files: a registered file system, real Parquet and CSV, many threads."""

import pytest
from support import Crew
from support.http_objects import HttpStore

duckdb = pytest.importorskip("duckdb")
pytest.importorskip("fsspec")

import pagecache  # noqa: E402
from pagecache.adapters.duckdb import register  # noqa: E402

ROWS = 200_000


@pytest.fixture
def objects(server, tmp_path):
    """Two Parquet files and a CSV file, made by DuckDB, on the server."""
    with duckdb.connect() as connection:
        for number in range(2):
            rows = f"range({number * ROWS}, {(number + 1) * ROWS})"
            query = f"SELECT range AS id, id % 7 AS kind, hash(id) AS noise FROM {rows}"
            connection.execute(f"COPY ({query}) TO '{tmp_path}/{number}.parquet' (ROW_GROUP_SIZE 20000)")
        connection.execute(f"COPY (SELECT range AS id, range * 2 AS twice FROM range(5000)) TO '{tmp_path}/rows.csv'")
    server.put_tree(tmp_path, "data")
    return server


@pytest.fixture
def connection(objects, cache):
    def glob(pattern):
        return ["data/0.parquet", "data/1.parquet"] if pattern == "data/*.parquet" else [pattern]

    with duckdb.connect() as opened:
        files = register(opened, cache, lambda path: HttpStore(objects.url(path)), glob=glob)
        yield opened
    files.close()


def test_one_query_twice_and_the_second_time_asks_for_nothing(connection, cache, objects):
    query = "SELECT kind, sum(id) FROM 'pagecache://data/0.parquet' GROUP BY kind ORDER BY kind"
    wanted = [(kind, sum(range(kind, ROWS, 7))) for kind in range(7)]
    for _ in range(2):
        objects.counts.take()
        assert connection.sql(query).fetchall() == wanted
        cache.check()  # waits for readahead
    assert objects.counts.take() == (0, 0)


def test_several_files(connection):
    found = connection.sql("SELECT count(*), min(id), max(id) FROM read_parquet('pagecache://data/*.parquet')").fetchall()
    assert found == [(2 * ROWS, 0, 2 * ROWS - 1)]


def test_csv(connection):
    assert connection.sql("SELECT sum(twice) FROM 'pagecache://data/rows.csv'").fetchall() == [(4999 * 5000,)]


def test_threads_with_a_cursor_each(connection):
    def query(kind):
        with connection.cursor() as cursor:
            found = cursor.execute("SELECT count(*) FROM 'pagecache://data/1.parquet' WHERE kind = ?", [kind]).fetchall()
        return found[0][0]

    assert sum(Crew(*[lambda kind=kind: query(kind) for kind in range(7)]).join_well()) == ROWS


def test_a_cache_smaller_than_the_file(objects, make_cache):
    with duckdb.connect() as connection:
        files = register(connection, make_cache("256KiB"), lambda path: HttpStore(objects.url(path)), protocol="small")
        assert connection.sql("SELECT sum(id), max(noise) IS NULL FROM 'small://data/0.parquet'").fetchall() == [
            (ROWS * (ROWS - 1) // 2, False)
        ]
    files.close()


def test_an_object_that_does_not_exist(connection):
    with pytest.raises(duckdb.Error, match=r"none.parquet"):
        connection.sql("SELECT * FROM 'pagecache://data/none.parquet'")


def test_a_request_that_fails_is_an_error_and_the_next_query_is_right(objects, cache):
    class Failing(HttpStore):
        fails = False

        def readv(self, offset, buffers):
            if Failing.fails:
                raise OSError(5, "planned")
            return super().readv(offset, buffers)

    with duckdb.connect() as connection:
        files = register(connection, cache, lambda path: Failing(objects.url(path)))
        assert connection.sql("SELECT count(*) FROM 'pagecache://data/0.parquet'").fetchall() == [(ROWS,)]
        Failing.fails = True
        with pytest.raises((duckdb.Error, OSError), match="planned"):
            connection.sql("SELECT sum(noise::DOUBLE) FROM 'pagecache://data/0.parquet'").fetchall()
        Failing.fails = False
        assert connection.sql("SELECT sum(id) FROM 'pagecache://data/0.parquet'").fetchall() == [(ROWS * (ROWS - 1) // 2,)]
    files.close()


def test_a_replaced_object_is_read_anew_when_invalidated(objects, cache, tmp_path):
    with duckdb.connect() as connection:
        files = register(connection, cache, lambda path: HttpStore(objects.url(path)))
        query = "SELECT min(id) FROM 'pagecache://data/0.parquet'"
        assert connection.sql(query).fetchall() == [(0,)]
        objects.put("data/0.parquet", objects.get("data/1.parquet"))
        files.invalidate_cache("pagecache://data/0.parquet")
        assert connection.sql(query).fetchall() == [(ROWS,)]
    files.close()


def test_bytes_are_held_once(objects, cache):
    """DuckDB 1.3 to 1.5 would keep them again; its setting is only touched there, and not if that is wanted."""
    for wanted in (False, True):
        with duckdb.connect() as connection:
            pending = connection.execute("SELECT range FROM range(3)")
            files = register(connection, cache, lambda path: HttpStore(objects.url(path)), external_file_cache=wanted)
            assert pending.fetchall() == [(0,), (1,), (2,)]
            connection.sql("SELECT sum(noise::DOUBLE) FROM 'pagecache://data/0.parquet'").fetchall()
            try:
                held = connection.sql("SELECT count(*) FROM duckdb_external_file_cache()").fetchall()[0][0]
            except duckdb.CatalogException:
                pytest.skip("this DuckDB has no such cache")
            [(setting,)] = connection.sql("SELECT current_setting('enable_external_file_cache')").fetchall()
            keeps = duckdb.__version__.startswith("1.")
            assert (held > 0, setting) == (keeps and wanted, wanted or not keeps)
        files.close()


def test_a_locked_configuration_is_no_hindrance(objects, cache):
    with duckdb.connect() as connection:
        connection.execute("SET lock_configuration = true")
        if duckdb.__version__.startswith("1."):
            with pytest.warns(RuntimeWarning, match="once more"):
                files = register(connection, cache, lambda path: HttpStore(objects.url(path)))
        else:
            files = register(connection, cache, lambda path: HttpStore(objects.url(path)))
        assert connection.sql("SELECT count(*) FROM 'pagecache://data/0.parquet'").fetchall() == [(ROWS,)]
    files.close()


def test_a_missing_object_is_looked_for_again(connection, objects):
    for _ in range(2):
        with pytest.raises(duckdb.Error, match=r"late.parquet"):
            connection.sql("SELECT * FROM 'pagecache://data/late.parquet'")
    objects.put("data/late.parquet", objects.get("data/0.parquet"))
    assert connection.sql("SELECT count(*) FROM 'pagecache://data/late.parquet'").fetchall() == [(ROWS,)]


@pytest.mark.parametrize("options", [{}, {"recheck": True}, {"recheck": 60}])
def test_fsspecs_http_that_cannot_say_when_a_file_was_modified(objects, cache, options):
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    fs = fsspec.filesystem("pagecache", target_protocol="http", skip_instance_cache=True, **options)
    with duckdb.connect() as connection, pagecache.using(cache):
        connection.register_filesystem(fs)
        query = f"SELECT count(*), sum(id)::BIGINT FROM 'pagecache://{objects.url('data/0.parquet')}'"
        for _ in range(2):
            assert connection.sql(query).fetchall() == [(ROWS, ROWS * (ROWS - 1) // 2)]


def test_writing_is_refused(connection):
    with pytest.raises((duckdb.Error, OSError), match="read through the cache"):
        connection.execute("COPY (SELECT 1) TO 'pagecache://data/new.parquet'")
