"""What the table is for: we against the best of the caches, copies with copies and views with what copies nothing."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from .ours import PreadLarge, PreadSmall, ViewLarge, ViewSmall
from .runs import Runs
from .timing import Cell

GOAL = 0.8


@dataclass
class Goal:
    """Our median over that of the best cache, one number for each run."""

    ours: Cell
    theirs: Cell
    ratios: list[float]
    best: float  # our best round over theirs

    @property
    def ratio(self) -> float:
        """The middle one of the runs."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the goal is reached, by medians and by best rounds."""
        return max(self.ratio, self.best) <= GOAL


def best_cache(runs: Runs, nbytes: int, nr_threads: int, uncopied: bool) -> Cell | None:
    """Return the fastest cache that copies, or that does not; None if there is none. The best rounds decide: they are
    disturbed least, and another run finds the same one."""
    cells = [
        Cell(name, nbytes, nr_threads)
        for name in runs.names
        if runs.last.kinds[name] == "cache" and runs.uncopied(name, nbytes) == uncopied
    ]
    return min((cell for cell in cells if runs.rounds(cell)), key=runs.best, default=None)


def goals(runs: Runs) -> Iterator[Goal]:
    """Yield every comparison that can be made."""
    for nbytes, nr_threads in runs.columns():
        for uncopied, ways in ((False, (PreadLarge, PreadSmall)), (True, (ViewLarge, ViewSmall))):
            theirs = best_cache(runs, nbytes, nr_threads, uncopied)
            for way in ways:
                ours = Cell(way.name, nbytes, nr_threads)
                if theirs is not None and runs.rounds(ours):
                    yield Goal(ours, theirs, runs.ratios(ours, theirs), runs.best(ours) / runs.best(theirs))
