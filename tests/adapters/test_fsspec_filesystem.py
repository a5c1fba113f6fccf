"""The chained file system `pagecache::...`: fsspec's interface, sync and async, and what fsspec's own caches get wrong."""

import asyncio
import errno
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile

import pytest
from support import PAGE, Crew, assert_nothing_is_held, pages_of
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from pagecache.adapters.fsspec import PageCacheFileSystem  # noqa: E402

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
def fs(cache):
    system = PageCacheFileSystem(target_protocol="http", skip_instance_cache=True)
    yield system
    system.invalidate_cache()


@pytest.fixture
def memory(cache):
    target = fsspec.filesystem("memory", skip_instance_cache=True)
    target.store, target.pseudo_dirs = {}, [""]
    return PageCacheFileSystem(fs=target, skip_instance_cache=True)


class TestNamesOfDuckDB:
    """Which have the file system's own protocol before them."""

    def test_what_a_pattern_stands_for_has_it_too(self, memory):
        memory.pipe({"/a/1": b"one", "/a/2": b"two"})
        assert memory.glob("/a/*") == ["/a/1", "/a/2"]
        assert memory.glob("pagecache://a/*") == ["pagecache:///a/1", "pagecache:///a/2"]
        assert memory.glob("pagecache://a/1") == ["pagecache://a/1"]
        assert memory.glob("pagecache://a/3") == memory.glob("pagecache://a/3*") == []
        assert [memory.unstrip_protocol(name) for name in memory.glob("pagecache://a/*")] == memory.glob("pagecache://a/*")
        assert memory.cat_file("pagecache:///a/1") == b"one"
        assert memory.glob("pagecache://a") == ["pagecache:///a"]  # a directory

    @pytest.mark.parametrize("status", [403, 429, 500, 503])
    def test_what_cannot_be_looked_up_is_not_absent(self, fs, server, status):
        url = server.put("object", DATA)
        server.fail_next(3, status)  # by HEAD and by GET
        with pytest.raises(OSError, match="object") as caught:
            fs.glob(f"pagecache://{url}")
        assert not isinstance(caught.value, FileNotFoundError)
        server._failures.clear()
        assert fs.glob(f"pagecache://{url}") == [f"pagecache://{url}"]
        assert fs.glob(f"pagecache://{server.url('none')}") == []


class TestUrls:
    def test_chained_url(self, server, cache):
        url = server.put("object", DATA)
        with fsspec.open(f"pagecache::{url}") as file:
            assert isinstance(file, pagecache.File)
            assert (file.read(), file.size) == (DATA, SIZE)
        with fsspec.open(f"pagecache::{url}", "rt", encoding="latin-1", newline="") as text:
            assert text.read(100) == DATA[:100].decode("latin-1")
        assert cache.stats().nr_file_pages == SIZE // PAGE + 1

    def test_one_instance_for_all_paths_of_a_target(self, server, cache):
        one, _ = fsspec.url_to_fs(f"pagecache::{server.url('one')}")
        other, path = fsspec.url_to_fs(f"pagecache::{server.url('other')}")
        assert one is other
        assert path == server.url("other")

    def test_options_of_both_layers(self, server, cache):
        options = {"pagecache": {"recheck": 5}, "http": {"headers": {"A": "b"}}}
        system, _ = fsspec.url_to_fs(f"pagecache::{server.url('x')}", **options)
        assert system.recheck == 5.0
        assert system.fs.kwargs == {"headers": {"A": "b"}}

    def test_opened_through_the_cache_itself(self, server, cache):
        url = server.put("object", DATA)
        with cache.open(url) as plain, cache.open(f"pagecache::{url}") as chained:
            assert plain.inode is chained.inode
            assert chained.read() == DATA

    def test_full_name_can_be_opened_again(self, server, cache, tmp_path):
        with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
            archive.writestr("member", DATA)
        fsspec.filesystem("memory").pipe_file("/full/name", DATA)
        packed = server.put("archive.zip", (tmp_path / "archive.zip").read_bytes())
        plain = server.put("object", DATA)
        for url in (plain, "memory://full/name", f"zip://member::{packed}", f"simplecache::{plain}"):
            opened = fsspec.open(f"pagecache::{url}")
            assert opened.full_name.startswith("pagecache::")
            again = fsspec.open(opened.full_name)
            assert again.full_name == opened.full_name
            with again as file:
                assert file.read() == DATA
            system, path = fsspec.url_to_fs(opened.full_name)
            assert system.cat_file(path) == system.cat_file(opened.full_name) == DATA
            system.invalidate_cache()
        fsspec.filesystem("memory").rm("/full", recursive=True)

    def test_wrong_arguments_are_named(self, cache):
        for options in ({}, {"fs": fsspec.filesystem("memory"), "target_protocol": "http"}):
            with pytest.raises(ValueError, match="either fs or target_protocol"):
                PageCacheFileSystem(**options)
        with pytest.raises(TypeError, match="recheck must be"):
            PageCacheFileSystem("http", recheck="sometimes")


