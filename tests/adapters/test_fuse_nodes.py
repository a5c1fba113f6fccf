"""What the kernel knows of a mount by numbers: inode numbers, names that go and move, and names that others replace."""

import contextlib
import errno
import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from support import wait_until
from support.fuse_mount import PATIENCE_S, mounted, needs_fuse
from support.fuse_users import needs_root, number_of

from pagecache.adapters.fuse import beneath
from pagecache.adapters.fuse.credentials import Caller
from pagecache.adapters.fuse.directory import DirectoryOperations
from pagecache.adapters.fuse.protocol import ROOT_ID

__all__ = ["mounted"]
ROOT = Caller(0, 0, 0)


def held_by(mount, path):
    """Return what a mount holds open at or below a path of its source."""
    held = []
    for link in Path(f"/proc/{mount.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.append(os.readlink(link))
    return [target for target in held if target.startswith(str(path))]


@pytest.fixture
def operations(make_cache, tmp_path):
    """The operations of a directory, as the kernel calls them, and the directory."""
    source = tmp_path / "source"
    source.mkdir()
    operations = DirectoryOperations(make_cache("1MiB"), str(source))
    yield operations, source
    operations.finish()


class TestInodeNumbers:
    @needs_root
    @needs_fuse()
    def test_another_file_system_inside_the_source(self, mounted, tmp_path):
        """Its inode numbers begin anew: tools that know a file by its number take two for one."""
        inner = mounted.source / "inner"
        inner.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True, timeout=PATIENCE_S)
        try:
            (inner / "sub").mkdir()
            (inner / "file").write_bytes(b"inner")
            (mounted.source / "outer").mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", mounted.source / "outer"], check=True, timeout=PATIENCE_S)
            (mounted.source / "outer/sub").mkdir()
            (mounted.source / "outer/file").write_bytes(b"outer")
            assert (inner / "file").stat().st_ino == (mounted.source / "outer/file").stat().st_ino
            with mounted() as mount:
                found = [os.lstat(path) for path in (mount.path, *mount.path.rglob("*"))]
                numbers = [status.st_ino for status in found]
                assert len(set(numbers)) == len(numbers)
                for entry in os.scandir(mount.path / "inner"):
                    assert entry.inode() == os.lstat(entry.path).st_ino
                assert subprocess.run(["find", mount.path], capture_output=True, check=True).stderr == b""
                for command in ("cp -a", "tar"):
                    target = tmp_path / command.replace(" ", "")
                    if command == "cp -a":
                        subprocess.run(["cp", "-a", mount.path, target], check=True, timeout=PATIENCE_S)
                    else:
                        with tarfile.open(tmp_path / "t.tar", "w") as archive:
                            archive.add(mount.path, ".")
                        with tarfile.open(tmp_path / "t.tar") as archive:
                            archive.extractall(target, filter="tar")
                    assert (target / "inner/file").read_bytes() == b"inner"
                    assert (target / "outer/file").read_bytes() == b"outer"
                    shutil.rmtree(target)
        finally:
            for name in ("inner", "outer"):
                subprocess.run(["umount", "-l", mounted.source / name], check=False, timeout=PATIENCE_S)

    @needs_root
    @needs_fuse()
    def test_nothing_of_the_source_is_kept_busy(self, mounted):
        """A file system inside the source can be unmounted, though the kernel knows its files."""
        inner = mounted.source / "inner"
        inner.mkdir()
        with mounted() as mount:
            subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True, timeout=PATIENCE_S)
            try:
                (inner / "sub").mkdir()
                (inner / "sub/file").write_bytes(b"x")
                assert (mount.path / "inner/sub/file").read_bytes() == b"x"
                wait_until(lambda: not held_by(mount, inner), "the close of the file to be heard of")
                subprocess.run(["umount", inner], check=True, timeout=PATIENCE_S)
            except BaseException:
                subprocess.run(["umount", "-l", inner], check=True, timeout=PATIENCE_S)
                raise
            assert os.listdir(mount.path / "inner") == []

    def test_a_number_with_the_highest_bit_belongs_to_no_other(self, operations):
        nodes = operations[0].nodes
        device, ino = nodes.root.key
        shown = {nodes.shown_ino(device, ino), nodes.shown_ino(device + 1, ino), nodes.shown_ino(device, ino | 1 << 63)}
        assert len(shown) == 3
        assert nodes.shown_ino(device, ino) == ino


