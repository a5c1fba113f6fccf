"""This library for another program that times peers: `PEERS_EXTRA=bench.peers.extra:factory`.

Such a program calls `factory(path)` once. Each value of what it gets is called once, then once in each thread; that gives a
function of offset and bytes.
"""

from collections.abc import Callable
from pathlib import Path

from .ours import PEERS, Ours
from .peer import Data

Read = Callable[[int, int], object]


def factory(path: str) -> dict[str, Callable[[], Callable[[], Read]]]:
    """Return what opens each of our ways to read the file at `path`."""
    return {label(each): opener(each, Path(path)) for each in PEERS}


def label(ours: type[Ours]) -> str:
    """Return a name that says whether bytes are copied."""
    return f"{ours.name} (view)" if ours.method == "view" else ours.name


def opener(ours: type[Ours], path: Path) -> Callable[[], Callable[[], Read]]:
    """Return what fills a cache and returns a maker of functions for threads."""

    def make() -> Callable[[], Read]:
        peer = ours(Data(path, path.parent))
        method = getattr(peer.file, ours.method)
        if ours.method != "preadinto":
            return lambda: lambda offset, nbytes: method(nbytes, offset)
        return lambda: into_buffers(method)

    return make


def into_buffers(method: Callable[[bytearray, int], int]) -> Read:
    """Return a read into a buffer of its own for each size."""
    buffers: dict[int, bytearray] = {}

    def read(offset: int, nbytes: int) -> bytearray:
        buffer = buffers.get(nbytes)
        if buffer is None:
            buffer = buffers[nbytes] = bytearray(nbytes)
        method(buffer, offset)
        return buffer

    return read
