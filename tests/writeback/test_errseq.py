"""Errors of write-back: each is reported exactly once to each open file, and what failed is tried again.

The rules: docs/kernel.md, errors of write-back.
"""

import errno
import gc

import pytest
from support import PAGE, Crew, assert_nothing_is_held, frame_of, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty

from pagecache.writeback import passes

EIO, ENOSPC = OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full")
DATA = pages_of(8 * PAGE)


@pytest.fixture
def store():
    return WritableStore(DATA)


@pytest.fixture
def cache(make_cache):
    """A cache that writes nothing back by itself."""
    return make_cache(64 * PAGE, dirty_limit="50%", dirty_background="40%")


def errno_of(call, *arguments):
    """Return the errno that a call raises, or 0."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0


def fail_in_background(cache, store, error=EIO, times=1):
    """Have the flusher fail to write what is dirty; returns the Fault."""
    store.on_write = fault = Fault(error, times)
    while fault.nr_raised < times:
        for inode in cache.flusher.dirty_inodes():
            cache.flusher.write_some(inode)
    return fault


class TestWhoIsTold:
    def test_each_of_two_files_gets_it_once(self, cache, store):
        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            one.pwrite(b"x", 0)
            fail_in_background(cache, store)
            assert [errno_of(file.fsync) for file in (one, two, one, two)] == [errno.EIO, errno.EIO, 0, 0]
        assert store.data[:1] == b"x"

    @pytest.mark.parametrize("way", ["fsync", "fdatasync", "flush", "sync_range", "close"])
    def test_every_way_to_ask_tells(self, cache, store, way):
        file, other = cache.open(store, "r+b"), cache.open(store, "r+b")
        file.pwrite(b"x", 0)
        fail_in_background(cache, store)
        assert errno_of(getattr(file, way), *([0] if way == "sync_range" else [])) == errno.EIO
        assert file.closed == (way == "close")
        assert errno_of(file.close) == 0
        assert errno_of(other.close) == errno.EIO
        assert store.data[:1] == b"x"

    def test_a_file_opened_later_gets_what_no_file_has_seen(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            fail_in_background(cache, store)
            with cache.open(store, "r+b") as later:
                assert errno_of(later.fsync) == errno.EIO
                assert errno_of(later.fsync) == 0
            assert errno_of(file.fsync) == errno.EIO

    def test_a_file_opened_later_does_not_get_what_was_seen(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            fail_in_background(cache, store)
            assert errno_of(file.fsync) == errno.EIO
            with cache.open(store, "r+b") as later:
                assert errno_of(later.fsync) == 0

    def test_two_errors_between_two_looks_are_reported_as_the_latest(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            file.pwrite(b"x", 0)
            fail_in_background(cache, store, EIO)
            fail_in_background(cache, store, ENOSPC)
            assert [errno_of(file.fsync), errno_of(file.fsync)] == [errno.ENOSPC, 0]
            assert [errno_of(other.fsync), errno_of(other.fsync)] == [errno.ENOSPC, 0]

    def test_the_same_error_again_after_it_was_seen_is_reported_again(self, cache, store):
        """Though another file has seen it first, so that the record is marked as seen both times."""
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            file.pwrite(b"x", 0)
            for _ in range(3):
                fail_in_background(cache, store)
                assert [errno_of(opened.fsync) for opened in (other, file, other, file)] == [errno.EIO, errno.EIO, 0, 0]
                file.pwrite(b"y", 0)

    def test_a_file_for_reading_gets_it_by_fsync_and_closes_in_silence(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store) as reader, cache.open(store) as other:
            file.pwrite(b"x", 0)
            fail_in_background(cache, store)
            assert [errno_of(reader.fsync), errno_of(reader.fsync)] == [errno.EIO, 0]
            other.close()
            assert errno_of(file.fsync) == errno.EIO

    @pytest.mark.parametrize("error", [EIO, ENOSPC, OSError(errno.EDQUOT, "quota"), TimeoutError(), ValueError("odd")])
    def test_each_error_keeps_its_number(self, cache, store, error):
        expected = {TimeoutError: errno.ETIMEDOUT, ValueError: errno.EIO}.get(type(error)) or error.errno
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            file.pwrite(b"x", 5 * PAGE)
            store.on_write = Fault(error, 1)
            with pytest.raises(OSError, match=rf"written|offset {5 * PAGE}") as caught:
                file.fsync()
            assert caught.value.errno == expected
            assert isinstance(caught.value.__cause__, type(error))
            assert errno_of(other.fsync) == expected
            assert errno_of(file.fsync) == 0

    def test_errors_of_one_object_are_not_reported_for_another(self, cache, store):
        healthy = WritableStore(DATA, key="healthy")
        with cache.open(store, "r+b") as file, cache.open(healthy, "r+b") as other:
            file.pwrite(b"x", 0)
            other.pwrite(b"x", 0)
            store.on_write = Fault(EIO, 1)
            assert [errno_of(other.fsync), errno_of(file.fsync)] == [0, errno.EIO]

    def test_write_through_tells_the_writer(self, cache, store):
        with cache.open(store, "r+b", durability="write-through") as file, cache.open(store, "r+b") as other:
            store.on_write = Fault(ENOSPC, 1)
            assert errno_of(file.pwrite, b"x", 0) == errno.ENOSPC
            assert [errno_of(file.fsync), errno_of(other.fsync)] == [0, errno.ENOSPC]
            assert store.data[:1] == b"x"

    def test_a_failing_flush_of_a_map_tells_the_file_of_the_map(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            with file.mmap(access=2) as mapped:
                mapped[0] = 1
                store.on_write = Fault(EIO, 1)
                assert [errno_of(mapped.flush), errno_of(mapped.flush)] == [errno.EIO, 0]
            assert [errno_of(file.fsync), errno_of(other.fsync)] == [0, errno.EIO]


class TestThreads:
    def test_one_of_eight_that_sync_one_file_gets_it_and_all_others_find_the_data_written(self, cache, store):
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            for number in range(10):
                file.pwrite(bytes([number]) * PAGE, 0)
                store.on_write = gate = Gate()
                fault = Fault(EIO, 1)
                store.on_write = lambda *call, gate=gate, fault=fault: (gate(*call), fault(*call))
                seen = []

                def sync(number=number, seen=seen):
                    result = errno_of(file.fsync)
                    seen.append((result, store.data[0]))
                    return result

                crew = Crew(*[sync] * 8)
                gate.wait_entered()
                gate.go_on.set()
                assert sorted(crew.join_well()) == [0] * 7 + [errno.EIO]
                assert all(byte == number for result, byte in seen if result == 0), "a sync that wrote nothing says it did"
                assert [errno_of(other.fsync), errno_of(other.fsync)] == [errno.EIO, 0]

    def test_a_sync_that_begins_while_a_failure_is_reported_does_not_take_it_for_written(self, cache, store, monkeypatch):
        with cache.open(store, "r+b") as file:
            file.pwrite(bytes(PAGE), 0)
            store.on_write, noted = Fault(EIO, 1), Gate()
            set_error = passes._core.mapping_set_error
            monkeypatch.setattr(passes._core, "mapping_set_error", lambda *error: (set_error(*error), noted()))
            first = Crew(lambda: cache.flusher.write_some(file.inode))
            noted.wait_entered()
            assert file._check_and_advance_wb_err() == errno.EIO  # as another thread's sync does
            second = Crew(lambda: (file.fsync(), store.data[:PAGE]))
            ident = second.threads[0].ident
            wait_until(lambda: frame_of(ident).f_code.co_name == "filemap_fdatawait_range", "the second sync to wait")
            noted.go_on.set()
            assert second.join_well() == [(None, bytes(PAGE))]
            first.join_well()

    def test_each_of_eight_files_gets_it_once(self, cache, store):
        files = [cache.open(store, "r+b") for _ in range(8)]
        files[0].pwrite(b"x", 0)
        store.on_write = Fault(EIO, 1)
        assert Crew(*[lambda file=file: errno_of(file.fsync) for file in files]).join_well() == [errno.EIO] * 8
        assert [errno_of(file.fsync) for file in files] == [0] * 8
        for file in files:
            file.close()

    def test_a_wait_for_a_failing_write_back_of_another_reports_it(self, cache, store):
        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            one.pwrite(b"x", 0)
            store.on_write = gate = Gate(EIO)
            first = Crew(lambda: errno_of(one.fsync))
            gate.wait_entered()
            second = Crew(lambda: errno_of(two.fsync))
            store.on_write = lambda *call: None
            gate.go_on.set()
            assert (first.join_well(), second.join_well()) == ([errno.EIO], [errno.EIO])


class TestWhatBecomesOfTheData:
    def test_it_stays_and_the_next_sync_writes_it(self, cache, store):
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 4)
            expected = file.pread(8 * PAGE, 0)
            store.on_write = fault = Fault(EIO)
            for _ in range(3):
                assert errno_of(file.fsync) == errno.EIO
                assert dirty_pages(file) == 4
                assert file.pread(8 * PAGE, 0) == expected
            fault.mend()
            file.fsync()
            assert store.data == expected
            assert dirty_pages(file) == 0
            assert cache.stats().writeback_errors == 3

    def test_one_failing_request_of_many_hinders_no_other(self, cache):
        store = WritableStore(DATA)
        store.max_request = PAGE
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 8)

            def refuse_page_three(offset, nbytes):
                if offset == 3 * PAGE:
                    raise EIO

            store.on_write = refuse_page_three
            assert errno_of(file.fsync) == errno.EIO
            assert (dirty_pages(file), len(store.writes())) == (1, 8)
            assert store.data[3 * PAGE : 4 * PAGE] == DATA[3 * PAGE : 4 * PAGE]
            store.on_write = lambda *call: None
            file.fsync()
            assert (dirty_pages(file), store.writes()[8:]) == (0, [(3 * PAGE, PAGE)])

    def test_drop_loses_it_and_says_so(self, make_cache, store):
        cache = make_cache(64 * PAGE, on_write_error="drop")
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            fill_dirty(file, 4)
            store.on_write = Fault(EIO)
            assert [errno_of(file.fsync), errno_of(file.fsync)] == [errno.EIO, 0]
            with pytest.raises(OSError, match="it is lost"):
                other.fsync()
            assert (dirty_pages(file), store.data) == (0, DATA)

    def test_retry_says_that_it_is_kept(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            fail_in_background(cache, store)
            with pytest.raises(OSError, match="still cached, and is tried again"):
                file.fsync()

    def test_closing_tells_and_the_background_tries_again(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        file = cache.open(store, "r+b")
        store.on_write = fault = Fault(EIO)
        file.pwrite(b"kept", 0)
        assert errno_of(file.close) == errno.EIO
        fault.mend()
        wait_until(lambda: store.data[:4] == b"kept", "the flusher to try again")
        wait_until(lambda: store.nr_closed == 1, "the store to be closed once it is clean")

    def test_reads_and_other_pages_go_on(self, cache, store):
        with cache.open(store, "r+b") as file:
            store.on_write = Fault(EIO, 1)
            file.pwrite(b"new", 0)
            assert errno_of(file.fsync) == errno.EIO
            assert file.pread(8 * PAGE, 0) == b"new" + DATA[3:]
            file.pwrite(b"more", 5 * PAGE)
            file.fsync()
            assert store.data[5 * PAGE : 5 * PAGE + 4] == b"more"

    def test_what_lies_before_a_failed_extension_still_reads_as_zeros(self, cache):
        store = WritableStore(b"")
        with cache.open(store, "r+b") as file:
            file.pwrite(b"far", 10 * PAGE)
            store.on_write = Fault(EIO, 1)
            assert errno_of(file.fsync) == errno.EIO
            assert file.pread(10 * PAGE, 0) == bytes(10 * PAGE)
            file.fsync()
            assert store.data == bytes(10 * PAGE) + b"far"

    def test_an_error_that_is_kept_holds_no_page(self, cache, store):
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 4)
            store.on_write = Fault(EIO, 2)
            with pytest.raises(OSError, match="broken") as kept:
                file.fsync()
            assert cache.stats().nr_pinned == 0
            cache.flusher.write_some(file.inode)
            assert cache.stats().nr_pinned == 0
            assert errno_of(file.fsync) == errno.EIO  # the flusher's
            assert kept.value.errno == errno.EIO
            assert_nothing_is_held(cache)


class TestStoreSync:
    def test_a_failing_sync_is_reported_once_to_each(self, cache, store):
        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            one.pwrite(b"x", 0)
            store.on_sync = Fault(EIO, 1)
            assert [errno_of(file.fsync) for file in (one, two, one, two)] == [errno.EIO, errno.EIO, 0, 0]

    def test_what_it_left_in_doubt_is_written_again(self, cache, store):
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            file.flush()
            fill_dirty(file, 2, start=5)
            store.on_sync = Fault(EIO, 1)
            assert errno_of(file.fsync) == errno.EIO
            del store.calls[:]
            file.fsync()
            assert store.names()[-1] == "sync"
            assert store.pages_written() == {0, 1, 5, 6}
            del store.calls[:]
            file.fsync()
            assert store.names() == ["sync"]

    def test_what_it_left_in_doubt_is_written_again_after_the_file_was_closed(self, cache, store):
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            store.on_sync = Fault(EIO, 1)
            assert errno_of(file.fsync) == errno.EIO
        del store.calls[:]
        with cache.open(store, "r+b") as file:
            file.fsync()
        assert store.names() == ["writev", "sync"]

    def test_a_sync_that_waited_for_a_failing_one_writes_again_what_that_left_in_doubt(self, cache, store):
        """The system below reports a failure once, and takes the bytes for written: a second sync proves nothing."""
        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            one.pwrite(b"x", 0)
            store.on_sync = gate = Gate(EIO)
            first = Crew(lambda: errno_of(one.fdatasync))
            gate.wait_entered()
            second = Crew(lambda: errno_of(one.fdatasync))
            ident = second.threads[0].ident
            wait_until(lambda: frame_of(ident).f_code.co_name == "_sync_store", "the second sync to wait for the first")
            store.on_sync = lambda *call: None
            gate.go_on.set()
            assert first.join_well() == [errno.EIO]
            assert second.join_well() == [0]
            assert store.names() == ["writev", "sync", "writev", "sync"]
            assert errno_of(two.fsync) == errno.EIO

    def test_it_stays_in_doubt_when_it_cannot_be_made_dirty_again(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 6)
            store.on_sync = Fault(EIO, 1)
            assert errno_of(file.fsync) == errno.EIO
            store.on_write = fault = Fault(ENOSPC)
            assert errno_of(file.fsync) == errno.ENOSPC
            fault.mend()
            del store.calls[:]
            errors = [errno_of(file.fsync) for _ in range(3)]
            assert (errors[-1], store.pages_written()) == (0, set(range(6)))

    def test_a_store_without_sync_is_durable_when_written(self, cache):
        class NoSync(WritableStore):
            sync = None

        store = NoSync(DATA)
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            file.fsync()
            assert store.data[:1] == b"x"


def test_errors_of_collected_files_are_left_to_the_next(cache, store):
    file = cache.open(store, "r+b")
    file.pwrite(b"x", 0)
    fail_in_background(cache, store)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del file
        gc.collect()
    with cache.open(store, "r+b") as later:
        assert errno_of(later.fsync) == errno.EIO
        assert store.data[:1] == b"x"


