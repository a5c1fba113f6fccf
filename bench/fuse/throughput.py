"""Mounts in turns: pagecache, and pass-through file systems in C and in Python.

    make bench ONLY=fuse.throughput [ARGS="--rounds 7 --seconds 0.5 --directory DIRECTORY --beside build/lib-of-another"]

All mounts are there at once, over one file that the kernel (for the pass-through) and the cache (for pagecache) hold.  A
round measures each for a moment, in an order that turns; shown are the medians, and the medians of the quotients of the
rounds.  All with direct_io, so that the kernel keeps no pages of the mounts and each read is a request.  A second table
has the processor time that the mount's process took for each, its share of the kernel's work included: it hardly depends
on what else the machine does.

    pagecache       this build
    by Python       this build with PAGECACHE_MOUNT_ANSWERS=python: every request is answered there
    beside          another build, by its PYTHONPATH (--beside)
    C               passthrough.c, over libfuse (Debian: apt install libfuse3-dev gcc); left out where it does not compile
    Python          passthrough.py, over mfusepy

Work: 4 KiB at random by one reader and by two, each a process; 1 MiB in order; small files, each written once (100 bytes),
looked at, and removed.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE_BYTES = 64 << 20
NR_FILES = 100
HERE = Path(__file__).resolve().parent


@contextlib.contextmanager
def mounted(command, mountpoint, **environment):
    """Run a mount while the block runs."""
    mountpoint.mkdir()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not mounted: {command}")
            time.sleep(0.01)
        yield process.pid
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)
        process.terminate()
        process.wait(30)


def compiled(directory):
    """Return the command of the pass-through file system in C, or None where it cannot be built."""
    program = Path(directory) / "passthrough"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    command = ["cc", "-O2", str(HERE / "passthrough.c"), *shlex.split(flags.stdout), "-o", str(program)]
    if flags.returncode or subprocess.run(command, check=False).returncode:
        print("no pass-through file system in C: it needs libfuse3-dev, pkg-config and a C compiler", file=sys.stderr)
        return None
    return program


# -- work --------------------------------------------------------------------------------------------------------------


def read_at_random(path, seconds, seed):
    """Read 4 KiB at random places; returns reads a second."""
    rng = random.Random(seed)
    places = [rng.randrange(FILE_BYTES // 4096) * 4096 for _ in range(4096)]
    fd = os.open(path, os.O_RDONLY)
    buffers = [bytearray(4096)]
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for place in places[:256]:
            os.preadv(fd, buffers, place)
        done += 256
        places = places[256:] + places[:256]
    os.close(fd)
    return done / took


def _reader(path, seconds, seed, barrier, answers):
    barrier.wait()
    answers.put(read_at_random(path, seconds, seed))


def one_reader(directory, seconds):
    """Return 4 KiB reads a second."""
    return {"4 KiB at random, one reader (reads/s)": read_at_random(directory / "file", seconds, 1)}


def two_readers(directory, seconds):
    """Return 4 KiB reads a second of two processes together."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.SimpleQueue()
    readers = [
        context.Process(target=_reader, args=(directory / "file", seconds, seed, barrier, answers)) for seed in (1, 2)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return {"4 KiB at random, two readers (reads/s)": answers.get() + answers.get()}


def in_order(directory, seconds):
    """Read 1 MiB after 1 MiB; returns MiB a second."""
    fd = os.open(directory / "file", os.O_RDONLY)
    buffers = [bytearray(1 << 20)]
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        os.preadv(fd, buffers, (done << 20) % FILE_BYTES)
        done += 1
    os.close(fd)
    return {"1 MiB in order (MiB/s)": done / took}


def small_files(directory, seconds):
    """Make, look at and remove small files; returns how many a second went through each, and through all of it."""
    names = [directory / f"small-{number}" for number in range(NR_FILES)]
    times = [0.0, 0.0, 0.0]
    nr, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for number, work in enumerate((_make, os.stat, os.unlink)):
            start = time.perf_counter()
            for name in names:
                work(name)
            times[number] += time.perf_counter() - start
        nr += NR_FILES
    titles = ("all of these (files/s)", "create and write (files/s)", "stat (files/s)", "unlink (files/s)")
    return {title: nr / took for title, took in zip(titles, (took, *times), strict=True)}


def _make(name):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, bytes(100))
    os.close(fd)


