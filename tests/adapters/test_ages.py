"""When an object was modified: as its server says, else since when its version is known; the same as long as that is."""

import datetime

import pytest
from support.http_server import ObjectServer
from support.native_threads import NativeThread

import pagecache
from pagecache.adapters import ages
from pagecache.adapters.ages import Ages, last_modified_s
from pagecache.stores.validators import Version

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


@pytest.fixture
def fs(make_cache):
    with pagecache.using(make_cache("1MiB")):
        yield PageCacheFileSystem(target_protocol="http", skip_instance_cache=True)


def test_a_version_has_one_time_and_the_next_one_a_later_one():
    known = Ages()
    first = known.since_s("a", "1")
    other = known.since_s("b", "1")
    assert known.since_s("a", "1") == first
    second = known.since_s("a", "2")
    assert second > first
    assert known.since_s("a", "1") > second  # it has changed again
    assert known.since_s("b", "1") == other
    assert known.since_s("c", None) < known.since_s("c", None) < known.since_s("c", None)


def test_few_are_remembered(monkeypatch):
    monkeypatch.setattr(ages, "NAMES_MAX", 3)
    known = Ages()
    kept = known.since_s("kept", "1")
    for number in range(10):
        known.since_s(str(number), "1")
        assert known.since_s("kept", "1") == kept
    assert len(known._since) == 3


@pytest.mark.parametrize(
    "said, seconds",
    [
        ("Sun, 09 Sep 2001 01:46:40 GMT", 1_000_000_000),
        ("Sun, 09 Sep 2001 03:46:40 +0200", 1_000_000_000),
        ("Sun, 09 Sep 2001 01:46:40 -0000", 1_000_000_000),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_server_says(said, seconds):
    assert last_modified_s(Version(1, "v", None, said, 0.0)) == seconds


def test_last_modified_is_the_servers(fs, server):
    server.sends_last_modified = True
    url = server.put("object", b"data", modified=1_000_000_000)
    assert fs.modified(url) == datetime.datetime.fromtimestamp(1_000_000_000, datetime.UTC)
    server.put("object", b"other", modified=1_000_000_500)
    assert fs.modified(url).timestamp() == 1_000_000_500


def test_without_one_it_is_the_age_of_the_entity_tag(fs, server):
    url = server.put("object", b"data")
    first = fs.modified(url)
    with NativeThread() as other:
        assert first == fs.modified(url) == other(fs.modified, url)
    fs.invalidate_cache(url)
    assert fs.modified(url) == first
    server.put("object", b"other")
    second = fs.modified(url)
    assert second > first
    assert fs.modified(url) == second
    with pytest.raises(FileNotFoundError):
        fs.modified(server.url("none"))


def test_without_anything_it_may_have_changed_each_time(fs, server):
    server.sends_etag = False
    url = server.put("object", b"data")
    assert fs.modified(url) < fs.modified(url)


def test_what_is_known_well_enough_is_not_asked_for(server, make_cache):
    url = server.put("object", b"data")
    with pagecache.using(make_cache("1MiB")):
        fs = PageCacheFileSystem(target_protocol="http", recheck=3600, skip_instance_cache=True)
        first = fs.modified(url)
        server.forget()
        assert fs.modified(url) == first
        with fs.open(url) as file:
            assert (server.count("HEAD"), file.read()) == (0, b"data")


def test_targets_that_say_it_themselves_are_asked(make_cache):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/aged", b"data")
    with pagecache.using(make_cache("1MiB")):
        assert PageCacheFileSystem(fs=memory, skip_instance_cache=True).modified("/aged") == memory.modified("/aged")
    memory.rm("/aged")
