"""The command line: `pagecache VERB ...`, also `python -m pagecache VERB ...`.

A verb is a module of this package with `add_arguments(parser)` and `run(arguments) -> int`. It is imported only when
it is asked for, so that no verb pays for another's imports.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Container, Sequence

import pagecache

VERBS = {
    "demo": "read a real file through a cache smaller than it and compare every byte with plain reads",
    "sqlite": "open a shell, or run SQL, on a database at a path or URL, through a cache",
    "stat": "read a file or URL once through a cache and say what that cost, and what is cached then",
    "trace": "run an access trace through the engine and print what each eviction policy misses",
    "mount": "mount a directory or URL as a file system whose bytes go through a cache",
    "top": "show what the caches of a mount or a process do and hold, again and again",
}

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Arguments:
        argv: the arguments after the program's name; those of the process if None.
    Returns:
        The exit status: 0 for success, 1 if a verb found something wrong, 2 for input that cannot be used.
    Raises:
        SystemExit: from argparse, for `--help`, `--version` and arguments it does not know.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        complete()
    arguments = make_parser(words).parse_args(words)
    verb = importlib.import_module(f"pagecache.cli.{arguments.verb}")
    try:
        status: int = verb.run(arguments)
        return status
    except BrokenPipeError:
        # The reader of our output has seen enough; the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OSError, ValueError, ImportError, TypeError) as error:
        if isinstance(error, TypeError) and not getattr(arguments, "option", None):
            raise  # no option of the user's is to blame
        print(f"pagecache {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_USAGE


def complete() -> None:
    """Answer a shell that asks how a command line goes on, and end the process; docs/numbers.md says how it is set up.

    Needs argcomplete, which puts the line into the environment.
    """
    argcomplete = importlib.import_module("argcomplete")
    argcomplete.autocomplete(make_parser(VERBS))


def make_parser(words: Container[str]) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with the arguments of the verbs that appear in `words`."""
    parser = argparse.ArgumentParser(prog="pagecache", description="Linux's page cache as an engine for Python.")
    parser.add_argument("--version", action="version", version=f"pagecache {pagecache.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, purpose in VERBS.items():
        verb_parser = verbs.add_parser(name, help=purpose, description=purpose)
        if name in words:
            importlib.import_module(f"pagecache.cli.{name}").add_arguments(verb_parser)
    return parser
