"""kill -9 at random moments: every byte for which fsync had returned is in the file, or something newer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kill_writer
from kill_writer import HEADER, NR_RECORDS, NR_THREADS, RECORD, content, offset_of

NR_KILLS = 200 if os.environ.get("PAGECACHE_STRESS") == "1" else 8
DURABILITIES = ("write-back", "dsync", "write-through", "sync")
LIFE_S = 0.4  # a process lives so long at most once it has written something
PATIENCE_S = 60


class LaneState:
    """What a lane may have, after the log: for each record the generation that is durable, and those that were begun.

    Zeros (generation 0) may be where the lane was truncated, or is being truncated.
    """

    def __init__(self):
        self.durable = [0] * NR_RECORDS
        self.begun = [{0} for _ in range(NR_RECORDS)]

    def take(self, word, numbers):
        """Take one line of the log."""
        if word == "start":
            for record in numbers[1:]:
                self.begun[record].add(numbers[0])
        elif word == "done":
            for record in numbers[1:]:
                self.durable[record] = numbers[0]
                self.begun[record] = {numbers[0]}
        elif word == "cut":
            for record in range(numbers[0], NR_RECORDS):
                self.begun[record].add(0)
        elif word == "was-cut":
            for record in range(numbers[0], NR_RECORDS):
                self.durable[record] = 0
                self.begun[record] = {0}


def states_of(log):
    """Return the lanes' states after a log; a last line that is not complete counts for nothing."""
    lanes = [LaneState() for _ in range(NR_THREADS)]
    for line in log.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            lane, word, *numbers = line.split()
            lanes[int(lane)].take(word, [int(number) for number in numbers])
    return lanes


def check_file(data, lanes):
    """Compare a file with what its lanes may have. Returns the bytes that had to be there and were."""
    nr_checked = 0
    for number, lane in enumerate(lanes):
        for record in range(NR_RECORDS):
            begin = offset_of(number, record)
            piece = data[begin : begin + RECORD].ljust(RECORD, b"\0")
            nr_checked += RECORD if lane.durable[record] else 0
            check_record(piece, number, record, lane)
    return nr_checked


def check_record(piece, number, record, lane):
    """Check that each byte of a record is of the durable generation, or of one that was begun later."""
    allowed = {lane.durable[record]} | lane.begun[record]
    versions = [content(number, record, generation) if generation else bytes(RECORD) for generation in sorted(allowed)]
    if piece in versions:
        return
    for place, byte in enumerate(piece):
        if all(version[place] != byte for version in versions):
            raise AssertionError(
                f"byte {place} of record {record} of lane {number} is of no allowed generation ({sorted(allowed)}); the "
                f"record begins as one of generation {int.from_bytes(piece[:HEADER], 'little')}"
            )


def kill_one(directory, rng):
    """Start a writer, kill it at a random moment, and check its file. Returns (bytes checked, generations done)."""
    path, log = directory / "data", directory / "log"
    path.write_bytes(b"")
    log.write_bytes(b"")
    options = [str(rng.randrange(2**32)), str(rng.choice((4, 16, 64, 512))), rng.choice(DURABILITIES)]
    command = [sys.executable, kill_writer.__file__, str(path), str(log), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while log.stat().st_size == 0 and process.poll() is None:
            assert time.monotonic() < deadline, "the writer does not begin"
            time.sleep(0.001)
        time.sleep(rng.random() * LIFE_S)
        assert process.poll() is None, process.stderr.read().decode()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    lines = log.read_bytes()
    try:
        return check_file(path.read_bytes(), states_of(lines)), lines.count(b"done")
    except AssertionError as error:
        raise AssertionError(f"{error}; writer started with {' '.join(options)}") from None


@pytest.mark.stress
def test_what_was_durable_survives_the_process(tmp_path, rng):
    nr_bytes = nr_generations = 0
    for number in range(NR_KILLS):
        directory = tmp_path / str(number)
        directory.mkdir()
        checked, generations = kill_one(directory, rng)
        nr_bytes += checked
        nr_generations += generations
    print(f"{NR_KILLS} kills: {nr_bytes} durable bytes checked, after {nr_generations} syncs that had returned")
    assert nr_bytes > 0


def test_checker_finds_a_byte_that_is_missing_or_old():
    log = b"0 start 1 5\n0 done 1 5\n0 start 2 5\n0 done 2 5\n0 start 3 5\n"
    begin = offset_of(0, 5)
    for generation in (2, 3):
        data = bytes(begin) + content(0, 5, generation)
        assert check_file(data, states_of(log)) == RECORD
    torn = content(0, 5, 3)[:300] + content(0, 5, 2)[300:]
    assert check_file(bytes(begin) + torn, states_of(log)) == RECORD
    for bad in (content(0, 5, 1), bytes(RECORD), b"", torn[:-1] + b"\x00"):
        with pytest.raises(AssertionError, match="no allowed generation"):
            check_file(bytes(begin) + bad, states_of(log))
