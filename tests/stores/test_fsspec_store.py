"""FsspecStore: right bytes, few requests, and errors that say what happened, over HTTP, memory and local files."""

import asyncio
import errno
import gzip
import subprocess
import sys
import threading

import pytest
from support import PAGE, Crew, assert_nothing_is_held, pages_of, wait_until
from support.http_server import ObjectServer

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
from pagecache.stores.fsspec import FsspecStore  # noqa: E402
from pagecache.stores.fsspec_instances import identity_of, own_instance  # noqa: E402
from pagecache.stores.validators import validator_of, version_of  # noqa: E402

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)


@pytest.fixture
def server():
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    fs.store = {}  # its own, not the one all instances share
    fs.pseudo_dirs = [""]
    fs.pipe_file("/object", DATA)
    return fs


class TestOverHttp:
    def test_bytes_are_those_of_the_object(self, server, cache, rng):
        with cache.open(server.put("object", DATA)) as file:
            assert file.size == SIZE
            for _ in range(50):
                offset, nbytes = rng.randrange(SIZE + 10), rng.randrange(5 * PAGE)
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            assert file.read() == DATA

    def test_opening_asks_once_and_hits_ask_for_nothing(self, server, cache):
        with cache.open(server.put("object", DATA)) as file:
            assert [request.method for request in server.requests] == ["HEAD"]
            file.prefetch().wait()
            server.forget()
            assert file.read() == DATA
            assert file.pread(1, SIZE) == b""
            assert server.count() == 0

    def test_every_fill_is_conditional(self, server, cache):
        with cache.open(server.put("object", DATA, etag='"one"')) as file:
            assert file.read() == DATA
        gets = [request for request in server.requests if request.method == "GET"]
        assert gets
        assert {request.if_match for request in gets} == {'"one"'}
        assert all(request.status == 206 for request in gets)

    def test_two_handles_share_pages(self, server, cache):
        url = server.put("object", DATA)
        with cache.open(url) as one, cache.open(url) as other:
            assert one.read() == DATA
            server.forget()
            assert other.read() == DATA
            assert server.count("GET") == 0

    def test_many_threads_that_want_one_cold_page_make_one_request(self, server, cache):
        server.delay_s = 0.05
        with cache.open(server.put("object", DATA[:PAGE])) as file:
            results = Crew(*[lambda: file.pread(PAGE, 0)] * 8).join_well()
        assert results == [DATA[:PAGE]] * 8
        assert server.count("GET") == 1

    def test_missing_object_is_named(self, server, cache):
        with pytest.raises(FileNotFoundError, match=r"no such object: 'http://.*/nothing'"):
            cache.open(server.url("nothing"))

    def test_object_that_vanishes_is_an_error_and_cached_bytes_stay(self, server, cache):
        with cache.open(server.put("object", DATA)) as file:
            file.fadvise(1)  # random: nothing but what is asked for
            first = file.pread(PAGE, 0)
            server.remove("object")
            with pytest.raises(FileNotFoundError, match=f"offset {20 * PAGE}"):
                file.pread(PAGE, 20 * PAGE)
            assert file.pread(PAGE, 0) == first == DATA[:PAGE]

    @pytest.mark.parametrize("status", [500, 503, 403])
    def test_failed_request_is_an_error_once_and_never_zeros(self, server, cache, status):
        with cache.open(server.put("object", DATA)) as file:
            file.fadvise(1)
            server.fail_next(1, status)
            with pytest.raises(OSError, match=f"offset {8 * PAGE}.*{status}") as caught:
                file.pread(8, 8 * PAGE)
            assert caught.value.errno == (errno.EACCES if status == 403 else errno.EIO)
            assert file.pread(8, 8 * PAGE) == DATA[8 * PAGE : 8 * PAGE + 8]
        assert_nothing_is_held(cache)

    def test_body_that_breaks_off_is_an_error_or_is_asked_for_again(self, server, cache):
        with cache.open(server.put("object", DATA)) as file:
            server.fail_request(2, 0)
            server.fail_request(3, 0)
            try:
                assert file.pread(8 * PAGE, 0) == DATA[: 8 * PAGE]
            except OSError as error:
                assert error.errno == errno.EIO
            assert file.read() == DATA

    def test_server_that_is_gone_is_an_error_and_not_an_empty_object(self, cache):
        pytest.importorskip("aiohttp")
        with ObjectServer() as server:
            file = cache.open(server.put("object", DATA))
            url = server.url("object")
        with pytest.raises(OSError, match="cannot read http") as caught:
            file.pread(10, 0)
        assert not isinstance(caught.value, FileNotFoundError)
        file.close()
        with pytest.raises(OSError, match=r"cannot ask for the version|refused|[Cc]annot connect") as caught:
            cache.open(url)
        assert not isinstance(caught.value, FileNotFoundError)

    def test_server_without_ranges_is_read_through(self, server, cache):
        server.honours_range = False
        with cache.open(server.put("object", DATA)) as file:
            assert file.pread(100, 30 * PAGE) == DATA[30 * PAGE : 30 * PAGE + 100]
            assert file.read() == DATA

    def test_identity_is_asked_for_so_that_offsets_are_of_the_object(self, server, cache):
        seen = []

        class Spy:
            def __call__(self, running, method, path):
                seen.append(method)

        server.before_answer = Spy()
        with cache.open(server.put("object", b"a" * 10000)) as file:
            assert file.read() == b"a" * 10000
        assert seen[0] == "HEAD"

    def test_headers_and_options_of_the_file_system_are_kept(self, server, cache):
        url = server.put("object", DATA)
        with cache.open(url, headers={"If-Match": "*", "X-Token": "secret"}) as file:
            assert file.read() == DATA

    def test_waiting_on_fsspecs_own_loop_is_refused(self, server, cache):
        file = cache.open(server.put("object", DATA))

        async def read():
            return file.pread(10, 0)

        with pytest.raises(OSError, match="fsspec's own event loop"):
            fsspec.asyn.sync(fsspec.asyn.get_loop(), read)
        assert file.pread(10, 0) == DATA[:10]
        file.close()

    def test_reads_for_asyncio(self, server, cache):
        with cache.open(server.put("object", DATA)) as file:

            async def read():
                return await asyncio.gather(*(file.pread_async(100, page * PAGE) for page in range(0, 40, 5)))

            assert asyncio.run(read()) == [DATA[page * PAGE : page * PAGE + 100] for page in range(0, 40, 5)]

    def test_many_ranges_in_one_call_are_fetched_in_parallel(self, server, cache):
        with cache.open(server.put("object", DATA)) as file:
            ranges = [(10, page * PAGE + 5) for page in range(0, 40, 4)]
            assert file.preadv_many(ranges, hole_size=0) == [DATA[o : o + n] for n, o in ranges]
            assert server.count("GET") == 10


