"""Write-back to odd stores: they take little, return junk, raise anything, keep buffers, or use the cache themselves."""

import errno

import pytest
from support import PAGE, Crew, assert_nothing_is_held, frame_of, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty

DATA = pages_of(64 * PAGE)
PARALLEL = pytest.mark.parametrize("requests", [1, 4], ids="requests={}".format)


@pytest.fixture
def store():
    return WritableStore(DATA)


@pytest.fixture
def cache(make_cache):
    """A cache whose flusher has nothing to do."""
    return make_cache(256 * PAGE, dirty_limit="75%", dirty_background="70%")


class TestOddStores:
    @PARALLEL
    @pytest.mark.parametrize("limit", [1, 100, PAGE + 1])
    def test_what_takes_little_at_a_time_gets_all(self, cache, requests, limit):
        class Short(WritableStore):
            def take(self, offset, buffers):
                done = 0
                for buffer in buffers:
                    piece = buffer[: limit - done]
                    done += super().take(offset + done, [piece]) if len(piece) else 0
                return done

        store = Short(DATA)
        store.parallel_requests = requests
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            file.fsync()
            assert store.data == file.pread(len(DATA), 0)

    @PARALLEL
    @pytest.mark.parametrize("junk", [None, True, -1, 1 << 40, "4096", 1.5, 0, b""])
    def test_junk_that_writev_returns_is_an_error_and_nothing_is_lost(self, cache, store, junk, requests):
        store.parallel_requests = requests
        take, store.take = store.take, lambda offset, buffers: junk
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            with pytest.raises(OSError, match=r"writev returned|claims|took no bytes") as caught:
                file.fsync()
            assert caught.value.errno == errno.EIO
            assert dirty_pages(file) == 2
            store.take = take
            file.fsync()
            assert store.data == file.pread(len(DATA), 0)
        assert_nothing_is_held(cache)

    @PARALLEL
    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_what_is_no_exception_is_an_error_too(self, cache, store, kind, requests):
        """In a worker it is the store's failure; in the caller's own thread it goes through. Kept, it holds nothing."""
        store.parallel_requests = requests
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            store.on_write = Fault(kind("odd"), 1)
            with pytest.raises(OSError if requests > 1 else kind, match="odd") as kept:
                file.fsync()
            assert (dirty_pages(file), cache.stats().nr_writeback) == (2, 0)
            file.fsync()
            assert store.data == file.pread(len(DATA), 0)
            assert kept.value is not None
        assert_nothing_is_held(cache)

    @PARALLEL
    def test_buffers_that_are_kept_pin_their_pages_and_no_more(self, cache, store, requests):
        store.parallel_requests = requests
        kept, take = [], store.take
        store.take = lambda offset, buffers: (kept.extend(buffer[10:20] for buffer in buffers), take(offset, buffers))[1]
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            file.fsync()
            assert cache.stats().nr_pinned == 2
            expected = [bytes(view) for view in kept]
            file.truncate(0)
            cache.drop_caches()
            assert [bytes(view) for view in kept] == expected
            for view in kept:
                view.release()
            assert cache.stats().nr_pinned == 0
        assert_nothing_is_held(cache)

    @PARALLEL
    def test_buffers_cannot_be_written(self, cache, store, requests):
        store.parallel_requests = requests
        seen, take = [], store.take
        store.take = lambda offset, buffers: (seen.extend(buffer.readonly for buffer in buffers), take(offset, buffers))[1]
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
        assert set(seen) == {True}

    @PARALLEL
    def test_one_that_uses_the_cache_from_writev(self, make_cache, store, requests):
        """It writes another file of the same cache, and reads the very object."""
        cache = make_cache(64 * PAGE, dirty_limit=48 * PAGE, dirty_background=8 * PAGE)
        store.parallel_requests = requests
        with cache.open(store, "r+b") as file, cache.open(WritableStore(b"", key="journal"), "ab") as journal:

            def look_and_note(offset, nbytes):
                assert file.pread(8, offset) == (offset // PAGE).to_bytes(8, "little")
                assert file.pread(8, 63 * PAGE) == DATA[63 * PAGE : 63 * PAGE + 8]
                journal.write(offset.to_bytes(8, "little"))

            store.on_write = look_and_note
            for page in range(0, 50, 2):
                fill_dirty(file, 1, start=page)
            file.fsync()
            assert journal.inode.mapping.size // 8 == len(store.writes())
        assert_nothing_is_held(cache)

    def test_one_that_needs_room_for_dirty_pages_while_it_writes_gets_an_error_and_no_hang(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=PAGE, dirty_background=PAGE)
        with cache.open(store, "r+b") as file, cache.open(WritableStore(b"", key="journal"), "ab") as journal:
            store.on_write = lambda *call: journal.write(b"note")
            file.pwrite(b"x", 0)
            with pytest.raises(OSError, match="no more pages may be dirty") as caught:
                file.fsync()
            assert caught.value.errno == errno.EDEADLK
            store.on_write = lambda *call: None
            file.fsync()
        assert_nothing_is_held(cache)

    def test_one_that_ends_early_while_it_is_extended_is_broken_and_not_changed(self, cache, store):
        extended = Gate()
        take = store.take
        store.take = lambda offset, buffers: (take(offset, buffers), extended())[0]
        with cache.open(store, "r+b") as file:
            file.pwrite(bytes(PAGE), len(DATA))
            crew = Crew(file.fsync)
            extended.wait_entered()
            store.answer = lambda offset, buffers: 0
            with pytest.raises(OSError, match="brought no more bytes") as caught:
                file.pread(1, 0)
            assert caught.value.errno == errno.EIO
            del store.answer
            extended.go_on.set()
            crew.join_well()
            assert file.pread(1, 0) == DATA[:1]
        assert_nothing_is_held(cache)

    @pytest.mark.parametrize(
        ("cut", "nbytes"), [(1, 3000), (PAGE + 1, 2 * PAGE), (PAGE, 2 * PAGE), (5 * PAGE + 1, 7 * PAGE)]
    )
    def test_what_is_being_written_over_the_new_end_does_not_come_back(self, cache, store, cut, nbytes):
        with cache.open(store, "r+b") as file:
            file.truncate(0)
            file.pwrite(b"x" * nbytes, 0)
            store.on_write = taken = Gate()
            writing = Crew(file.fsync)
            taken.wait_entered()
            cutting = Crew(lambda: file.truncate(cut))
            place = ("wait_writeback", "_cut_store", "wait_for_folios")
            wait_until(lambda: frame_of(cutting.threads[0].ident).f_code.co_name in place, "the truncation to wait")
            assert "truncate" not in store.names()[1:], "the store is truncated while it is written"
            taken.go_on.set()
            writing.join_well()
            cutting.join_well()
            file.truncate(nbytes)
            cache.drop_caches()
            assert file.pread(nbytes, 0) == (b"x" * cut).ljust(nbytes, b"\0")
        assert_nothing_is_held(cache)
