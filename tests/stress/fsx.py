"""An exerciser of one file in the manner of fsx: seeded operations, every byte compared, a log that can be replayed.

    python tests/stress/fsx.py --operations 1000000 --seed 7 --frames 64 --store file
    python tests/stress/fsx.py --replay fsx-7.log

Every written byte depends on its offset and on the number of the operation, so a stale byte names the operation that
wrote it.  Before the size changes, bytes behind the end of the file are stored through a map: they must never be seen.
On a mismatch the first bad offset, the operations that wrote what is there and what should be, and the last operations
are printed, and the whole log is written to a file.
"""

import argparse
import contextlib
import errno
import mmap
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pagecache
from pagecache import mm

PAGE = 4096
WORD = 4
CHECK_EVERY = 5000  # operations between two looks at the engine's invariants
WHOLE_EVERY = 1000  # operations between two reads of the whole file
NR_SHOWN = 40  # operations that are printed after a mismatch
PRIVATE_FRAMES_MIN = 16  # a private copy and the page it is made of are held at once, beside what is dirty
PRIVATE_PART = 8  # part of the cache that private copies may pin
OBJECT = "the file under test"

# How often each operation comes, in parts of their sum.
WEIGHTS = {
    "read": 24, "view": 4, "read_all": 1, "write": 20, "append": 5, "write_behind": 2, "truncate_down": 4,
    "truncate_up": 4, "punch": 5, "map_read": 8, "map_write": 10, "private_write": 2, "private_read": 2, "fsync": 0.5,
    "sync_range": 1, "reopen": 0.3, "drop_caches": 2, "pressure": 2, "invalidate": 1, "dont_need": 1,
}  # fmt: skip
NAMES = tuple(WEIGHTS)
CHANGES_SIZE = {"append", "write_behind", "truncate_down", "truncate_up"}


class MismatchError(AssertionError):
    """Bytes, or a size, that are not what they should be."""


