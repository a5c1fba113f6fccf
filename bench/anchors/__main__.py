"""`python -m bench anchors`: compiles and measures the anchors, prints the page, and writes it into docs/."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import _microbench

from .anchor import LOOKUP, PIN, Anchor, Engine, Library
from .build import build
from .table import OURS, RADIX_NUMBERS, Cell, Rounds, page

ROOT = Path(__file__).resolve().parents[2]
ROUNDS_MIN = 7
NR_PAGES = 65_536
THREADS = (1, 2)
ROUND_NS = 2_000_000  # threads that have met at the start both still run when such a round ends, as a rule
OPERATIONS_MIN = NR_PAGES  # a whole pass: a part of the pages would fit into nearer caches
CALIBRATIONS = 3
COPY = "copy of 64 bytes"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m anchors", description=__doc__)
    parser.add_argument("--rounds", type=int, default=61, help=f"interleaved rounds, at least {ROUNDS_MIN}")
    parser.add_argument("--keep", type=Path, help="a file that keeps the runs; the page then shows all runs in it")
    parser.add_argument("--no-run", action="store_true", help="measure nothing: show the runs that --keep names")
    parser.add_argument("--write", action="store_true", help="write docs/anchors.md")
    return parser.parse_args(argv)


def anchors(paths: dict[str, Path], nr_pages: int) -> list[Anchor]:
    """Return everything that is timed, filled."""
    pages = _microbench.Pages(nr_pages)
    ours = Engine(OURS, pages, {LOOKUP: "lookup", PIN: "lookup+pin+unpin", COPY: COPY})
    radix = Engine(RADIX_NUMBERS, pages, {LOOKUP: "radix walk"})
    return [ours, radix, *(Library(name, path, nr_pages) for name, path in paths.items())]


def operations_of_a_round(anchor: Anchor, operation: str, hot: bool) -> int:
    """Return how many operations make a round."""
    count = OPERATIONS_MIN
    while True:
        taken_ns = min(anchor.run(operation, 1, hot, count)[0] for _ in range(CALIBRATIONS)) * count
        if taken_ns > ROUND_NS / 8:
            return max(OPERATIONS_MIN, int(count * ROUND_NS / taken_ns))
        count *= 4


def measure(timed: Sequence[Anchor], rounds: int) -> Rounds:
    """Time everything in turns, each round beginning with another cell."""
    found = Rounds({}, {})
    kinds = [(anchor, operation, hot) for anchor in timed for operation in anchor.operations for hot in (False, True)]
    counts = {(each[0].name, *each[1:]): operations_of_a_round(*each) for each in kinds}
    turns = [(*each, nr_threads) for each in kinds for nr_threads in THREADS]
    for number in range(rounds):
        first = number * 7 % len(turns)
        for anchor, operation, hot, nr_threads in turns[first:] + turns[:first]:
            cell = Cell(anchor.name, operation, hot, nr_threads)
            elapsed, cpu = anchor.run(operation, nr_threads, hot, counts[anchor.name, operation, hot])
            found.elapsed_ns.setdefault(cell, []).append(elapsed)
            found.cpu_ns.setdefault(cell, []).append(cpu)
    in_order = [Cell(anchor.name, operation, hot, nr_threads) for anchor, operation, hot, nr_threads in turns]
    return Rounds({cell: found.elapsed_ns[cell] for cell in in_order}, {cell: found.cpu_ns[cell] for cell in in_order})


def saved(run: Rounds) -> list:
    """Return a run as JSON can keep it."""
    return [
        [cell.name, cell.operation, cell.hot, cell.nr_threads, run.elapsed_ns[cell], run.cpu_ns[cell]]
        for cell in run.elapsed_ns
    ]


def loaded(kept: list) -> Rounds:
    """Return a run that was kept."""
    cells = [(Cell(*each[:4]), each[4], each[5]) for each in kept]
    return Rounds({cell: elapsed for cell, elapsed, _ in cells}, {cell: cpu for cell, _, cpu in cells})


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says."""
    found = arguments(argv)
    kept = json.loads(found.keep.read_text()) if found.keep and found.keep.exists() else []
    built = build()
    if not found.no_run:
        kept.append(saved(measure(anchors(built.paths, NR_PAGES), max(found.rounds, ROUNDS_MIN))))
        if found.keep:
            found.keep.write_text(json.dumps(kept))
    text = page([loaded(each) for each in kept], built.missing, NR_PAGES)
    print(text)
    if found.write:
        (ROOT / "docs/anchors.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
