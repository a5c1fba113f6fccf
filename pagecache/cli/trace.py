"""`pagecache trace`: run an access trace through the real engine, and print what each policy misses."""

import argparse
import json
import math
import sys
import time
from array import array
from typing import TypedDict

from pagecache.stats.trace import FORMATS, POLICIES, read_trace, run_policy
from pagecache.units import parse_size

PAGE_BYTES = 4096
BAR_COLUMNS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument("path", metavar="FILE", help="the trace: .npz or .npy of page numbers, text, oracleGeneral")
    parser.add_argument(
        "--sizes",
        default="0.1%,1%,5%,10%,20%",
        help="cache sizes: shares of the distinct pages, numbers of pages, or bytes as 64MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--policy",
        default="all",
        help=f"policies, separated by commas: {', '.join(POLICIES)}, or all (default: %(default)s)",
    )
    parser.add_argument("--format", choices=FORMATS, default=None, help="the file's format (default: by its name)")
    parser.add_argument("--check", action="store_true", help="prove the engine's invariants after each run")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Run every policy at every size. Returns 0. Raises OSError, ValueError for what cannot be used."""
    policies = policies_of(arguments.policy)
    pages = read_trace(arguments.path, arguments.format)
    if not pages:
        raise ValueError(f"{arguments.path} holds no accesses")
    nr_distinct = len(set(pages))
    sizes = [(text.strip(), frames_of(text, nr_distinct)) for text in arguments.sizes.split(",")]
    runs = [run_one(pages, policy, text, nr, arguments.check) for text, nr in sizes for policy in policies]
    outcome = {"trace": arguments.path, "accesses": len(pages), "distinct_pages": nr_distinct, "runs": runs}
    if arguments.json:
        print(json.dumps(outcome, indent=2))
        return 0
    lines = [f"{arguments.path}: {len(pages):,} accesses to {nr_distinct:,} distinct pages", ""]
    lines += [*table(runs, sizes, policies), "", *chart(runs, sys.stdout.encoding)]
    print("\n".join(lines))
    return 0


def policies_of(text: str) -> list[str]:
    """Return the policies that a list with commas names."""
    names = list(POLICIES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"unknown policy {name!r}: use all, or some of {', '.join(POLICIES)}")
    return names


def frames_of(text: str, nr_distinct: int) -> int:
    """Return the pages of a cache whose size is a share of the distinct pages, a number of pages, or bytes with a unit."""
    text = text.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if not math.isfinite(share) or share <= 0:
                raise ValueError
            return max(1, round(nr_distinct * share / 100))
        nr = int(text) if text.isdigit() else parse_size(text) // PAGE_BYTES
    except (ValueError, OverflowError):
        raise ValueError(f"cannot read the size {text!r}: use 5%, 1000 (pages) or 64MiB") from None
    if nr < 1:
        raise ValueError(f"a cache of {text!r} holds no page")
    return nr


class Run(TypedDict):
    """What came of one run: an object of JSON."""

    policy: str
    size: str
    pages: int
    miss_ratio: float
    seconds: float


def run_one(pages: "array[int]", policy: str, text: str, nr_frames: int, check: bool) -> Run:
    """Run one policy at one size; return what came of it."""
    start = time.perf_counter()
    ratio = run_policy(pages, policy, nr_frames, check=check)
    seconds = time.perf_counter() - start
    return {"policy": policy, "size": text, "pages": nr_frames, "miss_ratio": ratio, "seconds": seconds}


def table(runs: list[Run], sizes: list[tuple[str, int]], policies: list[str]) -> list[str]:
    """Return the miss ratios in percent, a line for each size, as lines of text."""
    lines = ["miss ratio %".ljust(22) + "".join(name.rjust(11) for name in policies)]
    for row, (text, nr_frames) in enumerate(sizes):
        ratios = [each["miss_ratio"] for each in runs[row * len(policies) : (row + 1) * len(policies)]]
        best = min(ratios)
        cells = [f"{100 * ratio:.2f}{'*' if ratio == best else ' '}".rjust(11) for ratio in ratios]
        lines.append(f"{text} ({nr_frames:,} pages)".ljust(22) + "".join(cells))
    return lines


def chart(runs: list[Run], encoding: str | None) -> list[str]:
    """Return a bar for each run, as lines of text."""
    full = "█" if (encoding or "").lower().replace("-", "") == "utf8" else "#"
    lines = []
    for number, each in enumerate(runs):
        if number and each["size"] != runs[number - 1]["size"]:
            lines.append("")
        bar = full * round(BAR_COLUMNS * each["miss_ratio"])
        lines.append(f"{each['size']:>8} {each['policy']:<9} {bar:<{BAR_COLUMNS}} {100 * each['miss_ratio']:6.2f}")
    return lines
