"""Objects that a library names by path and asks about again and again: each is looked up once and stays open."""

from collections import OrderedDict
from collections.abc import Callable
from errno import ESTALE
from typing import Any, NamedTuple, cast

from pagecache._core import Mutex
from pagecache.adapters.ages import Ages, last_modified_s
from pagecache.cache import PageCache
from pagecache.files.file import File
from pagecache.stores.base import BackingStore
from pagecache.stores.validators import Version

MAX_OBJECTS = 1024


class Found(NamedTuple):
    """An object: the file kept open on it, what that was opened on, when it was modified (seconds), its entity tag."""

    file: File
    store: BackingStore | str
    modified_s: int
    etag: str | None


class Objects:
    """The objects behind the paths that a library uses, opened on one cache.

    cache: a `PageCache`. open_store: makes the store (or local path) of a path; raises FileNotFoundError, at the latest
    when the store is asked for its size, if there is none. max_objects: how many are kept open; what was used least
    recently is closed. keeps_absence: whether it is remembered that a path stands for nothing; else that is looked up
    each time.

    An object is looked up once: size and version are those of that moment until `invalidate`. Once another version has been
    met, opening is an error (ESTALE) until then, as size and bytes would not be of one version.
    Context: thread-safe. Two threads may look the same new path up twice; one of the answers counts.
    """

    def __init__(
        self,
        cache: PageCache,
        open_store: Callable[[str], BackingStore | str],
        *,
        max_objects: int = MAX_OBJECTS,
        keeps_absence: Callable[[str], bool] = lambda path: False,
    ):
        self.cache = cache
        self._open_store = open_store
        self._max_objects = max_objects
        self._keeps_absence = keeps_absence
        self._lock = Mutex()
        self._found: OrderedDict[str, Found | None] = OrderedDict()
        self._ages = Ages()

    def _lookup(self, path: str) -> Found | None:
        """Return what is kept open on a path, or None if there is no such object."""
        with self._lock.held():
            if path in self._found:
                self._found.move_to_end(path)
                return self._found[path]
        try:
            store = self._open_store(path)
            file = cast(File, self.cache.open(store))
        except (FileNotFoundError, IsADirectoryError):
            return self._keep(path, None) if self._keeps_absence(path) else None
        try:
            serving = file.inode.store
            assert serving is not None, "a file that was just opened has a store"
            found = Found(file, store, self._modified_s(path, serving), _strong_etag(serving))
        except BaseException:
            file.close()
            raise
        return self._keep(path, found)

    def _modified_s(self, path: str, store: BackingStore) -> int:
        modified = getattr(store, "modified_s", None)
        said = int(modified()) if modified is not None else last_modified_s(getattr(store, "version", None))
        return said if said is not None else self._ages.since_s(path, store.validator())

    def _keep(self, path: str, found: Found | None) -> Found | None:
        surplus: list[Found | None] = []
        with self._lock.held():
            if path in self._found:  # another thread was faster
                surplus.append(found)
                found = self._found[path]
            else:
                self._found[path] = found
                while len(self._found) > self._max_objects:
                    surplus.append(self._found.popitem(last=False)[1])
        for entry in surplus:
            if entry is not None:
                entry.file.close()
        return found

    def _existing(self, path: str) -> Found:
        found = self._lookup(path)
        if found is None:
            raise FileNotFoundError(2, "no such object", path)
        return found

    def open(self, path: str) -> File:
        """Open a path for reading. Returns a new File. Raises FileNotFoundError, OSError (ESTALE for another version)."""
        while True:
            found = self._existing(path)
            if not found.file.closed:  # else it fell out of the table meanwhile
                file = self.cache.open(found.store if isinstance(found.store, str) else cast(Any, found.file.inode.store))
                if file.inode is found.file.inode:
                    return file
                etag = _strong_etag(file.inode.store)
                file.close()
                if etag is None or etag != found.etag:  # else the same bytes, of which a wrong size was said at first
                    raise OSError(ESTALE, "was replaced since it was looked up: invalidate it, and it is read anew", path)
            self.invalidate(path)

    def exists(self, path: str) -> bool:
        """Whether there is such an object. Raises OSError when that cannot be found out."""
        return self._lookup(path) is not None

    def size(self, path: str) -> int:
        """Return the size of an object (bytes). Raises FileNotFoundError, OSError."""
        return self._existing(path).file.mapping.size

    def modified_s(self, path: str) -> int:
        """Return when the object was last modified (seconds since the epoch): what its store says, else when this version
        was first seen; always the same until `invalidate`. Raises FileNotFoundError, OSError."""
        return self._existing(path).modified_s

    def invalidate(self, path: str | None = None) -> None:
        """Look an object (None: all of them) up anew when it is used next; a changed one is read anew."""
        with self._lock.held():
            paths = list(self._found) if path is None else [path]
            entries = [self._found.pop(name, None) for name in paths]
        for entry in entries:
            if entry is not None:
                entry.file.close()

    def close(self) -> None:
        """Close what is kept open. Files from `open` stay open."""
        self.invalidate()


def _strong_etag(store: BackingStore | None) -> str | None:
    """Return the entity tag of the version that a store knows, if equal ones mean equal bytes."""
    version = getattr(store, "version", None)
    return version.strong_etag if isinstance(version, Version) else None
