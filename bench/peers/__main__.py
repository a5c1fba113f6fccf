"""`python -m bench peers`: measures all peers, prints the page, and writes it with its chart into docs/."""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.common import workload

from . import catalogue, report, runs, timing
from .peer import Data

ROOT = Path(__file__).resolve().parents[2]
ROUNDS_MIN = 7
SIZES = (64, 4096, 65536, 1 << 20)
THREADS = (1, 2)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help=f"interleaved rounds, at least {ROUNDS_MIN}")
    parser.add_argument("--only", default="", help="parts of names of peers, separated by commas")
    parser.add_argument("--size", type=int, default=workload.FILE_BYTES, help="bytes of the file, a multiple of 1 MiB")
    parser.add_argument("--keep", type=Path, help="a file that keeps the runs; the page then shows all runs in it")
    parser.add_argument("--no-run", action="store_true", help="measure nothing: show the runs that --keep names")
    parser.add_argument("--write", action="store_true", help="write docs/peers.md, docs/peers.svg and docs/peers.png")
    return parser.parse_args(argv)


def run_once(found: argparse.Namespace) -> runs.Run:
    """Open all peers, measure them and close them."""
    with tempfile.TemporaryDirectory() as name:
        data = Data(workload.make_file(Path(name), found.size), Path(name))
        opened = catalogue.open_all(catalogue.chosen(found.only), data, SIZES, seed=found.size)
        try:
            rounds = max(found.rounds, ROUNDS_MIN)
            times = timing.measure(opened.peers, SIZES, THREADS, rounds, lambda text: print(text, file=sys.stderr))
        finally:
            opened.close()
    kinds = {peer.name: peer.kind for peer in opened.peers}
    return runs.Run(times, kinds, {peer.name: peer.version() for peer in opened.peers}, opened.missing)


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says."""
    found = arguments(argv)
    kept = runs.load(found.keep) if found.keep else runs.Runs()
    if not found.no_run:
        kept.runs.append(run_once(found))
        if found.keep:
            runs.save(found.keep, kept)
    text = report.page(kept, found.size)
    print(text)
    if found.write:
        from . import chart

        (ROOT / "docs/peers.md").write_text(text)
        chart.draw(kept, ROOT / "docs/peers.svg", ROOT / "docs/peers.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
