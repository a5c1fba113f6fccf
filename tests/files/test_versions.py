"""An object replaced under an open file: an error or all new bytes, never a mix, for each `recheck` and `on_change`."""

import errno
import os
import random
import threading
import time

import pytest
from support import PAGE, Crew, Store, pages_of
from support.http_server import ObjectServer

import pagecache

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
from pagecache.stores.fsspec import FsspecStore  # noqa: E402
from pagecache.stores.validators import checked_recheck  # noqa: E402

NR_PAGES = 32
SIZE = NR_PAGES * PAGE
RECHECKS = (True, False, "open", 0.0, 3600)
RANDOM = pagecache.FADV_RANDOM


def version_bytes(number, nr_pages=NR_PAGES):
    """Return an object in which every byte tells its version."""
    return bytes([number]) * (nr_pages * PAGE)


@pytest.fixture
def server():
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    with ObjectServer() as running:
        yield running


@pytest.fixture
def cache(make_cache):
    return make_cache("4MiB")


class Unconditional:
    """An fsspec file system without conditional requests, which notes what it is asked."""

    def __new__(cls):
        class Plain(type(fsspec.filesystem("memory"))):
            cachable = False
            store = {}
            pseudo_dirs = [""]
            asked = []
            versions = {}

            def put_version(self, data):
                self.pipe_file("/object", data)
                self.versions["/object"] = self.versions.get("/object", 0) + 1

            def info(self, path, **kwargs):
                self.asked.append("info")
                return {**super().info(path), "created": None, "version": str(self.versions[path])}

            def cat_file(self, path, start=None, end=None, **kwargs):
                self.asked.append("read")
                return bytes(self.store[path].getvalue()[start:end])

        return Plain()


def outcome(call):
    """Return what a read saw: the set of byte values, or "ESTALE"."""
    try:
        return set(call())
    except OSError as error:
        assert error.errno == errno.ESTALE, error
        return "ESTALE"


