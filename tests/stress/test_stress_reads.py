"""A file four times the budget, read at random by eight threads: every byte right, memory inside the budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import HAS_GIL

IS_SANITIZED = "san.so" in os.environ.get("LD_PRELOAD", "")  # shadow memory counts as resident
SECONDS = 30 if os.environ.get("PAGECACHE_STRESS") == "1" else 1.5

# Runs in a process of its own, so that resident memory is the interpreter's and the cache's alone.
READER = """
import json, os, random, sys, threading, time
import pagecache

path, budget, seconds, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
PAGE = 4096

def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE

def expected(offset, nbytes):
    first, last = offset // 8, (offset + nbytes - 1) // 8
    words = b"".join(word.to_bytes(8, "little") for word in range(first, last + 1))
    return words[offset - first * 8 :][:nbytes]

nr_reads, wrong = [0] * 8, []

def read_at_random(number, pread, ends):
    rng = random.Random(seed + number)
    nr_done = 0
    while (time.monotonic() < ends or not nr_done) and not wrong:
        nr_done += 1
        nbytes = rng.choice((1, 64, 4096, 5000, 70000))
        offset = rng.randrange(4 * budget - nbytes)
        if pread(nbytes, offset) != expected(offset, nbytes):
            wrong.append((nbytes, offset))
        nr_reads[number] += 1

def run(pread, seconds):
    peak, ends = 0, time.monotonic() + seconds
    threads = [threading.Thread(target=read_at_random, args=(number, pread, ends)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, resident_bytes())
        time.sleep(0.02)
    return peak

with open(path, "rb") as plain, pagecache.PageCache(budget) as cache, cache.open(path) as file:
    file.pread(1, 0)
    before = run(lambda nbytes, offset: os.pread(plain.fileno(), nbytes, offset), seconds / 4)  # threads and results
    peak = run(file.pread, seconds)
    cache.check()
    print(json.dumps({"reads": nr_reads, "wrong": wrong, "growth_bytes": peak - before,
                      "resident_bytes": cache.stats().resident_bytes}))
"""


@pytest.mark.stress
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("budget", [64 * 4096, 64 * 2**20])
def test_eight_threads_read_a_file_four_times_the_budget(tmp_path: Path, budget, seed):
    path = tmp_path / "data"
    with open(path, "wb") as file:
        for start in range(0, 4 * budget, 1 << 20):
            nbytes = min(1 << 20, 4 * budget - start)
            file.write(b"".join(word.to_bytes(8, "little") for word in range(start // 8, (start + nbytes) // 8)))
    ran = subprocess.run(
        [sys.executable, "-P", "-c", READER, str(path), str(budget), str(SECONDS), str(seed)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["wrong"] == []
    assert min(result["reads"]) > 0
    assert result["resident_bytes"] <= budget
    if not HAS_GIL:
        return  # each thread has an allocator of its own, which holds more than the cache here
    allocator_bytes = 8 * 2**20  # what the interpreter's allocator may hold more than it did with plain reads
    assert IS_SANITIZED or result["growth_bytes"] <= budget * 1.05 + allocator_bytes
