"""New local files and their directories: what makes a name durable, whatever becomes of paths; one object's failure is no
other's."""

import errno
import fcntl
import logging
import os
import pickle
import signal
import stat
import tempfile
import threading

import pytest
from support import NOBODY, PAGE, PATIENCE_S, Crew, nr_descriptors, pages_of, wait_until
from support.write_steps import WritableStore

import pagecache
from pagecache.stores import FileStore
from pagecache.stores import directory as directories

DATA = pages_of(2 * PAGE + 5)


@pytest.fixture
def cache(make_cache):
    return make_cache(256 * PAGE, dirty_limit="75%", dirty_background="70%")


@pytest.fixture
def synced(monkeypatch):
    """Which directories were synced, by device and inode number."""
    found, fsync = [], os.fsync

    def note(fd):
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            found.append((status.st_dev, status.st_ino))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    return found


def identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


class TestDirectory:
    @pytest.mark.parametrize("mode", ["w+b", "x+b", "ab", "a+b"])
    @pytest.mark.parametrize("how", ["renamed", "removed", "moved below", "another of its name", "other working directory"])
    def test_is_synced_whatever_became_of_its_path(self, cache, tmp_path, monkeypatch, synced, mode, how):
        monkeypatch.chdir(tmp_path)
        parent = tmp_path / "parent"
        parent.mkdir()
        known = identity(parent)
        with cache.open("parent/new", mode) as file:
            file.write(DATA)
            if how == "removed":
                (parent / "new").unlink()
                parent.rmdir()
            elif how == "renamed":
                parent.rename(tmp_path / "renamed")
            elif how == "moved below":
                (tmp_path / "deep").mkdir()
                parent.rename(tmp_path / "deep" / "parent")
            else:
                (tmp_path / "elsewhere" / "parent").mkdir(parents=True)
                monkeypatch.chdir(tmp_path / "elsewhere")
                if how == "another of its name":
                    parent.rename(tmp_path / "renamed")
            file.fsync()
            assert synced == [known]
            file.write(DATA)
            file.fsync()
            assert synced == [known], "once is enough"
        cache.sync()

    def test_is_that_of_what_a_symbolic_link_leads_to(self, cache, tmp_path, synced):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to("there/new")
        with cache.open(tmp_path / "link", "w+b") as file:
            file.write(DATA)
            file.fsync()
        assert synced == [identity(tmp_path / "there")]
        assert (tmp_path / "there" / "new").read_bytes() == DATA
        with pytest.raises(FileExistsError) as caught:
            cache.open(tmp_path / "link", "x+b")
        assert caught.value.filename == str(tmp_path / "link")

    def test_links_that_lead_in_a_circle_are_an_error(self, cache, tmp_path):
        (tmp_path / "one").symlink_to("two")
        (tmp_path / "two").symlink_to("one")
        with pytest.raises(OSError) as caught:
            cache.open(tmp_path / "one", "w+b")
        assert caught.value.errno == errno.ELOOP

    @pytest.mark.parametrize("name", ["missing/new", "file/new", "new/", ""])
    def test_a_file_that_cannot_be_made_is_an_error_that_names_it(self, cache, tmp_path, name, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_bytes(b"")
        before = nr_descriptors()
        for mode in ("w+b", "x+b"):
            with pytest.raises(OSError) as caught:
                cache.open(name, mode)
            assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
            assert caught.value.filename == name
        assert nr_descriptors() == before

    def test_new_files_of_one_directory_share_a_descriptor(self, cache, tmp_path):
        before = nr_descriptors()
        files = [cache.open(tmp_path / f"new-{number}", "x+b") for number in range(10)]
        assert nr_descriptors() == before + 11
        for file in files:
            file.fsync()
            file.close()
        assert nr_descriptors() == before
        assert not directories._open

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
    def test_that_cannot_be_listed(self, cache):
        """It cannot be synced by itself, so the whole file system is."""
        with tempfile.TemporaryDirectory() as parent:
            os.chown(parent, NOBODY, NOBODY)
            os.chmod(parent, 0o333)
            os.seteuid(NOBODY)
            try:
                with pytest.raises(PermissionError):
                    os.listdir(parent)
                with cache.open(f"{parent}/new", "x+b") as file:
                    file.write(DATA)
                    file.fsync()
            finally:
                os.seteuid(0)
            with open(f"{parent}/new", "rb") as file:
                assert file.read() == DATA

    def test_a_sync_of_it_that_fails_is_reported_and_tried_again(self, cache, tmp_path, monkeypatch):
        fsync, failing = os.fsync, [True]

        def fail(fd):
            if failing and stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EIO, "bad directory")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", fail)
        with cache.open(tmp_path / "new", "x+b") as file:
            file.write(DATA)
            for _ in range(2):
                with pytest.raises(OSError, match="bad directory") as caught:
                    file.fsync()
                assert caught.value.errno == errno.EIO
            failing.clear()
            file.fsync()

    def test_a_file_system_that_cannot_sync_it_by_itself(self, cache, tmp_path, monkeypatch):
        fsync, synced = os.fsync, []

        def refuse(fd):
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "no such thing")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", refuse)
        monkeypatch.setattr(directories, "sync_file_system", synced.append)
        with cache.open(tmp_path / "new", "x+b") as file:
            file.write(DATA)
            file.fsync()
            assert synced == [file.inode.store.fd]


    def test_can_be_opened_in_a_child_of_a_fork(self, tmp_path):
        """Another thread of the parent may have been about to open one."""
        held, ended = threading.Event(), threading.Event()

        def hold():
            with directories._lock.held():
                held.set()
                ended.wait(PATIENCE_S)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(PATIENCE_S)
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE_S)
            FileStore(tmp_path / "new", "x+b").close()
            os._exit(0)
        ended.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / "new").exists()


