"""Others who use a mount: with whose rights what is done, where a name may lead, access control lists, umask."""

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from support.fuse_mount import NOBODY, Mount, needs_fuse
from support.fuse_users import ACL_ACCESS, ACL_DEFAULT, acl, as_user, needs_acl, needs_root, number_of

from pagecache.adapters.fuse import credentials
from pagecache.adapters.fuse.credentials import Caller
from pagecache.adapters.fuse.directory import DirectoryOperations
from pagecache.adapters.fuse.protocol import ROOT_ID, Changes

pytestmark = [needs_root, needs_fuse()]
OTHER = 12345
GROUP = 23456
ALL = Path(tempfile.gettempdir())


@pytest.fixture(scope="module")
def shared():
    """A mount by root for all users, whose source others reach too."""
    base = Path(tempfile.mkdtemp(prefix="pagecache-source-"))
    base.chmod(0o755)
    source = base / "source"
    source.mkdir(mode=0o755)
    with Mount(source, "--allow-other", "--size", "4MiB") as mount:
        mount.path.parent.chmod(0o755)
        yield mount
    shutil.rmtree(base)


@pytest.fixture
def here(shared, request):
    """A new directory of the mount where all users may write, and the same one of the source."""
    name = f"at-{abs(hash(request.node.nodeid)):x}"
    (shared.source / name).mkdir()
    (shared.source / name).chmod(0o777)
    return shared.path / name, shared.source / name


@pytest.fixture
def operations(make_cache):
    """Operations that serve others, called without the kernel, which would not let most of this through; and the source."""
    with tempfile.TemporaryDirectory(prefix="pagecache-source-") as name:
        os.chmod(name, 0o755)
        operations = DirectoryOperations(make_cache("1MiB"), name, serves_others=True)
        yield operations, Path(name)
        operations.finish()


class TestWays:
    """A user who may write in the source replaces what a name leads to, while the kernel still knows what it was."""

    @pytest.fixture
    def theirs(self, here, tmp_path):
        """A directory of nobody's, opened through the mount; and one outside of the source, where only root may write."""
        path, source = here
        outside = Path(tempfile.mkdtemp(prefix="pagecache-outside-"))
        (outside / "kept").write_text("kept")
        (outside / "kept").chmod(0o600)
        as_user(lambda: os.mkdir(source / "theirs"))
        yield path / "theirs", source / "theirs", outside
        assert sorted(os.listdir(outside)) == ["kept"]
        assert (outside / "kept").read_text() == "kept"
        assert stat.S_IMODE((outside / "kept").stat().st_mode) == 0o600
        shutil.rmtree(outside)

    @staticmethod
    def swapped(path, source, target):
        """Open a directory of the mount, have a link to another one in its place, and return what was opened."""
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        os.rename(source, f"{source}-away")
        os.symlink(target, source)
        return fd

    @pytest.mark.parametrize("who", ["nobody", "root"])
    def test_nothing_is_made_changed_or_removed_elsewhere(self, theirs, who):
        path, source, outside = theirs

        def attempt():
            fd = self.swapped(path, source, outside)
            numbers = {
                "make": number_of(lambda: os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd))),
                "mkdir": number_of(os.mkdir, "directory", dir_fd=fd),
                "mknod": number_of(os.mknod, "fifo", stat.S_IFIFO | 0o600, dir_fd=fd),
                "symlink": number_of(os.symlink, "kept", "link", dir_fd=fd),
                "unlink": number_of(os.unlink, "kept", dir_fd=fd),
                "rename": number_of(os.rename, "kept", "renamed", src_dir_fd=fd, dst_dir_fd=fd),
                "read": number_of(lambda: os.close(os.open("kept", os.O_RDONLY, dir_fd=fd))),
                "chmod": number_of(os.chmod, "kept", 0o666, dir_fd=fd),
                "list": number_of(os.listdir, f"/proc/self/fd/{fd}"),
                "stat": number_of(os.stat, "kept", dir_fd=fd),
            }
            os.close(fd)
            return numbers

        numbers = as_user(attempt) if who == "nobody" else attempt()
        assert set(numbers.values()) <= {errno.ESTALE, errno.ENOENT}, numbers
        os.unlink(source)
        os.rename(f"{source}-away", source)

    def test_a_directory_of_roots_in_the_place_of_theirs(self, here):
        """No user may write in it, nor by the name of one where he may."""
        path, source = here
        (source / "roots").mkdir(mode=0o700)
        as_user(lambda: os.mkdir(source / "theirs"))

        fd = os.open(path / "theirs", os.O_PATH | os.O_DIRECTORY)
        os.rename(source / "theirs", source / "away")
        os.rename(source / "roots", source / "theirs")
        make = number_of(as_user, lambda: os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd)))
        os.close(fd)
        assert make == errno.ESTALE
        assert os.listdir(source / "theirs") == []

    def test_a_link_to_elsewhere_is_followed_by_the_kernel_in_the_callers_own_tree(self, here, theirs):
        path, source = here
        _, _, outside = theirs
        as_user(lambda: os.symlink(outside / "kept", source / "link"))
        assert number_of(as_user, lambda: os.close(os.open(path / "link", os.O_RDONLY))) == errno.EACCES
        assert os.readlink(path / "link") == str(outside / "kept")
        assert (path / "link").read_text() == "kept"  # root may


