"""Write-back: states and marks of a folio, requests, passes that end, limits that hold, the flusher, odd stores.

The rules: docs/kernel.md, write-back.
"""

import errno
import threading

import pytest
from support import PAGE, PATIENCE_S, Crew, assert_nothing_is_held, frame_of, pages_of, wait_until
from support.write_steps import Fault, Gate, WritableStore, dirty_pages, fill_dirty, flags_of, folio_of

import pagecache
from pagecache import writeback
from pagecache.stores import MemoryStore
from pagecache.writeback import WB_SYNC_ALL, WB_SYNC_NONE, WritebackControl, throttle

DATA = pages_of(64 * PAGE)
EIO = OSError(errno.EIO, "broken")
PARALLEL = pytest.mark.parametrize("requests", [1, 4], ids="requests={}".format)


@pytest.fixture
def store():
    return WritableStore(DATA)


@pytest.fixture
def cache(make_cache):
    """A cache whose flusher has nothing to do."""
    return make_cache(256 * PAGE, dirty_limit="75%", dirty_background="70%")


@pytest.fixture
def file(cache, store):
    with cache.open(store, "r+b") as opened:
        opened.fadvise(pagecache.FADV_RANDOM)
        yield opened
    assert_nothing_is_held(cache)


class TestStates:
    def test_dirty_then_under_write_back_then_clean(self, cache, file, store):
        file.pread(1, 0)
        assert flags_of(file) == ""
        file.pwrite(b"x", 0)
        assert flags_of(file) == "dirty,DIRTY"
        cache.check()
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        assert flags_of(file) == "writeback,WRITEBACK"
        assert file.cachestat()[1:3] == (0, 1)
        gate.go_on.set()
        writer.join_well()
        assert flags_of(file) == ""
        cache.check()
        assert cache.stats().nr_written == 1

    def test_dirtied_again_while_it_is_written_stays_dirty(self, cache, file, store):
        file.pwrite(b"one", 0)
        store.on_write = gate = Gate()
        writer = Crew(file.fsync)
        gate.wait_entered()
        charged = cache.segment.nr_dirty_charged
        file.pwrite(b"two", 0)
        assert flags_of(file) == "dirty,writeback,DIRTY,WRITEBACK"
        assert cache.segment.nr_dirty_charged == charged == 1, "charged once"
        gate.go_on.set()
        writer.join_well()
        assert flags_of(file) == "dirty,DIRTY"
        cache.check()
        file.fsync()
        assert (flags_of(file), store.data[:3]) == ("", b"two")

    def test_one_that_failed_is_dirty_again(self, cache, file, store):
        file.pwrite(b"one", 0)
        store.on_write = Fault(EIO, 1)
        with pytest.raises(OSError, match="broken"):
            file.fsync()
        assert flags_of(file) in ("dirty,DIRTY", "dirty,DIRTY,TOWRITE")
        cache.check()
        file.fsync()
        assert flags_of(file) == ""

    def test_one_that_failed_while_it_was_dirtied_again_is_dirty_once(self, cache, file, store):
        file.pwrite(b"one", 0)
        store.on_write = gate = Gate(EIO)
        writer = Crew(file.fsync)
        gate.wait_entered()
        file.pwrite(b"two", 0)
        gate.go_on.set()
        assert isinstance(writer.join()[0], OSError)
        assert cache.segment.nr_dirty_charged == 1
        cache.check()
        store.on_write = lambda *call: None
        file.fsync()
        assert store.data[:3] == b"two"

    def test_a_sync_waits_for_what_another_writes_and_writes_what_was_dirtied_since(self, file, store):
        file.pwrite(b"one", 0)
        store.on_write = gate = Gate()
        first = Crew(file.fsync)
        gate.wait_entered()
        file.pwrite(b"two", 0)
        second = Crew(file.fsync)
        ident = second.threads[0].ident
        wait_until(lambda: frame_of(ident).f_code.co_name == "_begin", "the second sync to wait for the first")
        assert len(store.writes()) == 1
        gate.go_on.set()
        first.join_well()
        second.join_well()
        assert (len(store.writes()), store.data[:3], flags_of(file)) == (2, b"two", "")

    def test_a_sync_waits_for_what_another_writes_though_the_page_is_written_to(self, file, store):
        file.pwrite(b"one", 0)
        store.on_write = gate = Gate()
        first = Crew(lambda: file.sync_range(0))
        gate.wait_entered()
        second = Crew(file.fsync)
        with folio_of(file) as folio:
            wait_until(lambda: folio.waiters, "the sync to wait for the write-back")
            file.pwrite(b"two", 0)  # which wakes what waits for the folio
            wait_until(lambda: folio.waiters or not second.threads[0].is_alive(), "the sync to look again")
        assert "sync" not in store.names()
        gate.go_on.set()
        first.join_well()
        second.join_well()
        assert store.names()[-1] == "sync"

    def test_a_background_pass_skips_what_another_writes(self, file, store):
        fill_dirty(file, 1)
        store.on_write = gate = Gate()
        first = Crew(file.fsync)
        gate.wait_entered()
        file.pwrite(b"two", 0)
        file.pwrite(b"two", 5 * PAGE)
        store.on_write = lambda *call: None
        wbc = WritebackControl(sync_mode=WB_SYNC_NONE)
        writeback.do_writepages(file.mapping, wbc)
        assert (wbc.nr_written, store.writes()[1:]) == (1, [(5 * PAGE, PAGE)])
        gate.go_on.set()
        first.join_well()
        assert flags_of(file) == "dirty,DIRTY"