# -- measuring ---------------------------------------------------------------------------------------------------------


def cpu_s(pid):
    """Return the processor time that a process has taken (seconds)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def commands_of(arguments, source, base):
    """Return how each mount is made: {title: (command, environment)}; the mount points are base / title."""
    python = [sys.executable, "-P"]

    def pagecache(title, **environment):
        return [*python, "-m", "pagecache", "mount", source, base / title, "--size", "256MiB"], environment

    found = {"pagecache": pagecache("pagecache")}
    if arguments.beside:
        found["beside"] = pagecache("beside", PYTHONPATH=arguments.beside)
    found["by Python"] = pagecache("by Python", PAGECACHE_MOUNT_ANSWERS="python")
    program = compiled(base)
    if program is not None:
        found["C"] = [program, source, base / "C"], {}
    found["Python"] = [*python, HERE / "passthrough.py", source, base / "Python", "direct_io"], {}
    return found


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--beside", metavar="PYTHONPATH", help="another build, measured as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, contextlib.ExitStack() as mounts:
        base = Path(name)
        source = base / "source"
        source.mkdir()
        (source / "file").write_bytes(random.Random(1).randbytes(FILE_BYTES))
        pids = {
            title: mounts.enter_context(mounted(command, base / title, **environment))
            for title, (command, environment) in commands_of(arguments, source, base).items()
        }
        rates, costs = measure(arguments, base, pids)
    report(rates)
    one, two = list(rates.values())[:2]
    gains = {title: quotient(two[title], one[title]) for title in pids}
    others = [title for title in pids if title != "pagecache"]
    cells = [f"{gains[title]:.2f}" for title in pids] + [f"{gains['pagecache'] / gains[one]:.2f}" for one in others]
    print("| what a second reader gains | " + " | ".join(cells) + " |\n")
    report(costs)


def measure(arguments, base, pids):
    """Do all work on all mounts in turns. Returns what a second saw of it, and what one took of the mount's processor time
    (us): {work: {mount: [of each round]}}."""
    rates, costs = {}, {}
    titles = list(pids)
    for title in titles:
        in_order(base / title, 0.3)
        one_reader(base / title, 0.1)
    for work in (one_reader, two_readers, in_order, small_files):
        for number in range(arguments.rounds):
            for title in titles[number % len(titles) :] + titles[: number % len(titles)]:
                used, began = cpu_s(pids[title]), time.perf_counter()
                found = work(base / title, arguments.seconds)
                took, used = time.perf_counter() - began, cpu_s(pids[title]) - used
                for what, figure in found.items():
                    rates.setdefault(what, {}).setdefault(title, []).append(figure)
                what, figure = next(iter(found.items()))
                what = what.partition(" (")[0] + " (us of processor time)"
                costs.setdefault(what, {}).setdefault(title, []).append(1e6 * used / (figure * took))
    return rates, costs


def quotient(one, other):
    """Return the median of the quotients of the rounds."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def report(found):
    """Print a table in Markdown: median, least and most of each; the medians of the quotients."""
    titles = list(next(iter(found.values())))
    print("| work | " + " | ".join(titles) + " | " + " | ".join(f"pagecache / {one}" for one in titles[1:]) + " |")
    print("|---|" + "--:|" * (2 * len(titles) - 1))
    for what, figures in found.items():
        digits = ".1f" if max(map(max, figures.values())) < 10_000 else ",.0f"
        cells = [" ".join(f"{of(figures[one]):{digits}}" for of in (statistics.median, min, max)) for one in titles]
        cells += [f"{quotient(figures['pagecache'], figures[one]):.2f}" for one in titles[1:]]
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
