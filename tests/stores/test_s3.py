"""S3 through s3fs and obstore, against a server of moto that this module starts."""

import errno
import threading
import urllib.request

import pytest
from support import PAGE, Crew, pages_of, wait_until
from support.fsspec_ways import WAYS, read

import pagecache

pytest.importorskip("moto", reason="moto is not installed")
server_module = pytest.importorskip("moto.moto_server.threaded_moto_server", reason="moto[server] is not installed")

SIZE = 300 * PAGE + 123
DATA = pages_of(SIZE)
KEYS = {"key": "testing", "secret": "testing"}


class S3:
    """A bucket on a server that counts requests."""

    def __init__(self):
        self._server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        wait_until(lambda: self._server._server is not None, "moto's server")
        self.endpoint = f"http://127.0.0.1:{self._server.get_host_and_port()[1]}"
        reset = urllib.request.Request(f"{self.endpoint}/moto-api/reset", method="POST")
        with urllib.request.urlopen(reset):  # moto's buckets belong to the process: other modules leave theirs
            pass
        self.requests = []
        self.refuses = None  # called with what a request says; true: 403
        self._lock = threading.Lock()
        application = self._server._server.app

        def counting(environ, start_response):
            with self._lock:
                self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_IF_MATCH")))
            if self.refuses is not None and self.refuses(environ):
                start_response("403 Forbidden", [("Content-Length", "0")])
                return [b""]
            return application(environ, start_response)

        self._server._server.app = counting

    def count(self, method=None):
        return sum(method in (None, request[0]) for request in self.requests)

    def close(self):
        self._server.stop()


@pytest.fixture(scope="module")
def s3():
    running = S3()
    yield running
    running.close()


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("8MiB")) as cache:
        yield cache


@pytest.fixture
def target(s3):
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, client_kwargs={"region_name": "eu-west-1"}, **KEYS)
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    fs.pipe_file("bucket/object", DATA)
    s3.requests.clear()
    return fs


