"""Random operations on a tree of a mount, in the manner of fsstress, beside a model of what must be there.

    python tests/stress/mount_tree.py DIRECTORY SHARED SEED OPERATIONS

DIRECTORY is this process's own; SHARED belongs to several, which get into each other's way there.  At the end the model is
printed, as a pickle: what `seen_tree` must return of the source once the mount is gone.
"""

import contextlib
import errno
import os
import pickle
import random
import stat
import sys

WEIGHTS = {
    "create": 10, "mkdir": 5, "symlink": 3, "link": 4, "unlink": 6, "rmdir": 3, "rename": 8, "exchange": 2, "write": 14,
    "append": 6, "read": 10, "truncate": 5, "chmod": 3, "times": 4, "xattr": 3, "fsync": 2, "list": 5, "stat": 8, "hold": 4,
    "let_go": 4, "copy": 3, "temporary": 2, "shared": 12,
}  # fmt: skip
SIZE_MAX = 100_000
DEPTH_MAX = 4
HELD_MAX = 8
SHARED_NAMES = ("a", "b", "c", "d")
RENAME_EXCHANGE = 2


class File:
    """What a file must be."""

    def __init__(self):
        self.data = bytearray()
        self.mode = 0o666
        self.xattrs = {}
        self.mtime_ns = None  # None: whatever it is


