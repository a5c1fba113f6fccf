"""What distinguishes versions of a local file: times that any program can set do not do; changes of mode, owner and
names are no new version."""

import ctypes
import errno
import os
import random
import shutil
import subprocess
import threading

import pytest
from support import PAGE, Crew, drop_pages, let_time_pass, pages_of
from support.write_steps import dirty_pages

import pagecache
from pagecache import _core
from pagecache.files import object_version
from pagecache.stores import FileStore

NR_PAGES = 16
SIZE = NR_PAGES * PAGE
OLD, NEW = bytes([1]) * SIZE, bytes([2]) * SIZE
RANDOM = pagecache.FADV_RANDOM
WAYS = ["pread", "random", "preadinto", "view", "iter_views", "preadv_many", "map", "prefetch", "whole file"]


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%", dirty_expire_s=3600)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(OLD)
    let_time_pass(path)
    return path


def in_place_with_its_times(path, data=NEW):
    """As `rsync --inplace --times`, or `cp --preserve` onto it: same file, same size, same time of change."""
    status = os.stat(path)
    with open(path, "r+b", buffering=0) as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns


def by_touch(path):
    """As `touch -r`: the time of another file."""
    reference = path.with_name("reference")
    reference.write_bytes(b"")
    status = os.stat(path)
    os.utime(reference, ns=(status.st_atime_ns, status.st_mtime_ns))
    with open(path, "r+b", buffering=0) as file:
        file.write(NEW)
    subprocess.run(["touch", "-r", reference, path], check=True)
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns


def by_another_of_its_name(path):
    """As `rsync --times`: another file gets the name, the size and the time."""
    status = os.stat(path)
    other = path.with_name("other")
    other.write_bytes(NEW)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


def by_cp(path):
    source = path.with_name("source")
    source.write_bytes(NEW)
    status = os.stat(path)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    subprocess.run(["cp", "--preserve=timestamps", source, path], check=True)
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns


REPLACED = [in_place_with_its_times, by_touch, by_cp, by_another_of_its_name]
IN_PLACE = REPLACED[:3]


def chmod(path):
    os.chmod(path, os.stat(path).st_mode ^ 0o020)


def chown(path):
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 1, 1)


def link(path):
    os.link(path, path.with_name("link"))


def rename(path):
    path.rename(path.with_name("renamed"))


def unlink(path):
    path.unlink()


def attribute(path):
    try:
        os.setxattr(path, "user.pagecache", b"value")
    except OSError as error:
        pytest.skip(f"no attributes here: {error.strerror}")


EXPLAINED = [chmod, chown, link, rename, unlink]
HARMLESS = [*EXPLAINED, attribute]


