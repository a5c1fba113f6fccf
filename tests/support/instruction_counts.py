"""Instructions that one cached operation takes, counted by callgrind: repeatable where nanoseconds are not.

    PYTHONPATH=build/lib-check .venv/bin/python -P tests/support/instruction_counts.py       prints them
    PYTHONPATH=build/lib-check .venv/bin/python -P tests/support/instruction_counts.py --record  writes instructions.json

A run counts what an operation costs from Python, without the loop around it: what a loop of NR_CALLS takes beyond an
empty one. They hold for one build mode, compiler, machine, interpreter and C library, which are their key in the file;
tests/engine/test_instructions.py compares them only if there are some for the same.
"""

import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("instructions.json")
NR_CALLS = 500
TIMEOUT_S = 110
NR_PAGES = 64
PAGE = 4096
TOLERANCE = 0.02  # of the recorded count
TOLERANCES = {"pread(4096)": 0.05}  # the result comes from the C library's heap, whose shape differs between runs
SLACK = 8  # instructions: what addresses and the alignment of a copy may change


def key():
    """Return what the counts depend on besides the sources."""
    import pagecache

    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    mode = Path(pagecache.__file__).parent.parent.name.removeprefix("lib-")
    cpu = "avx2" if " avx2 " in Path("/proc/cpuinfo").read_text() else "no avx2"
    python, libc = platform.python_version(), "-".join(platform.libc_ver())
    return f"{mode} {Path(compiler).name}-{version} {platform.machine()} {cpu} python-{python} {libc}"


def phases(file):
    """Return what is counted: name and function, each called NR_CALLS times. The first is what a loop costs."""
    data = bytes(PAGE)
    pread, view, pwrite, mincore = file.pread, file.view, file.pwrite, file.mapping.mincore
    return {
        "nothing": lambda: None,
        "pread(64)": lambda: pread(64, 3 * PAGE),
        "pread(4096)": lambda: pread(PAGE, 3 * PAGE),
        "view(4096)": lambda: view(PAGE, 3 * PAGE),
        "pwrite(4096)": lambda: pwrite(data, 3 * PAGE),
        "mincore of 1 page": lambda: mincore(0, 1),
        f"mincore of {NR_PAGES} pages": lambda: mincore(0, NR_PAGES),
    }


def work():
    """Do all of it; callgrind begins a new file whenever getppid is called."""
    import pagecache
    from pagecache.stores import MemoryStore

    # No io_uring: valgrind holds every thread up while one waits in io_uring_enter.
    with pagecache.PageCache(4 * NR_PAGES * PAGE, io="threads") as cache:
        file = cache.open(MemoryStore(bytes(NR_PAGES * PAGE)), "r+b")
        for page in range(NR_PAGES):
            file.pread(1, page * PAGE)
        for function in phases(file).values():  # nothing is done for the first time later
            for _ in range(3):
                function()
        held = [file.pread(64, 0) for _ in range(64)]  # no result of that size needs, and gives back, a pool of its own
        del held[::2]
        gc.disable()
        os.getppid()
        for function in phases(file).values():
            for _ in range(NR_CALLS):
                function()
            os.getppid()
        file.close()


def count():
    """Return the instructions of each operation, by name. Needs valgrind."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            "valgrind", "--tool=callgrind", "--separate-threads=yes", "--dump-before=getppid",
            f"--callgrind-out-file={directory}/out", sys.executable, "-P", __file__, "--work",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"valgrind failed: {done.stderr[-2000:]}")
        totals = []
        for number in range(2, len(phases_names()) + 2):  # the first file is what comes before
            part = Path(directory, f"out.{number}-01").read_text()  # the main thread's
            totals.append(int(re.search(r"^(?:totals|summary): (\d+)", part, re.MULTILINE)[1]))
    return costs(dict(zip(phases_names(), totals, strict=True)))


def phases_names():
    """Return the names of the phases, in order."""
    from types import SimpleNamespace

    nothing = SimpleNamespace(mincore=None)
    return list(phases(SimpleNamespace(pread=None, view=None, pwrite=None, mapping=nothing)))


def costs(totals):
    """Return instructions an operation from those of each phase."""
    out = {name: round((total - totals["nothing"]) / NR_CALLS) for name, total in totals.items()}
    many, one = out.pop(f"mincore of {NR_PAGES} pages"), out.pop("mincore of 1 page")
    out["lookup"] = round((many - one) / (NR_PAGES - 1), 1)
    del out["nothing"]
    return out


def compare(found, recorded):
    """Return a line for each count that is not the recorded one, within the tolerance."""
    lines = []
    for name, expected in recorded.items():
        if abs(found[name] - expected) > expected * TOLERANCES.get(name, TOLERANCE) + SLACK:
            lines.append(f"{name}: {found[name]} instructions, recorded {expected}")
    return lines


def recorded():
    """Return all recorded counts, by key."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def main():
    """Count and print; with --record, write them down."""
    if "--work" in sys.argv:
        work()
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("needs valgrind (Debian: apt install valgrind)")
    found = count()
    print(key())
    for name, instructions in found.items():
        print(f"  {name:<14}{instructions:>8}")
    if "--record" in sys.argv:
        RECORD.write_text(json.dumps({**recorded(), key(): found}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