class TestOtherFileSystems:
    def test_memory_is_read_and_verified(self, memory, cache):
        with cache.open(FsspecStore(memory, "/object")) as file:
            assert file.read() == DATA
            assert file.inode.hints.latency == "local"

    def test_local_files(self, data_file, cache):
        path, data = data_file(SIZE)
        with cache.open(f"local://{path}") as file:
            assert file.read() == data

    def test_directory_is_refused(self, tmp_path):
        with pytest.raises(IsADirectoryError):
            FsspecStore(fsspec.filesystem("file"), str(tmp_path))

    def test_file_system_that_reads_ranges_itself_is_asked_for_ranges(self, memory, cache):
        asked = []

        class Ranged(type(memory)):
            cachable = False

            def cat_file(self, path, start=None, end=None, **kwargs):
                asked.append((start, end))
                return bytes(self.store[path].getvalue()[start:end])

        fs = Ranged()
        fs.store = memory.store
        with cache.open(FsspecStore(fs, "/object")) as file:
            assert file.read() == DATA
        assert asked[0][0] == 0

    def test_listing_that_is_cached_does_not_hide_a_change(self, memory):
        class Listed(type(memory)):
            cachable = False
            listing: dict = {}

            def info(self, path, refresh=False, **kwargs):
                if refresh or path not in self.listing:
                    self.listing[path] = super().info(path)
                return self.listing[path]

        fs = Listed()
        fs.store = memory.store
        fs.info("/object")
        before = FsspecStore(fs, "/object").validator()
        fs.pipe_file("/object", DATA[:-1])
        assert FsspecStore(fs, "/object").validator() != before

    def test_short_answers_are_completed(self, memory, cache):
        class Short(type(memory)):
            cachable = False

            def cat_file(self, path, start=None, end=None, **kwargs):
                return bytes(self.store[path].getvalue()[start : min(end, start + 1000)])

        fs = Short()
        fs.store = memory.store
        with cache.open(FsspecStore(fs, "/object")) as file:
            assert file.read() == DATA

    def test_answers_that_are_too_long_fill_nothing(self, memory, cache):
        class Long(type(memory)):
            cachable = False
            more = b"more"

            def cat_file(self, path, start=None, end=None, **kwargs):
                return bytes(self.store[path].getvalue()[start:end]) + self.more

        fs = Long()
        fs.store = memory.store
        with cache.open(FsspecStore(fs, "/object")) as file:
            with pytest.raises(OSError, match=r"bytes came where \d+ were asked for") as caught:
                file.read()
            assert caught.value.errno == errno.EIO
            assert file.pread_cached(10, 0) is None
            fs.more = b""
            assert file.read() == DATA

    def test_unknown_size_is_found_by_reading_all(self, memory, cache):
        fs = sizeless(memory)
        with cache.open(FsspecStore(fs, "/object")) as file:
            assert file.size == SIZE
            assert file.pread(100, SIZE - 50) == DATA[-50:]
            assert file.pread(SIZE, 0) == DATA
        assert fs.nr_reads == 1
        with pytest.raises(FileNotFoundError):
            FsspecStore(fs, "/nothing")

    def test_object_of_unknown_size_that_changes(self, memory, cache):
        fs = sizeless(memory)
        with cache.open(FsspecStore(fs, "/object"), recheck=True, on_change="reload") as file:
            assert file.pread(SIZE, 0) == DATA
            fs.pipe_file("/object", DATA[::-1] + b"more")
            assert file.pread(SIZE + 10, 0) == DATA[::-1] + b"more"

    @pytest.mark.parametrize("decodes", [True, False])
    def test_stated_size_of_what_is_encoded(self, memory, cache, decodes):
        """The service or its library may decode what it stores, or not; the size that is stated is of what is stored."""

        class Encoded(type(memory)):
            cachable = False

            def info(self, path, **kwargs):
                return {**super().info(path), "contentEncoding": "gzip"}

            def cat_file(self, path, start=None, end=None, **kwargs):
                stored = bytes(self.store[path].getvalue())
                return gzip.decompress(stored) if decodes else stored[start:end]

        fs = Encoded()
        fs.store = {}
        fs.pipe_file("/object", gzip.compress(DATA, mtime=0))
        expected = fs.cat_file("/object")
        for _ in range(2):
            with cache.open(FsspecStore(fs, "/object")) as file:
                assert file.size == len(expected)
                assert file.pread(10, 0) == expected[:10]
                assert file.pread(SIZE + 10, 0) == expected

    def test_error_that_hides_another_one_is_that_one(self, memory):
        class Hides(type(memory)):
            cachable = False

            def info(self, path, **kwargs):
                try:
                    raise ConnectionResetError("the service is gone")
                except ConnectionError as error:
                    raise FileNotFoundError(path) from error

        with pytest.raises(OSError, match="the service is gone") as caught:
            FsspecStore(Hides(), "/object")
        assert not isinstance(caught.value, FileNotFoundError)


