"""What a connection may be opened on, and what is said of what it may not."""

import contextlib
import os
import sqlite3
import tempfile

import pytest

import pagecache

apsw = pytest.importorskip("apsw")

from pagecache.adapters.sqlite import VFS  # noqa: E402


def make_plain(path, rows=10):
    """Make a database with SQLite's own VFS."""
    with sqlite3.connect(path) as plain:
        plain.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        plain.executemany("INSERT INTO t VALUES(?, ?)", ((n, "x" * 1000) for n in range(rows)))
    plain.close()


@contextlib.contextmanager
def unprivileged_reader(directory, unprivileged):
    """Make a database that all may read; within the block this process may do no more."""
    path = os.path.join(directory, "data.db")
    make_plain(path)
    os.chmod(directory, 0o755)
    os.chmod(path, 0o444)
    with unprivileged():
        yield path


def test_relative_names_links_and_file_uris(tmp_path, connect, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_plain("data.db")
    os.symlink("data.db", "link.db")
    for name in ("data.db", "link.db", f"file://{tmp_path}/data.db"):
        assert connect(name).execute("SELECT count(*) FROM t").fetchall() == [(10,)]
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    db = connect("file:link.db?mode=ro", flags=flags)
    with pytest.raises(apsw.ReadOnlyError):
        db.execute("DELETE FROM t")
    db = connect("link.db")
    db.execute("PRAGMA journal_mode=PERSIST; DELETE FROM t WHERE a = 1").fetchall()
    assert os.path.exists("data.db-journal")
    assert not os.path.exists("link.db-journal")


def test_uri_without_locks(tmp_path, connect):
    make_plain(tmp_path / "data.db")
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    db = connect(f"file:{tmp_path}/data.db?nolock=1", flags=flags)
    db.execute("INSERT INTO t VALUES(100, 'y')")
    assert db.execute("SELECT b FROM t WHERE a = 100").fetchall() == [("y",)]
    db.close()
    db = connect(f"file:{tmp_path}/data.db?immutable=1", flags=flags)
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(11,)]
    with sqlite3.connect(tmp_path / "data.db") as plain:
        assert plain.execute("SELECT count(*) FROM t").fetchall() == [(11,)]
    plain.close()


def test_a_missing_file_is_made_only_if_that_is_asked_for(tmp_path, connect):
    with pytest.raises(apsw.CantOpenError, match=r"missing\.db"):
        connect(tmp_path / "missing.db", flags=apsw.SQLITE_OPEN_READWRITE)
    with pytest.raises(apsw.CantOpenError, match=r"missing/data\.db"):
        connect(tmp_path / "missing" / "data.db")
    with pytest.raises(apsw.CantOpenError, match="directory"):
        connect(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_may_not_be_written_is_read(connect, unprivileged):
    with tempfile.TemporaryDirectory() as directory, unprivileged_reader(directory, unprivileged) as path:
        db = connect(path)
        assert db.execute("SELECT count(*) FROM t").fetchall() == [(10,)]
        assert db.readonly("main")
        with pytest.raises(apsw.ReadOnlyError):
            db.execute("DELETE FROM t")


def test_a_file_that_was_moved_away_is_not_written(tmp_path, connect):
    path = tmp_path / "data.db"
    make_plain(path)
    db = connect(path)
    db.execute("INSERT INTO t VALUES(100, 'y')")
    os.rename(path, tmp_path / "other.db")
    with pytest.raises(apsw.ReadOnlyError) as caught:
        db.execute("INSERT INTO t VALUES(101, 'y')")
    assert caught.value.extendedresult == apsw.SQLITE_READONLY_DBMOVED


def test_stores_by_name_with_a_vfs_of_ones_own(make_cache):
    made = []

    def make_object(name):
        made.append(name)
        return pagecache.MemoryStore()

    vfs = VFS(make_cache("1MiB"), name="mine", make_object=make_object)
    store = pagecache.MemoryStore()
    assert vfs.add(store, "ledger") == vfs.add(store, "ledger") == "store:ledger"
    with pytest.raises(ValueError, match="another store is named"):
        vfs.add(pagecache.MemoryStore(), "ledger")
    assert "mine" in apsw.vfs_names()
    db = apsw.Connection("store:ledger", vfs="mine")
    db.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1); ATTACH 'store:other' AS other; CREATE TABLE other.t(a)")
    assert set(made) == {"store:ledger-journal", "store:other", "store:other-journal"}
    assert not vfs.xAccess("store:ledger-journal", apsw.SQLITE_ACCESS_EXISTS)
    db.close()
    with pytest.raises(apsw.CantOpenError, match="no store has this name"):
        apsw.Connection("store:nobody", flags=apsw.SQLITE_OPEN_READWRITE, vfs="mine")
    vfs.unregister()


def test_a_store_that_cannot_be_written_is_read(tmp_path, connect):
    path = tmp_path / "data.db"
    make_plain(path, rows=500)

    class ReadOnly:
        key = "read-only"
        data = path.read_bytes()

        def size(self):
            return len(self.data)

        def validator(self):
            return "1"

        def readv(self, offset, buffers):
            done = 0
            for buffer in buffers:
                piece = self.data[offset + done : offset + done + len(buffer)]
                buffer[: len(piece)] = piece
                done += len(piece)
            return done

        def close(self):
            pass

    db = connect(ReadOnly())
    assert db.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == [(500, 500_000)]
    with pytest.raises(apsw.ReadOnlyError):
        db.execute("DELETE FROM t")


def test_the_name_of_the_vfs_and_options_without_a_url(tmp_path, connect):
    db = connect(tmp_path / "data.db")
    db.execute("CREATE TABLE t(a)")
    assert db.execute("PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t VALUES(1)").fetchall()
    assert db.vfsname("main").startswith("pagecache.adapters.sqlite")
    with pytest.raises(TypeError, match="are for URLs"):
        connect(tmp_path / "data.db", anon=True)


def test_wrong_urls_are_reported_at_once(connect):
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="cannot open nonsense"):
        connect("nonsense://x/y")
    with pytest.raises(FileNotFoundError):
        connect("memory://missing.db")


def test_nothing_is_held_afterwards(tmp_path, make_cache):
    from support import nr_descriptors

    from pagecache.adapters.sqlite import connect

    cache = make_cache("1MiB")
    connect(str(tmp_path / "first.db"), cache).close()
    before = nr_descriptors()
    for number in range(5):
        connections = [connect(str(tmp_path / "data.db"), cache) for _ in range(3)]
        connections[0].execute("CREATE TABLE IF NOT EXISTS t(a)")
        for connection in connections:
            connection.execute("INSERT INTO t VALUES(?)", (number,))
            connection.close()
    assert nr_descriptors() <= before


def test_connections_are_closed_with_their_last_reference(tmp_path, make_cache):
    import gc

    from pagecache.adapters.sqlite import connect

    cache = pagecache.PageCache("1MiB")
    db = connect(str(tmp_path / "data.db"), cache)
    db.execute("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
    del db
    gc.collect()
    cache.check()
    cache.close()
    with sqlite3.connect(tmp_path / "data.db") as plain:
        assert plain.execute("SELECT * FROM t").fetchall() == [(1,)]
    plain.close()
