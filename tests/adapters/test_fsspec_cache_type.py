"""`fs.open(path, cache_type="pagecache")`: the files of any fsspec file system in the one page cache."""

import errno
import gc
import pickle
import warnings

import pytest
from support import PAGE, Crew, pages_of
from support.faulty_http import FaultyServer, refuses_head
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402
from pagecache.adapters.fsspec_cache_type import PageCacheType  # noqa: E402

SIZE = 300 * PAGE + 123
DATA = pages_of(SIZE)
MIB = 1 << 20


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("8MiB")) as cache:
        yield cache


@pytest.fixture
def http():
    return fsspec.filesystem("http")


def open_cached(http, url, **options):
    return http.open(url, cache_type="pagecache", block_size=PAGE, cache_options=options)


class TestFiles:
    def test_bytes_are_those_of_the_object(self, http, server, cache, rng):
        with open_cached(http, server.put("object", DATA)) as file:
            assert isinstance(file.cache, PageCacheType)
            for _ in range(50):
                offset, nbytes = rng.randrange(SIZE + 10), rng.randrange(5 * PAGE)
                file.seek(offset)
                assert file.read(nbytes) == DATA[offset : offset + nbytes]
            file.seek(1)
            assert file.read() == DATA[1:]

    def test_handles_share_pages_with_each_other_and_with_the_chained_file_system(self, http, server, cache):
        url = server.put("object", DATA)
        with open_cached(http, url) as one, open_cached(http, url) as other:
            one.seek(1)
            assert one.read() == DATA[1:]
            server.forget()
            other.seek(1)
            assert other.read() == DATA[1:]
            system = PageCacheFileSystem("http", skip_instance_cache=True)
            assert system.cat_file(url) == DATA
            system.invalidate_cache()
            assert server.count("GET") == 0

    def test_pages_stay_when_the_file_is_closed(self, http, server, cache):
        url = server.put("object", DATA)
        for _ in range(3):
            with open_cached(http, url) as file:
                file.seek(PAGE)
                assert file.read(100 * PAGE) == DATA[PAGE : 101 * PAGE]
        assert server.bytes_sent() <= SIZE

    def test_threads_with_a_handle_each_fetch_a_page_once(self, http, server, cache):
        server.delay_s = 0.03
        url = server.put("object", DATA[: 2 * PAGE])

        def read():
            with open_cached(http, url) as file:
                file.seek(5)
                return file.read(PAGE)

        assert Crew(*[read] * 8).join_well() == [DATA[5 : 5 + PAGE]] * 8
        assert server.count("GET") == 1

    def test_hits_and_misses_are_counted_as_fsspec_does(self, http, server, cache):
        with open_cached(http, server.put("object", DATA)) as file:
            file.seek(1)
            file.read(10)
            file.seek(1)
            file.read(10)
            assert (file.cache.miss_count, file.cache.hit_count) == (1, 1)
            assert "cache hits  :   1" in repr(file.cache)

    def test_default_of_a_file_system(self, server, cache):
        http = fsspec.filesystem("http", cache_type="pagecache", block_size=PAGE)
        with http.open(server.put("object", DATA)) as file:
            file.seek(3)
            assert file.read(3) == DATA[3:6]
            assert isinstance(file.cache, PageCacheType)

    def test_budget_is_shared_by_all_handles(self, http, server, make_cache, rng):
        """8 handles, 40 reads of one byte each, of blocks of 5 MiB (fsspec's default)."""
        urls = [server.put(f"object-{number}", bytes([number]) * (32 * MIB)) for number in range(8)]
        with pagecache.using(make_cache("8MiB")) as cache:
            files = [http.open(url, cache_type="pagecache") for url in urls]
            for _ in range(40):
                for number, file in enumerate(files):
                    file.seek(rng.randrange(1, 32 * MIB))
                    assert file.read(1) == bytes([number])
            assert cache.stats().resident_bytes <= 8 * MIB
            for file in files:
                file.close()

    def test_one_transient_error_leaves_nothing_behind(self, http, server, cache):
        with open_cached(http, server.put("object", DATA)) as file:
            server.fail_next()
            file.seek(50 * PAGE)
            with pytest.raises(OSError, match="503"):
                file.read(8)
            assert file.read(8) == DATA[50 * PAGE : 50 * PAGE + 8]

    def test_empty_object(self, cache):
        cached = PageCacheType(PAGE, lambda start, end: b"", 0)
        assert cached._fetch(0, 10) == b""
        cached.close()

    def test_files_pickle_and_open_again(self, http, server, cache):
        with open_cached(http, server.put("object", DATA)) as file:
            file.seek(77)
            again = pickle.loads(pickle.dumps(file))
            assert (again.tell(), again.read(5)) == (77, DATA[77:82])
            assert isinstance(again.cache, PageCacheType)
            again.close()

    def test_nothing_is_left_open(self, http, server, cache):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            file = open_cached(http, server.put("object", DATA))
            file.read()  # the whole of it at once is fetched past any cache, which is then given up
            file.close()
            del file
            gc.collect()
        assert not [opened for opened in cache._files if not opened.closed]


