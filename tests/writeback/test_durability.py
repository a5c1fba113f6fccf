"""Durability: what has reached the store when a call returns, how sync is asked for, and files past the system's cache."""

import errno
import os
import resource
import signal

import pytest
from support import PAGE, pages_of, wait_until
from support.write_steps import WritableStore, dirty_pages

import pagecache
from pagecache.stores import FileStore
from pagecache.writeback import flusher

DATA = pages_of(8 * PAGE + 123)


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%")


@pytest.fixture
def store():
    return WritableStore(DATA)


class TestDurability:
    @pytest.mark.parametrize(
        ("durability", "calls"),
        [("write-back", []), ("write-through", ["writev"]), ("dsync", ["writev", True]), ("sync", ["writev", False])],
    )
    def test_what_has_happened_when_a_write_returns(self, cache, store, durability, calls):
        with cache.open(store, "r+b", durability=durability) as file:
            for call in (lambda: file.pwrite(b"n", 2 * PAGE), lambda: file.write(b"n"), lambda: file.writelines([b"n"])):
                del store.calls[:]
                call()
                assert [call[0] if call[0] == "writev" else call[1] for call in store.calls] == calls
            assert dirty_pages(file) == (0 if calls else 2)

    def test_only_what_was_written_through_is_written(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store, "r+b", durability="sync") as through:
            file.pwrite(b"later", 0)
            through.pwrite(b"now", 3 * PAGE)
            assert store.writes() == [(3 * PAGE, PAGE)]
            assert dirty_pages(file) == 1

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (lambda file: file.fsync(), ["writev", False]), (lambda file: file.fdatasync(), ["writev", True]),
            (lambda file: file.flush(), ["writev"]), (lambda file: file.sync_range(0, PAGE), ["writev"]),
            (lambda file: file.sync_range(5 * PAGE, PAGE), []), (lambda file: file.close(), ["writev"]),
            (lambda file: file.sync_range(0, 0, 2), ["writev"]), (lambda file: file.sync_range(0, 0, 5), []),
        ],
        ids=["fsync", "fdatasync", "flush", "range", "other range", "close", "start", "wait"],
    )  # fmt: skip
    def test_what_each_call_does(self, cache, store, call, expected):
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 0)
        call(file)
        assert [done[0] if done[0] == "writev" else done[1] for done in store.calls] == expected
        file.close()

    def test_odd_ranges_and_flags_are_refused(self, cache, store):
        with cache.open(store, "r+b") as file:
            for offset, nbytes in ((-1, 0), (0, -1)):
                with pytest.raises(ValueError, match="negative"):
                    file.sync_range(offset, nbytes)
            with pytest.raises(OSError, match="unknown flags") as caught:
                file.sync_range(0, 0, 8)
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(ValueError, match="unknown durability"):
                cache.open(store, "r+b", durability="never")

    def test_a_new_file_is_synced_with_its_directory_once(self, cache, tmp_path, monkeypatch):
        synced, fsync, fdatasync = [], os.fsync, os.fdatasync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
        monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append("data"), fdatasync(fd)))
        path = tmp_path / "data"
        for mode, expected in (("x+b", [str(path), str(tmp_path)]), ("r+b", [str(path)]), ("w+b", [str(path)])):
            del synced[:]
            with cache.open(path, mode) as file:
                file.write(b"new")
                file.fsync()
                assert synced == expected
                file.fdatasync()
                assert synced == [*expected, "data"]

    def test_a_limit_of_the_file_size_keeps_its_errno(self, tmp_path):
        """The system takes a part and says why only when it is asked again."""
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pagecache.PageCache("1MiB", dirty_limit="90%", dirty_background="90%") as cache:
            file = cache.open(tmp_path / "data", "w+b")
            file.write(pages_of(20 * PAGE))
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10 * PAGE + 100, before[1]))
                with pytest.raises(OSError, match="too large") as caught:
                    file.fsync()
                assert caught.value.errno == errno.EFBIG
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                signal.signal(signal.SIGXFSZ, handler)
            assert 0 < dirty_pages(file) <= 20
            file.fsync()
            assert (tmp_path / "data").read_bytes() == pages_of(20 * PAGE)
            file.close()


