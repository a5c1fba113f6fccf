"""What a peer is: a way to read cached bytes, given as the statements of its loop.

Statements, not functions: they are compiled into the loop that is timed, so that no peer pays for a call that its own
users would not make, and into the function that checks its bytes, so that what is checked is what is timed.
"""

import importlib
import importlib.metadata
import mmap
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = 4096

Read = Callable[[int], object]
Loop = Callable[[Iterable[int]], None]


@dataclass(frozen=True)
class Data:
    """The file that all peers hold, and a directory for what they keep on disk."""

    path: Path
    directory: Path

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def blocks(self, nbytes: int = PAGE_BYTES) -> Iterable[tuple[int, bytes]]:
        """Yield number and bytes of every block of the file."""
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            for number in range(len(mapping) // nbytes):
                yield number, mapping[number * nbytes : (number + 1) * nbytes]


class Peer:
    """One way to read. A subclass opens it in `__init__`, with every byte of the data held already."""

    name = ""
    kind = ""  # "floor", "system", "cache" or "ours"
    modules: tuple[str, ...] = ()  # what must be installed

    def __init__(self, data: Data) -> None:
        self.data = data

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return what reads `nbytes` at `offset`; the last one is an expression, the bytes."""
        raise NotImplementedError

    def names(self, nbytes: int) -> dict[str, object]:
        """Return what the statements use, for one thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds."""

    @classmethod
    def missing(cls) -> str:
        """Return why the peer cannot be used here; nothing if it can."""
        for name in cls.modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                return f"{type(error).__name__}: {error}"
        return ""

    @classmethod
    def version(cls) -> str:
        """Return the version of the library it needs, or nothing."""
        try:
            return importlib.metadata.version(cls.modules[0].split(".")[0]) if cls.modules else ""
        except importlib.metadata.PackageNotFoundError:
            return ""


@dataclass(frozen=True)
class Reader:
    """A peer's statements for one size and one thread, compiled."""

    read: Read
    loop: Loop


def compiled(peer: Peer, nbytes: int) -> Reader:
    """Return the peer's read and its loop over offsets, with everything they use in local variables."""
    names = {**peer.names(nbytes), "nbytes": nbytes}
    *before, last = peer.statements(nbytes)
    lines = [
        f"def make({', '.join(names)}):",
        "    def read_once(offset):",
        *(f"        {line}" for line in before),
        f"        return {last}",
        "    def read_all(offsets):",
        "        for offset in offsets:",
        *(f"            {line}" for line in (*before, last)),
        "    return read_once, read_all",
    ]
    space: dict[str, Callable] = {}
    exec("\n".join(lines), space)
    return Reader(*space["make"](**names))


def hands_out_stored_objects(read: Read, offsets: Sequence[int]) -> bool:
    """Return whether most reads copy nothing: they give the same object again, or show memory that is not their own."""
    return sum(is_stored(read(offset), read(offset)) for offset in offsets) > len(offsets) // 2


def is_stored(first: object, second: object) -> bool:
    """Return whether the results of two equal reads were not copied."""
    if isinstance(first, memoryview):
        return not isinstance(first.obj, bytes)
    return isinstance(first, bytes) and first is second


def check_bytes(peer: Peer, sizes: Iterable[int], seed: int, reads: int = 4) -> None:
    """Compare what a peer reads with the file.

    Raises:
        ValueError: it read something else.
    """
    generator = random.Random(seed)
    with open(peer.data.path, "rb") as file:
        for nbytes in sizes:
            read = compiled(peer, nbytes).read
            for _ in range(reads):
                offset = generator.randrange(peer.data.nbytes // nbytes) * nbytes
                file.seek(offset)
                if bytes(read(offset)) != file.read(nbytes):  # type: ignore[call-overload]
                    raise ValueError(f"{peer.name} read wrong bytes: {nbytes} at offset {offset} (seed {seed})")


class BlockPeer(Peer):
    """A cache of blocks under their numbers: what it is asked is divided into blocks, and put together again."""

    block_bytes = PAGE_BYTES
    get = "get(number)"

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the lookup of one block, of a part of one, or of several."""
        block = self.block_bytes
        if nbytes <= block:
            found = self.get.replace("number", f"offset // {block}")
            return (found if nbytes == block else f"{found}[offset % {block} : offset % {block} + {nbytes}]",)
        return (f"join([{self.get} for number in range(offset // {block}, (offset + {nbytes}) // {block})])",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the lookup, and what joins blocks."""
        return {"get": self.getter(), "join": b"".join}

    def getter(self) -> object:
        """Return the function that finds a block."""
        raise NotImplementedError