@needs_fuse()
class TestNamesThatGo:
    def test_a_removed_file_stays_removed_when_its_directory_is_renamed_at_once(self, mounted):
        with mounted() as mount:
            (mount.path / "old").mkdir()
            with open(mount.path / "old/file", "w+b", buffering=0) as file:
                file.write(b"x")
                os.unlink(mount.path / "old/file")
                assert os.listdir(mounted.source / "old") == []
                os.rename(mount.path / "old", mount.path / "new")
                assert os.pread(file.fileno(), 10, 0) == b"x"
            assert os.listdir(mount.path / "new") == os.listdir(mounted.source / "new") == []

    def test_rename_onto_a_directory_whose_open_file_was_removed(self, mounted):
        with mounted() as mount:
            for name in "ab":
                (mount.path / name).mkdir()
            with open(mount.path / "b/file", "wb"):
                os.unlink(mount.path / "b/file")
                os.rename(mount.path / "a", mount.path / "b")
            assert os.listdir(mounted.source) == ["b"]

    def test_a_killed_mount_leaves_no_name_that_was_removed(self, mounted):
        with mounted() as mount:
            file = open(mount.path / "file", "wb")  # noqa: SIM115
            os.unlink(mount.path / "file")
            mount.kill()
            with contextlib.suppress(OSError):
                file.close()
        assert os.listdir(mounted.source) == []

    def test_a_file_is_its_own_whatever_becomes_of_its_names(self, mounted):
        with mounted() as mount:
            path = mount.path / "file"
            path.write_bytes(b"x")
            path_fd = os.open(path, os.O_PATH)
            os.unlink(path)
            assert os.fstat(path_fd).st_nlink == 0
            path.write_bytes(b"another")
            with open(f"/proc/self/fd/{path_fd}", "r+b", buffering=0) as file:
                assert file.read() == b"x"
                file.write(b"y")
                assert os.fstat(path_fd).st_size == 2
            os.close(path_fd)
            assert path.read_bytes() == b"another"

    def test_names_of_hidden_files_of_other_libraries_are_names(self, mounted):
        name = ".fuse_hidden" + "0" * 16
        with mounted() as mount:
            (mount.path / "file").write_bytes(b"x")
            os.rename(mount.path / "file", mount.path / name)
            assert (mounted.source / name).read_bytes() == b"x"

    def test_a_file_that_is_made_without_a_name_can_be_given_one(self, mounted):
        with mounted() as mount:
            fd = os.open(mount.path, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b"x" * 5000)
            assert (os.fstat(fd).st_nlink, os.listdir(mount.path)) == (0, [])
            directory = os.open(mount.path, os.O_PATH)
            beneath.link(fd, directory, b"file")
            os.close(directory)
            os.close(fd)
            assert (mounted.source / "file").read_bytes() == b"x" * 5000
            assert os.stat(mount.path / "file").st_nlink == 1


