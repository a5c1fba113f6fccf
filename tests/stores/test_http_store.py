"""What HTTP servers say that is not quite so: FsspecStore reads what uncached reads, never less or a mix."""

import errno
import logging
import zlib

import pytest
from support import PAGE, Crew, assert_nothing_is_held, pages_of, wait_until
from support.faulty_http import (
    FAULTS,
    FaultyServer,
    begins_earlier,
    content_range,
    head_and_get,
    head_says_nothing,
    manners,
    refuses_head,
    states_no_length,
    stored_as_gzip,
)

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.stores import degraded, fsspec_http  # noqa: E402
from pagecache.stores.described import Memory  # noqa: E402
from pagecache.stores.fsspec import store_of_url  # noqa: E402
from pagecache.stores.http_answers import Part, part_of  # noqa: E402
from pagecache.stores.in_order import PIECE  # noqa: E402

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)
HEAD_STATUSES = (400, 401, 403, 404, 405, 406, 410, 429, 500, 501, 503)


@pytest.fixture
def server(monkeypatch):
    """A server, of which nothing is known that another one of the same address may have shown."""
    for name in ("_heads_refused", "_heads_untrue", "_measured"):
        monkeypatch.setattr(fsspec_http, name, Memory())
    monkeypatch.setattr(degraded, "_said", Memory())
    with FaultyServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


def gets(server):
    return [request for request in server.requests if request.method == "GET"]


def assert_read_well(cache, url, data=DATA, **options):
    """Read all over an object, and all of it."""
    with cache.open(url, **options) as file:
        assert file.size == len(data)
        for offset in range(len(data) - 1, 0, -7 * PAGE):
            assert file.pread(100, offset) == data[offset : offset + 100]
        assert file.pread(len(data) + 10, 0) == data