class TestReplacedObject:
    """Half of the object is cached when it is replaced by another one of the same size."""

    @pytest.fixture(params=["http", "http, weak tags", "http, times only", "http, If-Match ignored", "plain"])
    def source(self, request, server):
        """(what to open, how to replace the object's bytes)"""
        if request.param == "plain":
            fs = Unconditional()
            fs.put_version(version_bytes(1))
            return (lambda recheck: FsspecStore(fs, "/object", recheck=recheck)), fs.put_version
        server.honours_if_match = request.param == "http"
        server.sends_last_modified = True
        server.sends_etag = "times" not in request.param
        numbers = iter(range(1, 1000))

        def put(data):
            number = next(numbers)
            weak = "W/" if "weak" in request.param else ""
            server.put("object", data, etag=f'{weak}"{number}"', modified=1e9 + number)

        put(version_bytes(1))
        fs = fsspec.filesystem("http")
        return (lambda recheck: FsspecStore(fs, server.url("object"), recheck=recheck)), put

    @pytest.mark.parametrize("recheck", RECHECKS)
    def test_error(self, source, cache, recheck):
        store, put = source
        if recheck is False and store(False).key.endswith("#unverified"):
            pytest.skip("the user's promise that it never changes is all there is")
        with cache.open(store(recheck), recheck=recheck) as file:
            file.fadvise(RANDOM)
            assert set(file.pread(SIZE // 2, 0)) == {1}
            put(version_bytes(2))
            asks_first = recheck is not False and recheck in (True, 0.0)
            assert outcome(lambda: file.pread(SIZE // 2, 0)) == ("ESTALE" if asks_first else {1})
            assert outcome(lambda: file.pread(SIZE, 0)) == "ESTALE"
            assert outcome(lambda: file.pread(PAGE, SIZE // 2)) == "ESTALE"
            assert outcome(lambda: file.view(PAGE, SIZE - PAGE)) == "ESTALE"
        with cache.open(store("open")) as file:
            assert set(file.read()) == {2}

    @pytest.mark.parametrize("recheck", RECHECKS)
    def test_reload(self, source, cache, recheck):
        store, put = source
        if recheck is False and store(False).key.endswith("#unverified"):
            pytest.skip("the user's promise that it never changes is all there is")
        with cache.open(store(recheck), recheck=recheck, on_change="reload") as file:
            file.fadvise(RANDOM)
            assert set(file.pread(SIZE // 2, 0)) == {1}
            put(version_bytes(2))
            asks_first = recheck is not False and recheck in (True, 0.0)
            assert outcome(lambda: file.pread(SIZE // 2, 0)) == ({2} if asks_first else {1})
            assert outcome(lambda: file.pread(SIZE, 0)) == {2}
            assert outcome(lambda: file.pread(SIZE // 2, 0)) == {2}
            assert not file.closed

    def test_other_size(self, source, cache):
        store, put = source
        with cache.open(store("open"), on_change="reload") as file:
            file.fadvise(RANDOM)
            assert set(file.pread(PAGE, 0)) == {1}
            put(version_bytes(2, nr_pages=3))
            assert file.pread(SIZE, 0) == version_bytes(2, nr_pages=3) or file.size == SIZE
            assert file.pread(SIZE, PAGE) == version_bytes(2, nr_pages=2)
            assert file.size == 3 * PAGE
            assert file.seek(0, 2) == 3 * PAGE

    def test_two_handles_each_with_its_own_choice(self, source, cache):
        store, put = source
        with cache.open(store("open")) as strict, cache.open(store("open"), on_change="reload") as follows:
            assert set(strict.pread(PAGE, 0)) == {1}
            put(version_bytes(2))
            assert set(follows.pread(SIZE, 0)) == {2}
            assert set(strict.pread(PAGE, 0)) == {1}
            assert outcome(lambda: strict.pread(PAGE, SIZE - PAGE)) == "ESTALE"
            assert set(follows.pread(SIZE, 0)) == {2}


class TestNeverAMix:
    @pytest.mark.parametrize("on_change", ["error", "reload"])
    @pytest.mark.parametrize("recheck", [True, False, "open", 0.001])
    def test_while_it_is_replaced_all_the_time(self, server, cache, rng, recheck, on_change):
        """Every read call sees one version, in every thread, through a handle each and through one for all."""
        url = server.put("object", version_bytes(1))
        stop = threading.Event()
        seeds = [rng.randrange(2**32) for _ in range(4)]

        def replace():
            number = 1
            while not stop.is_set():
                number = number % 250 + 1
                server.put("object", version_bytes(number), etag=f'"{time.monotonic_ns()}"')
                stop.wait(0.004)

        shared = cache.open(url, recheck=recheck, on_change=on_change)

        def read(number):
            rand = random.Random(seeds[number])
            seen, failed = set(), 0
            for _ in range(25):
                file = cache.open(url, recheck=recheck, on_change=on_change) if number % 2 else shared
                try:
                    first = rand.randrange(NR_PAGES - 1)
                    data = file.pread(rand.randrange(2, NR_PAGES) * PAGE, first * PAGE)
                    assert len(set(data)) == 1, "a mix of versions"
                    seen.add(data[0])
                except OSError as error:
                    assert error.errno == errno.ESTALE, error
                    failed += 1
                finally:
                    if file is not shared:
                        file.close()
            return seen, failed

        replacer = threading.Thread(target=replace, daemon=True)
        replacer.start()
        try:
            Crew(*[lambda number=number: read(number) for number in range(4)]).join_well()
        finally:
            stop.set()
            replacer.join()
            shared.close()

    def test_replaced_between_the_requests_of_one_read(self, server, cache):
        """The worst moment: the first part of a read has arrived, the second has not."""
        url = server.put("object", version_bytes(1))

        def replace_later(running, method, path):
            if method == "GET" and running.count("GET") == 1:
                running.put("object", version_bytes(2))

        with cache.open(url) as strict, cache.open(url, on_change="reload") as follows:
            for file in (strict, follows):
                file.fadvise(RANDOM)
                file.pread(1, SIZE // 2)
            server.forget()
            server.before_answer = replace_later
            assert outcome(lambda: strict.pread(SIZE, 0)) == "ESTALE"
            assert outcome(lambda: follows.pread(SIZE, 0)) == {2}

    def test_iter_views_ends_with_an_error(self, server, cache):
        url = server.put("object", version_bytes(1))
        with cache.open(url, on_change="reload") as file:
            file.fadvise(RANDOM)
            views = file.iter_views(SIZE, 0)
            assert set(next(views)) == {1}
            server.put("object", version_bytes(2))
            with pytest.raises(OSError, match=r"changed|replaced") as caught:
                for view in views:
                    assert set(view) == {1}
            assert caught.value.errno == errno.ESTALE

    def test_object_that_changes_at_every_request_is_an_error_in_the_end(self, server, cache):
        numbers = iter(range(10_000))

        def change(running, method, path):
            if method == "GET":
                running.put("object", version_bytes(3), etag=f'"{next(numbers)}"')

        url = server.put("object", version_bytes(1))
        server.before_answer = change
        with cache.open(url, on_change="reload") as file:
            assert outcome(lambda: file.pread(SIZE, 0)) == "ESTALE"
            server.before_answer = None
            assert outcome(lambda: file.pread(SIZE, 0)) == {3}


    def test_look_of_another_thread_that_came_too_early_does_not_count(self, cache):
        """While bytes are read, another thread looks, and then the object is replaced: what was read is not what it saw."""
        fs = Unconditional()
        fs.put_version(version_bytes(1))
        store = FsspecStore(fs, "/object")
        read = fs.cat_file

        def read_late(path, start=None, end=None, **kwargs):
            store.refresh()
            fs.put_version(version_bytes(2))
            return read(path, start, end)

        fs.cat_file = read_late
        with cache.open(store) as file:
            assert outcome(lambda: file.pread(PAGE, 0)) == "ESTALE"


class TestCost:
    def test_requests_of_each_mode(self, server, cache):
        """What the documentation says that a mode costs (HEAD requests at open, and for ten cached reads)."""
        url = server.put("object", version_bytes(1))
        costs = {}
        for recheck in (False, "open", 3600, True):
            cache.open(url).close()
            server.forget()
            with cache.open(url, recheck=recheck) as file:
                at_open = server.count("HEAD")
                assert set(file.read()) == {1}
                server.forget()
                for _ in range(10):
                    assert set(file.pread(PAGE, 0)) == {1}
                costs[recheck] = (at_open, server.count("HEAD"))
                assert server.count("GET") == 0
        assert costs == {False: (0, 0), "open": (1, 0), 3600: (1, 0), True: (1, 10)}

    def test_conditional_requests_need_no_look_and_others_one_each(self, server, cache):
        fs = Unconditional()
        fs.put_version(version_bytes(1))
        with cache.open(FsspecStore(fs, "/object")) as file:
            file.fadvise(RANDOM)
            fs.asked.clear()
            file.pread(PAGE, 0)
            assert fs.asked == ["read", "info"]
        with cache.open(FsspecStore(fs, "/object", recheck=False)) as file:
            file.fadvise(RANDOM)
            file.pread(PAGE, 0)
            fs.asked.clear()
            file.pread(PAGE, 5 * PAGE)
            assert fs.asked == ["read"]
        with cache.open(server.put("object", version_bytes(1))) as file:
            server.forget()
            assert set(file.read()) == {1}
            assert server.count("HEAD") == 0

    def test_seconds(self, server, cache, monkeypatch):
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        with cache.open(server.put("object", version_bytes(1)), recheck=100) as file:
            file.read()
            server.forget()
            now += 99
            file.pread(1, 0)
            assert server.count() == 0
            now += 2
            file.pread(1, 0)
            file.pread(1, 0)
            assert server.count("HEAD") == server.count() == 1


class TestVersionedFile:
    """The methods of a file, where it is one that looks."""

    @pytest.fixture
    def file(self, server, cache):
        with cache.open(server.put("object", pages_of(SIZE)), recheck=True, on_change="reload") as file:
            yield file

    def test_reads_are_those_of_a_file(self, file):
        data = pages_of(SIZE)
        buffer = bytearray(100)
        assert (file.read(10), file.tell()) == (data[:10], 10)
        assert (file.readinto(buffer), bytes(buffer), file.tell()) == (100, data[10:110], 110)
        assert file.seek(-5, 2) == SIZE - 5
        assert file.read() == data[-5:]
        assert file.read() == b""
        assert file.preadinto(buffer, 50) == 100
        assert bytes(buffer) == data[50:150]
        assert bytes(file.view(10, PAGE)) == data[PAGE : PAGE + 10]
        assert b"".join(bytes(view) for view in file.iter_views(3 * PAGE, 5)) == data[5 : 5 + 3 * PAGE]
        assert file.preadv_many([(5, 0), (6, 9000)]) == [data[:5], data[9000:9006]]
        assert file.get_byte_ranges([1], [2]) == [data[1:3]]
        file.seek(0)
        assert b"".join(file) == data
        assert file.readable()
        assert file.cachestat().nr_cache > 0
        assert file.name.endswith("object")

    def test_position_of_one_read_that_failed_stays(self, file, server):
        file.read(10)
        server.fail_next(2)  # HEAD, and the GET that is asked then
        with pytest.raises(Exception, match="503"):
            file.read(10)
        assert file.tell() == 10
        assert file.read(1) == pages_of(11)[10:]

    def test_closed(self, file):
        file.close()
        file.close()
        assert file.closed
        for call in (lambda: file.read(1), lambda: file.pread(1, 0), lambda: file.seek(0), file.tell):
            with pytest.raises(ValueError, match="closed"):
                call()

    def test_invalidate_reads_on_with_the_present_version(self, server, cache):
        url = server.put("object", version_bytes(1))
        with cache.open(url, on_change="reload") as file:
            assert set(file.read()) == {1}
            server.put("object", version_bytes(2))
            file.invalidate()
            assert set(file.pread(SIZE, 0)) == {2}

    def test_closing_the_cache_closes_it(self, server, make_cache):
        cache = make_cache("1MiB")
        file = cache.open(server.put("object", DATA := pages_of(SIZE)), on_change="reload")
        assert file.pread(10, 0) == DATA[:10]
        cache.close()
        assert file.closed
        with pytest.raises(ValueError, match="closed"):
            file.pread(10, 0)


class TestAnyStore:
    def test_store_of_five_methods_can_be_rechecked_and_reloaded(self, cache):
        store = Store(version_bytes(1), key="object")
        with cache.open(store, recheck=True, on_change="reload") as file:
            assert set(file.read()) == {1}
            store.data, store.version = version_bytes(2), "2"
            with cache.open(store, recheck=True) as strict:
                assert set(strict.read()) == {2}

    def test_store_whose_copy_needs_an_open_original(self, cache):
        """As a store over a descriptor, which can be duplicated as long as it is open."""
        served = Store(version_bytes(1), key="object")

        class Descriptor(Store):
            def __init__(self):
                super().__init__(b"", "object")

            def __copy__(self):
                if self.nr_closed:
                    raise OSError(errno.EBADF, "copied after it was closed")
                return Descriptor()

            def size(self):
                return served.size()

            def validator(self):
                return served.version

            def answer(self, offset, buffers):
                return served.answer(offset, buffers)

        with (
            cache.open(Descriptor(), recheck=True, on_change="reload") as file,
            cache.open(Descriptor(), recheck=True, on_change="reload") as other,  # whose store is closed at once
        ):
            for number in range(2, 6):
                served.data, served.version = version_bytes(number), str(number)
                assert set(other.read()) == set(file.read()) == {number}
                file.seek(0)
                other.seek(0)

    def test_file_that_appends_goes_on_appending(self, cache, tmp_path):
        path = tmp_path / "object"
        path.write_bytes(b"old")
        with cache.open(path, "a+b", recheck=True, on_change="reload") as file:
            assert file.pread(10, 0) == b"old"
            path.write_bytes(b"newer")
            assert file.pread(10, 0) == b"newer"
            file.write(b"!")
        assert path.read_bytes() == b"newer!"

    def test_local_file_is_followed_when_it_is_renamed_over(self, cache, tmp_path):
        path = tmp_path / "object"
        path.write_bytes(version_bytes(1))
        with cache.open(path, recheck=True, on_change="reload") as file, cache.open(path, recheck=True) as strict:
            assert set(file.read()) == {1}
            (tmp_path / "new").write_bytes(version_bytes(2, nr_pages=5))
            (tmp_path / "new").rename(path)
            assert file.pread(SIZE, 0) == version_bytes(2, nr_pages=5)
            assert outcome(lambda: strict.pread(SIZE, 0)) == "ESTALE"
            path.unlink()
            with pytest.raises(FileNotFoundError):
                file.pread(1, 0)

    def test_local_file_that_is_written_to_is_followed(self, cache, tmp_path):
        path = tmp_path / "object"
        path.write_bytes(version_bytes(1))
        with cache.open(path, recheck=True, on_change="reload") as file:
            assert set(file.read()) == {1}
            path.write_bytes(version_bytes(2))
            os.utime(path, ns=(1, 1))
            assert set(file.pread(SIZE, 0)) == {2}

    @pytest.mark.parametrize("bad", ["often", None.__class__, [1], b"open"])
    def test_bad_recheck_is_named(self, bad):
        with pytest.raises(TypeError, match="recheck must be"):
            checked_recheck(bad)

    @pytest.mark.parametrize("bad", [-1, -0.5, float("nan")])
    def test_negative_recheck_is_named(self, bad):
        with pytest.raises(ValueError, match="recheck must not be"):
            checked_recheck(bad)

    def test_bad_on_change_is_named(self, cache):
        with pytest.raises(ValueError, match="on_change must be"):
            cache.open(Store(b"x"), on_change="ignore")
