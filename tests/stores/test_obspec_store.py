"""ObspecStore: obstore's stores, and others with obspec's methods."""

import errno
import pickle

import pytest
from support import PAGE, Crew, assert_nothing_is_held, pages_of
from support.http_server import ObjectServer

import pagecache
from pagecache.stores.obspec import ObspecStore, identity_of

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)
OTHER = bytes(SIZE)


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


@pytest.fixture
def stores():
    return pytest.importorskip("obstore.store", reason="obstore is not installed")


def over_http(stores, server):
    return stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})


class Ranges:
    """The least that obspec asks of a reader: head and get_range, no conditions."""

    def __init__(self, data):
        self.data, self.version, self.asked = data, "1", []

    def head(self, path):
        self.asked.append("head")
        return {"path": path, "size": len(self.data), "e_tag": self.version, "version": None, "last_modified": None}

    def get_range(self, path, *, start, end=None, length=None):
        self.asked.append("get_range")
        return self.data[start : start + length if end is None else end]


class TestObstore:
    @pytest.fixture(params=["memory", "local", "http"])
    def place(self, request, stores, server, tmp_path):
        """(obspec store, function that replaces the object)"""
        if request.param == "http":
            server.put("object", DATA)
            return over_http(stores, server), lambda data: server.put("object", data)
        store = stores.MemoryStore() if request.param == "memory" else stores.LocalStore(tmp_path)
        store.put("object", DATA)
        return store, lambda data: store.put("object", data)

    def test_bytes_are_those_of_the_object(self, place, cache, rng):
        with cache.open(ObspecStore(place[0], "object")) as file:
            for _ in range(50):
                offset, nbytes = rng.randrange(SIZE + 10), rng.randrange(5 * PAGE)
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            assert file.read() == DATA

    @pytest.mark.parametrize("recheck", [True, False, "open", 3600])
    @pytest.mark.parametrize("on_change", ["error", "reload"])
    def test_replaced_object_is_an_error_or_all_new(self, place, cache, recheck, on_change):
        store, put = place
        with cache.open(ObspecStore(store, "object", recheck=recheck), on_change=on_change) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(SIZE // 2, 0) == DATA[: SIZE // 2]
            put(OTHER)
            if on_change == "reload":
                assert file.pread(SIZE, 0) == OTHER
                return
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(SIZE, 0)
            assert caught.value.errno == errno.ESTALE
        with cache.open(ObspecStore(store, "object")) as file:
            assert file.read() == OTHER

    def test_every_fill_is_conditional(self, stores, server, cache):
        server.put("object", DATA, etag='"one"')
        with cache.open(ObspecStore(over_http(stores, server), "object")) as file:
            assert file.read() == DATA
        gets = [request for request in server.requests if request.method == "GET"]
        assert {request.if_match for request in gets} == {'"one"'}
        assert server.count("HEAD") == 1

    def test_server_that_ignores_conditions_is_found_out(self, stores, server, cache):
        server.put("object", DATA)
        server.honours_if_match = False
        with cache.open(ObspecStore(over_http(stores, server), "object")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(1, 0)
            server.put("object", OTHER)
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(1, 9 * PAGE)
            assert caught.value.errno == errno.ESTALE

    def test_missing_object(self, place, cache):
        with pytest.raises(FileNotFoundError, match=r"no such object.*nothing") as caught:
            cache.open(ObspecStore(place[0], "nothing"))
        assert caught.value.errno == errno.ENOENT

    def test_failed_request_is_an_error_once_and_never_zeros(self, stores, server, cache):
        server.put("object", DATA)
        with cache.open(ObspecStore(over_http(stores, server), "object")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            server.fail_next(1, 503)
            with pytest.raises(OSError, match=f"offset {8 * PAGE}"):
                file.pread(8, 8 * PAGE)
            assert file.pread(8, 8 * PAGE) == DATA[8 * PAGE : 8 * PAGE + 8]
        assert_nothing_is_held(cache)

    def test_threads_that_want_one_cold_page_make_one_request(self, stores, server, cache):
        server.put("object", DATA[:PAGE])
        server.delay_s = 0.05
        with cache.open(ObspecStore(over_http(stores, server), "object")) as file:
            assert Crew(*[lambda: file.pread(PAGE, 0)] * 8).join_well() == [DATA[:PAGE]] * 8
        assert server.count("GET") == 1


class TestIdentity:
    def test_same_configuration_is_the_same_object(self, stores, tmp_path):
        options = {"region": "eu-west-1", "access_key_id": "a", "secret_access_key": "b"}
        one, same = (stores.S3Store("bucket", endpoint="http://one", **options) for _ in range(2))
        other = stores.S3Store("bucket", endpoint="http://other", **options)
        assert identity_of(one) == identity_of(same) != identity_of(other)
        assert "b" * 2 not in identity_of(one)
        assert identity_of(stores.LocalStore(tmp_path)) == identity_of(stores.LocalStore(tmp_path))
        assert identity_of(stores.LocalStore(tmp_path)) != identity_of(stores.LocalStore("/"))
        assert identity_of(stores.HTTPStore("http://a")) != identity_of(stores.HTTPStore("http://b"))

    def test_stores_without_configuration_are_themselves(self, stores):
        one, other = stores.MemoryStore(), stores.MemoryStore()
        assert identity_of(one) == identity_of(one) != identity_of(other)
        known = identity_of(one)
        del one
        assert all(identity_of(stores.MemoryStore()) != known for _ in range(20))

    def test_given_key_counts(self, cache):
        one, other = Ranges(DATA), Ranges(DATA)
        with (
            cache.open(ObspecStore(one, "object", key="mine")) as first,
            cache.open(ObspecStore(other, "object", key="mine")) as second,
        ):
            assert first.read() == second.read() == DATA
            assert "get_range" not in other.asked

    def test_handles_pickle_as_how_to_open_them(self, stores, cache, tmp_path):
        store = stores.LocalStore(tmp_path)
        store.put("object", DATA)
        with cache.open(ObspecStore(store, "object")) as file, pagecache.using(cache):
            file.seek(77)
            packed = pickle.dumps(file)
            assert len(packed) < 2000
            with pickle.loads(packed) as again:
                assert (again.tell(), again.read(5)) == (77, DATA[77:82])


class TestAnything:
    def test_store_without_conditions_is_looked_at_after_each_read(self, cache):
        store = Ranges(DATA)
        with cache.open(ObspecStore(store, "object")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            store.asked.clear()
            assert file.pread(PAGE, 0) == DATA[:PAGE]
            assert store.asked == ["get_range", "head"]
            store.data, store.version = OTHER, "2"
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(PAGE, 5 * PAGE)
            assert caught.value.errno == errno.ESTALE

    def test_what_is_no_store_is_named(self):
        with pytest.raises(TypeError, match="lacks head, get_range"):
            ObspecStore(object(), "object")