class TestPaths:
    def test_a_relative_path_is_that_of_the_working_directory_there_was(self, cache, tmp_path, monkeypatch):
        (tmp_path / "data").write_bytes(DATA)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "data").write_bytes(b"another")
        monkeypatch.chdir(tmp_path)
        with cache.open("data", recheck=True) as file, cache.open("data", on_change="reload") as follows:
            assert file.name == "data"
            monkeypatch.chdir(tmp_path / "elsewhere")
            assert file.pread(10, 0) == DATA[:10]
            again = pickle.loads(pickle.dumps(FileStore(tmp_path / "data")))
            assert again.key == file.inode.store.key
            again.close()
            with pickle.loads(pickle.dumps(file)) as copied:
                assert copied.pread(10, 0) == DATA[:10]
            new = tmp_path / "new"
            new.write_bytes(b"replaced")
            new.rename(tmp_path / "data")
            follows.invalidate()
            assert follows.read() == b"replaced"
            with pytest.raises(OSError, match="another file has this name") as caught:
                file.pread(10, 0)
            assert caught.value.errno == errno.ESTALE

    def test_a_working_directory_that_was_removed(self, cache, tmp_path, monkeypatch):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(FileNotFoundError):
            cache.open("data", "w+b")
        with cache.open(tmp_path / "data", "w+b") as file:
            file.write(DATA)
            file.fsync()


class BadStore(WritableStore):
    """Fails as it is set up: in `writev`, `sync` or `validator`, with any exception."""

    def __init__(self, key, where, error):
        super().__init__(DATA, key=key)
        self.where, self.error, self.is_bad = where, error, False

    def _fail(self, where):
        if self.is_bad and where == self.where:
            raise self.error

    def writev(self, offset, buffers):
        self._fail("writev")
        return super().writev(offset, buffers)

    def sync(self, datasync=False):
        self._fail("sync")
        super().sync(datasync)

    def validator(self):
        self._fail("validator")
        return super().validator()


ERRORS = [OSError(errno.EIO, "bad"), FileNotFoundError(errno.ENOENT, "gone"), RuntimeError("odd")]


@pytest.mark.parametrize("error", ERRORS, ids=["EIO", "ENOENT", "no OSError"])
@pytest.mark.parametrize("where", ["writev", "sync", "validator"])
class TestOneFailureIsNoOthers:
    def test_the_flusher_writes_the_others(self, make_cache, where, error, caplog):
        caplog.set_level(logging.CRITICAL + 1, "pagecache")
        cache = make_cache(64 * PAGE, dirty_expire_s=0.02)
        stores = [BadStore(f"bad-{number}", where, error) for number in range(2)] + [WritableStore(DATA, key="good")]
        files = [cache.open(store, "r+b") for store in stores]
        for file in files:
            file.write(b"new")
        for store in stores[:2]:
            store.is_bad = True
        for file in files:
            file._give_up()  # only the flusher writes it back
        wait_until(lambda: stores[2].nr_closed == 1, "the good one is written, synced and closed")
        assert bytes(stores[2].data[:3]) == b"new"
        for store in stores[:2]:
            store.is_bad = False
        cache.sync()
        assert [bytes(store.data[:3]) for store in stores] == [b"new"] * 3
        assert [store.nr_closed for store in stores] == [1] * 3

    def test_sync_does_the_others_and_tells(self, make_cache, where, error):
        cache = make_cache(64 * PAGE, dirty_limit="90%", dirty_background="90%")
        stores = [BadStore("bad", where, error), WritableStore(DATA, key="good")]
        files = [cache.open(store, "r+b") for store in stores]
        for file in files:
            file.write(b"new")
        stores[0].is_bad = True
        with pytest.raises(Exception, match=str(error.args[-1])):
            cache.sync()
        assert bytes(stores[1].data[:3]) == b"new"
        assert stores[1].names()[-1] == "sync"
        stores[0].is_bad = False
        files[1].close()
        with pytest.raises(OSError):
            files[0].close()  # which did not get the error
        assert bytes(stores[0].data[:3]) == b"new"


