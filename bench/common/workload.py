"""What the benchmarks share: a real file, caches filled in the two ways that matter, and offsets.

"Large" is a file that was read in order first, so that readahead made large folios. "Small" is one whose every folio
is a single page in a random frame. Random offsets are many distinct ones over 256 MiB: fewer would fit in the
processor's caches and measure those.
"""

import os
import random
from pathlib import Path

import pagecache

KIB = 1024
MIB = 1024 * KIB
PAGE_BYTES = 4 * KIB
FILE_BYTES = 256 * MIB
CACHE_BYTES = 264 * MIB  # the file, and what reclaim keeps free
OFFSETS = 65_536
MISSES = 16_384
FOLIOS = ("large", "small")


def make_file(directory: Path, nbytes: int = FILE_BYTES) -> Path:
    """Return a file of random bytes in `directory`, written there unless it is there already."""
    path = directory / f"data-{nbytes // MIB}MiB"
    if not path.exists() or path.stat().st_size != nbytes:
        generator = random.Random(nbytes)
        with open(path, "wb") as file:
            for start in range(0, nbytes, MIB):
                file.write(generator.randbytes(min(MIB, nbytes - start)))
    with open(path, "rb") as file:  # the kernel caches it too, for the other side of a comparison
        while file.read(MIB):
            pass
    return path


def open_cached(cache: pagecache.PageCache, path: Path, folios: str) -> pagecache.File:
    """Return `path` opened in `cache`, wholly cached in large or small folios."""
    file = cache.open(path, "rb")
    nbytes = os.path.getsize(path)
    if folios == "large":
        file.fadvise(pagecache.FADV_SEQUENTIAL)
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass
        file.fadvise(pagecache.FADV_NORMAL)
    else:
        file.fadvise(pagecache.FADV_RANDOM)
        for offset in shuffled_pages(nbytes, seed=1):
            file.pread(1, offset)
    return file


def shuffled_pages(nbytes: int, seed: int) -> list[int]:
    """Return the offset of every page of `nbytes`, in random order."""
    offsets = list(range(0, nbytes, PAGE_BYTES))
    random.Random(seed).shuffle(offsets)
    return offsets


def random_offsets(read_bytes: int, count: int = OFFSETS, nbytes: int = FILE_BYTES, seed: int = 2) -> list[int]:
    """Return offsets for reads of `read_bytes` in a file of `nbytes`: multiples of that, or of a page if it is more."""
    generator = random.Random(seed)
    step = min(read_bytes, PAGE_BYTES)
    return [generator.randrange((nbytes - read_bytes) // step + 1) * step for _ in range(count)]


def read_count(read_bytes: int) -> int:
    """Return how many reads of `read_bytes` make a round long enough to time and short enough to repeat."""
    return max(512, min(OFFSETS, 512 * MIB // read_bytes))
