"""Options of one call, which choose the bytes or are the right to them: they reach every request, and tell pages apart."""

import pickle

import pytest
from support import PAGE, Crew, pages_of
from support.fsspec_ways import WAYS, read
from support.gcs_server import GcsServer
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402
from pagecache.stores.call_options import are_of_this_process, key_part, request_options  # noqa: E402

SIZE = 20 * PAGE + 77
DATA = pages_of(SIZE)
OTHER = DATA[::-1] + b"longer"


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("8MiB")) as cache:
        yield cache


class TestHttp:
    """A server that serves by what the headers of a request say."""

    @pytest.fixture
    def server(self):
        with ObjectServer() as running:
            running.rewrite = self.answer_by_headers(running)
            yield running

    @staticmethod
    def answer_by_headers(server):
        def rewrite(answer):
            if answer.path == "/secret" and answer.asked.get("Authorization") != "let me in":
                answer.status, answer.headers, answer.body = 401, {}, b""
            elif answer.path == "/object" and answer.asked.get("Accept-Language") == "other":
                answer.path = "/other"
                server.answer_again(answer)
                answer.path = "/object"

        return rewrite

    @pytest.fixture
    def http(self):
        return fsspec.filesystem("http", skip_instance_cache=True)

    @pytest.mark.parametrize("way", WAYS)
    def test_headers_choose_the_bytes(self, server, http, cache, way):
        url = server.put("object", DATA)
        server.put("other", OTHER)
        other = {"headers": {"Accept-Language": "other"}}
        for _ in range(2):
            assert read(way, http, url) == DATA
            assert read(way, http, url, **other) == OTHER

    @pytest.mark.parametrize("way", WAYS)
    def test_headers_are_the_right(self, server, http, cache, way):
        url = server.put("secret", DATA)
        right = {"headers": {"Authorization": "let me in"}}
        assert read(way, http, url, **right) == DATA
        with pytest.raises(OSError, match=r"401|secret"):
            read(way, http, url)
        with pytest.raises(OSError, match=r"401|secret"):
            read(way, http, url, headers={"Authorization": "guessed"})
        assert all(request.status in (200, 206) for request in server.requests[:1])
        server.forget()
        assert read(way, http, url, **right) == DATA
        assert server.count("GET") == 0, "the pages of those who have the right are kept for them"

    def test_pages_are_shared_by_the_same_options_however_they_are_given(self, server, http, cache):
        url = server.put("secret", DATA)
        headers = {"Authorization": "let me in", "X-More": "1"}
        assert read("open", http, url, headers=headers) == DATA
        server.forget()
        for way in WAYS:
            assert read(way, http, url, headers=dict(reversed(headers.items()))) == DATA
        assert server.count("GET") == 0

    def test_headers_of_the_call_count_for_more_than_those_of_the_file_system(self, server, cache):
        url = server.put("secret", DATA)
        wrong = fsspec.filesystem("http", headers={"Authorization": "guessed"}, skip_instance_cache=True)
        for way in ("open", "cat_file", "store"):
            with pytest.raises(OSError, match=r"401|secret"):
                read(way, wrong, url)
            assert read(way, wrong, url, headers={"Authorization": "let me in"}) == DATA

    def test_what_says_how_it_is_fetched_makes_no_difference(self, server, http, cache):
        url = server.put("object", DATA)
        assert read("open", http, url) == DATA
        server.forget()
        system = PageCacheFileSystem(fs=http)
        with system.open(url, block_size=1 << 20, cache_type="none", cache_options={}, size=SIZE) as file:
            assert file.read() == DATA
        assert system.cat_ranges([url], 0, SIZE, batch_size=1) == [DATA]
        assert server.count("GET") == 0

    def test_what_is_cached_with_options_is_forgotten_with_the_path(self, server, http, cache):
        url = server.put("object", DATA)
        server.put("other", OTHER)
        other = {"headers": {"Accept-Language": "other"}}
        system = PageCacheFileSystem(fs=http, skip_instance_cache=True)
        assert system.cat_file(url, **other) == OTHER
        server.put("other", DATA)
        assert system.cat_file(url, **other) == OTHER
        system.invalidate_cache(url)
        assert system.cat_file(url, **other) == DATA

    def test_files_pickle_with_their_options(self, server, http, cache):
        url = server.put("secret", DATA)
        with (
            PageCacheFileSystem(fs=http).open(url, headers={"Authorization": "let me in"}) as file,
            pickle.loads(pickle.dumps(file)) as again,
        ):
            assert again.read() == DATA

    def test_threads_with_different_options(self, server, http, cache):
        url = server.put("object", DATA)
        server.put("other", OTHER)
        system = PageCacheFileSystem(fs=http, skip_instance_cache=True)

        def reader(options, right):
            starts = range(0, SIZE, PAGE)
            return lambda: [system.cat_file(url, start, **options) == right[start:] for start in starts]

        jobs = [reader({}, DATA), reader({"headers": {"Accept-Language": "other"}}, OTHER)] * 4
        assert all(map(all, Crew(*jobs).join_well()))

    async def _async_read(self, system, url, **options):
        whole = await system._cat_file(url, **options)
        parts = await system._cat_ranges([url, url], [0, 9], [9, None], **options)
        return whole, b"".join(parts)

    def test_coroutines_take_them_too(self, server, http, cache):
        url = server.put("object", DATA)
        server.put("other", OTHER)
        system = PageCacheFileSystem(fs=http)
        other = {"headers": {"Accept-Language": "other"}}
        for _ in range(2):
            assert fsspec.asyn.sync(fsspec.asyn.get_loop(), self._async_read, system, url) == (DATA, DATA)
            assert fsspec.asyn.sync(fsspec.asyn.get_loop(), self._async_read, system, url, **other) == (OTHER, OTHER)

    def test_options_that_the_library_does_not_have_are_a_type_error(self, server, http, cache):
        url = server.put("object", DATA)
        with pytest.raises(TypeError, match="haeders"):
            read("open", http, url, haeders={})


