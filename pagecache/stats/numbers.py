"""Numbers of a cache, under the kernel's names."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

from pagecache import _core
from pagecache._core import AddressSpace, Segment
from pagecache.stats.sources import SOURCES, shown_counts
from pagecache.units import PAGE_SIZE, format_size

FILES_SHOWN = 20  # rows of a table

_SHOWN = (
    "hits", "misses", "hit_ratio", "resident_bytes", "budget_bytes", "overhead_bytes", "memory_free_bytes",
    "memory_descriptors_bytes", "memory_nodes_bytes", "memory_records_bytes", "nr_dirty", "nr_pinned",
    "pgmajfault", "readahead_pages", "readahead_hits", "evictions", "workingset_refault_file", "store_reads",
    "store_read_bytes",
)  # fmt: skip
_SHOWN_IF_ANY = ("peer_hits", "peer_bytes", "second_level_hits", "second_level_bytes", "origin_requests", "origin_bytes")


@dataclasses.dataclass(frozen=True)
class FileStats:
    """One picture of what is counted for one object, whichever files read it.

    Names that end in _bytes are bytes, `readahead_...` are pages of 4096 bytes, the others are counts. Counting begins when
    the object is first opened, and ends when the cache forgets it. Hits are not counted here, so that they cost nothing
    more.
    """

    name: str
    size_bytes: int
    resident_bytes: int
    nr_open: int
    misses: int  # reads that waited for the store, or for another read of it, or that started to read ahead
    missed_bytes: int  # what those returned after they had missed
    store_reads: int  # requests
    store_read_bytes: int
    readahead_pages: int  # brought in before they were asked for; of those:
    readahead_hits: int  # used since
    readahead_wasted: int  # left the cache unused
    readahead_waiting: int  # cached, and not used yet
    peer_hits: int  # requests that other processes answered from their memory
    peer_bytes: int
    peer_failures: int  # requests that they did not answer in time, or answered wrongly
    second_level_hits: int  # requests that a shared cache below answered
    second_level_bytes: int
    second_level_failures: int
    origin_requests: int  # requests to where the object is
    origin_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        return _files_html([self])


class Stats:
    """One picture of a cache's counters, as attributes.

    Page counts are pages of 4096 bytes, names that end in _bytes are bytes; `pg...` and `workingset_...` have the
    meaning of the kernel's vmstat names. Counters only grow; compare two pictures for what happened in between.
    `files`, if it was asked for, is a list of FileStats, those that cost the store most first.
    """

    def __init__(self, values: dict[str, Any]):
        self.__dict__.update(values)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers by name."""
        return dict(self.__dict__)

    @property
    def memory(self) -> dict[str, int]:
        """Where the memory of the cache is, bytes by name (docs/memory.md): `memory_..._bytes` of the other numbers."""
        parts = (name for name in self.__dict__ if name.startswith("memory_"))
        return {name.removeprefix("memory_").removesuffix("_bytes"): self.__dict__[name] for name in parts}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no statistic named {name!r}; there are: {', '.join(sorted(self.__dict__))}")

    def _shown(self) -> list[tuple[str, str]]:
        rows = []
        has_sources = self.__dict__.get("peer_hits") or self.__dict__.get("second_level_hits")
        for name in (*_SHOWN, *_SHOWN_IF_ANY) if has_sources else _SHOWN:
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
        return f"<table><caption>pagecache</caption>{cells}</table>" + _files_html(self.__dict__.get("files", ()))


def _files_html(files: Sequence[FileStats]) -> str:
    """Return a table of the objects of a cache, or nothing if there are none."""
    if not files:
        return ""
    names = [field.name for field in dataclasses.fields(FileStats)]
    rows = ["".join(f"<th>{name}</th>" for name in names)]
    for file in files[:FILES_SHOWN]:
        values = [f"{value:,}" if isinstance(value, int) else html.escape(value) for value in dataclasses.astuple(file)]
        rows.append("".join(f"<td>{value}</td>" for value in values))
    caption = "files" if len(files) <= FILES_SHOWN else f"{FILES_SHOWN} of {len(files):,} files"
    return f"<table><caption>{caption}</caption>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def read_file_stats(mapping: AddressSpace, name: str, nr_open: int, counts: Mapping[str, int]) -> FileStats:
    """Return a picture of what is counted for one object. counts: of its stores' sources. Context: walks its index."""
    counters = mapping.counters()
    waiting = mapping.nr_unused()
    shown = shown_counts(counts, counters["store_reads"], counters["store_read_bytes"])
    used = counters["readahead_pages"] - counters["readahead_wasted"] - waiting
    return FileStats(
        name=name,
        size_bytes=mapping.size,
        resident_bytes=mapping.nrpages * PAGE_SIZE,
        nr_open=nr_open,
        readahead_hits=max(0, used),  # the three are not read at one moment
        readahead_waiting=waiting,
        **counters,
        **{source: shown[source] for source in SOURCES},
    )


def read_stats(segment: Segment, counts: Mapping[str, int]) -> Stats:
    """Return a picture of a segment's counters, with what follows from them. counts: of the sources of its stores."""
    values: dict[str, Any] = segment.counters()
    values["pgscan_file"] = values["pgscan_direct"] + values["pgscan_kswapd"]
    values["pgsteal_file"] = values["pgsteal_direct"] + values["pgsteal_kswapd"]
    values["evictions"] = values["pgsteal_file"]
    reads = values["hits"] + values["misses"]
    values["hit_ratio"] = values["hits"] / reads if reads else 0.0
    values["nr_mapped"] = values["nr_pinned"]
    sizes = segment.sizes()
    values["budget_bytes"] = segment.nr_frames * PAGE_SIZE
    values["resident_bytes"] = values["nr_file_pages"] * PAGE_SIZE
    values |= {f"memory_{part}_bytes": nbytes for part, nbytes in _core.memory_of(segment).items()}
    values["overhead_bytes"] = sum(sizes[name][2] for name in ("header", "mappings", "directory", "nodes", "folios"))
    values |= shown_counts(counts, values["store_reads"], values["store_read_bytes"])
    return Stats(values)
