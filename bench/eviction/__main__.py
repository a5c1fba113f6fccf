"""Run traces through the engine's policies and reference simulators; print tables in Markdown.

    make eviction ARGS="DIRECTORY..."       every .npz, .npy, .txt trace of the directories
    make eviction ARGS="--synthetic 1"      traces made from a seed (eviction/synthetic.py)
"""

import argparse
import json
import sys
from array import array
from pathlib import Path

from eviction import reference, synthetic

from pagecache.stats.trace import POLICIES, read_trace, run_policy

SHARES = (0.001, 0.01, 0.05, 0.10, 0.20)
NO_ROOM = 1.0
OURS = "adaptive"


def main() -> int:
    """Run all and print; with --json write the miss ratios as well."""
    parser = argparse.ArgumentParser(prog="make eviction ARGS=...", description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path)
    parser.add_argument("--synthetic", type=int, metavar="SEED", help="make traces from a seed")
    parser.add_argument("--only", default="", help="names of traces that contain this")
    parser.add_argument("--known", type=Path, help="take the reference's miss ratios from this file of --json")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    traces = dict(found(arguments.directories))
    if arguments.synthetic is not None:
        traces.update(synthetic.traces(arguments.synthetic))
    known = json.loads(arguments.known.read_text()) if arguments.known else []
    rows = []
    for name, pages in traces.items():
        if arguments.only in name:
            rows += run_trace(name, pages, known)
            print(f"{name}: {len(pages):,} accesses", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    print("\n".join([*table(rows), "", *regrets(rows), "", *against_lru(rows)]))
    return 0


def found(directories: list[Path]) -> list[tuple[str, array]]:
    """Return the traces of directories, by name."""
    paths = [path for one in directories for path in sorted(one.iterdir()) if path.suffix in (".npz", ".npy", ".txt")]
    return [(path.stem, read_trace(path)) for path in paths]


def run_trace(name: str, pages: array, known: list[dict]) -> list[dict]:
    """Return a row for each size: trace, pages, miss ratios of the reference and of the engine."""
    nr_distinct = len(set(pages))
    sizes = [max(1, round(nr_distinct * share)) for share in SHARES]
    references = [row["reference"] for row in known if row["trace"] == name] or reference.run_all(pages, sizes)
    return [
        {
            "trace": name,
            "pages": size,
            "reference": beside,
            "engine": {policy: run_policy(pages, policy, size) for policy in POLICIES},
        }
        for size, beside in zip(sizes, references, strict=True)
    ]


def usable(ratio: float | None) -> float | None:
    """A reference's miss ratio; None for one that had no room in a queue, and says that nothing was hit."""
    return None if ratio is None or ratio >= NO_ROOM else ratio


def best_of(row: dict) -> float:
    """Return the least miss ratio of an online policy."""
    ratios = [usable(ratio) for name, ratio in row["reference"].items() if name != reference.BELADY]
    return min([ratio for ratio in ratios if ratio is not None] + list(row["engine"].values()))


def table(rows: list[dict]) -> list[str]:
    """Return the miss ratios in percent, the best in bold."""
    lines = [
        "| trace | pages | " + " | ".join([*reference.NAMES, *POLICIES]) + " | regret |",
        "|---|" + "--:|" * (len(reference.NAMES) + len(POLICIES) + 2),
    ]
    for row in rows:
        best = best_of(row)
        cells = []
        for name, ratio in [*row["reference"].items(), *row["engine"].items()]:
            text = "-" if ratio is None else f"{100 * ratio:.2f}"
            is_best = ratio is not None and ratio <= best + 5e-5 and name != reference.BELADY
            cells.append(f"**{text}**" if is_best else text)
        regret = 100 * (row["engine"][OURS] - best)
        lines.append(f"| {row['trace']} | {row['pages']:,} | " + " | ".join(cells) + f" | {regret:.2f} |")
    return lines


def regrets(rows: list[dict]) -> list[str]:
    """Return mean and worst regret of each policy in points, best first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        best = best_of(row)
        for name, ratio in row["reference"].items():
            if usable(ratio) is not None and name != reference.BELADY:
                found.setdefault(name, []).append(100 * (ratio - best))
        for name, ratio in row["engine"].items():
            found.setdefault(f"pagecache {name}", []).append(100 * (ratio - best))
    lines = ["| policy | mean regret | worst regret | points |", "|---|--:|--:|--:|"]
    for name, each in sorted(found.items(), key=lambda item: sum(item[1]) / len(item[1])):
        lines.append(f"| {name} | {sum(each) / len(each):.2f} | {max(each):.2f} | {len(each)} |")
    return lines


def against_lru(rows: list[dict]) -> list[str]:
    """Return where the default is worst against LRU."""
    worst = max(rows, key=lambda row: row["engine"][OURS] - row["reference"]["LRU"])
    points = 100 * (worst["engine"][OURS] - worst["reference"]["LRU"])
    return [f"`{OURS}` against LRU, at worst: {points:+.2f} points ({worst['trace']}, {worst['pages']:,} pages)."]


if __name__ == "__main__":
    raise SystemExit(main())
