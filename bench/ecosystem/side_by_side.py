"""Real libraries reading real files over HTTP, through other caches and through ours, side by side.

    python -m bench ecosystem.side_by_side

The server counts requests and bytes and answers each request after 20 ms. Each way begins with nothing known of the server,
and reads twice; whatever gives another answer than the others is marked as wrong, whatever fails with its error.
"""

import argparse
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.ecosystem import readers
from bench.ecosystem.samples import RemoteServer, S3Server, make_all
from pagecache.requests.speed import forget_origins

SETTLE_S = 0.3  # after a pass: what was read ahead still counts for it
LIBRARIES = ["fsspec", "aiohttp", "s3fs", "pyarrow", "zarr", "obstore", "h5py", "duckdb", "rasterio"]


def measure(begin: Any, server: RemoteServer) -> list[Any]:
    """Run both passes of a way. Returns (answer or exception, seconds, requests, bytes) of each."""
    forget_origins()
    run, end = begin()
    passes = []
    for _ in range(2):
        server.take()
        started = time.perf_counter()
        try:
            answer = run()
        except Exception as error:
            answer = error
        seconds = time.perf_counter() - started
        time.sleep(SETTLE_S)
        passes.append((answer, seconds, *server.take()))
    end()
    return passes


def verdict(answer: Any, right: Any) -> str:
    """Return what to say of an answer."""
    if isinstance(answer, Exception):
        return type(answer).__name__
    return "" if answer == right else "WRONG"


def table(title: str, rows: list[tuple[str, list[Any]]]) -> str:
    """Return the table of one work. The answer that most ways agree on is the right one."""
    answers = [passed[0] for _, passes in rows for passed in passes if not isinstance(passed[0], Exception)]
    right = max(answers, key=answers.count, default=None)
    lines = [f"### {title}", "", "| | first: s | requests | MB | second: s | requests | MB | |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|---|")
    for name, passes in rows:
        cells = [f"{seconds:.2f} | {requests} | {nbytes / 1e6:.1f}" for _, seconds, requests, nbytes in passes]
        said = " ".join(dict.fromkeys(verdict(answer, right) for answer, *_ in passes))
        lines.append(f"| {name} | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


def main() -> None:
    """Run the works that are asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    works = [*readers.WORKS, *readers.S3_WORKS]
    parser.add_argument("works", nargs="*", choices=[*works, []], help="all over HTTP if none is given")
    parser.add_argument("--directory", type=Path, default=Path("build/ecosystem"), help="where the files are, or are made")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--only", help="ways whose names contain this")
    parser.add_argument("--without", help="leave out ways of this name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    make_all(arguments.directory)
    print(", ".join(f"{name} {version(name)}" for name in LIBRARIES) + f"; {arguments.latency * 1000:g} ms a request\n")
    works = arguments.works or list(readers.WORKS)
    for kind, table_of in ((RemoteServer, readers.WORKS), (S3Server, readers.S3_WORKS)):
        names = [work for work in works if work in table_of]
        if not names:
            continue
        server = kind(arguments.directory, arguments.latency)
        for work in names:
            ways = table_of[work]
            rows = [
                (name, measure(begin, server))
                for name, begin in ways(server)
                if (arguments.only or "") in name and name != arguments.without
            ]
            title = ways.__doc__.rstrip(".") + (" (S3)" if kind is S3Server else "")
            print(table(title, rows), end="\n\n", flush=True)
        server.close()


if __name__ == "__main__":
    main()
