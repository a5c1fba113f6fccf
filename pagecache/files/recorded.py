"""Recording which pages a live program uses, as a trace for `pagecache trace`.

While a recorder runs, the cache's open files are of a class that notes each call; otherwise they are not, so that the
hit path knows nothing of recording.  Pages of different objects get numbers far apart: each piece of an object, of
2**PIECE_SHIFT pages, has a range of numbers of its own, in the order in which they are first used.
"""

import io
import operator
import struct
import zipfile
from array import array
from pathlib import Path
from typing import Protocol, SupportsIndex

from pagecache._core import Mutex
from pagecache.buffers import Buffer
from pagecache.files.file import File
from pagecache.files.inode import Inode
from pagecache.units import PAGE_SHIFT

PIECE_SHIFT = 30  # pages of one piece: 4 TiB
FORMATS = (".npz", ".npy", ".txt")


class RecordedFile(File):
    """A file whose accesses are noted; same layout and behaviour."""

    def __init__(self, inode: Inode, mode: str, durability: str = "write-back"):
        super().__init__(inode, mode, durability)
        self.notes_lines = True

    def _note(self, pos: SupportsIndex, nbytes: int) -> None:
        recorder = self.cache.recorder if self.cache is not None else None
        if recorder is not None and nbytes > 0:
            recorder.note(self, operator.index(pos), nbytes)

    def pread(self, nbytes: SupportsIndex, offset: SupportsIndex) -> bytes:
        """As File.pread."""
        data = super().pread(nbytes, offset)
        self._note(offset, len(data))
        return data

    def preadinto(self, buffer: Buffer, offset: SupportsIndex) -> int:
        """As File.preadinto."""
        got = super().preadinto(buffer, offset)
        self._note(offset, got)
        return got

    def view(self, nbytes: SupportsIndex, offset: SupportsIndex) -> memoryview:
        """As File.view."""
        seen = super().view(nbytes, offset)
        self._note(offset, seen.nbytes)
        return seen

    def read(self, size: SupportsIndex | None = -1, /) -> bytes:
        """As File.read."""
        pos = self.tell()
        data = super().read(size)
        self._note(pos, len(data))
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        """As File.readinto."""
        pos = self.tell()
        got = super().readinto(buffer)
        self._note(pos, got)
        return got

    def pwrite(self, data: Buffer, offset: SupportsIndex) -> int:
        """As File.pwrite."""
        took = super().pwrite(data, offset)
        self._note(offset, took)
        return took

    def write(self, data: Buffer, /) -> int:
        """As File.write."""
        took = super().write(data)
        self._note(self.tell() - took, took)
        return took


class RecordedCache(Protocol):
    """What a recorder needs to know of the cache: a `PageCache`."""

    def end_recording(self, recorder: "Recorder") -> None:
        """Have files note nothing any more."""
        ...


class Recorder:
    """Notes the pages that files of a cache use, until it is stopped; also a context manager.

    cache: whose files, open now and opened from now on. path: the trace to write when it stops: .npz, .npy or .txt.
    Recorded are reads, views and writes of files (pread, read, readline's, write and their relatives); not memory maps,
    readahead, or calls of many ranges that read in the background. Calls one after the other in one page count once, as
    they do for eviction. Raises ValueError for another kind of file, or when the cache is recorded already.
    """

    def __init__(self, cache: RecordedCache, path: str | Path):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ValueError(f"cannot record into {str(path)!r}: the name must end in {', '.join(FORMATS)}")
        self._cache = cache
        self._lock = Mutex()
        self._pages = array("Q")
        self._pieces: dict[tuple[int, object, int], int] = {}
        self._last = -1
        self._stopped = False

    def note(self, file: File, pos: int, nbytes: int) -> None:
        """Note an access. Context: takes the recorder's lock for a moment."""
        first, last = pos >> PAGE_SHIFT, (pos + nbytes - 1) >> PAGE_SHIFT
        with self._lock.held():
            if self._stopped:
                return
            while first <= last:
                end = min(last, first | ((1 << PIECE_SHIFT) - 1))
                start = self._number(file, first)
                after = start + end - first + 1
                self._pages.extend(range(start + (start == self._last), after))
                self._last = after - 1
                first = end + 1

    def _number(self, file: File, page: int) -> int:
        """Return the number of a page. A mapping that has gone leaves its number to other objects."""
        piece = (file.mapping.number, file.mapping.key, page >> PIECE_SHIFT)
        base = self._pieces.setdefault(piece, len(self._pieces)) << PIECE_SHIFT
        return base | (page & ((1 << PIECE_SHIFT) - 1))

    @property
    def nr_accesses(self) -> int:
        """Accesses noted so far."""
        return len(self._pages)

    def stop(self) -> int:
        """Stop, and write the trace. Idempotent. Returns the accesses. Raises OSError."""
        with self._lock.held():
            if self._stopped:
                return len(self._pages)
            self._stopped = True
        self._cache.end_recording(self)
        write_trace(self.path, self._pages)
        return len(self._pages)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def write_trace(path: Path, pages: "array[int]") -> None:
    """Write page numbers (unsigned 64-bit) as .npz (key `pages`), .npy or text, by the name's ending."""
    if path.suffix == ".txt":
        with path.open("w", encoding="ascii") as text:
            text.writelines(f"{page}\n" for page in pages)
        return
    header = f"{{'descr': '<u8', 'fortran_order': False, 'shape': ({len(pages)},), }}"
    header = header.ljust(117) + "\n"
    if pages and struct.pack("=H", 1) != struct.pack("<H", 1):
        pages = array("Q", pages)
        pages.byteswap()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode("ascii") + pages.tobytes()
    if path.suffix == ".npy":
        path.write_bytes(data)
        return
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pages.npy", data)
    path.write_bytes(packed.getvalue())
