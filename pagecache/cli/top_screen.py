"""What `pagecache top` shows: one picture of a process as lines of text, with what happened since the one before."""

from typing import Any

from pagecache.cli import residency
from pagecache.units import PAGE_SIZE, format_size

PLAIN_COLUMNS = 100
NAME_COLUMNS_MIN = 16
BAR_COLUMNS_MAX = 60
DIRTY, WRITEBACK = "d", "w"


def lines(
    now: dict[str, Any], before: dict[str, Any] | None, columns: int, rows: int | None, encoding: str | None
) -> list[str]:
    """Return a picture as lines of at most `columns` characters, at most `rows` if given."""
    command = " ".join(now["command"])
    out = [_fit(f"pagecache top   process {now['pid']}   {command}", columns, encoding)]
    for number, cache in enumerate(now["caches"]):
        earlier = before["caches"][number] if before and number < len(before["caches"]) else None
        seconds = now["seconds"] - before["seconds"] if before else 0.0
        out += ["", *cache_lines(cache, columns, encoding), "", *counter_lines(cache, earlier, seconds)]
        room = None if rows is None else max(0, rows - len(out) - 2)
        out += ["", *file_lines(cache, columns, room, encoding)]
    if not now["caches"]:
        out += ["", "no cache"]
    return out if rows is None else out[:rows]


def cache_lines(cache: dict[str, Any], columns: int, encoding: str | None) -> list[str]:
    """Return what a cache holds: numbers, and a bar of its budget."""
    frames = cache["nr_frames"]
    dirty, under_writeback, pages = cache["nr_dirty"], cache["nr_writeback"], cache["nr_file_pages"]
    width = max(8, min(BAR_COLUMNS_MAX, columns - 2))
    full = residency.shades_for(encoding)[-1]
    parts = (WRITEBACK, under_writeback), (DIRTY, dirty), (full, max(0, pages - dirty - under_writeback))
    bar = "".join(mark * -(-count * width // frames) for mark, count in parts)[:width]
    return [
        f"budget {_pages(frames)}   cached {_pages(pages)} ({pages / frames:.0%})   dirty {_pages(dirty)}"
        f"   write-back {_pages(under_writeback)}   pinned {_pages(cache['nr_pinned'])}   files {cache['nr_files']:,}",
        f"|{bar:{width}}|",
    ]


def counter_lines(cache: dict[str, Any], earlier: dict[str, Any] | None, seconds: float) -> list[str]:
    """Return the counters: since the start, and a second since the picture before."""

    def since(name: str) -> int:
        return cache[name] - earlier[name] if earlier else 0

    rows = []
    for title, names, of_bytes in (
        ("hits", ("hits",), False),
        ("misses", ("misses",), False),
        ("read from store", ("store_read_bytes",), True),
        ("  requests", ("store_reads",), False),
        ("readahead", ("readahead_pages",), False),
        ("  used", ("readahead_hits",), False),
        ("  wasted", ("readahead_wasted",), False),
        ("written to store", ("store_write_bytes",), True),
        ("  requests", ("store_writes",), False),
        ("evicted", ("evictions",), False),
        ("write errors", ("writeback_errors",), False),
    ):
        total, change = sum(cache[name] for name in names), sum(since(name) for name in names)
        rate = change / seconds if seconds > 0 else None
        rows.append((title, _amount(total, of_bytes), "" if rate is None else _amount(rate, of_bytes) + "/s"))
    reads, hits = since("hits") + since("misses"), since("hits")
    ratio = f"{hits / reads:.1%} now" if reads else ""
    rows.insert(2, ("hit ratio", f"{cache['hit_ratio']:.1%}", ratio))
    return _in_two_columns(rows)


def file_lines(cache: dict[str, Any], columns: int, rows: int | None, encoding: str | None) -> list[str]:
    """Return a line for each file: numbers, and the map of its resident pages, in as many cells as there is room for."""
    files = cache["files"]
    if not files:
        return ["no file is cached"]
    columns_of_numbers = 4 * 11
    room = columns - columns_of_numbers - 3
    name_columns = max(NAME_COLUMNS_MIN, min(max(len(file["name"]) for file in files), room // 2))
    map_columns = max(8, room - name_columns)
    head = "".join(f"{title:>11}" for title in ("size", "cached", "dirty", "misses"))
    out = [f"{'file':{name_columns}}{head}  map: {DIRTY} dirty, {WRITEBACK} write-back"[:columns]]
    shown = files if rows is None else files[: max(0, rows - 1)]
    for file in shown:
        name = _encodable(file["name"], encoding)
        name = name if len(name) <= name_columns else "~" + name[1 - name_columns :]
        numbers = (format_size(file["size_bytes"]), _pages(file["resident_bytes"] // PAGE_SIZE),
                   _pages(file["nr_dirty"]), f"{file['misses']:,}")  # fmt: skip
        cells = "".join(f"{number:>11}" for number in numbers)
        out.append(f"{name:{name_columns}}{cells} |{draw_map(file, map_columns, encoding)}|")
    return out


def draw_map(file: dict[str, Any], columns: int, encoding: str | None) -> str:
    """Return the map of a file: a character a cell, darker for more of its pages; dirty cells are letters."""
    shades = residency.shades_for(encoding)
    nr_pages = -(-file["size_bytes"] // PAGE_SIZE)
    cells, cell_pages = file["cells"], file["cell_pages"]
    joined = max(1, -(-len(cells) // columns))
    drawn = []
    for start in range(0, len(cells), joined):
        part = cells[start : start + joined]
        cached, dirty, under_writeback = (sum(cell[place] for cell in part) for place in range(3))
        pages = min((start + len(part)) * cell_pages, nr_pages) - start * cell_pages
        drawn.append(WRITEBACK if under_writeback else DIRTY if dirty else residency.shade(cached / max(1, pages), shades))
    return "".join(drawn)


def _in_two_columns(rows: list[tuple[str, str, str]]) -> list[str]:
    half = -(-len(rows) // 2)
    texts = [f"{title:18}{total:>12}  {rate:<14}" for title, total, rate in rows]
    return [(left + right).rstrip() for left, right in zip(texts[:half], [*texts[half:], ""], strict=False)]


def _pages(count: int) -> str:
    return format_size(count * PAGE_SIZE)


def _amount(value: float, of_bytes: bool) -> str:
    return format_size(int(value)) if of_bytes else f"{value:,.0f}"


def _encodable(text: str, encoding: str | None) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown.encode(encoding or "ascii", "replace").decode(encoding or "ascii")


def _fit(text: str, columns: int, encoding: str | None) -> str:
    return _encodable(text, encoding)[:columns]
