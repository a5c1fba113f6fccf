"""The runs as a page in Markdown."""

import os
import platform
from collections.abc import Callable

from .goals import GOAL, goals
from .peer import PAGE_BYTES
from .runs import Runs
from .timing import Cell

KIB = 1024
COMMAND = "PAGECACHE_BENCH=1 PAGECACHE_MODE=release python setup.py -q build_mode\n" + (
    "python -m bench peers --write"
)
TITLES = {"ours": "this library", "system": "the system", "cache": "caches"}


def size_name(nbytes: int) -> str:
    """Return 64 B, 4 KiB, 1 MiB ..."""
    for unit, factor in (("MiB", KIB * KIB), ("KiB", KIB)):
        if nbytes % factor == 0:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"


def column_name(nbytes: int, nr_threads: int) -> str:
    """Return the title of a column."""
    return f"{size_name(nbytes)}, {nr_threads} thread{'s' if nr_threads > 1 else ''}"


def ns_table(runs: Runs, figure: Callable[[Cell], float]) -> str:
    """Return nanoseconds of a read by every peer."""
    columns = runs.columns()
    lines = [
        "| | " + " | ".join(column_name(*column) for column in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for kind, title in TITLES.items():
        lines.append(f"| **{title}** |" + " |" * len(columns))
        for name in (name for name in runs.names if runs.last.kinds[name] == kind):
            numbers = [ns_text(runs, Cell(name, *column), figure) for column in columns]
            lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def ns_text(runs: Runs, cell: Cell, figure: Callable[[Cell], float]) -> str:
    """Return one number; a mark says that nothing was copied."""
    if not runs.rounds(cell):
        return "—"
    return f"{figure(cell):,.0f}" + ("°" if runs.uncopied(cell.peer, cell.nbytes) else "")


def goal_table(runs: Runs) -> str:
    """Return our ratios to the best cache."""
    lines = [
        f"| read | this library | ns | best of the caches | ns | ratio, best | median | of each run | <= {GOAL} |",
        "|---|---|--:|---|--:|--:|--:|---|---|",
    ]
    for goal in goals(runs):
        each = ", ".join(f"{ratio:.2f}" for ratio in goal.ratios)
        lines.append(
            f"| {column_name(goal.ours.nbytes, goal.ours.nr_threads)} | {goal.ours.peer.removeprefix('pagecache ')} "
            f"| {runs.median(goal.ours):,.0f} | {goal.theirs.peer} | {runs.median(goal.theirs):,.0f} "
            f"| {goal.best:.2f} | {goal.ratio:.2f} | {each} | {'yes' if goal.met else 'no'} |"
        )
    return "\n".join(lines)


def libraries(runs: Runs) -> str:
    """Return which versions were measured."""
    named = {name.split(" ")[0].split(".")[0].rstrip(","): each for name, each in runs.last.versions.items() if each}
    return ", ".join(f"{name} {version}" for name, version in named.items() if name != "pagecache")


def missing(runs: Runs) -> str:
    """Return which peers could not be measured, and why."""
    if not runs.last.missing:
        return "No peer is missing."
    return "Missing:\n\n" + "\n".join(f"* {name}: {reason}" for name, reason in runs.last.missing.items())


def page(runs: Runs, nbytes: int) -> str:
    """Return the whole page."""
    columns = runs.columns()
    name = runs.names[0]
    rounds = len(runs.rounds(Cell(name, *columns[0])))
    return f"""# Peers side by side

Written by

```sh
{COMMAND}
```

Random reads at multiples of their size in {size_name(nbytes)}; every read hits: each peer held the whole file before.
All peers lie in one process and take turns in every round, beginning with another one each time; runs at different
times: {len(runs.runs)}, rounds in all: {rounds}. Loops contain nothing but what a user of the peer would write.
Two threads: time from the first start to the last end over the reads of both, under the GIL, on {os.cpu_count()} processors
that were shared with other work. Caches of blocks hold {PAGE_BYTES}-byte blocks unless their names say otherwise.
*Large*: the file was read in order first, so it lies in folios of up to 2 MiB; *small*: every folio is a page, in
random frames.
° copies nothing: the object that is stored, or a view.

Python {platform.python_version()}, {libraries(runs)}. {missing(runs)}

![Nanoseconds of a read, by size](peers.svg)

## Against the best of the caches

Nanoseconds are medians. Copies are compared with copies; what a cache answers by handing out a stored object uncopied,
with `view` (which copies where the bytes lie in several folios). The cache with the best round is taken. A ratio of each
run is one of medians. The goal is met if best and median meet it.

{goal_table(runs)}

## Nanoseconds of a read, median

{ns_table(runs, runs.median)}

## Nanoseconds of a read, best round

{ns_table(runs, runs.best)}
"""
