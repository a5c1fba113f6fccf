"""Files with several names: libfuse, and so the kernel, takes each name for a file of its own.

What changes through one name has to be taken from what the kernel knows of the others.  Names are learned as the kernel
asks for them; one that it has learned by renaming a directory meanwhile stays as it was for up to a second.
"""

import threading
from collections.abc import Callable

FILES_MAX = 1 << 16  # with several names, that are remembered


class LinkedNames:
    """The names of the files of one mount that have several. invalidate: has the kernel forget what it knows of a path."""

    def __init__(self) -> None:
        self.invalidate: Callable[[str], None] = lambda path: None
        self._paths: dict[tuple[int, int], set[str]] = {}
        self._lock = threading.Lock()

    def add(self, key: tuple[int, int], path: str) -> None:
        """Note a name of a file, by device and inode number."""
        if path in self._paths.get(key, ()):
            return
        with self._lock:
            if len(self._paths) >= FILES_MAX:
                self._paths.pop(next(iter(self._paths)))
            self._paths[key] = {*self._paths.get(key, ()), path}

    def remove(self, key: tuple[int, int], path: str) -> None:
        """Note that a file has lost a name."""
        with self._lock:
            left = self._paths.get(key, set()) - {path}
            if left:
                self._paths[key] = left
            else:
                self._paths.pop(key, None)

    def knows(self, key: tuple[int, int]) -> bool:
        """Whether names of a file are remembered: it has several, or one beside a hidden one."""
        return key in self._paths

    def changed(self, key: tuple[int, int], path: str | None = None) -> None:
        """Have the kernel ask again for the attributes of a file, by all of its names but that through which it changed."""
        for name in self._paths.get(key, ()):
            if name != path:
                self.invalidate(name)