class Pattern:
    """Bytes that name the operation that wrote them: the words of a ramp over all offsets, xor the operation's number."""

    def __init__(self, nbytes):
        step = 2654435761  # spreads neighbouring offsets
        words = (word * step % 2**32 for word in range(nbytes // WORD + 2))
        self._ramp = b"".join(word.to_bytes(WORD, "little") for word in words)

    def bytes(self, number, offset, nbytes):
        """Return what operation `number` writes at an offset."""
        skip = offset % WORD
        words = number.to_bytes(WORD, "little") * ((nbytes + skip) // WORD + 1)
        mask = int.from_bytes(words[skip : skip + nbytes], "little")
        ramp = int.from_bytes(self._ramp[offset : offset + nbytes], "little")
        return (ramp ^ mask).to_bytes(nbytes, "little")

    def writer(self, data, start, offset):
        """Return which operation wrote the byte at an offset, as words; data: bytes from offset `start` on."""
        first = offset - offset % WORD
        word = data[first - start : first - start + WORD]
        if first < start or len(word) < WORD:
            return "an unknown operation"
        if not any(word):
            return "never: it is zero"
        number = int.from_bytes(word, "little") ^ int.from_bytes(self._ramp[first : first + WORD], "little")
        return f"operation {number}"


class Exerciser:
    """One file, the bytes it must have, and the operations on both.

    frames: page frames of the cache. store: "memory", "file" or "direct". max_size: of the file (bytes). seed: chooses
    the operations. log_path: where the log of a failed run goes. options: of the cache.
    """

    def __init__(self, frames, store, seed, *, max_size=64 * PAGE, directory=None, log_path="fsx.log", **options):
        self.description = {"seed": seed, "frames": frames, "store": store, "max_size": max_size}
        self.rng = random.Random(seed)
        self.frames = frames
        self.max_size = max_size
        self.max_length = max(1, min(16 * PAGE, max_size // 4, 4 * PAGE * frames))
        self.pattern = Pattern(max_size)
        self.model = bytearray()
        self.private = {}  # page -> bytes of the private map
        self.log = []
        self.log_path = Path(log_path)
        self.counts = dict.fromkeys(NAMES, 0)
        self.nr_bytes_compared = 0
        self._directory = tempfile.TemporaryDirectory(dir=directory)
        self.path = Path(self._directory.name) / "object"
        self.is_direct = store == "direct"
        self.source = pagecache.MemoryStore(key=OBJECT) if store == "memory" else self.path
        self.path.touch()
        self.cache = pagecache.PageCache(frames * PAGE, **options)
        self.other = self.cache.open(pagecache.MemoryStore(b"\xee" * (4 * max(frames, 16) * PAGE), key="another"))
        self._cumulative = self._weights()
        self.open()

    def _weights(self):
        """Return the cumulative weights of the operations, without those for which the cache is too small."""
        too_many = set() if self.frames >= PRIVATE_FRAMES_MIN else {"private_write", "private_read"}
        total, out = 0, []
        for name, weight in WEIGHTS.items():
            total += 0 if name in too_many else weight
            out.append(total)
        return out

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self):
        """Open the files and make the maps, which reach behind any end of the file."""
        self.file = self.cache.open(self.source, "r+b", direct=self.is_direct)
        self.appender = self.cache.open(self.source, "a+b", direct=self.is_direct)
        self.memory_map = mm.MemoryMap()
        everything = mmap.PROT_READ | mmap.PROT_WRITE
        self.shared = self.memory_map.mmap(self.file, self.max_size, everything, mmap.MAP_SHARED)
        self._map_private()

    def _map_private(self):
        everything = mmap.PROT_READ | mmap.PROT_WRITE
        self.private_start = self.memory_map.mmap(self.file, self.max_size, everything, mmap.MAP_PRIVATE)
        self.private = {}

    def close_files(self):
        """Give up maps and files."""
        self.memory_map.munmap(self.shared, self.max_size)
        self.memory_map.munmap(self.private_start, self.max_size)
        self.appender.close()
        self.file.close()

    def close(self):
        """Close everything; the store must have the file's bytes."""
        self.close_files()
        self.other.close()
        self.cache.check()
        self.cache.close()
        self._compare(self.stored(), 0, len(self.model), "in the store after closing")
        self._directory.cleanup()

    def stored(self):
        """Return what the store has."""
        return self.source.tobytes() if isinstance(self.source, pagecache.MemoryStore) else self.path.read_bytes()

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, nr_operations, progress=None):
        """Make so many random operations. Raises MismatchError; then the log has been written."""
        for _ in range(nr_operations):
            self._logged(*self._choose())
            if progress is not None and len(self.log) % progress == 0:
                print(f"{len(self.log)} operations, {len(self.model)} bytes", flush=True)

    def replay(self, operations):
        """Make the operations of a log: (name, offset, nbytes) of each."""
        for name, offset, nbytes in operations:
            self._logged(name, offset, nbytes)

    def _logged(self, name, offset, nbytes):
        self.log.append((name, offset, nbytes))
        self.counts[name] += 1
        number = len(self.log)
        try:
            if name in CHANGES_SIZE:
                self._pollute(number)
            getattr(self, f"do_{name}")(number, offset, nbytes)
            if name in CHANGES_SIZE and self.file.seek(0, 2) != len(self.model):
                raise MismatchError(f"the file has {self.file.seek(0, 2)} bytes, it should have {len(self.model)}")
            if number % WHOLE_EVERY == 0:
                self.do_read_all(number, 0, 0)
            if number % CHECK_EVERY == 0:
                self.cache.check()
        except BaseException as error:
            self._report(error)
            raise

    def _choose(self):
        """Return a random operation: its name, offset and length, fit for the size that the file has now."""
        rng, size = self.rng, len(self.model)
        name = rng.choices(NAMES, cum_weights=self._cumulative)[0]
        nbytes = rng.randrange(1, self.max_length) if rng.random() < 0.5 else rng.randrange(1, 600)
        if name == "append":
            return name, size, min(nbytes, self.max_size - size)
        if name in ("truncate_up", "write_behind"):
            offset = rng.randrange(size, self.max_size + 1) if rng.random() < 0.3 else min(size + nbytes, self.max_size)
            return name, offset, min(nbytes, self.max_size - offset)
        offset = rng.randrange(size + 1) if rng.random() < 0.7 else rng.randrange(size // PAGE + 1) * PAGE
        if name == "truncate_down":
            offset = offset if rng.random() < 0.2 else max(0, size - nbytes)
        if name == "write":
            nbytes = min(nbytes, self.max_size - offset)
        return name, offset, nbytes

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _compare(self, data, offset, nbytes, where):
        """Check bytes against the model's [offset, offset + nbytes)."""
        expected = self.model[offset : offset + nbytes]
        self.nr_bytes_compared += len(expected)
        if data != expected:
            raise MismatchError(self._difference(data, expected, offset, where))

    def _difference(self, data, expected, offset, where):
        """Describe the first difference."""
        both = min(len(data), len(expected))
        at = next((i for i in range(both) if data[i] != expected[i]), both)
        if at == both:
            return f"{len(data)} bytes instead of {len(expected)} at {offset} {where}"
        nr_bad = sum(one != other for one, other in zip(data, expected, strict=False))
        bad = offset + at
        return (
            f"the byte at {bad} (page {bad // PAGE}, byte {bad % PAGE}) {where} is {data[at]:#04x}, by "
            f"{self.pattern.writer(data, offset, bad)}; it should be {expected[at]:#04x}, by "
            f"{self.pattern.writer(expected, offset, bad)}; {nr_bad} of {len(data)} bytes at {offset} are wrong"
        )

    def _report(self, error):
        """Print what is needed to find the fault, and write the log."""
        lines = [f"{name} {offset} {nbytes}" for name, offset, nbytes in self.log]
        header = " ".join(f"{key}={value}" for key, value in self.description.items())
        self.log_path.write_text("\n".join([f"# {header}", *lines, ""]))
        print(f"operation {len(lines)} failed: {type(error).__name__}: {error}")
        print(f"{header}; the last operations:")
        for number in range(max(0, len(lines) - NR_SHOWN), len(lines)):
            print(f"  {number + 1:8} {lines[number]}")
        print(f"replay with: python tests/stress/fsx.py --replay {self.log_path}", flush=True)

    # -- operations ----------------------------------------------------------------------------------------------------

    def do_read(self, number, offset, nbytes):
        """Read a range; every other time into a buffer."""
        if number % 2:
            data = self.file.pread(nbytes, offset)
        else:
            data = bytearray(nbytes)
            del data[self.appender.preadinto(data, offset) :]
        self._compare(data, offset, nbytes, "read")

    def do_view(self, _number, offset, nbytes):
        """Read a range without a copy; what folios hold in parts may be too much to be copied."""
        try:
            with self.file.view(nbytes, offset) as view:
                data = bytes(view)
        except pagecache.CacheFullError:
            data = self.file.pread(nbytes, offset)
        self._compare(data, offset, nbytes, "in a view")

    def do_read_all(self, _number, _offset, _nbytes):
        """Read the whole file in order, by large reads, which bring large folios in."""
        for offset in range(0, len(self.model) + 1, 32 * PAGE):
            self._compare(self.file.pread(32 * PAGE, offset), offset, 32 * PAGE, "read in order")

    def do_write(self, number, offset, nbytes):
        """Write inside the file, perhaps over its end."""
        data = self.pattern.bytes(number, offset, nbytes)
        self.file.pwrite(data, offset)
        self.model[offset : offset + nbytes] = data

    def do_append(self, number, _offset, nbytes):
        """Write at the end, wherever the position is."""
        offset = len(self.model)
        data = self.pattern.bytes(number, offset, nbytes)
        self.appender.seek(0)
        self.appender.write(data)
        self.model += data

    def do_write_behind(self, number, offset, nbytes):
        """Write behind the end: a hole comes between."""
        if nbytes:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.do_write(number, offset, nbytes)

    def do_truncate_down(self, _number, offset, _nbytes):
        """Truncate the file."""
        self._set_size(offset)

    def do_truncate_up(self, _number, offset, _nbytes):
        """Extend the file with zeros."""
        self._set_size(offset)

    def _set_size(self, size):
        self.file.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))
        for page in [page for page in self.private if page * PAGE >= size]:
            del self.private[page]

    def do_punch(self, _number, offset, nbytes):
        """Make a hole."""
        self.file.punch_hole(offset, nbytes)
        end = min(offset + nbytes, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))

    def _pollute(self, number):
        """Store bytes behind the end of the file, in its last page, through the shared map."""
        size = len(self.model)
        if size % PAGE:
            self.memory_map.write(self.shared + size, self.pattern.bytes(number, size, PAGE - size % PAGE))

    def do_map_read(self, _number, offset, nbytes):
        """Read through the shared map, up to the end of the last page, which shows zeros."""
        end = -(-len(self.model) // PAGE) * PAGE
        data = self.memory_map.read(self.shared + offset, max(0, min(offset + nbytes, end) - offset))
        behind = max(0, offset + len(data) - max(offset, len(self.model)))
        self._compare(data[: len(data) - behind], offset, nbytes, "in the map")
        if any(data[len(data) - behind :]):
            raise MismatchError(f"bytes behind the end of the file, {len(self.model)}, show in the map")

    def do_map_write(self, number, offset, nbytes):
        """Store through the shared map."""
        nbytes = min(nbytes, len(self.model) - offset)
        data = self.pattern.bytes(number, offset, max(0, nbytes))
        self.memory_map.write(self.shared + offset, data)
        self.model[offset : offset + len(data)] = data

    def do_private_write(self, number, offset, nbytes):
        """Store into one page of the private map; the file must not change."""
        page = offset // PAGE
        nbytes = min(nbytes, PAGE - offset % PAGE)
        if page * PAGE >= len(self.model):
            return
        if len(self.private) >= self.frames // PRIVATE_PART:
            self.memory_map.munmap(self.private_start, self.max_size)
            self._map_private()
        if page not in self.private:
            self.private[page] = self.model[page * PAGE : (page + 1) * PAGE].ljust(PAGE, b"\0")
        data = self.pattern.bytes(number, offset, nbytes)
        self.memory_map.write(self.private_start + offset, data)
        self.private[page][offset % PAGE : offset % PAGE + nbytes] = data

    def do_private_read(self, _number, offset, nbytes):
        """Read through the private map: its own pages, the file's elsewhere."""
        end = min(offset + nbytes, len(self.model))
        if end <= offset:
            return
        data = self.memory_map.read(self.private_start + offset, end - offset)
        expected = bytearray(self.model[offset:end])
        for page, content in self.private.items():
            first, last = max(offset, page * PAGE), min(end, (page + 1) * PAGE)
            if first < last:
                expected[first - offset : last - offset] = content[first - page * PAGE : last - page * PAGE]
        self.nr_bytes_compared += len(data)
        if data != expected:
            raise MismatchError(self._difference(data, expected, offset, "in the private map"))

    def do_fsync(self, _number, _offset, _nbytes):
        """Make everything durable: the store has it then."""
        self.appender.fsync()
        self._compare(self.stored(), 0, len(self.model), "in the store after fsync")

    def do_sync_range(self, _number, offset, nbytes):
        """Write a range back: the store has it then."""
        self.file.sync_range(offset, nbytes)
        end = min(offset + nbytes, len(self.model))
        nbytes = max(0, end - offset)
        stored = self.stored()[offset:end].ljust(nbytes, b"\0")  # a hole at the end is no page, so nothing was written
        self._compare(stored, offset, nbytes, "in the store after sync_range")

    def do_reopen(self, _number, _offset, _nbytes):
        """Close the files and the maps, and open them again."""
        self.close_files()
        self.open()

    def do_drop_caches(self, _number, _offset, _nbytes):
        """Drop what is clean."""
        self.cache.drop_caches()

    def do_pressure(self, number, _offset, _nbytes):
        """Read another object through the cache."""
        nbytes = min(self.frames, 16) * PAGE
        offset = number * nbytes % max(1, self.other.mapping.size - nbytes)
        if self.other.pread(nbytes, offset).count(0xEE) != nbytes:
            raise MismatchError("the other object has other bytes")

    def do_invalidate(self, _number, offset, nbytes):
        """Drop a range, or all; dirty pages refuse."""
        try:
            self.file.invalidate(*((offset, nbytes) if nbytes % 2 else (0, 0)))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise

    def do_dont_need(self, _number, offset, nbytes):
        """Advise that a range is not needed."""
        self.file.fadvise(pagecache.FADV_DONTNEED, offset, nbytes)


def read_log(path):
    """Return how a run was made, and its operations."""
    lines = Path(path).read_text().splitlines()
    description = dict(item.split("=", 1) for item in lines[0].lstrip("# ").split())
    operations = [line.split() for line in lines[1:] if line and not line.startswith("#")]
    return description, [(name, int(offset), int(nbytes)) for name, offset, nbytes in operations]


def arguments():
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--frames", type=int, default=64, help="page frames of the cache")
    parser.add_argument("--store", choices=("memory", "file", "direct"), default="memory")
    parser.add_argument("--max-size", type=int, default=64 * PAGE, help="largest size of the file (bytes)")
    parser.add_argument("--directory", help="where the file is made")
    parser.add_argument("--dirty-limit", default="20%", help="part of the cache that may be dirty")
    parser.add_argument("--replay", metavar="LOG", help="make the operations of a log")
    parser.add_argument("--log", help="where the log goes after a mismatch (fsx-SEED.log)")
    return parser.parse_args()


def main():
    """Run, or replay, and say what was done. Returns the exit status."""
    given = arguments()
    description, operations = vars(given), None
    if given.replay:
        description, operations = read_log(given.replay)
    seed, frames = int(description["seed"]), int(description["frames"])
    exerciser = Exerciser(
        frames, description["store"], seed, max_size=int(description["max_size"]), directory=given.directory,
        log_path=given.log or f"fsx-{seed}.log", dirty_limit=given.dirty_limit,
    )  # fmt: skip
    started = time.monotonic()
    try:
        if operations is None:
            exerciser.run(given.operations, progress=100_000)
        else:
            exerciser.replay(operations)
        exerciser.close()
    except MismatchError:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(1)
    seconds = time.monotonic() - started
    nr = len(exerciser.log)
    print(f"store={description['store']} frames={frames} seed={seed}: {nr} operations in {seconds:.1f} s "
          f"({nr / seconds:.0f}/s), {exerciser.nr_bytes_compared} bytes compared, no difference")  # fmt: skip
    print(" ".join(f"{name}={count}" for name, count in exerciser.counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
