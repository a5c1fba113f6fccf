"""Random operations on files of a mount, through many descriptors, against bytes in memory."""

import mmap
import os

import pytest
from support.fuse_mount import KINDS, STRESS, mounted, needs_fuse
from test_fuse_semantics import KEEP_SIZE, PUNCH_HOLE, fallocate

pytestmark = needs_fuse()
__all__ = ["mounted"]
NR_OPERATIONS = 20_000 if STRESS else 500
NAMES = ("a", "b", "c")
SIZE_MAX = 200_000
NR_OPEN_MAX = 6


class Driver:
    """Files of a directory, each with the bytes that it must have. is_mapped: whether files can be mapped shared."""

    def __init__(self, directory, rng, is_mapped):
        self.directory = directory
        self.rng = rng
        self.is_mapped = is_mapped
        self.named = {}  # name -> bytes of the file
        self.open = []  # (descriptor, bytes of the file, whether it appends)
        self.log = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def step(self):
        """Do one operation."""
        weights = {"open_file": 10, "write": 30, "read": 30, "truncate": 6, "punch": 5, "close": 6, "fsync": 2, "rename": 3,
                   "unlink": 2, "link": 2, "look": 8, "map": 6 if self.is_mapped else 0}  # fmt: skip
        name = self.rng.choices(list(weights), list(weights.values()))[0]
        self.log.append(name)
        getattr(self, name)()

    def note(self, *details):
        """Say more of the present operation, for who reads of a failure."""
        self.log[-1] = " ".join((self.log[-1], *details))

    def open_file(self):
        name = self.rng.choice(NAMES)
        flags = os.O_RDWR | os.O_CREAT | self.rng.choice((0, 0, 0, os.O_APPEND, os.O_TRUNC))
        if len(self.open) >= NR_OPEN_MAX:
            self.close()
        self.note(name)
        fd = os.open(self.path(name), flags)
        data = self.named.setdefault(name, bytearray())
        if flags & os.O_TRUNC:
            del data[:]
        self.open.append((fd, data, bool(flags & os.O_APPEND)))

    def some(self):
        if not self.open:
            self.open_file()
        return self.rng.choice(self.open)

    def write(self):
        fd, data, appends = self.some()
        offset, piece = self.rng.randrange(SIZE_MAX), self.rng.randbytes(self.rng.choice((1, 100, 4096, 9000, 70_000)))
        if appends:
            offset = len(data)
            assert os.write(fd, piece) == len(piece)
        else:
            assert os.pwrite(fd, piece, offset) == len(piece)
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(piece)] = piece

    def read(self):
        fd, data, _ = self.some()
        offset, nbytes = self.rng.randrange(SIZE_MAX), self.rng.choice((1, 4096, 50_000))
        assert os.pread(fd, nbytes, offset) == data[offset : offset + nbytes]

    def truncate(self):
        fd, data, _ = self.some()
        size = self.rng.randrange(SIZE_MAX)
        os.ftruncate(fd, size)
        data.extend(bytes(max(0, size - len(data))))
        del data[size:]

    def punch(self):
        fd, data, _ = self.some()
        offset, nbytes = self.rng.randrange(SIZE_MAX), self.rng.randrange(1, 30_000)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, nbytes)
        end = min(offset + nbytes, len(data))
        if end > offset:
            data[offset:end] = bytes(end - offset)

    def map(self):
        fd, data, _ = self.some()
        if not data:
            return
        with mmap.mmap(fd, len(data)) as mapped:
            assert mapped[:] == data
            offset = self.rng.randrange(len(data))
            piece = self.rng.randbytes(min(len(data) - offset, 5000))
            mapped[offset : offset + len(piece)] = piece
            data[offset : offset + len(piece)] = piece
            if self.rng.random() < 0.5:
                mapped.flush()

    def close(self):
        if self.open:
            os.close(self.open.pop(self.rng.randrange(len(self.open)))[0])

    def fsync(self):
        os.fsync(self.some()[0])

    def rename(self):
        if self.named:
            old, new = self.rng.choice(list(self.named)), self.rng.choice(NAMES)
            self.note(old, new)
            os.rename(self.path(old), self.path(new))
            if self.named[old] is not self.named.get(new):  # two names of one file stay as they are
                self.named[new] = self.named.pop(old)

    def unlink(self):
        if self.named:
            name = self.rng.choice(list(self.named))
            self.note(name)
            os.unlink(self.path(name))
            del self.named[name]

    def link(self):
        free = [name for name in NAMES if name not in self.named]
        if self.named and free and not self.is_mapped:  # the kernel has pages for each name
            name = self.rng.choice(list(self.named))
            self.note(name, free[0])
            os.link(self.path(name), self.path(free[0]))
            self.named[free[0]] = self.named[name]

    def look(self):
        assert sorted(os.listdir(self.directory)) == sorted(self.named)
        for name, data in self.named.items():
            status = os.stat(self.path(name))
            nr_names = sum(1 for other in self.named.values() if other is data)
            assert (status.st_size, status.st_nlink) == (len(data), nr_names), name
        for fd, data, _ in self.open:
            assert os.fstat(fd).st_size == len(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["8KiB", "256KiB", "16MiB"] if STRESS else ["256KiB"])
def test_every_byte_is_what_it_must_be(mounted, rng, kind, size):
    with mounted(*KINDS[kind], "--size", size) as mount:
        directory = mount.path / "files"
        directory.mkdir()
        driver = Driver(directory, rng, is_mapped=kind == "kernel_cache")
        try:
            for _ in range(NR_OPERATIONS if size != "8KiB" else NR_OPERATIONS // 3):
                driver.step()
        except BaseException as error:
            error.add_note(f"after {len(driver.log)} operations, the last ones {driver.log[-80:]}")
            raise
        finally:
            for fd, _, _ in driver.open:
                os.close(fd)
        contents = dict(driver.named)
    files = mounted.source / "files"
    assert sorted(os.listdir(files)) == sorted(contents)
    for name, data in contents.items():
        assert (files / name).read_bytes() == data
