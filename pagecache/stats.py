"""Numbers of a cache, under the kernel's names."""

from typing import Any

from pagecache._core import Segment
from pagecache.sizes import format_size

_SHOWN = (
    "hits", "misses", "hit_ratio", "resident_bytes", "budget_bytes", "overhead_bytes", "nr_dirty", "nr_pinned",
    "pgmajfault", "readahead_pages", "readahead_hits", "evictions", "workingset_refault_file", "store_reads",
    "store_read_bytes",
)  # fmt: skip


class Stats:
    """One picture of a cache's counters, as attributes.

    Page counts are pages of 4096 bytes, names that end in _bytes are bytes; `pg...` and `workingset_...` have the
    meaning of the kernel's vmstat names. Counters only grow; compare two pictures for what happened in between.
    """

    def __init__(self, values: dict[str, Any]):
        self.__dict__.update(values)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name."""
        return dict(self.__dict__)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no statistic named {name!r}; there are: {', '.join(sorted(self.__dict__))}")

    def _shown(self) -> list[tuple[str, str]]:
        rows = []
        for name in _SHOWN:
            value = self.__dict__.get(name)
            if value is None:
                continue
            if name.endswith("_bytes"):
                rows.append((name, format_size(value)))
            elif isinstance(value, float):
                rows.append((name, f"{value:.4f}"))
            else:
                rows.append((name, f"{value:,}"))
        return rows

    def __repr__(self) -> str:
        return "<Stats " + " ".join(f"{name}={value.replace(' ', '')}" for name, value in self._shown()) + ">"

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th style='text-align:left'>{n}</th><td>{v}</td></tr>" for n, v in self._shown())
        return f"<table><caption>pagecache</caption>{cells}</table>"


def read_stats(segment: Segment) -> Stats:
    """Return a picture of a segment's counters, with what follows from them."""
    values: dict[str, Any] = segment.counters()
    values["pgscan_file"] = values["pgscan_direct"] + values["pgscan_kswapd"]
    values["pgsteal_file"] = values["pgsteal_direct"] + values["pgsteal_kswapd"]
    values["evictions"] = values["pgsteal_file"]
    reads = values["hits"] + values["misses"]
    values["hit_ratio"] = values["hits"] / reads if reads else 0.0
    values["nr_mapped"] = values["nr_pinned"]
    sizes = segment.sizes()
    values["budget_bytes"] = segment.nr_frames * 4096
    values["resident_bytes"] = values["nr_file_pages"] * 4096
    values["overhead_bytes"] = sum(sizes[name][2] for name in ("header", "mappings", "nodes", "folios"))
    return Stats(values)
