"""`pagecache demo`: read and rewrite a real file through a cache smaller than it, and compare every byte.

The file is read in order, then at random, then through `mmap()`; then it is copied, block by block at random, to a file
that is written through the same cache and made durable. Each time the bytes are hashed and compared with the hash of
plain reads, for the copy by plain reads of it. Then cached reads are timed beside `os.pread` and the standard library's
`mmap`.
"""

import argparse
import hashlib
import json
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Callable

import pagecache
from pagecache.cli import report
from pagecache.cli.outcome import Outcome, Pass
from pagecache.cli.progress import Progress
from pagecache.cli.timing import time_cached_reads

KIB = 1024
MIB = 1024 * KIB

READ_BYTES = 128 * KIB  # a read of the pass in order
BLOCK_BYTES = 64 * KIB  # a read of the pass at random, and a slice of the mapping
PAGE_BYTES = 4 * KIB
PREFIX_FILE_BYTES_MIN = 8 * MIB  # less than this under sys.prefix: look under sys.base_prefix as well
COUNTERS = ("hits", "misses", "pgmajfault", "readahead_pages", "evictions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb to its parser."""
    parser.add_argument("path", metavar="PATH", nargs="?", help="the file (default: the largest under sys.prefix)")
    parser.add_argument("--size", default="64MiB", help="budget: bytes, 64MiB, 25%% (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random order (default: a new one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and report it on standard output.

    Arguments:
        arguments: as `add_arguments` defines them.
    Returns:
        0 if every byte agreed with plain reads, 1 if not.
    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty or not a regular file, or the size of the cache makes no sense.
    """
    path, path_reason = choose_file(arguments.path)
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    outcome = perform(path, path_reason, arguments.size, seed)
    if arguments.json:
        print(json.dumps(report.as_json(outcome)))
    else:
        print("\n".join(report.as_text(outcome, sys.stdout.encoding)))
    return 0 if outcome.agrees else 1


def choose_file(named: str | None) -> tuple[str, str]:
    """Return the file to read and why it was chosen.

    Raises:
        OSError: a named file is missing.
        ValueError: a named file is empty or not a regular file; or no file could be found.
    """
    if named is None:
        return largest_installed_file()
    status = os.stat(named)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{named} is not a regular file; name one, or none for the largest under sys.prefix")
    if status.st_size == 0:
        raise ValueError(f"{named} is empty; name a file that has something to read")
    return named, "as asked"


def largest_installed_file() -> tuple[str, str]:
    """Return the largest readable file that came with this Python, and where it was found."""
    size, path, where = *largest_file(sys.prefix), "sys.prefix"
    if size < PREFIX_FILE_BYTES_MIN and sys.base_prefix != sys.prefix:
        size, path, where = max((size, path, where), (*largest_file(sys.base_prefix), "sys.base_prefix"))
    if not size:
        raise ValueError(f"no readable file under {sys.prefix}; name one")
    return path, f"the largest file under {where}"


def largest_file(directory: str) -> tuple[int, str]:
    """Return size and path of the largest readable regular file under `directory`; symbolic links do not count."""
    largest = (0, "")
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and (status.st_size, path) > largest and os.access(path, os.R_OK):
                largest = (status.st_size, path)
    return largest


def perform(path: str, path_reason: str, size: str, seed: int) -> Outcome:
    """Read `path` every way through a cache of `size`, or of less if the file would fit into that."""
    file_bytes = os.path.getsize(path)
    expected, expected_of_blocks = plain_hashes(path, file_bytes)
    cache, cache_reason = make_cache(size, file_bytes)
    with cache, cache.open(path, "rb") as file:
        passes = [
            timed_pass(cache, "in order", expected, lambda: hash_in_order(file, file_bytes)),
            timed_pass(cache, "at random", expected_of_blocks, lambda: hash_at_random(file, file_bytes, seed)),
            timed_pass(cache, "mmap()", expected, lambda: hash_mapping(file, file_bytes)),
            timed_pass(cache, "written", expected, lambda: hash_copy(cache, file, file_bytes, seed)),
        ]
        resident = file.mincore()
        cache_bytes = cache.stats().budget_bytes
        timing = time_cached_reads(cache, file, path, min(cache_bytes // 2, file_bytes), seed)
    return Outcome(
        path=path,
        path_reason=path_reason,
        file_bytes=file_bytes,
        cache_bytes=cache_bytes,
        cache_reason=cache_reason,
        seed=seed,
        passes=passes,
        timing=timing,
        resident=resident,
    )


def make_cache(size: str, file_bytes: int) -> tuple[pagecache.PageCache, str]:
    """Return a cache smaller than the file, if there is one, and how its size was chosen."""
    cache = pagecache.PageCache(int(size) if size.isdecimal() else size)
    asked_bytes = cache.stats().budget_bytes
    if asked_bytes < file_bytes:
        return cache, "smaller than the file"
    cache.close()
    cache = pagecache.PageCache(max(file_bytes // 4, PAGE_BYTES))
    if cache.stats().budget_bytes < file_bytes:
        return cache, f"a quarter of the file, as {size} would hold all of it"
    return cache, "one page: the file has no more"


def plain_hashes(path: str, file_bytes: int) -> tuple[str, str]:
    """Return the SHA-256 of the file, and that of the digests of its blocks, by plain reads."""
    whole = hashlib.sha256()
    blocks = hashlib.sha256()
    with open(path, "rb") as file, Progress("plain reads", file_bytes) as progress:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.update(hashlib.sha256(block).digest())
            progress.advance(len(block))
    return whole.hexdigest(), blocks.hexdigest()


def timed_pass(cache: pagecache.PageCache, name: str, expected_sha256: str, hash_file: Callable[[], str]) -> Pass:
    """Run one pass and take down what it changed in the cache's statistics."""
    before = cache.stats()
    start = time.perf_counter()
    sha256 = hash_file()
    seconds = time.perf_counter() - start
    after = cache.stats()
    counters = {counter: getattr(after, counter) - getattr(before, counter) for counter in COUNTERS}
    return Pass(name, sha256, expected_sha256, seconds, counters)


def hash_in_order(file: pagecache.File, file_bytes: int) -> str:
    """Return the SHA-256 of the file, read from its start in large reads."""
    whole = hashlib.sha256()
    file.seek(0)
    with Progress("in order", file_bytes) as progress:
        while piece := file.read(READ_BYTES):
            whole.update(piece)
            progress.advance(len(piece))
    return whole.hexdigest()


def hash_at_random(file: pagecache.File, file_bytes: int, seed: int) -> str:
    """Return the SHA-256 of the digests of the file's blocks, read in random order."""
    digests = [b""] * -(-file_bytes // BLOCK_BYTES)
    order = list(range(len(digests)))
    random.Random(seed).shuffle(order)
    with Progress("at random", file_bytes) as progress:
        for number in order:
            block = file.pread(BLOCK_BYTES, number * BLOCK_BYTES)
            digests[number] = hashlib.sha256(block).digest()
            progress.advance(len(block))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def hash_mapping(file: pagecache.File, file_bytes: int) -> str:
    """Return the SHA-256 of the file, sliced in order out of a mapping of it."""
    whole = hashlib.sha256()
    with file.mmap() as mapping, Progress("mmap()", file_bytes) as progress:
        for offset in range(0, file_bytes, BLOCK_BYTES):
            piece = mapping[offset : offset + BLOCK_BYTES]
            whole.update(piece)
            progress.advance(len(piece))
    return whole.hexdigest()


def hash_copy(cache: pagecache.PageCache, file: pagecache.File, file_bytes: int, seed: int) -> str:
    """Return the SHA-256, by plain reads, of a copy of the file that was written in random order and made durable."""
    order = list(range(-(-file_bytes // BLOCK_BYTES)))
    random.Random(seed + 1).shuffle(order)
    with tempfile.TemporaryDirectory(prefix="pagecache-demo-") as directory:
        path = os.path.join(directory, "copy")
        with cache.open(path, "w+b") as copy, Progress("written", file_bytes) as progress:
            for number in order:
                copy.pwrite(file.pread(BLOCK_BYTES, number * BLOCK_BYTES), number * BLOCK_BYTES)
                progress.advance(BLOCK_BYTES)
            copy.fsync()
            return plain_hashes(path, file_bytes)[0]
