"""What `pagecache demo` prints: text for people, one JSON object for programs."""

import dataclasses
import shutil
from collections.abc import Sequence
from typing import Any

from pagecache.cli import residency
from pagecache.cli.outcome import Outcome, Pass
from pagecache.cli.timing import Timing
from pagecache.units import format_size

HEADINGS = ("pass", "hits", "misses", "major faults", "readahead pages", "evictions", "seconds", "bytes")
PICTURE_COLUMNS_MAX = 72
PICTURE_ROWS_MAX = 8
JSON_CELLS_MAX = 256


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return what the demo found as an object of JSON: numbers in bytes, pages, seconds and nanoseconds."""
    return {
        "agrees": outcome.agrees,
        "file": {"path": outcome.path, "reason": outcome.path_reason, "bytes": outcome.file_bytes},
        "cache": {"bytes": outcome.cache_bytes, "reason": outcome.cache_reason},
        "seed": outcome.seed,
        "passes": [pass_as_json(each) for each in outcome.passes],
        "cached_read": dataclasses.asdict(outcome.timing),
        "residency": {
            "pages": len(outcome.resident),
            "resident_pages": resident_pages(outcome.resident),
            "cell_pages": residency.cell_pages(len(outcome.resident), JSON_CELLS_MAX),
            "cell_shares": residency.cell_shares(outcome.resident, JSON_CELLS_MAX),
        },
    }


def memory_lines(memory: dict[str, int]) -> list[str]:
    """Return where the memory of a cache is, as `Stats.memory` has it, as lines of text."""
    parts = [(name, memory[name]) for name in ("pages", "held", "free", "descriptors", "nodes", "records", "tables")]
    shown = ", ".join(f"{format_size(nbytes)} {name}" for name, nbytes in parts if nbytes)
    return [f"memory     {shown}", f"           {format_size(memory['balloon'])} not in use"]


def pass_as_json(each: Pass) -> dict[str, Any]:
    """Return one pass as an object of JSON."""
    return {
        "name": each.name,
        "agrees": each.agrees,
        "sha256": each.sha256,
        "expected_sha256": each.expected_sha256,
        "seconds": each.seconds,
        **each.counters,
    }


def as_text(outcome: Outcome, encoding: str | None) -> list[str]:
    """Return what the demo found as lines of text.

    Arguments:
        outcome: what it found.
        encoding: the encoding of the stream that the text is for.
    """
    path = outcome.path.encode(encoding or "ascii", "backslashreplace").decode(encoding or "ascii")
    return [
        f"file   {path} ({outcome.path_reason})",
        f"       {format_size(outcome.file_bytes)}, {len(outcome.resident):,} pages",
        f"cache  {format_size(outcome.cache_bytes)} ({outcome.cache_reason}), seed {outcome.seed}",
        "",
        *table([HEADINGS, *(pass_row(each) for each in outcome.passes)]),
        "",
        *hash_lines(outcome.passes),
        "",
        *timing_lines(outcome.timing),
        "",
        *residency_lines(outcome.resident, encoding),
        "",
        "Every byte agrees with plain reads." if outcome.agrees else "BYTES DIFFER from plain reads.",
    ]


def pass_row(each: Pass) -> tuple[str, ...]:
    """Return the cells of one pass under HEADINGS."""
    counters = (f"{value:,}" for value in each.counters.values())
    return (each.name, *counters, f"{each.seconds:.3f}", "agree" if each.agrees else "DIFFER")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns, the first to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]


def hash_lines(passes: Sequence[Pass]) -> list[str]:
    """Return the hashes: of the bytes in order, or of the digests of the blocks for the pass at random."""
    lines = []
    for each in passes:
        lines.append(f"SHA-256  {each.name:9}  {each.sha256}")
        if not each.agrees:
            lines.append(f"         {'plain':9}  {each.expected_sha256}")
    return lines


def timing_lines(timing: Timing) -> list[str]:
    """Return how long a cached read takes, and what share of the others' time that is."""
    missed = f", {timing.misses:,} of them missed" if timing.misses else ""
    return [
        f"A cached read of {timing.read_bytes} bytes at random within {format_size(timing.region_bytes)}"
        f" (median of {timing.rounds} rounds of {timing.reads:,} reads{missed})",
        f"  pagecache pread   {timing.pagecache_ns:7,.0f} ns",
        f"  os.pread          {timing.os_pread_ns:7,.0f} ns   pagecache takes"
        f" {timing.pagecache_ns / timing.os_pread_ns:.2f} of that",
        f"  slicing mmap      {timing.mmap_ns:7,.0f} ns   pagecache takes"
        f" {timing.pagecache_ns / timing.mmap_ns:.2f} of that",
    ]


def residency_lines(resident: bytes, encoding: str | None, when: str = "after the last pass") -> list[str]:
    """Return the picture of which pages were resident at some time, under a line that explains it."""
    columns = max(8, min(PICTURE_COLUMNS_MAX, shutil.get_terminal_size().columns - 2))
    nr_cells_max = columns * PICTURE_ROWS_MAX
    shares = residency.cell_shares(resident, nr_cells_max)
    pages = residency.cell_pages(len(resident), nr_cells_max)
    held = resident_pages(resident)
    return [
        f"Resident {when}: {held:,} of {len(resident):,} pages ({held / len(resident):.0%});"
        f" a cell is {pages:,} page{'s' if pages > 1 else ''}, in the order of the file",
        *residency.picture(shares, columns, encoding),
    ]


def resident_pages(resident: bytes) -> int:
    """Return how many pages of a residency map are resident."""
    return sum(page & 1 for page in resident)
