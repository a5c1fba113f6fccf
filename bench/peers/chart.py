"""The runs as a chart: a panel for each size, a bar for each peer, a dot for two threads."""

from pathlib import Path

from .report import size_name
from .runs import Runs
from .timing import Cell

COLOURS = {"ours": "#c0392b", "system": "#7f8c8d", "cache": "#2980b9"}
PNG_DPI = 80


def draw(runs: Runs, svg: Path, png: Path) -> None:
    """Draw best rounds, which other programs disturbed least, on logarithmic scales into both files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    settings = {"svg.hashsalt": "peers", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 10}
    with pyplot.rc_context(settings):
        sizes = sorted({nbytes for nbytes, _ in runs.columns()})
        figure, panels = pyplot.subplots(2, 2, figsize=(14, 13), layout="constrained")
        for panel in panels.flat[len(sizes) :]:
            panel.set_visible(False)
        for panel, nbytes in zip(panels.flat, sizes, strict=False):
            draw_size(panel, runs, nbytes)
        titles = {"ours": "this library", "system": "the system", "cache": "caches"}
        handles = [Patch(color=COLOURS[kind], label=title) for kind, title in titles.items()]
        handles.append(Patch(facecolor="white", edgecolor="black", hatch="////", label="copies nothing"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
        figure.savefig(png, dpi=PNG_DPI, metadata={"Software": None})
        pyplot.close(figure)


def draw_size(panel, runs: Runs, nbytes: int) -> None:
    """Draw one panel, the fastest peer on top."""
    cells = [Cell(name, nbytes, 1) for name in runs.names]
    cells = sorted((cell for cell in cells if runs.rounds(cell)), key=runs.best)
    for place, cell in enumerate(cells):
        uncopied = runs.uncopied(cell.peer, nbytes)
        colour = COLOURS[runs.last.kinds[cell.peer]]
        panel.barh(place, runs.best(cell), color="white" if uncopied else colour, edgecolor=colour,
                   hatch="////" if uncopied else "", height=0.75)  # fmt: skip
        panel.text(runs.best(cell) * 1.06, place, f"{runs.best(cell):,.0f}", va="center", fontsize=7)
        threads = Cell(cell.peer, nbytes, 2)
        if runs.rounds(threads):
            panel.plot(runs.best(threads), place, "o", color="black", markersize=3)
    panel.set_yticks(range(len(cells)), [cell.peer for cell in cells])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlim(right=panel.get_xlim()[1] * 2)
    panel.set_title(f"{size_name(nbytes)}: ns a read, best round; dot: 2 threads")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
