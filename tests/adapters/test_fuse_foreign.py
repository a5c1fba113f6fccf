"""Other programs that write in the source, beside a mount: what they have written is not lost, and is seen."""

import errno
import mmap
import os
import subprocess

import pytest
from support.fuse_mount import KINDS, Mount, mounted, needs_fuse
from support.fuse_users import number_of

from pagecache.adapters.fuse import mount as mount_here

pytestmark = needs_fuse()
__all__ = ["mounted"]
PAGE = 4096


@pytest.fixture(scope="module", params=KINDS)
def shared(request, tmp_path_factory):
    """One mount for all tests: each works in a directory of its own."""
    source = tmp_path_factory.mktemp("source")
    with Mount(source, *KINDS[request.param]) as mount:
        mount.is_kernel_cached = request.param == "kernel_cache"
        yield mount


@pytest.fixture
def here(shared, request):
    """A new directory of the mount, and the same one of the source."""
    name = f"at-{abs(hash(request.node.nodeid)):x}"
    (shared.path / name).mkdir()
    return shared.path / name, shared.source / name


def change(path, data, offset):
    """Write as another program."""
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)


class TestWritten:
    def test_what_both_append_is_there(self, here):
        path, source = here
        (source / "log").write_bytes(b"0")
        with open(path / "log", "ab", buffering=0) as ours, open(source / "log", "ab", buffering=0) as theirs:
            for number in range(1, 10):
                (ours if number % 2 else theirs).write(b"%d" % number)
                if number % 2:
                    os.fsync(ours.fileno())
        assert (source / "log").read_bytes() == b"0123456789"
        assert (path / "log").read_bytes() == b"0123456789"

    @pytest.mark.parametrize("grows", [False, True])
    def test_what_is_not_written_back_does_not_overwrite_theirs(self, here, grows):
        path, source = here
        (source / "file").write_bytes(b"." * 3 * PAGE)
        fd = os.open(path / "file", os.O_RDWR)
        os.pwrite(fd, b"ours", 0)
        change(source / "file", b"theirs", 3 * PAGE if grows else 100)
        expected = (source / "file").read_bytes()
        assert number_of(os.fsync, fd) == errno.ESTALE
        assert (source / "file").read_bytes() == expected
        assert number_of(os.close, fd) in (0, errno.ESTALE)
        assert (source / "file").read_bytes() == (path / "file").read_bytes() == expected
        with open(path / "file", "r+b", buffering=0) as file:
            file.write(b"again")
            os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_size == len(expected)
        assert (source / "file").read_bytes() == b"again" + expected[5:]

    def test_close_reports_it(self, here):
        path, source = here
        (source / "file").write_bytes(b"." * PAGE)
        fd = os.open(path / "file", os.O_RDWR)
        os.pwrite(fd, b"ours", 0)
        change(source / "file", b"theirs", 100)
        assert number_of(os.close, fd) == errno.ESTALE
        assert (source / "file").read_bytes()[:4] == b"...."

    def test_attributes_are_theirs_when_ours_could_not_be_written(self, here):
        path, source = here
        (source / "file").write_bytes(b"." * PAGE)
        fds = [os.open(path / "file", os.O_RDWR) for _ in range(2)]
        os.pwrite(fds[0], b"ours", 2 * PAGE)
        assert os.fstat(fds[0]).st_size == 2 * PAGE + 4
        change(source / "file", b"theirs", 100)
        assert number_of(os.fsync, fds[0]) == errno.ESTALE
        status, expected = os.stat(path / "file"), os.stat(source / "file")
        assert (status.st_size, status.st_mtime_ns) == (expected.st_size, expected.st_mtime_ns)
        for fd in fds:
            number_of(os.close, fd)
        assert os.stat(path / "file").st_size == PAGE

    def test_attributes_that_they_change_are_no_reason(self, here):
        """Mode, owner, names and times of a file are not its bytes."""
        path, source = here
        (source / "file").write_bytes(b"." * PAGE)
        for number, call in enumerate((
            lambda: os.chmod(source / "file", 0o600), lambda: os.link(source / "file", source / "link"),
            lambda: os.rename(source / "file", source / "new"), lambda: os.unlink(source / "link"),
        )):  # fmt: skip
            names = [name for name in ("file", "new") if (source / name).exists()]
            with open(path / names[0], "r+b", buffering=0) as file:
                assert file.read(10) == (b"%d" % (number - 1) if number else b".") * 10
                call()
                os.pwrite(file.fileno(), b"%d" % number * 10, 0)
                os.fsync(file.fileno())
        assert (source / "new").read_bytes()[:12] == b"3" * 10 + b".."


