"""Random point queries on a database of 1 GiB with warm caches: through a page cache, and with SQLite's own ways to cache.

    python -m bench sqlite.point_queries [--rows N] [--queries N] [--rounds N] [--file PATH]

All ways use one SQLite (apsw's) on one file, one round each in turn, several times over; the fastest round of each counts.
The file is in the system's page cache as well, as it would be.
"""

import argparse
import os
import random
import tempfile
import threading
import time

import apsw

import pagecache
from pagecache.adapters.sqlite import connect

PAYLOAD = 1000  # bytes of a row
QUERY = "SELECT length(payload) FROM t WHERE id = ?"


def make_database(path: str, nr_rows: int) -> None:
    """Make the database, if it is not there."""
    if os.path.exists(path):
        return
    db = apsw.Connection(path)
    db.execute("PRAGMA synchronous=OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, payload BLOB)")
    with db:
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {nr_rows})"
        db.execute(f"{numbers} INSERT INTO t SELECT i, randomblob({PAYLOAD}) FROM n")
    db.close()


def open_plain(path: str, pragmas: str) -> apsw.Connection:
    """Open with SQLite's own VFS."""
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    db.execute(pragmas).fetchall()
    return db


def run(db: apsw.Connection, ids: list[int]) -> None:
    """Ask for each row."""
    cursor = db.cursor()
    for number in ids:
        if cursor.execute(QUERY, (number,)).fetchone() != (PAYLOAD,):
            raise AssertionError(f"row {number} is wrong")


def rate(connections: list[apsw.Connection], ids: list[int], in_transaction: bool) -> float:
    """Ask for all rows by each connection, in a thread of its own. Returns rows/s of all together.

    in_transaction: one lock for all of the queries, instead of one for each.
    """
    for db in connections:
        db.execute("BEGIN" if in_transaction else "")
    threads = [threading.Thread(target=run, args=(db, ids)) for db in connections]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for db in connections:
        db.execute("COMMIT" if in_transaction else "")
    return len(ids) * len(connections) / seconds


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--file", default=os.path.join(tempfile.gettempdir(), "pagecache-point-queries.db"))
    arguments = parser.parse_args()
    make_database(arguments.file, arguments.rows)
    nbytes = os.path.getsize(arguments.file)
    cache = pagecache.PageCache(nbytes * 5 // 4)
    large = f"PRAGMA cache_size=-{nbytes * 5 // 4 // 1024}"
    ways = {
        "pagecache, SQLite's cache as it comes (2 MB)": lambda: connect(arguments.file, cache),
        "plain, SQLite's cache as it comes (2 MB)": lambda: open_plain(arguments.file, "PRAGMA cache_size"),
        "plain, cache_size of the whole database": lambda: open_plain(arguments.file, large),
        "plain, mmap_size of the whole database": lambda: open_plain(arguments.file, f"PRAGMA mmap_size={nbytes * 2}"),
    }
    opened = {name: [make() for _ in range(arguments.threads)] for name, make in ways.items()}
    for connections in opened.values():
        for db in connections:
            db.execute("SELECT sum(length(payload)) FROM t").fetchall()
    rng = random.Random(1)
    cases = [(1, False), (1, True), (arguments.threads, False), (arguments.threads, True)]
    best: dict[tuple[str, int, bool], float] = {}
    for _ in range(arguments.rounds):
        ids = [rng.randrange(1, arguments.rows + 1) for _ in range(arguments.queries)]
        for case in cases:
            for name, connections in opened.items():
                found = rate(connections[: case[0]], ids, case[1])
                best[name, *case] = max(best.get((name, *case), 0.0), found)
    print(f"{nbytes / 2**20:.0f} MiB, {arguments.rows:,} rows; rows/s, best of {arguments.rounds} rounds of "
          f"{arguments.queries:,} queries; SQLite {apsw.sqlite_lib_version()}")  # fmt: skip
    heads = [f"{threads} thread{'s' * (threads > 1)}{', one transaction' * single}" for threads, single in cases]
    print(f"{'':45}" + "".join(f"{head:>27}" for head in heads))
    for name in ways:
        print(f"{name:45}" + "".join(f"{best[name, *case]:27,.0f}" for case in cases))


if __name__ == "__main__":
    main()