class TestHead:
    """Where HEAD does not tell, GET does."""

    @pytest.mark.parametrize("status", HEAD_STATUSES)
    def test_refused(self, server, cache, status):
        url = server.put("object", DATA)
        server.rewrite = refuses_head(status)
        assert_read_well(cache, url)
        assert server.bytes_sent() <= SIZE + len(gets(server))

    def test_cut(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = refuses_head(None)
        assert_read_well(cache, url)

    @pytest.mark.parametrize("length", [None, 0])
    def test_says_nothing_or_that_there_is_nothing(self, server, cache, length):
        url = server.put("object", DATA)
        server.rewrite = head_says_nothing(length)
        assert_read_well(cache, url)

    def test_version_is_that_of_get(self, server, cache):
        url = server.put("object", DATA, etag='"one"')
        server.rewrite = refuses_head(403)
        with cache.open(url, recheck=True) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(10, 0) == DATA[:10]
            assert gets(server)[-1].if_match == '"one"'
            server.put("object", DATA[::-1], etag='"two"')
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(10, 0)
            assert caught.value.errno == errno.ESTALE

    def test_refused_once_is_not_asked_again(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = refuses_head(403)
        cache.open(url).close()
        server.forget()
        cache.open(url).close()
        assert [request.method for request in server.requests] == ["GET"]

    def test_too_many_requests_says_nothing_about_head(self, server, cache):
        url = server.put("object", DATA)
        server.fail("429", when="size")
        cache.open(url).close()
        server.forget()
        cache.open(url).close()
        assert [request.method for request in server.requests] == ["HEAD"]

    @pytest.mark.parametrize("manner", [None, refuses_head(403), head_says_nothing()], ids=["head", "refused", "nothing"])
    def test_empty_objects_are_empty(self, server, cache, manner):
        url = server.put("object", b"")
        server.rewrite = manner
        with cache.open(url) as file:
            assert file.size == 0
            assert file.read() == b""
        server.honours_range = False
        with cache.open(url) as file:
            assert file.read() == b""

    def test_smaller_size_than_get_has_is_an_error_once(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = head_and_get({"Content-Length": str(SIZE // 2)}, {})
        with cache.open(url) as file, pytest.raises(OSError, match=r"not what HEAD says|changed.*reopen") as caught:
            file.pread(10, 0)
        assert caught.value.errno == errno.ESTALE
        assert_read_well(cache, url)

    def test_reload_goes_on_with_what_get_has(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = head_and_get({"Content-Length": str(2 * SIZE)}, {})
        with cache.open(url, on_change="reload") as file:
            assert file.pread(SIZE, 0) == DATA
            assert file.size == SIZE

    def test_missing_object_is_missing(self, server, cache):
        with pytest.raises(FileNotFoundError, match="no such object"):
            cache.open(server.url("nothing"))
        server.rewrite = refuses_head(403)
        with pytest.raises(FileNotFoundError, match="no such object"):
            cache.open(server.url("nothing"))

    @pytest.mark.parametrize("status", ["503", "429", "403", "500"])
    @pytest.mark.parametrize("manner", [None, refuses_head(405), head_says_nothing(), head_says_nothing(0)])
    def test_error_of_get_is_the_error(self, server, cache, status, manner):
        url = server.put("object", DATA)
        server.rewrite = manner
        server.fail(status, times=2)
        with pytest.raises(OSError, match=status) as caught:
            cache.open(url)
        assert caught.value.errno == (errno.EACCES if status == "403" else errno.EIO)
        assert_read_well(cache, url)


class TestLengths:
    def test_unstated_length_with_ranges(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = states_no_length
        assert_read_well(cache, url)
        assert server.bytes_sent() <= SIZE + len(gets(server))
        assert all(request.range is not None for request in gets(server))

    def test_unstated_length_without_ranges_is_read_once(self, server, cache):
        url = server.put("object", DATA)
        server.honours_range = False
        server.rewrite = states_no_length
        assert_read_well(cache, url)
        assert server.bytes_sent() == SIZE
        server.forget()
        cache.drop_caches()
        assert_read_well(cache, url)  # its size is known now
        assert len(gets(server)) == 1

    def test_too_much_without_a_length_is_an_error(self, server, cache, monkeypatch):
        monkeypatch.setattr(fsspec_http, "UNSTATED_MAX", SIZE // 2)
        url = server.put("object", DATA)
        server.honours_range = False
        server.rewrite = states_no_length
        with pytest.raises(OSError, match=r"states no length.*whole_up_to") as caught:
            cache.open(url)
        assert caught.value.errno == errno.EFBIG
        assert_read_well(cache, url, whole_up_to="1MiB")

    def test_what_is_not_kept_is_read_again(self, server, cache, monkeypatch):
        monkeypatch.setattr(fsspec_http, "KEPT_MAX", SIZE // 2)
        url = server.put("object", DATA)
        server.honours_range = False
        server.rewrite = states_no_length
        assert_read_well(cache, url)
        assert server.bytes_sent() == 2 * SIZE

    def test_unstated_length_that_ends_early_is_an_error(self, server, cache):
        url = server.put("object", DATA)
        server.honours_range = False
        server.rewrite = states_no_length
        server.fail("cut in body", when=lambda answer: answer.method == "GET")
        with pytest.raises(OSError, match="cannot ask for the version") as caught:
            cache.open(url)
        assert caught.value.errno == errno.EIO
        assert_read_well(cache, url)

    @pytest.mark.parametrize("extra", [1, PAGE, 10 * PAGE])
    def test_more_than_the_range_fills_nothing(self, server, cache, extra):
        def sends_more(answer):
            if answer.status == 206:
                answer.body += bytes(extra)

        url = server.put("object", DATA)
        server.rewrite = sends_more
        with cache.open(url) as file:
            with pytest.raises(OSError, match=r"as the range|more came than the range") as caught:
                file.pread(10, 0)
            assert caught.value.errno == errno.EIO
            assert file.pread_cached(10, 0) is None

            def sends_more_in_pieces(answer):
                sends_more(answer)
                answer.has_length = answer.method == "HEAD"

            server.rewrite = sends_more_in_pieces
            with pytest.raises(OSError, match="more came than the range"):
                file.pread(10, 0)
            server.rewrite = None
            assert file.pread(SIZE, 0) == DATA
        assert_nothing_is_held(cache)

    def test_less_than_the_range_fills_nothing(self, server, cache):
        def sends_less(answer):
            if answer.status == 206:
                answer.body = answer.body[:-1]

        url = server.put("object", DATA)
        with cache.open(url) as file:
            for has_length in (True, False):
                server.rewrite = manners(
                    sends_less, lambda answer, has_length=has_length: setattr(answer, "has_length", has_length)
                )
                with pytest.raises(OSError, match=r"as the range|ended at byte") as caught:
                    file.pread(10, 0)
                assert caught.value.errno == errno.EIO
            server.rewrite = None
            assert file.pread(SIZE, 0) == DATA

    def test_ranges_of_the_servers_own_size_are_put_together(self, server, cache):
        def sends_little(answer):
            if answer.status == 206:
                first = answer.span[0]
                answer.body = answer.body[:3000]
                answer.headers["Content-Range"] = f"bytes {first}-{first + len(answer.body) - 1}/{SIZE}"

        url = server.put("object", DATA)
        server.rewrite = sends_little
        assert_read_well(cache, url)


class TestEncodings:
    def test_stored_as_gzip_is_read_whole_and_uncut(self, server, cache):
        url = server.put("object", DATA)
        server.rewrite = stored_as_gzip
        assert fsspec.filesystem("http", skip_instance_cache=True).cat_file(url) == DATA
        server.forget()
        assert_read_well(cache, url)
        assert server.bytes_sent() == SIZE
        server.forget()
        with cache.open(url) as file:  # its version tells that the size is still the same
            assert file.pread(SIZE, 0) == DATA
        assert [request.nbytes for request in gets(server) if request.nbytes > 200_000] == []

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    @pytest.mark.parametrize("ranges", [True, False])
    def test_sent_encoded_whatever_is_asked_for(self, server, cache, encoding, ranges):
        stored = _encoded(DATA, encoding)
        url = server.put("object", stored)
        server.honours_range = ranges
        server.rewrite = lambda answer: answer.headers.setdefault("Content-Encoding", encoding)
        assert fsspec.filesystem("http", skip_instance_cache=True).cat_file(url) == DATA
        assert_read_well(cache, url)
        cache.drop_caches()
        assert_read_well(cache, url)

    def test_larger_than_half_the_cache_is_read_in_order(self, server, make_cache):
        url = server.put("object", DATA)
        server.rewrite = stored_as_gzip
        with make_cache(20 * PAGE).open(url) as file:
            assert b"".join(iter(lambda: file.read(3000), b"")) == DATA

    def test_encoding_that_only_get_names_is_an_error_and_then_read(self, server, cache):
        stored = _encoded(DATA, "gzip")
        url = server.put("object", stored)
        server.rewrite = head_and_get({}, {"Content-Encoding": "gzip"})
        with cache.open(url) as file, pytest.raises(OSError, match=r"Content-Encoding gzip.*open it again|changed.*reopen"):
            file.pread(10, 0)
        assert_read_well(cache, url)

    def test_too_large_names_the_encoding_and_the_remedy(self, server, cache, monkeypatch):
        monkeypatch.setattr(fsspec_http, "UNSTATED_MAX", SIZE // 2)
        url = server.put("object", _encoded(DATA, "gzip"))
        server.rewrite = head_and_get({"Content-Encoding": "gzip"}, {"Content-Encoding": "gzip"})
        with pytest.raises(OSError, match=r"Content-Encoding gzip.*whole_up_to") as caught:
            cache.open(url)
        assert caught.value.errno == errno.EFBIG


def _encoded(data, encoding):
    compressor = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    return compressor.compress(data) + compressor.flush()


class TestNoRanges:
    @pytest.fixture(params=[True, False], ids=["says so", "does not say so"])
    def server(self, server, request):
        server.honours_range = False
        if not request.param:
            server.rewrite = lambda answer: answer.headers.pop("Accept-Ranges", None)
        return server

    def test_object_is_transferred_once(self, server, cache, rng):
        url = server.put("object", DATA)
        with cache.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(10):
                offset = rng.randrange(SIZE)
                assert file.pread(PAGE, offset) == DATA[offset : offset + PAGE]
        assert [request.nbytes for request in gets(server)] == [SIZE]
        assert cache.stats().store_read_bytes == SIZE

    def test_larger_object_is_read_in_order(self, server, make_cache):
        url = server.put("object", DATA)
        cache = make_cache(20 * PAGE)
        with cache.open(url) as file:
            assert b"".join(iter(lambda: file.read(3000), b"")) == DATA
            assert len(gets(server)) == 1
            assert cache.stats().store_read_bytes == SIZE
            file.seek(0)
            assert b"".join(iter(lambda: file.read(3000), b"")) == DATA
        assert len(gets(server)) <= 3  # what is cached from the first time may be passed over

    def test_bytes_that_came_are_counted(self, server, make_cache):
        data = pages_of(2000 * PAGE)
        url = server.put("object", data)
        cache = make_cache(20 * PAGE)
        with cache.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for page in (1500, 100):
                assert file.pread(PAGE, page * PAGE) == data[page * PAGE : (page + 1) * PAGE]
        counted = cache.stats().store_read_bytes
        # the last piece is not counted yet, as more of it may be wanted; the server does not count what it wrote in part
        assert 1602 * PAGE - PIECE <= counted <= server.bytes_sent() + PIECE

    def test_log_says_so_once(self, server, cache, caplog):
        with caplog.at_level(logging.WARNING, logger="pagecache"):
            for name in ("one", "other"):
                assert_read_well(cache, server.put(name, DATA))
        assert ["cannot be read in ranges" in record.message for record in caplog.records] == [True]

    def test_threads(self, server, cache):
        url = server.put("object", DATA)
        with cache.open(url) as file:
            crew = Crew(*[lambda page=page: file.pread(PAGE, page * PAGE) for page in range(0, 40, 5)])
            assert crew.join_well() == [DATA[page * PAGE : (page + 1) * PAGE] for page in range(0, 40, 5)]

    @pytest.mark.parametrize("on_change", ["error", "reload"])
    @pytest.mark.parametrize("budget", ["4MiB", 20 * PAGE])
    def test_replaced_object_is_an_error_or_all_new(self, server, make_cache, on_change, budget):
        server.put("object", DATA)
        with make_cache(budget).open(server.url("object"), on_change=on_change, recheck=True) as file:
            assert file.pread(3000, 0) == DATA[:3000]
            server.put("object", DATA[::-1])
            if on_change == "reload":
                assert b"".join(iter(lambda: file.read(3000), b"")) == DATA[::-1]
                return
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(3000, 30 * PAGE)
            assert caught.value.errno == errno.ESTALE

    def test_response_that_breaks_off_is_an_error_and_fills_nothing(self, server, cache):
        url = server.put("object", DATA)
        with cache.open(url) as file:
            server.fail("cut in body", when=lambda answer: answer.method == "GET", times=8)
            with pytest.raises(OSError, match="cannot read") as caught:
                file.pread(10, 39 * PAGE)
            assert caught.value.errno == errno.EIO
            assert file.pread_cached(10, 39 * PAGE) is None
            server.heal()
            assert file.pread(SIZE, 0) == DATA
        assert_nothing_is_held(cache)

    def test_store_without_a_cache(self, server):
        """Those who put a store of their own over it call `readv`, which never asks to be called again."""
        store = store_of_url(server.put("object", DATA))
        for offset, nbytes in [(20 * PAGE, PAGE), (30 * PAGE, PAGE), (10, 10), (0, SIZE), (SIZE - 5, 10)]:
            buffer = bytearray(nbytes)
            assert store.readv(offset, [memoryview(buffer)]) == min(nbytes, SIZE - offset)
            assert buffer[: SIZE - offset] == DATA[offset : offset + nbytes]
        assert len(gets(server)) <= 4
        store.close()

    def test_open_answer_is_closed_with_the_file(self, server, make_cache):
        data = pages_of(4000 * PAGE)
        url = server.put("object", data)
        cache = make_cache(20 * PAGE)
        with cache.open(url) as file:
            assert file.pread(10, 0) == data[:10]
        wait_until(lambda: server.bytes_sent() < len(data), "the connection to be closed")


class TestTags:
    """Entity tags are compared weakly (RFC 9110, section 8.8.3.2), conditions are made of strong ones only."""

    CASES = [('W/"x"', '"x"'), ('"x"', 'W/"x"'), ('W/"x"', 'W/"x"')]

    @pytest.mark.parametrize(("head", "get"), CASES)
    def test_mark_of_weakness_makes_no_other_version(self, server, cache, head, get):
        url = server.put("object", DATA)
        server.honours_if_match = False
        server.rewrite = head_and_get({"ETag": head}, {"ETag": get})
        with cache.open(url, recheck=True) as file:
            assert file.pread(SIZE, 0) == DATA
            assert {request.if_match for request in gets(server)} == {head if head[0] == '"' else None}
            server.rewrite = head_and_get({"ETag": get}, {"ETag": head})
            server.forget()
            assert file.pread(10, 0) == DATA[:10]
            assert gets(server) == []

    def test_apache_file_that_was_young(self, server, cache):
        """Its tag is weak for a second, then strong, and If-Match compares strongly."""
        url = server.put("object", DATA, etag='W/"x"')
        with cache.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(10, 0) == DATA[:10]
            server.put("object", DATA, etag='"x"')
            assert file.pread(10, 20 * PAGE) == DATA[20 * PAGE : 20 * PAGE + 10]
        server.forget()
        with cache.open(url) as file:
            assert file.pread(10, 0) == DATA[:10]
        assert gets(server) == []

    def test_condition_that_is_refused_though_it_holds_is_not_made(self, server, cache):
        """HEAD has a strong tag, GET a weak one that never matches."""

        def weakens(answer):
            if answer.method == "GET":
                answer.headers["ETag"] = 'W/"x"'
                if answer.asked.get("If-Match"):
                    answer.status, answer.body = 412, b""

        url = server.put("object", DATA, etag='"x"')
        server.rewrite = weakens
        assert_read_well(cache, url)
        assert [request.status for request in gets(server)].count(412) <= 8  # those that had begun by then

    def test_other_weak_tag_is_another_version(self, server, cache):
        url = server.put("object", DATA, etag='W/"x"')
        with cache.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(10, 0)
            server.put("object", DATA[::-1], etag='W/"y"')
            with pytest.raises(OSError, match="replaced") as caught:
                file.pread(10, 20 * PAGE)
            assert caught.value.errno == errno.ESTALE

    def test_weak_tag_that_stays_over_a_change_is_found_out_by_the_time(self, server, cache):
        server.sends_last_modified = True
        url = server.put("object", DATA, etag='W/"x"', modified=1_000_000_000)
        with cache.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            file.pread(10, 0)
            server.put("object", DATA[::-1], etag='W/"x"', modified=1_000_000_500)
            with pytest.raises(OSError, match=r"replaced|not what") as caught:
                file.pread(10, 20 * PAGE)
            assert caught.value.errno in (errno.ESTALE, errno.EIO)
            assert file.pread_cached(10, 20 * PAGE) is None


class TestParts:
    FORMS = ["Bytes {first}-{last}/{size}", "BYTES {first}-{last}/{size}", "bytes={first}-{last}/{size}",
             "{first}-{last}/{size}", "bytes  {first} - {last} / {size}", "bytes {first}-{last}/*"]  # fmt: skip

    @pytest.mark.parametrize("form", FORMS)
    def test_forms_that_cannot_be_misunderstood(self, server, cache, form):
        url = server.put("object", DATA)
        server.rewrite = content_range(form)
        assert_read_well(cache, url)
        server.rewrite = manners(content_range(form), refuses_head(403))
        assert_read_well(cache, url)

    @pytest.mark.parametrize(
        "said", ["", "bytes", "bytes 5", "items 0-9/100", "bytes 9-0/100", "bytes -5/10", "bytes x-y/z"]
    )
    def test_others_are_none(self, said):
        assert part_of({"Content-Range": said}) is None
        assert part_of({"Content-Range": "bytes 3-9/*"}) == Part(3, 10, None)

    @pytest.mark.parametrize("nbytes", [1, 100, PAGE, 3 * PAGE])
    def test_wider_part_is_used(self, server, cache, nbytes):
        url = server.put("object", DATA)
        server.rewrite = begins_earlier(nbytes)
        assert_read_well(cache, url)
        assert SIZE < cache.stats().store_read_bytes <= server.bytes_sent()

    @pytest.mark.parametrize("shift", [PAGE, -10 * PAGE])
    def test_part_without_what_was_asked_for_is_an_error(self, server, cache, shift):
        def moves(answer):
            if answer.status == 206:
                first = max(0, answer.span[0] + shift)
                answer.body = DATA[first : first + PAGE]
                answer.headers["Content-Range"] = f"bytes {first}-{first + len(answer.body) - 1}/{SIZE}"

        url = server.put("object", DATA)
        with cache.open(url) as file:
            server.rewrite = moves
            with pytest.raises(OSError, match="answered with the range") as caught:
                file.pread(10, 20 * PAGE)
            assert caught.value.errno == errno.EIO
            server.rewrite = None
            assert file.pread(SIZE, 0) == DATA


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("when", ["first", "size", "get", "range"])
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_an_error_or_harmless_and_never_data(server, cache, fault, when, ranges):
    """Whatever goes wrong once, at opening or at reading: never other bytes, and the right ones once the server is well."""
    url = server.put("object", DATA)
    server.honours_range = ranges
    strikes = {"get": lambda answer: answer.method == "GET"}.get(when, when)
    server.fail(fault, when=strikes)
    try:
        with cache.open(url) as file:
            found = file.pread(SIZE, 0)
    except OSError as error:
        assert not isinstance(error, FileNotFoundError) or fault == "404"
        found = None
    assert found in (None, DATA, server.data("object"))
    server.heal()
    data = server.data("object")
    with cache.open(url) as file:
        assert file.size == len(data)
        assert file.pread(SIZE + 10, 0) == data
    assert_nothing_is_held(cache)
