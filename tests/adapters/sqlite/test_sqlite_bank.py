"""Money moves between accounts in several threads at once, while others add it up: it never gets more or less."""

import random
import sys
import threading
from pathlib import Path

import pytest
from support import STRESS, Crew

apsw = pytest.importorskip("apsw")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "stress"))

from sqlite_writer import BALANCE, NR_ACCOUNTS, NR_THREADS, make_bank, open_bank, transfer, verdict  # noqa: E402

NR_TRANSFERS = 2000 if STRESS else 50
MODES = ["DELETE", "TRUNCATE", "PERSIST", "WAL"]
CASES = [(mode, frames) for mode in MODES for frames in (16, 1024)]
if not STRESS:
    CASES = [("DELETE", 1024), ("TRUNCATE", 1024), ("PERSIST", 256), ("WAL", 16)]


@pytest.mark.stress
@pytest.mark.parametrize(("mode", "frames"), CASES)
def test_transfers_in_threads(mode, frames, tmp_path, make_cache, rng):
    path, cache = tmp_path / "bank.db", make_cache(frames * 4096, dirty_expire_s=0.01)
    make_bank(path)
    numbers = range(1 if mode == "WAL" else NR_THREADS)
    banks = [open_bank(str(path), cache, mode, "OFF") for _ in numbers]
    readers = [] if mode == "WAL" else [open_bank(str(path), cache, mode, "OFF")]
    ended = threading.Event()
    counts = {}

    def move(thread, rng):
        for _ in range(NR_TRANSFERS):
            counts[thread] = transfer(banks[thread], thread, rng)

    def add_up(db):
        nr_sums = 0
        while not ended.is_set() or nr_sums == 0:
            assert db.execute("SELECT sum(balance) FROM accounts").fetchone() == (NR_ACCOUNTS * BALANCE,)
            nr_sums += 1
            ended.wait(0.005)

    seeds = [rng.random() for _ in numbers]
    movers = [lambda thread=thread: move(thread, random.Random(seeds[thread])) for thread in numbers]
    watch = [lambda db=db: add_up(db) for db in readers]
    watching = Crew(*watch) if watch else None
    try:
        Crew(*movers).join_well()
    finally:
        ended.set()
        if watching is not None:
            watching.join_well()
    assert verdict(banks[0], counts) == ""
    for db in [*banks, *readers]:
        db.close()
    if mode != "WAL":
        plain = apsw.Connection(str(path))
        assert verdict(plain, counts) == ""
        plain.close()
