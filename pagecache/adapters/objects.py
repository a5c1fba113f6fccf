"""Objects that a library names by path and asks about again and again: each is looked up once and stays open."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pagecache._core import Mutex
from pagecache.files.file import File

MAX_OBJECTS = 1024


class Objects:
    """The objects behind the paths that a library uses, opened on one cache.

    cache: a `PageCache`. open_store: makes the store (or local path) of a path; raises FileNotFoundError, at the latest
    when the store is asked for its size, if there is none. max_objects: how many are kept open; what was used least
    recently is closed.

    An object is looked up once: size, version and absence are those of that moment until `invalidate`.
    Context: thread-safe. Two threads may look the same new path up twice; one of the answers counts.
    """

    def __init__(self, cache: Any, open_store: Callable[[str], Any], *, max_objects: int = MAX_OBJECTS):
        self.cache = cache
        self._open_store = open_store
        self._max_objects = max_objects
        self._lock = Mutex()
        self._found: OrderedDict[str, tuple[File, Any] | None] = OrderedDict()
        self._seen_s: dict[str, int] = {}

    def _lookup(self, path: str) -> tuple[File, Any] | None:
        """Return the file that is kept open on a path and its store, or None if there is no such object."""
        with self._lock.held():
            if path in self._found:
                self._found.move_to_end(path)
                return self._found[path]
        try:
            store = self._open_store(path)
            found = (self.cache.open(store), store)
        except (FileNotFoundError, IsADirectoryError):
            found = None
        return self._keep(path, found)

    def _keep(self, path: str, found: tuple[File, Any] | None) -> tuple[File, Any] | None:
        surplus: list[tuple[File, Any] | None] = []
        with self._lock.held():
            if path in self._found:  # another thread was faster
                surplus.append(found)
                found = self._found[path]
            else:
                self._found[path] = found
                self._seen_s.setdefault(path, int(time.time()))
                while len(self._found) > self._max_objects:
                    surplus.append(self._found.popitem(last=False)[1])
        for entry in surplus:
            if entry is not None:
                entry[0].close()
        return found

    def _existing(self, path: str) -> tuple[File, Any]:
        found = self._lookup(path)
        if found is None:
            raise FileNotFoundError(2, "no such object", path)
        return found

    def open(self, path: str) -> File:
        """Open a path for reading. Returns a new File. Raises FileNotFoundError, OSError."""
        while True:
            file, store = self._existing(path)
            if not file.closed:  # else it fell out of the table meanwhile
                return self.cache.open(file.inode.store if not isinstance(store, str) else store)
            self.invalidate(path)

    def exists(self, path: str) -> bool:
        """Whether there is such an object. Raises OSError when that cannot be found out."""
        return self._lookup(path) is not None

    def size(self, path: str) -> int:
        """Return the size of an object (bytes). Raises FileNotFoundError, OSError."""
        return self._existing(path)[0].mapping.size

    def modified_s(self, path: str) -> int:
        """Return when the object was last modified (seconds since the epoch): what its store says, else when it was first
        seen; always the same until `invalidate`. Raises FileNotFoundError, OSError."""
        _, store = self._existing(path)
        modified = getattr(store, "modified_s", None)
        return int(modified()) if modified is not None else self._seen_s[path]

    def invalidate(self, path: str | None = None) -> None:
        """Look an object (None: all of them) up anew when it is used next; a changed one is read anew."""
        with self._lock.held():
            paths = list(self._found) if path is None else [path]
            entries = [self._found.pop(name, None) for name in paths]
            for name in paths:
                self._seen_s.pop(name, None)
        for entry in entries:
            if entry is not None:
                entry[0].close()

    def close(self) -> None:
        """Close what is kept open. Files from `open` stay open."""
        self.invalidate()
