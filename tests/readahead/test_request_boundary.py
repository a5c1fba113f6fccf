"""A store may say which offsets no request crosses: pages that wait for one server then wait for no other."""

import pytest
from support import PAGE, WAYS, Crew, Store, pages_of, read

import pagecache

NR_PAGES = 400
DATA = pages_of(NR_PAGES * PAGE - 99)


class DividedStore(Store):
    """Is made of parts, and remembers what crossed the ends of any."""

    latency = "remote"
    preferred_request = 64 * PAGE
    max_request = 1024 * PAGE
    parallel_requests = 8

    def __init__(self, part_pages, **hints):
        super().__init__(DATA)
        self.request_boundary = part_pages * PAGE
        self.__dict__.update(hints)

    def crossings(self):
        return [
            (offset, nbytes)
            for offset, nbytes in self.requests
            if offset // self.request_boundary != (offset + nbytes - 1) // self.request_boundary
        ]


@pytest.mark.parametrize("hints", [{}, {"latency": "device"}, {"whole_up_to": 1 << 30}], ids=["far", "near", "whole"])
@pytest.mark.parametrize("part_pages", [1, 7, 24, 64])
def test_no_request_and_no_folio_crosses_it(make_cache, frames, part_pages, hints, rng):
    store, cache = DividedStore(part_pages, **hints), make_cache(frames * PAGE)
    with cache.open(store) as file:
        for number in range(60):
            offset, nbytes = rng.randrange(len(DATA)), rng.choice((1, PAGE, 40 * PAGE))
            if frames < 64:
                nbytes = min(nbytes, PAGE)
            if number % 20 == 10:
                cache.drop_caches()
            if number % 20 == 15:
                file.prefetch(offset, nbytes).wait()
            assert bytes(read(file, rng.choice(WAYS[:2]), nbytes, offset)) == DATA[offset : offset + nbytes]
        for offset in range(0, len(DATA), 3 * PAGE):
            assert file.pread(3 * PAGE, offset) == DATA[offset : offset + 3 * PAGE]
        folios = list(file.mapping.folios())
        assert file.inode.wait_idle(30)
    assert store.crossings() == []
    assert all(index // part_pages == (index + (1 << order) - 1) // part_pages for index, order, _ in folios)


def test_ranges_and_maps_and_threads(make_cache):
    store = DividedStore(24)
    with make_cache("8MiB").open(store) as file, file.mmap(access=pagecache.ACCESS_READ) as mapped:
        assert mapped[23 * PAGE] == DATA[23 * PAGE]
        starts = [page * PAGE for page in range(100, 300, 9)]
        assert file.get_byte_ranges(starts, [5 * PAGE] * len(starts)) == [DATA[at : at + 5 * PAGE] for at in starts]
        Crew(*[lambda start=start: file.pread(90 * PAGE, start * PAGE) for start in (0, 60, 200, 310)]).join_well()
        assert mapped[:] == DATA
        assert file.inode.wait_idle(30)
    assert store.crossings() == []


@pytest.mark.parametrize("boundary", [-1, 100, PAGE + 1, "4096"])
def test_what_is_no_boundary_is_refused(make_cache, boundary):
    store = Store(DATA)
    store.request_boundary = boundary
    with pytest.raises(ValueError, match="request_boundary"):
        make_cache("1MiB").open(store)
