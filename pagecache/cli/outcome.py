"""What `pagecache demo` found."""

from dataclasses import dataclass

from pagecache.cli.timing import Timing


@dataclass
class Pass:
    """One way of reading the whole file, and what came of it."""

    name: str
    sha256: str
    expected_sha256: str
    seconds: float
    counters: dict[str, int]

    @property
    def agrees(self) -> bool:
        """Whether the bytes were those of plain reads."""
        return self.sha256 == self.expected_sha256


@dataclass
class Outcome:
    """Everything the demo has to tell."""

    path: str
    path_reason: str
    file_bytes: int
    cache_bytes: int
    cache_reason: str
    seed: int
    passes: list[Pass]
    timing: Timing
    resident: bytes

    @property
    def agrees(self) -> bool:
        """Whether every byte of every pass was right."""
        return all(each.agrees for each in self.passes)
