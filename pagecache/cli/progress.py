"""A progress bar for people: shown on a terminal, silent anywhere else."""

import os
import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

REFRESH_SECONDS = 0.1
BAR_COLUMNS_MAX = 40


class Progress:
    """A bar on standard error that says how much of some work is done, and leaves no trace when it ends.

    Use it as a context manager and call `advance` as work is done.
    """

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        """Name the work.

        Arguments:
            title: what is being done.
            total: how much there is to do, in any unit.
            stream: where the bar goes; standard error if None. Nothing is written unless it is a terminal.
        """
        self.title = title
        self.total = max(total, 1)
        self.done = 0
        self.stream = sys.stderr if stream is None else stream
        self.visible = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._next_seconds = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.visible:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def advance(self, amount: int) -> None:
        """Count `amount` more as done and redraw the bar, at most ten times a second."""
        self.done += amount
        if self.visible and (now := time.monotonic()) >= self._next_seconds:
            self._next_seconds = now + REFRESH_SECONDS
            self.stream.write("\r" + self.line(shutil.get_terminal_size().columns) + "\x1b[K")
            self.stream.flush()

    def line(self, columns: int) -> str:
        """Return the bar as text that fits a terminal of `columns` columns."""
        share = min(self.done / self.total, 1.0)
        tail = f" {share:4.0%}"
        width = min(BAR_COLUMNS_MAX, columns - len(self.title) - len(tail) - 4)
        if width < 1:
            return tail.strip()
        filled = int(share * width)
        return f"{self.title} [{'#' * filled}{'.' * (width - filled)}]{tail}"
