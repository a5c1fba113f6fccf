"""A mounted directory behaves as the directory does: names, attributes, open files without names, maps, holes, times."""

import concurrent.futures
import contextlib
import ctypes
import errno
import fcntl
import gc
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from support.fuse_mount import KINDS, MAPS_DIRECT_FILES, PATIENCE_S, STRESS, Interposed, Mount, mounted, needs_fuse

from pagecache.adapters.fuse.files import Files
from pagecache.cli import EXIT_USAGE, main

pytestmark = needs_fuse()
__all__ = ["mounted"]
PAGE = 4096
NS = 1_000_000_000
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, COLLAPSE_RANGE = 1, 2, 16, 8
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    """Call fallocate(2)."""
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def renameat2(old, new, flags):
    """Call renameat2(2)."""
    if LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.fixture(scope="module", params=["direct_io", "kernel_cache"])
def mount(request, tmp_path_factory):
    """One mount for all tests of a module: each works in a directory of its own."""
    source = tmp_path_factory.mktemp("source")
    words = ["--kernel-cache"] if request.param == "kernel_cache" else []
    with Mount(source, "--size", "1MiB", *words) as mount:
        mount.is_kernel_cached = bool(words)
        yield mount


@pytest.fixture
def here(mount, request):
    """A new directory of the mount, and the same one of the source."""
    name = f"at-{abs(hash(request.node.nodeid)):x}"
    (mount.path / name).mkdir()
    return mount.path / name, mount.source / name


