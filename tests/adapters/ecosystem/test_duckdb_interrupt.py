"""DuckDB's interrupt while a read hangs: the query ends, and the pages are there for the next one."""

import errno
import io
import threading

import pytest
from support import PATIENCE_S, Crew, assert_nothing_is_held
from support.http_server import ObjectServer

duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

import pagecache  # noqa: E402
from pagecache.adapters.duckdb import register  # noqa: E402
from pagecache.stores.fsspec import store_of_url  # noqa: E402

ROWS = 100_000
QUERY = "SELECT sum(id) FROM 'pagecache://table.parquet'"
RIGHT = [(sum(range(ROWS)),)]


class HangingServer(ObjectServer):
    """The first range that is asked for once it is armed never comes, until the end of the test."""

    armed = was_waited_for = False

    def __init__(self):
        self.entered, self.end = threading.Event(), threading.Event()
        super().__init__()

    def alter(self, answer):
        if answer.is_range_request and self.armed and not self.entered.is_set():
            self.entered.set()
            self.was_waited_for = not self.end.wait(PATIENCE_S)
        super().alter(answer)


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "table.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT range AS id FROM range({ROWS})) TO '{path}' (ROW_GROUP_SIZE 10000)")
    with HangingServer() as running:
        running.put("table.parquet", path.read_bytes())
        yield running
        running.end.set()


def by_fsspec(server):
    return lambda path: store_of_url(server.url(path))


def by_obstore(server):
    stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
    store = stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})
    return lambda path: pagecache.ObspecStore(store, path)


@pytest.mark.parametrize("opener", [by_fsspec, by_obstore])
def test_ends_the_reads_of_the_query(make_cache, server, opener):
    cache = make_cache("16MiB")
    with duckdb.connect() as connection:
        files = register(connection, cache, opener(server))
        assert files.info("table.parquet")["size"]
        server.armed = True
        crew = Crew(
            lambda: connection.execute(QUERY).fetchall(),
            lambda: server.entered.wait(PATIENCE_S) and files.interrupt(connection),
        )
        error = crew.join()[0]
        assert isinstance(error, duckdb.InterruptException | OSError | duckdb.Error), error
        assert connection.execute(QUERY).fetchall() == RIGHT  # nothing waits for what hangs
        assert not server.was_waited_for
        assert not server.end.is_set()
        server.end.set()
        assert connection.execute(QUERY).fetchall() == RIGHT
        files.close()
    assert_nothing_is_held(cache)


def test_a_read_that_is_interrupted_is_an_error(make_cache, server):
    cache = make_cache("16MiB")
    with duckdb.connect() as connection:
        files = register(connection, cache, by_fsspec(server))
        with files.open("table.parquet") as file:
            server.armed = True
            crew = Crew(lambda: file.read(100), lambda: server.entered.wait(PATIENCE_S) and files.interrupt(connection))
            error = crew.join()[0]
            assert isinstance(error, InterruptedError)
            assert error.errno == errno.EINTR
            file.seek(0)
            assert io.BytesIO(file.read(4)).read() == b"PAR1"
        files.close()
    assert_nothing_is_held(cache)
