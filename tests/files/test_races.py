"""Races that have one required outcome: reads, readahead, reclaim, invalidation and truncation at once.

The rules: docs/kernel.md, races of truncation.

Where the order matters it is forced; where it does not, threads run freely from a seed.
"""

import random
import threading

import pytest
from support import PAGE, PATIENCE_S, STRESS, Crew, Store, add_page, checked_cache, pages_of, wait_until

import pagecache
from pagecache import truncate
from pagecache._core import AddressSpace, Segment
from pagecache.mm import BusError

ROUNDS = 1000 if STRESS else 120


class GatedStore(pagecache.MemoryStore):
    """A writable store whose `gated` calls ("readv", "truncate") wait until the gate is opened."""

    def __init__(self, data, gated):
        super().__init__(data)
        self.gated = gated
        self.gate = threading.Event()
        self.entered = threading.Event()

    def _pass(self, call):
        if call == self.gated:
            self.entered.set()
            assert self.gate.wait(PATIENCE_S), "no thread opened the gate"

    def readv(self, offset, buffers):
        self._pass("readv")
        return super().readv(offset, buffers)

    def truncate(self, size):
        self._pass("truncate")
        super().truncate(size)


@pytest.fixture
def data():
    """The bytes of a file of 32 pages."""
    return pages_of(32 * PAGE)


@pytest.fixture
def open_gated(make_cache, data):
    """A factory of files on stores whose calls of one kind wait at a gate."""
    opened = []

    def make(gated, nbytes=None):
        store = GatedStore(data[:nbytes], gated)
        opened.append(make_cache(64 * PAGE).open(store, "r+b"))
        return opened[-1], store

    yield make
    for file in opened:
        file.close()


