"""`pagecache stat`: read a file or URL once through a cache, and say what that cost and what is cached then.

Everything that is shown comes from `File.stats`, `File.cachestat` and the measured speed of the store: what a program
that reads the same bytes in order would pay.
"""

import argparse
import json
import sys
import time
from typing import Any

import pagecache
from pagecache.cli import report, residency
from pagecache.cli.progress import Progress
from pagecache.units import format_size, parse_size

READ_BYTES = 1024 * 1024
JSON_CELLS_MAX = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument("source", metavar="URL_OR_PATH", help="a path, or a URL that fsspec knows")
    parser.add_argument("--size", default="256MiB", help="budget: bytes, 256MiB, 25%% (default: %(default)s)")
    parser.add_argument("--offset", default="0", help="first byte to read (default: %(default)s)")
    parser.add_argument("--bytes", default=None, dest="nbytes", help="how many to read, 0 for none (default: to the end)")
    parser.add_argument("--read-size", default=str(READ_BYTES), help="bytes of one read call (default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="storage option of the URL's file system, such as anon=true; may be given again",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Read, and report on standard output.

    Arguments:
        arguments: as `add_arguments` defines them.
    Returns:
        0.
    Raises:
        OSError: the object cannot be opened or read.
        ValueError: an argument makes no sense.
        ImportError: the URL needs a library that is not installed.
        TypeError: an option is none of the file system's.
    """
    offset, read_bytes = parse_size(arguments.offset), parse_size(arguments.read_size)
    nbytes = None if arguments.nbytes is None else parse_size(arguments.nbytes)
    if read_bytes < 1:
        raise ValueError("--read-size must be one byte or more")
    options = parse_options(arguments.option)
    with pagecache.PageCache(arguments.size) as cache:
        started = time.perf_counter()
        with cache.open(arguments.source, **options) as file:
            open_seconds = time.perf_counter() - started
            end = file.size if nbytes is None else min(file.size, offset + nbytes)
            found = read_through(file, min(offset, end), end, read_bytes)
            memory = cache.stats().memory
            found = {"memory": memory, "cache_bytes": cache.size, "open_seconds": open_seconds, **describe(file), **found}
            shares = residency.cell_shares(file.mincore(), JSON_CELLS_MAX)
            if arguments.json:
                print(json.dumps({**found, "cell_shares": shares}))
            else:
                print("\n".join(as_text(found, file.mincore(), sys.stdout.encoding)))
    return 0


def parse_options(words: list[str]) -> dict[str, Any]:
    """Return storage options from NAME=VALUE words; values are JSON where they can be read as such. Raises ValueError."""
    options: dict[str, Any] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not name or not separator:
            raise ValueError(f"cannot read the option {word!r}: write NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def read_through(file: Any, start: int, end: int, read_bytes: int) -> dict[str, Any]:
    """Read bytes [start, end) in order. Returns what that cost."""
    buffer = bytearray(min(read_bytes, max(1, end - start)))
    position, reads = start, 0
    began = time.perf_counter()
    with Progress("reading", end - start) as progress, memoryview(buffer) as view:
        while position < end:
            got = file.preadinto(view[: min(len(buffer), end - position)], position)
            if got == 0:
                break
            position, reads = position + got, reads + 1
            progress.advance(got)
    seconds = time.perf_counter() - began
    return {"read_bytes": position - start, "reads": reads, "seconds": seconds, **file.stats().as_dict()}


def describe(file: Any) -> dict[str, Any]:
    """Return what is known of an object and its store."""
    backing = file.mapping.backing
    return {
        "validator": file.mapping.validator,
        "parallel_requests": backing.hints.parallel_requests,
        "max_request_bytes": backing.hints.max_request,
    }


def source_lines(found: dict[str, Any]) -> list[str]:
    """Return where the bytes came from, if that was not the origin alone."""
    lines = []
    for source, text in (("peer", "peers"), ("second_level", "second level")):
        hits, failures = found[f"{source}_hits"], found[f"{source}_failures"]
        if hits or failures:
            failed = f", {failures:,} more failed" if failures else ""
            lines.append(f"  {text:14}{hits:,} requests, {format_size(found[f'{source}_bytes'])}{failed}")
    if lines:
        lines.append(f"  {'origin':14}{found['origin_requests']:,} requests, {format_size(found['origin_bytes'])}")
    return lines


def as_text(found: dict[str, Any], resident: bytes, encoding: str | None) -> list[str]:
    """Return what was found as lines of text for a stream of an encoding."""
    requests, fetched, read = found["store_reads"], found["store_read_bytes"], found["read_bytes"]
    name = found["name"].encode(encoding or "ascii", "backslashreplace").decode(encoding or "ascii")
    seconds = found["seconds"]
    speed = f", {format_size(int(read / seconds))}/s" if seconds and read else ""
    mean = f", {format_size(fetched // requests)} each" if requests else ""
    share = f", {fetched / read:.2f} of what was read" if read else ""
    lines = [
        f"object     {name}",
        f"           {format_size(found['size_bytes'])} ({found['size_bytes']:,} bytes)",
        f"version    {found['validator'] or 'unknown'}",
        f"opened in  {found['open_seconds']:.3f} s",
        f"read       {format_size(read)} by {found['reads']:,} reads in {seconds:.3f} s{speed}",
        f"requests   {requests:,}{mean}",
        f"fetched    {format_size(fetched)}{share}",
        *source_lines(found),
        f"misses     {found['misses']:,} reads waited",
        f"readahead  {found['readahead_pages']:,} pages: {found['readahead_hits']:,} used, "
        f"{found['readahead_wasted']:,} wasted, {found['readahead_waiting']:,} not used yet",
    ]
    lines += ["", *report.memory_lines(found["memory"])]
    if resident:
        lines += ["", *report.residency_lines(resident, encoding, "now")]
    return lines