class TestRights:
    """What the kernel would have refused, had it known the source's present attributes."""

    @pytest.fixture
    def roots(self, operations):
        """Root's file and directory, which no other user may read or write, by their numbers."""
        operations, source = operations
        (source / "file").write_bytes(b"secret")
        (source / "file").chmod(0o600)
        (source / "sub").mkdir(mode=0o700)
        (source / "sub/inner").write_bytes(b"inner")
        numbers = [operations.lookup(ROOT_ID, name)[0] for name in (b"file", b"sub")]
        return operations, source, *numbers

    def test_nothing_of_roots_is_opened_or_changed_for_nobody(self, roots):
        operations, source, file, sub = roots
        before = [(path, path.lstat()) for path in (source, *source.rglob("*"))]
        nobody = Caller(NOBODY, NOBODY, 0)
        refused = {
            "read": (operations.open, file, os.O_RDONLY),
            "write": (operations.open, file, os.O_WRONLY),
            "append": (operations.open, file, os.O_WRONLY | os.O_APPEND),
            "empty": (operations.open, file, os.O_RDONLY | os.O_TRUNC),
            "truncate": (operations.change, file, Changes(size=1)),
            "chmod": (operations.change, file, Changes(mode=0o666)),
            "chown": (operations.change, file, Changes(uid=NOBODY)),
            "times": (operations.change, file, Changes(mtime_ns=1)),
            "touch": (operations.change, file, Changes(is_atime_now=True, is_mtime_now=True)),
            "setxattr": (operations.setxattr, file, b"user.a", b"1", 0),
            "getxattr": (operations.getxattr, file, b"user.a"),
            "removexattr": (operations.removexattr, file, b"user.a"),
            "list": (operations.opendir, sub),
            "create": (operations.create, sub, b"made", os.O_WRONLY, 0o666),
            "tmpfile": (operations.tmpfile, sub, os.O_RDWR, 0o666),
            "mkdir": (operations.mkdir, sub, b"made", 0o777),
            "mknod": (operations.mknod, ROOT_ID, b"made", stat.S_IFREG | 0o666, 0),
            "symlink": (operations.symlink, ROOT_ID, b"made", b"file"),
            "link": (operations.link, file, ROOT_ID, b"made"),
            "unlink": (operations.unlink, ROOT_ID, b"file"),
            "rmdir": (operations.rmdir, ROOT_ID, b"sub"),
            "rename": (operations.rename, (ROOT_ID, b"file"), (ROOT_ID, b"renamed"), 0),
        }
        for name, (call, *args) in refused.items():
            assert number_of(call, nobody, *args) in (errno.EACCES, errno.EPERM), name
        after = [(path, path.lstat()) for path in (source, *source.rglob("*"))]
        assert [(path, status[:-3]) for path, status in after] == [(path, status[:-3]) for path, status in before]

    def test_this_thread_has_its_own_rights_again(self, roots):
        operations, _, file, _ = roots
        number_of(operations.open, Caller(NOBODY, NOBODY, 0), file, os.O_RDONLY)
        with open("/proc/thread-self/status") as status:
            lines = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert set(lines["Uid"].split()) == {"0"}
        assert set(lines["Gid"].split()) == {str(os.getegid())}
        assert sorted(map(int, lines["Groups"].split())) == sorted(os.getgroups())
        handle, _ = operations.open(Caller(0, 0, 0), file, os.O_RDONLY)
        operations.files.release(handle)

    def test_what_may_be_written_and_not_read(self, operations):
        """It is opened for both, as a page that is written in part is read first; by root, once the right is proved."""
        operations, source = operations
        (source / "file").write_bytes(b"x" * 5000)
        (source / "file").chmod(0o602)
        number, _ = operations.lookup(ROOT_ID, b"file")
        nobody = Caller(NOBODY, NOBODY, 0)
        assert number_of(operations.open, nobody, number, os.O_RDWR) == errno.EACCES
        handle, _ = operations.open(nobody, number, os.O_WRONLY)
        operations.files.write(handle, b"yy", 4095)
        operations.files.flush(handle)
        operations.files.release(handle)
        assert (source / "file").read_bytes() == b"x" * 4095 + b"yy" + b"x" * 903

    def test_what_they_make_is_theirs(self, here):
        path, source = here

        def make():
            os.chdir(path)
            with open("file", "w") as file:
                file.write("x")
            os.mkdir("directory")
            os.symlink("file", "link")
            os.mkfifo("fifo")
            os.link("file", "hard")

        as_user(make)
        for name in ("file", "directory", "link", "fifo", "hard"):
            status = os.lstat(source / name)
            assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), name

    def test_group_of_a_directory_that_gives_its_own(self, here):
        path, source = here
        os.chown(source, 0, GROUP)
        source.chmod(0o2777)
        as_user(lambda: (path / "sub").mkdir())
        status = (source / "sub").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, GROUP, 0o2755)

    def test_other_groups_count(self, here):
        path, source = here
        (source / "file").write_bytes(b"x")
        os.chown(source / "file", 0, GROUP)
        (source / "file").chmod(0o660)
        assert number_of(as_user, (path / "file").read_bytes) == errno.EACCES
        assert as_user((path / "file").read_bytes, groups=[OTHER, GROUP]) == b"x"

        def hand_over():
            (path / "own").write_bytes(b"x")
            os.chown(path / "own", -1, GROUP)
            os.chmod(path / "own", 0o2755)

        as_user(hand_over, groups=[GROUP])
        status = (source / "own").stat()
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (GROUP, 0o2755)
        assert number_of(as_user, lambda: os.chown(path / "own", -1, OTHER), groups=[GROUP]) == errno.EPERM

    def test_a_sticky_directory(self, here):
        path, source = here
        source.chmod(0o1777)
        as_user((path / "file").touch, uid=OTHER)
        assert number_of(as_user, lambda: os.unlink(path / "file")) in (errno.EPERM, errno.EACCES)
        assert number_of(as_user, lambda: os.rename(path / "file", path / "new")) in (errno.EPERM, errno.EACCES)
        as_user(lambda: os.unlink(path / "file"), uid=OTHER)

    def test_a_program_in_a_directory_whose_parents_are_closed_to_it(self, here):
        path, source = here
        (source / "closed/open").mkdir(parents=True)
        (source / "closed/open").chmod(0o777)
        fd = os.open(path / "closed/open", os.O_RDONLY | os.O_DIRECTORY)
        (source / "closed").chmod(0o700)

        def work():
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.rename("file", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
            return os.listdir(fd)

        assert as_user(work) == ["renamed"]
        os.close(fd)

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
    def test_umask_is_the_callers(self, here, umask):
        path, source = here

        def make():
            os.close(os.open(path / "file", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(path / "directory", 0o777)
            os.mkfifo(path / "fifo", 0o666)

        as_user(make, umask=umask)
        modes = [stat.S_IMODE((source / name).stat().st_mode) for name in ("file", "directory", "fifo")]
        assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]

    def test_a_process_that_cannot_take_others_rights_does_not_serve_them(self, make_cache, tmp_path, monkeypatch):
        def refuse(uid, gid):
            raise OSError(errno.EPERM, "no")

        monkeypatch.setattr(credentials, "_set_ids", refuse)
        with pytest.raises(OSError, match="others cannot be served with their own rights") as caught:
            DirectoryOperations(make_cache("1MiB"), str(tmp_path), serves_others=True)
        assert caught.value.errno == errno.EPERM
        DirectoryOperations(make_cache("1MiB"), str(tmp_path)).finish()


class TestAccessControlLists:
    @pytest.fixture(autouse=True)
    def _needs_acl(self, here):
        needs_acl(here[1])

    def test_a_user_who_is_shut_out(self, here):
        path, source = here
        (source / "file").write_bytes(b"x")
        os.setxattr(source / "file", ACL_ACCESS, acl(6, 4, 4, users=[(NOBODY, 0)], mask=4))
        assert stat.S_IMODE((source / "file").stat().st_mode) == 0o644
        assert number_of(as_user, (path / "file").read_bytes) == errno.EACCES
        assert as_user((path / "file").read_bytes, uid=OTHER) == b"x"

    def test_a_user_who_is_let_in(self, here):
        path, source = here
        (source / "file").write_bytes(b"x")
        os.setxattr(source / "file", ACL_ACCESS, acl(6, 0, 0, users=[(NOBODY, 6)]))

        def append():
            with open(path / "file", "ab") as file:
                file.write(b"y")

        as_user(append)
        assert (source / "file").read_bytes() == b"xy"
        assert number_of(as_user, append, uid=OTHER) == errno.EACCES

    def test_a_directory_that_may_not_be_gone_through(self, here):
        path, source = here
        (source / "sub").mkdir()
        (source / "sub/file").write_bytes(b"x")
        os.setxattr(source / "sub", ACL_ACCESS, acl(7, 5, 5, users=[(NOBODY, 0)]))
        assert (path / "sub/file").read_bytes() == b"x"  # the kernel knows the names now
        assert number_of(as_user, (path / "sub/file").read_bytes) == errno.EACCES
        assert number_of(as_user, os.listdir, path / "sub") == errno.EACCES
        assert as_user((path / "sub/file").read_bytes, uid=OTHER) == b"x"

    def test_one_that_is_set_through_the_mount_counts_at_once(self, here):
        path, source = here
        (path / "file").write_bytes(b"x")
        os.chmod(path / "file", 0o600)
        assert number_of(as_user, (path / "file").read_bytes) == errno.EACCES
        os.setxattr(path / "file", ACL_ACCESS, acl(6, 0, 0, users=[(NOBODY, 4)], mask=4))
        assert stat.S_IMODE((path / "file").stat().st_mode) == 0o640  # its mask is shown as the group's bits
        assert as_user((path / "file").read_bytes) == b"x"
        assert os.getxattr(path / "file", ACL_ACCESS) == os.getxattr(source / "file", ACL_ACCESS)
        os.removexattr(path / "file", ACL_ACCESS)
        assert number_of(as_user, (path / "file").read_bytes) == errno.EACCES

    @pytest.mark.parametrize("name", [ACL_ACCESS, ACL_DEFAULT])
    def test_the_kernel_learns_that_the_mode_has_changed(self, operations, name):
        """One that does not know of lists itself takes the attribute for any other."""
        operations, source = operations
        (source / "sub").mkdir()
        seen = []
        operations.invalidate = seen.append
        number, _ = operations.lookup(ROOT_ID, b"sub")
        operations.setxattr(Caller(0, 0, 0), number, os.fsencode(name), acl(7, 0, 0, users=[(NOBODY, 4)]), 0)
        operations.removexattr(Caller(0, 0, 0), number, os.fsencode(name))
        operations.setxattr(Caller(0, 0, 0), number, b"user.a", b"", 0)
        assert seen == [number, number]

    def test_chmod_changes_the_mask(self, here):
        path, _ = here
        (path / "file").write_bytes(b"x")
        os.setxattr(path / "file", ACL_ACCESS, acl(6, 0, 0, users=[(NOBODY, 6)]))
        assert as_user((path / "file").read_bytes) == b"x"
        os.chmod(path / "file", 0o600)
        assert number_of(as_user, (path / "file").read_bytes) == errno.EACCES

    def test_a_default_takes_the_place_of_the_umask(self, here):
        path, source = here
        os.setxattr(path, ACL_DEFAULT, acl(7, 7, 0, users=[(OTHER, 7)]))

        def make():
            os.close(os.open(path / "file", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(path / "directory", 0o777)

        as_user(make, umask=0o077)
        assert stat.S_IMODE((source / "file").stat().st_mode) == 0o660
        assert stat.S_IMODE((source / "directory").stat().st_mode) == 0o770
        assert os.getxattr(source / "directory", ACL_DEFAULT) == os.getxattr(source, ACL_DEFAULT)

        def write():
            with open(path / "file", "ab") as file:
                file.write(b"x")

        as_user(write, uid=OTHER)
        assert (source / "file").read_bytes() == b"x"

    def test_a_source_without_any_is_as_before(self, here, monkeypatch):
        """The kernel asks for a list before it lets a user in by the group's bits: none is an answer."""
        path, source = here
        (source / "file").write_bytes(b"x")
        os.chown(source / "file", 0, GROUP)
        (source / "file").chmod(0o640)
        assert as_user((path / "file").read_bytes, groups=[GROUP]) == b"x"
        assert number_of(os.getxattr, path / "file", ACL_ACCESS) == errno.ENODATA


class TestMountOfAUser:
    """A user who is not root mounts by fusermount3, and all is done with that user's rights."""

    @pytest.fixture
    def theirs(self):
        """A mount of nobody's, and its source."""
        with tempfile.TemporaryDirectory(prefix="pagecache-source-") as name:
            os.chown(name, NOBODY, NOBODY)
            with Mount(Path(name), "--size", "4MiB", uid=NOBODY) as mount:
                yield mount

    def test_they_use_it_and_root_does_not(self, theirs):
        assert number_of(os.listdir, theirs.path) == errno.EACCES

        def use():
            (theirs.path / "sub").mkdir()
            (theirs.path / "sub/file").write_bytes(b"x" * 10_000)
            os.rename(theirs.path / "sub/file", theirs.path / "file")
            return (theirs.path / "file").read_bytes()

        assert as_user(use) == (theirs.source / "file").read_bytes() == b"x" * 10_000
        assert (theirs.source / "file").stat().st_uid == NOBODY

    def test_a_file_that_may_be_read_only_is_made_and_written(self, theirs):
        """As git makes its objects."""

        def make():
            fd = os.open(theirs.path / "object", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
            os.write(fd, b"x" * 5001)
            os.fsync(fd)
            os.write(fd, b"y")
            os.close(fd)

        as_user(make)
        assert (theirs.source / "object").read_bytes() == b"x" * 5001 + b"y"
        assert stat.S_IMODE((theirs.source / "object").stat().st_mode) == 0o444

    def test_a_file_of_another_who_lets_them_write(self, theirs):
        """Its times are not theirs to set: fsync and close report what became of the bytes."""
        path = theirs.source / "file"
        path.write_bytes(b"old")
        os.chown(path, 0, NOBODY)
        path.chmod(0o664)
        os.utime(path, ns=(1, 1))

        def write():
            fd = os.open(theirs.path / "file", os.O_RDWR)
            os.pwrite(fd, b"new", 0)
            os.fsync(fd)
            os.pwrite(fd, b"er", 3)
            os.close(fd)
            os.utime(theirs.path / "file")
            return number_of(os.utime, theirs.path / "file", ns=(1, 1))

        assert as_user(write) == errno.EPERM
        assert path.read_bytes() == b"newer"
        assert path.stat().st_mtime_ns > 1


class TestDirectMountOfAUser:
    def test_a_file_that_may_be_read_only_is_made_and_written_to_its_end(self):
        """The end of a file is no whole page, so O_DIRECT cannot write it: the descriptor that is open does, not a name."""
        with tempfile.TemporaryDirectory(prefix="pagecache-source-", dir=ALL) as name:
            os.chown(name, NOBODY, NOBODY)
            try:
                os.close(os.open(f"{name}/probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
            except OSError as error:
                pytest.skip(f"no direct access here: {error}")
            with Mount(Path(name), "--direct", "--size", "4MiB", uid=NOBODY) as mount:

                def make():
                    fd = os.open(mount.path / "object", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
                    for piece in (b"x" * 4096, b"y" * 100, b"z" * 5000):
                        os.write(fd, piece)
                        os.fsync(fd)
                    os.close(fd)

                as_user(make)
                expected = b"x" * 4096 + b"y" * 100 + b"z" * 5000
                assert (mount.source / "object").read_bytes() == expected
                assert as_user((mount.path / "object").read_bytes) == expected