class TestReadAgainstTruncate:
    def test_a_read_that_came_first_gets_the_old_bytes_and_the_truncation_waits(self, open_gated, data):
        file, store = open_gated("readv")
        reader = Crew(lambda: file.pread(100, 10 * PAGE))
        assert store.entered.wait(PATIENCE_S)
        cutter = Crew(lambda: file.truncate(10 * PAGE + 50))
        wait_until(lambda: not file.mapping.trylock_shared() or file.mapping.unlock_shared(), "the truncation to wait")
        assert store.size() == len(data)
        store.gate.set()
        reader_got = reader.join_well()[0]
        cutter.join_well()
        assert reader_got in (data[10 * PAGE : 10 * PAGE + 100], data[10 * PAGE : 10 * PAGE + 50])
        assert file.pread(100, 10 * PAGE) == data[10 * PAGE : 10 * PAGE + 50]
        assert file.mapping.get_folio(11) is None

    def test_a_read_that_came_second_sees_the_new_size(self, open_gated, data):
        file, store = open_gated("truncate")
        cutter = Crew(lambda: file.truncate(10 * PAGE + 50))
        assert store.entered.wait(PATIENCE_S)
        reader = Crew(lambda: file.pread(100, 10 * PAGE), lambda: file.pread(100, 20 * PAGE))
        store.gate.set()
        cutter.join_well()
        assert reader.join_well() == [data[10 * PAGE : 10 * PAGE + 50], b""]

    def test_nothing_is_read_back_between_truncating_the_cache_and_the_store(self, open_gated, data):
        """A miss below the new end waits as well: the store's blocks are on their way."""
        file, store = open_gated("truncate")
        cutter = Crew(lambda: file.truncate(10 * PAGE))
        assert store.entered.wait(PATIENCE_S)
        reader = Crew(lambda: file.pread(100, 5 * PAGE))
        assert file.mapping.nrpages == 0
        assert not file.mapping.trylock_shared()
        store.gate.set()
        cutter.join_well()
        assert reader.join_well() == [data[5 * PAGE : 5 * PAGE + 100]]

    def test_cached_pages_are_read_while_a_truncation_is_under_way(self, open_gated, data):
        file, store = open_gated("truncate")
        assert file.pread(4 * PAGE, 0) == data[: 4 * PAGE]
        cutter = Crew(lambda: file.truncate(10 * PAGE))
        assert store.entered.wait(PATIENCE_S)
        assert file.pread(PAGE, PAGE) == data[PAGE : 2 * PAGE]
        with file.view(100, 2 * PAGE) as view:
            assert view == data[2 * PAGE : 2 * PAGE + 100]
        assert file.pread(10, 12 * PAGE) == b""
        store.gate.set()
        cutter.join_well()

    def test_readahead_that_is_under_way_is_waited_for_and_removed(self, make_cache, data):
        store = GatedStore(data, "")
        with make_cache(64 * PAGE).open(store, "r+b") as file:
            file.pread(1, 0)
            store.gated = "readv"
            reader = Crew(lambda: file.pread(1, PAGE))  # touches the marker
            assert store.entered.wait(PATIENCE_S)
            assert file.mapping.nrpages > 2
            cutter = Crew(lambda: file.truncate(2 * PAGE))
            wait_until(lambda: file.mapping.size == 2 * PAGE, "the new size")
            assert store.size() == len(data)
            store.gate.set()
            cutter.join_well()
            reader.join_well()
            assert file.inode.wait_idle(PATIENCE_S)
            assert [index for index, _, _ in file.mapping.folios()] == [0, 1]
            assert store.size() == 2 * PAGE

    def test_readahead_that_believes_an_old_size_brings_no_byte_from_behind_the_end(self, make_cache, data):
        """Pages that were added behind the end are zero."""
        with make_cache(64 * PAGE).open(pagecache.MemoryStore(data)) as file:
            mapping = file.mapping
            with mapping.shared():
                batch = mapping.new_batch(8)
                mapping.size = 9 * PAGE + 10
                assert batch.extend(15, 2, -1, 0) == 0
                pagecache.requests.submit.read_now(mapping, batch)
            folio = mapping.get_folio(8)
            assert folio.tobytes() == data[8 * PAGE : 9 * PAGE + 10] + bytes(3 * PAGE - 10)
            assert mapping.get_folio(12).tobytes() == bytes(4 * PAGE)
            folio.put()

    FILLERS = {
        "pread": lambda file, area: file.pread(3 * PAGE, 20 * PAGE),
        "view": lambda file, area: bytes(file.view(100, 20 * PAGE)),
        "prefetch": lambda file, area: file.prefetch(20 * PAGE, 4 * PAGE).wait(PATIENCE_S),
        "map": lambda file, area: area[20 * PAGE],
    }

    @pytest.mark.parametrize("filler", FILLERS)
    def test_no_page_is_added_behind_the_end_by_who_believed_an_old_size(self, make_cache, data, filler):
        """It would be found there, with its zeros, when the file has grown over it."""
        with make_cache(64 * PAGE).open(pagecache.MemoryStore(data), "r+b") as file, file.mmap() as area:
            mapping = file.mapping
            mapping.lock_exclusive()
            crew = Crew(lambda: self.FILLERS[filler](file, area))
            wait_until(lambda: mapping.nr_waiting == (1, 0), "the reader to wait for invalidate_lock")
            truncate.truncate_setsize(mapping, 10 * PAGE)
            mapping.unlock_exclusive()
            (result,) = crew.join()
            assert isinstance(result, BusError) if filler == "map" else not isinstance(result, BaseException)
            assert [index for index, _, _ in mapping.folios() if index >= 10] == []

    def test_growing_never_shows_what_was_behind_the_end_in_memory(self, make_cache, data, rng):
        with make_cache(16 * PAGE).open(pagecache.MemoryStore(data)) as file:
            mapping = file.mapping
            for _ in range(ROUNDS):
                truncate.truncate_inode_pages(mapping, 0)
                mapping.size = len(data)
                file.pread(PAGE, 3 * PAGE)
                size = 3 * PAGE + rng.randrange(1, PAGE)
                mapping.size = size  # without cutting the page: its tail keeps the old bytes
                expected = data[3 * PAGE : size]

                def read(expected=expected):
                    for _ in range(20):
                        got = file.pread(PAGE, 3 * PAGE)
                        assert got in (expected, expected.ljust(PAGE, b"\0"))

                Crew(read, lambda: truncate.truncate_setsize(mapping, 4 * PAGE), read).join_well()
                assert file.pread(PAGE, 3 * PAGE) == expected.ljust(PAGE, b"\0")


class TestReclaimAgainstLookup:
    def test_a_folio_that_was_found_is_the_page_that_was_asked_for(self, frames, seed):
        segment = Segment(frames, nr_mappings=8)
        mappings = [AddressSpace(segment, f"object {number}") for number in range(2)]

        def expected(mapping, index):
            return bytes([mapping.number * 60 + index]) * PAGE

        def work(number):
            rng = random.Random(seed + number)
            for _ in range(4 * ROUNDS):
                mapping, index = rng.choice(mappings), rng.randrange(60)
                folio = mapping.get_folio(index)
                if folio is None:
                    add_page(mapping, index, expected(mapping, index))
                    continue
                try:
                    if folio.uptodate:
                        assert folio.tobytes() == expected(mapping, index)
                        assert folio.index == index
                finally:
                    folio.put()

        def squeeze():
            for _ in range(4 * ROUNDS):
                segment.reclaim(2)

        Crew(*(lambda n=number: work(n) for number in range(4)), squeeze).join_well()
        segment.check()

    def test_reads_through_a_tiny_cache_get_the_right_bytes(self, frames, seed, data):
        with checked_cache(frames) as cache, cache.open(Store(data)) as file:

            def work(number):
                rng = random.Random(seed + number)
                for _ in range(ROUNDS):
                    pos, nbytes = rng.randrange(len(data)), rng.choice((1, 100, PAGE, 3 * PAGE, 20 * PAGE))
                    assert file.pread(nbytes, pos) == data[pos : pos + nbytes]

            Crew(*(lambda n=number: work(n) for number in range(8))).join_well()


