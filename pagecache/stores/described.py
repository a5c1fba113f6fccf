"""What a store learns about an object when it asks for size and version, and answers that bring all of an object."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from pagecache.stores.in_order import Body


@dataclass(frozen=True)
class Described:
    """What is known of an object.

    info: as `info` of an fsspec file system. serves_ranges: whether parts of it can be had; None: not known. body: an
    answer with all of it that the question brought, to be read or closed. by_head: whether only HEAD has said so.
    """

    info: Mapping[str, Any]
    serves_ranges: bool | None = None
    body: Body | None = None
    by_head: bool = False


class WholeAnswerError(Exception):
    """All of an object came where a part was asked for. body: what came, nothing of which has been read."""

    def __init__(self, body: Body):
        super().__init__("the server sent all of the object where a part was asked for")
        self.body = body


class Memory:
    """Facts that are known by name, as many as fit. Context: any thread, and a child of fork: it takes no lock."""

    def __init__(self, limit: int = 4096):
        self._limit = limit
        self._facts: dict[Hashable, Any] = {}

    def note(self, name: Hashable, fact: object = True) -> None:
        """Remember a fact."""
        if len(self._facts) >= self._limit:
            self._facts.clear()
        self._facts[name] = fact

    def is_first(self, name: Hashable) -> bool:
        """Remember a name. Returns whether it was not known, to one caller only."""
        mark = object()
        return self._facts.setdefault(name, mark) is mark

    def get(self, name: Hashable) -> Any:
        """Return a fact, or None."""
        return self._facts.get(name)
