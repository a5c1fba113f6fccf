"""Mounted URLs: objects are read through the cache, and with --write-back changed as a whole."""

import errno
import os
import subprocess
import tempfile

import pytest
from support.fuse_mount import FEW_KINDS, KINDS, Interposed, Mount, needs_fuse, needs_program
from support.http_server import ObjectServer

from pagecache.adapters.fuse import mount as mount_here
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
    def test_a_server_that_fails_has_no_object_less(self):
        """An error is never taken for a missing object."""
        pytest.importorskip("aiohttp")
        with ObjectServer() as server:
            server.put("data/one", b"1")
            with Mount(server.url("data/"), "--size", "4MiB") as mount:
                server.rewrite = lambda answer: setattr(answer, "status", 503)
                with pytest.raises(OSError) as caught:
                    os.stat(mount.path / "one")
                assert caught.value.errno != errno.ENOENT
                server.rewrite = None
                assert (mount.path / "one").read_bytes() == b"1"
                with pytest.raises(FileNotFoundError):
                    os.stat(mount.path / "two")
                room = os.statvfs(mount.path)
                assert (room.f_bavail, room.f_blocks > 0) == (0, True)

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

    def test_new_changed_and_truncated(self, mount, bucket):
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

    def test_one_that_is_not_put_yet_is_there_for_all_users_of_the_mount(self, mount, bucket):
        (mount.path / "sub").mkdir()
        with open(mount.path / "sub/new", "wb", buffering=0) as file:
            file.write(b"1")
            assert names(mount.path / "sub") == ["new"]
            assert (os.stat(mount.path / "sub/new").st_size, (mount.path / "sub/new").read_bytes()) == (1, b"1")
            with pytest.raises(OSError) as caught:
                os.rmdir(mount.path / "sub")
            assert caught.value.errno == errno.ENOTEMPTY
            os.rename(mount.path / "sub/new", mount.path / "sub/renamed")
            assert names(mount.path / "sub") == ["renamed"]
            assert not os.path.exists(bucket / "sub/new")
            file.write(b"2")
        assert (bucket / "sub/renamed").read_bytes() == b"12"
        assert names(bucket / "sub") == ["renamed"]

    def test_a_temporary_file_that_takes_the_place_of_an_object(self, mount, bucket):
        """As programs save: written, not closed, renamed over the old one."""
        (mount.path / "saved").write_bytes(b"old")
        with open(mount.path / "saved", "rb", buffering=0) as reader:
            with tempfile.NamedTemporaryFile(dir=mount.path, delete=False) as file:
                file.write(b"new")
                file.flush()
                os.replace(file.name, mount.path / "saved")
                assert names(mount.path) == ["saved"]
                assert (mount.path / "saved").read_bytes() == b"new"
                assert (bucket / "saved").read_bytes() == b"old"  # until it is closed
            assert reader.read() == b"old"
        assert (bucket / "saved").read_bytes() == b"new"
        assert names(bucket) == ["saved"]
        with tempfile.NamedTemporaryFile(dir=mount.path) as file:  # which removes it before it is closed
            file.write(b"x")
        assert names(mount.path) == names(bucket) == ["saved"]

    def test_removed_before_it_is_put(self, mount, bucket):
        with open(mount.path / "a", "w+b", buffering=0) as file:
            file.write(b"abc")
            os.unlink(mount.path / "a")
            assert names(mount.path) == []
            file.write(b"d")
            file.seek(0)
            assert (file.read(), os.fstat(file.fileno()).st_nlink) == (b"abcd", 0)
            (mount.path / "a").write_bytes(b"another")
            assert file.seek(0) == 0
            assert file.read() == b"abcd"
        assert (bucket / "a").read_bytes() == b"another"

    def test_a_reader_of_an_object_that_is_renamed(self, mount, bucket, rng):
        data = rng.randbytes(500_000)
        (bucket / "a").write_bytes(data)
        with open(mount.path / "a", "rb", buffering=0) as file:
            assert file.read(1000) == data[:1000]
            os.rename(mount.path / "a", mount.path / "b")
            assert file.read() == data[1000:]
            assert (mount.path / "b").read_bytes() == data

    def test_inode_numbers_stay(self, mount, bucket):
        """Opened by its number and by its name a file is the same: SQLite writes to no other."""
        (mount.path / "sub").mkdir()
        (mount.path / "sub/a").write_bytes(b"1")
        seen = {os.stat(mount.path / "sub/a").st_ino}
        with open(mount.path / "sub/a", "r+b") as file:
            seen |= {os.fstat(file.fileno()).st_ino, os.stat(mount.path / "sub/a").st_ino}
            file.write(b"2")
            file.flush()
            seen |= {os.fstat(file.fileno()).st_ino, os.stat(mount.path / "sub/a").st_ino}
            seen |= {entry.inode() for entry in os.scandir(mount.path / "sub")}
            os.rename(mount.path / "sub/a", mount.path / "sub/b")
            seen |= {os.fstat(file.fileno()).st_ino, os.stat(mount.path / "sub/b").st_ino}
            seen |= {entry.inode() for entry in os.scandir(mount.path / "sub")}
            (mount.path / "sub/a").write_bytes(b"another")
            assert os.stat(mount.path / "sub/a").st_ino not in seen
        assert len(seen) == 1

    @needs_program("sqlite3")
    def test_sqlite(self, mount, bucket):
        database = mount.path / "bank.db"
        for statement in ("CREATE TABLE t(a)", "INSERT INTO t VALUES (1)", "UPDATE t SET a = a + 1", "VACUUM"):
            subprocess.run(["sqlite3", "-bail", database, statement], check=True)
        for path in (database, bucket / "bank.db"):
            command = ["sqlite3", path, "SELECT a FROM t; PRAGMA integrity_check"]
            done = subprocess.run(command, capture_output=True, check=True)
            assert done.stdout.split() == [b"2", b"ok"]
        assert names(bucket) == ["bank.db"]

    def test_an_object_that_others_have_replaced_is_not_overwritten(self, mount, bucket):
        (bucket / "a").write_bytes(b"old")
        with open(mount.path / "a", "r+b", buffering=0) as file:
            file.write(b"ours")
            (bucket / "a").write_bytes(b"theirs")
            with pytest.raises(OSError) as caught:
                os.fsync(file.fileno())
            assert caught.value.errno == errno.ESTALE
            with pytest.raises(OSError):
                file.close()
        assert (bucket / "a").read_bytes() == b"theirs"
        (mount.path / "copy").write_bytes((mount.path / "a").read_bytes())
        assert (bucket / "copy").read_bytes() == b"ours"
        (mount.path / "a").write_bytes(b"anew")
        assert (bucket / "a").read_bytes() == b"anew"

    def test_room(self, mount):
        """Programs that look for it first find some."""
        room = os.statvfs(mount.path)
        assert room.f_bavail * room.f_frsize >= 1 << 50
        assert room.f_namemax == 255

    def test_modes_that_are_what_they_are_can_be_set(self, mount):
        (mount.path / "a").write_bytes(b"1")
        os.chmod(mount.path / "a", 0o644)
        os.chown(mount.path / "a", os.getuid(), os.getgid())
        for call in (lambda: os.chmod(mount.path / "a", 0o600), lambda: os.chown(mount.path / "a", 12345, -1)):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP

    def test_what_objects_are_not(self, mount):
        (mount.path / "a").write_bytes(b"1")
        for call in (
            lambda: os.link(mount.path / "a", mount.path / "b"),
            lambda: os.symlink("a", mount.path / "b"),
            lambda: os.mkfifo(mount.path / "b"),
            lambda: os.setxattr(mount.path / "a", "user.a", b"1"),
            lambda: os.close(os.open(mount.path, os.O_TMPFILE | os.O_RDWR)),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno in (errno.EPERM, errno.EOPNOTSUPP)
        os.mknod(mount.path / "c")
        assert names(mount.path) == ["a", "c"]

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

    def test_an_object_that_is_not_put_in_the_end_keeps_nothing_else_back(self, make_cache, objects, tmp_path):
        """The cache may have files of others, too."""
        (tmp_path / "mnt").mkdir()
        cache = make_cache("1MiB")
        file = cache.open(tmp_path / "other", "w+b")
        file.write(b"other")

        def use():
            fd = os.open(tmp_path / "mnt/a", os.O_CREAT | os.O_RDWR)
            os.write(fd, b"ours")
            (objects / "a").write_bytes(b"theirs")
            with pytest.raises(OSError):
                os.close(fd)
            subprocess.run(["fusermount3", "-u", tmp_path / "mnt"], check=True)

        with pytest.raises(OSError) as caught:
            mount_here(f"local://{objects}", str(tmp_path / "mnt"), cache=cache, write_back=True, ready=use)
        assert caught.value.errno == errno.ESTALE
        assert (objects / "a").read_bytes() == b"theirs"
        assert (tmp_path / "other").read_bytes() == b"other"
        file.close()

    def test_a_put_that_fails_is_reported_by_close_and_tried_again(self, objects):
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