class TestReadAgainstRemoval:
    """While pages are removed, folios split or caches dropped: readers get the bytes of the file."""

    REMOVERS = {
        "invalidate": lambda file, cache, rng: file.invalidate(),
        "invalidate a range": lambda file, cache, rng: file.invalidate(rng.randrange(32) * PAGE, 5 * PAGE),
        "dontneed": lambda file, cache, rng: file.fadvise(pagecache.FADV_DONTNEED, rng.randrange(32) * PAGE),
        "drop_caches": lambda file, cache, rng: cache.drop_caches(),
        "reclaim": lambda file, cache, rng: cache.segment.reclaim(8),
        "prefetch": lambda file, cache, rng: file.prefetch(rng.randrange(32) * PAGE, 9 * PAGE).wait(PATIENCE_S),
    }

    @pytest.mark.parametrize("nr_frames", [3, 64])
    @pytest.mark.parametrize("names", [[name] for name in REMOVERS] + [list(REMOVERS)], ids=" and ".join)
    def test_readers_get_the_bytes_of_the_file(self, data_file, names, nr_frames, seed):
        path, data = data_file(32 * PAGE - 77)
        with checked_cache(nr_frames) as cache, cache.open(path) as file:
            done = threading.Event()

            def read(number):
                rng = random.Random(seed + number)
                for _ in range(ROUNDS):
                    pos, nbytes = rng.randrange(len(data)), rng.choice((1, PAGE, 40_000))
                    assert file.pread(nbytes, pos) == data[pos : pos + nbytes]
                    with file.view(500, pos) as view:
                        assert view == data[pos : pos + 500]

            def remove(name):
                rng = random.Random(seed)
                while not done.is_set():
                    self.REMOVERS[name](file, cache, rng)

            removers = [threading.Thread(target=remove, args=(name,), daemon=True) for name in names]
            for thread in removers:
                thread.start()
            try:
                Crew(*(lambda n=number: read(n) for number in range(3))).join_well()
            finally:
                done.set()
                for thread in removers:
                    thread.join(PATIENCE_S)
            assert file.inode.wait_idle(PATIENCE_S)

    def test_readers_do_not_notice_that_a_folio_is_split(self, make_cache, seed):
        content = pages_of(64 * PAGE)
        with make_cache(256 * PAGE).open(pagecache.MemoryStore(content)) as file:
            mapping = file.mapping
            done = threading.Event()

            def split():
                rng = random.Random(seed)
                try:
                    for _ in range(ROUNDS):
                        truncate.truncate_inode_pages(mapping, 0)
                        add_page(mapping, 0, content, 6)
                        for _ in range(4):
                            index = rng.randrange(64)
                            folio = mapping.get_folio(index)
                            if folio is not None and folio.trylock():
                                if folio.is_page_of(mapping, index):
                                    folio.split(index)
                                folio.unlock()
                finally:
                    done.set()

            def read(number):
                rng = random.Random(seed + number)
                while not done.is_set():
                    pos, nbytes = rng.randrange(64 * PAGE), rng.choice((1, 200, 2 * PAGE, 10 * PAGE))
                    assert file.pread(nbytes, pos) == content[pos : pos + nbytes]

            Crew(split, lambda: read(1), lambda: read(2)).join_well()


class TestManyTruncations:
    def test_reads_prefetches_and_truncations_end(self, frames, seed):
        """No thread waits for one that waits for it; at the end the bytes are the store's."""
        store = pagecache.MemoryStore(pages_of(64 * PAGE))
        with checked_cache(max(frames, 8)) as cache, cache.open(store, "r+b") as file:

            def work(number):
                rng = random.Random(seed + number)
                for _ in range(ROUNDS):
                    pos = rng.randrange(64) * PAGE
                    choice = rng.random()
                    if choice < 0.3:
                        file.truncate(rng.randrange(64 * PAGE))
                    elif choice < 0.5:
                        file.fadvise(pagecache.FADV_WILLNEED, pos, 16 * PAGE)
                    elif choice < 0.9:
                        file.pread(rng.choice((1, PAGE, 20 * PAGE)), pos)
                    else:
                        with file.view(100, pos) as view:
                            bytes(view)

            Crew(*(lambda n=number: work(n) for number in range(5))).join_well()
            wait_until(lambda: file.inode.wait_idle(PATIENCE_S), "background reads")
            assert file.mapping.size == store.size()
            assert file.pread(64 * PAGE, 0) == store.tobytes()
