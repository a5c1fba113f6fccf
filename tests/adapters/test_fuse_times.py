"""Times, sizes and flags of files of a mount, and where a mount may be, beside what the source itself does."""

import array
import errno
import fcntl
import os
import subprocess
import time
from pathlib import Path

import pytest
from support.fuse_mount import KINDS, PATIENCE_S, Mount, is_mounted, mounted, needs_fuse
from support.fuse_users import as_user, needs_root, number_of

from pagecache.cli import EXIT_USAGE, main

pytestmark = needs_fuse()
__all__ = ["mounted"]
PAGE = 4096
GROUP = 23456
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_APPEND_FL = 0x80086601, 0x40086602, 0x20


@pytest.fixture(scope="module", params=KINDS)
def shared(request, tmp_path_factory):
    """One mount for all tests: each works in a directory of its own."""
    source = tmp_path_factory.mktemp("source")
    with Mount(source, "--allow-other", *KINDS[request.param]) as mount:
        mount.path.parent.chmod(0o755)
        mount.path.chmod(0o755)
        yield mount


@pytest.fixture
def here(shared, request):
    """A new directory of the mount, and the same one of the source."""
    name = f"at-{abs(hash(request.node.nodeid)):x}"
    (shared.path / name).mkdir()
    return shared.path / name, shared.source / name


def times_of(path):
    """Return time of access and of change (ns)."""
    status = os.stat(path)
    return status.st_atime_ns, status.st_mtime_ns


