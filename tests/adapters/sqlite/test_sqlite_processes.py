"""Two processes, or two caches, on one file: locks exclude both ways, no reader sees old pages, the dead leave no harm."""

import errno
import os
import sqlite3
import sys
import threading

import pytest
from support import PATIENCE_S, STRESS, Crew, nr_descriptors
from support.sqlite_peer import Peer

apsw = pytest.importorskip("apsw")

from pagecache.adapters.sqlite import locks  # noqa: E402
from pagecache.adapters.sqlite.vfs import vfs_of  # noqa: E402

BUSY = "BusyError"
PAIRS = [("cached", "plain"), ("plain", "cached"), ("cached", "cached")]
WAYS = [*PAIRS, ("cached", "plain in this process"), ("cached", "cached in this process")]
if not STRESS:
    WAYS = [WAYS[0], WAYS[2], WAYS[3]]
NR_INCREMENTS = 2000 if STRESS else 25
MTIME_NS = 1_000_000_000_000_000_000


@pytest.fixture
def path(tmp_path):
    """A database of 300 rows, made by SQLite's own VFS."""
    path = tmp_path / "data.db"
    with sqlite3.connect(path) as plain:
        plain.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b INTEGER, c)")
        plain.executemany("INSERT INTO t VALUES(?, 0, zeroblob(400))", ((n,) for n in range(300)))
    plain.close()
    return path


def open_here(kind, path, connect):
    """Open a connection in this process."""
    if kind == "plain":
        return apsw.Connection(str(path))
    db = connect(path)
    assert db.vfsname("main").startswith("pagecache")
    return db


@pytest.fixture(scope="module")
def _peers():
    running = {}
    yield running
    for peer in running.values():
        peer.end()


@pytest.fixture
def open_there(_peers):
    """A factory of connections in another process: `open_there(kind, path)`."""
    used = []

    def open_one(kind, path):
        if kind not in _peers or _peers[kind].process.poll() is not None:
            if kind in _peers:
                _peers[kind].end()
            _peers[kind] = Peer(kind)
        peer = _peers[kind]
        used.append(peer)
        assert peer.run("OPEN", str(path)) == []
        return peer

    yield open_one
    for peer in used:
        if peer.process.poll() is None:
            assert peer.run("CLOSE") == []


class Here:
    """A connection of this process with the interface of a Peer."""

    def __init__(self, db):
        self.db = db

    def run(self, sql, *bindings):
        try:
            return [list(row) for row in self.db.execute(sql, bindings or None).fetchall()]
        except apsw.Error as error:
            return type(error).__name__


@pytest.fixture(params=WAYS, ids="-".join)
def pair(request, path, connect, make_cache, open_there):
    """Two connections to the database: the first in this process, the second where and how the name says."""
    first, second = request.param
    here = Here(open_here(first, path, connect))
    if second == "plain in this process":
        there = Here(apsw.Connection(str(path)))
    elif second == "cached in this process":
        there = Here(connect(path, make_cache("1MiB")))
    else:
        there = open_there(second, path)
    for side in (here, there):
        assert side.run("PRAGMA synchronous=OFF") == []
    yield here, there
    for side in (here, there):
        if isinstance(side, Here):
            side.db.close()


class TestOthersWithoutLocks:
    """Programs that do not know SQLite's protocol."""

    @pytest.mark.parametrize("dirty", [False, True])
    def test_what_they_have_put_into_the_file_is_not_written_over(self, path, connect, dirty):
        db = connect(path)
        db.execute("PRAGMA cache_size=1; BEGIN IMMEDIATE")
        if dirty:
            db.execute("UPDATE t SET b = 1")
        before = path.read_bytes()
        with open(path, "ab") as other:
            other.write(b"theirs")
        changed = path.read_bytes()
        assert changed[: len(before)] == before
        with pytest.raises(apsw.IOError):
            db.execute("UPDATE t SET b = 2; COMMIT")
        assert path.read_bytes() == changed
        db.close(True)
        assert path.read_bytes() == changed

    def test_changes_of_its_mode_and_name_are_none_of_the_database(self, path, connect):
        db = connect(path)
        db.execute("PRAGMA cache_size=1; BEGIN IMMEDIATE; UPDATE t SET b = 1")
        os.chmod(path, 0o640)
        os.link(path, path.with_name("link.db"))
        db.execute("COMMIT")
        assert db.execute("SELECT sum(b) FROM t").fetchone() == (300,)
        db.close()
        with sqlite3.connect(path) as plain:
            assert plain.execute("SELECT sum(b) FROM t").fetchone() == (300,)
        plain.close()

    def test_locks_are_never_taken_on_a_file_that_replaced_the_database(self, path, tmp_path):
        status = os.stat(path)
        key = f"file:{status.st_dev:x}:{status.st_ino:x}"
        locks.RangeLocks(str(path), key).close()
        path.rename(tmp_path / "moved.db")
        path.write_bytes((tmp_path / "moved.db").read_bytes())
        before = nr_descriptors()
        with pytest.raises(OSError, match="replaced") as caught:
            locks.RangeLocks(str(path), key)
        assert caught.value.errno == errno.ESTALE
        assert nr_descriptors() == before


