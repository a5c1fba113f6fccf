"""`pagecache top`: what the caches of a mount or of another process do and hold, again and again.

The process answers on a socket (`pagecache.live`): a mount always does, another process after `pagecache.serve_stats()` or
with PAGECACHE_SERVE_STATS in its environment.
"""

import argparse
import contextlib
import errno
import json
import os
import select
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

from pagecache.cli import top_screen
from pagecache.stats import server as live

CELLS_PER_FILE = 60
FILES_MAX = 40
EXIT_ENDED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="mount point, process number or socket (default: the only one there is)"
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between pictures (default: %(default)s)")
    parser.add_argument("--files", type=int, default=None, help="most files to show (default: as many as fit)")
    parser.add_argument("--once", action="store_true", help="show one picture and end")
    parser.add_argument("--json", action="store_true", help="print JSON objects, one a line, and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Show pictures until interrupted, or until the process ends.

    Arguments:
        arguments: as `add_arguments` defines them.
    Returns:
        0.
    Raises:
        OSError: the target does not answer.
        ValueError: an argument makes no sense.
    """
    if not 0 < arguments.interval < float("inf"):
        raise ValueError("--interval must be a number of seconds above 0")
    path = socket_of(arguments.target)
    if arguments.json:
        return follow(path, arguments, lambda now, before: print(json.dumps(now), flush=True), nr_cells=256)
    on_terminal = sys.stdout.isatty() and not arguments.once and os.environ.get("TERM") != "dumb"
    if not on_terminal:
        return follow(path, arguments, print_plain)
    with full_screen():
        return follow(path, arguments, draw)


def follow(path: str, arguments: argparse.Namespace, show: Any, nr_cells: int = CELLS_PER_FILE) -> int:
    """Ask and show, again and again."""
    nr_files = arguments.files if arguments.files is not None else FILES_MAX
    before: dict[str, Any] | None = None
    while True:
        try:
            now = live.ask(path, nr_files=nr_files, nr_cells=nr_cells)
        except (ConnectionError, FileNotFoundError):
            if before is None:
                raise
            return EXIT_ENDED
        show(now, before)
        if arguments.once or wait_for_key(arguments.interval):
            return 0
        before = now


# -- which to ask ------------------------------------------------------------------------------------------------------


def socket_of(target: str | None) -> str:
    """Return the socket of a mount point, a process number or a path. Raises OSError, with what there is instead."""
    if target is None:
        found = live.running()
        if len(found) == 1:
            return found[0]
        there = ": name one of " + ", ".join(found) if found else f" in {live.directory()}: name a mount point"
        raise OSError(errno.ENOENT, f"{len(found) or 'no'} processes can be asked{there}")
    if target.isdecimal():
        paths = [path for path in live.running() if os.path.basename(path).split(".")[0].split("-")[0] == target]
        if not paths:
            raise OSError(errno.ESRCH, f"process {target} cannot be asked: call pagecache.serve_stats() in it, or set"
                          f" {live.ENVIRONMENT}=1 in its environment")  # fmt: skip
        return paths[0]
    if stat.S_ISSOCK(os.stat(target).st_mode):
        return target
    return socket_of_mount(target)


def socket_of_mount(path: str) -> str:
    """Return the socket of the mount that a path is in. Raises OSError."""
    root = os.path.realpath(path)
    while not os.path.ismount(root):
        root = os.path.dirname(root)
    try:
        return os.fsdecode(os.getxattr(root, "user.pagecache.stats"))
    except OSError:
        raise OSError(errno.EINVAL, "this is in no mount of pagecache", path) from None


# -- showing -----------------------------------------------------------------------------------------------------------


def print_plain(now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Print one picture as text."""
    print("\n".join(top_screen.lines(now, before, top_screen.PLAIN_COLUMNS, None, sys.stdout.encoding)), flush=True)


def draw(now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Draw one picture over the last one."""
    columns, rows = shutil.get_terminal_size()
    shown = top_screen.lines(now, before, columns, rows - 1, sys.stdout.encoding)
    text = "".join(f"{line[:columns]}\x1b[K\r\n" for line in shown)
    sys.stdout.write(f"\x1b[H{text}\x1b[J\x1b[7m q \x1b[0m ends")
    sys.stdout.flush()


@contextlib.contextmanager
def full_screen() -> Iterator[None]:
    """Take the terminal, and give it back as it was."""
    import termios
    import tty

    saved = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        if saved is not None:
            tty.setcbreak(sys.stdin)
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
        if saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def wait_for_key(seconds: float) -> bool:
    """Wait for the next picture. Returns whether the user wants no more."""
    if not sys.stdin or not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False