class TestTimes:
    def test_the_present_is_the_sources(self, here):
        """Not this process's clock: the file system's own is coarser, and later files would seem older."""
        path, source = here
        (path / "touched").touch()
        os.utime(path / "touched")
        (source / "after").touch()
        assert times_of(source / "touched")[1] <= times_of(source / "after")[1]

    @needs_root
    def test_who_may_write_may_touch_and_no_more(self, here):
        path, source = here
        source.chmod(0o755)
        (source / "file").write_bytes(b"x")
        os.chown(source / "file", 0, GROUP)
        (source / "file").chmod(0o664)
        os.utime(source / "file", ns=(1, 1))

        def touch():
            os.utime(path / "file")
            return number_of(os.utime, path / "file", ns=(5, 5))

        assert as_user(touch, groups=[GROUP]) == errno.EPERM
        assert min(times_of(source / "file")) > 1
        assert number_of(as_user, lambda: os.utime(path / "file")) in (errno.EACCES, errno.EPERM)

    def test_one_of_two(self, here):
        path, source = here
        (path / "file").write_bytes(b"x")
        os.utime(path / "file", ns=(10, 20))
        subprocess.run(["touch", "-a", "-d", "@5", path / "file"], check=True)
        assert times_of(source / "file") == (5 * 10**9, 20)
        subprocess.run(["touch", "-m", path / "file"], check=True)
        assert times_of(source / "file")[0] == 5 * 10**9
        assert times_of(source / "file")[1] > 20
        os.symlink("file", path / "link")
        os.utime(path / "link", ns=(30, 40), follow_symlinks=False)
        status = os.lstat(source / "link")
        assert status.st_mtime_ns == os.lstat(path / "link").st_mtime_ns == 40

    def test_before_1970_and_far_away(self, here):
        path, source = here
        (path / "file").touch()
        for mtime_ns in (-1, -(10**9), -5 * 10**18 // 3, 10**19 - 1):
            os.utime(path / "file", ns=(0, mtime_ns))
            assert os.stat(path / "file").st_mtime_ns == os.stat(source / "file").st_mtime_ns
            if abs(mtime_ns) < 2 * 10**18:
                assert os.stat(path / "file").st_mtime_ns == mtime_ns

    @pytest.mark.parametrize("content", [b"", b"something"])
    def test_emptying_a_file_is_a_change(self, here, content):
        """Also of one that is empty: `: > stamp` is how make's rules say that something was done."""
        path, source = here
        (path / "stamp").write_bytes(content)
        os.utime(path / "stamp", ns=(1, 1))
        subprocess.run(["sh", "-c", ": > stamp"], cwd=path, check=True)
        for where in (path, source):
            assert (os.stat(where / "stamp").st_size, os.stat(where / "stamp").st_mtime_ns > 1) == (0, True)

    @pytest.mark.parametrize(("call", "changes"), [
        (lambda fd, path: os.ftruncate(fd, 3), True),
        (lambda fd, path: os.truncate(path, 3), None),
        (lambda fd, path: os.truncate(path, 2), True),
        (lambda fd, path: os.write(fd, b""), False),
        (lambda fd, path: os.pwrite(fd, b"abc", 0), True),
        (lambda fd, path: os.read(fd, 1), False),
        (lambda fd, path: os.fsync(fd), False),
    ])  # fmt: skip
    def test_what_changes_a_file(self, here, tmp_path, call, changes):
        """As it does on the file system below."""
        found = []
        for where in (tmp_path, here[0]):
            (where / "file").write_bytes(b"abc")
            os.utime(where / "file", ns=(1, 1))
            fd = os.open(where / "file", os.O_RDWR)
            call(fd, where / "file")
            os.close(fd)
            found.append(os.stat(where / "file").st_mtime_ns != 1)
        assert found[0] == found[1]
        assert changes in (None, found[0])

    def test_nothing_moves_after_close(self, here):
        """Programs that compare times (git, make, tar) see the same ones from then on, here and in the source."""
        path, source = here
        with open(path / "file", "wb") as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.stat(path / "file")
        first = os.stat(path / "file")
        time.sleep(1.1)  # for so long the kernel would have believed what it knew
        again, its = os.stat(path / "file"), os.stat(source / "file")
        assert first == again
        assert (first.st_mtime_ns, first.st_ctime_ns, first.st_blocks) == (its.st_mtime_ns, its.st_ctime_ns, its.st_blocks)


class TestFlags:
    def test_read_only_and_emptied(self, here):
        path, source = here
        (path / "file").write_bytes(b"something")
        fd = os.open(path / "file", os.O_RDONLY | os.O_TRUNC)
        assert os.read(fd, 10) == b""
        assert number_of(os.write, fd, b"x") == errno.EBADF
        os.close(fd)
        assert (source / "file").read_bytes() == b""

    def test_append_is_taken_away_and_given(self, here):
        path, source = here
        fd = os.open(path / "file", os.O_CREAT | os.O_RDWR | os.O_APPEND)
        os.write(fd, b"12345")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
        os.pwrite(fd, b"ab", 1)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"X")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"end")
        os.close(fd)
        assert (path / "file").read_bytes() == (source / "file").read_bytes() == b"Xab45end"

    @needs_root
    def test_a_file_that_may_only_be_appended_to(self, here):
        path, source = here
        (source / "log").write_bytes(b"first\n")
        set_append_only(source / "log", True)
        try:
            assert number_of(os.open, path / "log", os.O_WRONLY) == errno.EPERM
            assert number_of(os.open, path / "log", os.O_WRONLY | os.O_APPEND | os.O_TRUNC) == errno.EPERM
            one, other = (os.open(path / "log", os.O_WRONLY | os.O_APPEND) for _ in range(2))
            os.write(one, b"second\n")
            assert (source / "log").read_bytes() == b"first\nsecond\n"
            os.write(other, b"x" * 5000 + b"\n")
            os.write(one, b"last\n")
            os.fsync(one)
            os.close(one)
            os.close(other)
            expected = b"first\nsecond\n" + b"x" * 5000 + b"\nlast\n"
            assert (source / "log").read_bytes() == (path / "log").read_bytes() == expected
            assert number_of(os.truncate, path / "log", 0) == errno.EPERM
            assert number_of(os.unlink, path / "log") == errno.EPERM
        finally:
            set_append_only(source / "log", False)

    def test_blocks_of_a_file_with_holes(self, here):
        path, source = here
        with open(path / "file", "w+b", buffering=0) as file:
            os.ftruncate(file.fileno(), 1 << 30)
            assert os.stat(path / "file").st_blocks <= 8
            os.pwrite(file.fileno(), b"x", 100 * PAGE)
            assert 0 < os.stat(path / "file").st_blocks <= 64
            os.pwrite(file.fileno(), b"x" * (20 * PAGE), 0)
            assert 160 <= os.stat(path / "file").st_blocks <= 300
        assert os.stat(path / "file").st_blocks == os.stat(source / "file").st_blocks


