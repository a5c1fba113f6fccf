"""Buffers that a request fills piece by piece, and which can be taken away from it at any moment."""

import errno
from collections.abc import Sequence

from pagecache._core import Mutex
from pagecache.buffers import Buffer


class TooLongError(OSError):
    """More came than was asked for: it is not what was asked for."""

    def __init__(self, came_bytes: int, wanted_bytes: int):
        super().__init__(errno.EIO, f"{came_bytes} bytes came where {wanted_bytes} were asked for")


class Destination:
    """The buffers of one request, filled in order.

    Once `detach` has returned, nothing is written any more, by no holder of this.
    Context: the copy of one piece and `detach` exclude each other.
    """

    def __init__(self, buffers: Sequence[memoryview]):
        self._buffers = list(buffers)
        self._lock = Mutex()
        self._number = 0  # of the buffer that is being filled
        self._at = 0
        self._is_detached = False
        self.wanted = sum(map(len, buffers))
        self.done = 0

    @property
    def full(self) -> bool:
        """Whether there is nothing left to fill."""
        return self.done >= self.wanted

    @property
    def is_detached(self) -> bool:
        """Whether nothing is written any more."""
        return self._is_detached

    def put(self, data: Buffer) -> None:
        """Copy a piece behind the last one. Raises TooLongError if it does not fit."""
        with self._lock.held(), memoryview(data) as piece:
            start = 0
            while start < len(piece) and self._number < len(self._buffers):
                buffer = self._buffers[self._number]
                nbytes = min(len(piece) - start, len(buffer) - self._at)
                buffer[self._at : self._at + nbytes] = piece[start : start + nbytes]
                start += nbytes
                self._at += nbytes
                self.done += nbytes
                if self._at == len(buffer):
                    self._number, self._at = self._number + 1, 0
            if start < len(piece) and not self._is_detached:
                raise TooLongError(self.done + len(piece) - start, self.wanted)

    def detach(self) -> None:
        """Let go of the buffers."""
        with self._lock.held():
            self._buffers, self._is_detached = [], True
