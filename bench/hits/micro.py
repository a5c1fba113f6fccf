"""The engine's operations in C as a table: one thread and two, shuffled pages and one hot page."""

import os
import statistics
from dataclasses import dataclass

import _microbench

ROUNDS = 7
THREADS = (1, 2)
ROUND_OPERATIONS = {  # enough that a round outlasts the time a system takes to spread threads over processors
    "radix walk": 50_000_000,
    "lookup": 20_000_000,
    "insert+evict": 1_000_000,
}
ROUND_OPERATIONS_DEFAULT = 10_000_000
OPERATIONS_WITHOUT_HOT = ("insert+evict",)  # one page cannot be inserted twice


@dataclass
class Row:
    """One operation: nanoseconds of the best and the median round, by number of threads."""

    operation: str
    pages: str
    best_ns: dict[int, float]
    median_ns: dict[int, float]

    @property
    def speedup(self) -> float:
        """Throughput of two threads over that of one, by the medians."""
        return self.median_ns[1] / self.median_ns[2]


def measure_all() -> list[Row]:
    """Measure every operation."""
    return [
        measure(operation, hot)
        for operation in _microbench.OPERATIONS
        for hot in (False, True)
        if not (hot and operation in OPERATIONS_WITHOUT_HOT)
    ]


def measure(operation: str, hot: bool) -> Row:
    """Measure one operation with one thread and with two."""
    best_ns, median_ns = {}, {}
    for nr_threads in THREADS:
        nr_operations = ROUND_OPERATIONS.get(operation, ROUND_OPERATIONS_DEFAULT)
        times = _microbench.measure(operation, nr_threads, hot, nr_operations, rounds=ROUNDS)
        best_ns[nr_threads], median_ns[nr_threads] = min(times), statistics.median(times)
    return Row(operation, "one hot page" if hot else "65,536 at random", best_ns, median_ns)


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown, under a line about the processors."""
    lines = [
        f"Nanoseconds an operation, of all threads together; {os.cpu_count()} processors.",
        "",
        "| operation | pages | 1 thread, best | median | 2 threads, best | median | throughput of 2 over 1 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.operation} | {row.pages} | {row.best_ns[1]:.1f} | {row.median_ns[1]:.1f} "
            f"| {row.best_ns[2]:.1f} | {row.median_ns[2]:.1f} | {row.speedup:.2f} |"
        )
    return "\n".join(lines)
