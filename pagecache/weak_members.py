"""A set of objects that it does not keep alive, for any thread.

`weakref.WeakSet` is iterated by Python code, and fails when another thread adds to it meanwhile.
"""

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

_Member = TypeVar("_Member")


class WeakMembers(Generic[_Member]):
    """Objects, each as long as it lives. Context: any thread; takes no lock, each step is one of a set."""

    def __init__(self) -> None:
        self._members: set[weakref.ref[_Member]] = set()

    def add(self, member: _Member) -> None:
        """Register an object until it is discarded or gone."""
        self._members.add(weakref.ref(member, self._members.discard))  # no Python code, which a signal could end half way

    def discard(self, member: _Member) -> None:
        """Forget an object."""
        self._members.discard(weakref.ref(member))

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[_Member]:
        members = [reference() for reference in self._members.copy()]
        return iter([member for member in members if member is not None])
