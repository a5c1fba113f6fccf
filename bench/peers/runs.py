"""What was measured, kept in a file: several runs at different times make one report."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from .timing import Cell, Times


@dataclass
class Run:
    """One run of all peers."""

    times: Times
    kinds: dict[str, str]  # by name of peer
    versions: dict[str, str]  # by name of peer
    missing: dict[str, str]  # by name of peer


@dataclass
class Runs:
    """All runs; figures are those of their rounds together."""

    runs: list[Run] = field(default_factory=list)

    @property
    def last(self) -> Run:
        """The newest run."""
        return self.runs[-1]

    @property
    def names(self) -> list[str]:
        """Peers of the newest run, in their order."""
        return list(self.last.kinds)

    def columns(self) -> list[tuple[int, int]]:
        """Return sizes and numbers of threads, in order."""
        return sorted({(cell.nbytes, cell.nr_threads) for cell in self.last.times.ns})

    def rounds(self, cell: Cell) -> list[float]:
        """Return nanoseconds of a read of every round of all runs."""
        return [ns for run in self.runs for ns in run.times.ns.get(cell, ())]

    def best(self, cell: Cell) -> float:
        """Return nanoseconds of a read in the round that was disturbed least."""
        return min(self.rounds(cell))

    def median(self, cell: Cell) -> float:
        """Return nanoseconds of a read in the middle round."""
        return statistics.median(self.rounds(cell))

    def ratios(self, ours: Cell, theirs: Cell) -> list[float]:
        """Return our median over theirs, of each run that has both."""
        pairs = [(run.times.ns.get(ours), run.times.ns.get(theirs)) for run in self.runs]
        return [statistics.median(a) / statistics.median(b) for a, b in pairs if a and b]

    def uncopied(self, name: str, nbytes: int) -> bool:
        """Return whether a peer copies nothing when it reads that much."""
        return (name, nbytes) in self.last.times.uncopied


def saved(run: Run) -> dict:
    """Return a run as JSON can keep it."""
    cells = [[cell.peer, cell.nbytes, cell.nr_threads, ns] for cell, ns in run.times.ns.items()]
    uncopied = sorted(map(list, run.times.uncopied))
    others = {"kinds": run.kinds, "versions": run.versions, "missing": run.missing}
    return {"cells": cells, "uncopied": uncopied, **others}


def loaded(kept: dict) -> Run:
    """Return a run that was kept."""
    ns = {Cell(peer, nbytes, nr_threads): rounds for peer, nbytes, nr_threads, rounds in kept["cells"]}
    uncopied = {(name, nbytes) for name, nbytes in kept["uncopied"]}
    return Run(Times(ns, uncopied), kept["kinds"], kept["versions"], kept["missing"])


def load(path: Path) -> Runs:
    """Return the runs that a file keeps; none if there is no file."""
    return Runs([loaded(kept) for kept in json.loads(path.read_text())]) if path.exists() else Runs()


def save(path: Path, runs: Runs) -> None:
    """Keep runs in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([saved(run) for run in runs.runs]))
