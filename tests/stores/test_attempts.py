"""Requests are tried again after what can pass, for so long and so often: by every way in, with the real libraries."""

import asyncio
import contextlib
import datetime
import email.utils
import errno
import pickle
import threading

import pytest
from support import PAGE, PATIENCE_S, assert_nothing_is_held, pages_of, wait_until
from support.faulty_http import FaultyServer

import pagecache
from pagecache.stores import attempts
from pagecache.stores.attempts import Attempts
from pagecache.stores.described import Memory

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.stores import fsspec_http  # noqa: E402
from pagecache.stores.fsspec import FsspecStore, store_of_url  # noqa: E402

SIZE = 20 * PAGE + 123
DATA = pages_of(SIZE)
PASSING = ("503", "429", "500", "cut in headers", "cut in body")
LASTING = {"403": errno.EACCES, "404": errno.ENOENT}
LIMIT_S = 0.1  # a time limit that has to be reached: what is asked then is not answered before


class HangingServer(FaultyServer):
    """Answers requests that `hangs(answer)` says when the test ends, as many as `times`; and counts them."""

    def __init__(self):
        self.end = threading.Event()
        self.nr_hanging, self.times = 0, 0
        self.hangs = lambda answer: answer.is_range_request
        super().__init__()

    def alter(self, answer):
        super().alter(answer)
        if self.nr_hanging < self.times and self.hangs(answer):
            self.nr_hanging += 1
            answer.body = b"\xee" * len(answer.body)
            assert self.end.wait(PATIENCE_S), "the test did not end"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(fsspec_http, "_heads_refused", Memory())
    monkeypatch.setattr(fsspec_http, "_heads_untrue", Memory())
    with HangingServer() as running:
        running.put("object", DATA)
        yield running
        running.end.set()


@pytest.fixture
def cache(make_cache):
    with pagecache.using(make_cache("1MiB")) as cache:
        yield cache


# -- the ways in -------------------------------------------------------------------------------------------------------


def by_open(server, cache, **options):
    return cache.open(server.url("object"), **options)


def by_file_system(server, cache, **options):
    import pagecache.adapters.fsspec  # noqa: F401

    return fsspec.open(f"pagecache::{server.url('object')}", pagecache={**options, "skip_instance_cache": True}).open()


def by_call(server, cache, **options):

    fs = fsspec.filesystem("pagecache", target_protocol="http", skip_instance_cache=True)
    return fs.open(server.url("object"), **options)


def by_cache_type(server, cache, **options):

    fs = fsspec.filesystem("http", skip_instance_cache=True)
    return fs.open(server.url("object"), cache_type="pagecache", cache_options=options)


def by_obspec(server, cache, **options):
    stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
    store = stores.HTTPStore(server.url(""), client_options={"allow_http": True}, retry_config={"max_retries": 0})
    return cache.open(pagecache.ObspecStore(store, "object", **options))


class _Value:
    """A key of a Zarr store, read as a file would be."""

    def __init__(self, store, blocks):
        self._store, self._blocks, self._at = store, blocks, 0

    def seek(self, offset):
        self._at = offset

    def read(self, nbytes):
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype

        wanted = RangeByteRequest(self._at, self._at + nbytes)
        if self._blocks:
            found = self._store.get_sync("object", prototype=default_buffer_prototype(), byte_range=wanted)
        else:
            found = asyncio.run(self._store.get("object", default_buffer_prototype(), wanted))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "the key is absent")
        return found.to_bytes()

    def close(self):
        self._store.close()


