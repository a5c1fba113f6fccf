"""kill -9 in the middle of transactions: the database is whole, and no transfer is lost that was acknowledged."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("apsw")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import sqlite_writer
from sqlite_writer import NR_ACCOUNTS, make_bank, open_bank, verdict

NR_KILLS = 100 if os.environ.get("PAGECACHE_STRESS") == "1" else 5
MODES = ("DELETE", "TRUNCATE", "PERSIST", "WAL")
SYNCHRONOUS = ("FULL", "FULL", "NORMAL", "OFF")  # without syncs the system still has what the process wrote
FRAMES = (3, 16, 64, 512)
LIFE_S = 0.25  # a process lives so long at most once it has acknowledged something
PATIENCE_S = 60


def counts_of(log):
    """Return the last count of each thread in a log; a last line that is not complete counts for nothing."""
    counts = {}
    for line in log.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            thread, count = line.split()
            counts[int(thread)] = int(count)
    return counts


def run_and_kill(path, log, rng, mode):
    """Let a bank work for a random while and kill it. Returns how it was started."""
    options = [str(rng.randrange(2**32)), str(rng.choice(FRAMES)), mode, rng.choice(SYNCHRONOUS)]
    started_at = log.stat().st_size
    command = [sys.executable, "-P", sqlite_writer.__file__, str(path), str(log), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while log.stat().st_size == started_at and process.poll() is None:
            assert time.monotonic() < deadline, "the bank does not begin"
            time.sleep(0.001)
        time.sleep(rng.random() * LIFE_S)
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    return " ".join(options)


@pytest.fixture
def fast_directory(tmp_path):
    """A directory in memory where there is one: what a process's death leaves is the same, and more happens before it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as directory:
        yield Path(directory)


@pytest.mark.stress
def test_what_was_acknowledged_survives_the_process(fast_directory, rng, make_cache):
    """One bank is killed again and again; who recovers it, SQLite itself or the cache, changes."""
    path, log = fast_directory / "bank.db", fast_directory / "log"
    make_bank(path)
    log.write_bytes(b"")
    nr_hot = 0
    for number in range(NR_KILLS):
        mode = MODES[number % len(MODES)]
        how = run_and_kill(path, log, rng, mode)
        nr_hot += any(os.path.exists(f"{path}{end}") and os.path.getsize(f"{path}{end}") for end in ("-journal", "-wal"))
        if rng.random() < 0.5:
            bank = sqlite3.connect(path)
        else:
            bank = open_bank(path, make_cache(rng.choice(FRAMES) * 4096), mode)
        assert verdict(bank, counts_of(log.read_bytes())) == "", f"writer started with {how}"
        bank.execute("PRAGMA journal_mode=DELETE").fetchall()
        bank.close()
    counts = counts_of(log.read_bytes())
    print(f"{NR_KILLS} kills, {nr_hot} in the middle of a transaction; {sum(counts.values())} transfers acknowledged")
    assert nr_hot > 0


def test_the_verdict_finds_what_is_wrong(tmp_path):
    path = tmp_path / "bank.db"
    make_bank(path)
    bank = sqlite3.connect(path)
    bank.execute("UPDATE counts SET n = 5 WHERE thread = 0")
    assert verdict(bank, {0: 5}) == verdict(bank, {0: 4}) == ""
    assert "5 are there" in verdict(bank, {0: 6})
    assert "5 are there" in verdict(bank, {0: 3})
    bank.execute(f"UPDATE accounts SET balance = balance + 1 WHERE id = {NR_ACCOUNTS - 1}")
    assert "hold" in verdict(bank, {})
    bank.close()
