"""Mounted URLs: objects are read through the cache, and with --write-back changed as a whole."""

import errno
import os
import subprocess

import pytest
from support.fuse_mount import FEW_KINDS, KINDS, Interposed, Mount, needs_fuse
from support.http_server import ObjectServer

from pagecache.adapters.fuse.object_files import ObjectFiles
from pagecache.stores.fsspec_instances import instance_of

fsspec = pytest.importorskip("fsspec")
pytestmark = needs_fuse()


@pytest.fixture
def objects(tmp_path):
    """A directory that stands for a bucket: fsspec puts whole objects into it."""
    path = tmp_path / "bucket"
    path.mkdir()
    return path


def failing_put(*args):
    """Fail as a store without room."""
    raise OSError(errno.ENOSPC, "no")


def names(path):
    """Return the names in a directory."""
    return sorted(os.listdir(path))


class TestReading:
    def test_a_directory_of_a_server(self, rng):
        pytest.importorskip("aiohttp")
        data = rng.randbytes(3_000_001)
        with ObjectServer() as server:
            url = server.put("data.bin", data)
            with Mount(url, "--size", "8MiB") as mount:
                assert names(mount.path) == ["data.bin"]
                assert os.stat(mount.path / "data.bin").st_size == len(data)
                assert (mount.path / "data.bin").read_bytes() == data
                nr_requests = server.count("GET")
                assert (mount.path / "data.bin").read_bytes() == data
                assert server.count("GET") == nr_requests
                for call in (lambda: os.open(mount.path / "data.bin", os.O_RDWR), lambda: os.mkdir(mount.path / "sub")):
                    with pytest.raises(OSError) as caught:
                        call()
                    assert caught.value.errno == errno.EROFS
                with pytest.raises(FileNotFoundError):
                    os.stat(mount.path / "other")

    def test_a_tree(self, objects, rng):
        (objects / "sub/sub").mkdir(parents=True)
        contents = {"a": rng.randbytes(10), "sub/b": rng.randbytes(100_000), "sub/sub/c": b""}
        for name, data in contents.items():
            (objects / name).write_bytes(data)
        with Mount(f"local://{objects}", "--size", "4MiB") as mount:
            subprocess.run(["diff", "-r", objects, mount.path], check=True)
            assert names(mount.path / "sub") == ["b", "sub"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_new_version_is_seen_when_the_object_is_opened(self, objects, kind):
        (objects / "a").write_bytes(b"old" * 1000)
        with Mount(f"local://{objects}", *KINDS[kind]) as mount:
            assert (mount.path / "a").read_bytes() == b"old" * 1000
            (objects / "a").write_bytes(b"new" * 1000)
            assert (mount.path / "a").read_bytes() == b"new" * 1000


@pytest.fixture(scope="module", params=FEW_KINDS)
def shared(tmp_path_factory, request):
    """A bucket that is mounted so that objects can be changed."""
    bucket = tmp_path_factory.mktemp("bucket")
    with Mount(f"local://{bucket}", "--write-back", *KINDS[request.param]) as mount:
        yield mount, bucket


class TestWriting:
    @pytest.fixture
    def mount(self, shared):
        """The mount, with nothing in it."""
        subprocess.run(["find", shared[0].path, "-mindepth", "1", "-delete"], check=True)
        return shared[0]

    @pytest.fixture
    def bucket(self, shared):
        """The directory that stands for its bucket."""
        return shared[1]

    def test_new_changed_and_cut(self, mount, bucket):
        path = mount.path / "a.txt"
        path.write_bytes(b"first")
        assert (bucket / "a.txt").read_bytes() == b"first"
        with open(path, "r+b", buffering=0) as file:
            file.seek(2)
            file.write(b"XYZ123")
            assert path.read_bytes() == b"fiXYZ123"
            assert os.stat(path).st_size == 8
        assert (bucket / "a.txt").read_bytes() == b"fiXYZ123"
        os.truncate(path, 3)
        assert (bucket / "a.txt").read_bytes() == b"fiX"
        with open(path, "ab") as file:
            file.write(b"!")
        assert (bucket / "a.txt").read_bytes() == path.read_bytes() == b"fiX!"

    def test_the_object_is_the_old_one_until_close_or_fsync(self, mount, bucket):
        (bucket / "a").write_bytes(b"old")
        with open(mount.path / "a", "wb", buffering=0) as file:
            file.write(b"new")
            assert (bucket / "a").read_bytes() == b"old"
            os.fsync(file.fileno())
            assert (bucket / "a").read_bytes() == b"new"
            file.write(b"er")
            assert (bucket / "a").read_bytes() == b"new"
        assert (bucket / "a").read_bytes() == b"newer"

    def test_directories_renaming_and_removing(self, mount, bucket):
        (mount.path / "sub").mkdir()
        (mount.path / "sub/a").write_bytes(b"1")
        os.rename(mount.path / "sub/a", mount.path / "b")
        assert names(mount.path) == ["b", "sub"]
        assert (bucket / "b").read_bytes() == b"1"
        (mount.path / "new").write_bytes(b"2")
        with open(mount.path / "b", "rb", buffering=0) as old:
            os.rename(mount.path / "new", mount.path / "b")
            assert old.read() == b"1"
            assert (mount.path / "b").read_bytes() == b"2"
        os.rmdir(mount.path / "sub")
        os.unlink(mount.path / "b")
        assert names(mount.path) == names(bucket) == []

    def test_tar(self, mount, bucket, tmp_path, rng):
        for number in range(20):
            (tmp_path / "in" / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / f"d{number % 3}" / str(number)).write_bytes(rng.randbytes(rng.randrange(9000)))
        subprocess.run(["cp", "-r", tmp_path / "in", mount.path / "out"], check=True)
        subprocess.run(["diff", "-r", tmp_path / "in", mount.path / "out"], check=True)
        subprocess.run(["diff", "-r", tmp_path / "in", bucket / "out"], check=True)

    def test_killed_while_writing_leaves_the_old_object(self, objects):
        (objects / "a").write_bytes(b"old")
        with Mount(f"local://{objects}", "--write-back", "--size", "4MiB") as mount:
            fd = os.open(mount.path / "a", os.O_RDWR)
            os.write(fd, b"newer")
            mount.kill()
            with pytest.raises(OSError):
                os.close(fd)
        assert (objects / "a").read_bytes() == b"old"

    def test_two_handles_of_an_object_that_could_not_be_put_are_given_up_at_once(self, make_cache, objects, monkeypatch):
        """One of them is the last: the object is kept, for another try."""
        fs = fsspec.filesystem("local")
        files = ObjectFiles(make_cache("1MiB"), instance_of(fs))
        remote = str(objects / "a")
        first, second = (files.open(remote, os.O_RDWR, is_new=True) for _ in range(2))
        files.write(first, b"new", 0)
        with monkeypatch.context() as patch:
            patch.setattr(fs, "put_file", failing_put)
            files._lock = Interposed(lambda: files.release(second))
            files.release(first)
        (opened,) = files.all()
        files.put(opened)
        assert (objects / "a").read_bytes() == b"new"
        opened.spool.close()

    def test_a_put_that_fails_is_told_by_close_and_tried_again(self, objects):
        (objects / "sub").mkdir()
        with Mount(f"local://{objects}", "--write-back", "--size", "4MiB") as mount:
            fd = os.open(mount.path / "sub/a", os.O_CREAT | os.O_RDWR)
            os.write(fd, b"kept")
            os.rename(objects / "sub", objects / "elsewhere")
            (objects / "sub").write_bytes(b"in the way")
            with pytest.raises(OSError):
                os.close(fd)
            os.unlink(objects / "sub")
            os.rename(objects / "elsewhere", objects / "sub")
        assert (objects / "sub/a").read_bytes() == b"kept"
