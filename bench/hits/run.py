"""`make bench`: runs all the benchmarks, prints what they found as tables and keeps it in bench/results/."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import workload
from bench.hits import micro, ratios

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


def main(argv: list[str] | None = None) -> int:
    """Run everything; return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds of the ratios, at least 7")
    parser.add_argument("--only", choices=["micro", "ratios", "pytest"], help="run one part")
    arguments = parser.parse_args(argv)
    stem = RESULTS / time.strftime("%Y-%m-%d-%H%M%S")
    RESULTS.mkdir(exist_ok=True)
    parts = [arguments.only] if arguments.only else ["micro", "ratios", "pytest"]
    sections = [f"# {time.strftime('%Y-%m-%d %H:%M')}, {machine()}"]
    status = 0
    if "micro" in parts:
        sections.append("## The engine in C, no GIL\n\n" + micro.table(micro.measure_all()))
    if "ratios" in parts:
        sections.append("## Against others, in turns\n\n" + ratio_table(arguments.rounds))
    if "pytest" in parts:
        status, text = pytest_table(stem.with_suffix(".json"))
        sections.append("## By size\n\n" + text)
    report = "\n\n".join(sections) + "\n"
    stem.with_suffix(".md").write_text(report)
    print(report)
    print(f"Kept in {stem.with_suffix('.md').relative_to(HERE.parent)}")
    return status


def ratio_table(rounds: int) -> str:
    """Return the table of ratios."""
    with tempfile.TemporaryDirectory() as directory:
        path = workload.make_file(Path(directory))
        return ratios.table(*ratios.measure_all(path, max(rounds, ratios.ROUNDS_MIN)))


def pytest_table(results: Path) -> tuple[int, str]:
    """Run the pytest-benchmark files; return the exit status and a table of nanoseconds for one read."""
    files = sorted(str(path) for path in HERE.glob("bench_*.py"))
    command = [sys.executable, "-P", "-m", "pytest", "-q", *files, f"--benchmark-json={results}"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        return 1, f"```\n{ran.stdout}\n```"
    lines = ["| benchmark | ns, best | ns, median | reads a round |", "|---|--:|--:|--:|"]
    for each in json.loads(results.read_text())["benchmarks"]:
        found = each["extra_info"]
        name = each["fullname"].rsplit("/", 1)[-1].replace(".py::", ": ")
        lines.append(f"| {name} | {found['best_ns']:,.0f} | {found['median_ns']:,.0f} | {found['reads']:,} |")
    return 0, "\n".join(lines)


def machine() -> str:
    """Return what the numbers were measured on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} processors, {system}"


if __name__ == "__main__":
    sys.exit(main())