@needs_fuse()
class TestNamesThatMove:
    def test_everything_below_a_directory_that_is_renamed(self, mounted):
        with mounted() as mount:
            (mount.path / "a/b/c").mkdir(parents=True)
            (mount.path / "a/b/c/file").write_bytes(b"1")
            inside = os.open(mount.path / "a/b/c", os.O_RDONLY | os.O_DIRECTORY)
            with open(mount.path / "a/b/c/file", "r+b", buffering=0) as file:
                os.rename(mount.path / "a/b", mount.path / "moved")
                file.write(b"2")
                with open(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside), "wb") as new:
                    new.write(b"3")
                assert os.stat("file", dir_fd=inside).st_size == 1
            os.close(inside)
            assert (mounted.source / "moved/c/file").read_bytes() == b"2"
            assert (mounted.source / "moved/c/new").read_bytes() == b"3"

    def test_names_of_one_file_are_one_file(self, mounted):
        """With the kernel's pages, too: it has one file for all names."""
        with mounted("--kernel-cache") as mount:
            (mount.path / "one").write_bytes(b"1" * 5000)
            os.link(mount.path / "one", mount.path / "two")
            assert (mount.path / "two").read_bytes() == b"1" * 5000
            with open(mount.path / "one", "r+b", buffering=0) as one, open(mount.path / "two", "rb", buffering=0) as two:
                one.write(b"x" * 4500)
                assert two.read() == b"x" * 4500 + b"1" * 500
            os.chmod(mount.path / "one", 0o600)
            assert os.stat(mount.path / "two").st_mode & 0o777 == 0o600
            os.unlink(mount.path / "one")
            assert os.stat(mount.path / "two").st_nlink == 1
            (mount.path / "three").write_bytes(b"3")
            os.rename(mount.path / "three", mount.path / "two")
            assert (mount.path / "two").read_bytes() == b"3"

    def test_rename_of_one_name_onto_another_of_the_same_file(self, mounted):
        with mounted() as mount:
            (mount.path / "one").write_bytes(b"1")
            os.link(mount.path / "one", mount.path / "two")
            os.rename(mount.path / "one", mount.path / "two")
            with open(mount.path / "two", "r+b"):
                os.rename(mount.path / "one", mount.path / "two")
            assert sorted(os.listdir(mount.path)) == ["one", "two"]
            os.unlink(mount.path / "one")
            assert (mount.path / "two").read_bytes() == b"1"

    def test_a_large_directory_that_is_emptied_while_it_is_read(self, mounted):
        """Offsets are the source's own: nothing is missed, and nothing comes twice."""
        (mounted.source / "many").mkdir()
        names = [f"{number:0{1 + number % 150}}" for number in range(1500)]
        for name in set(names):
            (mounted.source / "many" / name).touch()
        with mounted() as mount:
            assert sorted(os.listdir(mount.path / "many")) == sorted(set(names))
            seen = []
            for entry in os.scandir(mount.path / "many"):
                seen.append(entry.name)
                os.unlink(entry.path)
            assert sorted(seen) == sorted(set(names))
            os.rmdir(mount.path / "many")

    def test_a_way_that_is_longer_than_a_path_may_be(self, mounted):
        with mounted() as mount:
            depth, name = 30, "d" * 200
            at = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
            for _ in range(depth):
                os.mkdir(name, dir_fd=at)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            with open(os.open("file", os.O_CREAT | os.O_RDWR, dir_fd=at), "r+b") as file:
                file.write(b"x")
            assert os.stat("file", dir_fd=at).st_size == 1
            os.unlink("file", dir_fd=at)
            os.close(at)
            shutil.rmtree(mount.path / name)
            assert os.listdir(mounted.source) == []


