"""README's two examples: the same lines with `https://...` and with `pagecache::https://...`, in turns.

    python -m bench ecosystem.front_door [--rounds 5] [--latency 0.02]

A walk over all groups of an HDF5 file of 2,000 data sets with h5py, and the first ten rows of a CSV of 64 MiB with pandas.
Each side is a process of its own for each round, so that nothing is cached before; the server counts requests and bytes,
and waits before each answer.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.ecosystem.samples import RemoteServer, make_hdf5

CSV_ROWS = 1_100_000
WORK = {
    "h5py: walk over 2,000 data sets": """
import fsspec, h5py
with fsspec.open(url) as remote, h5py.File(remote) as file:
    shapes = []
    file.visititems(lambda name, item: shapes.append(getattr(item, "shape", None)))
answer = len(shapes)
""",
    "pandas.read_csv(url, nrows=10)": """
import pandas
answer = float(pandas.read_csv(url, nrows=10)["x"].sum())
""",
}
FILES = ("many.h5", "table.csv")
PROGRAM = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
url = sys.argv[1]
if url.startswith("pagecache::"):
    import pagecache.adapters.fsspec
import aiohttp, fsspec, h5py, pandas, fsspec.implementations.http
begin = time.perf_counter()
{work}
print(json.dumps([answer, time.perf_counter() - begin]))
"""


def make_csv(root: Path) -> None:
    """A table of 64 MiB in text."""
    if not (root / "table.csv").exists():
        with open(root / "table.csv", "w") as file:
            file.write("id,x,y,name\n")
            for number in range(CSV_ROWS):
                file.write(f"{number},{number * 0.37:.6f},{number * 1.91:.6f},row number {number}\n")


def run(work: str, url: str, server: RemoteServer) -> tuple[object, float, int, int]:
    """Run one side once. Returns (answer, seconds, requests, bytes)."""
    server.take()
    command = [sys.executable, "-P", "-c", PROGRAM.format(work=work), url]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, seconds = json.loads(ran.stdout)
    return answer, seconds, *server.take()


def main() -> None:
    """Print a row for each work and side: medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--directory", type=Path, default=Path("build/front_door"))
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    if not (arguments.directory / "many.h5").exists():
        make_hdf5(arguments.directory)
    make_csv(arguments.directory)
    server = RemoteServer(arguments.directory, arguments.latency)
    print("| | url | seconds | requests | MB |\n|---|---|--:|--:|--:|")
    for (name, work), file in zip(WORK.items(), FILES, strict=True):
        rounds: dict[str, list[tuple[object, float, int, int]]] = {"": [], "pagecache::": []}
        for _ in range(arguments.rounds):
            for prefix, found in rounds.items():
                found.append(run(work, prefix + server.url(file), server))
        answers = {found[0] for each in rounds.values() for found in each}
        assert len(answers) == 1, answers
        for prefix, found in rounds.items():
            seconds, requests, nbytes = (statistics.median(each[column] for each in found) for column in (1, 2, 3))
            print(f"| {name} | `{prefix}http://...` | {seconds:.2f} | {requests:.0f} | {nbytes / 1e6:.1f} |", flush=True)
    server.close()


if __name__ == "__main__":
    main()