class TestReads:
    def test_cat_file_slices_as_python_does(self, fs, server, rng):
        url = server.put("object", DATA)
        for _ in range(60):
            start, end = (rng.choice([None, rng.randrange(-SIZE, SIZE + 9)]) for _ in "ab")
            assert fs.cat_file(url, start, end) == DATA[start:end]
        assert server.count("HEAD") == 1

    def test_cat_ranges(self, fs, server, rng):
        urls = [server.put(f"object-{number}", bytes([number]) * SIZE) for number in range(4)]
        asked = [(rng.choice(urls), rng.randrange(SIZE), rng.randrange(2 * PAGE)) for _ in range(40)]
        paths, starts, ends = [u for u, _, _ in asked], [s for _, s, _ in asked], [s + n for _, s, n in asked]
        wanted = [(bytes([urls.index(u)]) * SIZE)[s : s + n] for u, s, n in asked]
        assert fs.cat_ranges(paths, starts, ends) == wanted
        assert fs.cat_ranges(paths, starts, ends) == wanted
        assert fs.cat_ranges([urls[1]] * 2, 5, 10) == [b"\1" * 5] * 2
        assert server.bytes_sent() <= 4 * SIZE, "something was fetched twice"
        assert server.count("HEAD") == 4

    def test_errors_of_ranges_stand_in_their_places(self, fs, server):
        good, bad = server.put("good", DATA), server.url("bad")
        found = fs.cat_ranges([good, bad, good], [0, 0, 8], [4, 4, 12])
        assert (found[0], found[2]) == (DATA[:4], DATA[8:12])
        assert isinstance(found[1], FileNotFoundError)
        with pytest.raises(FileNotFoundError):
            fs.cat_ranges([good, bad], 0, 4, on_error="raise")
        with pytest.raises(ValueError, match="2 paths"):
            fs.cat_ranges([good, good], [1], [2])

    def test_second_read_asks_for_nothing(self, fs, server):
        url = server.put("object", DATA)
        assert fs.cat_file(url) == DATA
        server.forget()
        assert fs.cat_file(url) == DATA
        assert fs.cat_file(url, -10) == DATA[-10:]
        assert fs.cat(url) == DATA
        assert server.count() == 0

    def test_hits_need_no_event_loop(self, fs, server):
        """The loop is busy with something else, and reads of cached bytes go on."""
        url = server.put("object", DATA)
        fs.cat_file(url)
        file = fs.open(url)
        busy, go_on = threading.Event(), threading.Event()

        async def hold():
            busy.set()
            go_on.wait(30)

        holding = asyncio.run_coroutine_threadsafe(hold(), fs.loop)
        assert busy.wait(30)
        try:
            assert fs.cat_file(url, 5, 10) == DATA[5:10]
            assert fs.cat_ranges([url, url], [0, 9], [5, 20]) == [DATA[:5], DATA[9:20]]
            assert file.read(10) == DATA[:10]
        finally:
            go_on.set()
            holding.result(30)
        file.close()

    def test_asynchronous_instances_work_on_the_callers_loop(self, server, cache):
        url = server.put("object", DATA)

        async def read():
            system = PageCacheFileSystem(target_protocol="http", asynchronous=True)
            assert await system._cat_file(url, 5, 10) == DATA[5:10]
            assert await system._cat_file(url, -5) == DATA[-5:]
            assert (await system._info(url))["size"] == SIZE
            parts = await system._cat_ranges([url] * 3, [0, 500_000, -9], [5, 500_005, None])
            assert parts == [DATA[:5], DATA[500_000:500_005], DATA[-9:]]
            many = await asyncio.gather(*(system._cat_file(url, page * PAGE, page * PAGE + 9) for page in range(300)))
            assert many == [DATA[page * PAGE : page * PAGE + 9] for page in range(300)]
            with pytest.raises(FileNotFoundError):
                await system._cat_file(server.url("nothing"))
            system.invalidate_cache()

        asyncio.run(read())

    def test_concurrent_reads_of_a_cold_object_make_one_request(self, fs, server):
        url = server.put("object", DATA[:PAGE])
        server.delay_s = 0.05

        async def read():
            return await asyncio.gather(*(fs._cat_file(url) for _ in range(16)))

        assert fsspec.asyn.sync(fs.loop, read) == [DATA[:PAGE]] * 16
        assert server.count("GET") == 1

    def test_files_share_pages_with_cat_file(self, fs, server):
        url = server.put("object", DATA)
        fs.cat_file(url)
        server.forget()
        with fs.open(url) as file:
            assert file.read() == DATA
        assert server.count("GET") == 0

    def test_more_paths_than_are_kept_open(self, memory):
        from pagecache.adapters.fsspec_handles import Handles

        memory._handles = Handles(limit=3)
        for number in range(10):
            memory.pipe_file(f"/{number}", bytes([number]) * 10)
        for _ in range(2):
            for number in range(10):
                assert memory.cat_file(f"/{number}") == bytes([number]) * 10

        def read(first):
            return [memory.cat_file(f"/{number % 10}")[0] for number in range(first, first + 200)]

        results = Crew(*[lambda first=first: read(first) for first in range(4)]).join_well()
        assert results == [[number % 10 for number in range(first, first + 200)] for first in range(4)]

    def test_cache_that_is_closed_is_replaced_by_the_next(self, memory, make_cache):
        memory.pipe_file("/object", DATA)
        with pagecache.using(make_cache("1MiB")) as first:
            assert memory.cat_file("/object", 0, 10) == DATA[:10]
        with pagecache.using(make_cache("1MiB")) as second:
            assert memory.cat_file("/object", 0, 10) == DATA[:10]
            assert second.stats().nr_file_pages > 0
            first.close()
            assert memory.cat_file("/object", 0, 10) == DATA[:10]
            memory.invalidate_cache()


