"""What the log says (logger `pagecache`): degraded states once at WARNING, requests at DEBUG, no more when all is well."""

import logging

import pytest
from support import PAGE, FaultyStore, pages_of
from support.faulty_http import FaultyServer, head_and_get

import pagecache
from pagecache.stores import attempts, degraded, fsspec_http
from pagecache.stores.described import Memory

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

DATA = pages_of(10 * PAGE)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(degraded, "_said", Memory())
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(fsspec_http, "_heads_untrue", Memory())
    with FaultyServer() as running:
        for name in ("one", "other"):
            running.put(name, DATA)
        yield running


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG, "pagecache")
    return caplog


def said(log, level):
    return [record.getMessage() for record in log.records if record.name == "pagecache" and record.levelno == level]


class TestRequests:
    def test_are_told_with_object_range_and_time(self, make_cache, server, log):
        with make_cache("1MiB").open(server.url("one")) as file:
            assert file.pread(10, 0) == DATA[:10]
            nr_told = len(said(log, logging.DEBUG))
            assert file.pread(10, 0) == DATA[:10]  # a hit is no request
            assert len(said(log, logging.DEBUG)) == nr_told
        lines = said(log, logging.DEBUG)
        assert any(f"{server.url('one')}: {len(DATA)} bytes, ETag=" in line for line in lines)
        assert any(line.startswith(server.url("one")) and "bytes from 0 on, in " in line for line in lines)
        assert not [record for record in log.records if record.levelno > logging.DEBUG]

    def test_that_fail_are_told_with_the_reason(self, make_cache, log):
        store = FaultyStore(DATA, lambda *_: OSError(5, "the disk is gone"))
        with make_cache("1MiB").open(store) as file, pytest.raises(OSError, match="gone"):
            file.pread(10, 0)
        assert any("faulty:" in line and "the disk is gone" in line for line in said(log, logging.DEBUG))

    def test_tries_are_told(self, make_cache, server, log):
        server.fail("503", "range", times=2)
        with make_cache("1MiB").open(server.url("one"), retries=2) as file:
            assert file.pread(10, 0) == DATA[:10]
        tries = [line for line in said(log, logging.DEBUG) if "of 3 failed" in line]
        assert len(tries) == 2
        assert "try 1 of 3 failed, next in 0.00 s: 503" in tries[0]

    def test_writes_are_told(self, make_cache, log):
        with make_cache("1MiB").open(pagecache.MemoryStore(DATA), "r+b") as file:
            file.pwrite(b"new", PAGE)
            file.fsync()
        assert any(f"{PAGE} bytes written at {PAGE}" in line for line in said(log, logging.DEBUG))

    def test_keys_of_zarr_are_told(self, make_cache, server, log):
        pytest.importorskip("zarr", minversion="3", reason="zarr is not installed")
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import FsspecStore

        from pagecache.adapters.zarr import PageCacheStore

        store = FsspecStore.from_url(server.url("").rstrip("/"), read_only=True)
        with PageCacheStore(store, make_cache("1MiB")) as opened:
            assert opened.get_sync("one", prototype=default_buffer_prototype()).to_bytes() == DATA
        assert any(line.startswith("key one of ") and "asked for in" in line for line in said(log, logging.DEBUG))


class TestDegradedStates:
    """Each is said once, whichever objects of the server show it."""

    def read_all(self, make_cache, server):
        with make_cache("1MiB") as cache:
            for name in ("one", "other"):
                with cache.open(server.url(name)) as file:
                    assert file.pread(len(DATA), 0) == DATA

    def test_no_ranges(self, make_cache, server, log):
        server.honours_range = False
        self.read_all(make_cache, server)
        assert ["cannot be read in ranges" in line for line in said(log, logging.WARNING)] == [True]

    def test_no_validator(self, make_cache, server, log):
        server.sends_etag = False
        self.read_all(make_cache, server)
        assert ["nothing tells versions" in line for line in said(log, logging.WARNING)] == [True]

    def test_no_conditions(self, make_cache, server, log):
        def refuse(answer):
            if "If-Match" in answer.asked:
                answer.status, answer.body = 412, b""

        server.rewrite = refuse
        self.read_all(make_cache, server)
        assert ["refused under a condition that holds" in line for line in said(log, logging.WARNING)] == [True]

    def test_untrue_head(self, make_cache, server, log):
        server.rewrite = head_and_get({"Content-Length": str(len(DATA) // 2)}, {})
        with make_cache("1MiB") as cache:
            for name in ("one", "other"):
                with cache.open(server.url(name)) as file, pytest.raises(OSError, match="HEAD"):
                    file.pread(len(DATA), 0)
        assert ["is not what HEAD says" in line for line in said(log, logging.WARNING)] == [True]

    def test_a_connection_that_cannot_be_made_anew(self, log, monkeypatch):
        from fsspec.implementations.memory import MemoryFileSystem

        from pagecache.stores import fsspec_instances

        fs = MemoryFileSystem(skip_instance_cache=True)

        def refuse(fs):
            raise OSError("one connection is enough")

        monkeypatch.setattr(fsspec_instances, "remade", refuse)
        for _ in range(2):
            fsspec_instances._own_of(fs)
        assert ["cannot be made anew" in line for line in said(log, logging.WARNING)] == [True]

    @pytest.mark.parametrize("what", ["peer", "second level's"])
    def test_a_member_that_fails(self, log, what):
        client = pytest.importorskip("pagecache.adapters.peers.client")
        now = [0.0]
        suspects = client.Suspects(5.0, lambda: now[0], what=what)
        for _ in range(3):
            suspects.note_failure("server")
            now[0] += 10
            assert suspects.may_ask("server")
        assert [f"{what} server failed" in line for line in said(log, logging.WARNING)] == [True]
        suspects.note_success("server")
        suspects.note_success("server")
        assert [f"{what} server answers again" in line for line in said(log, logging.INFO)] == [True]
        suspects.note_failure("server")
        assert len(said(log, logging.WARNING)) == 2
