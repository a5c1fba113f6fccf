"""Objects of Google Cloud Storage that are stored compressed, through gcsfs: what is read has another size."""

import errno
import gzip

import pytest
from support import PAGE, pages_of
from support.gcs_server import GcsServer

import pagecache

pytest.importorskip("gcsfs", reason="gcsfs is not installed")
import fsspec

from pagecache.stores import fsspec_sync
from pagecache.stores.fsspec import FsspecStore

DATA = pages_of(40 * PAGE + 123)
STORED = gzip.compress(DATA, mtime=0)


@pytest.fixture(params=[True, False], ids=["ranges of what is stored", "no ranges"])
def server(request):
    with GcsServer() as running:
        running.encodings["bucket/object"] = "gzip"
        running.honours_range_of_encoded = request.param
        running.put_object("bucket/object", STORED)
        yield running


@pytest.fixture
def fs(server):
    return fsspec.filesystem("gcs", token="anon", endpoint_url=server.endpoint, skip_instance_cache=True)


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("4MiB")) as cache:
        yield cache


def test_is_read_whole_and_uncut(fs, cache):
    assert fs.info("bucket/object")["size"] == len(STORED) < len(DATA) == len(fs.cat_file("bucket/object"))
    for _ in range(2):
        with cache.open(FsspecStore(fs, "bucket/object")) as file:
            assert file.size == len(DATA)
            assert file.pread(100, 20 * PAGE) == DATA[20 * PAGE : 20 * PAGE + 100]
            assert file.pread(len(DATA) + 1, 0) == DATA


def test_opening_again_moves_nothing(server, fs, cache):
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        file.pread(10, 0)
    server.forget()
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        assert file.pread(len(DATA), 0) == DATA
    assert not [request for request in server.requests if request.nbytes > len(STORED) // 2]


def test_chained(fs, cache):
    pytest.importorskip("pagecache.adapters.fsspec")
    chained = fsspec.filesystem("pagecache", fs=fs)
    assert chained.cat_file("bucket/object", 20 * PAGE, 20 * PAGE + 10) == DATA[20 * PAGE : 20 * PAGE + 10]
    assert chained.cat_file("bucket/object") == DATA
    with chained.open("bucket/object") as file:
        assert file.read() == DATA


@pytest.mark.parametrize("recheck", [False, "open"])
def test_file_of_gcsfs_that_ends_at_the_stated_size_is_an_error(fs, cache, recheck):
    pytest.importorskip("pagecache.adapters.fsspec")
    with pytest.raises(OSError, match=r"Content-Encoding gzip.*pagecache::gs://bucket/object") as caught:
        fs.open("bucket/object", cache_type="pagecache", cache_options={"recheck": recheck})
    assert caught.value.errno == errno.ENOTSUP


def test_encoding_that_is_not_named_is_an_error(server, fs, cache):
    class Silent(GcsServer):
        def _metadata(self, name, number, data):
            return super()._metadata(name, number, data).replace(b"contentEncoding", b"contentX")

    server.__class__ = Silent
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        with pytest.raises(OSError, match=r"bytes came where.*cat_file") as caught:
            file.pread(len(STORED), 0)
        assert caught.value.errno == errno.EIO
        assert file.pread_cached(10, 0) is None


def test_too_large_names_the_encoding_and_the_remedy(fs, cache, monkeypatch):
    monkeypatch.setattr(fsspec_sync, "WHOLE_MAX", 100)
    with pytest.raises(OSError, match=r"Content-Encoding gzip.*whole_up_to") as caught:
        FsspecStore(fs, "bucket/object")
    assert caught.value.errno == errno.EFBIG
    assert FsspecStore(fs, "bucket/object", whole_up_to="1MiB").size() == len(DATA)


def test_stored_compressed_and_named_so_but_served_as_it_is(server, fs, cache):
    """A request for what is stored gets that: sizes are right then, and ranges too."""

    def hides(answer):
        answer.headers.pop("Content-Encoding", None)

    server.rewrite = hides
    server.honours_range_of_encoded = True
    with cache.open(FsspecStore(fs, "bucket/object")) as file:
        assert file.size == len(STORED)
        assert file.pread(len(DATA), 0) == STORED