def by_zarr(kind, blocks):
    def way(server, cache, **options):
        zarr = pytest.importorskip("zarr", minversion="3", reason="zarr is not installed")
        from zarr.storage import FsspecStore, ObjectStore, WrapperStore

        from pagecache.adapters.zarr import PageCacheStore

        class OwnMethods(WrapperStore):
            async def getsize(self, key):
                return await self._store.getsize(key)

        assert zarr
        if kind == "obstore":
            stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
            client = {"allow_http": True}
            store = stores.HTTPStore(server.url(""), client_options=client, retry_config={"max_retries": 0})
            store = ObjectStore(store, read_only=True)
        else:
            url = server.url("").rstrip("/")
            store = FsspecStore.from_url(url, read_only=True, storage_options={"skip_instance_cache": True})
            store = OwnMethods(store) if kind == "own methods" else store
        return _Value(PageCacheStore(store, cache, **options), blocks)

    return way


WAYS = {
    "open": by_open,
    "pagecache::": by_file_system,
    "call": by_call,
    "cache_type": by_cache_type,
    "obspec": by_obspec,
    **{
        f"zarr {kind} {'blocking' if blocks else 'awaited'}": by_zarr(kind, blocks)
        for kind in ("fsspec", "obstore", "own methods")
        for blocks in (False, True)
    },
}
FILES = ("open", "pagecache::", "call", "cache_type", "obspec")


def read_by(way, server, cache, **options):
    with contextlib.closing(WAYS[way](server, cache, **options)) as file:
        file.seek(5 * PAGE)
        return file.read(100)


RIGHT = DATA[5 * PAGE : 5 * PAGE + 100]


# -- tries -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
class TestRetries:
    @pytest.mark.parametrize("fault", PASSING)
    def test_what_passes_is_tried_again(self, server, cache, way, fault):
        server.fail(fault, "range", times=2)
        assert read_by(way, server, cache, retries=2) == RIGHT
        assert server.struck
        assert set(server.struck) == {fault}

    def test_as_often_as_is_said(self, server, cache, way):
        server.fail("503", "range", times=9)
        with pytest.raises(Exception) as caught:  # whatever the library raises
            read_by(way, server, cache, retries=2)
        assert not isinstance(caught.value, FileNotFoundError)
        assert server.struck == ["503"] * 3
        server.heal()
        assert read_by(way, server, cache) == RIGHT

    @pytest.mark.parametrize("fault", LASTING)
    def test_what_lasts_is_not_tried_again(self, server, cache, way, fault):
        server.fail(fault, "range", times=9)
        with pytest.raises(Exception):  # noqa: B017  whatever the library raises
            read_by(way, server, cache, retries=5)
        assert server.struck == [fault]

    def test_without_them_errors_come_at_once(self, server, cache, way):
        server.fail("503", "range", times=9)
        with pytest.raises(Exception):  # noqa: B017  whatever the library raises
            read_by(way, server, cache)
        assert server.struck == ["503"]


@pytest.mark.parametrize("way", WAYS)
class TestTimeLimits:
    def test_a_request_that_hangs_is_made_again(self, server, cache, way):
        server.times = 1
        assert read_by(way, server, cache, timeout_s=LIMIT_S, retries=1) == RIGHT
        assert server.nr_hanging == 1
        server.end.set()  # what comes late is dropped
        assert read_by(way, server, cache) == RIGHT

    def test_as_often_as_is_said(self, server, cache, way):
        server.times = 9
        with pytest.raises(TimeoutError, match=f"no answer within {LIMIT_S} s") as caught:
            read_by(way, server, cache, timeout_s=LIMIT_S, retries=1)
        assert caught.value.errno == errno.ETIMEDOUT
        assert server.nr_hanging == 2
        server.times = 0
        server.end.set()
        assert read_by(way, server, cache) == RIGHT