class TestS3fs:
    def test_reads_and_their_requests(self, s3, target, cache):
        from pagecache.stores.fsspec import FsspecStore

        with cache.open(FsspecStore(target, "bucket/object")) as file:
            assert file.read() == DATA
        assert s3.count("HEAD") == 1
        gets = [request for request in s3.requests if request[0] == "GET"]
        assert gets
        assert all(if_match for _, _, if_match in gets)

    @pytest.mark.parametrize("recheck", [True, False, "open", 3600])
    @pytest.mark.parametrize("on_change", ["error", "reload"])
    def test_replaced_object_is_an_error_or_all_new(self, s3, target, cache, recheck, on_change):
        from pagecache.stores.fsspec import FsspecStore

        target.pipe_file("bucket/object", b"\1" * SIZE)
        cache.forget("fsspec:", whole=False)
        with cache.open(FsspecStore(target, "bucket/object", recheck=recheck), on_change=on_change) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert set(file.pread(SIZE // 2, 0)) == {1}
            target.pipe_file("bucket/object", b"\2" * SIZE)
            if on_change == "reload":
                assert set(file.pread(SIZE, 0)) == {2}
                return
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(SIZE, 0)
            assert caught.value.errno == errno.ESTALE

    def test_listing_that_is_cached_does_not_hide_a_change(self, s3, target, cache):
        target.pipe_file("bucket/object", b"\1" * SIZE)
        target.ls("bucket", detail=True)
        with pytest.importorskip("s3fs").S3FileSystem(
            endpoint_url=s3.endpoint, client_kwargs={"region_name": "eu-west-1"}, skip_instance_cache=True, **KEYS
        ).open("bucket/object", "wb") as other:
            other.write(b"\2" * SIZE)
        from pagecache.stores.fsspec import FsspecStore

        with cache.open(FsspecStore(target, "bucket/object")) as file:
            assert set(file.read()) == {2}

    def test_chained_url(self, s3, target, cache):
        fsspec = pytest.importorskip("fsspec")
        pytest.importorskip("pagecache.adapters.fsspec")
        options = {"endpoint_url": s3.endpoint, "client_kwargs": {"region_name": "eu-west-1"}, **KEYS}
        system, path = fsspec.url_to_fs("pagecache::s3://bucket/object", s3=options)
        assert path == "bucket/object"
        with fsspec.open("pagecache::s3://bucket/object", s3=options) as file:
            assert file.read() == DATA
        before = s3.count("GET")
        assert system.cat_ranges([path, path], [0, 100_000], [10, 100_010]) == [DATA[:10], DATA[100_000:100_010]]
        assert system.cat_file("pagecache://bucket/object") == DATA
        assert s3.count("GET") == before
        assert system.ls("bucket") == target.ls("bucket") == ["bucket/object"]
        system.pipe_file(path, b"new")
        assert system.cat_file(path) == b"new"
        with pytest.raises(FileNotFoundError):
            system.cat_file("bucket/nothing")
        system.invalidate_cache()

    def test_cache_type(self, s3, target, cache):
        pytest.importorskip("pagecache.adapters.fsspec")
        with (
            target.open("bucket/object", cache_type="pagecache", block_size=5 << 20) as one,
            target.open("bucket/object", cache_type="pagecache") as other,
        ):
            assert one.read() == DATA
            before = s3.count("GET")
            assert other.read() == DATA
            assert s3.count("GET") == before

    def test_threads_that_want_one_cold_page_make_one_request(self, s3, target, cache):
        from pagecache.stores.fsspec import FsspecStore

        target.pipe_file("bucket/object", DATA[:PAGE])
        s3.requests.clear()
        with cache.open(FsspecStore(target, "bucket/object")) as file:
            assert Crew(*[lambda: file.pread(PAGE, 0)] * 8).join_well() == [DATA[:PAGE]] * 8
        assert s3.count("GET") == 1


class TestCallOptions:
    """What `open` and `cat_file` are given goes to all requests for the object, and is part of its key."""

    @pytest.fixture
    def versions(self, s3, target):
        fs = type(target)(**target.storage_options | {"version_aware": True})
        if not fs.exists("versioned"):
            fs.mkdir("versioned")
            fs.make_bucket_versioned("versioned")
        found = []
        for data in (DATA, DATA[::-1] + b"more"):
            fs.pipe_file("versioned/object", data)
            known = next(info for info in fs.object_version_info("versioned/object") if info["IsLatest"])
            found.append((known["VersionId"], data))
        return found

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("version_aware", [False, True])
    def test_version(self, s3, target, versions, cache, way, version_aware):
        fs = type(target)(**target.storage_options | {"version_aware": version_aware})
        (first, old), (second, new) = versions
        if way == "cache_type" and not version_aware:
            with pytest.raises(ValueError, match="not version aware"):  # of s3fs itself
                read(way, fs, "versioned/object", version_id=first)
            return
        block = {"block_size": 5 << 20} if way == "cache_type" else {}
        for _ in range(2):
            assert read(way, fs, "versioned/object", version_id=first, **block) == old
            assert read(way, fs, "versioned/object", **block) == new
            assert read(way, fs, "versioned/object", version_id=second, **block) == new
        with pytest.raises(OSError, match="object"):
            read(way, fs, "versioned/object", version_id="0" * 32, **block)

    @pytest.mark.parametrize("way", [way for way in WAYS if way != "cache_type"])
    @pytest.mark.parametrize(
        ("right", "header"),
        [
            ({"requester_pays": True}, "HTTP_X_AMZ_REQUEST_PAYER"),
            (
                {"SSECustomerKey": "k" * 32, "SSECustomerAlgorithm": "AES256"},
                "HTTP_X_AMZ_SERVER_SIDE_ENCRYPTION_CUSTOMER_KEY",
            ),
        ],
        ids=["requester_pays", "customer_key"],
    )
    def test_right(self, s3, target, cache, way, right, header):
        s3.refuses = lambda environ: environ["PATH_INFO"] == "/bucket/object" and header not in environ
        try:
            assert read(way, target, "bucket/object", **right) == DATA
            with pytest.raises(OSError, match=r"403|Forbidden"):
                read(way, target, "bucket/object")
            before = s3.count("GET")
            assert read(way, target, "bucket/object", **right) == DATA
            assert s3.count("GET") == before
        finally:
            s3.refuses = None

    def test_a_call_takes_back_what_the_file_system_says(self, s3, target, cache):
        fs = type(target)(**target.storage_options | {"requester_pays": True})
        s3.refuses = lambda environ: environ["PATH_INFO"] == "/bucket/object" and "HTTP_X_AMZ_REQUEST_PAYER" not in environ
        try:
            assert read("open", fs, "bucket/object") == DATA
            with pytest.raises(OSError, match=r"403|Forbidden"):
                read("open", fs, "bucket/object", requester_pays=False)
        finally:
            s3.refuses = None

    def test_misspelled(self, s3, target, cache):
        for wrong, meant in (("version", "version_id"), ("SSECustomerKye", "SSECustomerKey")):
            with pytest.raises(TypeError, match=f"did you mean '{meant}'"):
                read("cat_file", target, "bucket/object", **{wrong: "x"})


class TestObstore:
    def test_reads_are_conditional_and_notice_a_change(self, s3, target, cache):
        stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
        from pagecache.stores.obspec import ObspecStore

        store = stores.S3Store(
            "bucket",
            endpoint=s3.endpoint,
            access_key_id=KEYS["key"],
            secret_access_key=KEYS["secret"],
            region="eu-west-1",
            client_options={"allow_http": True},
        )
        with cache.open(ObspecStore(store, "object")) as file:
            assert file.read() == DATA
            gets = [request for request in s3.requests if request[0] == "GET"]
            assert gets
            assert all(if_match for _, _, if_match in gets)
        target.pipe_file("bucket/object", b"\1" * SIZE)
        with cache.open(ObspecStore(store, "object")) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            assert set(file.pread(SIZE // 2, 0)) == {1}
            target.pipe_file("bucket/object", b"\2" * SIZE)
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                file.pread(SIZE, 0)
            assert caught.value.errno == errno.ESTALE
