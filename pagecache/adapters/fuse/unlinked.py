"""Names that were removed while their files are open.

libfuse serves paths, so it gives an open file whose name is removed, or taken by a rename, a hidden name first
(`.fuse_hidden` and 16 hexadecimal digits), and removes that when the file is closed.  In the source this would leave litter
after a crash, keep directories from being empty, and make renaming over an open file two steps: killed in between, neither
the old nor the new file would have the name.

Here a hidden name is no name of the source but an entry of `Unlinked`, which leads to the open file.  The name itself is
removed from the source a moment later: a rename onto it follows at once in the same thread, if it was that, and takes it
over in one step (`claim`).  Anything else in its directory means that the removal has ended, because the kernel lets nobody
into a directory that is being changed; then it is carried out (`carry_out`).  If nothing comes, a timer does it as soon as
the thread has ended its request: it waits for the next one in a system call on /dev/fuse, as /proc tells on Linux.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

HIDDEN = re.compile(r"\.fuse_hidden[0-9a-f]{16}")
GRACE_S = 0.05  # until the thread that removed a name is looked at
PATIENCE_S = 10.0  # after which a removal that nobody can be seen to have ended is carried out


def has_ended(thread: int) -> bool:
    """Whether a thread (its number in the system) of this process is gone, or waits for a request of /dev/fuse; True too
    where that cannot be told."""
    try:
        with open(f"/proc/self/task/{thread}/syscall") as file:
            words = file.read().split()
    except OSError:
        return True
    try:
        return len(words) > 1 and os.readlink(f"/proc/self/fd/{int(words[1], 16)}") == "/dev/fuse"
    except OSError:
        return False  # the first argument of what it waits in is no descriptor


class Unlinked:
    """The removed names of one mount. remove: takes a path of the mount out of the source."""

    def __init__(self, remove: Callable[[str], None]):
        self._remove = remove
        self._nodes: dict[str, Any] = {}  # hidden name -> node
        self._pending: dict[str, tuple[int, tuple[int, int], float]] = {}  # path -> thread, file, since when
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def hide(self, path: str, hidden: str, node: Any, key: tuple[int, int]) -> None:
        """Remove the name of an open file, which a hidden name leads to from now on. node: None if it is closed."""
        with self._lock:
            if node is not None:
                self._nodes[os.path.basename(hidden)] = node
            self._pending[path] = (threading.get_native_id(), key, time.monotonic())
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(GRACE_S, self._grace_is_over)
            self._timer.daemon = True
            self._timer.start()

    def _grace_is_over(self) -> None:
        """Carry out what has waited long enough; the rest is looked at again."""
        now = time.monotonic()
        with self._lock:
            self._timer = None
            for path, (thread, _, since) in list(self._pending.items()):
                if not (now - since >= GRACE_S and has_ended(thread)) and now - since < PATIENCE_S:
                    continue
                with contextlib.suppress(OSError):
                    self._carry_out(path)
            if self._pending:
                self._start_timer()

    def find(self, path: str) -> Any:
        """Return the node that a hidden name leads to, or None."""
        return self._nodes.get(os.path.basename(path)) if self._nodes else None

    def forget(self, path: str) -> Any:
        """Drop a hidden name. Returns the node that it led to, or None."""
        return self._nodes.pop(os.path.basename(path), None)

    def forget_node(self, node: Any) -> None:
        """Drop the hidden names of a file that is open no more; libfuse forgets some, if it is closed in that moment."""
        for name in [name for name, known in list(self._nodes.items()) if known is node]:
            self._nodes.pop(name, None)

    def is_removed(self, path: str) -> bool:
        """Whether a name is still in the source, but not in the mount."""
        return path in self._pending

    def nr_removed(self, key: tuple[int, int]) -> int:
        """Return how many names of a file (device, inode) are still in the source, but not in the mount."""
        return sum(1 for _, removed, _ in list(self._pending.values()) if removed == key)

    def claim(self, path: str) -> None:
        """Leave the removal of a path to the caller, who replaces it in the source, if it is this thread that hid it."""
        with self._lock:
            if path in self._pending and self._pending[path][0] == threading.get_native_id():
                del self._pending[path]

    def carry_out(self, directory: str | None = None) -> None:
        """Remove from the source what was removed in a directory (None: in all). Raises OSError."""
        if not self._pending:
            return
        with self._lock:
            for path in [path for path in self._pending if directory is None or os.path.dirname(path) == directory]:
                self._carry_out(path)

    def _carry_out(self, path: str) -> None:
        """Remove one path. Context: self._lock held."""
        try:
            self._remove(path)
        except FileNotFoundError:
            pass
        finally:
            del self._pending[path]  # last: who finds nothing pending finds the names gone
