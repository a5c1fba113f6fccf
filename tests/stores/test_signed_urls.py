"""URLs that are signed for a while: what is cached is found again by the URL that was signed next, and read on by it."""

import errno
import pickle
from urllib.parse import parse_qs, urlsplit

import pytest
from support import PAGE, pages_of
from support.faulty_http import FaultyServer, refuses_head

import pagecache
from pagecache.stores.signed_urls import checked_names, url_without

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.stores.fsspec import store_of_url  # noqa: E402

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)
AWS = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=me%2F20260101&X-Amz-Date=20260101T000000Z&X-Amz-Expires=3600"


class SigningServer(FaultyServer):
    """Serves GET for URLs with one of the signatures that hold now."""

    def __init__(self):
        super().__init__()
        self.valid = set()
        self.rewrite = self.checks

    def checks(self, answer):
        signature = parse_qs(urlsplit(answer.path).query).get("X-Amz-Signature", [""])[0]
        if signature not in self.valid:
            answer.status, answer.headers, answer.body = 403, {}, b""
        refuses_head(403)(answer)

    def sign(self, name, signature, extra=""):
        self.valid.add(signature)
        return f"{self.url(name)}?{AWS}&{extra}X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"


@pytest.fixture
def server():
    with SigningServer() as running:
        running.put("object", DATA)
        yield running


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("4MiB")) as cache:
        yield cache


class TestUrls:
    CASES = [
        (f"http://h/o?{AWS}&X-Amz-SignedHeaders=host&X-Amz-Signature=ab", "http://h/o"),
        (f"http://h/o?versionId=7&{AWS}&X-Amz-Signature=ab&partNumber=2", "http://h/o?versionId=7&partNumber=2"),
        ("http://h/o?AWSAccessKeyId=me&Signature=ab%3D&Expires=9", "http://h/o"),
        ("http://h/o?X-Goog-Algorithm=x&X-Goog-Signature=ab&generation=3", "http://h/o?generation=3"),
        ("http://h/o?GoogleAccessId=me&Expires=1&Signature=x", "http://h/o"),
        ("http://h/o?Policy=p&Signature=x&Key-Pair-Id=k&a=1", "http://h/o?a=1"),
        ("http://h/o?sv=2024&st=1&se=2&sr=b&sp=r&sig=x%2B&snapshot=5", "http://h/o?snapshot=5"),
        # the same names mean something else where there is no such signature
        ("http://h/o?sv=1&st=2&sp=3", "http://h/o?sv=1&st=2&sp=3"),
        ("http://h/o?Expires=1&Policy=x", "http://h/o?Expires=1&Policy=x"),
        ("http://h/o", "http://h/o"),
        ("http://h/o?", "http://h/o?"),
        ("http://h/o?a=1&b#part", "http://h/o?a=1&b#part"),
    ]

    @pytest.mark.parametrize(("url", "lasting"), CASES)
    def test_signatures(self, url, lasting):
        assert url_without(url, ("signature",)) == lasting

    def test_names_and_patterns(self):
        url = "http://h/o?token=1&keep=a%20b&X-My-Date=2&token=3"
        assert url_without(url, ("token", "X-My-*")) == "http://h/o?keep=a%20b"
        assert url_without(url, ()) == url

    def test_arguments(self):
        assert checked_names("signature") == ("signature",)
        assert checked_names(["a", "b"]) == ("a", "b")
        with pytest.raises(TypeError, match="key_without"):
            checked_names([1])


class TestReading:
    def test_next_signature_hits_and_reads_on(self, server, cache):
        with cache.open(server.sign("object", "one"), key_without="signature") as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(PAGE, 0) == DATA[:PAGE]
        server.valid.clear()
        server.forget()
        with cache.open(server.sign("object", "two"), key_without="signature") as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert file.pread(PAGE, 0) == DATA[:PAGE]
            assert [request.nbytes for request in server.requests if request.method == "GET"] == [1]  # its version
            assert file.pread(PAGE, 20 * PAGE) == DATA[20 * PAGE : 21 * PAGE]

    def test_without_the_option_it_is_another_object(self, server, cache):
        for signature in ("one", "two"):
            server.forget()
            with cache.open(server.sign("object", signature)) as file:
                assert file.pread(SIZE, 0) == DATA
            assert sum(request.nbytes for request in server.requests) >= SIZE

    @pytest.mark.parametrize("recheck", ["open", True, False])
    def test_open_file_goes_on_with_the_newest_signature(self, server, cache, recheck):
        first = cache.open(server.sign("object", "one"), key_without="signature", recheck=recheck)
        first.fadvise(pagecache.FADV_RANDOM)
        assert first.pread(10, 0) == DATA[:10]
        server.valid.clear()
        with pytest.raises(PermissionError) as caught:
            first.pread(10, 20 * PAGE)
        assert caught.value.errno == errno.EACCES
        with cache.open(server.sign("object", "two"), key_without="signature", recheck=recheck) as second:
            assert second.pread(10, 30 * PAGE) == DATA[30 * PAGE : 30 * PAGE + 10]
            assert first.pread(10, 20 * PAGE) == DATA[20 * PAGE : 20 * PAGE + 10]
        first.close()

    def test_signature_that_does_not_hold_opens_nothing_and_harms_no_other(self, server, cache):
        with cache.open(server.sign("object", "one"), key_without="signature") as file:
            file.fadvise(pagecache.FADV_RANDOM)
            bad = server.sign("object", "bad")
            server.valid.discard("bad")
            with pytest.raises(PermissionError):
                cache.open(bad, key_without="signature")
            assert file.pread(10, 20 * PAGE) == DATA[20 * PAGE : 20 * PAGE + 10]

    def test_other_parameters_choose_the_bytes(self, server, cache):
        for extra in ("versionId=1&", "versionId=2&"):
            server.forget()
            with cache.open(server.sign("object", "one", extra), key_without="signature") as file:
                assert file.pread(SIZE, 0) == DATA
            assert sum(request.nbytes for request in server.requests) >= SIZE

    def test_chained(self, server, cache):
        pytest.importorskip("pagecache.adapters.fsspec")
        fs = fsspec.filesystem("pagecache", target_protocol="http", key_without="signature")
        url = server.sign("object", "one")
        assert fs.cat_file(url) == DATA
        server.valid.clear()
        server.forget()
        again = server.sign("object", "two")
        assert fs.cat_file(again, 10, 20) == DATA[10:20]
        assert sum(request.nbytes for request in server.requests) <= 1
        fs.invalidate_cache(again)
        server.forget()
        assert fs.cat_file(again) == DATA
        assert sum(request.nbytes for request in server.requests) >= SIZE
        with fsspec.open(f"pagecache::{again}", pagecache={"key_without": ["X-Amz-*"]}) as file:
            assert file.fs.key_without == ("X-Amz-*",)

    def test_names_do_not_tell_the_signature_and_pickles_keep_it(self, server):
        store = store_of_url(server.sign("object", "secret"), key_without="signature")
        assert "secret" not in store.key
        assert "secret" not in store.name
        again = pickle.loads(pickle.dumps(store))
        assert again.key == store.key
        assert "secret" in again.path
