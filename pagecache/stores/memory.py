"""A store in memory: an object that never was in a file, and the simplest writable store."""

import itertools
from collections.abc import Sequence

from pagecache._core import Mutex

_numbers = itertools.count(1)  # an address would come back when the store that had it is gone


class MemoryStore:
    """The bytes of one object, held in memory.

    data: initial contents (copied). key: identity; stores with one key are taken for one object.
    """

    latency = "local"

    def __init__(self, data: bytes | bytearray | memoryview = b"", *, key: str | None = None):
        self._data = bytearray(data)
        self._version = 0
        self._lock = Mutex()
        self.key = key if key is not None else f"memory:{next(_numbers)}"

    def size(self) -> int:
        """Return the size (bytes)."""
        return len(self._data)

    def validator(self) -> str:
        """Return the number of changes."""
        return str(self._version)

    def replace(self, data: bytes | bytearray | memoryview) -> None:
        """Put other contents in place of the present ones, as another writer would: the cache finds the object changed."""
        with self._lock.held():
            self._data = bytearray(data)
            self._version += 1

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled, fewer only at the end."""
        done = 0
        with self._lock.held():
            for buffer in buffers:
                # Released under the lock: the object cannot be resized while a view of it exists.
                with memoryview(self._data) as whole, whole[offset + done : offset + done + len(buffer)] as piece:
                    nbytes = len(piece)
                    buffer[:nbytes] = piece
                done += nbytes
                if nbytes < len(buffer):
                    break
        return done

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Write the buffers at `offset`, growing the object as needed; return the bytes written."""
        done = 0
        with self._lock.held():
            self._version += 1
            for buffer in buffers:
                at = offset + done
                if at > len(self._data) and len(buffer):
                    self._data.extend(bytes(at - len(self._data)))
                self._data[at : at + len(buffer)] = buffer
                done += len(buffer)
        return done

    def truncate(self, size: int) -> None:
        """Truncate the object to `size` bytes, or extend it with zeros."""
        with self._lock.held():
            self._version += 1
            if size < len(self._data):
                del self._data[size:]
            else:
                self._data.extend(bytes(size - len(self._data)))

    def punch_hole(self, offset: int, length: int) -> None:
        """Zero a range; the size stays."""
        with self._lock.held():
            self._version += 1
            end = min(offset + length, len(self._data))
            if end > offset:
                self._data[offset:end] = bytes(end - offset)

    def sync(self, datasync: bool = False) -> None:
        """Do nothing: memory is as durable as it gets."""

    def __copy__(self) -> "MemoryStore":
        return self

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{self.key} cannot be pickled: its contents are in the memory of this process; put them in a file")

    def close(self) -> None:
        """Do nothing: the contents live as long as the store."""

    def tobytes(self) -> bytes:
        """Return a copy of the contents."""
        with self._lock.held():
            return bytes(self._data)