class TestOwnOptions:
    def test_one_call_may_have_its_own(self, cache):
        target = fsspec.filesystem("memory", skip_instance_cache=True)
        target.store, target.pseudo_dirs = {}, [""]
        target.pipe_file("/object", DATA)
        system = PageCacheFileSystem(fs=target, skip_instance_cache=True)
        with system.open("/object", recheck=True, on_change="reload") as file:
            assert file.read(3) == DATA[:3]
            target.pipe_file("/object", OTHER)
            assert file.pread(3, 0) == OTHER[:3]
        assert system.cat_file("/object", recheck=True) == OTHER
        with pytest.raises(TypeError, match="recheck must be"):
            system.open("/object", recheck="sometimes")
        with pytest.raises(TypeError, match=r"'rechek'.*did you mean 'recheck'"):
            system.open("/object", rechek=True)
        with pytest.raises(TypeError, match=r"'on_chnage'.*did you mean 'on_change'"):
            system.cat_file("/object", on_chnage="reload")
        with pytest.raises(TypeError, match=r"'whole_upto'.*did you mean 'whole_up_to'"):
            system.cat_ranges(["/object"], 0, 1, whole_upto=1)


class TestGcs:
    """gcsfs, which takes a generation for its contents, and describes the live object nevertheless."""

    @pytest.fixture
    def server(self):
        pytest.importorskip("gcsfs", reason="gcsfs is not installed")
        with GcsServer() as running:
            yield running

    @pytest.mark.parametrize("way", [way for way in WAYS if way != "cache_type"])
    @pytest.mark.parametrize("version_aware", [False, True])
    def test_generation(self, server, cache, way, version_aware):
        fs = fsspec.filesystem(
            "gcs", token="anon", endpoint_url=server.endpoint, version_aware=version_aware, skip_instance_cache=True
        )
        first = server.put_object("bucket/object", DATA)
        second = server.put_object("bucket/object", OTHER)
        for _ in range(2):
            assert read(way, fs, "bucket/object", generation=str(first)) == DATA
            assert read(way, fs, "bucket/object") == OTHER
            assert read(way, fs, "bucket/object", generation=str(second)) == OTHER
        with pytest.raises(FileNotFoundError):
            read(way, fs, "bucket/object", generation="77")

    def test_files_of_gcsfs_itself(self, server, cache):
        """They take the size of the live object, which is an error if it is another one."""
        fs = fsspec.filesystem("gcs", token="anon", endpoint_url=server.endpoint, skip_instance_cache=True)
        for data in (DATA, OTHER[:SIZE]):
            server.put_object("bucket/object", data)
        assert read("cache_type", fs, "bucket/object", generation="1") == DATA
        assert read("cache_type", fs, "bucket/object", generation="2") == OTHER[:SIZE]
        server.put_object("bucket/object", OTHER)
        with pytest.raises(OSError, match=f"it has {SIZE} bytes"):
            read("cache_type", fs, "bucket/object", generation="1")

    def test_misspelled(self, server, cache):
        fs = fsspec.filesystem("gcs", token="anon", endpoint_url=server.endpoint, skip_instance_cache=True)
        server.put_object("bucket/object", DATA)
        with pytest.raises(TypeError, match="did you mean 'generation'"):
            read("cat_file", fs, "bucket/object", genration="1")


