"""Mounts that are killed, sources that fail or are full: what was promised is there, and errors are reported once."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time

import pytest
from support import SUPPORT
from support.fuse_kill_writer import content
from support.fuse_mount import PATIENCE_S, STRESS, Mount, mounted, needs_fuse

pytestmark = needs_fuse()
__all__ = ["mounted"]
NR_KILLS = 60 if STRESS else 2
NR_LINES_MIN = 30
WRITER = SUPPORT / "fuse_kill_writer.py"


def check(source, lines):
    """Compare a source with what a writer had been promised. Returns how many files were checked."""
    durable, possible = {}, {}
    for line in lines:
        word, name, generation, nbytes = line.split()
        version = (int(generation), int(nbytes))
        if word in ("synced", "renamed"):
            durable[name], possible[name] = version, None
        else:
            possible[name] = (word, version)
    for name, version in durable.items():
        data = (source / name).read_bytes()
        begun = possible[name]
        if begun is not None and begun[0] == "writing":
            continue  # killed while it was overwritten: nothing was promised
        versions = [version] if begun is None else [version, begun[1]]
        assert data in [content(name, *each) for each in versions], f"{name} is not version {versions}: {len(data)} bytes"
    return sum(1 for name in durable if possible[name] is None)


class TestKilled:
    def test_what_fsync_returned_for_is_in_the_source(self, tmp_path, rng):
        nr_checked = 0
        for _ in range(NR_KILLS):
            source = tmp_path / "source"
            source.mkdir()
            lines = []
            with Mount(source, "--size", "1MiB") as mount:
                command = [sys.executable, "-S", str(WRITER), str(mount.path), str(rng.randrange(1 << 30))]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
                    for line in writer.stdout:
                        lines.append(line)
                        if len(lines) == NR_LINES_MIN:
                            time.sleep(rng.random() * 0.02)
                            mount.process.kill()
                mount.kill()
            nr_checked += check(source, lines)
            litter = [name for name in os.listdir(source) if not name.startswith("file-")]
            assert not litter
            shutil.rmtree(source)
        assert nr_checked >= NR_KILLS

    def test_others_get_an_error_and_the_source_can_be_mounted_again(self, mounted):
        with mounted("--size", "4MiB") as mount:
            (mount.path / "closed").write_bytes(b"x" * 50_000)
            mount.process.kill()
            mount.wait()
            with pytest.raises(OSError) as caught:
                (mount.path / "closed").read_bytes()
            assert caught.value.errno == errno.ENOTCONN
        assert (mounted.source / "closed").read_bytes() == b"x" * 50_000
        with mounted("--size", "4MiB") as mount:
            assert (mount.path / "closed").read_bytes() == b"x" * 50_000


@pytest.fixture(scope="module")
def failing_mount(tmp_path_factory):
    """One mount for all tests, whose source fails on request: `mount.fail(word)`."""
    source, control = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("control") / "control"
    control.write_text("")
    with Mount(source, control, serve=True) as mount:
        mount.fail = control.write_text
        yield mount


@pytest.fixture
def failing(failing_mount, request):
    """The mount, and a file name of this test's own."""
    failing_mount.fail("")
    failing_mount.name = f"file-{abs(hash(request.node.nodeid)):x}"
    yield failing_mount
    failing_mount.fail("")


class TestFailingSource:
    @pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT"])
    def test_from_fsync_once(self, failing, name):
        fd = os.open(failing.path / failing.name, os.O_CREAT | os.O_RDWR)
        os.write(fd, b"x" * 10_000)
        failing.fail(name)
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno == getattr(errno, name)
        failing.fail("")
        os.fsync(fd)
        os.close(fd)
        assert (failing.source / failing.name).read_bytes() == b"x" * 10_000

    def test_from_close_once_and_nothing_is_lost(self, failing):
        fd = os.open(failing.path / failing.name, os.O_CREAT | os.O_RDWR)
        os.write(fd, b"x" * 10_000)
        failing.fail("ENOSPC")
        with pytest.raises(OSError) as caught:
            os.close(fd)
        assert caught.value.errno == errno.ENOSPC
        assert (failing.path / failing.name).read_bytes() == b"x" * 10_000  # still cached
        failing.fail("")
        with open(failing.path / failing.name, "r+b") as file:
            os.fsync(file.fileno())
        assert (failing.source / failing.name).read_bytes() == b"x" * 10_000

    def test_from_the_sync_of_the_source(self, failing):
        fd = os.open(failing.path / failing.name, os.O_CREAT | os.O_RDWR)
        os.write(fd, b"x")
        failing.fail("sync:EIO")
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.EIO
        failing.fail("")
        os.fsync(fd)
        os.close(fd)

    def test_every_open_file_gets_it_once(self, failing):
        fds = [os.open(failing.path / failing.name, os.O_CREAT | os.O_RDWR) for _ in range(3)]
        os.write(fds[0], b"x" * 5000)
        failing.fail("EIO")
        with pytest.raises(OSError):
            os.fsync(fds[0])
        failing.fail("")
        os.fsync(fds[0])
        for fd in fds[1:]:
            with pytest.raises(OSError) as caught:
                os.close(fd)
            assert caught.value.errno == errno.EIO
        os.close(fds[0])

    def test_from_write_when_no_more_can_be_dirty(self, failing):
        failing.fail("ENOSPC")
        fd = os.open(failing.path / failing.name, os.O_CREAT | os.O_RDWR)
        with pytest.raises(OSError) as caught:
            for _ in range(100):
                os.write(fd, b"x" * 100_000)
        assert caught.value.errno == errno.ENOSPC
        failing.fail("")
        with contextlib.suppress(OSError):  # of what earlier writes had left to the background
            os.fsync(fd)
        os.fsync(fd)
        size = os.fstat(fd).st_size
        os.close(fd)
        assert size >= 100_000
        assert (failing.source / failing.name).read_bytes() == b"x" * size


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
class TestFullSource:
    def test_a_full_file_system(self, tmp_path):
        source = tmp_path / "small"
        source.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", source], check=True, timeout=PATIENCE_S)
        try:
            with Mount(source, "--size", "64MiB") as mount:  # so much that nothing is written in the background
                fd = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
                with pytest.raises(OSError) as caught:
                    for _ in range(3):
                        os.write(fd, b"x" * (1 << 20))
                    os.fsync(fd)
                assert caught.value.errno == errno.ENOSPC
                os.ftruncate(fd, 1000)
                os.fsync(fd)
                os.close(fd)
                assert (source / "file").read_bytes() == b"x" * 1000
        finally:
            subprocess.run(["umount", "-l", source], check=True, timeout=PATIENCE_S)
