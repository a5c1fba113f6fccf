"""Stores that fail: the program gets SQLite's own codes, and the database is whole afterwards."""

import contextlib
import errno
import os
import random

import pytest
from support import STRESS
from support.failing_store import FailingStore

import pagecache

apsw = pytest.importorskip("apsw")

from pagecache.adapters.sqlite import VFS  # noqa: E402
from pagecache.adapters.sqlite.places import Objects  # noqa: E402

KINDS = ["writev", "sync", "truncate", "readv"]
CODES = {
    ("writev", errno.EIO): {apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_CLOSE},
    ("writev", errno.ENOSPC): {apsw.SQLITE_FULL},
    ("sync", errno.EIO): {apsw.SQLITE_IOERR_FSYNC},
    ("sync", errno.ENOSPC): {apsw.SQLITE_FULL},
    ("truncate", errno.EIO): {apsw.SQLITE_IOERR_TRUNCATE},
    ("readv", errno.EIO): {apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_WRITE},  # a page that is written in part is read
}
ROWS = 300


class Disk:
    """Stores in memory that fail together, and connections to the database on them, each with a cache of its own."""

    def __init__(self, make_cache, frames):
        self.make_cache, self.frames = make_cache, frames
        self.bank = FailingStore(b"")
        self.stores = [self.bank]
        self.objects = Objects(self.make)
        self.objects.add("store:bank", self.bank)
        self.kind = None

    def make(self, name):
        store = FailingStore(b"")
        self.stores.append(store)
        self.arm(store)
        return store

    def fail(self, kind, after, number, for_ever):
        """Have one kind of call fail from now on, each store's call number `after` first."""
        self.kind, self.after, self.number, self.for_ever = kind, after, number, for_ever
        for store in self.stores:
            self.arm(store)

    def arm(self, store):
        if self.kind is not None:
            store.kind, store.number, store.for_ever = self.kind, self.number, self.for_ever
            store.is_healed, store.fails_at = False, store.nr_calls[self.kind] + self.after

    def heal(self):
        self.kind = None
        for store in self.stores:
            store.is_healed = True

    def open(self, mode):
        vfs = VFS(self.make_cache(self.frames * 4096))
        vfs._objects = self.objects
        db = apsw.Connection("store:bank", vfs=vfs.name)
        if mode == "WAL":
            db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        db.execute(f"PRAGMA journal_mode={mode}").fetchall()
        db.execute("PRAGMA synchronous=FULL; PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=10")
        return db


def state_of(db):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return db.execute("SELECT sum(balance), min(round), max(round), count(*) FROM accounts").fetchone()


def begin(db):
    db.execute("CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance, round, padding)")
    with db:
        db.executemany("INSERT INTO accounts VALUES(?, 100, 0, zeroblob(300))", ((n,) for n in range(ROWS)))


def one_round(db, rng, number):
    """Change every row in one transaction."""
    source, target = rng.sample(range(ROWS), 2)
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("UPDATE accounts SET round = ?", (number,))
        db.execute("UPDATE accounts SET balance = balance - 7 WHERE id = ?", (source,))
        db.execute("UPDATE accounts SET balance = balance + 7 WHERE id = ?", (target,))
        db.execute("COMMIT")
    except apsw.Error:
        if db.in_transaction:
            with contextlib.suppress(apsw.Error):
                db.execute("ROLLBACK")
        raise


@pytest.mark.parametrize("mode", ["DELETE", "PERSIST", "TRUNCATE", "WAL"])
@pytest.mark.parametrize(("kind", "number"), CODES)
def test_a_store_that_fails(kind, number, mode, make_cache, rng):
    codes, nr_failed = set(), 0
    for after in range(40 if STRESS else 3):
        for_ever = rng.random() < 0.5
        disk = Disk(make_cache, rng.choice((3, 16, 256)))
        db = disk.open(mode)
        begin(db)
        done = 0
        disk.fail(kind, after if STRESS else rng.randrange(20), number, for_ever)
        for number_ in range(1, 6):
            try:
                one_round(db, rng, number_)
                done = number_
            except apsw.Error as error:
                codes.add(error.extendedresult)
                nr_failed += 1
                break
        last = number_
        disk.heal()
        total, lowest, highest, count = state_of(db)  # of the same connection: it has rolled back
        assert (total, count, lowest) == (ROWS * 100, ROWS, highest)
        assert done <= lowest <= last
        one_round(db, rng, 10)
        assert state_of(db)[1:3] == (10, 10)
        db.close(True)
        assert state_of(disk.open(mode))[1:] == (10, 10, ROWS)
    assert codes <= CODES[kind, number], codes
    assert nr_failed or not STRESS or kind in ("truncate", "readv")


def test_the_codes_of_a_full_and_a_broken_store(make_cache):
    for number, kind, code in (
        (errno.ENOSPC, "writev", apsw.SQLITE_FULL),
        (errno.EIO, "writev", apsw.SQLITE_IOERR_WRITE),
        (errno.EIO, "sync", apsw.SQLITE_IOERR_FSYNC),
    ):
        disk = Disk(make_cache, 64)
        db = disk.open("DELETE")
        begin(db)
        disk.fail(kind, 0, number, True)
        with pytest.raises(apsw.Error, match=os.strerror(number)) as caught:
            one_round(db, random.Random(0), 1)
        assert caught.value.extendedresult == code
        disk.heal()
        assert state_of(db)[1:] == (0, 0, ROWS)


def test_what_could_not_be_written_is_not_written_later_without_the_lock(make_cache):
    """The journal is durable, the database's pages cannot be written, and the lock goes: another connection rolls back and
    writes. If the first cache wrote its old dirty pages then, they would overwrite that."""
    disk = Disk(make_cache, 256)
    db = disk.open("DELETE")
    begin(db)
    bank = disk.bank
    bank.kind, bank.number, bank.for_ever, bank.fails_at = "writev", errno.EIO, True, bank.nr_calls["writev"]
    with pytest.raises(apsw.IOError):
        one_round(db, random.Random(0), 1)
    bank.is_healed = True
    other = disk.open("DELETE")
    one_round(other, random.Random(0), 2)
    db.close()
    assert state_of(other)[1:] == (2, 2, ROWS)
    other.close()
    assert state_of(disk.open("DELETE"))[1:] == (2, 2, ROWS)


def test_a_cache_that_is_full_of_views(make_cache):
    cache = make_cache(16 * 4096)
    store = pagecache.MemoryStore()
    vfs = VFS(cache)
    db = apsw.Connection(vfs.add(store), vfs=vfs.name)
    begin(db)
    cache.drop_caches()
    with cache.open(pagecache.MemoryStore(bytes(16 * 4096))) as other:
        views = list(other.iter_views(16 * 4096, 0))
        with pytest.raises(apsw.Error, match="pinned by views") as caught:
            db.execute("SELECT sum(balance) FROM accounts").fetchall()
        assert caught.value.extendedresult == apsw.SQLITE_IOERR_NOMEM
        for view in views:
            view.release()
    assert state_of(db)[1:] == (0, 0, ROWS)


def test_a_cache_that_is_closed_first(tmp_path):
    from pagecache.adapters.sqlite import connect

    cache = pagecache.PageCache("1MiB")
    db = connect(str(tmp_path / "data.db"), cache)
    begin(db)
    cache.close()
    with pytest.raises(apsw.IOError, match="the cache is closed"):
        db.execute("SELECT sum(balance) FROM accounts").fetchall()
    db.close(True)
    assert state_of(apsw.Connection(str(tmp_path / "data.db")))[1:] == (0, 0, ROWS)
