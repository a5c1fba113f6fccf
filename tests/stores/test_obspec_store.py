"""ObspecStore: obstore's stores, and others with obspec's methods."""

import asyncio
import copy
import errno
import gc
import pickle
import threading

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


def test_without_entity_tag_and_time_nothing_is_taken_for_unchanged(stores, server, cache):
    """obstore has the beginning of 1970 where a server says no time: that is no version."""
    server.sends_etag = False
    for data in (DATA, DATA[::-1]):
        server.put("object", data)
        with cache.open(ObspecStore(over_http(stores, server), "object")) as file:
            assert file.pread(len(data), 0) == data


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
        assert identity_of(stores.HTTPStore("http://a")) == identity_of(stores.HTTPStore("http://a"))
        mine, yours = ({"default_headers": {"Authorization": name}} for name in ("mine", "yours"))
        assert identity_of(stores.HTTPStore("http://a", client_options=mine)) != identity_of(
            stores.HTTPStore("http://a", client_options=yours)
        )

    def test_providers_of_credentials_are_themselves_even_if_an_address_comes_back(self, stores):
        found = set()
        for _ in range(20):
            found.add(identity_of(stores.S3Store("bucket", credential_provider=lambda: None)))
            gc.collect(1)
        assert len(found) == 20

    def test_stores_without_configuration_are_themselves(self, stores):
        one, other = stores.MemoryStore(), stores.MemoryStore()
        assert identity_of(one) == identity_of(one) != identity_of(other)
        known = identity_of(one)
        del one
        assert all(identity_of(stores.MemoryStore()) != known for _ in range(20))

    def test_given_key_counts(self, cache):
        one, other = Ranges(DATA), Ranges(DATA)
        with (
            cache.open(ObspecStore(one, "object", key="mine", thread_safe=True)) as first,
            cache.open(ObspecStore(other, "object", key="mine", thread_safe=True)) as second,
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


class CountedRanges(Ranges):
    """Notes who calls, and whether two threads ever do at once."""

    def __init__(self, data):
        super().__init__(data)
        self.threads, self.nr_inside, self.most_inside = set(), 0, 0
        self.changed = threading.Condition()

    def get_range(self, path, *, start, end=None, length=None):
        with self.changed:
            self.threads.add(threading.current_thread())
            self.nr_inside += 1
            self.most_inside = max(self.most_inside, self.nr_inside)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.nr_inside > 1, 0.004)
        try:
            return super().get_range(path, start=start, end=end, length=length)
        finally:
            with self.changed:
                self.nr_inside -= 1


class TestThreads:
    def test_a_store_of_which_nothing_is_known_is_called_by_its_users_thread(self, cache):
        store = CountedRanges(DATA)
        with cache.open(ObspecStore(store, "object")) as file:
            for start in range(0, len(DATA), 3000):
                assert file.pread(3000, start) == DATA[start : start + 3000]
                assert store.get_range("object", start=5, end=10) == DATA[5:10]
            file.cache.drop_caches()
            file.prefetch()
            assert asyncio.run(file.pread_async(len(DATA), 0)) == DATA
        assert (store.threads, store.most_inside) == ({threading.current_thread()}, 1)

    def test_threads_take_turns_whatever_objects_they_read(self, cache):
        store = CountedRanges(DATA)
        files = [cache.open(ObspecStore(store, f"object{number}", key="mine")) for number in range(3)]
        crew = Crew(*[lambda file=file: file.pread(len(DATA), 0) for file in files])
        assert crew.join_well() == [DATA] * 3
        assert store.most_inside == 1
        assert store.threads <= set(crew.threads)

    def test_no_thread_reads_through_a_store_of_another_one(self, cache):
        mine, others = CountedRanges(DATA), CountedRanges(DATA)
        first = cache.open(ObspecStore(mine, "object", key="same"))
        crew = Crew(lambda: cache.open(ObspecStore(others, "object", key="same")).pread(len(DATA), 0))
        assert crew.join_well() == [DATA]
        assert first.pread(10, 0) == DATA[:10]
        assert (mine.threads, others.threads) == ({threading.current_thread()}, set(crew.threads))

    @pytest.mark.parametrize("copied", [copy.copy, lambda store: store], ids=["copied", "itself"])
    def test_one_that_is_said_to_be_for_threads_is_read_in_parallel(self, cache, copied):
        store = CountedRanges(DATA)
        with cache.open(copied(ObspecStore(store, "object", thread_safe=True))) as file:
            ranges = [(PAGE, start) for start in range(0, len(DATA) - PAGE, 5 * PAGE)]
            assert file.preadv_many(ranges, hole_size=0) == [DATA[start : start + PAGE] for _, start in ranges]
            file.inode.wait_idle(30)
        assert store.most_inside > 1

    def test_obstores_own_are_for_threads(self, stores):
        store = stores.MemoryStore()
        store.put("object", DATA)
        assert ObspecStore(store, "object").background_reads
        assert ObspecStore(store, "object").parallel_requests > 1
        assert not ObspecStore(store, "object", thread_safe=False).background_reads

        class Mine(stores.MemoryStore):
            pass

        mine = Mine()
        mine.put("object", DATA)
        assert not ObspecStore(mine, "object").background_reads