def test_stores_that_cannot_be_synced_keep_no_others_open(make_cache, monkeypatch):
    """A thread that closes files faster than they are synced does that itself, the oldest first, past those that fail."""
    cache = make_cache(64 * PAGE, dirty_expire_s=3600)
    cache.flusher.stop()  # no other does it
    cache.flusher._is_stopping = False
    most = 2 * cache.flusher._undurable_max
    bad = [BadStore(f"bad-{number}", "sync", ERRORS[0]) for number in range(3)]
    good = [WritableStore(DATA, key=f"good-{number}") for number in range(most + 20)]
    for store in bad + good:
        with cache.open(store, "r+b") as file:
            file.write(b"new")
            if store in bad:
                store.is_bad = True
    still_open = sum(1 for store in good if not store.nr_closed)
    assert still_open <= most + 1
    for store in bad:
        store.is_bad = False
    cache.sync()
    assert all(store.nr_closed == 1 for store in bad + good)


def test_stores_that_are_given_up_are_all_closed(make_cache):
    class Closing(WritableStore):
        def close(self):
            super().close()
            raise OSError(errno.EIO, "cannot close")

    cache = make_cache(64 * PAGE)
    first, second = WritableStore(DATA), Closing(DATA)
    first.writable = False
    reader = cache.open(first)
    writer = cache.open(second, "r+b")
    writer.close()
    with pytest.raises(OSError, match="cannot close"):
        reader.close()
    assert (first.nr_closed, second.nr_closed) == (1, 1)


def test_many_files_in_directories_that_are_removed_leak_nothing(make_cache, tmp_path):
    before = nr_descriptors()
    cache = pagecache.PageCache(64 * PAGE, dirty_expire_s=0.01)
    for number in range(300):
        parent = tmp_path / str(number)
        parent.mkdir()
        with cache.open(parent / "new", "x+b") as file:
            file.write(DATA)
        (parent / "new").unlink()
        parent.rmdir()
    cache.sync()
    wait_until(lambda: nr_descriptors() <= before + 8, "all stores are closed")
    cache.close()
    assert nr_descriptors() <= before + 8


class TestEndOfDirectFiles:
    """The end of a file that is written past the kernel's page cache is no whole page, and goes through it."""

    @pytest.fixture(autouse=True)
    def direct(self, tmp_path):
        try:
            FileStore(tmp_path / "probe", "w+b", direct=True).close()
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error.strerror}")

    def test_is_written_by_an_ordinary_user_to_a_file_that_may_not_be_opened_again(self, cache):
        """The descriptor may write: it was opened when the file was made, read-only for all."""
        user = os.geteuid()
        with tempfile.TemporaryDirectory() as parent:
            if user == 0:
                os.chown(parent, NOBODY, NOBODY)
                os.seteuid(NOBODY)
            umask = os.umask(0o222)
            try:
                with cache.open(f"{parent}/new", "x+b", direct=True) as file:
                    assert stat.S_IMODE(os.stat(f"{parent}/new").st_mode) == 0o444
                    with pytest.raises(PermissionError):
                        os.open(f"{parent}/new", os.O_RDWR)
                    file.write(DATA)
                    file.fsync()
                    file.pwrite(b"more", len(DATA))
            finally:
                os.umask(umask)
                os.seteuid(user)
            with open(f"{parent}/new", "rb") as file:
                assert file.read() == DATA + b"more"

    def test_is_written_to_the_file_that_is_open_whatever_has_its_name(self, cache, tmp_path):
        with cache.open(tmp_path / "new", "x+b", direct=True) as file:
            (tmp_path / "new").rename(tmp_path / "renamed")
            (tmp_path / "new").write_bytes(b"another")
            file.write(DATA)
            file.fsync()
        assert (tmp_path / "renamed").read_bytes() == DATA
        assert (tmp_path / "new").read_bytes() == b"another"

    def test_leaves_the_descriptor_as_it_was(self, cache, tmp_path):
        for nbytes in (1, PAGE, PAGE + 1, 3 * PAGE - 1):
            with cache.open(tmp_path / str(nbytes), "x+b", direct=True) as file:
                file.write(DATA[:nbytes])
                file.fsync()
                assert fcntl.fcntl(file.inode.store.fd, fcntl.F_GETFL) & os.O_DIRECT
            assert (tmp_path / str(nbytes)).read_bytes() == DATA[:nbytes]

    def test_readers_meanwhile_see_it_right(self, make_cache, tmp_path):
        cache = make_cache(2 * PAGE)
        data = pages_of(16 * PAGE)
        path = tmp_path / "data"
        path.write_bytes(data)
        with cache.open(path, "r+b", direct=True) as file, cache.open(path, direct=True) as reader:

            def write():
                for number in range(60):
                    file.pwrite(bytes([number]) * 100, 16 * PAGE)
                    file.flush()

            def look():
                for number in range(300):
                    page = number % 16
                    assert reader.pread(PAGE, page * PAGE) == data[page * PAGE : page * PAGE + PAGE]

            Crew(write, look, write, look).join_well()
            file.fsync()
        assert (tmp_path / "data").read_bytes() == data + bytes([59]) * 100