class Editions(fsspec.get_filesystem_class("memory")):
    """`cat_file` takes any option and swallows it, as adlfs' does; `open` and `info` know one."""

    cachable = False
    store, pseudo_dirs = {}, [""]

    def _open(self, path, mode="rb", edition=None, **kwargs):
        return super()._open(f"{path}@{edition}" if edition else path, mode, **kwargs)

    def info(self, path, **kwargs):
        edition = kwargs.get("edition")
        return super().info(f"{path}@{edition}" if edition else path)

    def cat_file(self, path, start=None, end=None, **kwargs):
        return super().cat_file(path, start, end)


class Strict(Editions):
    """Neither `cat_file` nor `open` take any option."""

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, data=None):
        return super()._open(path, mode, data=data)

    def cat_file(self, path, start=None, end=None):
        return super().cat_file(path, start, end)


class TestOtherFileSystems:
    @pytest.mark.parametrize("way", [way for way in WAYS if way != "cache_type"])
    def test_what_open_has_by_name_is_read_by_open(self, cache, way):
        fs = Editions()
        fs.pipe({"/object": DATA, "/object@2": OTHER})
        for _ in range(2):
            assert read(way, fs, "/object", edition="2") == OTHER
            assert read(way, fs, "/object") == DATA

    @pytest.mark.parametrize("way", [way for way in WAYS if way != "cache_type"])
    def test_what_no_call_takes_is_a_type_error(self, cache, way):
        fs = Strict()
        fs.pipe_file("/object", DATA)
        assert read(way, fs, "/object") == DATA
        with pytest.raises(TypeError, match=r"Strict\.(open|cat_file) has no option 'edition'"):
            read(way, fs, "/object", edition="2")


class TestKeys:
    def test_equal_options_have_equal_parts(self):
        assert key_part({}) == ""
        one = {"headers": {"A": "1", "B": ["x", 2]}, "version_id": "v"}
        assert key_part(one) == key_part({"version_id": "v", "headers": {"B": ["x", 2], "A": "1"}})
        different = [one, {"version_id": "v"}, {"version_id": "w"}, {"version_id": b"v"}, {"version_id": 1}, {"x": "v"}]
        assert len({key_part(options) for options in different}) == len(different)

    def test_secrets_are_not_in_them(self):
        assert "hush" not in key_part({"headers": {"Authorization": "hush"}})

    def test_objects_that_only_their_address_tells_apart(self):
        class Opaque:
            def __reduce__(self):
                raise TypeError("not this one")

        one, other = Opaque(), Opaque()
        assert key_part({"ssl": one}) == key_part({"ssl": one}) != key_part({"ssl": other})
        assert are_of_this_process({"ssl": one})
        assert not are_of_this_process({"ssl": False, "headers": {"A": " number "}})
        seen = {key_part({"ssl": Opaque()}) for _ in range(50)}
        assert len(seen) == 50, "an address that came back was taken for the same object"

    def test_what_says_how_it_is_fetched_and_none_are_left_out(self):
        options = {"version_id": None, "block_size": 5, "cache_type": "none", "size": 3, "headers": {}}
        assert request_options(options) == {"headers": {}}
