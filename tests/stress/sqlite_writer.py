"""A bank that moves money in a database through a cache until it is killed, and says of each transfer when it is durable.

    python tests/stress/sqlite_writer.py PATH LOG SEED FRAMES MODE SYNCHRONOUS

Each thread (one, with a write-ahead log) moves money between accounts at random and counts its transfers in a row of its
own, in the same transaction. When COMMIT has returned, a line "THREAD COUNT" goes to the log (one
write(2), which outlives the process).
"""

import os
import random
import sys
import threading

NR_ACCOUNTS = 400
NR_THREADS = 2
BALANCE = 1000
PADDING = 300  # bytes of an account: they take many pages
HISTORY_MAX = 500


def make_bank(path):
    """Make the database, with SQLite's own VFS."""
    import sqlite3

    with sqlite3.connect(path) as plain:
        plain.execute("CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER, padding)")
        rows = ((n, BALANCE, bytes(PADDING)) for n in range(NR_ACCOUNTS))
        plain.executemany("INSERT INTO accounts VALUES(?, ?, ?)", rows)
        plain.execute("CREATE TABLE counts(thread INTEGER PRIMARY KEY, n INTEGER)")
        plain.executemany("INSERT INTO counts VALUES(?, 0)", ((n,) for n in range(NR_THREADS)))
        plain.execute("CREATE TABLE history(id INTEGER PRIMARY KEY, source, target, amount, note)")
        plain.execute("CREATE INDEX by_target ON history(target, source)")
    plain.close()


def transfer(db, thread, rng):
    """Move money in one transaction. Returns the thread's count after it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        (count,) = db.execute("SELECT n + 1 FROM counts WHERE thread = ?", (thread,)).fetchone()
        for _ in range(rng.choice((1, 1, 3, 40))):
            source, target, amount = rng.randrange(NR_ACCOUNTS), rng.randrange(NR_ACCOUNTS), rng.randrange(100)
            db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
            db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
            note = bytes(rng.randrange(200))
            db.execute("INSERT INTO history VALUES(NULL, ?, ?, ?, ?)", (source, target, amount, note))
        db.execute("DELETE FROM history WHERE id < (SELECT max(id) FROM history) - ?", (HISTORY_MAX,))
        db.execute("UPDATE counts SET n = ? WHERE thread = ?", (count, thread))
        if rng.random() < 0.1:
            db.execute("ROLLBACK")
            return count - 1
        db.execute("COMMIT")
        return count
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def verdict(db, counts):
    """Return what is wrong with a bank of which so many transfers of each thread were acknowledged; "" if nothing is."""
    if (found := db.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
        return f"integrity_check: {found}"
    (total,) = db.execute("SELECT sum(balance) FROM accounts").fetchone()
    if total != NR_ACCOUNTS * BALANCE:
        return f"the accounts hold {total}"
    for thread, acknowledged in counts.items():
        (n,) = db.execute("SELECT n FROM counts WHERE thread = ?", (thread,)).fetchone()
        if not acknowledged <= n <= acknowledged + 1:
            return f"thread {thread}: {acknowledged} transfers were acknowledged, {n} are there"
    return ""


def open_bank(path, cache, mode, synchronous="FULL"):
    """Open a connection, small enough to spill."""
    from pagecache.adapters.sqlite import connect

    db = connect(path, cache)
    db.set_busy_timeout(60_000)
    if mode == "WAL":
        db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
    db.execute(f"PRAGMA journal_mode={mode}").fetchall()
    db.execute(f"PRAGMA synchronous={synchronous}; PRAGMA cache_size=8; PRAGMA wal_autocheckpoint=20")
    return db


def main(path, log_path, seed, nr_frames, mode, synchronous):
    """Move money until the process is killed."""
    import pagecache

    cache = pagecache.PageCache(nr_frames * 4096, dirty_expire_s=0.01)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    rng = random.Random(seed)
    numbers = range(1 if mode == "WAL" else NR_THREADS)
    banks = [open_bank(path, cache, mode, synchronous) for _ in numbers]

    def run(thread, rng):
        while True:
            count = transfer(banks[thread], thread, rng)
            os.write(log, f"{thread} {count}\n".encode())

    for thread in numbers:
        threading.Thread(target=run, args=(thread, random.Random(rng.random()))).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
