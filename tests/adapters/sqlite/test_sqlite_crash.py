"""Power is lost at a random moment: of what was not synced some writes are there, torn at sectors, and some are not.

What COMMIT had returned for is there, the rest is there as a whole or not at all, and the database is whole. This is what
the order of writes and syncs is for; a killed process (tests/stress/test_sqlite_kill.py) does not show it.
"""

import random

import pytest
from support import STRESS

import pagecache

apsw = pytest.importorskip("apsw")

from pagecache.adapters.sqlite import VFS  # noqa: E402
from pagecache.adapters.sqlite.places import Objects  # noqa: E402

SECTOR = 4096  # what xSectorSize says: a write may hurt so much, and no more
NR_CRASHES = 2000 if STRESS else 60
ROWS = 120


class PowerLost(OSError):
    """Nothing works any more."""


class Power:
    """Counts what all stores do, and goes at a given step."""

    def __init__(self, steps):
        self.left = steps

    def step(self):
        self.left -= 1
        if self.left < 0:
            raise PowerLost(5, "the power is lost")


class FragileStore(pagecache.MemoryStore):
    """Remembers what was synced, and what was written since."""

    parallel_requests = 1

    def __init__(self, power, data=b""):
        super().__init__(data)
        self.power = power
        self.synced = bytes(data)
        self.since = []

    def writev(self, offset, buffers):
        self.power.step()
        self.since.append((offset, b"".join(buffers)))
        return super().writev(offset, buffers)

    def truncate(self, size):
        self.power.step()
        self.since.append((size, None))
        super().truncate(size)

    def sync(self, datasync=False):
        self.power.step()
        self.synced, self.since = self.tobytes(), []

    def after_the_crash(self, rng):
        """Return what is there when the power is back."""
        data = bytearray(self.synced)
        for offset, written in self.since:
            if written is None:
                if rng.random() < 0.5:
                    data[offset:] = bytes(max(0, offset - len(data)))
                continue
            for begin in range(offset, offset + len(written), SECTOR):
                piece = written[begin - offset : begin - offset + SECTOR]
                if rng.random() < 0.5:
                    if rng.random() < 0.2:
                        piece = piece[: rng.randrange(len(piece) + 1)]
                    data.extend(bytes(max(0, begin + len(piece) - len(data))))
                    data[begin : begin + len(piece)] = piece
        return bytes(data)


class FragileObjects(Objects):
    """Names that are durable at once, as deletions with a sync of the directory are."""

    def __init__(self, power, contents):
        super().__init__(lambda name: FragileStore(power))
        self.power = power
        for name, data in contents.items():
            self.add(name, FragileStore(power, data))

    def delete(self, name, *, durable):
        self.power.step()
        super().delete(name, durable=durable)

    def after_the_crash(self, rng):
        return {name: store.after_the_crash(rng) for name, store in self._stores.items()}


def open_on(objects, frames, mode, make_cache):
    vfs = VFS(make_cache(frames * 4096))
    vfs._objects = objects
    db = apsw.Connection("store:bank", vfs=vfs.name)
    if mode == "WAL":
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    db.execute(f"PRAGMA journal_mode={mode}").fetchall()
    db.execute("PRAGMA synchronous=FULL; PRAGMA cache_size=4; PRAGMA wal_autocheckpoint=8")
    return db


def live(db, rng, done):
    """Change all rows in one transaction after the other; `done` is called after each commit."""
    for number in range(done[-1] + 1, done[-1] + 30):
        db.execute("BEGIN")
        db.execute("UPDATE t SET n = ?, padding = zeroblob(?)", (number, rng.randrange(400)))
        if rng.random() < 0.2:
            db.execute("ROLLBACK")
            continue
        db.execute("COMMIT")
        done.append(number)


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
def test_what_was_committed_is_there(mode, make_cache, rng):
    healthy = Power(1 << 60)
    objects = FragileObjects(healthy, {})
    db = open_on(objects, 64, mode, make_cache)
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, n, padding)")
    with db:
        db.executemany("INSERT INTO t VALUES(?, 0, zeroblob(200))", ((n,) for n in range(ROWS)))
    db.close()
    contents, done, nr_lost = objects.after_the_crash(random.Random(0)), [0], 0
    for _ in range(NR_CRASHES // 4):
        power = Power(rng.randrange(5, 250))
        objects = FragileObjects(power, contents)
        db = None
        try:
            db = open_on(objects, rng.choice((3, 16, 64)), mode, make_cache)
            live(db, rng, done)
        except apsw.Error:
            nr_lost += 1
        contents = objects.after_the_crash(rng)
        power.left = 1 << 60  # so that what is open can be closed; it is not looked at any more
        if db is not None:
            db.close(True)
        recovered = FragileObjects(healthy, contents)
        db = open_on(recovered, rng.choice((3, 64)), mode, make_cache)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        lowest, highest, count = db.execute("SELECT min(n), max(n), count(*) FROM t").fetchone()
        assert lowest == highest, "half a transaction"
        assert count == ROWS
        assert done[-1] <= lowest <= done[-1] + 30
        done.append(lowest)
        db.close()
        contents = recovered.after_the_crash(random.Random(0))
    assert nr_lost > 0
