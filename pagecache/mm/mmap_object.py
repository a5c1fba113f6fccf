"""Mapped files: the object with the interface of mmap.mmap, and the address space below it.

`File.mmap()` makes a `Mmap`.  Each is the one area of an address space of its own, so maps never wait for each other's
changes.  A page that is mapped is read through its translation alone; any other faults (see `memory_map`).
"""

import mmap as _mmap
from collections.abc import Iterator
from operator import index as _index
from typing import SupportsIndex, cast, overload

from pagecache._core import Mutex, new_target
from pagecache.buffers import Buffer
from pagecache.mm.memory_map import MemoryMap
from pagecache.mm.vma import MappableFile, VirtualMemoryArea
from pagecache.units import PAGE_SIZE

ACCESS_DEFAULT, ACCESS_READ, ACCESS_WRITE, ACCESS_COPY = 0, 1, 2, 3
ALLOCATIONGRANULARITY = PAGE_SIZE
MADV_NORMAL = _mmap.MADV_NORMAL
MADV_RANDOM = _mmap.MADV_RANDOM
MADV_SEQUENTIAL = _mmap.MADV_SEQUENTIAL
MADV_WILLNEED = _mmap.MADV_WILLNEED
MADV_DONTNEED = _mmap.MADV_DONTNEED
MADV_HUGEPAGE = _mmap.MADV_HUGEPAGE
MADV_NOHUGEPAGE = _mmap.MADV_NOHUGEPAGE

_SEARCH_CHUNK = 256 * 1024  # bytes that find and rfind look at in one piece
_LINE_CHUNK = 4096


def map_file(file: MappableFile, length: int = 0, offset: int = 0, access: int = ACCESS_READ) -> "Mmap":
    """Map part of an open file.

    length: bytes; 0 for all up to the end of the file now. offset: bytes, a multiple of ALLOCATIONGRANULARITY. access:
    ACCESS_READ, ACCESS_WRITE (the same as ACCESS_DEFAULT: stores change the file), or ACCESS_COPY (they stay in the map).
    Returns a Mmap, which stays usable when the file is closed, but not when its cache is.
    Raises ValueError (an empty file, a range that is not inside the file, a closed file), TypeError, PermissionError
    for ACCESS_WRITE of a file that was opened for reading.
    """
    length, offset = _index(length), _index(offset)
    if access not in (ACCESS_DEFAULT, ACCESS_READ, ACCESS_WRITE, ACCESS_COPY):
        raise ValueError(f"invalid access {access!r}: use one of ACCESS_READ, ACCESS_WRITE, ACCESS_COPY")
    if length < 0 or offset < 0:
        raise ValueError(f"length and offset must not be negative, not {length} and {offset}")
    if offset % ALLOCATIONGRANULARITY:
        raise ValueError(f"offset must be a multiple of {ALLOCATIONGRANULARITY}, not {offset}")
    if file.closed:
        raise ValueError("cannot map a closed file")
    mapping = file.mapping
    if length == 0 or offset + length > mapping.size:
        file.inode.raise_if_changed(mapping.size)
    size = mapping.size
    if size == 0:
        raise ValueError(f"cannot map {mapping.name}: the file is empty")
    if length == 0:
        length = size - offset
    if length <= 0 or offset + length > size:
        raise ValueError(f"cannot map {length} bytes at offset {offset} of {mapping.name}: it has {size} bytes")
    return Mmap(file, length, offset, ACCESS_WRITE if access == ACCESS_DEFAULT else access)


