"""What the kernel knows of a mount by numbers: one `Node` for each file or directory that it has looked up.

A node of a directory's mount is a file of the source, by device and inode number, and where it has names; hard links are
one node.  It holds no descriptor, so the source can be unmounted, and removed files give their room back: it is reached by
its name, below the source, and counts only if device and inode number are still the same (`Nodes.reach`).  The exception is
a file whose last name has been removed through the mount while the kernel knows it: it keeps an O_PATH descriptor.

The kernel counts how often it was given a node, and gives back what it forgets (`Nodes.forget`).  Numbers are never used
again.  Names change under one lock together with the source, so that a request that finds a node elsewhere asks
again behind whatever is moving it.
"""

import itertools
import os
import stat

import mmh3

from pagecache._core import Mutex
from pagecache.adapters.fuse import beneath
from pagecache.adapters.fuse.protocol import ROOT_ID

Key = tuple[int, int]  # device and inode number
FOREIGN = 1 << 63  # in the inode numbers that are shown of other file systems inside the source


class Node:
    """One file or directory of the source that the kernel knows.

    number: the kernel's. key: device and inode number. kind: type bits of its mode. names: where it is, (directory, name),
    the last one that was looked up last. fd: O_PATH, of a file that has lost its names; else -1.
    """

    __slots__ = ("fd", "kept_version", "key", "kind", "names", "nr_lookups", "number")

    def __init__(self, number: int, key: Key, kind: int):
        self.number = number
        self.key = key
        self.kind = kind
        self.names: list[tuple[Node, bytes]] = []
        self.nr_lookups = 0
        self.fd = -1
        self.kept_version: tuple[int, int, int] | None = None  # times and size of the bytes that the kernel may have

    def way(self) -> list[bytes]:
        """Return the names from the source to here. Raises OSError (ESTALE) for a file that has none."""
        return way_to(*self.names[-1:]) if self.number != ROOT_ID else []

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def way_to(*name: tuple[Node, bytes]) -> list[bytes]:
    """Return the names from the source to a name, (directory, name). Raises OSError (ESTALE) for none, or one in a
    directory that has none itself."""
    components: list[bytes] = []
    while name:
        directory, last = name[0]
        components.append(last)
        if directory.number == ROOT_ID:
            return components[::-1]
        name = tuple(directory.names[-1:])
    raise beneath.stale(b"a removed file")


class Nodes:
    """The nodes of one mount. root_fd: O_PATH descriptor of the source, which stays open; it belongs to this object."""

    def __init__(self, root_fd: int):
        status = os.fstat(root_fd)
        self.root_fd = root_fd
        self.root = Node(ROOT_ID, (status.st_dev, status.st_ino), stat.S_IFDIR)
        self._by_number = {ROOT_ID: self.root}
        self._by_key = {self.root.key: self.root}
        self._numbers = itertools.count(ROOT_ID + 1)
        self._lock = Mutex()
        self.moving = Mutex()  # held while a name changes in the source, until the nodes know

    def close(self) -> None:
        """Give up the descriptors, when the mount is gone."""
        with self._lock.held():
            self._by_number.clear()
            self._by_key.clear()
        os.close(self.root_fd)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def __getitem__(self, number: int) -> Node:
        """Return a node by the kernel's number. Raises OSError (ESTALE) if there is none."""
        try:
            return self._by_number[number]
        except KeyError:
            raise beneath.stale(b"node %d" % number) from None

    def find(self, key: Key) -> Node | None:
        """Return the node of a file, by device and inode number, if the kernel knows it."""
        return self._by_key.get(key)

    def looked_up(self, status: os.stat_result, directory: Node, name: bytes) -> Node:
        """Return the node of what has a name, counted as given to the kernel once more."""
        key, kind = (status.st_dev, status.st_ino), stat.S_IFMT(status.st_mode)
        with self._lock.held():
            node = self._by_key.get(key)
            if node is None or (node.kind != kind and node is not self.root):  # the inode number has come back
                node = self._by_key[key] = Node(next(self._numbers), key, kind)
                self._by_number[node.number] = node
            node.nr_lookups += 1
            if node is not self.root:
                self._add_name(node, directory, name)
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
                if self._by_key.get(node.key) is node:
                    del self._by_key[node.key]

    # -- names ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _add_name(node: Node, directory: Node, name: bytes) -> None:
        """Note a name. Context: self._lock held."""
        found = (directory, name)
        if node.kind == stat.S_IFDIR:
            node.names = [found]
        elif not node.names or node.names[-1] != found:
            node.names = [*(other for other in node.names if other != found), found]

    def remove_name(self, key: Key, directory: Node, name: bytes, fd: int = -1) -> None:
        """Note that a file has lost a name. fd: an O_PATH descriptor of it, which the node keeps if that was its last, and
        is closed else."""
        with self._lock.held():
            node = self._by_key.get(key)
            if node is not None:
                node.names = [other for other in node.names if other != (directory, name)]
                if not node.names and node.fd < 0:
                    node.fd, fd = fd, -1
        if fd >= 0:
            os.close(fd)

    def renamed(self, key: Key, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """Note that a file has another name now."""
        with self._lock.held():
            node = self._by_key.get(key)
            if node is not None:
                node.names = [other for other in node.names if other != old]
                self._add_name(node, *new)

    # -- reaching ------------------------------------------------------------------------------------------------------

    def reach(self, node: Node) -> "Reached":
        """Return a context manager that gives an O_PATH descriptor of a node's file for a while.

        It raises OSError when it begins: ESTALE if the file is where it was no more.
        """
        return Reached(self, node)

    def open(self, node: Node) -> int:
        """Return an O_PATH descriptor of a node's file: the source's or the node's own, or a new one. Raises as `reach`."""
        if node is self.root:
            return self.root_fd
        fd = self._find(node)
        if fd < 0:
            with self.moving.held():  # what is being renamed has another name now
                fd = self._find(node)
        if fd < 0:
            raise beneath.stale(next((name for _, name in node.names), b"a removed file"))
        return fd

    def _find(self, node: Node) -> int:
        """Return a descriptor of a node's file by one of its names, or -1."""
        if node.fd >= 0 and not node.names:
            return node.fd
        for name in reversed(node.names):
            try:
                fd = beneath.open_path(self.root_fd, way_to(name))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != beneath.ESTALE:
                    raise
                continue
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == node.key and stat.S_IFMT(status.st_mode) == node.kind:
                return fd
            os.close(fd)
        return node.fd

    def shown_ino(self, device: int, ino: int) -> int:
        """Return the inode number that is shown of a file: its own, unless another file system inside the source could have
        the same."""
        if device == self.root.key[0] and not ino & FOREIGN:
            return ino
        return mmh3.hash64(b"%d %d" % (device, ino), signed=False)[0] | FOREIGN


class Reached:
    """A descriptor of a node's file, as long as the block runs."""

    __slots__ = ("_fd", "_node", "_nodes")

    def __init__(self, nodes: Nodes, node: Node):
        self._nodes = nodes
        self._node = node

    def __enter__(self) -> int:
        self._fd = self._nodes.open(self._node)
        return self._fd

    def __exit__(self, *exc: object) -> None:
        if self._fd != self._nodes.root_fd and self._fd != self._node.fd:
            os.close(self._fd)
