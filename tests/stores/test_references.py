"""fsspec's ReferenceFileSystem: bytes that it holds, parts of other objects, and whole ones, as uncached reads them."""

import base64
import errno
import json

import pytest
from support import PAGE, pages_of
from support.faulty_http import FaultyServer, refuses_head

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.stores.fsspec import FsspecStore  # noqa: E402

SIZE = 20 * PAGE + 123
DATA = pages_of(SIZE)
INLINE = bytes(range(256)) * 40


@pytest.fixture
def server():
    with FaultyServer() as running:
        running.put("object", DATA)
        yield running


@pytest.fixture
def fs(server, tmp_path):
    references = {
        "text": "some text",
        "inline": "base64:" + base64.b64encode(INLINE).decode(),
        "odd": "base64:" + base64.b64encode(INLINE[:-1]).decode(),
        "empty": "base64:",
        "below/part": [server.url("object"), PAGE, 3 * PAGE + 5],
        "whole": [server.url("object")],
    }
    path = tmp_path / "references.json"
    path.write_text(json.dumps(references))
    return fsspec.filesystem("reference", fo=str(path), remote_protocol="http", skip_instance_cache=True)


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("4MiB")) as cache:
        yield cache


@pytest.mark.parametrize("name", ["text", "inline", "odd", "empty", "below/part", "whole"])
def test_all_kinds_are_read_as_uncached(fs, cache, name):
    expected = fs.cat_file(name)
    with cache.open(FsspecStore(fs, name)) as file:
        assert file.size == len(expected)
        assert file.pread(100, 50) == expected[50:150]
        assert file.read() == expected


def test_chained(fs, cache):
    pytest.importorskip("pagecache.adapters.fsspec")
    chained = fsspec.filesystem("pagecache", fs=fs)
    for name in ("inline", "below/part", "whole"):
        assert chained.cat_file(name) == fs.cat_file(name)
        assert chained.cat_file(name, 10, 20) == fs.cat_file(name)[10:20]


def test_what_is_not_there(fs, cache):
    with pytest.raises(FileNotFoundError):
        FsspecStore(fs, "nothing")
    with pytest.raises(IsADirectoryError):
        FsspecStore(fs, "below")


@pytest.mark.parametrize("status", ["503", "429", "403", "500"])
def test_target_that_fails_is_not_a_missing_one(server, fs, cache, status):
    server.fail(status, times=2)
    with pytest.raises(OSError, match=status) as caught:
        FsspecStore(fs, "whole")
    assert not isinstance(caught.value, FileNotFoundError)
    assert caught.value.errno == (errno.EACCES if status == "403" else errno.EIO)
    assert FsspecStore(fs, "whole").size() == SIZE


def test_target_that_refuses_head(server, fs, cache):
    server.rewrite = refuses_head(403)
    with cache.open(FsspecStore(fs, "whole")) as file:
        assert file.read() == DATA


def test_target_that_has_gone(server, fs, cache):
    server.remove("object")
    with pytest.raises(FileNotFoundError):
        FsspecStore(fs, "whole")
    with cache.open(FsspecStore(fs, "below/part")) as file, pytest.raises(OSError, match="cannot read"):
        file.read()


def test_whole_target_without_ranges(server, fs, cache):
    server.honours_range = False
    server.rewrite = lambda answer: answer.headers.pop("Accept-Ranges", None)
    with cache.open(FsspecStore(fs, "whole")) as file:
        assert file.pread(10, 15 * PAGE) == DATA[15 * PAGE : 15 * PAGE + 10]
        assert file.read() == DATA
    assert [request.nbytes for request in server.requests if request.method == "GET"] == [SIZE]


def test_target_without_ranges_is_an_error_for_parts(server, fs, cache):
    """Uncached takes the beginning of the object for the part."""
    server.honours_range = False
    with cache.open(FsspecStore(fs, "below/part")) as file:
        with pytest.raises(OSError, match="bytes came where"):
            file.read()
        server.honours_range = True
        assert file.read() == DATA[PAGE : 4 * PAGE + 5]