@needs_fuse()
class TestChangesInTheSource:
    def test_a_directory_that_others_rename(self, mounted):
        (mounted.source / "old").mkdir()
        (mounted.source / "old/file").write_bytes(b"1")
        with mounted() as mount:
            assert (mount.path / "old/file").read_bytes() == b"1"
            os.rename(mounted.source / "old", mounted.source / "new")
            assert (mount.path / "new/file").read_bytes() == b"1"
            assert number_of((mount.path / "old/file").read_bytes) == errno.ENOENT

    def test_a_file_that_others_replace(self, mounted):
        (mounted.source / "file").write_bytes(b"1")
        with mounted() as mount:
            assert (mount.path / "file").read_bytes() == b"1"
            (mounted.source / "new").write_bytes(b"other")
            os.rename(mounted.source / "new", mounted.source / "file")
            assert (mount.path / "file").read_bytes() == b"other"

    def test_who_appends_appends_to_what_others_have_appended(self, mounted):
        """Though the kernel may take the size for known, and says where the write goes."""
        (mounted.source / "log").write_bytes(b"1")
        with mounted() as mount:
            assert (mount.path / "log").stat().st_size == 1
            with open(mounted.source / "log", "ab") as file:
                file.write(b"22")
            with open(mount.path / "log", "ab") as file:
                file.write(b"3")
        assert (mounted.source / "log").read_bytes() == b"1223"

    def test_a_directory_that_becomes_a_link(self, mounted):
        """The kernel follows it, in the mount's own tree of names."""
        for name in ("target", "sub"):
            (mounted.source / name).mkdir()
            (mounted.source / name / "file").write_text(name)
        with mounted() as mount:
            assert (mount.path / "sub/file").read_text() == "sub"
            shutil.rmtree(mounted.source / "sub")
            (mounted.source / "sub").symlink_to("target")
            assert (mount.path / "sub/file").read_text() == "target"

    def test_a_file_that_others_remove_gives_its_room_back(self, mounted):
        (mounted.source / "file").write_bytes(b"x" * 10_000)
        with mounted() as mount:
            assert (mount.path / "file").stat().st_size == 10_000
            assert (mount.path / "file").read_bytes() == b"x" * 10_000
            os.unlink(mounted.source / "file")
            wait_until(lambda: not held_by(mount, mounted.source / "file"), "the close of the file to be heard of")


class TestBeneath:
    @pytest.fixture(params=["openat2", "openat"])
    def root_fd(self, request, tmp_path, monkeypatch):
        """A descriptor of a directory, by each way of resolving."""
        monkeypatch.setattr(beneath, "_has_openat2", request.param == "openat2")
        (tmp_path / "root/a/b").mkdir(parents=True)
        (tmp_path / "root/a/file").write_text("inside")
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/file").write_text("outside")
        fd = os.open(tmp_path / "root", os.O_PATH)
        yield fd
        os.close(fd)

    def open_path(self, root_fd, *names):
        """Return the status of what is found."""
        fd = beneath.open_path(root_fd, [os.fsencode(name) for name in names])
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def test_what_is_below_is_found(self, root_fd, tmp_path):
        for names in ((), ("a",), ("a", "b"), ("a", "file")):
            assert os.path.samestat(self.open_path(root_fd, *names), os.lstat(tmp_path.joinpath("root", *names)))
        assert number_of(self.open_path, root_fd, "a", "none") == errno.ENOENT

    def test_a_link_at_the_end_is_itself(self, root_fd, tmp_path):
        (tmp_path / "root/link").symlink_to(tmp_path / "outside")
        assert os.path.samestat(self.open_path(root_fd, "link"), os.lstat(tmp_path / "root/link"))

    @pytest.mark.parametrize("target", ["../outside", "{tmp}/outside", "a", "/proc/self/fd/{fd}"])
    def test_a_link_on_the_way_is_no_way(self, root_fd, tmp_path, target):
        (tmp_path / "root/link").symlink_to(target.format(tmp=tmp_path, fd=root_fd))
        assert number_of(self.open_path, root_fd, "link", "file") == errno.ESTALE
        assert number_of(self.open_path, root_fd, "a", "file", "below a file") == errno.ESTALE

    @pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/", "a\0b"])
    def test_what_is_no_name_of_an_entry_is_refused(self, root_fd, name):
        assert number_of(self.open_path, root_fd, "a", name) == errno.EINVAL

    def test_a_long_way(self, root_fd, tmp_path):
        at, names = os.dup(root_fd), [f"{number:0200}" for number in range(50)]
        for name in names:
            os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_PATH, dir_fd=at)
            os.close(at)
            at = below
        assert os.path.samestat(self.open_path(root_fd, *names), os.fstat(at))
        os.close(at)