class Mmap:
    """Part of a file as a sequence of bytes, with the interface of mmap.mmap.

    Made by `File.mmap`. Reading raises BusError where a processor would deliver SIGBUS: the page lies beyond the end of
    a file that was truncated, or cannot be read from the store. Any number of threads may use one object; they share its
    position.  It has no buffer of its own, as pages may leave while it lives: slices are copies. What is stored with
    ACCESS_WRITE is in the file at once, for all that read it through the cache; `flush` makes it durable.
    """

    __slots__ = ("__weakref__", "_access", "_area", "_length", "_lock", "_mm", "_offset", "_position", "_segment")

    def __init__(self, file: MappableFile, length: int, offset: int, access: int = ACCESS_READ) -> None:
        self._access = access
        self._length = length
        self._offset = offset
        self._position = 0
        self._lock = Mutex()
        self._segment = file.mapping.segment
        self._mm = MemoryMap()
        self._area: VirtualMemoryArea | None = self._map(file)
        if file.cache is not None:
            file.cache.closes_with(self)

    def _map(self, file: MappableFile) -> VirtualMemoryArea:
        prot = _mmap.PROT_READ | (0 if self._access == ACCESS_READ else _mmap.PROT_WRITE)
        flags = _mmap.MAP_PRIVATE if self._access == ACCESS_COPY else _mmap.MAP_SHARED
        start = self._mm.mmap(file, self._length, prot, flags, self._offset // PAGE_SIZE)
        area: VirtualMemoryArea = self._mm.vmas[start]
        return area

    # -- access --------------------------------------------------------------------------------------------------------

    def _mapped(self) -> VirtualMemoryArea:
        """Return the area; raises ValueError when it is closed, RuntimeError in a forked child."""
        area = self._area
        if area is None:
            raise ValueError("mmap closed or invalid")
        if self._segment.dead:
            raise RuntimeError("this map belongs to the parent process: open a new cache after fork()")
        return area

    def _copy(self, position: int, nbytes: int) -> bytes:
        """Return nbytes at a position inside the map."""
        area = self._mapped()
        result, target = new_target(nbytes)
        done = area.read_present(target, 0, area.start + position, nbytes)
        while done < nbytes:
            try:
                self._mm.handle_page_fault(area.start + position + done)
            except OSError:
                self._mapped()
                raise
            done += area.read_present(target, done, area.start + position + done, nbytes - done)
        return result

    def _store(self, position: int, data: bytes) -> int:
        """Store bytes at a position inside the map. Returns how many."""
        area = self._writable()
        try:
            self._mm.write(area.start + position, data)
        except OSError:
            self._mapped()
            raise
        return len(data)

    def _writable(self) -> VirtualMemoryArea:
        """Return the area; raises TypeError for a map that is only read."""
        area = self._mapped()
        if self._access == ACCESS_READ:
            raise TypeError("mmap can't modify a readonly memory map.")
        return area

    def __len__(self) -> int:
        self._mapped()
        return self._length

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...

    @overload
    def __getitem__(self, key: slice) -> bytes: ...

    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        if isinstance(key, slice):
            start, stop, step = key.indices(self._length)
            if step == 1 and start < stop:
                return self._copy(start, stop - start)
            return self._slice(range(start, stop, step))
        try:
            position = _index(key)
        except TypeError:
            raise TypeError("mmap indices must be integers") from None
        self._mapped()
        if position < 0:
            position += self._length
        if not 0 <= position < self._length:
            raise IndexError("mmap index out of range")
        return self._copy(position, 1)[0]

    def _slice(self, positions: range) -> bytes:
        if not positions:
            self._mapped()
            return b""
        if abs(positions.step) >= PAGE_SIZE:
            return b"".join([self._copy(position, 1) for position in positions])
        lowest, highest = sorted((positions[0], positions[-1]))
        return self._copy(lowest, highest - lowest + 1)[:: positions.step]

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the bytes, each a bytes object of length 1."""
        return (self._copy(position, 1) for position in range(len(self)))

    def __reversed__(self) -> Iterator[bytes]:
        return (self._copy(position, 1) for position in reversed(range(len(self))))

    def find(self, sub: Buffer, start: int | None = None, end: int | None = None) -> int:
        """Return the lowest position in [start, end) where `sub` begins, or -1; start is the position if not given."""
        wanted, low, high = self._search_range(sub, start, end)
        step = max(_SEARCH_CHUNK, 2 * len(wanted))
        while low + len(wanted) <= high:
            stop = min(low + step, high)
            found = self._copy(low, stop - low).find(wanted)
            if found >= 0:
                return low + found
            if stop == high:
                break
            low = stop - len(wanted) + 1
        return -1

    def rfind(self, sub: Buffer, start: int | None = None, end: int | None = None) -> int:
        """Return the highest position in [start, end) where `sub` begins, or -1."""
        wanted, low, high = self._search_range(sub, start, end)
        step = max(_SEARCH_CHUNK, 2 * len(wanted))
        while low + len(wanted) <= high:
            begin = max(high - step, low)
            found = self._copy(begin, high - begin).rfind(wanted)
            if found >= 0:
                return begin + found
            if begin == low:
                break
            high = begin + len(wanted) - 1
        return -1

    def _search_range(self, sub: Buffer, start: int | None, end: int | None) -> tuple[bytes, int, int]:
        self._mapped()
        with memoryview(sub) as view:
            wanted = view.tobytes()
        low = self._position if start is None else self._clip(start)
        return wanted, low, self._length if end is None else self._clip(end)

    def _clip(self, position: int) -> int:
        position = _index(position)
        return min(max(position + self._length if position < 0 else position, 0), self._length)

    # -- the position --------------------------------------------------------------------------------------------------

    def read(self, n: int | None = None, /) -> bytes:
        """Read up to n bytes from the position and move it; all that is left with None or a negative n."""
        wanted = -1 if n is None else _index(n)
        with self._lock.held():
            self._mapped()
            left = max(0, self._length - self._position)
            data = self._copy(self._position, left if wanted < 0 else min(wanted, left))
            self._position += len(data)
        return data

    def read_byte(self) -> int:
        """Read the byte at the position as an int and move on. Raises ValueError at the end."""
        with self._lock.held():
            self._mapped()
            if self._position >= self._length:
                raise ValueError("read byte out of range")
            value = self._copy(self._position, 1)[0]
            self._position += 1
        return value

    def readline(self) -> bytes:
        """Read from the position to the end of the line, the newline included, or to the end of the map."""
        parts, chunk = [], _LINE_CHUNK
        with self._lock.held():
            self._mapped()
            at = self._position
            while at < self._length:
                piece = self._copy(at, min(chunk, self._length - at))
                end = piece.find(b"\n") + 1
                parts.append(piece[:end] if end else piece)
                at += len(parts[-1])
                if end:
                    break
                chunk = min(2 * chunk, _SEARCH_CHUNK)
            self._position = at
        return b"".join(parts)

    def tell(self) -> int:
        """Return the position."""
        self._mapped()
        return self._position

    def seek(self, pos: int, whence: int = 0, /) -> int:
        """Move the position: from the start (0), the position (1) or the end (2). Returns the new one.

        Raises ValueError outside the map.
        """
        pos = _index(pos)
        with self._lock.held():
            self._mapped()
            if whence not in (0, 1, 2):
                raise ValueError("unknown seek type")
            position = pos + (0, self._position, self._length)[whence]
            if not 0 <= position <= self._length:
                raise ValueError("seek out of range")
            self._position = position
        return position

    def seekable(self) -> bool:
        """Return True."""
        return True

    # -- the map -------------------------------------------------------------------------------------------------------

    def size(self) -> int:
        """Return the size of the file now (bytes), which may differ from the map's length."""
        return self._mapped().file.mapping.size

    def madvise(self, option: int, start: int = 0, length: int | None = None) -> None:
        """Advise how a range of the map will be read.

        option: mm.MADV_*. start: byte, a multiple of the page size. length: bytes, up to the end if not given.
        Raises ValueError outside the map, OSError as MemoryMap.madvise.
        """
        area = self._mapped()
        if not 0 <= start < self._length:
            raise ValueError("madvise start out of bounds")
        if length is not None and length < 0:
            raise ValueError("madvise length invalid")
        left = self._length - start
        length = left if length is None else min(length, left)
        if length or start % PAGE_SIZE:
            self._mm.madvise(area.start + start, length or 1, option)

    def flush(self, offset: int = 0, size: int | None = None) -> None:
        """Make what was stored in a range durable; for maps that do not change the file there is nothing to do.

        Raises ValueError outside the map, OSError as `File.fsync`.
        """
        area = self._mapped()
        size = self._length - offset if size is None else size
        if offset < 0 or size < 0 or offset + size > self._length:
            raise ValueError("flush values out of range")
        if self._access == ACCESS_WRITE and size:
            begin = offset - offset % PAGE_SIZE
            self._mm.msync(area.start + begin, offset + size - begin)

    @property
    def closed(self) -> bool:
        """Whether the map is closed."""
        return self._area is None

    def close(self) -> None:
        """Give up the map; using it afterwards raises ValueError. Idempotent."""
        area, self._area = self._area, None
        if area is not None and not self._segment.dead:
            self._mm.munmap(area.start, self._length)

    def __enter__(self) -> "Mmap":
        self._mapped()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._area is None:
            return "<Mmap closed=True>"
        access = ("ACCESS_DEFAULT", "ACCESS_READ", "ACCESS_WRITE", "ACCESS_COPY")[self._access]
        return (
            f"<Mmap of {self._area.file.mapping.name!r} closed=False, access={access}, length={self._length}, "
            f"pos={self._position}, offset={self._offset}>"
        )

    # -- storing -------------------------------------------------------------------------------------------------------

    @overload
    def __setitem__(self, key: SupportsIndex, value: int) -> None: ...

    @overload
    def __setitem__(self, key: slice, value: Buffer) -> None: ...

    def __setitem__(self, key: SupportsIndex | slice, value: int | Buffer) -> None:
        self._writable()
        if isinstance(key, slice):
            self._set_slice(range(*key.indices(self._length)), cast(Buffer, value))
            return
        try:
            position = _index(key)
        except TypeError:
            raise TypeError("mmap indices must be integers") from None
        position += self._length if position < 0 else 0
        if not 0 <= position < self._length:
            raise IndexError("mmap index out of range")
        self._store(position, self._byte(cast(int, value)))

    @staticmethod
    def _byte(value: SupportsIndex) -> bytes:
        try:
            number = _index(value)
        except TypeError:
            raise TypeError("mmap item value must be an int") from None
        if not 0 <= number <= 255:
            raise ValueError("mmap item value must be in range(0, 256)")
        return bytes([number])

    def _set_slice(self, positions: range, value: Buffer) -> None:
        with memoryview(value) as view:
            data = view.tobytes()
        if len(data) != len(positions):
            raise IndexError("mmap slice assignment is wrong size")
        if not data:
            return
        if positions.step == 1:
            self._store(positions.start, data)
            return
        for position, byte in zip(positions, data, strict=True):
            self._store(position, bytes([byte]))

    def __delitem__(self, key: int | slice) -> None:
        self._writable()
        raise TypeError("mmap object doesn't support item deletion")

    def write(self, data: Buffer, /) -> int:
        """Store bytes at the position and move it. Returns how many. Raises ValueError when they do not fit."""
        self._writable()
        with memoryview(data) as view:
            value = view.tobytes()
        with self._lock.held():
            if len(value) > self._length - self._position:
                raise ValueError("data out of range")
            self._store(self._position, value)
            self._position += len(value)
        return len(value)

    def write_byte(self, byte: int, /) -> None:
        """Store one byte at the position and move on. Raises ValueError at the end, OverflowError for what is no byte."""
        if not 0 <= _index(byte) <= 255:
            raise OverflowError(f"{byte} is no byte: it must be in 0..255")
        value = bytes([byte])
        self._writable()
        with self._lock.held():
            if self._position >= self._length:
                raise ValueError("write byte out of range")
            self._store(self._position, value)
            self._position += 1

    def move(self, dest: int, src: int, count: int, /) -> None:
        """Copy count bytes from src to dest inside the map, which may overlap."""
        self._writable()
        dest, src, count = _index(dest), _index(src), _index(count)
        if min(dest, src, count) < 0 or max(dest, src) + count > self._length:
            raise ValueError("source, destination, or count out of range")
        self._store(dest, self._copy(src, count))

    def resize(self, newsize: int, /) -> None:
        """Make map and file end `newsize` bytes behind the map's begin.

        Raises TypeError for a map that does not change the file, ValueError, OSError; then the map is as before.
        """
        area = self._mapped()
        if self._access != ACCESS_WRITE:
            raise TypeError("mmap can't resize a readonly or copy-on-write memory map.")
        newsize = _index(newsize)
        if newsize <= 0:
            raise ValueError("new size out of range")
        held = area.file
        held.file.inode.set_size(self._offset + newsize)
        with self._lock.held():
            old_start, old_length = area.start, self._length
            self._length = newsize
            self._area = self._map(held.file)
            self._position = min(self._position, newsize)
        self._mm.munmap(old_start, old_length)
