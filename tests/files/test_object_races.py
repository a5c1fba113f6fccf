"""Two threads in one object at once, where no GIL keeps them apart: what may happen once happens once.

With the GIL these pass more easily; `tests/run_with.py` runs them on an interpreter without it."""

import errno

import pytest
from support import PAGE, STRESS, BlockingStore, Crew, FaultyStore, Store, add_page, checked_cache, pages_of

from pagecache._core import AddressSpace, Places, Segment

NR_THREADS = 4
ROUNDS = 1000 if STRESS else 50


def outcomes(function):
    """Call a function in several threads at once; returns what each returned, or the type of what it raised."""
    results = Crew(*[function] * NR_THREADS).join()
    return [type(result) if isinstance(result, BaseException) else result for result in results]


def test_a_file_is_closed_once(make_cache):
    cache = make_cache(16 * PAGE)
    with cache.open(Store(b"abc")) as other:
        for _ in range(ROUNDS):
            file = cache.open(other.inode.store)
            assert other.inode.nr_open == 2
            assert outcomes(file.close) == [None] * NR_THREADS
            assert other.inode.nr_open == 1


def test_a_reference_is_dropped_once():
    segment = Segment(8)
    mapping = AddressSpace(segment)
    assert add_page(mapping, 0, b"x")
    for _ in range(ROUNDS):
        folio = mapping.get_folio(0)
        assert sorted(map(str, outcomes(folio.put))) == sorted(map(str, [None] + [ValueError] * (NR_THREADS - 1)))
        segment.check()


def test_a_lock_is_given_back_with_its_reference_once():
    segment = Segment(8)
    mapping = AddressSpace(segment)
    assert add_page(mapping, 0, b"x")
    for _ in range(ROUNDS):
        folio = mapping.get_folio(0)
        assert folio.trylock()
        outcomes(folio.put)
        assert not mapping.get_folio(0).locked
    segment.check()


def test_a_place_is_given_back_once():
    places = Places(3)
    for _ in range(ROUNDS):
        assert places.take()
        assert sorted(map(str, outcomes(places.give))) == sorted(map(str, [None] + [RuntimeError] * (NR_THREADS - 1)))
        assert places.taken == 0


def test_each_byte_is_read_once_at_the_position(make_cache):
    data = pages_of(8 * PAGE)
    with make_cache(32 * PAGE).open(Store(data)) as file:

        def read_words():
            return list(iter(lambda: file.read(8), b""))

        words = [word for part in Crew(*[read_words] * NR_THREADS).join_well() for word in part]
        assert sorted(int.from_bytes(word, "little") for word in words) == list(range(len(data) // 8))
        assert file.tell() == len(data)


def test_threads_are_started_once():
    for _ in range(ROUNDS):
        segment = Segment(2048)
        assert len(set(outcomes(segment.start_io))) == 1
        outcomes(segment.start_kswapd)
        del segment


def test_a_segment_is_initialised_once():
    for _ in range(ROUNDS):
        segment = Segment.__new__(Segment)
        results = outcomes(lambda segment=segment: segment.__init__(8))
        assert sorted(map(str, results)) == sorted(map(str, [None] + [RuntimeError] * (NR_THREADS - 1)))
        segment.check()


def test_failures_are_noted_by_many_at_once(make_cache):
    store = FaultyStore(pages_of(64 * PAGE), lambda number, first, last: OSError(errno.EIO, "no"))
    with make_cache(128 * PAGE).open(store) as file:

        def read_badly():
            for index in range(5000 // NR_THREADS):
                with pytest.raises(OSError, match="no") as raised:
                    file.pread(1, index % 64 * PAGE)
                assert raised.value.errno == errno.EIO

        Crew(*[read_badly] * NR_THREADS).join_well()


def test_a_batch_that_fails_while_its_memory_is_given_back():
    with checked_cache(64) as cache:
        mapping = AddressSpace(cache.segment)
        for _ in range(10 * ROUNDS):
            batch = mapping.new_batch(0)
            assert batch.extend(3, 0, -1, 4) == 0
            views = [memoryview(buffer) for buffer in batch.memory(4 * PAGE)]

            def give_back(views=views):
                for view in views:
                    view.release()

            Crew(batch.release, give_back).join_well()
            assert cache.segment.counters()["nr_pinned"] == 0
            assert len(batch) == 0
            assert mapping.nrpages == 0


def test_readers_of_one_view_release_it_together(make_cache):
    cache = make_cache(16 * PAGE)
    with cache.open(Store(pages_of(4 * PAGE))) as file:
        file.pread(4 * PAGE, 0)
        for _ in range(ROUNDS):
            view = file.view(100, 8)
            results = Crew(*[lambda view=view: bytes(view[:8])] * NR_THREADS).join_well()
            assert results == [pages_of(8, 8)] * NR_THREADS
            outcomes(view.release)
            assert cache.stats().nr_pinned == 0


def test_a_file_is_closed_while_it_is_read(make_cache):
    data = pages_of(4 * PAGE)
    cache = make_cache(16 * PAGE)
    for _ in range(ROUNDS):
        file = cache.open(Store(data))

        def read(file=file):
            try:
                while True:
                    assert file.pread(PAGE, PAGE) == data[PAGE : 2 * PAGE]
            except ValueError:
                return True

        reading = Crew(read, read, file.close)
        assert reading.join_well() == [True, True, None]


def test_closing_while_a_read_waits(make_cache):
    store = BlockingStore(pages_of(4 * PAGE))
    file = make_cache(16 * PAGE).open(store)
    crew = Crew(lambda: file.pread(8, 0))
    assert store.entered.wait(30)
    closing = Crew(*[file.close] * NR_THREADS)
    closing.join_well()
    store.go_on.set()
    assert crew.join_well() == [pages_of(8)]