class TestLocks:
    @pytest.mark.parametrize("turned", [False, True])
    def test_levels_exclude_as_they_should(self, pair, turned):
        one, two = pair[::-1] if turned else pair
        read, write = "SELECT count(*) FROM t", "UPDATE t SET b = b + 1 WHERE a = 5"
        assert one.run("BEGIN IMMEDIATE") == []
        assert two.run(read) == [[300]]
        assert two.run("BEGIN IMMEDIATE") == BUSY
        assert two.run(write) == BUSY
        assert one.run(write) == []
        assert one.run("COMMIT") == []
        assert one.run("BEGIN EXCLUSIVE") == []
        assert two.run(read) == BUSY
        assert one.run(write) == []
        assert one.run("ROLLBACK") == []
        assert two.run(write) == []
        assert two.run("BEGIN") == []
        assert two.run(read) == [[300]]
        assert one.run("BEGIN") == []
        assert one.run(write) == []
        assert one.run("COMMIT") == BUSY  # PENDING now: the reader goes on, new ones do not come in
        assert two.run("SELECT b FROM t WHERE a = 5") == [[2]]
        assert two.run("COMMIT") == []
        assert two.run(read) == BUSY
        assert one.run("COMMIT") == []
        assert two.run("SELECT b FROM t WHERE a = 5") == [[3]]

    def test_closing_one_connection_leaves_the_locks_of_another(self, path, connect, open_there):
        first, second = connect(path), connect(path)
        peer = open_there("plain", path)
        first.execute("BEGIN IMMEDIATE")
        second.execute("SELECT count(*) FROM t").fetchall()
        second.close()
        connect(path).close()
        with open(path, "rb"):
            pass
        assert peer.run("BEGIN IMMEDIATE") == BUSY
        first.execute("COMMIT")
        assert peer.run("BEGIN IMMEDIATE") == []
        assert peer.run("ROLLBACK") == []

    def test_exclusive_mode_keeps_others_out(self, pair):
        here, there = pair
        assert here.run("PRAGMA locking_mode=EXCLUSIVE; UPDATE t SET b = 1") == [["exclusive"]]
        assert there.run("SELECT count(*) FROM t") == BUSY
        assert here.run("PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t") == [["normal"], [300]]
        assert there.run("SELECT sum(b) FROM t") == [[300]]


def test_posix_locks_where_there_are_no_better_ones(path, open_there):
    """What other systems have. The levels are the same; only closing the file elsewhere in the process undoes them."""
    peer, ranges = open_there("plain", path), locks.RangeLocks(str(path), ofd=False)
    assert ranges.set(locks.READ_SHARED)
    assert not ranges.is_reserved()
    assert peer.run("BEGIN IMMEDIATE") == []
    assert ranges.is_reserved()
    assert not ranges.set(locks.WRITE_RESERVED)
    assert peer.run("UPDATE t SET b = 1") == []
    assert peer.run("COMMIT") == BUSY
    assert not ranges.set(locks.READ_PENDING)
    assert ranges.set(locks.FREE_ALL)
    assert peer.run("COMMIT") == []
    assert ranges.set(locks.WRITE_SHARED)
    assert peer.run("SELECT count(*) FROM t") == BUSY
    ranges.close()
    assert peer.run("SELECT count(*) FROM t") == [[300]]


class TestFreshness:
    def test_every_commit_is_seen_by_the_other(self, pair, path):
        """Size and time of modification are the same throughout: only SQLite's own counter tells."""
        one, two = pair
        for number in range(1, 10):
            assert one.run("UPDATE t SET b = ? WHERE a BETWEEN 100 AND 102", number) == []
            os.utime(path, ns=(MTIME_NS, MTIME_NS))
            assert two.run("SELECT DISTINCT b FROM t WHERE a BETWEEN 100 AND 102") == [[number]]
            one, two = two, one

    def test_growing_and_shrinking(self, pair):
        one, two = pair
        for number in range(2):
            assert one.run("INSERT INTO t SELECT a + 1000, ?, c FROM t WHERE a < 300", number) == []
            assert two.run("SELECT count(*), max(b) FROM t") == [[600, number]]
            assert two.run("DELETE FROM t WHERE a >= 1000") == []
            assert one.run("VACUUM") == []
            assert two.run("PRAGMA integrity_check") == [["ok"]]
            one, two = two, one

    def test_uncommitted_pages_of_another_are_never_seen(self, path, connect, open_there, make_cache):
        cache = make_cache("1MiB")
        first = connect(path, cache)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        assert first.execute("SELECT sum(b) FROM t").fetchall() == [(0,)]
        cache.drop_caches()
        peer = open_there("plain", path)
        peer.run("PRAGMA cache_size=2; PRAGMA cache_spill=1")
        peer.run("BEGIN EXCLUSIVE")
        peer.run("UPDATE t SET b = 7")  # most of it is in the file by now
        db = connect(path, cache)  # which reads the header
        with pytest.raises(apsw.BusyError):
            db.execute("SELECT sum(b) FROM t").fetchall()
        assert peer.run("ROLLBACK") == []
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        assert db.execute("SELECT sum(b) FROM t").fetchall() == [(0,)]
        peer.run("UPDATE t SET b = 1")
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        assert db.execute("SELECT sum(b) FROM t").fetchall() == [(300,)]

    def test_warm_pages_stay_when_nothing_was_written(self, path, connect, make_cache):
        cache = make_cache("1MiB")
        db = connect(path, cache)
        db.execute("PRAGMA cache_size=0")
        assert db.execute("SELECT sum(b), sum(length(c)) FROM t").fetchall() == [(0, 120_000)]
        before = cache.stats().store_read_bytes
        assert db.execute("SELECT sum(b), sum(length(c)) FROM t").fetchall() == [(0, 120_000)]
        db.execute("UPDATE t SET b = 1 WHERE a = 1")
        db.close()
        again = connect(path, cache)
        assert again.execute("SELECT sum(b), sum(length(c)) FROM t").fetchall() == [(1, 120_000)]
        assert cache.stats().store_read_bytes == before

    def test_pages_are_dropped_when_another_wrote_while_all_was_closed(self, path, connect, make_cache):
        cache = make_cache("1MiB")
        connect(path, cache).execute("SELECT sum(b), sum(length(c)) FROM t").fetchall()
        connect(path, cache).close()
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        db = connect(path, cache)
        assert db.execute("SELECT sum(b) FROM t").fetchall() == [(0,)]
        db.close()
        with sqlite3.connect(path) as plain:
            plain.execute("UPDATE t SET b = 1")
        plain.close()
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
        assert connect(path, cache).execute("SELECT sum(b) FROM t").fetchall() == [(300,)]