class TestNames:
    def test_everything_that_has_a_name(self, here):
        path, source = here
        (path / "file").write_bytes(b"abc")
        (path / "link").symlink_to("file")
        (path / "sub").mkdir(0o750)
        os.mkfifo(path / "fifo", 0o600)
        assert (path / "link").read_bytes() == b"abc"
        for name in ("file", "link", "sub", "fifo"):
            mine, its = os.lstat(path / name), os.lstat(source / name)
            for field in ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
                assert getattr(mine, field) == getattr(its, field), (name, field)
        listed = {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)}
        assert listed == {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(source)}
        assert subprocess.run(["ls", "-a", path], capture_output=True, text=True, check=True).stdout.split() == [
            ".", "..", "fifo", "file", "link", "sub"]  # fmt: skip

    def test_errors_are_those_of_the_directory(self, here):
        path, _ = here
        (path / "sub").mkdir()
        (path / "sub" / "file").touch()
        for number, call in (
            (errno.ENOENT, lambda: os.stat(path / "none")),
            (errno.ENOTEMPTY, lambda: os.rmdir(path / "sub")),
            (errno.EEXIST, lambda: os.mkdir(path / "sub")),
            (errno.EEXIST, lambda: os.open(path / "sub/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
            (errno.EISDIR, lambda: os.open(path / "sub", os.O_WRONLY)),
            (errno.ENOTDIR, lambda: os.rmdir(path / "sub/file")),
            (errno.ENAMETOOLONG, lambda: os.stat(path / ("x" * 300))),
            (errno.ENODATA, lambda: os.getxattr(path / "sub/file", "user.none")),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == number

    def test_names_that_are_no_utf8(self, here):
        path, source = here
        name = b"\xff\xfe name"
        with open(os.fsencode(path) + b"/" + name, "w") as file:
            file.write("x")
        assert os.listdir(os.fsencode(path)) == os.listdir(os.fsencode(source)) == [name]

    def test_flags_of_rename(self, here):
        path, _ = here
        (path / "a").write_text("a")
        (path / "b").write_text("b")
        with pytest.raises(OSError) as caught:
            renameat2(path / "a", path / "b", RENAME_NOREPLACE)
        assert caught.value.errno == errno.EEXIST
        assert (path / "b").read_text() == "b"
        renameat2(path / "a", path / "b", RENAME_EXCHANGE)
        assert ((path / "a").read_text(), (path / "b").read_text()) == ("b", "a")

    def test_hard_links_are_one_file(self, here):
        path, source = here
        (path / "one").write_bytes(b"1" * PAGE)
        os.link(path / "one", path / "two")
        assert os.stat(path / "one").st_nlink == os.stat(path / "two").st_nlink == 2
        with open(path / "one", "r+b", buffering=0) as one, open(path / "two", "r+b", buffering=0) as two:
            one.write(b"x" * 10)
            assert two.read(12) == b"x" * 10 + b"11"
            two.seek(2 * PAGE)
            two.write(b"end")
            assert os.fstat(one.fileno()).st_size == 2 * PAGE + 3
        os.chmod(path / "one", 0o600)
        assert stat.S_IMODE(os.stat(path / "two").st_mode) == 0o600
        os.unlink(path / "one")
        assert os.stat(path / "two").st_nlink == 1
        assert (source / "two").read_bytes()[:12] == b"x" * 10 + b"11"

    def test_extended_attributes(self, here):
        path, source = here
        (path / "file").touch()
        os.setxattr(path / "file", "user.a", b"1")
        with pytest.raises(OSError):
            os.setxattr(path / "file", "user.a", b"2", os.XATTR_CREATE)
        os.setxattr(path / "file", "user.b", b"\0\xff")
        assert os.listxattr(path / "file") == os.listxattr(source / "file")
        assert os.getxattr(path / "file", "user.b") == os.getxattr(source / "file", "user.b") == b"\0\xff"
        os.removexattr(path / "file", "user.a")
        assert os.listxattr(source / "file") == ["user.b"]

    def test_statfs(self, mount):
        mine, its = os.statvfs(mount.path), os.statvfs(mount.source)
        assert (mine.f_blocks, mine.f_bsize, mine.f_namemax) == (its.f_blocks, its.f_bsize, its.f_namemax)


class TestFilesWithoutNames:
    def test_removed_while_open(self, here):
        path, source = here
        with open(path / "file", "w+b", buffering=0) as file:
            file.write(b"before")
            os.unlink(path / "file")
            assert os.listdir(path) == []
            assert os.fstat(file.fileno()).st_nlink == 0
            file.write(b" after")
            os.fchmod(file.fileno(), 0o640)
            os.ftruncate(file.fileno(), 9)
            os.utime(file.fileno(), ns=(1, 2))
            status = os.fstat(file.fileno())
            assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (9, 0o640, 2)
            assert os.pread(file.fileno(), 100, 0) == b"before af"
            assert os.listdir(source) == []  # readdir above has carried it out
            path.joinpath("sub").mkdir()
        os.rmdir(path / "sub")
        os.rmdir(path)

    def test_its_directory_can_be_removed_at_once(self, here):
        path, _ = here
        (path / "sub").mkdir()
        with open(path / "sub/file", "w") as file:
            os.unlink(path / "sub/file")
            os.rmdir(path / "sub")
            file.write("x")

    def test_another_file_of_the_name(self, here):
        path, source = here
        with open(path / "file", "w+b", buffering=0) as old:
            old.write(b"old")
            os.unlink(path / "file")
            with open(path / "file", "xb", buffering=0) as new:
                new.write(b"new one")
                assert os.pread(old.fileno(), 10, 0) == b"old"
        assert (source / "file").read_bytes() == b"new one"
        assert os.listdir(source) == ["file"]

    def test_rename_over_an_open_file(self, here):
        path, source = here
        for number in range(20):
            (path / "file").write_text(f"old {number}")
            with open(path / "file", "r+b", buffering=0) as old:
                (path / "new").write_text(f"new {number}")
                os.rename(path / "new", path / "file")
                assert os.pread(old.fileno(), 10, 0) == f"old {number}".encode()
                assert (path / "file").read_text() == (source / "file").read_text() == f"new {number}"
        assert os.listdir(source) == ["file"]

    def test_the_name_is_always_there_while_it_is_replaced(self, here):
        """Rename over an open file is one step, in the source too."""
        path, source = here
        (path / "file").write_text("0")
        stop = threading.Event()
        missing = []

        def look():
            while not stop.is_set():
                try:
                    os.lstat(source / "file")
                except FileNotFoundError:
                    missing.append(1)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            looks = pool.submit(look)
            for number in range(300 if STRESS else 30):
                with open(path / "file"):
                    (path / "new").write_text(str(number))
                    os.rename(path / "new", path / "file")
            stop.set()
            looks.result(PATIENCE_S)
        assert not missing


class TestBytes:
    def test_append_truncate_exclusive(self, here):
        path, source = here
        with open(path / "log", "ab", buffering=0) as one, open(path / "log", "ab", buffering=0) as other:
            one.write(b"1")
            other.write(b"2")
            one.write(b"3")
        assert (source / "log").read_bytes() == b"123"
        fd = os.open(path / "log", os.O_RDWR | os.O_TRUNC)
        assert os.fstat(fd).st_size == 0
        os.close(fd)
        assert (source / "log").stat().st_size == 0

    def test_appends_of_several_processes_do_not_overlap(self, here):
        path, source = here
        script = "import os,sys\nfd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND|os.O_CREAT)\n" \
            "for i in range(50): os.write(fd, sys.argv[2].encode()*97)"  # fmt: skip
        with contextlib.ExitStack() as stack:
            for letter in "abcd":
                command = [sys.executable, "-S", "-c", script, str(path / "log"), letter]
                stack.enter_context(subprocess.Popen(command))
        data = (source / "log").read_bytes()
        assert len(data) == 4 * 50 * 97
        assert all(len(set(data[start : start + 97])) == 1 for start in range(0, len(data), 97))

    def test_sizes_and_times_of_dirty_files(self, here):
        path, source = here
        with open(path / "file", "wb", buffering=0) as file:
            file.write(b"x" * 10_000)
            mine = os.stat(path / "file")
            assert mine.st_size == 10_000
            assert mine.st_blocks * 512 >= 10_000
            file.write(b"y")
            assert os.stat(path / "file").st_size == 10_001
            later = os.fstat(file.fileno()).st_mtime_ns
            assert later > mine.st_mtime_ns
        closed = os.stat(path / "file")
        assert (closed.st_mtime_ns, closed.st_size) == (later, 10_001)
        assert os.stat(source / "file").st_mtime_ns == later

    def test_a_plain_write_leaves_one_time(self, here):
        """That of bytes and that of attributes are the same, unless the former was seen before it was written back."""
        path, source = here
        for mode in ("wb", "ab", "r+b"):
            with open(path / "file", mode, buffering=0) as file:
                file.write(b"x" * 10_000)
                file.write(b"y")
            for where in (path, source):
                status = os.stat(where / "file")
                assert status.st_ctime_ns == status.st_mtime_ns
        with open(path / "file", "r+b", buffering=0) as file:
            file.write(b"z")
            seen = os.fstat(file.fileno()).st_mtime_ns
        status = os.stat(path / "file")
        assert seen == status.st_mtime_ns <= status.st_ctime_ns
        with open(path / "file", "r+b", buffering=0) as file:
            file.write(b"z")
            os.fstat(file.fileno())
            file.write(b"z")  # whose time was not seen
        status = os.stat(path / "file")
        assert seen < status.st_mtime_ns == status.st_ctime_ns

    def test_times_that_are_set_stay(self, here):
        path, source = here
        with open(path / "file", "wb", buffering=0) as file:
            file.write(b"x")
            os.utime(file.fileno(), ns=(10**18 + 1, 10**18 + 2))
        for where in (path, source):
            status = os.stat(where / "file")
            assert (status.st_atime_ns, status.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
        subprocess.run(["touch", "-a", "-d", "@5", path / "file"], check=True)
        assert (os.stat(source / "file").st_atime_ns, os.stat(source / "file").st_mtime_ns) == (5 * 10**9, 10**18 + 2)

    def test_a_file_that_is_given_up_while_its_times_are_set(self, make_cache, tmp_path):
        """The last close of a program comes back before the mount hears of it."""
        path = tmp_path / "file"
        path.write_bytes(b"x")
        files = Files(make_cache("1MiB"))
        number = files.open(str(path), os.open(path, os.O_RDWR), os.O_RDWR)
        opened = files.find((path.stat().st_dev, path.stat().st_ino))
        files.release(number)
        other = os.open("/dev/null", os.O_RDONLY)  # would have the number of a descriptor that is closed
        opened.set_times(NS, 2 * NS)
        os.close(other)
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (NS, 2 * NS)
        fd = opened.fd
        del opened
        gc.collect()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_two_handles_of_a_removed_file_that_are_given_up_at_once(self, make_cache, tmp_path):
        """One of them is the last: the pages go, as the inode number may come back."""
        path = tmp_path / "file"
        path.write_bytes(b"x")
        files = Files(make_cache("1MiB"))
        discarded, files.discard = [], lambda key: discarded.append(key)
        first, second = (files.open(str(path), os.open(path, os.O_RDWR), os.O_RDWR) for _ in range(2))
        key = files.opened(first).key
        path.unlink()
        files._lock = Interposed(lambda: files.release(second))
        files.release(first)
        assert (discarded, files.all()) == ([key], [])

    def test_holes(self, here):
        path, source = here
        data = os.urandom(16 * PAGE)
        with open(path / "file", "w+b", buffering=0) as file:
            file.write(data)
            fd = file.fileno()
            fallocate(fd, PUNCH_HOLE | KEEP_SIZE, PAGE, 2 * PAGE)
            expected = data[:PAGE] + bytes(2 * PAGE) + data[3 * PAGE :]
            assert os.pread(fd, 1 << 20, 0) == expected
            assert os.lseek(fd, 0, os.SEEK_HOLE) == PAGE
            assert os.lseek(fd, PAGE, os.SEEK_DATA) == 3 * PAGE
            fallocate(fd, 0, 0, 20 * PAGE)
            assert os.fstat(fd).st_size == 20 * PAGE
            fallocate(fd, KEEP_SIZE, 0, 40 * PAGE)
            assert os.fstat(fd).st_size == 20 * PAGE
            fallocate(fd, ZERO_RANGE, 4 * PAGE, PAGE)
            expected = expected[: 4 * PAGE] + bytes(PAGE) + expected[5 * PAGE :] + bytes(4 * PAGE)
            assert os.pread(fd, 1 << 20, 0) == expected
            with pytest.raises(OSError) as caught:
                fallocate(fd, COLLAPSE_RANGE, 0, PAGE)
            assert caught.value.errno == errno.EOPNOTSUPP
        assert (source / "file").read_bytes() == expected

    def test_data_that_is_not_written_back_is_found(self, here):
        path, _ = here
        with open(path / "file", "w+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"x", 100 * PAGE)
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 100 * PAGE

    def test_locks_of_two_processes(self, here):
        path, _ = here
        (path / "file").touch()
        script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.{0}(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
        with open(path / "file", "r+") as file:
            for kind in ("flock", "lockf"):
                getattr(fcntl, kind)(file, fcntl.LOCK_EX)
                command = [sys.executable, "-S", "-c", script.format(kind), str(path / "file")]
                assert subprocess.run(command, capture_output=True, check=False).returncode == 1
                getattr(fcntl, kind)(file, fcntl.LOCK_UN)
                assert subprocess.run(command, capture_output=True, check=False).returncode == 0

    def test_maps(self, mount, here):
        path, source = here
        data = os.urandom(3 * PAGE)
        (path / "file").write_bytes(data)
        with open(path / "file", "r+b") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
                assert private[:] == data
            if not mount.is_kernel_cached and not MAPS_DIRECT_FILES:
                with pytest.raises(OSError) as caught:
                    mmap.mmap(file.fileno(), 0)
                assert caught.value.errno == errno.ENODEV
                return
            with mmap.mmap(file.fileno(), 0) as shared:
                shared[PAGE : PAGE + 5] = b"hello"
                shared.flush()
                assert os.pread(file.fileno(), 5, PAGE) == b"hello"
        assert (source / "file").read_bytes() == data[:PAGE] + b"hello" + data[PAGE + 5 :]

    def test_changes_in_the_source_are_seen_when_a_file_is_opened(self, here):
        path, source = here
        (path / "file").write_bytes(b"old" * 1000)
        assert (path / "file").read_bytes()[:3] == b"old"
        (source / "file").write_bytes(b"newer" * 1000)
        assert (path / "file").read_bytes() == b"newer" * 1000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
class TestOtherUsers:
    SCRIPT = "import os,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"

    def run(self, script, *words, **options):
        """Run a script as another user; returns its exit status."""
        command = [sys.executable, "-S", "-c", self.SCRIPT + script, *map(str, words)]
        return subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False, **options).returncode

    @pytest.mark.parametrize("kind", KINDS)
    def test_set_user_id_goes_with_a_write(self, mounted, kind):
        with mounted("--allow-other", *KINDS[kind]) as mount, open(mount.path / "file", "w+b", buffering=0) as file:
            os.chmod(mount.path / "file", 0o6777)
            file.write(b"y")
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o6777  # root's writes leave them
            fd = file.fileno()
            assert self.run("os.write(int(sys.argv[1]), b'z')", fd, pass_fds=[fd]) == 0
            assert stat.S_IMODE(os.stat(mounted.source / "file").st_mode) == 0o777
            os.fsync(fd)
            assert (mounted.source / "file").read_bytes() == b"yz"

    def test_what_they_make_is_theirs(self, mounted):
        script = "os.chdir(sys.argv[1]); open('a', 'w').close(); os.mkdir('b'); os.symlink('a', 'c'); os.mkfifo('d')"
        with mounted("--allow-other", "--size", "4MiB") as mount:
            mount.path.chmod(0o777)
            mount.path.parent.chmod(0o755)
            assert self.run(script, mount.path) == 0
            for name in "abcd":
                status = os.lstat(mounted.source / name)
                assert (status.st_uid, status.st_gid) == (65534, 65534)
            (mount.path / "mine").write_text("x")
            os.chmod(mount.path / "mine", 0o600)
            assert self.run("open(sys.argv[1])", mount.path / "mine") == 1

    def test_they_stay_out_of_others_mounts(self, mount):
        mount.path.parent.chmod(0o755)
        assert self.run("os.listdir(sys.argv[1])", mount.path) == 1


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] if STRESS else [signal.SIGINT])
    def test_a_signal_writes_back_what_is_open(self, mounted, number):
        with mounted("--size", "4MiB") as mount:
            fd = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
            os.write(fd, b"x" * 100_000)
            assert (mounted.source / "file").stat().st_size == 0
            assert mount.interrupt(number) == 0
            assert (mounted.source / "file").read_bytes() == b"x" * 100_000
            with pytest.raises(OSError):
                os.close(fd)

    def test_read_only(self, mounted):
        (mounted.source / "file").write_text("x")
        with mounted("--read-only", "--size", "4MiB") as mount:
            assert (mount.path / "file").read_text() == "x"
            with pytest.raises(OSError) as caught:
                os.open(mount.path / "file", os.O_RDWR)
            assert caught.value.errno == errno.EROFS

    @pytest.mark.parametrize(("words", "reason"), [
        (["/nowhere", "{mnt}"], "nowhere"),
        (["{source}", "/nowhere"], "nowhere"),
        (["{source}", "{source}"], "outside of its source"),
        (["{source}", "{mnt}", "--recheck", "often"], "--recheck"),
        (["{source}", "{mnt}", "--write-back"], "for URLs"),
    ])  # fmt: skip
    def test_what_cannot_be_mounted(self, tmp_path, words, reason, capsys, monkeypatch):
        monkeypatch.setattr(os, "umask", lambda mask: 0o022)  # this process keeps its own
        places = {"mnt": tmp_path / "mnt", "source": tmp_path / "source"}
        for place in places.values():
            place.mkdir()
        assert main(["mount", "--size", "64KiB", *(word.format(**places) for word in words)]) == EXIT_USAGE
        assert reason in capsys.readouterr().err
