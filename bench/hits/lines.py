"""Lines of a cached file against those of open(), all sides in turns.

    python -m bench hits.lines [--lines 400000] [--rounds 7] [--kinds File "recheck=60"]

Lines of 10 to 89 bytes; the file is cached here, and in the kernel's page cache there. Prints nanoseconds a line, and for
each kind of handle the ratio of the best times and that of the medians.
"""

import argparse
import contextlib
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


def chained(path: Path, **options: Any) -> Any:
    """Open a path by fsspec."""
    import fsspec

    import pagecache.adapters.fsspec  # noqa: F401

    return fsspec.filesystem("pagecache", target_protocol="file", **options).open(str(path))


KINDS: dict[str, Callable[[pagecache.PageCache, Path], Any]] = {
    "File": lambda cache, path: cache.open(path),
    "recheck=60": lambda cache, path: cache.open(path, recheck=60),
    "recheck=True": lambda cache, path: cache.open(path, recheck=True),
    "on_change=reload": lambda cache, path: cache.open(path, on_change="reload"),
    "pagecache::": lambda cache, path: chained(path),
    "pagecache::, recheck=60": lambda cache, path: chained(path, recheck=60),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    options = parser.parse_args()
    generator = random.Random(1)
    print(f"| way | open(), ns | {' | '.join(options.kinds)} |\n|---|--:|{'--:|' * len(options.kinds)}")
    with contextlib.ExitStack() as closing:
        path = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "lines"
        cache = closing.enter_context(pagecache.PageCache("128MiB"))
        closing.enter_context(pagecache.using(cache))
        with path.open("wb") as out:
            out.writelines(bytes(generator.choices(b"abcdefgh,12", k=generator.randrange(10, 90))) + b"\n"
                           for _ in range(options.lines))  # fmt: skip
        files = [closing.enter_context(path.open("rb"))]
        for kind in options.kinds:
            files.append(closing.enter_context(KINDS[kind](cache, path)))
            files[-1].read()
        for name in options.ways:
            seconds: list[list[float]] = [[] for _ in files]
            for number in range(options.rounds):
                order = list(enumerate(files))
                for side, file in order if number % 2 else reversed(order):
                    file.seek(0)
                    started = time.perf_counter()
                    WAYS[name](file)
                    seconds[side].append(time.perf_counter() - started)
            theirs = seconds[0]
            ratios = [f"{min(ours) / min(theirs):.2f}, {statistics.median(ours) / statistics.median(theirs):.2f}"
                      for ours in seconds[1:]]  # fmt: skip
            print(f"| `{name}` | {min(theirs) / options.lines * 1e9:.0f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
