"""The exerciser of fsx.py on a file of a mount: by system calls, through two names, descriptors and shared maps.

    python tests/stress/mount_fsx.py DIRECTORY --operations 200000 --seed 7 [--maps] [--source DIRECTORY]

DIRECTORY: on the mount. --source: the same one of the source, which is compared after fsync and at the end.
"""

import argparse
import ctypes
import mmap
import os
import random
import sys
from pathlib import Path

import fsx
from fsx import PAGE, MismatchError, Pattern

WEIGHTS = {
    "read": 24, "read_all": 0.5, "write": 18, "append": 5, "write_behind": 2, "truncate_down": 4, "truncate_up": 4,
    "punch": 4, "zero": 2, "holes": 2, "look": 6, "map_read": 8, "map_write": 10, "fsync": 1, "fdatasync": 0.5,
    "reopen": 0.5, "rename": 0.5,
}  # fmt: skip
NAMES = tuple(WEIGHTS)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, nbytes):
    """Call fallocate(2)."""
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(nbytes)):
        raise OSError(ctypes.get_errno(), "fallocate")


class MountExerciser(fsx.Exerciser):
    """One file of a mount. directory: on the mount. source: the same one of the source. maps: whether it is mapped, too."""

    def __init__(self, directory, source, seed, *, maps=True, max_size=64 * PAGE, log_path="fsx.log"):
        self.description = {"seed": seed, "maps": maps, "max_size": max_size}
        self.rng = random.Random(seed)
        self.max_size = max_size
        self.max_length = 16 * PAGE
        self.pattern = Pattern(max_size)
        self.model = bytearray()
        self.log = []
        self.log_path = Path(log_path)
        self.counts = dict.fromkeys(NAMES, 0)
        self.nr_bytes_compared = 0
        self.directory, self.source = Path(directory), source and Path(source)
        self.names = ["object", "other-name"]
        self.is_mapped = maps
        total, self._cumulative = 0, []
        for name, weight in WEIGHTS.items():
            total += weight if maps or not name.startswith("map_") else 0
            self._cumulative.append(total)
        (self.directory / self.names[0]).touch()
        os.link(self.directory / self.names[0], self.directory / self.names[1])
        self.open()

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self):
        """Open the file by each of its names, and to append; make the map, which reaches behind any end of the file."""
        one, other = (self.directory / name for name in self.names)
        self.fds = [os.open(one, os.O_RDWR), os.open(other, os.O_RDWR)]
        self.appender = os.open(one, os.O_WRONLY | os.O_APPEND)
        self.map = None
        if self.is_mapped:  # Python maps no more than the file has, so it has that much for a moment
            os.ftruncate(self.fds[0], self.max_size)
            self.map = mmap.mmap(self.fds[0], self.max_size)
            os.ftruncate(self.fds[0], len(self.model))

    def close_files(self):
        """Give up maps and descriptors."""
        if self.map is not None:
            self.map.close()
        for fd in (*self.fds, self.appender):
            os.close(fd)

    def close(self):
        """Close everything; what the mount shows must be the file's bytes."""
        self.close_files()
        for name in self.names:
            self._compare((self.directory / name).read_bytes(), 0, len(self.model) + 1, "after closing")
        self.compare_source("in the source after closing")

    def compare_source(self, where):
        """Compare what the source has."""
        if self.source is not None:
            self._compare((self.source / self.names[0]).read_bytes(), 0, len(self.model) + 1, where)

    def _choose(self):
        fsx_names, fsx.NAMES = fsx.NAMES, NAMES
        try:
            return super()._choose()
        finally:
            fsx.NAMES = fsx_names

    def _logged(self, name, offset, nbytes):
        self.log.append((name, offset, nbytes))
        self.counts[name] += 1
        number = len(self.log)
        try:
            getattr(self, f"do_{name}")(number, offset, nbytes)
            if number % fsx.WHOLE_EVERY == 0:
                self.do_read_all(number, 0, 0)
        except BaseException as error:
            self._report(error)
            raise

    # -- operations ----------------------------------------------------------------------------------------------------

    def do_read(self, number, offset, nbytes):
        """Read a range through either name."""
        self._compare(os.pread(self.fds[number % 2], nbytes, offset), offset, nbytes, "read")

    def do_read_all(self, number, _offset, _nbytes):
        """Read the whole file."""
        self._compare(os.pread(self.fds[number % 2], self.max_size + 1, 0), 0, self.max_size + 1, "read as a whole")

    def do_write(self, number, offset, nbytes):
        """Write inside the file, perhaps over its end."""
        data = self.pattern.bytes(number, offset, nbytes)
        if os.pwrite(self.fds[number % 2], data, offset) != nbytes:
            raise MismatchError("a short write")
        self.model[offset : offset + nbytes] = data

    def do_append(self, number, _offset, nbytes):
        """Write at the end."""
        data = self.pattern.bytes(number, len(self.model), nbytes)
        if nbytes and os.write(self.appender, data) != nbytes:
            raise MismatchError("a short write")
        self.model += data

    def _set_size(self, size):
        if len(self.log) % 3:
            os.ftruncate(self.fds[len(self.log) % 2], size)
        else:
            os.truncate(self.directory / self.names[len(self.log) % 2], size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def do_punch(self, number, offset, nbytes):
        """Make a hole."""
        fallocate(self.fds[number % 2], PUNCH_HOLE | KEEP_SIZE, offset, nbytes)
        end = min(offset + nbytes, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))

    def do_zero(self, number, offset, nbytes):
        """Zero a range, which may make the file longer."""
        nbytes = min(nbytes, self.max_size - offset)
        if nbytes > 0:
            keeps = KEEP_SIZE if number % 2 else 0
            fallocate(self.fds[number % 2], ZERO_RANGE | keeps, offset, nbytes)
            end = min(offset + nbytes, len(self.model)) if keeps else offset + nbytes
            if end > offset:
                self.model.extend(bytes(max(0, end - len(self.model))))
                self.model[offset:end] = bytes(end - offset)

    def do_holes(self, number, offset, _nbytes):
        """What is called a hole reads as zeros, and what is called data ends inside the file."""
        fd, size = self.fds[number % 2], len(self.model)
        if offset >= size:
            return
        if self.map is not None:
            self.map.flush()  # the kernel asks for holes without what is only in its own pages
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
        if not offset <= hole <= size:
            raise MismatchError(f"a hole at {hole} in a file of {size} bytes")
        try:
            data = os.lseek(fd, hole, os.SEEK_DATA) if hole < size else size
        except OSError:
            data = size
        if any(self.model[hole:data]):
            raise MismatchError(f"bytes between {hole} and {data} are called a hole")

    def do_look(self, number, _offset, _nbytes):
        """Size and number of names, by descriptor and by name."""
        path = self.directory / self.names[number % 2]
        for status in (os.fstat(self.fds[number % 2]), os.stat(path)):
            if (status.st_size, status.st_nlink) != (len(self.model), len(self.names)):
                raise MismatchError(f"{status.st_size} bytes and {status.st_nlink} names instead of {len(self.model)}")

    def do_map_read(self, _number, offset, nbytes):
        """Read through the map."""
        end = min(offset + nbytes, len(self.model))
        if end > offset:
            self._compare(self.map[offset:end], offset, end - offset, "in the map")

    def do_map_write(self, number, offset, nbytes):
        """Store through the map."""
        nbytes = min(nbytes, len(self.model) - offset)
        if nbytes > 0:
            data = self.pattern.bytes(number, offset, nbytes)
            self.map[offset : offset + nbytes] = data
            self.model[offset : offset + nbytes] = data
            if number % 3 == 0:
                self.map.flush()

    def do_fsync(self, number, _offset, _nbytes):
        """Make everything durable: the source has it then."""
        os.fsync(self.fds[number % 2])
        self.compare_source("in the source after fsync")

    def do_fdatasync(self, number, _offset, _nbytes):
        """Make the bytes durable: the source has them then."""
        os.fdatasync(self.fds[number % 2])
        self.compare_source("in the source after fdatasync")

    def do_reopen(self, _number, _offset, _nbytes):
        """Close descriptors and maps, and open them again: the source has everything in between."""
        self.close_files()
        self.compare_source("in the source after closing")
        self.open()

    def do_rename(self, number, _offset, _nbytes):
        """Give one of the names another one."""
        new = f"name-{number}"
        os.rename(self.directory / self.names[number % 2], self.directory / new)
        self.names[number % 2] = new


def main():
    """Run, and say what was done. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--source")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--max-size", type=int, default=64 * PAGE)
    parser.add_argument("--log")
    given = parser.parse_args()
    log_path = given.log or f"mount-fsx-{given.seed}.log"
    exerciser = MountExerciser(
        given.directory, given.source, given.seed, maps=given.maps, max_size=given.max_size, log_path=log_path
    )
    exerciser.run(given.operations)
    exerciser.close()
    nr, nbytes = len(exerciser.log), exerciser.nr_bytes_compared
    print(f"seed={given.seed}: {nr} operations, {nbytes} bytes compared, no difference")
    print(" ".join(f"{name}={count}" for name, count in exerciser.counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