def sizeless(memory):
    """A file system like `memory` that states no size, and counts its reads."""

    class Sizeless(type(memory)):
        cachable = False
        nr_reads = 0

        def info(self, path, **kwargs):
            return {**super().info(path), "size": None}

        def cat_file(self, path, start=None, end=None, **kwargs):
            self.nr_reads += 1
            return super().cat_file(path, start, end)

    fs = Sizeless()
    fs.store = memory.store
    return fs


class TestIdentity:
    def test_is_of_class_and_options_and_not_of_how_it_is_used(self):
        pytest.importorskip("aiohttp")
        one = fsspec.filesystem("http")
        same = fsspec.filesystem("http", asynchronous=True)
        other = fsspec.filesystem("http", headers={"Authorization": "me"})
        assert identity_of(one) == identity_of(same) != identity_of(other)

    def test_objects_in_options_are_distinguished(self):
        class Token:
            pass

        systems = [fsspec.filesystem("memory", token=Token(), skip_instance_cache=True) for _ in range(3)]
        assert len({identity_of(fs) for fs in systems}) == 3
        assert identity_of(systems[0]) == identity_of(systems[0])

    def test_instance_bound_to_a_loop_is_not_used_itself(self):
        pytest.importorskip("aiohttp")
        bound = fsspec.filesystem("http", asynchronous=True, headers={"A": "b"})
        own = own_instance(bound)
        assert not own.asynchronous
        assert own.kwargs == bound.kwargs
        assert own_instance(own) is own

    def test_bytes_are_cached_once_when_the_target_is_a_page_cache(self, memory):
        pytest.importorskip("pagecache.adapters.fsspec")
        chained = fsspec.filesystem("pagecache", fs=memory)
        assert FsspecStore(chained, "/object").key == FsspecStore(memory, "/object").key


