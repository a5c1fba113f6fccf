"""What was measured, as a page in Markdown."""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .anchor import LOOKUP, OPERATIONS, PIN

OURS = "this library"
RADIX = "bare radix walk, pointers"
RADIX_NUMBERS = "bare radix walk, 32-bit numbers"
HYPER_CLOCK = "RocksDB HyperClockCache"
SPEEDUP_GOAL = 1.9
COMMAND = "PAGECACHE_BENCH=1 PAGECACHE_MODE=release python setup.py -q build_mode\n" + (
    "python -m bench anchors --write"
)


@dataclass(frozen=True)
class Cell:
    """What one number is about."""

    name: str
    operation: str
    hot: bool
    nr_threads: int


@dataclass
class Rounds:
    """Nanoseconds of an operation in every round of one run: elapsed and processor time."""

    elapsed_ns: dict[Cell, list[float]]
    cpu_ns: dict[Cell, list[float]]


Figure = Callable[[Sequence[float]], float]


def pooled(runs: Sequence[Rounds], cell: Cell, cpu: bool = False) -> list[float]:
    """Return the rounds of all runs."""
    return [ns for run in runs for ns in (run.cpu_ns if cpu else run.elapsed_ns).get(cell, ())]


def operation_table(runs: Sequence[Rounds], operation: str) -> str:
    """Return one operation by every anchor: best and median of elapsed time, and the median of processor time."""
    cells = [cell for cell in runs[-1].elapsed_ns if cell.operation == operation]
    names = list(dict.fromkeys(cell.name for cell in cells))
    columns = [(hot, nr_threads) for hot in (False, True) for nr_threads in (1, 2)]
    titles = [f"{'one hot page' if hot else 'random'}, {nr} thread{'s' if nr > 1 else ''}" for hot, nr in columns]
    lines = [f"| {operation} | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(columns)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(numbers(runs, Cell(name, operation, *each)) for each in columns) + " |")
    return "\n".join(lines)


def numbers(runs: Sequence[Rounds], cell: Cell) -> str:
    """Return best / median / processor time."""
    elapsed, cpu = pooled(runs, cell), pooled(runs, cell, cpu=True)
    if not elapsed:
        return "—"
    return f"{min(elapsed):.1f} / {statistics.median(elapsed):.1f} / {statistics.median(cpu):.1f}"


def ratio(runs: Sequence[Rounds], ours: Cell, theirs: Cell, figure: Figure = statistics.median, cpu: bool = False) -> float:
    """Return one figure over another, of the rounds of all runs."""
    return figure(pooled(runs, ours, cpu)) / figure(pooled(runs, theirs, cpu))


def goal_table(runs: Sequence[Rounds]) -> str:
    """Return the goals with what was reached."""
    lines = ["| work | against | ratio, best | median | processor time | of each run | goal | met |"]
    lines.append("|---|---|--:|--:|--:|---|--:|---|")
    goals = [(LOOKUP, RADIX, 4.0), (LOOKUP, RADIX_NUMBERS, 4.0), (PIN, HYPER_CLOCK, 0.25)]
    for operation, against, goal in goals:
        for hot in (False, True):
            ours, theirs = Cell(OURS, operation, hot, 1), Cell(against, operation, hot, 1)
            if pooled(runs, theirs):
                lines.append(goal_row(runs, ours, theirs, goal))
    for operation in (LOOKUP, PIN):
        lines += [speedup_row(runs, operation, hot) for hot in (False, True)]
    lines += [speedup_row(runs, "copy of 64 bytes", hot) for hot in (False, True)]
    return "\n".join(lines)


def goal_row(runs: Sequence[Rounds], ours: Cell, theirs: Cell, goal: float) -> str:
    """Return a row about our time over another's."""
    best, median = ratio(runs, ours, theirs, min), ratio(runs, ours, theirs)
    cpu = ratio(runs, ours, theirs, cpu=True)
    each = ", ".join(f"{ratio([run], ours, theirs):.2f}" for run in runs)
    pages = "one hot page" if ours.hot else "random pages"
    figures = (best, median, cpu)
    return row(f"{ours.operation}, {pages}", theirs.name, figures, each, f"<= {goal}", max(figures) <= goal)


def speedup_row(runs: Sequence[Rounds], operation: str, hot: bool) -> str:
    """Return a row about the throughput of two threads over that of one."""
    one, two = Cell(OURS, operation, hot, 1), Cell(OURS, operation, hot, 2)
    best, median = ratio(runs, one, two, min), ratio(runs, one, two)
    cpu = 2 * ratio(runs, one, two, cpu=True)
    each = ", ".join(f"{ratio([run], one, two):.2f}" for run in runs)
    pages = "one hot page" if hot else "random pages"
    figures = (best, median, cpu)
    return row(f"{operation}, {pages}, 2 threads", "1 thread", figures, each, f">= {SPEEDUP_GOAL}", best >= SPEEDUP_GOAL)


def row(work: str, against: str, figures: Sequence[float], each: str, goal: str, met: bool) -> str:
    """Return a row of the goals."""
    shown = " | ".join(f"{figure:.2f}" for figure in figures)
    return f"| {work} | {against} | {shown} | {each} | {goal} | {'yes' if met else 'no'} |"


def page(runs: Sequence[Rounds], missing: dict[str, str], nr_pages: int) -> str:
    """Return the whole page."""
    rounds = len(pooled(runs, next(iter(runs[-1].elapsed_ns))))
    absent = "".join(f"\n* {name}: {reason}" for name, reason in missing.items())
    return f"""# Lookups in C, beside anchors

Written by

```sh
apt install liburcu-dev libjudy-dev libtbb-dev librocksdb-dev
{COMMAND}
```

{nr_pages:,} entries; C loops without the GIL over shuffled indices, or over one. All anchors lie in one process and take
turns in every round; runs at different times: {len(runs)}, rounds in all: {rounds}. The {os.cpu_count()} processors were
shared with other work. A goal against others is met if all three ratios meet it, one of two threads if the best round does,
for two threads need both processors. Processor time does not count the time of other programs; it shows what threads do
to each other's cache lines as far as they ran at the same time.
{"Missing:" + absent if absent else "No anchor is missing."}

## Goals

Throughput of two threads by processor time: twice the time of one thread over that of two.

{goal_table(runs)}

## Nanoseconds of an operation

Best / median elapsed time over the operations of all threads, and median processor time of an operation.
HyperClockCache has no lookup without a pin, so its line is the same operation twice; a TBB accessor holds the element's
lock.

""" + "\n\n".join(operation_table(runs, operation) for operation in (*OPERATIONS, "copy of 64 bytes")) + "\n"