class TestSyncOfWhatIsClosed:
    """A closed file is written back, but its store was not asked to make that durable: PageCache.sync does."""

    def test_sync_reaches_the_store_and_closes_it(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
        assert store.names() == ["writev"]
        cache.sync()
        assert store.names() == ["writev", "sync"]
        assert store.nr_closed == 1
        cache.sync()
        assert store.names() == ["writev", "sync"]

    def test_a_file_that_was_synced_is_closed_at_once(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
            file.fsync()
        assert store.nr_closed == 1
        with cache.open(store, "r+b"):
            pass
        assert store.nr_closed == 2

    @pytest.mark.parametrize("call", [lambda file: file.truncate(PAGE), lambda file: file.punch_hole(0, PAGE)])
    def test_a_change_of_size_and_a_hole_count_as_well(self, cache, store, call):
        with cache.open(store, "r+b") as file:
            call(file)
        cache.sync()
        assert store.names()[-1] == "sync"

    def test_the_end_of_the_cache_does_too(self, make_cache, store):
        cache = pagecache.PageCache(64 * PAGE)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
        cache.close()
        assert (store.names(), store.nr_closed) == (["writev", "sync"], 1)

    def test_a_sync_that_fails_is_reported_and_tried_again(self, cache, store):
        def fail(datasync):
            raise OSError(errno.EIO, "bad")

        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
        store.on_sync = fail
        for _ in range(2):
            with pytest.raises(OSError, match="bad"):
                cache.sync()
            assert store.nr_closed == 0
        store.on_sync = lambda datasync: None
        cache.sync()
        assert store.names()[-2:] == ["writev", "sync"]  # what is still cached is written once more before
        assert store.nr_closed == 1

    def test_the_flusher_does_in_the_end(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0.02)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"new", 0)
        wait_until(lambda: store.nr_closed, "the store to be closed")
        assert store.names()[-1] == "sync"

    def test_the_flusher_sleeps_until_then(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
        word = cache.segment.flusher_word
        for _ in range(3):
            file.inode.close_retired()
        assert file.inode.store is not None
        assert cache.segment.flusher_word == word, "looking after a closed file wakes the flusher, which looks after it"

    def test_only_so_many_stores_stay_open(self, make_cache, monkeypatch):
        monkeypatch.setattr(flusher, "UNDURABLE_MAX", 10)
        cache, stores = make_cache(64 * PAGE), [WritableStore(DATA, key=str(n)) for n in range(100)]
        for store in stores:
            with cache.open(store, "r+b") as file:
                file.pwrite(b"new", 0)
            assert sum(1 for store in stores if store.names() and not store.nr_closed) <= 2 * 10 + 1
        cache.sync()
        assert all(store.nr_closed == 1 and "sync" in store.names() for store in stores)

    def test_a_file_that_was_renamed_since(self, cache, tmp_path, monkeypatch):
        synced, fsync = [], os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
        with cache.open(tmp_path / "part", "x+b") as file:
            file.write(b"new")
        os.rename(tmp_path / "part", tmp_path / "whole")
        cache.sync()
        assert synced == [str(tmp_path / "whole"), str(tmp_path)]


class TestDirect:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "data"
        path.write_bytes(DATA)
        try:
            FileStore(path, direct=True).close()
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error}")
        return path

    def test_files_of_any_size_are_written(self, cache, path, rng):
        expected = bytearray(DATA)
        with cache.open(path, "r+b", direct=True) as file:
            for size in (1, 100, PAGE, PAGE + 1, 7 * PAGE + 511, 512, 3 * PAGE):
                offset, data = rng.randrange(len(expected) + PAGE), rng.randbytes(size)
                file.pwrite(data, offset)
                expected[len(expected) :] = bytes(max(0, offset - len(expected)))
                expected[offset : offset + size] = data
                file.fsync()
                assert path.read_bytes() == expected
                cache.drop_caches()
                assert file.pread(len(expected) + 1, 0) == expected
            file.truncate(PAGE + 7)
            file.pwrite(b"end", PAGE + 7)
        assert path.read_bytes() == expected[: PAGE + 7] + b"end"

    def test_the_end_of_a_file_that_was_replaced_is_not_written_elsewhere(self, cache, path):
        with cache.open(path, "r+b", direct=True) as file:
            file.pwrite(b"new", len(DATA) - 3)
            os.replace(path, f"{path}.old")
            path.write_bytes(b"other")
            file.fsync()
            assert path.read_bytes() == b"other"
            assert path.with_name(f"{path.name}.old").read_bytes() == DATA[:-3] + b"new"
            file.truncate(8 * PAGE)
