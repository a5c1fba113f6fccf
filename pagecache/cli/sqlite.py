"""`pagecache sqlite`: a shell, or some statements, on a database that is read and written through a cache.

The shell is apsw's, with its dot commands. A URL is opened for reading; a path that is not there is made, as SQLite does.
"""

import argparse
import sys
from typing import Any

import pagecache
from pagecache.cli.stat import parse_options
from pagecache.units import format_size

EXIT_SQL = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument("source", metavar="URL_OR_PATH", help="a path, or a URL that fsspec knows")
    parser.add_argument("sql", metavar="SQL", nargs="*", help="statements or dot commands; none: a prompt")
    parser.add_argument("--size", default="256MiB", help="budget: bytes, 256MiB, 25%% (default: %(default)s)")
    parser.add_argument("--readonly", action="store_true", help="do not write, and do not make the file")
    parser.add_argument("--stats", action="store_true", help="say on standard error what that cost")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="storage option of the URL's file system, such as anon=true; may be given again",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run the statements, or a shell.

    Arguments:
        arguments: as `add_arguments` defines them.
    Returns:
        0, or 1 if a statement failed.
    Raises:
        OSError, ValueError, ImportError, TypeError: the database cannot be opened.
    """
    from pagecache.adapters import sqlite

    import apsw  # isort: skip  (the adapter says how to install it)

    flags = apsw.SQLITE_OPEN_READONLY if arguments.readonly else None
    with pagecache.PageCache(arguments.size) as cache:
        try:
            db = sqlite.connect(arguments.source, cache, flags=flags, **parse_options(arguments.option))
        except apsw.Error as error:
            raise OSError(f"cannot open {arguments.source}: {error}") from error
        try:
            return run_shell(db, arguments.sql)
        finally:
            db.close(True)
            if arguments.stats:
                print(cost_of(cache.stats()), file=sys.stderr)


def run_shell(db: Any, statements: list[str]) -> int:
    """Run statements one after the other until one fails, or a shell on standard input. Returns the exit status."""
    import apsw.shell

    shell = apsw.shell.Shell(db=db)
    if not statements:
        shell.cmdloop()
        return 0
    try:
        for statement in statements:
            shell.process_complete_line(statement)
    except shell.Error as error:
        print(f"pagecache sqlite: {error}", file=sys.stderr)
        return EXIT_SQL
    except apsw.Error as error:
        if not getattr(error, "_handle_exception_saw_this", False):
            print(f"pagecache sqlite: {error}", file=sys.stderr)
        return EXIT_SQL
    finally:
        sys.stdout.flush()
    return 0


def cost_of(stats: Any) -> str:
    """Return what a cache has done in one line."""
    return (
        f"{stats.hits:,} hits, {stats.misses:,} misses; {stats.store_reads:,} requests, "
        f"{format_size(stats.store_read_bytes)} read; {format_size(stats.store_write_bytes)} written"
    )