class TestSeen:
    @pytest.mark.parametrize("how", ["written", "same size and time", "renamed over", "by a map"])
    def test_their_bytes_at_the_next_open(self, here, how):
        path, source = here
        (source / "file").write_bytes(b"old" * 1000)
        os.utime(source / "file", ns=(5, 5))
        assert (path / "file").read_bytes() == b"old" * 1000
        if how == "written":
            (source / "file").write_bytes(b"new" * 1000)
        elif how == "same size and time":
            (source / "file").write_bytes(b"new" * 1000)
            os.utime(source / "file", ns=(5, 5))
        elif how == "renamed over":
            (source / "other").write_bytes(b"new" * 1000)
            os.utime(source / "other", ns=(5, 5))
            os.rename(source / "other", source / "file")
        else:
            with open(source / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                mapped[:] = b"new" * 1000
                mapped.flush()
        assert (path / "file").read_bytes() == b"new" * 1000

    def test_a_reader_that_has_it_open(self, here):
        path, source = here
        (source / "file").write_bytes(b"old" * 10_000)
        with open(path / "file", "rb", buffering=0) as file:
            assert file.read(3) == b"old"
            (source / "file").write_bytes(b"new" * 10_000)
            number = number_of(lambda: os.pread(file.fileno(), 30_000, 0))
            assert number in (0, errno.ESTALE)
        assert (path / "file").read_bytes() == b"new" * 10_000


def test_reloading_reads_and_writes_go_on(mounted):
    """Again and again, whatever others do."""
    (mounted.source / "file").write_bytes(b"0" * PAGE)
    with mounted("--on-change", "reload", "--recheck", "always", "--size", "4MiB") as mount:
        fds = [os.open(mount.path / "file", flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND)]
        for number in range(1, 8):
            (mounted.source / "file").write_bytes(b"%d" % number * PAGE)
            for fd in fds:
                if fd != fds[2] or number % 2:
                    assert os.pread(fd, PAGE, 0) == b"%d" % number * PAGE
        os.write(fds[2], b"end")
        os.fsync(fds[2])
        assert (mounted.source / "file").read_bytes() == b"7" * PAGE + b"end"
        os.pwrite(fds[1], b"begin", 0)
        assert os.pread(fds[0], 5, 0) == b"begin"
        assert os.fstat(fds[0]).st_size == PAGE + 3
        for fd in fds:
            os.close(fd)
    assert (mounted.source / "file").read_bytes() == b"begin" + b"7" * (PAGE - 5) + b"end"


class TestKept:
    """What is cached stays when the mount itself changes names and attributes, of files that are open or not."""

    CHANGES = (
        ("chmod", lambda path: os.chmod(path / "file", 0o600)),
        ("times", lambda path: os.utime(path / "file", ns=(1, 1))),
        ("link", lambda path: os.link(path / "file", path / "other")),
        ("rename", lambda path: os.rename(path / "file", path / "new")),
        ("xattr", lambda path: os.setxattr(path / "file", "user.a", b"1")),
        ("rename of its directory", lambda path: os.rename(path, f"{path}-moved")),
    )

    @pytest.mark.parametrize("state", ["read", "open", "written"])
    @pytest.mark.parametrize(("what", "call"), CHANGES, ids=[what for what, _ in CHANGES])
    def test_reads_after_it_are_hits(self, make_cache, tmp_path, what, call, state):
        source, mountpoint = tmp_path / "source", tmp_path / "mnt"
        for place in (source / "sub", mountpoint):
            place.mkdir(parents=True)
        data = os.urandom(50 * PAGE)
        (source / "sub/file").write_bytes(data)
        cache, found = make_cache("4MiB"), []

        def use():
            path = mountpoint / "sub"
            if state == "written":
                (path / "file").write_bytes(data)
            else:
                assert (path / "file").read_bytes() == data
            with open(path / "file" if state == "open" else os.devnull, "rb"):
                before = cache.stats().store_reads
                call(path)
                name = next(one for one in mountpoint.rglob("*") if one.is_file())
                assert name.read_bytes() == data
                found.append(cache.stats().store_reads - before)
            subprocess.run(["fusermount3", "-u", mountpoint], check=True)

        mount_here(str(source), str(mountpoint), cache=cache, ready=use)
        assert found == [0], what
