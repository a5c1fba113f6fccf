"""Nothing is written over what others have changed: the error is ESTALE, and the store keeps its bytes."""

import errno
import logging
import mmap
import os

import pytest
from support import PAGE, wait_until
from support.shared_objects import CHANGES, DATA, KINDS, SIZE, Shared, appended, is_stale, made, overwritten
from support.write_steps import WritableStore, dirty_pages

import pagecache


@pytest.fixture(params=KINDS)
def shared(request, tmp_path):
    return made(request.param, tmp_path)


@pytest.fixture
def cache(make_cache):
    return make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%", dirty_expire_s=3600)


class TestWriteBack:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("where", [0, 2 * PAGE + 10, SIZE - 5, SIZE, SIZE + 3 * PAGE], ids="at {}".format)
    def test_leaves_alone_what_others_have_changed(self, cache, shared, change, where):
        with shared.open(cache) as file:
            file.pwrite(b"ours", where)
            shared.data = theirs = change(DATA)
            for call in (file.flush, file.fsync, file.fdatasync, lambda: file.sync_range(0), cache.sync, file.fsync):
                error = is_stale(call)
                assert "others have changed it" in str(error)
                assert "invalidate(discard=True)" in str(error)
                assert shared.data == theirs
            assert dirty_pages(file) >= 1
            assert file.pread(4, where) == b"ours", "it is still here"
            is_stale(file.close)
        assert shared.data == theirs

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("durability", ["write-through", "dsync", "sync"])
    def test_at_once(self, cache, shared, change, durability):
        with shared.open(cache, durability=durability) as file:
            file.pwrite(b"ours", 0)
            assert shared.data[:4] == b"ours"
            shared.data = theirs = change(DATA)
            is_stale(lambda: file.pwrite(b"more", 0))
            assert shared.data == theirs
            file.invalidate(discard=True)
            file.pwrite(b"more", 0)
            assert shared.data == b"more" + theirs[4:]

    def test_of_a_map(self, cache, shared):
        with shared.open(cache) as file, file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
            mapped[0:4] = b"ours"
            shared.data = theirs = appended(DATA)
            is_stale(mapped.flush)
            assert shared.data == theirs
            file.invalidate(discard=True)
            assert mapped[0:4] == DATA[:4]
            mapped[0:4] = b"ours"
            mapped.flush()
        assert shared.data == b"ours" + theirs[4:]

    def test_of_a_page_that_was_written_whole(self, cache, shared):
        """Without reading it: what others have put there would be lost all the same."""
        with shared.open(cache) as file:
            file.pwrite(bytes(PAGE), 3 * PAGE)
            shared.data = theirs = overwritten(DATA)
            is_stale(file.fsync)
            assert shared.data == theirs
            file.invalidate(discard=True)

    def test_at_the_limit_of_dirty_pages(self, make_cache, shared):
        cache = make_cache(16 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        with shared.open(cache) as file:
            file.pread(SIZE, 0)
            shared.data = theirs = appended(DATA)

            def write():
                for page in range(8):
                    file.pwrite(b"ours", page * PAGE)

            is_stale(write)
            assert shared.data == theirs
            file.invalidate(discard=True)
            assert file.read() == theirs

    def test_by_the_flusher_which_goes_on_with_others(self, make_cache, shared, tmp_path):
        cache = make_cache(64 * PAGE, dirty_expire_s=0.02)
        with shared.open(cache) as file, cache.open(tmp_path / "other", "w+b") as other:
            with cache.flusher.at_rest():
                file.pwrite(b"ours", 0)
                shared.data = theirs = overwritten(DATA)
                errors = cache.stats().writeback_errors
            wait_until(lambda: cache.stats().writeback_errors > errors, "the flusher has tried")
            other.write(b"good")
            wait_until(lambda: not dirty_pages(other), "the flusher has written the other file")
            assert shared.data == theirs
            is_stale(file.fsync)
            file.invalidate(discard=True)

    def test_that_gives_up_what_fails(self, make_cache, shared, caplog):
        cache = make_cache(64 * PAGE, on_write_error="drop")
        with shared.open(cache) as file:
            file.pwrite(b"ours", 0)
            shared.data = theirs = overwritten(DATA)
            is_stale(file.fsync)
            assert dirty_pages(file) == 0
            file.fsync()
        assert shared.data == theirs
        with shared.open(cache, "rb") as again:
            assert again.read() == theirs

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("way", ["pwrite", "write", "whole page", "behind the end"])
    def test_is_refused_when_it_is_written_if_nothing_waits(self, cache, tmp_path, change, way):
        """The sooner the better: a look at a local file costs little. The flusher would find it later."""
        shared = Shared("file", tmp_path)
        with shared.open(cache) as file:
            assert file.read() == DATA
            file.seek(0)
            shared.data = theirs = change(DATA)
            if way == "write":
                is_stale(lambda: file.write(b"ours"))
            else:
                where = {"pwrite": 10, "whole page": PAGE, "behind the end": 20 * PAGE}[way]
                is_stale(lambda: file.pwrite(b"ours" * (PAGE // 4), where))
            assert dirty_pages(file) == 0
            assert (shared.data, file.size) == (theirs, SIZE)
            file.invalidate()
            assert file.pread(2 * SIZE, 0) == theirs

    def test_goes_on_where_nothing_is_dirty(self, cache, shared):
        with shared.open(cache) as file:
            file.pwrite(b"ours", 0)
            file.fsync()
            shared.data = theirs = overwritten(DATA)
            file.fsync()
            file.flush()
        assert shared.data == theirs

    def test_of_two_caches(self, make_cache, shared):
        """Each is the other's foreign program."""
        first, second = make_cache(64 * PAGE), make_cache(64 * PAGE)
        with shared.open(first) as one, shared.open(second) as other:
            one.pwrite(b"one", 0)
            other.pwrite(b"other", PAGE)
            one.fsync()
            is_stale(other.fsync)
            assert shared.data == b"one" + DATA[3:]
            other.invalidate(discard=True)
            other.pwrite(b"other", PAGE)
            other.fsync()
            assert shared.data == b"one" + DATA[3:PAGE] + b"other" + DATA[PAGE + 5 :]
            is_stale(lambda: one.pread(SIZE, 1))

    def test_of_two_stores_of_one_key(self, cache, shared):
        """They share the object's pages, and are not each other's foreign programs."""
        with shared.open(cache) as one, shared.open(cache) as other, shared.open(cache, "ab") as appender:
            for number in range(20):
                one.pwrite(b"one", number * 100)
                other.pwrite(b"other", number * 100 + 50)
                appender.write(b"end")
                (one, other, appender)[number % 3].fsync()
        assert shared.data[SIZE:] == b"end" * 20
        assert shared.data[1900:1903] == b"one"
        assert shared.data[1950:1955] == b"other"

    def test_knows_its_own_request_from_a_change_during_it(self, cache, tmp_path):
        """Where it changes the size, which ours does not."""
        shared = Shared("file", tmp_path)
        with shared.open(cache) as file:

            def punch(offset, length):
                with open(shared.path, "ab") as other:
                    other.write(b"appended")

            file.inode.store.punch_hole = punch
            is_stale(lambda: file.punch_hole(0, PAGE))
            is_stale(lambda: file.pwrite(b"ours", 10 * PAGE))
            assert shared.data == DATA + b"appended"

    def test_stops_at_an_error_of_looking(self, cache):
        """Whether others have changed the object is not known then, so nothing is written."""
        store = WritableStore(DATA)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"ours", 0)
            well, store.validator = store.validator, lambda: (_ for _ in ()).throw(OSError(errno.ETIMEDOUT, "no answer"))
            for _ in range(2):
                with pytest.raises(OSError, match="no answer") as caught:
                    file.fsync()
                assert caught.value.errno == errno.ETIMEDOUT
            assert store.writes() == []
            store.validator = well
            file.fsync()
            assert bytes(store.data) == b"ours" + DATA[4:]

    def test_takes_no_error_of_looking_for_unchanged(self, cache):
        """The version that our own write has made could not be had; others change the object later."""
        store = WritableStore(DATA)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"ours", 0)
            well, fails = store.validator, []

            def validator():
                if fails:
                    raise OSError(errno.ETIMEDOUT, "no answer")
                return well()

            store.validator = validator
            store.on_write = lambda offset, nbytes: fails.append(1)
            file.fsync()
            with pytest.raises(OSError, match="no answer"):
                file.pread(PAGE, 3 * PAGE)
            del fails[:]
            store.on_write = lambda offset, nbytes: None
            assert file.pread(PAGE, 3 * PAGE) == DATA[3 * PAGE : 4 * PAGE]
            store.data[:4] = b"THEY"
            store.nr_changes += 1
            file.pwrite(bytes(PAGE), PAGE)
            is_stale(file.fsync)
            assert bytes(store.data) == b"THEY" + DATA[4:]
            file.invalidate(discard=True)


class TestChangesOfSize:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize(
        "call",
        [lambda file: file.truncate(PAGE), lambda file: file.truncate(20 * PAGE), lambda file: file.truncate(0),
         lambda file: file.punch_hole(PAGE, 2 * PAGE)],
        ids=["shorter", "longer", "empty", "hole"],
    )  # fmt: skip
    def test_leave_alone_what_others_have_changed(self, cache, shared, change, call):
        with shared.open(cache) as file:
            file.pread(SIZE, 0)
            shared.data = theirs = change(DATA)
            is_stale(lambda: call(file))
            assert shared.data == theirs
            assert file.size == SIZE
            file.invalidate()
            assert file.pread(2 * SIZE, 0) == theirs
            call(file)
            assert file.pread(21 * PAGE, 0) == shared.data != theirs or theirs == b""

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("dirty", [False, True])
    def test_opening_to_write_anew_does_not_mind(self, cache, shared, change, dirty):
        with shared.open(cache) as file:
            file.pread(SIZE, 0)
            if dirty:
                file.pwrite(b"ours", 0)
            shared.data = change(DATA)
            with shared.open(cache, "w+b") as new:
                new.write(b"new")
                new.fsync()
                assert shared.data == b"new"
            if dirty:
                is_stale(file.fsync)
                assert shared.data == b"new"
                file.invalidate(discard=True)

    @pytest.mark.parametrize("dirty", [False, True])
    def test_nor_does_it_mind_a_change_since_it_looked(self, cache, shared, dirty):
        with shared.open(cache) as file:
            file.pread(SIZE, 0)
            if dirty:
                file.pwrite(b"ours", 0)
            shared.data = overwritten(DATA)
            file.inode.empty()
            assert (shared.data, file.size, dirty_pages(file)) == (b"", 0, 0)
            file.pwrite(b"new", 0)
            file.fsync()
            assert shared.data == b"new"


class TestWayOut:
    def test_what_is_given_up_on_purpose_is_gone(self, cache, shared):
        with shared.open(cache) as file:
            file.pwrite(b"ours", PAGE)
            shared.data = theirs = overwritten(DATA)
            is_stale(file.fsync)
            with pytest.raises(OSError, match="dirty") as caught:
                file.invalidate()
            assert caught.value.errno == errno.EBUSY
            file.invalidate(discard=True)
            assert dirty_pages(file) == 0
            assert file.read() == theirs
            file.fsync()
        assert shared.data == theirs

    def test_no_part_of_it(self, cache, shared):
        with shared.open(cache) as file:
            file.pwrite(b"ours", 0)
            for offset, length in ((0, PAGE), (PAGE, 0)):
                with pytest.raises(ValueError, match="no range"):
                    file.invalidate(offset, length, discard=True)
            assert dirty_pages(file) == 1

    def test_a_reader_cannot_give_up_what_others_wrote(self, cache, shared):
        with shared.open(cache) as file, shared.open(cache, "rb") as reader:
            file.pwrite(b"ours", 0)
            with pytest.raises(OSError, match="not writable"):
                reader.invalidate(discard=True)

    def test_ours_can_be_written_again(self, cache, shared):
        with shared.open(cache) as file:
            file.pwrite(b"ours", PAGE)
            shared.data = theirs = overwritten(DATA)
            is_stale(file.fsync)
            kept = file.pread(4, PAGE)
            file.invalidate(discard=True)
            file.pwrite(kept, PAGE)
            file.fsync()
        assert shared.data == theirs[:PAGE] + b"ours" + theirs[PAGE + 4 :]

    @pytest.mark.parametrize("last", ["writer", "reader"])
    def test_closing_gives_up_what_can_never_be_written(self, cache, shared, last, caplog):
        caplog.set_level(logging.ERROR, "pagecache")
        reader = shared.open(cache, "rb")
        file = shared.open(cache)
        file.pwrite(b"ours", PAGE)
        shared.data = theirs = overwritten(DATA)
        if last == "writer":
            reader.close()
        is_stale(file.close)
        if last == "reader":
            assert reader.pread(4, PAGE) == b"ours"
            reader.close()
            cache.segment.wake_flusher()
        wait_until(lambda: "others have changed it" in caplog.text, "what cannot be written is given up")
        wait_until(lambda: cache.stats().nr_dirty == 0, "it is gone")
        cache.sync()
        assert shared.data == theirs
        with shared.open(cache, "rb") as again:
            assert again.read() == theirs

    def test_opening_again_sees_what_is_there(self, cache, shared):
        with shared.open(cache) as file:
            file.pwrite(b"ours", PAGE)
            shared.data = theirs = overwritten(DATA)
            with shared.open(cache) as again:
                assert again.pread(SIZE, 0) == theirs
                again.pwrite(b"again", 0)
                again.fsync()
                theirs = b"again" + theirs[5:]
                assert shared.data == theirs
                is_stale(file.fsync)
                assert shared.data == theirs
            file.invalidate(discard=True)
            assert file.read() == theirs

    @pytest.mark.parametrize("ends", ["sync", "flusher", "close"])
    def test_a_file_that_was_not_closed(self, make_cache, shared, ends, caplog):
        caplog.set_level(logging.ERROR, "pagecache")
        cache = make_cache(64 * PAGE, dirty_expire_s=0.02 if ends == "flusher" else 3600)
        file = shared.open(cache)
        with cache.flusher.at_rest():
            file.pwrite(b"ours", PAGE)
            shared.data = theirs = overwritten(DATA)
            file._give_up()
            del file
        if ends == "sync":
            is_stale(cache.sync)
        elif ends == "close":
            is_stale(cache.close)
        if ends != "close":
            wait_until(lambda: "others have changed it" in caplog.text, "it is given up")
            wait_until(lambda: cache.stats().nr_dirty == 0, "it is gone")
            cache.sync()
        assert shared.data == theirs


def test_stores_through_a_mapping_of_others_are_seen_if_the_kernel_tells(cache, tmp_path):
    """The first store to a page moves the times; later ones do not until the kernel has written the page back."""
    shared = Shared("file", tmp_path)
    with shared.open(cache) as file, open(shared.path, "r+b") as other, mmap.mmap(other.fileno(), 0) as mapped:
        file.pwrite(b"ours", 0)
        mapped[2 * PAGE : 2 * PAGE + 4] = b"they"
        is_stale(file.fsync)
        assert shared.data == DATA[: 2 * PAGE] + b"they" + DATA[2 * PAGE + 4 :]
        file.invalidate(discard=True)


def test_a_lock_that_both_take_loses_nothing(make_cache, tmp_path):
    """Programs that take turns, and bring what they wrote to the file before they let go, as they have to anyway."""
    cache, path = make_cache(64 * PAGE), tmp_path / "data"
    path.write_bytes(DATA)
    with cache.open(path, "r+b") as file:
        for number in range(50):
            turn = number % 2
            if turn == 0:
                try:
                    file.inode.raise_if_changed(0)
                except OSError:
                    file.invalidate()
                file.pwrite(b"%4d" % number, number * 100)
                file.flush()
            else:
                with open(path, "r+b") as other:
                    other.seek(number * 100)
                    other.write(b"%4d" % number)
    data = path.read_bytes()
    assert all(data[number * 100 : number * 100 + 4] == b"%4d" % number for number in range(50))
    assert os.path.getsize(path) == SIZE
