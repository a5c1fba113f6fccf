"""An anchor as Python sees it: something that repeats an operation in threads of its own and says how long it took."""

import ctypes
import itertools
import random
from pathlib import Path
from typing import Protocol

LOOKUP = "lookup"
PIN = "lookup+pin+unpin"
OPERATIONS = (LOOKUP, PIN)


class Anchor(Protocol):
    """What is timed."""

    name: str
    operations: tuple[str, ...]

    def run(self, operation: str, nr_threads: int, hot: bool, nr_operations: int) -> tuple[float, float]:
        """Return nanoseconds of an operation: elapsed time, and processor time, over those of all threads."""
        ...


class Library:
    """An anchor compiled from C. It is filled when it is opened.

    Raises:
        MemoryError: there is no room for it.
    Context: a run gives up the GIL.
    """

    def __init__(self, name: str, path: Path, nr_pages: int) -> None:
        self.name = name
        self.nr_pages = nr_pages
        self.library = ctypes.CDLL(str(path))
        self.library.anchor_open.restype = ctypes.c_void_p
        self.operations = OPERATIONS if self.library.anchor_pins() else (LOOKUP,)
        numbers = ctypes.c_uint32 * nr_pages
        order = shuffled(nr_pages, seed=2)
        self.orders = {False: numbers(*order), True: numbers()}
        self.sums = list(itertools.accumulate((index + 1 for index in order), initial=0))
        self.opened = self.library.anchor_open(nr_pages, numbers(*shuffled(nr_pages, seed=1)))
        if not self.opened:
            raise MemoryError(f"{name} has no room for {nr_pages} pages")

    def run(self, operation: str, nr_threads: int, hot: bool, nr_operations: int) -> tuple[float, float]:
        """Time one round.

        Raises:
            RuntimeError: a thread did not start, or found something else than what was put in.
        """
        elapsed_ns, cpu_ns, found = ctypes.c_int64(), ctypes.c_int64(), ctypes.c_uint64()
        error = self.library.anchor_run(
            ctypes.c_void_p(self.opened), int(operation == PIN), nr_threads, ctypes.c_uint64(nr_operations),
            self.orders[hot], ctypes.byref(elapsed_ns), ctypes.byref(cpu_ns), ctypes.byref(found),
        )  # fmt: skip
        if error:
            raise RuntimeError(f"{self.name}: a thread did not start")
        if found.value != self.expected(nr_threads, hot, nr_operations):
            raise RuntimeError(f"{self.name} found something else than what was put in")
        total = nr_threads * nr_operations
        return elapsed_ns.value / total, cpu_ns.value / total

    def expected(self, nr_threads: int, hot: bool, nr_operations: int) -> int:
        """Return the sum of what a round finds: each index and one."""
        if hot:
            return nr_threads * nr_operations
        starts = [slot * (self.nr_pages // 2) for slot in range(nr_threads)]
        return sum(self.sum_before(start + nr_operations) - self.sum_before(start) for start in starts)

    def sum_before(self, place: int) -> int:
        """Return the sum of what the first `place` lookups find, over and over the same order."""
        passes, rest = divmod(place, self.nr_pages)
        return passes * self.sums[-1] + self.sums[rest]


class Engine:
    """This library's lookup and the bare walk over numbers that is built into the same extension."""

    operations: tuple[str, ...]

    def __init__(self, name: str, pages, operations: dict[str, str]) -> None:
        self.name = name
        self.pages = pages
        self.names = operations
        self.operations = tuple(operations)

    def run(self, operation: str, nr_threads: int, hot: bool, nr_operations: int) -> tuple[float, float]:
        """Time one round."""
        return self.pages.run(self.names[operation], nr_threads, hot, nr_operations)


def shuffled(nr_pages: int, seed: int) -> list[int]:
    """Return all page indices, shuffled."""
    return random.Random(seed).sample(range(nr_pages), nr_pages)
