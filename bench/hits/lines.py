"""Lines of a cached file against those of open(), both sides in turns.

    python -m bench hits.lines [--lines 400000] [--rounds 7]

Lines of 10 to 89 bytes; the file is cached here, and in the kernel's page cache there. Prints nanoseconds a line.
"""

import argparse
import csv
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pagecache


def iterate(file: Any) -> None:
    """Take one line after the other."""
    for _ in file:
        pass


def call_readline(file: Any) -> None:
    """Call readline until the end."""
    while file.readline():
        pass


def read_text(file: Any) -> None:
    """Take lines of text."""
    wrapped = io.TextIOWrapper(file)
    iterate(wrapped)
    wrapped.detach()


def read_csv(file: Any) -> None:
    """Take rows of text."""
    wrapped = io.TextIOWrapper(file)
    iterate(csv.reader(wrapped))
    wrapped.detach()


WAYS: dict[str, Callable[[Any], Any]] = {
    "for line in file": iterate,
    "readline": call_readline,
    "readlines": lambda file: file.readlines(),
    "io.TextIOWrapper": read_text,
    "csv.reader over it": read_csv,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    generator = random.Random(1)
    print("| way | open(), ns | ours, ns | ratio: best | median |\n|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as directory, pagecache.PageCache("128MiB") as cache:
        path = Path(directory) / "lines"
        with path.open("wb") as out:
            out.writelines(bytes(generator.choices(b"abcdefgh,12", k=generator.randrange(10, 90))) + b"\n"
                           for _ in range(options.lines))  # fmt: skip
        with path.open("rb") as theirs, cache.open(path) as ours:
            ours.readall()
            for name, way in WAYS.items():
                seconds: tuple[list[float], list[float]] = ([], [])
                for number in range(options.rounds):
                    for side in (0, 1) if number % 2 else (1, 0):
                        file = (theirs, ours)[side]
                        file.seek(0)
                        started = time.perf_counter()
                        way(file)
                        seconds[side].append(time.perf_counter() - started)
                best = [min(each) / options.lines * 1e9 for each in seconds]
                ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
                print(f"| `{name}` | {best[0]:.0f} | {best[1]:.0f} | {best[1] / best[0]:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