class TestOpening:
    """HEAD, and the GET that asks in its place, are tried again as a whole."""

    @pytest.mark.parametrize("way", FILES)
    def test_what_passes_is_tried_again(self, server, cache, way):
        if way == "cache_type":
            pytest.skip("the file system of the user asks for size and version")
        server.fail("503", lambda answer: True, times=3)
        assert read_by(way, server, cache, retries=3) == RIGHT

    @pytest.mark.parametrize("way", FILES)
    def test_one_that_hangs_is_made_again(self, server, cache, way):
        if way == "cache_type":
            pytest.skip("the file system of the user asks for size and version")
        server.times, server.hangs = 1, lambda answer: True
        assert read_by(way, server, cache, timeout_s=LIMIT_S, retries=1) == RIGHT
        assert server.nr_hanging == 1

    def test_absent_is_absent(self, server, cache):
        server.remove("object")
        with pytest.raises(FileNotFoundError):
            by_open(server, cache, retries=5)
        assert len(server.requests) == 2  # HEAD, and GET

    def test_a_change_is_not_tried_again(self, server, cache):
        nr_requests = []
        for retries in (0, 5):
            with by_open(server, cache, retries=retries) as file:
                server.fail("changed", "range")
                server.forget()
                with pytest.raises(OSError, match="changed") as caught:
                    file.pread(10, 0)
                assert caught.value.errno == errno.ESTALE
                nr_requests.append(len(server.requests))
        assert nr_requests[0] == nr_requests[1]


class TestInOrder:
    """Answers that are read from the beginning: what counts is the time without anything coming."""

    @pytest.mark.parametrize("way", ["open", "obspec"])
    def test_one_that_is_cut_is_begun_again(self, server, cache, way):
        server.honours_range = False
        server.fail("cut in body", lambda answer: answer.method == "GET" and answer.span is None, times=1)
        assert read_by(way, server, cache, retries=3) == RIGHT

    @pytest.mark.parametrize("way", ["open", "obspec"])
    def test_one_that_stops_is_begun_again(self, server, cache, way):
        server.honours_range = False
        server.times, server.hangs = 1, lambda answer: answer.method == "GET" and answer.span is None
        with WAYS[way](server, cache, timeout_s=LIMIT_S, retries=2) as file:
            assert file.pread(100, 5 * PAGE) == RIGHT
        assert server.nr_hanging == 1


# -- file systems that block in calls of their own ---------------------------------------------------------------------


class TestBlocking:
    @pytest.fixture
    def hanging(self):
        """A file system without coroutines, of which the first reads hang: (file system, path, what makes them go on)."""
        from fsspec.implementations.memory import MemoryFileSystem

        class Hanging(MemoryFileSystem):
            times, entered, go_on = 1, threading.Event(), threading.Event()
            protocol = "hanging"

            def cat_file(self, path, start=None, end=None, **options):
                if type(self).times:
                    type(self).times -= 1
                    self.entered.set()
                    assert self.go_on.wait(PATIENCE_S)
                return super().cat_file(path, start, end, **options)

        fs = Hanging(skip_instance_cache=True)
        fs.pipe_file("/hanging/object", DATA)
        yield fs
        fs.go_on.set()
        fs.rm("/hanging", recursive=True)

    def test_calls_that_may_be_made_by_other_threads_end_in_time(self, hanging, cache):
        store = FsspecStore(hanging, "/hanging/object", thread_safe=True, timeout_s=LIMIT_S, retries=1)
        with cache.open(store) as file:
            assert file.pread(100, 5 * PAGE) == RIGHT
            assert hanging.entered.is_set()
            hanging.go_on.set()
            assert file.pread(SIZE, 0) == DATA
        assert_nothing_is_held(cache)

    def test_calls_that_may_not_are_refused_a_time_limit(self, hanging):
        with pytest.raises(ValueError, match="timeout_s cannot end a call of Hanging"):
            FsspecStore(hanging, "/hanging/object", timeout_s=1)
        with pytest.raises(ValueError, match="timeout_s cannot end a call of Mine"):
            pagecache.ObspecStore(Mine(), "object", timeout_s=1)
        assert FsspecStore(hanging, "/hanging/object", retries=1).attempts == Attempts(None, 1)

    def test_a_connection_of_ones_own_is_left_to_the_call_that_hangs(self, cache, tmp_path):
        """FTP has one connection, on which a second call would have to wait: it gets another one."""
        pytest.importorskip("pyftpdlib", reason="pyftpdlib is not installed")
        import ftplib

        from support.file_servers import FtpServer

        (tmp_path / "object").write_bytes(DATA)
        entered, go_on, before = threading.Event(), threading.Event(), ftplib.FTP.transfercmd
        hangs = [True]

        def transfercmd(self, *args, **kwargs):
            if args[0].startswith("RETR") and hangs:
                hangs.clear()
                entered.set()
                assert go_on.wait(PATIENCE_S)
            return before(self, *args, **kwargs)

        with FtpServer(tmp_path) as ftp, pytest.MonkeyPatch.context() as patch:
            patch.setattr(ftplib.FTP, "transfercmd", transfercmd)
            patch.setattr(attempts, "FIRST_PAUSE_S", 0.0)
            with cache.open(ftp.url("object"), timeout_s=2, retries=1) as file:  # a connection takes a moment
                assert file.pread(100, 5 * PAGE) == RIGHT
                assert entered.is_set()
            go_on.set()


