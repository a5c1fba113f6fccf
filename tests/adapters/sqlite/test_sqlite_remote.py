"""A database on a web server: read at once, from few requests, of one version."""

import sqlite3

import pytest
from support.http_server import ObjectServer

apsw = pytest.importorskip("apsw")
pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

from pagecache.adapters.sqlite.database import DenseLocality  # noqa: E402

ROWS = 20_000


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The bytes of a database of 10 MiB."""
    path = tmp_path_factory.mktemp("remote") / "data.db"
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA synchronous=OFF")
        plain.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
        plain.executemany("INSERT INTO t VALUES(?, ?)", ((n, f"{n:08}" * 60) for n in range(ROWS)))
    plain.close()
    return path.read_bytes()


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


def test_point_queries_fetch_little(database, server, connect, make_cache, rng):
    url = server.put("data.db", database)
    db = connect(url, make_cache("4MiB"))  # it does not fit in: just what is asked for
    assert db.readonly("main")
    for number in rng.sample(range(ROWS), 20):
        assert db.execute("SELECT b FROM t WHERE id = ?", (number,)).fetchall() == [(f"{number:08}" * 60,)]
    assert server.count("GET") < 100
    assert server.bytes_sent() < len(database) // 4
    with pytest.raises(apsw.ReadOnlyError):
        db.execute("DELETE FROM t")


def test_the_neighbourhood_of_a_miss_is_read_where_the_database_fits_in(database, server, connect, make_cache):
    url, caches = server.put("data.db", database), [make_cache("4MiB"), make_cache("32MiB")]
    for cache, fits in zip(caches, (False, True), strict=True):
        db = connect(url, cache)
        (file,) = cache._files
        assert isinstance(file.mapping.backing.locality, DenseLocality) == fits
        assert db.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == [(ROWS, ROWS * 480)]
    server.forget()
    assert db.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == [(ROWS, ROWS * 480)]
    assert server.count() == 0


def test_a_database_in_log_mode_can_be_read(database, server, connect, make_cache):
    in_log_mode = bytearray(database)
    in_log_mode[18] = in_log_mode[19] = 2
    db = connect(server.put("data.db", bytes(in_log_mode)), make_cache("32MiB"))
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]


def test_one_that_is_replaced_is_never_mixed(database, server, connect, make_cache):
    cache = make_cache("4MiB")
    db = connect(server.put("data.db", database), cache)
    assert db.execute("SELECT b FROM t WHERE id = 1").fetchall() == [("00000001" * 60,)]
    server.put("data.db", database.replace(b"00019000", b"changed!"))
    with pytest.raises(apsw.IOError, match=r"was replaced|changed while") as caught:
        db.execute("SELECT b FROM t WHERE id = 19000").fetchall()
    assert caught.value.extendedresult == apsw.SQLITE_IOERR_READ
    again = connect(server.url("data.db"), cache)
    assert again.execute("SELECT b FROM t WHERE id = 19000").fetchall() == [("changed!" * 60,)]


def test_failures_of_the_server_are_reported_and_overcome(database, server, connect, make_cache):
    db = connect(server.put("data.db", database), make_cache("4MiB"))
    server.fail_next(50, 500)
    with pytest.raises(apsw.IOError):
        db.execute("SELECT b FROM t WHERE id = 17000").fetchall()
    server.fail_next(0)
    server._failures.clear()
    assert db.execute("SELECT b FROM t WHERE id = 17000").fetchall() == [("00017000" * 60,)]
    with pytest.raises(FileNotFoundError):
        connect(server.url("missing.db"), make_cache("1MiB"))