class Tree:
    """A directory and its model: path -> File, "directory", or ("link", target)."""

    def __init__(self, directory, shared, seed):
        self.directory = directory
        self.common = shared
        self.rng = random.Random(seed)
        self.entries = {"": "directory"}
        self.held = []  # (descriptor, File) of files that are open, whatever became of their names
        self.log = []
        self._number = 0

    def path(self, name):
        return os.path.join(self.directory, name) if name else self.directory

    def run(self, nr_operations):
        """Make so many operations. An error names the last of them."""
        for _ in range(nr_operations):
            name = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            self.log.append(name)
            try:
                getattr(self, name)()
            except BaseException as error:
                error.add_note(f"after {len(self.log)} operations, the last ones {self.log[-30:]}")
                raise
        for fd, file in self.held:
            self.check_bytes(fd, file)
            os.close(fd)

    # -- choosing ------------------------------------------------------------------------------------------------------

    def some(self, kind):
        """Return the path of something of a kind, or None."""
        found = [name for name, what in self.entries.items() if kind(what) and name]
        return self.rng.choice(found) if found else None

    def some_file(self):
        return self.some(lambda what: isinstance(what, File))

    def place(self):
        """Return a new name in some directory that is not too deep."""
        directories = [name for name, what in self.entries.items() if what == "directory" and name.count("/") < DEPTH_MAX]
        self._number += 1
        base = self.rng.choice(directories)
        return (f"{base}/" if base else "") + f"{self.rng.choice(('n', 'long-' * 20))}{self._number}"

    def children(self, name):
        return [other for other in self.entries if other.startswith(name + "/")]

    def names_of(self, file):
        return [name for name, what in self.entries.items() if what is file]

    # -- names ---------------------------------------------------------------------------------------------------------

    def create(self):
        name, file = self.place(), File()
        file.mode = self.rng.choice((0o600, 0o644, 0o664))
        fd = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_RDWR, file.mode)
        self.entries[name] = file
        if self.rng.random() < 0.3 and len(self.held) < HELD_MAX:
            self.held.append((fd, file))
        else:
            os.close(fd)

    def mkdir(self):
        name = self.place()
        os.mkdir(self.path(name))
        self.entries[name] = "directory"

    def symlink(self):
        name, target = self.place(), self.rng.choice((".", "../nowhere", "n1"))
        os.symlink(target, self.path(name))
        self.entries[name] = ("link", target)
        assert os.readlink(self.path(name)) == target

    def link(self):
        old = self.some_file()
        if old:
            new = self.place()
            os.link(self.path(old), self.path(new))
            self.entries[new] = self.entries[old]

    def unlink(self):
        name = self.some(lambda what: what != "directory")
        if name:
            os.unlink(self.path(name))
            del self.entries[name]

    def rmdir(self):
        name = self.some(lambda what: what == "directory")
        if name and self.children(name):
            with contextlib.suppress(OSError):
                os.rmdir(self.path(name))
                raise AssertionError(f"{name} was removed though it is not empty")
        elif name:
            os.rmdir(self.path(name))
            del self.entries[name]

    def rename(self):
        old = self.some(lambda what: True)
        if not old:
            return
        what = self.entries[old]
        new = self.place()
        if self.rng.random() < 0.5:
            new = self.some(lambda other: (other == "directory") == (what == "directory")) or new
        if new == old or f"{new}/".startswith(f"{old}/") or f"{old}/".startswith(f"{new}/") or self.children(new):
            return
        os.rename(self.path(old), self.path(new))
        if self.entries.get(new) is what and what != "directory":
            return  # two names of one file
        self.moved(old, new)

    def moved(self, old, new):
        """Note that something, and all below it, has another name."""
        for name in [old, *self.children(old)]:
            self.entries[new + name[len(old) :]] = self.entries.pop(name)

    def exchange(self):
        import ctypes

        one, other = self.some(lambda what: True), self.some(lambda what: True)
        if not one or not other or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
            return
        call = ctypes.CDLL(None, use_errno=True).renameat2
        if call(-100, os.fsencode(self.path(one)), -100, os.fsencode(self.path(other)), RENAME_EXCHANGE):
            number = ctypes.get_errno()
            assert number == errno.EINVAL, os.strerror(number)  # where the file system has no such thing
            return
        self.moved(one, "\0")
        self.moved(other, one)
        self.moved("\0", other)

    def temporary(self):
        """Save as editors do: under another name, renamed over the old one."""
        name = self.some_file()
        if not name:
            return
        file = File()
        file.data = bytearray(self.rng.randbytes(self.rng.randrange(20_000)))
        new = self.place()
        with open(self.path(new), "wb") as opened:
            opened.write(file.data)
            os.fsync(opened.fileno())
        os.replace(self.path(new), self.path(name))
        self.entries[name] = file

    # -- bytes ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self, flags):
        """Give a descriptor and its file: one that is held, or of a name."""
        if self.held and self.rng.random() < 0.4:
            yield self.rng.choice(self.held)
            return
        name = self.some_file()
        if not name:
            yield None, None
            return
        fd = os.open(self.path(name), flags)
        try:
            yield fd, self.entries[name]
        finally:
            os.close(fd)

    def write(self):
        with self.opened(os.O_RDWR) as (fd, file):
            if file is not None:
                offset = self.rng.randrange(SIZE_MAX)
                data = self.rng.randbytes(self.rng.choice((1, 100, 4096, 9000, 40_000)))
                assert os.pwrite(fd, data, offset) == len(data)
                file.data.extend(bytes(max(0, offset - len(file.data))))
                file.data[offset : offset + len(data)] = data
                file.mtime_ns = None

    def append(self):
        name = self.some_file()
        if name:
            data = self.rng.randbytes(self.rng.randrange(1, 5000))
            with open(self.path(name), "ab", buffering=0) as opened:
                opened.write(data)
            self.entries[name].data += data
            self.entries[name].mtime_ns = None

    def read(self):
        with self.opened(os.O_RDONLY) as (fd, file):
            if file is not None:
                self.check_bytes(fd, file)

    @staticmethod
    def check_bytes(fd, file):
        """Compare what a descriptor reads."""
        assert os.pread(fd, len(file.data) + 1, 0) == file.data

    def truncate(self):
        with self.opened(os.O_RDWR) as (fd, file):
            if file is not None:
                size = self.rng.randrange(SIZE_MAX)
                os.ftruncate(fd, size)
                file.data.extend(bytes(max(0, size - len(file.data))))
                del file.data[size:]
                file.mtime_ns = None

    def copy(self):
        with self.opened(os.O_RDONLY) as (fd, file):
            if file is None:
                return
            name, copy = self.place(), File()
            with open(self.path(name), "wb") as opened:
                offset = 0
                while offset < len(file.data):
                    offset += os.sendfile(opened.fileno(), fd, offset, len(file.data) - offset)
            copy.data[:] = file.data
            self.entries[name] = copy

    def fsync(self):
        with self.opened(os.O_RDWR) as (fd, file):
            if file is not None:
                os.fsync(fd)

    def hold(self):
        name = self.some_file()
        if name and len(self.held) < HELD_MAX:
            self.held.append((os.open(self.path(name), os.O_RDWR), self.entries[name]))

    def let_go(self):
        if self.held:
            fd, file = self.held.pop(self.rng.randrange(len(self.held)))
            self.check_bytes(fd, file)
            os.close(fd)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def chmod(self):
        with self.opened(os.O_RDONLY) as (fd, file):
            if file is not None:
                file.mode = self.rng.choice((0o600, 0o644, 0o755, 0o444, 0o640))
                os.fchmod(fd, file.mode)

    def times(self):
        with self.opened(os.O_RDONLY) as (fd, file):
            if file is not None:
                file.mtime_ns = self.rng.randrange(10**18)
                os.utime(fd, ns=(self.rng.randrange(10**18), file.mtime_ns))

    def xattr(self):
        with self.opened(os.O_RDONLY) as (fd, file):
            if file is None:
                return
            key = self.rng.choice(("user.one", "user.two"))
            try:
                if key in file.xattrs and self.rng.random() < 0.5:
                    assert os.getxattr(fd, key) == file.xattrs.pop(key)
                    os.removexattr(fd, key)
                else:
                    value = self.rng.randbytes(self.rng.randrange(100))
                    os.setxattr(fd, key, value)
                    file.xattrs[key] = value
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise

    def stat(self):
        name = self.some(lambda what: True)
        if not name:
            return
        status, what = os.lstat(self.path(name)), self.entries[name]
        if isinstance(what, File):
            expected = (len(what.data), len(self.names_of(what)), what.mode)
            found = (status.st_size, status.st_nlink, stat.S_IMODE(status.st_mode))
            assert found == expected, f"{name}: {found} instead of {expected}"
            assert what.mtime_ns in (None, status.st_mtime_ns), f"{name}: {status.st_mtime_ns} instead of {what.mtime_ns}"
        else:
            assert stat.S_ISDIR(status.st_mode) == (what == "directory"), name

    def list(self):
        name = self.some(lambda what: what == "directory") or ""
        expected = sorted(os.path.basename(other) for other in self.entries if other and os.path.dirname(other) == name)
        assert sorted(os.listdir(self.path(name))) == expected

    # -- where others are, too -----------------------------------------------------------------------------------------

    def shared(self):
        """Do something to names that other processes use as well: anything may have become of them, but no odd error."""
        one, other = (os.path.join(self.common, self.rng.choice(SHARED_NAMES)) for _ in range(2))
        try:
            self.rng.choice((
                lambda: os.close(os.open(one, os.O_CREAT | os.O_RDWR, 0o644)), lambda: os.unlink(one),
                lambda: os.rename(one, other), lambda: os.link(one, other), lambda: os.mkdir(one), lambda: os.rmdir(one),
                lambda: os.symlink(other, one), lambda: os.stat(one), lambda: os.listdir(self.common),
                lambda: self.write_shared(one), lambda: os.rename(one, os.path.join(other, "below")),
                lambda: os.rename(os.path.join(one, "below"), other), lambda: os.truncate(one, 10),
            ))()  # fmt: skip
        except OSError as error:
            known = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EINVAL,
                     errno.ELOOP, errno.EBUSY)  # fmt: skip
            if error.errno not in known:
                raise

    def write_shared(self, path):
        """Write a whole piece, and read whole pieces only."""
        piece = bytes([self.rng.randrange(256)]) * 5000
        with open(os.open(path, os.O_RDWR), "r+b", buffering=0) as opened:
            opened.write(piece)