class TestVersions:
    def test_replaced_object_is_an_error(self, http, server, cache):
        url = server.put("object", b"\1" * SIZE)
        with open_cached(http, url) as file:
            file.seek(1)
            assert set(file.read(PAGE)) == {1}
            server.put("object", b"\2" * SIZE)
            file.seek(200 * PAGE)
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.read(PAGE)
            assert caught.value.errno == errno.ESTALE
        with open_cached(http, url) as file:
            file.seek(1)
            assert set(file.read(PAGE)) == {2}

    def test_or_is_reloaded(self, http, server, cache):
        url = server.put("object", b"\1" * SIZE)
        with open_cached(http, url, on_change="reload") as file:
            file.seek(1)
            assert set(file.read(PAGE)) == {1}
            server.put("object", b"\2" * SIZE)
            file.seek(1)
            assert set(file.read(SIZE - 1)) == {2}

    def test_replaced_while_it_is_opened(self, http, server, cache):
        url = server.put("object", DATA)

        def cut(running, method, path):
            if running.count("HEAD") == 1:
                running.put("object", DATA[:100])

        server.before_answer = cut
        with pytest.raises(OSError, match="while it was being opened") as caught:
            open_cached(http, url)
        assert caught.value.errno == errno.ESTALE


class TestFetchersWithoutAFile:
    def test_each_has_pages_of_its_own(self, cache):
        asked = []

        def fetch(start, end):
            asked.append((start, end))
            return DATA[start:end]

        one, other = PageCacheType(PAGE, fetch, SIZE), PageCacheType(PAGE, lambda start, end: bytes(end - start), SIZE)
        assert one._fetch(100, 5000) == DATA[100:5000]
        assert other._fetch(100, 5000) == bytes(4900)
        nr_asked = len(asked)
        assert one._fetch(100, 5000) == DATA[100:5000]
        assert len(asked) == nr_asked
        assert one._fetch(None, 10) == DATA[:10]
        assert one._fetch(SIZE - 5, None) == DATA[-5:]
        assert one._fetch(SIZE + 5, SIZE + 10) == b""
        one.close()
        other.close()


class TestServersThatAreNotQuiteRight:
    """The files are fsspec's, and open as they do; what is read through the cache is what it always reads."""

    def read_all_over(self, http, url):
        with open_cached(http, url) as file:
            for offset in range(SIZE - 10, 0, -70 * PAGE):
                file.seek(offset)
                assert file.read(100) == DATA[offset : offset + 100]

    @pytest.mark.parametrize("status", [403, 405, 503])
    def test_head_that_is_refused(self, http, cache, status):
        with FaultyServer() as server:
            server.rewrite = refuses_head(status)
            self.read_all_over(http, server.put("object", DATA))

    def test_no_ranges(self, http, cache):
        with FaultyServer() as server:
            server.honours_range = False
            server.rewrite = lambda answer: answer.headers.pop("Accept-Ranges", None)
            self.read_all_over(http, server.put("object", DATA))
            assert sum(request.nbytes for request in server.requests if request.range) == SIZE

    def test_fetcher_that_brings_too_much_fills_nothing(self, cache):
        more = [b"more"]
        cached = PageCacheType(PAGE, lambda start, end: DATA[start:end] + more[0], SIZE)
        with pytest.raises(OSError, match="bytes came where") as caught:
            cached._fetch(10, 20)
        assert caught.value.errno == errno.EIO
        more[0] = b""
        assert cached._fetch(10, 20) == DATA[10:20]
        cached.close()
