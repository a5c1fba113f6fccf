"""The picture of which pages of a file are resident: one character for a run of pages, darker for more of them."""

from collections.abc import Sequence

UNICODE_SHADES = " ░▒▓█"
ASCII_SHADES = " .:+#"


def cell_shares(resident: bytes, nr_cells_max: int) -> list[float]:
    """Aggregate a residency map to cells of equal numbers of pages (the last one may have fewer).

    Arguments:
        resident: one byte a page, its lowest bit set if the page is resident, as `File.mincore` returns them.
        nr_cells_max: how many cells there is room for.
    Returns:
        The share of resident pages of each cell, 0.0 to 1.0.
    """
    pages = cell_pages(len(resident), nr_cells_max)
    shares = []
    for start in range(0, len(resident), pages):
        cell = resident[start : start + pages]
        shares.append(sum(page & 1 for page in cell) / len(cell))
    return shares


def cell_pages(nr_pages: int, nr_cells_max: int) -> int:
    """Return how many pages a cell must stand for so that `nr_pages` need at most `nr_cells_max` cells."""
    return max(1, -(-nr_pages // max(nr_cells_max, 1)))


def picture(shares: Sequence[float], columns: int, encoding: str | None) -> list[str]:
    """Draw cells as rows of shades in a frame.

    Arguments:
        shares: the share of resident pages of each cell, as `cell_shares` returns them.
        columns: how many cells a row has.
        encoding: the encoding of the stream it is for; one that lacks the shades gets ASCII ones.
    Returns:
        The lines of the picture.
    """
    shades = shades_for(encoding)
    drawn = "".join(shade(share, shades) for share in shares)
    width = min(columns, len(drawn))
    return [f"|{drawn[start : start + width]:{width}}|" for start in range(0, len(drawn), max(width, 1))]


def shade(share: float, shades: str) -> str:
    """Return the character for `share`: the first only for none resident, the last only for all."""
    if share <= 0:
        return shades[0]
    if share >= 1:
        return shades[-1]
    between = shades[1:-1]
    return between[min(int(share * len(between)), len(between) - 1)]


def shades_for(encoding: str | None) -> str:
    """Return the shades that text in `encoding` can show."""
    try:
        UNICODE_SHADES.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_SHADES
    return UNICODE_SHADES