class TestEverythingElse:
    def test_key_of_a_version(self, fs, server):
        url = server.put("object", DATA)
        before = fs.ukey(url)
        assert fs.ukey(url) == before
        server.put("object", DATA[:-1])
        assert fs.ukey(url) != before

    def test_configuration_by_fsspecs_own_files(self, tmp_path, server):
        url = server.put("object", DATA)
        (tmp_path / "conf.json").write_text(json.dumps({"pagecache": {"recheck": False, "size": "3MiB"}}))
        program = (
            "import sys, fsspec, pagecache, pagecache.adapters.fsspec\n"
            f"fs, path = fsspec.url_to_fs('pagecache::{url}')\n"
            "data = fs.cat_file(path)\n"
            "print(fs.recheck, pagecache.default_cache().size, len(data))\n"
        )
        environment = {**os.environ, "FSSPEC_CONFIG_DIR": str(tmp_path)}
        environment.pop("PAGECACHE_SIZE", None)
        said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
        assert said.stdout.split() == ["False", str(3 * MIB), str(SIZE)]


class TestVersions:
    def test_invalidate_cache_of_a_path(self, fs, server):
        url, other = server.put("object", DATA), server.put("other", DATA)
        fs.cat_file(url)
        fs.cat_file(other)
        server.put("object", bytes(SIZE))
        assert fs.cat_file(url) == DATA  # it was looked at once, when it was opened
        fs.invalidate_cache(url)
        assert fs.cat_file(url) == bytes(SIZE)
        server.forget()
        assert fs.cat_file(other) == DATA
        assert server.count() == 0

    def test_replaced_object_is_an_error_once_and_then_new(self, fs, server):
        url = server.put("object", DATA)
        fs.cat_file(url, 0, 1)
        server.put("object", bytes(SIZE))
        with pytest.raises(OSError, match=r"changed|replaced") as caught:
            fs.cat_file(url)
        assert caught.value.errno == errno.ESTALE
        assert fs.cat_file(url) == bytes(SIZE)

    @pytest.mark.parametrize("recheck", [True, "open", 3600, False])
    def test_reload(self, cache, server, recheck):
        url = server.put("object", b"\1" * SIZE)
        system = PageCacheFileSystem("http", recheck=recheck, on_change="reload", skip_instance_cache=True)
        assert set(system.cat_file(url, 0, 1)) == {1}
        server.put("object", b"\2" * SIZE)
        assert set(system.cat_file(url)) == {2}
        server.put("object", b"\3" * SIZE)
        assert set(system.cat_file(url)) == ({3} if recheck is True else {2})
        system.invalidate_cache()
        assert set(system.cat_file(url)) == {3}
        system.invalidate_cache()

    def test_immutable_objects_are_opened_without_a_request(self, cache, server):
        url = server.put("object", DATA)
        system = PageCacheFileSystem("http", recheck=False, skip_instance_cache=True)
        with system.open(url) as file:
            assert file.read() == DATA
        server.forget()
        for _ in range(5):
            with system.open(url) as file:
                assert file.read() == DATA
        assert server.count() == 0

    def test_seconds_save_the_look_at_open(self, cache, server):
        url = server.put("object", DATA)
        system = PageCacheFileSystem("http", recheck=3600, skip_instance_cache=True)
        assert system.cat_file(url) == DATA
        server.forget()
        with system.open(url) as file:
            assert file.read() == DATA
        assert server.count() == 0
        system.invalidate_cache()

    @pytest.mark.parametrize("recheck", [0.0, 3600])
    def test_seconds_count_from_the_last_open_of_a_file_that_is_closed(self, cache, server, recheck):
        url = server.put("object", DATA)
        system = PageCacheFileSystem("http", recheck=recheck, skip_instance_cache=True)
        for _ in range(2):
            with system.open(url) as file:
                assert file.read() == DATA
        assert server.count("HEAD") == (1 if recheck else 2) + (2 if not recheck else 0)
        server.put("object", bytes([9]) * len(DATA))
        system.invalidate_cache(url)
        with system.open(url) as file:
            assert set(file.read()) == {9}
        system.invalidate_cache()


