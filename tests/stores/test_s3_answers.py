"""What services with the interface of S3 say that is not quite so, through s3fs; the service is a server of faults."""

import contextlib
import errno

import pytest
from support import PAGE, assert_nothing_is_held, pages_of
from support.faulty_http import FAULTS, FaultyServer, begins_earlier, content_range, head_and_get, refuses_head

import pagecache

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
from pagecache.stores.fsspec import FsspecStore  # noqa: E402

SIZE = 40 * PAGE + 123
DATA = pages_of(SIZE)


@pytest.fixture(scope="module")
def service():
    with FaultyServer() as running:
        yield running


@pytest.fixture
def server(service):
    """The service, well again."""
    service.heal()
    service.rewrite = None
    service.honours_range = service.honours_if_match = True
    service.put("bucket/object", DATA)
    service.forget()
    return service


@pytest.fixture(scope="module")
def fs(service):
    """s3fs, which asks once."""
    fs = s3fs.S3FileSystem(
        endpoint_url=service.url("").rstrip("/"),
        key="testing",
        secret="testing",
        client_kwargs={"region_name": "eu-west-1"},
        config_kwargs={"retries": {"total_max_attempts": 1}},
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


def assert_read_well(cache, fs, data=DATA):
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        assert file.size == len(data)
        for offset in range(len(data) - 1, 0, -7 * PAGE):
            assert file.pread(100, offset) == data[offset : offset + 100]
        assert file.pread(len(data) + 10, 0) == data


def gets(server):
    return [request for request in server.requests if request.method == "GET"]


def test_service_without_ranges_is_read_once(server, fs, cache):
    server.honours_range = False
    assert_read_well(cache, fs)
    assert [request.nbytes for request in gets(server)] == [SIZE]
    assert cache.stats().store_read_bytes == SIZE


def test_larger_object_without_ranges_is_read_in_order(server, fs, make_cache):
    server.honours_range = False
    with make_cache(20 * PAGE).open(FsspecStore(fs, "bucket/object")) as file:
        assert b"".join(iter(lambda: file.read(3000), b"")) == DATA
    assert len(gets(server)) == 1


@pytest.mark.parametrize("status", [400, 403, 405, 501])
@pytest.mark.parametrize("ranges", [True, False])
def test_head_that_is_refused(server, fs, cache, status, ranges):
    server.rewrite = refuses_head(status)
    server.honours_range = ranges
    assert_read_well(cache, fs)


def test_empty_object_whose_head_is_refused(server, fs, cache):
    server.put("bucket/object", b"")
    server.rewrite = refuses_head(403)
    assert_read_well(cache, fs, b"")


def test_refused_altogether_is_refused(server, fs, cache):
    def refuses(answer):
        answer.status, answer.body, answer.headers = 403, b"", {}

    server.rewrite = refuses
    with pytest.raises(PermissionError) as caught:
        cache.open(FsspecStore(fs, "bucket/object"))
    assert caught.value.errno == errno.EACCES


def test_missing_object_is_missing(server, fs, cache):
    with pytest.raises(FileNotFoundError, match="nothing"):
        cache.open(FsspecStore(fs, "bucket/nothing"))


@pytest.mark.parametrize("form", ["Bytes {first}-{last}/{size}", "bytes={first}-{last}/{size}", "{first}-{last}/{size}"])
def test_forms_of_content_range(server, fs, cache, form):
    server.rewrite = content_range(form)
    assert_read_well(cache, fs)


def test_wider_part_is_used(server, fs, cache):
    server.rewrite = begins_earlier(100)
    assert_read_well(cache, fs)


def test_part_that_is_another_one_is_an_error(server, fs, cache):
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        server.rewrite = head_and_get({}, {"Content-Range": f"bytes 0-9/{SIZE}"})
        with pytest.raises(OSError, match="answered with the range") as caught:
            file.pread(10, 20 * PAGE)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("tags", [('W/"x"', '"x"'), ('"x"', 'W/"x"')])
def test_mark_of_weakness_makes_no_other_version(server, fs, cache, tags):
    server.honours_if_match = False
    server.rewrite = head_and_get({"ETag": tags[0]}, {"ETag": tags[1]})
    assert_read_well(cache, fs)


def test_stored_encoding_is_not_decoded(server, fs, cache):
    server.rewrite = lambda answer: answer.headers.setdefault("Content-Encoding", "gzip")
    assert fs.cat_file("bucket/object") == DATA
    assert_read_well(cache, fs)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("when", ["size", "get"])
def test_fault_is_an_error_or_harmless_and_never_data(server, fs, cache, fault, when):
    strikes = {"get": lambda answer: answer.method == "GET"}.get(when, when)
    server.fail(fault, when=strikes)
    try:
        with cache.open(FsspecStore(fs, "bucket/object")) as file:
            found = file.pread(SIZE, 0)
    except OSError as error:
        assert not isinstance(error, FileNotFoundError) or fault == "404"
        found = None
    assert found in (None, DATA, server.data("bucket/object"))
    server.heal()
    data = server.data("bucket/object")
    assert_read_well(cache, fs, data)
    assert_nothing_is_held(cache)


def test_fault_at_random_places(server, fs, cache, rng):
    """Many faults, one after the other, on an open file."""
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        file.fadvise(pagecache.FADV_RANDOM)
        for _ in range(30):
            cache.drop_caches()
            server.fail(rng.choice([fault for fault in FAULTS if fault not in ("changed", "stopped")]), when="range")
            offset, nbytes = rng.randrange(SIZE), rng.randrange(1, 5 * PAGE)
            with contextlib.suppress(OSError):
                assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
            server.heal()
            assert file.pread(nbytes, offset) == DATA[offset : offset + nbytes]
