"""The numbers of a mount's open files, and where requests for them are served.

Reads, writes and attributes of open files are answered by the engine, without the GIL, as far as nothing has to be waited
for, read or explained (`_core.FuseHandles`); everything else, and everything at all where that cannot be had, by `answers`.
The environment variable PAGECACHE_MOUNT_ANSWERS=python has it so everywhere.
"""

import errno
import itertools
import os
from typing import Any

from pagecache._core import FuseHandles

ANSWERS = "PAGECACHE_MOUNT_ANSWERS"
AGAIN = (errno.ENOENT, errno.EINTR, errno.EAGAIN)  # the request was taken back before it was read


class PythonHandles:
    """As `_core.FuseHandles`, but nothing is served here."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._has_ended = False
        self._nr_requests = 0

    def new(self) -> int:
        """Return a number that was never used."""
        return next(self._numbers)

    def serve(self, number: int, file: Any, status: Any = None) -> None:
        """Do nothing."""

    def serve_node(self, node: int, number: int) -> None:
        """Do nothing."""

    def stop(self, number: int) -> None:
        """Do nothing."""

    def give_up(self, number: int) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Have `next_request` return soon."""
        self._has_ended = True

    def next_request(self, fd: int, buffer: Any) -> int:
        """Wait for a request of a descriptor of /dev/fuse; returns its bytes, 0 after `end`. Raises OSError."""
        while not self._has_ended:
            try:
                nbytes = os.readv(fd, [buffer])
            except OSError as error:
                if error.errno in AGAIN:
                    continue
                raise
            self._nr_requests += 1  # about so many
            return nbytes
        return 0

    @staticmethod
    def clone(fd: int) -> int:
        """Return another descriptor of the same mount. Raises OSError."""
        return FuseHandles.clone(fd)

    def counts(self) -> dict[str, int]:
        """Return how many requests were served where."""
        return {"read": 0, "write": 0, "getattr": 0, "python": self._nr_requests}


Handles = FuseHandles | PythonHandles


def make_handles() -> Handles:
    """Return what serves the open files of a mount. Raises ValueError for an unknown word in the environment."""
    word = os.environ.get(ANSWERS, "")
    if word not in ("", "python"):
        raise ValueError(f"{ANSWERS} must be python, or not be set, and not {word!r}")
    if word == "python":
        return PythonHandles()
    try:
        return FuseHandles()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return PythonHandles()


def counts_text(handles: Handles) -> bytes:
    """Return how many requests were served where, as an extended attribute shows it."""
    return " ".join(f"{name}={number}" for name, number in handles.counts().items()).encode()
