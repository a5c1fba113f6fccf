"""The units of the cache: pages, folios, marks of the index; and sizes as people write them: "512MiB", "25%"."""

import operator
import os
import re
from pathlib import Path

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT  # bytes
LAST_PAGE = (1 << 52) - 1  # beyond every page of an object of 2**63 bytes
MAX_FOLIO_ORDER = 9  # 2 MiB
MAX_BUDGET_BYTES = 1 << 40  # what an index entry can address
MARK_DIRTY, MARK_WRITEBACK, MARK_TOWRITE = range(3)
_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_PRESSURE = re.compile(r"some avg10=([0-9.]+) ")
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*|%)\s*\Z")


def memory_limit() -> int:
    """Return the bytes of memory this process may use: the machine's, or less if a control group says so."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _cgroup_limit_files():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limit = min(limit, int(text))
    return limit


def memory_pressure() -> float | None:
    """Return in how many percent of the last ten seconds some task waited for memory (PSI): in this process's control
    group, or the closest one above that says so, or on the machine; None where the system does not say."""
    groups = [path.parent for path in _cgroup_limit_files() if path.name == "memory.max"]
    for path in [*(group / "memory.pressure" for group in reversed(groups)), Path("/proc/pressure/memory")]:
        try:
            found = _PRESSURE.match(path.read_text())
        except OSError:
            continue
        if found:
            return float(found[1])
    return None


def _cgroup_limit_files() -> list[Path]:
    """Return the files that may hold a limit: of this process's group and of every group above it, the outermost first.

    `memory.high` counts as one: above it the kernel slows a process down until its memory is reclaimed.
    """
    root = Path("/sys/fs/cgroup")
    files = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return files
    for line in lines:
        _, controllers, group = line.split(":", 2)
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(1, len(parts) + 1):
            if not controllers:
                files += [root.joinpath(*parts[:depth]) / name for name in ("memory.high", "memory.max")]
            elif "memory" in controllers.split(","):
                files.append((root / "memory").joinpath(*parts[:depth]) / "memory.limit_in_bytes")
    return files


def budget_pages(part: int | str, nr_frames: int) -> int:
    """Return a part of a budget of so many page frames, in pages. part: bytes, "64MiB", or "25%" of the budget.

    Raises ValueError for more than 100 %.
    """
    if isinstance(part, str) and part.strip().endswith("%"):
        match = _PATTERN.match(part)
        if match is None:
            raise ValueError(f"cannot read the part {part!r}: use bytes, '64MiB' or '25%'")
        if float(match[1]) > 100:
            raise ValueError(f"cannot use {part!r}: more than the whole budget")
        return int(nr_frames * float(match[1]) / 100)
    return parse_size(part) // PAGE_SIZE


def part_of_memory(size: int | str) -> float | None:
    """Return the share, 0 to 1, that a size such as "25%" is of what the process may use; None for any other size."""
    match = _PATTERN.match(size) if isinstance(size, str) else None
    return float(match[1]) / 100 if match is not None and match[2] == "%" else None


def parse_size(size: int | str) -> int:
    """Return a size in bytes.

    size: bytes as an int, or text: "1073741824", "512MiB", "1GB", "25%" (of `memory_limit`, as far as one cache can be).
    Raises TypeError and ValueError, which name what was given.
    """
    if not isinstance(size, str):
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"size must be an int (bytes) or text such as '512MiB' or '25%', not {size!r}")
        return operator.index(size)
    match = _PATTERN.match(size)
    if match is None:
        raise ValueError(f"cannot read the size {size!r}: use bytes, '512MiB', '1GB' or '25%'")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if number > 100:
            raise ValueError(f"cannot use {size!r}: more than all memory")
        return min(int(memory_limit() * number / 100), MAX_BUDGET_BYTES)
    if unit not in _UNITS:
        raise ValueError(f"unknown unit {match[2]!r} in the size {size!r}: use B, KB, MB, GB, KiB, MiB, GiB or %")
    return int(number * _UNITS[unit])


def format_size(nbytes: int) -> str:
    """Return a size as text with a binary unit, such as '1.5 GiB'."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
