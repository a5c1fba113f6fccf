"""Objects that are to be read whole: their first miss brings all of it by one request, whatever else is asked meanwhile."""

import errno
import pickle

import pytest
from support import PAGE, Crew, Store, assert_nothing_is_held, pages_of, read
from support.http_server import ObjectServer

import pagecache

NR_PAGES = 100
DATA = pages_of(NR_PAGES * PAGE - 77)


class WholeStore(Store):
    """Wants to be read whole, by requests far larger than others may be."""

    whole_up_to = 1 << 20
    max_request = preferred_request = 4 * PAGE
    parallel_requests = 8


def test_the_first_miss_brings_all(make_cache, rng):
    store = WholeStore(DATA)
    with make_cache(4 * NR_PAGES * PAGE).open(store) as file:
        for _ in range(20):
            offset, nbytes = rng.randrange(len(DATA)), rng.randrange(10 * PAGE)
            assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
    assert store.requests == [(0, len(DATA))]


@pytest.mark.parametrize("way", ["preadinto", "view", "iter_views", "preadv"])
def test_whichever_way_it_is_read(make_cache, way):
    store = WholeStore(DATA)
    with make_cache(4 * NR_PAGES * PAGE).open(store) as file:
        if way == "preadv":
            assert file.get_byte_ranges([0, 50 * PAGE, 90 * PAGE], [10, 10, 10])[1] == DATA[50 * PAGE : 50 * PAGE + 10]
        else:
            assert bytes(read(file, way, 10, 50 * PAGE)) == DATA[50 * PAGE : 50 * PAGE + 10]
        assert file.pread(len(DATA), 0) == DATA
    assert store.requests == [(0, len(DATA))]


def test_a_map_too(make_cache):
    store = WholeStore(DATA)
    with make_cache(4 * NR_PAGES * PAGE).open(store) as file, file.mmap(access=pagecache.ACCESS_READ) as mapped:
        assert mapped[50 * PAGE] == DATA[50 * PAGE]
        assert mapped[:] == DATA
    assert store.requests == [(0, len(DATA))]


def test_threads_wait_for_the_one_request(make_cache):
    store = WholeStore(DATA)
    with make_cache(4 * NR_PAGES * PAGE).open(store) as file:
        crew = Crew(*[lambda page=page: file.pread(PAGE, page * PAGE) for page in range(0, NR_PAGES - 1, 10)])
        assert crew.join_well() == [DATA[page * PAGE : (page + 1) * PAGE] for page in range(0, NR_PAGES - 1, 10)]
    assert store.requests == [(0, len(DATA))]


@pytest.mark.parametrize(
    ("size", "budget"), [((1 << 20) + 1, 1024 * PAGE), (NR_PAGES * PAGE, 2 * NR_PAGES * PAGE - 64 * PAGE)],
    ids=["larger than wanted", "more than half the cache"],
)  # fmt: skip
def test_others_are_read_as_ever(make_cache, size, budget):
    store = WholeStore(pages_of(size))
    with make_cache(budget).open(store) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        assert file.pread(1, 50 * PAGE) == store.data[50 * PAGE : 50 * PAGE + 1]
        file.fadvise(pagecache.FADV_NORMAL)
        assert file.pread(1, 70 * PAGE) == store.data[70 * PAGE : 70 * PAGE + 1]
    assert all(nbytes <= store.max_request for _, nbytes in store.requests)


def test_a_random_reader_gets_just_that(make_cache):
    store = WholeStore(DATA)
    with make_cache(4 * NR_PAGES * PAGE).open(store) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        file.pread(PAGE, 50 * PAGE)
    assert store.requests == [(50 * PAGE, PAGE)]


def test_a_request_that_fails_costs_no_reader_a_page_that_can_be_read(make_cache):
    class Choosy(WholeStore):
        def answer(self, offset, buffers):
            if sum(map(len, buffers)) > self.max_request:
                raise OSError(errno.EIO, "too much")
            return super().answer(offset, buffers)

    cache = make_cache(4 * NR_PAGES * PAGE)
    with cache.open(Choosy(DATA)) as file:
        assert file.pread(10 * PAGE, 7 * PAGE) == DATA[7 * PAGE : 17 * PAGE]
    assert_nothing_is_held(cache)


def test_small_caches(make_cache, frames):
    store = WholeStore(DATA)
    with make_cache(frames * PAGE).open(store) as file:
        assert b"".join(file.pread(PAGE, page * PAGE) for page in range(NR_PAGES)) == DATA


def test_what_is_no_size_is_refused(make_cache):
    store = Store(DATA)
    store.whole_up_to = "1MiB"
    with pytest.raises(ValueError, match="whole_up_to"):
        make_cache("1MiB").open(store)


class TestLibraries:
    @pytest.fixture
    def server(self):
        pytest.importorskip("aiohttp", reason="aiohttp is not installed")
        with ObjectServer() as running:
            yield running

    def read_all_over(self, open_file):
        with open_file() as file:
            for offset in range(len(DATA) - 10, 0, -7 * PAGE):
                file.seek(offset)
                assert file.read(10) == DATA[offset : offset + 10]

    def test_fsspec_both_ways(self, server, make_cache):
        fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
        pytest.importorskip("pagecache.adapters.fsspec")
        url = server.put("object", DATA)
        ways = [
            lambda: fsspec.open(f"pagecache::{url}", pagecache={"whole_up_to": "1MiB"}).open(),
            lambda: fsspec.filesystem("http", skip_instance_cache=True).open(
                url, cache_type="pagecache", cache_options={"whole_up_to": "1MiB"}
            ),
        ]
        for way in ways:
            with pagecache.using(make_cache("4MiB")):
                server.forget()
                self.read_all_over(way)
                assert [request.method for request in server.requests].count("GET") == 1

    @pytest.mark.parametrize("kind", ["fsspec", "obstore"])
    def test_stores_keep_it_when_they_are_pickled(self, server, make_cache, kind):
        url = server.put("object", DATA)
        if kind == "fsspec":
            from pagecache.stores.fsspec import store_of_url

            store = store_of_url(url, whole_up_to="1MiB")
        else:
            obstore = pytest.importorskip("obstore", reason="obstore is not installed")
            base = obstore.store.HTTPStore.from_url(url.removesuffix("/object"), client_options={"allow_http": True})
            store = pagecache.ObspecStore(base, "object", whole_up_to="1MiB")
        store = pickle.loads(pickle.dumps(store))
        server.forget()
        self.read_all_over(lambda: make_cache("4MiB").open(store))
        assert [request.method for request in server.requests].count("GET") == 1