def expected(tree):
    """Return what `seen_tree` must return of the tree's directory."""
    found = {}
    numbers = {}
    for name, what in sorted(tree.entries.items()):
        if isinstance(what, File):
            number = numbers.setdefault(id(what), len(numbers))
            found[name] = ("file", number, bytes(what.data), what.mode, what.mtime_ns, dict(what.xattrs))
        else:
            found[name] = what
    return found


def seen_tree(directory, model):
    """Return what there is, in the form of `expected`; times and attributes as far as the model knows them."""
    found, numbers = {}, {}
    paths = [("", directory)]
    for base, directories, files in os.walk(directory):
        for path in (os.path.join(base, name) for name in (*directories, *files)):
            paths.append((os.path.relpath(path, directory), path))
    for name, path in sorted(paths):
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("link", os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            found[name] = "directory"
        else:
            known = model.get(name)
            knows_time = isinstance(known, tuple) and known[0] == "file" and known[4] is not None
            number = numbers.setdefault(status.st_ino, len(numbers))
            with open(path, "rb") as file:
                data = file.read()
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.")}
            mtime_ns = status.st_mtime_ns if knows_time else None
            found[name] = ("file", number, data, stat.S_IMODE(status.st_mode), mtime_ns, xattrs)
    return found


def main(directory, shared, seed, nr_operations):
    """Run, and print the model."""
    os.umask(0)
    tree = Tree(directory, shared, int(seed))
    tree.run(int(nr_operations))
    sys.stdout.buffer.write(pickle.dumps(expected(tree)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