class Mine:
    """An obspec store of which nothing is known."""

    def head(self, path):
        return {"size": 1}

    def get_range(self, path, *, start, end):
        return b"x"


# -- options -----------------------------------------------------------------------------------------------------------


class TestOptions:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("wrong", "right"), [("timeouts_s", "timeout_s"), ("retriess", "retries")])
    def test_misspelled(self, server, cache, way, wrong, right):
        if way == "obspec":
            with pytest.raises(TypeError, match=wrong):
                WAYS[way](server, cache, **{wrong: 1})
            return
        with pytest.raises(TypeError, match=f"did you mean '{right}'"):
            WAYS[way](server, cache, **{wrong: 1})

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({"timeout_s": 0}, ValueError),
            ({"timeout_s": float("nan")}, ValueError),
            ({"timeout_s": "5"}, TypeError),
            ({"timeout_s": True}, TypeError),
            ({"retries": -1}, ValueError),
            ({"retries": 1.5}, TypeError),
            ({"retries": None}, TypeError),
        ],
    )
    def test_what_is_no_time_and_no_number(self, server, cache, way, options, kind):
        if way == "call" and options == {"retries": None}:
            pytest.skip("None is no option of a call")
        with pytest.raises(kind, match=next(iter(options))):
            WAYS[way](server, cache, **options)

    def test_the_time_limit_of_aiohttp_is_its_own(self, server, cache):
        with by_open(server, cache, timeout=7) as file:
            assert file.inode.store.fs.kwargs["timeout"] == 7

    def test_they_are_no_part_of_the_key(self, server):
        url = server.url("object")
        assert store_of_url(url).key == store_of_url(url, timeout_s=5, retries=2).key

    def test_the_open_object_takes_what_later_files_say(self, server, cache):
        with by_open(server, cache, timeout_s=9) as file, by_open(server, cache, retries=4), by_open(server, cache):
            assert file.inode.store.attempts == Attempts(9, 4)

    def test_stores_keep_them_when_they_are_pickled_and_copied(self, server, cache):
        import copy

        store = store_of_url(server.url("object"), timeout_s=5, retries=2)
        for again in (copy.copy(store), pickle.loads(pickle.dumps(store))):
            assert again.attempts == (5, 2)
        stores = pytest.importorskip("obstore.store", reason="obstore is not installed")
        there = stores.HTTPStore(server.url(""), client_options={"allow_http": True})
        store = pagecache.ObspecStore(there, "object", timeout_s=5, retries=2)
        for again in (copy.copy(store), pickle.loads(pickle.dumps(store))):
            assert again.attempts == (5, 2)

    def test_file_systems_and_zarr_stores_keep_them_when_they_are_pickled(self, server, cache):

        fs = fsspec.filesystem("pagecache", target_protocol="http", timeout_s=5, retries=2)
        assert pickle.loads(pickle.dumps(fs)).attempts == (5, 2)
        pytest.importorskip("zarr", minversion="3", reason="zarr is not installed")
        from zarr.storage import MemoryStore

        from pagecache.adapters.zarr import PageCacheStore

        store = PageCacheStore(MemoryStore(), cache, timeout_s=5, retries=2)
        for again in (store.with_read_only(True), pickle.loads(pickle.dumps(store))):
            assert again._source.attempts == (5, 2)


