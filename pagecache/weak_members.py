"""What does not keep objects alive: a set of them, for any thread, and the call of a method.

`weakref.WeakSet` is iterated by Python code, and fails when another thread adds to it meanwhile.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

_Member = TypeVar("_Member")
_Result = TypeVar("_Result")


def weakly(method: Callable[[], _Result], otherwise: _Result) -> Callable[[], _Result]:
    """Return a function that calls a method as long as its object lives, and does not keep it alive.

    otherwise: what it returns when the object is gone.
    """
    reference = weakref.WeakMethod(method)

    def call() -> _Result:
        alive = reference()
        return alive() if alive is not None else otherwise

    return call


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
