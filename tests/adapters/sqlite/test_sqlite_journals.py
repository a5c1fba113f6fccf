"""Every journal mode, on files and on stores in memory: commits, rollbacks, savepoints, VACUUM, and what is left behind."""

import os
import sqlite3

import pytest

import pagecache

apsw = pytest.importorskip("apsw")

MODES = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"]


def set_mode(db, mode):
    """Choose a journal mode; a write-ahead log needs the file for itself."""
    if mode == "WAL":
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    assert db.execute(f"PRAGMA journal_mode={mode}").fetchall() == [(mode.lower(),)]


def check(db):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.fixture(params=["file", "memory"])
def source(request, tmp_path):
    """A database that is not there yet: a path, or a store in memory."""
    return str(tmp_path / "data.db") if request.param == "file" else pagecache.MemoryStore()


@pytest.mark.parametrize("mode", MODES)
def test_work_and_what_is_left(mode, source, connect, tmp_path):
    db = connect(source)
    set_mode(db, mode)
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    with db:
        db.executemany("INSERT INTO t VALUES(?, ?)", ((n, "x" * (n * 7 % 3000)) for n in range(300)))
    if mode != "OFF":
        with pytest.raises(ZeroDivisionError), db:
            db.execute("UPDATE t SET b = 'lost'")
            db.execute("SAVEPOINT one; DELETE FROM t WHERE a % 2; ROLLBACK TO one; RELEASE one")
            raise ZeroDivisionError
        with db:
            db.execute("SAVEPOINT two; DELETE FROM t; ROLLBACK TO two; RELEASE two")
    with db:
        db.execute("SAVEPOINT one; DELETE FROM t WHERE a >= 200; RELEASE one")
    db.execute("VACUUM")
    check(db)
    expected = [(n, "x" * (n * 7 % 3000)) for n in range(200)]
    assert db.execute("SELECT a, b FROM t ORDER BY a").fetchall() == expected
    db.close()
    if isinstance(source, str):
        left = sorted(os.listdir(tmp_path))
        assert left == (["data.db", "data.db-journal"] if mode in ("TRUNCATE", "PERSIST") else ["data.db"])
        with sqlite3.connect(source) as plain:
            assert plain.execute("SELECT a, b FROM t ORDER BY a").fetchall() == expected
        plain.close()
    again = connect(source)
    set_mode(again, mode)
    assert again.execute("SELECT a, b FROM t ORDER BY a").fetchall() == expected


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_page_sizes(page_size, mode, source, connect, make_cache):
    cache = make_cache("1MiB")
    db = connect(source, cache)
    db.execute(f"PRAGMA page_size={page_size}")
    set_mode(db, mode)
    db.execute("PRAGMA cache_size=4; PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    with db:
        db.executemany("INSERT INTO t VALUES(?, zeroblob(?))", ((n, n * 11 % 9000) for n in range(400)))
    with db:
        db.execute("DELETE FROM t WHERE a % 3 = 0")
    db.execute("PRAGMA incremental_vacuum; VACUUM")
    check(db)
    assert db.execute("PRAGMA page_size").fetchall() == [(page_size,)]
    db.close()
    cache.drop_caches()
    db = connect(source, cache)
    assert db.execute("PRAGMA locking_mode=EXCLUSIVE; SELECT count(*), sum(length(b)) FROM t").fetchall()[-1] == (
        266, sum(n * 11 % 9000 for n in range(400) if n % 3))  # fmt: skip
    check(db)


def test_a_page_of_the_database_is_one_folio(tmp_path, connect, make_cache):
    path, cache = tmp_path / "data.db", make_cache("4MiB")
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA page_size=16384")
        plain.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        plain.executemany("INSERT INTO t VALUES(?, zeroblob(3000))", ((n,) for n in range(500)))
    plain.close()
    db = connect(path, cache)
    assert db.execute("SELECT sum(length(b)) FROM t").fetchall() == [(1_500_000,)]
    with cache.open(str(path)) as file:
        orders = set()
        for index in range(0, file.size >> 12, 4):
            with file.mapping.get_folio(index) as folio:
                orders.add(folio.order)
        assert orders == {2}


def test_shrinking_and_growing_again(source, connect):
    db = connect(source)
    db.execute("PRAGMA auto_vacuum=FULL; CREATE TABLE t(a, b)")
    for round_ in range(5):
        with db:
            db.executemany("INSERT INTO t VALUES(?, randomblob(3000))", ((n,) for n in range(100)))
        with db:
            db.execute("DELETE FROM t")
        size = os.path.getsize(source) if isinstance(source, str) else source.size()
        assert size <= 4 * 4096, round_
        check(db)


def test_two_databases_in_one_transaction(tmp_path, connect):
    db = connect(tmp_path / "one.db")
    db.execute("ATTACH ? AS two", (str(tmp_path / "two.db"),))
    db.execute("CREATE TABLE main.t(a); CREATE TABLE two.t(a)")
    with db:
        db.execute("INSERT INTO main.t VALUES(1); INSERT INTO two.t VALUES(2)")
    with pytest.raises(ZeroDivisionError), db:
        db.execute("INSERT INTO main.t VALUES(3); INSERT INTO two.t VALUES(4)")
        raise ZeroDivisionError
    assert db.execute("SELECT * FROM main.t, two.t").fetchall() == [(1, 2)]
    db.close()
    assert sorted(os.listdir(tmp_path)) == ["one.db", "two.db"]


def test_temporary_tables_and_sorting_that_spills(source, connect):
    db = connect(source)
    db.execute("PRAGMA temp_store=FILE; PRAGMA cache_size=5; PRAGMA temp.cache_size=5; PRAGMA cache_spill=1")
    db.execute("CREATE TEMP TABLE t(a, b)")
    with db:
        db.executemany("INSERT INTO t VALUES(?, zeroblob(500))", ((n * 7919 % 5000,) for n in range(5000)))
    ordered = db.execute("SELECT a FROM t ORDER BY a, b").fetchall()
    assert ordered == sorted(ordered)
    db.execute("CREATE INDEX i ON t(a)")
    check(db)


def test_journal_has_the_permissions_of_its_database(tmp_path, connect):
    path = tmp_path / "data.db"
    db = connect(path)
    db.execute("CREATE TABLE t(a)")
    db.close()
    os.chmod(path, 0o600)
    db = connect(path)
    db.execute("PRAGMA journal_mode=PERSIST; INSERT INTO t VALUES(1)").fetchall()
    assert os.stat(f"{path}-journal").st_mode & 0o777 == 0o600


def test_a_log_without_the_file_for_itself_is_refused(tmp_path, connect):
    path = tmp_path / "data.db"
    db = connect(path)
    assert db.execute("PRAGMA journal_mode=WAL").fetchall() == [("delete",)]
    db.close()
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA journal_mode=WAL")
        plain.execute("CREATE TABLE t(a)")
        plain.execute("INSERT INTO t VALUES(1)")
    plain.close()
    db = connect(path)
    with pytest.raises(apsw.CantOpenError):
        db.execute("SELECT * FROM t").fetchall()
    assert db.execute("PRAGMA locking_mode=EXCLUSIVE; SELECT * FROM t").fetchall()[-1] == (1,)
