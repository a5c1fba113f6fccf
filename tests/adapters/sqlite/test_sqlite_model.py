"""Random SQL through the cache and in SQLite's own memory: the same rows at every moment, at 1, 2, 3 and 64 frames."""

import os
import shutil
import sqlite3
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from support import STRESS

import pagecache

apsw = pytest.importorskip("apsw")

from pagecache.adapters.sqlite import connect  # noqa: E402

MODES = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"]
TIDYING = ["VACUUM", "PRAGMA incremental_vacuum", "REINDEX", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"]
keys = st.integers(0, 300)
sizes = st.one_of(st.integers(0, 200), st.integers(0, 20_000))


class Databases(RuleBasedStateMachine):
    """One database through the cache, one in memory, and what is done to both."""

    frames = 64

    @initialize(
        mode=st.sampled_from(MODES),
        page_size=st.sampled_from([512, 4096, 16384]),
        sync=st.sampled_from(["OFF", "NORMAL", "FULL", "EXTRA"]),
        in_memory=st.booleans(),
        cache_pages=st.sampled_from([0, 3, 100]),
        vacuum=st.sampled_from(["NONE", "FULL", "INCREMENTAL"]),
    )
    def begin(self, mode, page_size, sync, in_memory, cache_pages, vacuum):
        self.directory = tempfile.mkdtemp()
        self.source = pagecache.MemoryStore() if in_memory else os.path.join(self.directory, "data.db")
        self.cache = pagecache.PageCache(self.frames * 4096)
        self.mode, self.sync, self.cache_pages = mode, sync, cache_pages
        self.model = apsw.Connection(":memory:")
        self.depth = 0
        self.open(f"PRAGMA page_size={page_size}; PRAGMA auto_vacuum={vacuum}")
        self.do("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB, c)")
        self.do("CREATE INDEX i ON t(c)")

    def open(self, more=""):
        self.db = connect(self.source, self.cache)
        if self.mode == "WAL":
            self.db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        if more:
            self.db.execute(more).fetchall()
        self.db.execute(f"PRAGMA journal_mode={self.mode}").fetchall()
        self.db.execute(f"PRAGMA synchronous={self.sync}; PRAGMA cache_size={self.cache_pages}")
        self.db.execute("PRAGMA wal_autocheckpoint=5").fetchall()

    def do(self, sql, bindings=None):
        """Do the same to both, with the same result."""
        results = [db.execute(sql, bindings).fetchall() for db in (self.db, self.model)]
        assert results[0] == results[1], sql

    @rule(key=keys, size=sizes, many=st.integers(1, 30))
    def insert(self, key, size, many):
        for number in range(key, key + many):
            data = number.to_bytes(4, "little") * (size // 4)
            self.do("INSERT OR REPLACE INTO t VALUES(?, ?, ?)", (number, data, number % 7))

    @rule(key=keys, many=st.integers(1, 200))
    def delete(self, key, many):
        self.do("DELETE FROM t WHERE a BETWEEN ? AND ?", (key, key + many))

    @rule(key=keys, size=sizes)
    def update(self, key, size):
        self.do("UPDATE t SET b = zeroblob(?), c = c + 1 WHERE a >= ?", (size // 4, key))

    @rule(c=st.integers(0, 8))
    def look(self, c):
        self.do("SELECT a, b FROM t WHERE c = ? ORDER BY a", (c,))

    @precondition(lambda self: self.depth == 0)
    @rule(how=st.sampled_from(["DEFERRED", "IMMEDIATE", "EXCLUSIVE"]))
    def begin_transaction(self, how):
        self.do(f"BEGIN {how}")
        self.depth = 1

    @precondition(lambda self: self.depth >= 1)
    @rule(how=st.sampled_from(["COMMIT", "ROLLBACK"]))
    def end_transaction(self, how):
        self.do(how)
        self.depth = 0

    @precondition(lambda self: self.depth >= 1)
    @rule()
    def savepoint(self):
        self.do(f"SAVEPOINT s{self.depth}")
        self.depth += 1

    @precondition(lambda self: self.depth >= 2)
    @rule(how=st.sampled_from(["RELEASE", "ROLLBACK TO"]))
    def end_savepoint(self, how):
        self.do(f"{how} s{self.depth - 1}")
        self.depth -= how == "RELEASE"

    @precondition(lambda self: self.depth == 0)
    @rule(what=st.sampled_from(TIDYING))
    def tidy(self, what):
        self.db.execute(what).fetchall()

    @precondition(lambda self: self.depth == 0)
    @rule(mode=st.sampled_from(MODES), drops=st.booleans())
    def reopen(self, mode, drops):
        if "WAL" in (mode, self.mode) and mode != self.mode:
            mode = self.mode
        self.db.close()
        self.mode = mode
        if drops:
            self.cache.drop_caches()
        self.open()

    @precondition(lambda self: hasattr(self, "db") and self.depth == 0)
    @invariant()
    def has_the_same_rows(self):
        self.do("SELECT a, length(b), c FROM t ORDER BY a")

    def teardown(self):
        if not hasattr(self, "db"):
            return
        try:
            if self.depth:
                self.do("ROLLBACK")
            assert self.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            self.do("SELECT * FROM t ORDER BY a")
            rows = self.model.execute("SELECT a, b, c FROM t ORDER BY a").fetchall()
            self.db.close()
            self.cache.check()
            self.cache.close()
            self.check_with_plain_sqlite(rows)
        finally:
            self.db.close(True)
            shutil.rmtree(self.directory)

    def check_with_plain_sqlite(self, rows):
        """What is in the store is a database for all programs."""
        path = self.source
        if not isinstance(path, str):
            path = os.path.join(self.directory, "copy.db")
            with open(path, "wb") as copy:
                copy.write(self.source.tobytes())
        with sqlite3.connect(path) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert plain.execute("SELECT a, b, c FROM t ORDER BY a").fetchall() == rows
        plain.close()


@pytest.mark.parametrize("frames", [1, 2, 3, 64])
def test_random_sql(frames):
    machine = type(f"Databases{frames}", (Databases,), {"frames": frames})
    nr_examples, nr_steps = (300, 60) if STRESS else (4, 20)
    run_state_machine_as_test(machine, settings=settings(max_examples=nr_examples, stateful_step_count=nr_steps))