# -- pauses ------------------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """As aiohttp raises it."""

    def __init__(self, status, **headers):
        super().__init__(f"status {status}")
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class TestPauses:
    def test_double_and_are_not_the_same_for_two(self):
        tries = Attempts(None, 20)
        for number in range(20):
            most = min(attempts.PAUSE_MAX_S, attempts.FIRST_PAUSE_S * 2**number)
            found = {tries.pause_s("object", TimeoutError(), number) for _ in range(20)}
            assert len(found) > 1
            assert most / 2 <= min(found) <= max(found) <= most
        assert tries.pause_s("object", TimeoutError(), 20) is None

    def test_are_as_long_as_the_server_wants(self):
        tries = Attempts(None, 3)
        assert tries.pause_s("object", Refusal(429, Retry_After="7"), 0) == 7
        assert tries.pause_s("object", Refusal(503, retry_after="0"), 0) <= attempts.FIRST_PAUSE_S
        assert tries.pause_s("object", Refusal(503, Retry_After="soon"), 0) <= attempts.FIRST_PAUSE_S
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
        assert 20 < tries.pause_s("object", Refusal(503, Retry_After=email.utils.format_datetime(at, usegmt=True)), 0) <= 30
        past = email.utils.format_datetime(at - datetime.timedelta(days=1), usegmt=True)
        assert tries.pause_s("object", Refusal(503, Retry_After=past), 0) <= attempts.FIRST_PAUSE_S
        assert tries.pause_s("object", Refusal(503, Retry_After="3600"), 0) is None

    def test_are_made_between_tries(self, monkeypatch):
        paused, errors = [], [TimeoutError(), ConnectionResetError()]
        monkeypatch.setattr(attempts, "pause", paused.append)

        def request():
            if errors:
                raise errors.pop()
            return "answer"

        assert Attempts(None, 2).run("object", request) == "answer"
        assert len(paused) == 2
        assert paused[0] < paused[1]

    def test_a_request_within_a_try_is_part_of_it(self, monkeypatch):
        calls = []
        monkeypatch.setattr(attempts, "pause", lambda seconds: None)

        def inner():
            calls.append(attempts.time_left_s())
            raise TimeoutError

        tries = Attempts(1000.0, 2)
        with pytest.raises(TimeoutError):
            tries.run("object", lambda: tries.run("object", inner))
        assert len(calls) == 3
        assert all(990 < left_s <= 1000 for left_s in calls)
        assert attempts.time_left_s() is None

    def test_a_cancelled_read_ends_one(self, server, cache, monkeypatch):
        monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 10 * PATIENCE_S)
        monkeypatch.setattr(attempts, "PAUSE_MAX_S", 10 * PATIENCE_S)
        with by_open(server, cache, retries=5) as file:
            server.fail("503", "range")

            async def main():
                read = asyncio.ensure_future(file.pread_async(10, 0))
                while not server.struck:
                    await asyncio.sleep(0.001)
                read.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await read
                return await file.pread_async(10, 0)

            assert asyncio.run(main()) == DATA[:10]
        assert_nothing_is_held(cache)


def test_waits_end_although_the_call_goes_on(server, cache):
    """A thread that was left behind takes nothing with it: its buffers are let go of, and it ends when it is answered."""
    from pagecache.stores import apart

    wait_until(lambda: apart._pool._nr_idle == apart._pool.nr_workers, "calls of other tests to end")
    server.times = 1
    assert read_by("obspec", server, cache, timeout_s=LIMIT_S, retries=1) == RIGHT
    assert_nothing_is_held(cache)
    server.end.set()
    wait_until(lambda: apart._pool._nr_idle == apart._pool.nr_workers, "the call to end")