def read(file, way, nbytes, offset):
    if way == "pread":
        return file.pread(nbytes, offset)
    if way == "random":
        file.fadvise(RANDOM)
        return b"".join(file.pread(PAGE // 2, at) for at in range(offset, offset + nbytes, PAGE // 2))
    if way == "preadinto":
        buffer = bytearray(nbytes)
        assert file.preadinto(buffer, offset) == nbytes
        return bytes(buffer)
    if way == "view":
        return bytes(file.view(nbytes, offset))
    if way == "iter_views":
        return b"".join(bytes(view) for view in file.iter_views(nbytes, offset))
    if way == "preadv_many":
        return b"".join(file.preadv_many([(PAGE, at) for at in range(offset, offset + nbytes, PAGE)]))
    if way == "map":
        with file.mmap() as mapped:
            return mapped[offset : offset + nbytes]
    if way == "prefetch":
        file.prefetch(offset, nbytes).wait()
        return file.pread(nbytes, offset)
    file.seek(0)
    return file.read()[offset : offset + nbytes]


def is_stale(call):
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.ESTALE, caught.value


class TestReplaced:
    @pytest.mark.parametrize("replace", REPLACED)
    @pytest.mark.parametrize("recheck", ["open", True])
    def test_is_found_when_it_is_opened(self, cache, path, replace, recheck):
        with cache.open(path) as file:
            assert file.read() == OLD
        replace(path)
        with cache.open(path, recheck=recheck) as file:
            assert file.read() == NEW

    @pytest.mark.parametrize("replace", REPLACED)
    @pytest.mark.parametrize("recheck", ["open", True])
    def test_is_found_when_it_is_opened_beside_others(self, cache, path, replace, recheck):
        with cache.open(path) as old:
            assert old.read() == OLD
            replace(path)
            with cache.open(path, recheck=recheck) as file:
                assert file.read() == NEW
            assert old.pread(SIZE, 0) == OLD, "what is cached may still be had"

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("replace", IN_PLACE)
    def test_old_and_new_bytes_never_meet(self, cache, path, replace, way):
        with cache.open(path) as file:
            file.fadvise(RANDOM)
            assert file.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
            file.fadvise(pagecache.FADV_NORMAL)
            replace(path)
            assert file.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
            if way == "map":
                with pytest.raises(Exception, match="changed while it was cached"):
                    read(file, way, SIZE, 0)
            else:
                is_stale(lambda: read(file, way, SIZE, 0))
            file.invalidate()
            assert read(file, way, SIZE, 0) == NEW

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("replace", IN_PLACE)
    def test_of_which_nothing_is_cached_is_read_as_it_is(self, cache, path, replace, way):
        """No reader has seen the old bytes since; what was seen before has left the cache, and cannot be compared."""
        with cache.open(path) as file:
            assert file.pread(PAGE, 0) == OLD[:PAGE]
            cache.drop_caches()
            replace(path)
            assert read(file, way, SIZE, 0) == NEW

    @pytest.mark.parametrize("replace", IN_PLACE)
    def test_is_read_anew_by_who_asked_for_that(self, cache, path, replace):
        with cache.open(path, on_change="reload") as file, cache.open(path, recheck=True, on_change="reload") as looks:
            for opened in (file, looks):
                opened.fadvise(RANDOM)
                assert opened.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
            replace(path)
            assert looks.pread(SIZE // 2, 0) == NEW[: SIZE // 2]
            assert file.pread(SIZE, 0) == NEW

    @pytest.mark.parametrize("replace", REPLACED)
    def test_is_gone_on_with_by_a_file_that_looks(self, cache, path, replace):
        with cache.open(path, "r+b", recheck=True) as file:
            assert file.pread(SIZE, 0) == OLD
            file.pwrite(b"ours", PAGE)
            replace(path)
            is_stale(lambda: file.pread(SIZE, 0))
            file.invalidate(discard=True)
            assert file.pread(SIZE, 0) == NEW
            assert cache.stats().nr_dirty == 0

    @pytest.mark.parametrize("replace", IN_PLACE)
    @pytest.mark.parametrize("dirty", ["before", "after"])
    def test_is_not_written_over(self, cache, path, replace, dirty):
        with cache.open(path, "r+b") as file, file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
            assert file.read() == OLD
            if dirty == "before":
                file.pwrite(b"ours", PAGE)
            replace(path)
            if dirty == "after":
                is_stale(lambda: file.pwrite(b"ours", PAGE))
                mapped[PAGE : PAGE + 4] = b"ours"
                is_stale(mapped.flush)
            for call in (file.fsync, file.flush, lambda: file.truncate(PAGE), cache.sync):
                is_stale(call)
                assert path.read_bytes() == NEW
            file.invalidate(discard=True)
            assert file.pread(SIZE, 0) == NEW

    def test_by_one_that_has_its_inode_number_too(self, cache, path):
        """The number of a file that is gone is given to the next one."""
        status = os.stat(path)
        with cache.open(path) as file:
            assert file.read() == OLD
        for number in range(200):
            path.unlink()
            path.write_bytes(NEW)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            if os.stat(path).st_ino == status.st_ino:
                break
            path.rename(path.with_name(f"kept-{number}"))
            path.write_bytes(OLD)
        else:
            pytest.skip("inode numbers do not come back here")
        with cache.open(path) as file:
            assert file.read() == NEW


class TestAttributes:
    """ctime moves, the bytes stay."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("change", HARMLESS)
    def test_may_change_below_readers(self, cache, path, change, way):
        with cache.open(path) as file:
            file.fadvise(RANDOM)
            assert file.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
            file.fadvise(pagecache.FADV_NORMAL)
            change(path)
            reads = cache.stats().store_read_bytes
            assert read(file, way, SIZE, 0) == OLD
            assert cache.stats().store_read_bytes - reads <= 3 * SIZE // 2
            assert drop_pages(cache, NR_PAGES) == NR_PAGES

    @pytest.mark.parametrize("change", HARMLESS)
    def test_keep_what_is_cached(self, cache, path, change):
        with cache.open(path) as file:
            file.fadvise(RANDOM)
            assert file.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
            change(path)
            assert file.pread(PAGE, SIZE - PAGE) == OLD[:PAGE]
            assert sum(file.mincore()) == NR_PAGES // 2 + 1

    @pytest.mark.parametrize("change", HARMLESS)
    def test_are_looked_at_again_and_again(self, cache, path, change):
        with cache.open(path, recheck=True) as file:
            change(path)
            if change in (rename, unlink):
                with pytest.raises(FileNotFoundError):
                    file.pread(PAGE, 0)
                return
            assert file.pread(SIZE, 0) == OLD
            os.chmod(path, 0o600)
            assert file.pread(SIZE, 0) == OLD
            with cache.open(path) as again:
                os.chmod(path, 0o644)
                assert again.inode is file.inode
                assert again.pread(SIZE, 0) == OLD

    @pytest.mark.parametrize("change", HARMLESS)
    @pytest.mark.parametrize("durability", ["write-back", "write-through"])
    def test_may_change_below_writers(self, cache, path, change, durability):
        with cache.open(path, "r+b", durability=durability) as file:
            for number in range(3):
                file.pwrite(b"ours", number * PAGE + 10)
                if number == 1:
                    if durability == "write-back" and change is attribute:
                        file.fsync()
                    change(path)
            file.pwrite(b"more", 3)
            file.fsync()
            file.pwrite(b"end", SIZE)
            file.truncate(SIZE + 1)
            file.punch_hole(4 * PAGE, PAGE)
            file.fsync()
            data = os.pread(file.inode.store.fd, 2 * SIZE, 0)
        assert data[:20] == b"\1\1\1more\1\1\1ours" + b"\1" * 6
        assert data[PAGE + 10 : PAGE + 14] == data[2 * PAGE + 10 : 2 * PAGE + 14] == b"ours"
        assert data[4 * PAGE : 5 * PAGE] == bytes(PAGE)
        assert data[SIZE:] == b"e"

    @pytest.mark.parametrize("change", EXPLAINED)
    def test_do_not_part_who_opens_from_who_writes(self, cache, path, change):
        """Both have to see what is not written yet."""
        with cache.open(path, "r+b") as file:
            file.pwrite(b"ours", PAGE)
            change(path)
            name = path.with_name("renamed") if change is rename else path
            if change is unlink:
                name = f"/proc/self/fd/{file.inode.store.fd}"
            with cache.open(name) as again:
                assert again.inode is file.inode
                assert again.pread(4, PAGE) == b"ours"

    def test_that_nothing_explains_is_no_licence_to_write(self, cache, path):
        """The bytes that ours would replace cannot be compared: they may be others'."""
        with cache.open(path, "r+b") as file:
            file.pwrite(b"ours", 10)
            attribute(path)
            is_stale(file.fsync)
            assert path.read_bytes() == OLD
            chmod(path)
            file.fsync()
            assert path.read_bytes() == OLD[:10] + b"ours" + OLD[14:]

    def test_a_new_file_by_another_name(self, cache, tmp_path):
        """How files are replaced in one step, with what is written and not yet in the file."""
        with cache.open(tmp_path / "data.tmp", "w+b") as file:
            file.write(NEW)
            (tmp_path / "data.tmp").rename(tmp_path / "data")
            file.write(NEW)
            file.fsync()
        assert (tmp_path / "data").read_bytes() == NEW + NEW

    def test_a_log_that_is_moved_away(self, cache, tmp_path):
        log = tmp_path / "log"
        with cache.open(log, "ab") as file:
            file.write(b"one ")
            log.rename(tmp_path / "log.1")
            log.write_bytes(b"another")
            file.write(b"two")
        assert (tmp_path / "log.1").read_bytes() == b"one two"
        assert log.read_bytes() == b"another"

    def test_a_log_that_is_emptied(self, cache, tmp_path):
        log = tmp_path / "log"
        with cache.open(log, "ab", durability="write-through") as file:
            file.write(b"one ")
            shutil.copy(log, tmp_path / "log.1")
            os.truncate(log, 0)
            file.write(b"two")
        assert log.read_bytes() == b"two"

    @pytest.mark.parametrize("direct", [False, True])
    @pytest.mark.parametrize("change", [chmod, in_place_with_its_times])
    def test_too_much_to_compare_is_read_again(self, cache, path, monkeypatch, change, direct):
        monkeypatch.setattr(object_version, "COMPARED_PAGES_MAX", 3)
        try:
            file = cache.open(path, direct=direct)
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error.strerror}")
        with file:
            file.fadvise(RANDOM)
            with file.view(10, 0) as view:
                assert file.pread(SIZE // 2, 0) == OLD[: SIZE // 2]
                change(path)
                assert file.pread(SIZE, 0) == (OLD if change is chmod else NEW)
                assert view == OLD[:10]
            assert file.pread(SIZE, 0) == (OLD if change is chmod else NEW)

    def test_a_file_that_cannot_be_compared_is_an_error(self, cache, path, monkeypatch):
        class Failing:
            def __call__(self, mapping):
                raise OSError(errno.EIO, "cannot read")

        with cache.open(path) as file:
            file.fadvise(RANDOM)
            assert file.pread(PAGE, 0) == OLD[:PAGE]
            chmod(path)
            with monkeypatch.context() as patch:
                patch.setattr(object_version, "agrees_with_file", Failing())
                with pytest.raises(OSError, match="cannot read") as caught:
                    file.pread(PAGE, SIZE - PAGE)
                assert caught.value.errno == errno.EIO
            assert file.pread(PAGE, SIZE - PAGE) == OLD[:PAGE]

    def test_may_change_all_the_time(self, make_cache, tmp_path, seed):
        """Readers, a writer and a thread that changes the mode: reads are right, and nothing is refused."""
        path = tmp_path / "data"
        data = pages_of(SIZE)
        path.write_bytes(data)
        cache = make_cache(6 * PAGE, dirty_limit=3 * PAGE, dirty_background=PAGE)
        turns = threading.Semaphore(0)
        with cache.open(path, "r+b") as file, cache.open(path) as reader:

            def change():
                for mode in range(1, 0o200):  # none of them twice: what is changed back to what it was explains nothing
                    turns.acquire()
                    os.chmod(path, 0o600 | mode)

            def write():
                rng = random.Random(seed)
                for _ in range(150):
                    turns.release()
                    page = rng.randrange(NR_PAGES)
                    file.pwrite(data[page * PAGE : page * PAGE + 100], page * PAGE)
                    if rng.random() < 0.2:
                        file.fsync()

            def look():
                rng = random.Random(seed + 1)
                for _ in range(300):
                    at, nbytes = rng.randrange(SIZE), rng.randrange(4 * PAGE)
                    assert reader.pread(nbytes, at) == data[at : at + nbytes]

            Crew(write, look, look, change).join_well()
            file.fsync()
        assert path.read_bytes() == data


class TestStamp:
    def test_python_and_the_engine_agree(self, cache, path):
        with cache.open(path) as file:
            status = os.stat(path)
            mapping = file.inode.mapping
            expected = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            assert mapping.stamp == file.inode.store.stamp() == expected
            assert mapping.validator == file.inode.store.validator()
            assert mapping.stamp_state() == _core.STAMP_SAME
            chmod(path)
            assert mapping.stamp_state() == _core.STAMP_DOUBTFUL
            assert file.inode.store.validator() != mapping.validator
            path.write_bytes(NEW)
            assert mapping.stamp_state() == _core.STAMP_OTHER

    def test_every_change_makes_another_validator(self, path):
        store = FileStore(path)
        seen = {store.validator()}
        for change in (chmod, link, in_place_with_its_times, rename):
            let_time_pass(path)
            change(path)
            assert store.validator() not in seen
            seen.add(store.validator())
        store.close()

    def test_what_the_kernel_does_not_tell(self, path):
        """Were there a number that every change moves, it would be the better validator."""
        change_cookie, buffer = 0x40000000, ctypes.create_string_buffer(256)
        statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
        if statx is None or statx(-100, os.fsencode(path), 0, change_cookie | 0x7FF, buffer):
            pytest.skip("no statx here")
        assert not int.from_bytes(buffer.raw[:4], "little") & change_cookie


def test_dirty_pages_of_a_file_that_is_gone(cache, path):
    with cache.open(path, "r+b") as file:
        file.pwrite(b"ours", 0)
        path.unlink()
        file.fsync()
        assert dirty_pages(file) == 0
        assert os.pread(file.inode.store.fd, 4, 0) == b"ours"
