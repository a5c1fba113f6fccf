"""What offers its memory to be read or written: bytes, arrays, memoryviews and their like."""

from typing import Protocol


class Buffer(Protocol):
    """Anything with the buffer protocol, as `collections.abc.Buffer`, which Python has from 3.12 on."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the memory."""
        ...
