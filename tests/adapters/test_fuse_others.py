"""A mounted directory whose source other programs change beside the mount: what they write is not written over."""

import contextlib
import errno
import os

import pytest
from support import PAGE, let_time_pass, pages_of
from support.fuse_mount import KINDS, Mount, mounted, needs_fuse

pytestmark = needs_fuse()
__all__ = ["mounted"]
DATA = pages_of(3 * PAGE + 50)


def append(path):
    with open(path, "ab") as file:
        file.write(b"theirs")


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(PAGE)
        file.write(b"theirs")


def shorten(path):
    os.truncate(path, 10)


def set_back(path):
    """As `rsync --inplace --times`."""
    status = os.stat(path)
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module", params=KINDS)
def mount(request, tmp_path_factory):
    """One mount for all tests: each works in a directory of its own."""
    with Mount(tmp_path_factory.mktemp("source"), *KINDS[request.param]) as mount:
        yield mount


@pytest.fixture
def pair(mount, request):
    """A file by its name in the mount, and in the source."""
    name = f"at-{abs(hash(request.node.nodeid)):x}"
    (mount.source / name).mkdir()
    (mount.source / name / "file").write_bytes(DATA)
    return mount.path / name / "file", mount.source / name / "file"


def is_stale(call):
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.ESTALE, caught.value


@pytest.mark.parametrize("change", [append, overwrite, shorten, set_back])
@pytest.mark.parametrize("way", ["fsync", "close"])
def test_what_they_have_written_stays(pair, change, way):
    path, source = pair
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"ours", PAGE + 100)
    let_time_pass(source)
    change(source)
    theirs = source.read_bytes()
    if way == "fsync":
        is_stale(lambda: os.fsync(fd))
        with contextlib.suppress(OSError):
            os.close(fd)
    else:
        is_stale(lambda: os.close(fd))
    assert source.read_bytes() == theirs
    with open(path, "r+b", buffering=0) as again:
        assert again.read(len(theirs)) == theirs
        os.pwrite(again.fileno(), b"again", 0)
        os.fsync(again.fileno())
    assert source.read_bytes() == b"again" + theirs[5:]


@pytest.mark.parametrize("change", [
    lambda source: os.chmod(source, 0o640), lambda source: os.link(source, source.with_name("link")),
    lambda source: os.rename(source, source.with_name("renamed")), os.unlink,
], ids=["chmod", "link", "rename", "unlink"])  # fmt: skip
def test_a_change_of_attributes_is_none_of_the_file(pair, change):
    path, source = pair
    kept = os.open(source, os.O_RDONLY)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"ours", PAGE + 100)
        let_time_pass(source)
        change(source)
        os.pwrite(file.fileno(), b"more", 0)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 4, PAGE + 100) == b"ours"
    assert os.pread(kept, 4, 0) == b"more"
    assert os.pread(kept, 4, PAGE + 100) == b"ours"
    os.close(kept)


@pytest.mark.parametrize("change", [append, overwrite, shorten])
def test_appending_goes_behind_what_they_have_written(pair, change):
    path, source = pair
    with open(path, "ab", buffering=0) as file:
        for _ in range(3):
            let_time_pass(source)
            change(source)
            theirs = source.read_bytes()
            file.write(b"ours")
            os.fsync(file.fileno())
            assert source.read_bytes() == theirs + b"ours"


def test_the_mount_sets_attributes_while_something_is_written(pair):
    """None of it is another program's change."""
    path, source = pair
    with open(path, "r+b", buffering=0) as file:
        for number, change in enumerate([
            lambda: os.chmod(path, 0o600), lambda: os.setxattr(path, "user.a", b"b"),
            lambda: os.removexattr(path, "user.a"),
            lambda: os.utime(path, ns=(5, 6)), lambda: os.link(path, path.with_name("link")),
            lambda: os.rename(path.with_name("link"), path), lambda: os.chmod(path, 0o644),
        ]):  # fmt: skip
            os.pwrite(file.fileno(), b"ours", number * 100)
            change()
            os.fsync(file.fileno())
            assert source.read_bytes()[number * 100 : number * 100 + 4] == b"ours"


def test_direct_the_end_of_a_new_file_that_may_only_be_read(mounted):
    with mounted("--direct") as mount:
        fd = os.open(mount.path / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
        os.write(fd, DATA)
        os.fsync(fd)
        os.close(fd)
        assert (mount.source / "new").read_bytes() == DATA