DEATHS = [(*pair, mode) for pair, mode in zip(PAIRS, ["DELETE", "TRUNCATE", "PERSIST"], strict=True)]
if STRESS:
    DEATHS = [(*pair, mode) for pair in PAIRS for mode in ["DELETE", "TRUNCATE", "PERSIST"]]


class TestTheDead:
    @pytest.mark.parametrize(("first", "second", "mode"), DEATHS)
    def test_a_hot_journal_is_rolled_back(self, first, second, mode, path, connect, open_there):
        peer = open_there(second, path)
        assert peer.run(f"PRAGMA cache_size=2; PRAGMA synchronous=OFF; PRAGMA journal_mode={mode}") == [[mode.lower()]]
        assert peer.run("UPDATE t SET b = 1 WHERE a = 1") == []
        assert peer.run("BEGIN IMMEDIATE") == []
        assert peer.run("UPDATE t SET b = 7") == []  # spills: the file is changed already
        peer.kill()
        assert os.path.getsize(f"{path}-journal") > 0
        db = open_here(first, path, connect)
        assert db.execute("SELECT sum(b) FROM t").fetchall() == [(1,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()

    @pytest.mark.parametrize(("first", "second"), PAIRS)
    def test_a_log_is_recovered(self, first, second, path, connect, open_there):
        peer = open_there(second, path)
        peer.run("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0")
        peer.run("PRAGMA synchronous=OFF")
        assert peer.run("UPDATE t SET b = 1 WHERE a = 1") == []
        assert peer.run("BEGIN; UPDATE t SET b = 7") == []
        peer.kill()
        assert os.path.getsize(f"{path}-wal") > 0
        db = open_here(first, path, connect)
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        assert db.execute("SELECT sum(b) FROM t").fetchall() == [(1,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
        assert not os.path.exists(f"{path}-wal")


@pytest.mark.stress
@pytest.mark.parametrize("second", ["plain", "cached"])
def test_no_increment_is_lost(second, path, connect, open_there):
    """Two threads through one cache, and another process, count in one row."""
    connections = [connect(path) for _ in range(2)]

    def count(db):
        db.set_busy_timeout(60_000)
        db.execute("PRAGMA synchronous=OFF")
        for _ in range(NR_INCREMENTS):
            db.execute("BEGIN IMMEDIATE; UPDATE t SET b = b + 1 WHERE a = 1; COMMIT")

    peer = open_there(second, path)
    peer.run("PRAGMA synchronous=OFF")
    peer.start("INCREMENT", NR_INCREMENTS)
    Crew(*(lambda db=db: count(db) for db in connections)).join_well()
    assert peer.finish() == []
    assert peer.run("SELECT b FROM t WHERE a = 1") == [[3 * NR_INCREMENTS]]
    assert connect(path).execute("SELECT b FROM t WHERE a = 1").fetchall() == [(3 * NR_INCREMENTS,)]
    assert connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_other_threads_run_while_a_connection_waits_for_a_lock(make_cache):
    sleep = vfs_of(make_cache("1MiB")).xSleep
    waits, is_over = threading.Event(), threading.Event()

    def wait():
        waits.set()
        sleep(1_000_000)
        is_over.set()

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(100)  # no other thread gets the GIL from one that keeps it
    try:
        crew = Crew(wait)
        assert waits.wait(PATIENCE_S)
        assert not is_over.is_set()
    finally:
        sys.setswitchinterval(interval_s)
    crew.join_well()
