"""`pagecache mount`: a directory, or the objects of a URL, as a file system whose bytes go through a cache."""

import argparse
import os
import resource
import sys

import pagecache
from pagecache.cli.stat import parse_options
from pagecache.units import format_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument("source", metavar="SOURCE", help="a directory, or a URL that fsspec knows")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="a directory outside of it, not above it")
    parser.add_argument("--size", default="25%", help="budget: bytes, 256MiB, 25%% (default: %(default)s)")
    parser.add_argument("--read-only", action="store_true", help="refuse changes")
    parser.add_argument("--write-back", action="store_true", help="of a URL: let objects be changed, each put as a whole")
    parser.add_argument(
        "--kernel-cache", action="store_true", help="let the kernel keep pages too; shared maps need it before Linux 6.6"
    )
    parser.add_argument("--direct", action="store_true", help="read and write the source past the kernel's page cache")
    parser.add_argument("--allow-other", action="store_true", help="let other users in, as permissions say")
    parser.add_argument(
        "--recheck", default="open", metavar="WHEN",
        help="when cached bytes are held against the source: open, always, never, or older than so many seconds "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--on-change", default="error", choices=("error", "reload"),
        help="what a file does that is open while others change it: ESTALE, or the new bytes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="storage option of the URL's file system, such as anon=true; may be given again",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Mount, and serve until it is unmounted or interrupted.

    Arguments:
        arguments: as `add_arguments` defines them.
    Returns:
        0, or 1 when something could not be written back.
    Raises:
        OSError: source or mount point cannot be used.
        ValueError: an argument makes no sense.
        ImportError: fusermount3 or the URL's library is missing.
    """
    from pagecache.adapters.fuse import mount

    raise_descriptor_limit()
    cache = pagecache.PageCache(arguments.size)
    is_url = "://" in arguments.source and not arguments.source.startswith("file://")
    options = {"write_back": arguments.write_back} if is_url else {"direct": arguments.direct}
    if not is_url and (arguments.write_back or arguments.option):
        raise ValueError("--write-back and --option are for URLs: a directory is written unless --read-only says no")

    def ready() -> None:
        print(f"{arguments.source} is mounted on {arguments.mountpoint} through {format_size(cache.size)};"
              f" end with Ctrl-C or fusermount3 -u {arguments.mountpoint}", flush=True)  # fmt: skip

    with pagecache.serve_stats() as server:
        try:
            mount(
                arguments.source, arguments.mountpoint, cache=cache, kernel_cache=arguments.kernel_cache,
                read_only=arguments.read_only, allow_other=arguments.allow_other, ready=ready,
                xattrs={"user.pagecache.stats": os.fsencode(server.path)},
                storage_options=parse_options(arguments.option), recheck=parse_recheck(arguments.recheck),
                on_change=arguments.on_change, **options,
            )  # fmt: skip
        except OSError as error:
            close_after(cache, error)
            raise
        return close_after(cache, None)


def close_after(cache: pagecache.PageCache, error: OSError | None) -> int:
    """Close the cache, and say what is lost. Returns the exit status."""
    try:
        cache.close()
    except OSError as lost:
        print(f"pagecache mount: {lost}", *getattr(lost, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    return 0 if error is None else 1


def parse_recheck(word: str) -> bool | str | float:
    """Return `recheck` of `PageCache.open` for a word of the command line. Raises ValueError."""
    known: dict[str, bool | str] = {"open": "open", "always": True, "never": False}
    if word in known:
        return known[word]
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"--recheck must be open, always, never or a number of seconds, not {word!r}") from None


def raise_descriptor_limit() -> None:
    """Let this process have as many open files as it may: each open file of the mount takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
