"""Cached reads through a mount, beside a plain pass-through mount of the same library, in turns.

    python -m bench fuse.throughput [--rounds 7] [--seconds 0.5] [--directory DIRECTORY]

Both mounts are there at once, over one file that the kernel (for the pass-through) and the cache (for pagecache) hold.  A
round measures each for a moment, in an order that alternates; shown are the medians, and the median of the quotients of
the rounds.  Both with direct_io, so that the kernel keeps no pages of the mounts and each read is a request.
"""

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE_BYTES = 64 << 20
PASSTHROUGH = Path(__file__).with_name("passthrough.py")


@contextlib.contextmanager
def mounted(command, mountpoint):
    """Run a mount while the block runs."""
    mountpoint.mkdir()
    process = subprocess.Popen([sys.executable, "-P", *map(str, command)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not mounted: {command}")
            time.sleep(0.01)
        yield
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)
        process.terminate()
        process.wait(30)


def random_reads(fd, seconds, rng):
    """Read 4 KiB at random places; returns reads a second."""
    places = [rng.randrange(FILE_BYTES // 4096) * 4096 for _ in range(4096)]
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for place in places[:256]:
            os.pread(fd, 4096, place)
        done += 256
        places = places[256:] + places[:256]
    return done / took


def sequential_reads(fd, seconds, rng):
    """Read 1 MiB after 1 MiB; returns MiB a second."""
    buffer = bytearray(1 << 20)
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        os.preadv(fd, [buffer], (done << 20) % FILE_BYTES)
        done += 1
    return done / took


WORK = {"4 KiB random reads": (random_reads, "reads/s"), "1 MiB sequential reads": (sequential_reads, "MiB/s")}


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        base = Path(name)
        source = base / "source"
        source.mkdir()
        (source / "file").write_bytes(rng.randbytes(FILE_BYTES))
        ours, plain = base / "ours", base / "plain"
        with (
            mounted(["-m", "pagecache", "mount", source, ours, "--size", "256MiB"], ours),
            mounted([PASSTHROUGH, source, plain, "direct_io"], plain),
        ):
            measure(arguments, {"pagecache": ours / "file", "pass-through": plain / "file"}, rng)


def measure(arguments, paths, rng):
    """Measure all work on all files in turns."""
    fds = {name: os.open(path, os.O_RDONLY) for name, path in paths.items()}
    for fd in fds.values():
        sequential_reads(fd, 0.3, rng)
    for title, (work, unit) in WORK.items():
        found = {name: [] for name in fds}
        for number in range(arguments.rounds):
            for name in sorted(fds, reverse=bool(number % 2)):
                found[name].append(work(fds[name], arguments.seconds, rng))
        ours, plain = found["pagecache"], found["pass-through"]
        quotient = statistics.median(one / other for one, other in zip(ours, plain, strict=True))
        print(f"{title:24} pagecache {statistics.median(ours):9,.0f} {unit:8} pass-through {statistics.median(plain):9,.0f}"
              f" {unit:8} quotient {quotient:.2f} ({min(ours):,.0f}-{max(ours):,.0f}; {min(plain):,.0f}-{max(plain):,.0f})")
    for fd in fds.values():
        os.close(fd)


if __name__ == "__main__":
    main()
