"""Access traces: reading them, and running them through the real engine.

A trace is a sequence of page numbers in the order of access. Formats: `.npz` and `.npy` of integers (key `pages`), text
(one number in each line, or the first of several; `#` begins a comment), and oracleGeneral (records of 24 bytes: time,
object, size, next access; objects become pages, numbered in ascending order).
"""

import ast
import io
import struct
import sys
import zipfile
from array import array
from pathlib import Path

from pagecache._core import AddressSpace, Segment, run_trace

POLICIES = ("kernel", "s3fifo", "sieve", "lirs", "adaptive")
FORMATS = ("npz", "npy", "text", "oracleGeneral")
PAGE_MAX = 1 << 50
_ORACLE_RECORD = struct.Struct("<IQIq")
_NPY_MAGIC = b"\x93NUMPY"
_TYPECODES = {"u1": "B", "i1": "b", "u2": "H", "i2": "h", "u4": "I", "i4": "i", "u8": "Q", "i8": "q"}


def read_trace(path: str | Path, form: str | None = None) -> "array[int]":
    """Return the page numbers of a trace file as an array of unsigned 64-bit numbers.

    path: the file. form: one of FORMATS; by default the name says it (text if it does not).
    Raises OSError, and ValueError for a file that is not of that format, or holds numbers no page can have.
    """
    path = Path(path)
    form = form or _format_of(path)
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}: use one of {', '.join(FORMATS)}")
    if form == "text":
        return _checked(path, _from_text(path))
    data = path.read_bytes()
    if form == "oracleGeneral":
        return _checked(path, _from_oracle(path, data))
    return _checked(path, _from_npz(path, data) if form == "npz" else _from_npy(path, data))


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return suffix[1:]
    return "oracleGeneral" if "oraclegeneral" in path.name.lower() else "text"


def _checked(path: Path, pages: "array[int]") -> "array[int]":
    """Return pages, whose numbers are all such as pages have."""
    if len(pages) and max(pages) >= PAGE_MAX:
        raise ValueError(f"{path}: page number {max(pages)} is too large: pages are below {PAGE_MAX}")
    return pages


def _from_text(path: Path) -> "array[int]":
    pages = array("Q")
    with path.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].replace(",", " ").split()
            if not words:
                continue
            try:
                pages.append(int(words[0]))
            except (ValueError, OverflowError):
                raise ValueError(f"{path}, line {number}: {words[0][:40]!r} is not a page number") from None
    return pages


def _from_oracle(path: Path, data: bytes) -> "array[int]":
    if len(data) % _ORACLE_RECORD.size:
        raise ValueError(f"{path}: {len(data)} bytes are not whole records of {_ORACLE_RECORD.size} bytes")
    objects = [record[1] for record in _ORACLE_RECORD.iter_unpack(data)]
    numbers = {name: number for number, name in enumerate(sorted(set(objects)))}
    return array("Q", [numbers[name] for name in objects])


def _from_npz(path: Path, data: bytes) -> "array[int]":
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            name = "pages.npy" if "pages.npy" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise ValueError(f"{path}: no array named 'pages' in it, but {', '.join(names) or 'nothing'}")
            return _from_npy(path, archive.read(name))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not an .npz file: {error}") from None


def _from_npy(path: Path, data: bytes) -> "array[int]":
    """Read one array of integers without NumPy."""
    if len(data) < 10 or data[:6] != _NPY_MAGIC:
        raise ValueError(f"{path} holds no NumPy array")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin-1"))
        kind, shape = header["descr"], tuple(header["shape"])
    except (SyntaxError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: the header of the array cannot be read") from None
    if not isinstance(kind, str) or kind[1:] not in _TYPECODES or len(shape) != 1:
        raise ValueError(f"{path}: an array of integers with one dimension is needed, not {kind} of shape {shape}")
    values = array(_TYPECODES[kind[1:]])
    body = data[start + length :]
    if len(body) != shape[0] * values.itemsize:
        raise ValueError(f"{path} ends early: {len(body)} bytes for {shape[0]} numbers")
    values.frombytes(body)
    if (kind[0] == ">") != (sys.byteorder == "big") and kind[0] != "|":
        values.byteswap()
    if len(values) and min(values) < 0:
        raise ValueError(f"{path}: {min(values)} is not a page number")
    return values if values.typecode == "Q" else array("Q", values)


def run_policy(pages: "array[int]", policy: str, nr_frames: int, *, check: bool = False) -> float:
    """Run a trace through an engine of its own, which has descriptors, lists and shadows but no frames.

    pages: as `read_trace` returns them. policy: one of POLICIES. nr_frames: pages the cache holds. check: prove the
    engine's invariants afterwards. Returns the miss ratio, 0 for no accesses. Context: releases the GIL.
    """
    segment = Segment(nr_frames, nr_mappings=2, data=False, policy=policy)
    mapping = AddressSpace(segment)
    misses = run_trace(mapping, pages)
    if check:
        segment.check()
    return misses / len(pages) if len(pages) else 0.0
