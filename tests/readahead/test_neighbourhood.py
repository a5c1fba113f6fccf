"""Reading around a miss where the store is far: how much, and that it changes neither bytes nor errors."""

from collections import deque

import pytest
from support import PAGE, FaultyStore, Store, add_page, pages_of

from pagecache.readahead.neighbourhood import BLOCK_PAGES, DENSE_PART, GROWTH, SMALL_REQUEST, block_pages
from pagecache.requests.locality import NEAR_PAGES, RECENT_MISSES

NR_PAGES = 8192
DATA = pages_of(NR_PAGES * PAGE)
LATENCY_S = 0.02
WINDOW = 16 * BLOCK_PAGES


def make_far(file, latency_s=LATENCY_S):
    """Let the cache believe that it measured this latency, at 200 MB a second."""
    speed = file.mapping.backing.speed
    for nbytes in (PAGE, 1024 * PAGE):
        speed.observe(nbytes, latency_s + nbytes / 200e6)
    speed.observe = lambda nbytes, seconds: None  # these stores are in memory: they would be found near


class Far(Store):
    preferred_request = 1024 * PAGE
    max_request = 4096 * PAGE


class Sparse(Far):
    """Zeros, and many of them."""

    def __init__(self, nbytes):
        super().__init__(b"")
        self.nbytes = nbytes

    def size(self):
        return self.nbytes

    def answer(self, offset, buffers):
        return sum(map(len, buffers))


@pytest.fixture
def far(make_cache):
    """A file of a far store, of which nothing is cached."""
    file = make_cache(32 * NR_PAGES * PAGE // 4).open(Far(DATA))
    make_far(file)
    yield file
    file.close()


def pages_read(file):
    """Return (first page, pages) of the requests so far, in order, and forget them."""
    requests, file.inode.store.requests = file.inode.store.requests, []
    return sorted((offset // PAGE, -(-nbytes // PAGE)) for offset, nbytes in requests)


class TestSize:
    def test_of_a_near_store(self, make_cache):
        with make_cache(NR_PAGES * PAGE).open(Far(pages_of(PAGE))) as file:
            make_far(file, latency_s=0.0001)
            assert block_pages(file.mapping, 100, 1, WINDOW) == 1

    def test_of_a_far_store(self, far):
        assert block_pages(far.mapping, 100, 1, WINDOW) == BLOCK_PAGES
        assert block_pages(far.mapping, 100, SMALL_REQUEST, WINDOW) == BLOCK_PAGES
        assert block_pages(far.mapping, 100, SMALL_REQUEST + 1, WINDOW) == 1

    def test_of_a_cache_that_is_small_or_crowded(self, make_cache, far):
        assert block_pages(far.mapping, 100, 1, BLOCK_PAGES - 1) == 1
        with make_cache(8 * BLOCK_PAGES * PAGE).open(Far(DATA, key="other")) as file:
            make_far(file)
            assert block_pages(file.mapping, 100, 1, WINDOW) == 1

    @pytest.mark.parametrize("beside", [-1, 1])
    def test_grows_where_there_are_neighbours(self, far, beside):
        index = 5 * GROWTH * BLOCK_PAGES + BLOCK_PAGES
        assert add_page(far.mapping, index + beside * BLOCK_PAGES)
        assert block_pages(far.mapping, index, 1, WINDOW) == GROWTH * BLOCK_PAGES
        assert add_page(far.mapping, index + GROWTH * BLOCK_PAGES)
        assert block_pages(far.mapping, index, 1, WINDOW) == GROWTH**2 * BLOCK_PAGES
        assert block_pages(far.mapping, 0, 1, WINDOW) == BLOCK_PAGES

    def test_pages_of_the_same_block_are_no_neighbours(self, far):
        assert add_page(far.mapping, 3)
        assert block_pages(far.mapping, 5, 1, WINDOW) == BLOCK_PAGES


class TestReads:
    def test_that_lie_close_together_bring_their_blocks_in_one_request(self, far):
        near = [10 * BLOCK_PAGES + 7, 13 * BLOCK_PAGES, 11 * BLOCK_PAGES + 7, 8 * BLOCK_PAGES]
        for index in near:
            assert far.pread(5, index * PAGE) == pages_of(5, index * PAGE)
        assert [nr for _, nr in sorted(pages_read(far))].count(1) == 3  # before it was known
        far.pread(5, (12 * BLOCK_PAGES + 3) * PAGE)
        far.pread(5, (12 * BLOCK_PAGES + 60) * PAGE)
        assert len(pages_read(far)) <= 1

    def test_scattered_ones_bring_just_their_pages(self, far):
        for index in range(2 * NEAR_PAGES, NR_PAGES, 2 * NEAR_PAGES):
            far.pread(5, index * PAGE)
        assert {nr_pages for _, nr_pages in pages_read(far)} == {1}

    def test_at_random_over_much_bring_just_their_pages(self, make_cache, rng):
        nr_pages = 100_000
        with make_cache("64MiB").open(Sparse(nr_pages * PAGE)) as file:
            make_far(file)
            latest = deque(maxlen=RECENT_MISSES)
            while file.stats().misses < 500:
                index = rng.randrange(1, nr_pages)
                if all(abs(index - other) > NEAR_PAGES for other in latest):  # by chance they may lie close together, too
                    file.pread(5, index * PAGE)
                    latest.append(index)
            assert sum(nr for _, nr in pages_read(file)) <= 500 * 1.1

    def test_where_much_is_cached_bring_their_block(self, far):
        for index in range(GROWTH * BLOCK_PAGES // DENSE_PART):
            assert add_page(far.mapping, index)
        far.pread(5, (2 * BLOCK_PAGES + 5) * PAGE)
        cached = GROWTH * BLOCK_PAGES // DENSE_PART
        assert pages_read(far) == [(cached, GROWTH * BLOCK_PAGES - cached)]

    def test_a_dense_walk_in_any_order_takes_few_requests(self, far, rng):
        indices = list(range(0, NR_PAGES, 5))
        rng.shuffle(indices)
        for index in indices:
            assert far.pread(9, index * PAGE + 5) == DATA[index * PAGE + 5 : index * PAGE + 14]
        assert len(pages_read(far)) < len(indices) // 4

    def test_of_many_pages_bring_just_those(self, far):
        far.pread(50 * PAGE, 1000 * PAGE)
        assert pages_read(far) == [(1000, 50)]

    def test_advised_to_be_random_bring_just_the_page(self, far):
        far.is_random = True
        far.pread(5, 1000 * PAGE)
        assert pages_read(far) == [(1000, 1)]

    def test_beside_a_bad_page_are_right_and_of_it_are_errors(self, make_cache):
        bad = 10 * BLOCK_PAGES + 3
        store = FaultyStore(
            DATA, lambda _, first, last: OSError(5, "bad page") if first <= bad <= last else None
        )
        with make_cache(NR_PAGES * PAGE).open(store) as file:
            make_far(file)
            for index in (bad + 4, bad - 2):
                assert file.pread(3 * PAGE // 2, index * PAGE) == pages_of(3 * PAGE // 2, index * PAGE)
            with pytest.raises(OSError, match="bad page"):
                file.pread(1, bad * PAGE)

    def test_near_the_end(self, far):
        assert far.pread(99, NR_PAGES * PAGE - 9) == DATA[-9:]