class TestRequests:
    def test_neighbours_go_together_in_order_of_offset(self, file, store):
        for page in (9, 3, 0, 2, 1, 20, 4):
            file.pwrite(b"x", page * PAGE)
        file.fsync()
        assert store.writes() == [(0, 5 * PAGE), (9 * PAGE, PAGE), (20 * PAGE, PAGE)]

    def test_no_request_is_larger_than_the_store_allows(self, make_cache):
        store = WritableStore(DATA)
        store.max_request = 5 * PAGE
        cache = make_cache(256 * PAGE, dirty_limit="75%", dirty_background="70%")
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 12)
            file.fsync()
            assert store.writes() == [(0, 5 * PAGE), (5 * PAGE, 5 * PAGE), (10 * PAGE, 2 * PAGE)]
            del store.calls[:]
            file.truncate(0)
            file.pwrite(DATA[: 16 * PAGE], 0)
            assert folio_of(file).nr_pages == 16
            file.fsync()
            assert [nbytes // PAGE for _, nbytes in store.writes()] == [5, 5, 5, 1]
        assert store.data == DATA[: 16 * PAGE]

    def test_the_last_page_is_written_up_to_the_end(self, cache):
        store = WritableStore(b"")
        with cache.open(store, "r+b") as file:
            file.pwrite(b"x" * (PAGE + 5), 0)
        assert store.writes() == [(0, PAGE + 5)]

    def test_many_requests_run_at_once_where_the_store_allows_it(self, make_cache):
        store = WritableStore(DATA)
        store.parallel_requests, store.max_request = 3, PAGE
        cache = make_cache(256 * PAGE, dirty_limit="75%", dirty_background="70%")
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 10)
            store.on_write = gate = Gate()
            writer = Crew(file.fsync)
            wait_until(lambda: gate.nr_inside == 3, "three requests at once")
            gate.go_on.set()
            writer.join_well()
            assert len(store.writes()) == 10
            assert dirty_pages(file) == 0

    def test_a_range_writes_that_range(self, file, store):
        fill_dirty(file, 10)
        file.sync_range(2 * PAGE + 5, 3 * PAGE)
        assert store.writes() == [(2 * PAGE, 4 * PAGE)]
        assert dirty_pages(file) == 6

    def test_a_cyclic_pass_goes_on_where_the_last_ended(self, file, store):
        for page in range(0, 20, 2):
            file.pwrite(b"x", page * PAGE)
        for _ in range(4):
            writeback.do_writepages(file.mapping, WritebackControl(nr_to_write=3, range_cyclic=True))
        assert [offset // PAGE for offset, _ in store.writes()] == list(range(0, 20, 2))

    def test_nothing_dirty_asks_nothing_of_the_store(self, file, store):
        file.pread(10 * PAGE, 0)
        file.flush()
        file.sync_range(0)
        assert store.calls == []


class TestPassesEnd:
    @pytest.mark.parametrize("ahead", [1, 7])
    def test_a_sync_does_not_chase_a_writer_that_dirties_ahead_of_it(self, file, store, ahead):
        store.max_request = PAGE
        file.inode._use(store)
        fill_dirty(file, 4)
        nr = [4]

        def dirty_more(offset, nbytes):
            if nr[0] < 200:
                file.pwrite(b"ahead", (nr[0] * ahead % 60) * PAGE)
                nr[0] += 1

        store.on_write = dirty_more
        file.fsync()
        assert {offset // PAGE for offset, _ in store.writes()} == {0, 1, 2, 3}
        assert len(store.writes()) == 4
        store.on_write = lambda *call: None

    def test_a_background_pass_ends_at_its_first_error_and_a_sync_goes_on(self, file, store):
        for page in range(0, 10, 2):
            file.pwrite(b"x", page * PAGE)
        store.on_write = Fault(EIO)
        for mode, nr_writes in ((WB_SYNC_NONE, 1), (WB_SYNC_ALL, 5)):
            del store.calls[:]
            wbc = WritebackControl(sync_mode=mode)
            writeback.do_writepages(file.mapping, wbc)
            assert (len(store.writes()), wbc.nr_written, wbc.error.errno) == (nr_writes, 0, errno.EIO)
        store.on_write = lambda *call: None
        with pytest.raises(OSError, match="background"):
            file.fsync()


class TestStableWrites:
    @pytest.mark.parametrize("way", ["pwrite", "map"])
    def test_a_store_that_asks_for_it_sees_bytes_that_do_not_change(self, make_cache, way):
        class Checks(WritableStore):
            stable_writes = True
            nr_seen = 0

            def take(self, offset, buffers):
                before = [bytes(buffer) for buffer in buffers]
                for _ in range(20):
                    threading.Event().wait(0.0005)
                    assert [bytes(buffer) for buffer in buffers] == before
                self.nr_seen += 1
                return super().take(offset, buffers)

        store = Checks(DATA)
        cache = make_cache(256 * PAGE)
        with cache.open(store, "r+b") as file, file.mmap(access=pagecache.mm.ACCESS_WRITE) as mapped:
            stop = []

            def change():
                value = 0
                while not stop:
                    value = (value + 1) % 256
                    if way == "map":
                        mapped[100:200] = bytes([value]) * 100
                    else:
                        file.pwrite(bytes([value]) * 100, 100)

            file.pwrite(b"x", 0)
            crew = Crew(change)
            while store.nr_seen < 8:
                file.fsync()
            stop.append(True)
            crew.join_well()
            file.fsync()
        assert store.data[:PAGE] == file_bytes(cache, store)

    def test_elsewhere_the_last_bytes_arrive_in_the_end(self, file, store):
        stop = []

        def change():
            value = 0
            while not stop:
                value = (value + 1) % 256
                file.pwrite(bytes([value]) * PAGE, 0)

        crew = Crew(change)
        for _ in range(100):
            file.fsync()
        stop.append(True)
        crew.join_well()
        file.fsync()
        assert store.data[:PAGE] == file.pread(PAGE, 0)
        assert len(set(store.data[:PAGE])) == 1


def file_bytes(cache, store):
    """Return the first page of a store's object as the cache shows it."""
    with cache.open(store) as file:
        return file.pread(PAGE, 0)


class TestLimits:
    @PARALLEL
    @pytest.mark.parametrize("limit", [1, 4, 16])
    def test_dirty_pages_never_exceed_the_limit(self, make_cache, limit, requests):
        cache = make_cache(64 * PAGE, dirty_limit=limit * PAGE, dirty_background=limit // 2 * PAGE)
        store, seen, stop = WritableStore(DATA), set(), []
        store.parallel_requests = requests
        store.on_write = lambda *call: seen.add(cache.segment.nr_dirty_charged)

        def sample():
            while not stop:
                seen.add(cache.segment.nr_dirty_charged)

        with cache.open(store, "r+b") as one, cache.open(store, "r+b") as two:
            sampler = Crew(sample)
            Crew(lambda: fill_dirty(one, 40), lambda: fill_dirty(two, 40, start=20)).join_well()
            stop.append(True)
            sampler.join_well()
            one.fsync()
        assert 0 < max(seen) <= limit
        assert all(store.data[page * PAGE] == page for page in range(60))
        assert_nothing_is_held(cache)

    def test_the_flusher_starts_by_itself_above_the_background_amount(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=32 * PAGE, dirty_background=4 * PAGE, dirty_expire_s=1000)
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 4)
            assert dirty_pages(file) == 4, "at the background amount nothing has to be written"
            fill_dirty(file, 4, start=4)
            wait_until(lambda: cache.segment.nr_dirty_charged <= 4, "the flusher to write")

    def test_what_is_old_becomes_clean_without_a_call(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit="75%", dirty_background="70%", dirty_expire_s=0)
        with cache.open(store, "r+b") as file:
            fill_dirty(file, 2)
            wait_until(lambda: dirty_pages(file) == 0 and cache.stats().nr_writeback == 0, "age")
            assert "sync" not in store.names()

    def test_all_that_is_old_is_written_in_one_round(self, make_cache):
        store = WritableStore(b"")
        store.max_request = 64 * PAGE
        cache = make_cache("32MiB", dirty_limit="90%", dirty_background="80%", dirty_expire_s=1000)
        with cache.open(store, "r+b") as file:
            file.pwrite(bytes(3000 * PAGE), 0)
            assert dirty_pages(file) == 3000
            cache.flusher.flush()
            assert dirty_pages(file) == 3000, "it is not old"
            cache.flusher.expire_s = 0
            cache.flusher.flush()
            assert dirty_pages(file) == 0

    def test_writers_are_slowed_down_near_the_limit_and_counted(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=16 * PAGE, dirty_background=8 * PAGE, dirty_expire_s=1000)
        with cache.open(store, "r+b") as file:
            store.on_write = gate = Gate()
            fill_dirty(file, 12)
            assert cache.stats().nr_throttled_written == 0
            fill_dirty(file, 1, start=13)
            assert cache.stats().nr_throttled_written > 0
            gate.go_on.set()

    @pytest.mark.parametrize("frames", [2, 8])
    def test_a_reader_gets_memory_though_every_frame_is_dirty(self, make_cache, store, frames):
        cache = make_cache(frames * PAGE, dirty_limit="100%", dirty_background="99%", dirty_expire_s=1000)
        other = MemoryStore(DATA)
        with cache.open(store, "r+b") as file, cache.open(other) as reader:
            fill_dirty(file, frames)
            assert reader.pread(10, 5 * PAGE) == DATA[5 * PAGE : 5 * PAGE + 10]

    def test_a_writer_at_the_limit_gets_the_error_of_the_store_and_others_go_on(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_limit=4 * PAGE, dirty_background=2 * PAGE)
        other = WritableStore(DATA, key="other")
        with cache.open(store, "r+b") as file, cache.open(other, "r+b") as bystander:
            store.on_write = fault = Fault(OSError(errno.ENOSPC, "full"))
            for page in range(4):
                file.pwrite(b"x", page * PAGE)
            with pytest.raises(OSError, match="full") as caught:
                file.pwrite(b"x", 10 * PAGE)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match=r"no page may become dirty while .*full") as caught:
                bystander.pwrite(b"x", 0)
            assert caught.value.errno == errno.ENOSPC
            assert bystander.pread(len(DATA), 0) == DATA
            fault.mend()
            bystander_wrote = False
            while not bystander_wrote:
                file.mapping.backing.retry_at = 0
                bystander_wrote = bystander.pwrite(b"x", 0) == 1
            file.pwrite(b"x", 10 * PAGE)
            with pytest.raises(OSError, match="background"):
                file.fsync()

    def test_a_writer_at_the_limit_waits_without_spinning_for_what_is_being_written(self, make_cache, store, monkeypatch):
        """Its only dirty page was dirtied again while it is in the store: there is nothing to do but wait."""
        cache = make_cache(64 * PAGE, dirty_limit=2 * PAGE, dirty_background=PAGE)
        other = WritableStore(DATA, key="other")
        with cache.open(store, "r+b") as file, cache.open(other, "r+b") as bystander:
            gate = store.on_write = other.on_write = Gate()
            file.pwrite(b"one", 0)
            syncer = Crew(file.flush)
            gate.wait_entered()
            file.pwrite(b"two", 0)
            bystander.pwrite(b"full", 0)
            nr_passes, do_writepages = [], writeback.do_writepages
            monkeypatch.setattr(throttle, "do_writepages", lambda *call: (nr_passes.append(1), do_writepages(*call))[1])
            writer = Crew(lambda: file.pwrite(b"x", PAGE))
            try:
                wait_until(lambda: len(nr_passes) >= 3, "the writer to try again")
                cache.segment.wait_for_memory(0.1)
                assert len(nr_passes) < 100
            finally:
                gate.go_on.set()
            writer.join_well()
            syncer.join_well()
        assert (store.data[:3], store.data[PAGE : PAGE + 1], other.data[:4]) == (b"two", b"x", b"full")


class TestFlusher:
    def test_it_survives_stores_that_raise_anything(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        with cache.open(store, "r+b") as file:
            store.on_write = fault = Fault(SystemExit(3), 1)
            file.pwrite(b"one", 0)
            wait_until(lambda: fault.nr_raised == 1 and store.data[:3] == b"one", "the flusher to try again")
            file.fsync()

    def test_it_leaves_an_object_that_fails_alone_for_longer_and_longer(self, make_cache, store):
        cache = make_cache(64 * PAGE, dirty_expire_s=0)
        cache.flusher.interval_s = 1000
        with cache.open(store, "r+b") as file:
            store.on_write = fault = Fault(EIO)
            file.pwrite(b"one", 0)
            cache.flusher.flush()
            assert fault.nr_raised == 1
            cache.flusher.flush()
            assert fault.nr_raised == 1
            file.mapping.backing.retry_at = 0
            cache.flusher.flush()
            assert fault.nr_raised == 2
            fault.mend()
            with pytest.raises(OSError, match="background"):
                file.fsync()

    def test_it_ends_with_its_cache(self, store):
        with pagecache.PageCache(64 * PAGE) as cache, cache.open(store, "r+b") as file:
            file.pwrite(b"x", 0)
            thread = cache.flusher._thread
            wait_until(thread.is_alive, "the flusher to start")
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
