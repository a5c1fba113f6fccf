"""What HTTP servers say that is not quite so, through obstore; and other stores of obspec that answer wrongly."""

import errno

import pytest
from support import PAGE, assert_nothing_is_held, pages_of, wait_until
from support.faulty_http import (
    FAULTS,
    FaultyServer,
    begins_earlier,
    head_and_get,
    head_says_nothing,
    manners,
    refuses_head,
    states_no_length,
    stored_as_gzip,
)

import pagecache
from pagecache.stores import obspec
from pagecache.stores.described import Memory
from pagecache.stores.obspec import ObspecStore

stores = pytest.importorskip("obstore.store", reason="obstore is not installed")

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(obspec, "_heads_untrue", Memory())
    with FaultyServer() as running:
        running.put("object", DATA)
        yield running


@pytest.fixture
def store(server):
    return stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


def gets(server):
    return [request for request in server.requests if request.method == "GET"]


def assert_read_well(cache, store, data=DATA):
    with cache.open(ObspecStore(store, "object")) as file:
        assert file.size == len(data)
        for offset in range(len(data) - 1, 0, -7 * PAGE):
            assert file.pread(100, offset) == data[offset : offset + 100]
        assert file.pread(len(data) + 10, 0) == data


class TestHead:
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 410, 429, 500, 501, 503, None])
    def test_refused(self, server, store, cache, status):
        server.rewrite = refuses_head(status)
        assert_read_well(cache, store)

    @pytest.mark.parametrize("length", [None, 0])
    @pytest.mark.parametrize("ranges", [True, False])
    def test_says_nothing_or_that_there_is_nothing(self, server, store, cache, length, ranges):
        server.rewrite = head_says_nothing(length)
        server.honours_range = ranges
        assert_read_well(cache, store)

    @pytest.mark.parametrize("manner", [None, head_says_nothing(0)])
    def test_empty_objects_are_empty(self, server, store, cache, manner):
        server.put("object", b"")
        server.rewrite = manner
        assert_read_well(cache, store, b"")

    def test_other_size_than_get_has_is_an_error_once(self, server, store, cache):
        server.rewrite = head_and_get({"Content-Length": str(SIZE // 2)}, {})
        with cache.open(ObspecStore(store, "object")) as file:
            with pytest.raises(OSError, match=r"not what HEAD says|changed.*reopen") as caught:
                file.pread(10, 0)
            assert caught.value.errno == errno.ESTALE
        assert_read_well(cache, store)

    @pytest.mark.parametrize("status", ["503", "429", "500"])
    @pytest.mark.parametrize("manner", [None, refuses_head(405), head_says_nothing(0)])
    def test_error_of_get_is_the_error(self, server, store, cache, status, manner):
        server.rewrite = manner
        server.fail(status, times=3)
        with pytest.raises(OSError, match=status) as caught:
            ObspecStore(store, "object")
        assert not isinstance(caught.value, FileNotFoundError)
        server.heal()
        assert_read_well(cache, store)

    def test_missing_object_is_missing(self, server, store):
        with pytest.raises(FileNotFoundError):
            ObspecStore(store, "nothing")
        server.rewrite = refuses_head(403)
        with pytest.raises(FileNotFoundError):
            ObspecStore(store, "nothing")


class TestNoRanges:
    @pytest.fixture(autouse=True)
    def no_ranges(self, server):
        server.honours_range = False

    def test_object_is_transferred_once(self, server, store, cache, rng):
        with cache.open(ObspecStore(store, "object")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(10):
                offset = rng.randrange(SIZE)
                assert file.pread(PAGE, offset) == DATA[offset : offset + PAGE]
        assert [request.nbytes for request in gets(server) if request.range is None] == [SIZE]
        assert cache.stats().store_read_bytes == SIZE

    def test_larger_object_is_read_in_order(self, server, store, make_cache):
        with make_cache(20 * PAGE).open(ObspecStore(store, "object")) as file:
            assert b"".join(iter(lambda: file.read(3000), b"")) == DATA
        assert [request.range for request in gets(server)].count(None) == 1

    def test_replaced_object_is_an_error(self, server, store, make_cache):
        with make_cache(20 * PAGE).open(ObspecStore(store, "object", recheck=True)) as file:
            assert file.pread(10, 0) == DATA[:10]
            server.put("object", DATA[::-1])
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(10, 20 * PAGE)
            assert caught.value.errno == errno.ESTALE

    def test_open_answer_is_closed_with_the_file(self, server, store, make_cache):
        data = pages_of(4000 * PAGE)
        server.put("object", data)
        with make_cache(20 * PAGE).open(ObspecStore(store, "object")) as file:
            assert file.pread(10, 0) == data[:10]
        wait_until(lambda: server.bytes_sent() < 2 * len(data), "the connection to be closed")


class TestAnswers:
    @pytest.mark.parametrize("change", [b"more", -1])
    def test_other_lengths_than_the_range_fill_nothing(self, server, store, cache, change):
        def changes(answer):
            if answer.status == 206:
                answer.body = answer.body + change if isinstance(change, bytes) else answer.body[:change]

        with cache.open(ObspecStore(store, "object")) as file:
            server.rewrite = changes
            with pytest.raises(OSError, match=r"bytes came where|ended after") as caught:
                file.pread(10, 0)
            assert caught.value.errno == errno.EIO
            assert file.pread_cached(10, 0) is None
            server.rewrite = None
            assert file.pread(SIZE, 0) == DATA
        assert_nothing_is_held(cache)

    def test_range_of_more_bytes_than_asked_for_by_a_store_without_conditions(self, cache):
        class Long:
            def head(self, path):
                return {"path": path, "size": SIZE, "e_tag": "1", "version": None, "last_modified": None}

            def get_range(self, path, *, start, end=None, length=None):
                return DATA[start:end] + b"more"

        with cache.open(ObspecStore(Long(), "object")) as file, pytest.raises(OSError, match="bytes came where"):
            file.pread(10, 0)

    def test_wider_part_is_an_error_of_obstore(self, server, store, cache):
        with cache.open(ObspecStore(store, "object")) as file:
            server.rewrite = begins_earlier(10)
            with pytest.raises(OSError, match="cannot read"):
                file.pread(10, 20 * PAGE)
            server.rewrite = None
            assert file.pread(SIZE, 0) == DATA

    @pytest.mark.parametrize("manner", [states_no_length, manners(stored_as_gzip)])
    def test_lengths_that_are_not_said_are_errors_of_obstore(self, server, store, cache, manner):
        server.rewrite = manner
        with pytest.raises(OSError, match="Content-Length") as caught, cache.open(ObspecStore(store, "object")) as file:
            file.pread(10, 0)
        assert caught.value.errno == errno.EIO

    @pytest.mark.parametrize("tags", [('W/"x"', '"x"'), ('"x"', 'W/"x"'), ('W/"x"', 'W/"x"')])
    def test_mark_of_weakness_makes_no_other_version(self, server, store, cache, tags):
        server.honours_if_match = False
        server.rewrite = head_and_get({"ETag": tags[0]}, {"ETag": tags[1]})
        assert_read_well(cache, store)

    def test_condition_that_is_refused_though_it_holds_is_not_made(self, server, store, cache):
        def weakens(answer):
            if answer.method == "GET":
                answer.headers["ETag"] = 'W/"x"'
                if answer.asked.get("If-Match"):
                    answer.status, answer.body = 412, b""

        server.put("object", DATA, etag='"x"')
        server.rewrite = weakens
        assert_read_well(cache, store)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("when", ["size", "get"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_an_error_or_harmless_and_never_data(server, store, cache, fault, when, ranges):
    server.honours_range = ranges
    strikes = {"get": lambda answer: answer.method == "GET"}.get(when, when)
    server.fail(fault, when=strikes)
    try:
        with cache.open(ObspecStore(store, "object")) as file:
            found = file.pread(SIZE, 0)
    except OSError as error:
        assert not isinstance(error, FileNotFoundError) or fault == "404"
        found = None
    assert found in (None, DATA, server.data("object"))
    server.heal()
    assert_read_well(cache, store, server.data("object"))
    assert_nothing_is_held(cache)