class TestOperations:
    """As the kernel calls them, and in orders that it could only bring about by a race."""

    def test_a_node_whose_directory_is_another_one_by_now_is_stale(self, operations):
        """A name that has been replaced by a directory of the same name is not taken for it."""
        operations, source = operations
        (source / "sub").mkdir()
        number, _ = operations.lookup(ROOT_ID, b"sub")
        os.rename(source / "sub", source / "elsewhere")
        (source / "sub").mkdir()
        for call in (
            lambda: operations.create(ROOT, number, b"file", os.O_WRONLY, 0o600),
            lambda: operations.mkdir(ROOT, number, b"made", 0o700),
            lambda: operations.lookup(number, b"file"),
            lambda: operations.attributes(number, None),
            lambda: operations.opendir(ROOT, number),
        ):
            assert number_of(call) == errno.ESTALE
        assert os.listdir(source / "sub") == os.listdir(source / "elsewhere") == []
        again, _ = operations.lookup(ROOT_ID, b"elsewhere")
        assert again == number
        operations.mkdir(ROOT, number, b"made", 0o700)
        assert os.listdir(source / "elsewhere") == ["made"]

    def test_a_node_that_is_looked_at_while_it_is_renamed(self, operations, monkeypatch):
        """Between the rename in the source and the moment when the node knows of it: a lookup then waits for that."""
        operations, source = operations
        (source / "old").mkdir()
        number, _ = operations.lookup(ROOT_ID, b"old")
        nodes, renamed, is_moved, is_waited_for = operations.nodes, operations.nodes.renamed, Event(), Event()

        class Watched:
            """The lock, which says that the second thread wants it."""

            def __init__(self, lock):
                self.lock, self.nr_wanted = lock, 0

            def held(self):
                self.nr_wanted += 1
                if self.nr_wanted == 2:
                    is_waited_for.set()
                return self.lock.held()

        def renamed_late(*args):
            is_moved.set()
            assert is_waited_for.wait(PATIENCE_S)
            renamed(*args)

        monkeypatch.setattr(nodes, "moving", Watched(nodes.moving))
        monkeypatch.setattr(nodes, "renamed", renamed_late)
        with ThreadPoolExecutor(1) as pool:
            moves = pool.submit(operations.rename, ROOT, (ROOT_ID, b"old"), (ROOT_ID, b"new"), 0)
            assert is_moved.wait(PATIENCE_S)
            try:
                assert operations.attributes(number, None).ino == os.stat(source / "new").st_ino
            finally:
                is_waited_for.set()
                moves.result(PATIENCE_S)

    def test_two_names_of_an_open_file_that_the_kernel_takes_for_two_files(self, operations):
        """It would not ask if it knew: nothing happens, and nothing waits for itself."""
        operations, source = operations
        (source / "one").write_bytes(b"1")
        os.link(source / "one", source / "two")
        number, _ = operations.lookup(ROOT_ID, b"one")
        handle, _ = operations.open(ROOT, number, os.O_RDWR)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(operations.rename, ROOT, (ROOT_ID, b"one"), (ROOT_ID, b"two"), 0).result(PATIENCE_S)
        operations.files.release(handle)
        assert sorted(os.listdir(source)) == ["one", "two"]

    def test_forgotten_nodes_are_gone_and_numbers_are_new(self, operations):
        operations, source = operations
        (source / "file").write_bytes(b"")
        number, _ = operations.lookup(ROOT_ID, b"file")
        assert operations.lookup(ROOT_ID, b"file")[0] == number
        operations.forget(number, 1)
        operations.attributes(number, None)
        operations.forget(number, 1)
        assert number_of(operations.attributes, number, None) == errno.ESTALE
        assert operations.lookup(ROOT_ID, b"file")[0] > number
        operations.forget(ROOT_ID, 100)
        operations.attributes(ROOT_ID, None)