class TestInterrupts:
    def test_request_that_is_given_up_writes_nothing_any_more(self, server, cache):
        """What comes after a wait that was ended finds no buffers: their memory may be in other use."""
        from pagecache.stores.destination import Destination

        go_on, entered = threading.Event(), threading.Event()

        def hold(running, method, path):
            if method == "GET":
                entered.set()
                go_on.wait(30)

        url = server.put("object", DATA)
        store = FsspecStore(fsspec.filesystem("http"), url)
        server.before_answer = hold
        buffer = bytearray(b"\xa5" * PAGE)
        destination = Destination([memoryview(buffer)])
        future = asyncio.run_coroutine_threadsafe(
            store._ranges._fetch(store, store.version, 0, destination), store.fs.loop
        )
        assert entered.wait(30)
        destination.detach()
        go_on.set()
        wait_until(future.done, "the request's end")
        assert buffer == b"\xa5" * PAGE


class TestWithoutFsspec:
    def test_the_package_works_and_says_what_is_missing(self):
        program = (
            "import sys; sys.modules['fsspec'] = None; sys.modules['obstore'] = None\n"
            "import pagecache\n"
            "with pagecache.PageCache('1MiB') as cache:\n"
            "    try: cache.open('http://host/object')\n"
            "    except ImportError as error: print(error)\n"
        )
        said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert "pip install 'pagecache-engine[http]'" in said.stdout


class TestValidators:
    def test_entity_tag_and_size_count_before_times(self):
        info = {"ETag": '"a"', "mtime": 5, "size": 7}
        assert validator_of(info) == 'ETag="a" size=7'
        assert validator_of({"e_tag": '"a"', "last_modified": 9, "size": 7, "version": None}) == 'ETag="a" size=7'

    def test_time_counts_where_there_is_nothing_better(self):
        assert validator_of({"mtime": 5.5, "size": 7}) == "mtime=5.5 size=7"
        assert validator_of({"mtime": 5.5, "size": 8}) != validator_of({"mtime": 5.5, "size": 7})

    def test_size_alone_is_none(self):
        assert validator_of({"size": 7}) is None
        assert validator_of({"size": 7, "ETag": "", "LastModified": None}) is None

    def test_weak_entity_tags_do_not_go_into_conditions(self):
        weak = version_of({"ETag": 'W/"a"', "size": 7}, "object", 0.0)
        assert weak.strong_etag is None
        assert weak.validator == validator_of({"ETag": '"a"', "size": 7})
        assert version_of({"ETag": '"a"', "size": 7}, "object", 0.0).strong_etag == '"a"'