def set_append_only(path, wanted):
    """Set or take away what `chattr +a` sets; skips where the file system has no such thing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        flags[0] = flags[0] | FS_APPEND_FL if wanted else flags[0] & ~FS_APPEND_FL
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags)
    except OSError as error:
        pytest.skip(f"files here cannot be for appending only: {error}")
    finally:
        os.close(fd)


class TestMountpoints:
    @pytest.fixture(autouse=True)
    def _own_umask(self, tmp_path):
        yield
        for path in tmp_path.rglob("*"):
            if is_mounted(path):
                subprocess.run(["fusermount3", "-u", "-z", path], check=False, timeout=PATIENCE_S)

    @pytest.mark.parametrize(("mountpoint", "source", "reason"), [
        ("outer", "outer/inner", "must not be above its source"),
        ("outer", "outer/inner/deep", "must not be above its source"),
        ("link", "outer/inner", "must not be above its source"),
        ("outer/inner", "outer", "outside of its source"),
        ("outer", "outer", "outside of its source"),
        ("outer", "link/inner", "must not be above its source"),
        ("outer/file", "other", "Not a directory"),
        ("none", "other", "No such file"),
        ("other", "outer/file", "Not a directory"),
    ])  # fmt: skip
    def test_what_is_refused(self, tmp_path, capsys, mountpoint, source, reason):
        (tmp_path / "outer/inner/deep").mkdir(parents=True)
        (tmp_path / "outer/file").touch()
        (tmp_path / "other").mkdir()
        (tmp_path / "link").symlink_to("outer")
        words = [str(tmp_path / source), str(tmp_path / mountpoint)]
        assert main(["mount", "--size", "64KiB", *words]) == EXIT_USAGE
        assert reason in capsys.readouterr().err
        assert not any(map(is_mounted, tmp_path.rglob("*")))

    @needs_root
    def test_a_source_that_is_mounted_elsewhere_as_well(self, tmp_path, capsys):
        """By a bind mount: the same directory under another name."""
        (tmp_path / "outer/inner").mkdir(parents=True)
        (tmp_path / "bound").mkdir()
        subprocess.run(["mount", "--bind", tmp_path / "outer", tmp_path / "bound"], check=True, timeout=PATIENCE_S)
        try:
            words = [str(tmp_path / "outer"), str(tmp_path / "bound/inner")]
            assert main(["mount", "--size", "64KiB", *words]) == EXIT_USAGE
            assert "outside of its source" in capsys.readouterr().err
        finally:
            subprocess.run(["umount", "-l", tmp_path / "bound"], check=True, timeout=PATIENCE_S)

    def test_temporary_files_of_changed_objects_are_not_below(self, tmp_path, capsys, monkeypatch):
        pytest.importorskip("fsspec")
        (tmp_path / "bucket").mkdir()
        (tmp_path / "mnt/tmp").mkdir(parents=True)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "mnt/tmp"))
        words = [f"local://{tmp_path}/bucket", str(tmp_path / "mnt"), "--write-back"]
        assert main(["mount", "--size", "64KiB", *words]) == EXIT_USAGE
        assert "TMPDIR" in capsys.readouterr().err

    def test_one_that_is_not_empty_is_hidden_meanwhile(self, mounted):
        """As fusermount3 has it since libfuse 3.0: it has no option `nonempty` any more, because it does not ask."""
        mount = mounted()
        (mount.path / "below").write_text("below")
        (mounted.source / "file").write_text("x")
        with mount:
            assert os.listdir(mount.path) == ["file"]
            assert mount.unmount() == 0
            assert os.listdir(mount.path) == ["below"]

    def test_a_mount_is_taken_away_when_its_program_ends_by_a_signal_though_it_is_in_use(self, mounted):
        with mounted() as mount:
            (mount.path / "file").write_bytes(b"x")
            fd = os.open(mount.path / "file", os.O_RDWR)
            os.write(fd, b"y")
            assert mount.interrupt() == 0
            assert not is_mounted(mount.path)
            assert number_of(os.fsync, fd) == errno.ENOTCONN
            assert number_of(os.close, fd) in (0, errno.ENOTCONN)
        assert (mounted.source / "file").read_bytes() == b"y"

    def test_shared_maps_are_named_in_the_log_where_they_need_an_option(self, mounted):
        from support.fuse_mount import MAPS_DIRECT_FILES

        for words, is_named in (([], not MAPS_DIRECT_FILES), (["--kernel-cache"], False)):
            with mounted(*words) as mount:
                pass
            assert ("--kernel-cache" in mount.output) == is_named


def test_a_kernel_that_cannot_map_shared_is_named_once(make_cache, tmp_path, monkeypatch, caplog):
    """As before Linux 6.6: said once, when the mount begins."""
    from pagecache.adapters.fuse import mount, session
    from pagecache.adapters.fuse.protocol import Init

    monkeypatch.setattr(session, "FLAGS", session.FLAGS & ~Init.DIRECT_IO_ALLOW_MMAP)
    source, mountpoint = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    mountpoint.mkdir()
    (source / "file").write_bytes(b"x" * PAGE)

    def use():
        (Path(mountpoint) / "file").read_bytes()
        subprocess.run(["fusermount3", "-u", mountpoint], check=True, timeout=PATIENCE_S)

    mount(str(source), str(mountpoint), cache=make_cache("1MiB"), ready=use)
    said = [record.message for record in caplog.records if "mapped shared" in record.message]
    assert len(said) == 1
    assert "--kernel-cache" in said[0]