class TestPickle:
    def test_instances_pickle_as_their_arguments(self, fs, server, cache):
        url = server.put("object", DATA)
        system = PageCacheFileSystem(target_protocol="http", target_options={"headers": {"A": "b"}}, recheck=7)
        system.cat_file(url)
        packed = pickle.dumps(system)
        assert len(packed) < 1000
        again = pickle.loads(packed)
        assert again == system
        assert (again.recheck, again.fs.kwargs) == (7.0, {"headers": {"A": "b"}})
        system.invalidate_cache()

    def test_files_pickle_as_name_and_position(self, fs, server):
        with fs.open(server.put("object", DATA)) as file:
            file.seek(1234)
            packed = pickle.dumps(file)
            assert len(packed) < 2000
            with pickle.loads(packed) as again:
                assert (again.tell(), again.read(10)) == (1234, DATA[1234:1244])


class TestWhatFsspecsCachesGetWrong:
    """bench/ecosystem/fsspec_failures.py shows the same against fsspec's own caches."""

    def test_threads_with_a_handle_each_on_one_cold_object(self, fs, server, rng):
        """`blockcache::` marks blocks as present before their bytes have arrived: other handles then read zeros."""
        server.delay_s = 0.01
        url = server.put("object", DATA)
        offsets = [rng.randrange(SIZE - 100) for _ in range(20)]
        files = [fs.open(url) for _ in range(8)]

        def read(file):
            out = []
            for offset in offsets:
                file.seek(offset)
                out.append(file.read(100))
            return out

        results = Crew(*[lambda file=file: read(file) for file in files]).join_well()
        for file in files:
            file.close()
        assert results == [[DATA[offset : offset + 100] for offset in offsets]] * 8

    @pytest.mark.parametrize("failing", [1, 2, 3])
    def test_one_transient_error_is_raised_once_and_leaves_nothing_behind(self, fs, server, cache, failing):
        """`blockcache::` returns zeros afterwards, also from a new file system over the same directory."""
        url = server.put("object", DATA)
        with fs.open(url) as file:
            file.fadvise(pagecache.FADV_RANDOM)
            for number in range(1, 4):
                offset = number * 50 * PAGE
                if number == failing:
                    server.fail_next()
                    file.seek(offset)
                    with pytest.raises(OSError, match="503"):
                        file.read(8)
                    assert file.tell() == offset
                file.seek(offset)
                assert file.read(8) == DATA[offset : offset + 8]
        with fs.open(url) as file:
            assert file.read() == DATA
        assert_nothing_is_held(cache)

    def test_scattered_reads_of_many_handles_stay_within_the_budget(self, make_cache, server, rng):
        """8 handles, 40 reads of one byte each: fsspec's block cache takes 5 MiB for each of them."""
        psutil = pytest.importorskip("psutil", reason="psutil is not installed")
        data = os.urandom(64 * MIB)
        urls = [server.put(f"object-{number}", data) for number in range(8)]
        with pagecache.using(make_cache("16MiB")) as cache:
            system = PageCacheFileSystem("http", skip_instance_cache=True)
            before = psutil.Process().memory_info().rss
            files = [system.open(url) for url in urls]
            for _ in range(40):
                for file in files:
                    offset = rng.randrange(len(data))
                    assert file.pread(1, offset) == data[offset : offset + 1]
            stats = cache.stats()
            grown = psutil.Process().memory_info().rss - before
            assert stats.resident_bytes <= 16 * MIB
            assert grown < 16 * MIB + 24 * MIB, f"grew by {grown / MIB:.0f} MiB"  # the server runs in this process
            for file in files:
                file.close()


def test_file_is_what_libraries_expect(fs, server):
    with fs.open(server.put("object", DATA)) as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert (file.path, file.fs) == (server.url("object"), fs)
        assert io.BufferedReader(file).read() == DATA


def test_making_a_file_system_makes_no_cache(monkeypatch):
    monkeypatch.setattr("pagecache.adapters.fsspec.default_cache", lambda size: pytest.fail("a cache was made"))
    PageCacheFileSystem("memory", skip_instance_cache=True).invalidate_cache()
