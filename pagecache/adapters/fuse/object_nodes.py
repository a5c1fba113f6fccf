"""What the kernel knows of a mounted URL by numbers: one `ObjectNode` for each object or directory that it has looked up.

An object is what its path names, and an open one keeps its node when it is renamed or removed.  Inode numbers are made of
paths, so that they are the same in each answer; a node keeps its own for as long as the kernel knows it.
"""

import itertools
import stat
from typing import Any

import mmh3

from pagecache._core import Mutex
from pagecache.adapters.fuse.beneath import stale
from pagecache.adapters.fuse.protocol import ROOT_ID

INO_MASK = (1 << 63) - 1


class ObjectNode:
    """One object or directory that the kernel knows.

    number: the kernel's. path: below the URL, None once it is removed. kind: type bits of its mode. ino: the inode number
    that is shown. opened: the open object, as long as it is one.
    """

    __slots__ = ("ino", "kept_version", "kind", "nr_lookups", "number", "opened", "path")

    def __init__(self, number: int, path: str, kind: int, ino: int):
        self.number = number
        self.path: str | None = path
        self.kind = kind
        self.ino = ino
        self.nr_lookups = 0
        self.opened: Any = None
        self.kept_version: str | None = None  # of the bytes that the kernel may have


class ObjectNodes:
    """The nodes of one mount."""

    def __init__(self) -> None:
        self.root = ObjectNode(ROOT_ID, "", stat.S_IFDIR, ROOT_ID)
        self._by_number = {ROOT_ID: self.root}
        self._by_path: dict[str, ObjectNode] = {"": self.root}
        self._inos = {ROOT_ID}
        self._numbers = itertools.count(ROOT_ID + 1)
        self._lock = Mutex()

    def __getitem__(self, number: int) -> ObjectNode:
        """Return a node by the kernel's number. Raises OSError (ESTALE) if there is none."""
        try:
            return self._by_number[number]
        except KeyError:
            raise stale(b"node %d" % number) from None

    def path_of(self, number: int) -> str:
        """Return the path of a node. Raises OSError (ESTALE) if it has none."""
        path = self[number].path
        if path is None:
            raise stale(b"a removed object")
        return path

    def find(self, path: str) -> ObjectNode | None:
        """Return the node of a path, if the kernel knows it."""
        return self._by_path.get(path)

    def looked_up(self, path: str, kind: int) -> ObjectNode:
        """Return the node of a path, counted as given to the kernel once more."""
        with self._lock.held():
            node = self._by_path.get(path)
            if node is None or node.kind != kind:
                node = self._by_path[path] = ObjectNode(next(self._numbers), path, kind, self._new_ino(path))
                self._by_number[node.number] = node
            node.nr_lookups += 1
            return node

    def forget(self, number: int, nr_lookups: int) -> None:
        """Take back a node that the kernel was given so many times; the last one takes it away."""
        with self._lock.held():
            node = self._by_number.get(number)
            if node is None or node is self.root:
                return
            node.nr_lookups -= nr_lookups
            if node.nr_lookups <= 0:
                del self._by_number[number]
                self._inos.discard(node.ino)
                if node.path is not None and self._by_path.get(node.path) is node:
                    del self._by_path[node.path]

    def removed(self, path: str) -> None:
        """Note that a path names nothing any more."""
        with self._lock.held():
            node = self._by_path.pop(path, None)
            if node is not None:
                node.path = None

    def renamed(self, old: str, new: str) -> None:
        """Note that what has been at one path is at another."""
        self.removed(new)
        with self._lock.held():
            node = self._by_path.pop(old, None)
            if node is not None:
                node.path = new
                self._by_path[new] = node

    def ino_of(self, path: str) -> int:
        """Return the inode number of a path as it is shown, whether the kernel knows it or not."""
        node = self._by_path.get(path)
        return node.ino if node is not None else _ino(path, 0)

    def _new_ino(self, path: str) -> int:
        """Return a number that no other node has: another object may have been here. Context: self._lock held."""
        for salt in itertools.count():
            ino = _ino(path, salt)
            if ino not in self._inos:
                self._inos.add(ino)
                return ino
        raise AssertionError


def _ino(path: str, salt: int) -> int:
    name = path.encode(errors="surrogateescape")
    return (mmh3.hash64(name, salt, signed=False)[0] & INO_MASK) or ROOT_ID + 1
