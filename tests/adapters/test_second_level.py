"""A second level in real servers: what others read from it, what goes wrong there, and what a reader sees of that."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import pytest
from support import PAGE, PATIENCE_S, TESTS, Crew, assert_nothing_is_held, nr_descriptors, pages_of, wait_until
from support.second_level_support import EXTENT, PATIENT, Origin, filled, hurry, level_on, read_all, values_of
from support.value_servers import PROGRAMS, ValueServer, has_client

import pagecache
from pagecache.adapters.valkey import SecondLevel, TieredStore, connections
from pagecache.adapters.valkey.extents import HEADER_BYTES
from pagecache.stores import MemoryStore
from pagecache.testing import StoreTests

pytest_plugins = ["support.second_level_fixtures"]
DATA = pages_of(40 * PAGE + 123)
NR_EXTENTS = -(-len(DATA) // EXTENT)


class TestConformance(StoreTests):
    """It is a store like the one below, written and read."""

    @pytest.fixture(autouse=True)
    def _level(self, level):
        self.level = level

    def make_store(self, data):
        origin = MemoryStore(data)
        return TieredStore(origin, self.level, key=f"object {origin.key}")

    def reopen(self, store):
        return copy.copy(store)


class TestReadOnlyConformance(StoreTests):
    writable = holes = extends = False
    number = 0

    @pytest.fixture(autouse=True)
    def _level(self, level):
        self.level = level

    def make_store(self, data):
        TestReadOnlyConformance.number += 1
        return TieredStore(Origin(data, f"object {self.number}"), self.level)

    def reopen(self, store):
        return copy.copy(store)

    def change(self, store, data):
        store.origin.data, store.origin.version = data, store.origin.version + "x"
        return True


class TestSharing:
    def test_what_one_has_read_the_next_reads_without_the_origin(self, level, make_cache):
        first, second = Origin(DATA), Origin(DATA)
        filled(level, first)
        assert first.bytes_read() == len(DATA)
        cache = make_cache("4MiB")
        with cache.open(TieredStore(second, level)) as file:
            assert file.read() == DATA
            stats = cache.stats()
        assert second.requests == []
        assert (stats.second_level_bytes, stats.origin_bytes) == (len(DATA), 0)
        assert stats.second_level_hits >= NR_EXTENTS

    def test_another_process_reads_everything_from_the_server(self, server, level, tmp_path):
        filled(level, Origin(DATA))
        program = textwrap.dedent("""
            import pickle, sys
            import pagecache
            store = pickle.load(sys.stdin.buffer)
            with pagecache.PageCache("1MiB") as cache, cache.open(store) as file:
                sys.stdout.buffer.write(file.read())
                assert cache.stats().origin_requests == 0, cache.stats().origin_requests
            assert store.origin.requests == [], store.origin.requests
        """)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
        given = pickle.dumps(TieredStore(Origin(DATA), level))
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], input=given, capture_output=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == DATA

    def test_a_page_is_enough_to_bring_its_whole_extent(self, level):
        origin = Origin(DATA)
        store = TieredStore(origin, level)
        buffer = bytearray(PAGE)
        assert store.readv(EXTENT + PAGE, [memoryview(buffer)]) == PAGE
        assert buffer == DATA[EXTENT + PAGE : EXTENT + 2 * PAGE]
        assert origin.requests == [(EXTENT, EXTENT)]
        assert level.flush(PATIENCE_S)
        assert store.readv(2 * EXTENT - 5, [memoryview(buffer)[:5]]) == 5
        assert buffer[:5] == DATA[2 * EXTENT - 5 : 2 * EXTENT]
        assert len(origin.requests) == 1

    def test_threads_that_miss_one_extent_wait_for_one_request(self, level):
        origin = Origin(DATA)
        origin.go_on.clear()
        store = TieredStore(origin, level)

        def read(number):
            buffer = bytearray(PAGE)
            assert store.readv(number * PAGE, [memoryview(buffer)]) == PAGE
            assert buffer == DATA[number * PAGE : (number + 1) * PAGE]

        crew = Crew(*[lambda number=number: read(number) for number in range(4)])
        assert origin.entered.wait(PATIENCE_S)
        wait_until(lambda: store.source_counts()["second_level_misses"] == 4, "four misses")
        origin.go_on.set()
        crew.join_well()
        assert origin.requests == [(0, EXTENT)]

    def test_windows_that_end_within_extents_fetch_nothing_twice(self, level, make_cache):
        origin = Origin(pages_of(400 * PAGE))
        with make_cache("8MiB").open(TieredStore(origin, level)) as file:
            for offset in range(0, len(origin.data), 3 * PAGE):
                assert file.pread(3 * PAGE, offset) == origin.data[offset : offset + 3 * PAGE]
        assert origin.bytes_read() == len(origin.data)

    def test_a_url_names_one_level_of_the_process(self, server):
        one, two = TieredStore(Origin(DATA), server.url), TieredStore(Origin(DATA), server.url)
        assert one.second_level is two.second_level
        one.second_level.close()
        three = TieredStore(Origin(DATA), server.url)
        assert not three.second_level.is_closed
        three.second_level.close()

    def test_through_wraps_what_is_far_and_nothing_else(self, level, make_cache, tmp_path):
        cache = make_cache("1MiB")
        cache.through(level.wrap)
        origin = Origin(DATA)
        with cache.open(origin) as file:
            assert isinstance(file.inode.store, TieredStore)
            assert file.read() == DATA
        (tmp_path / "file").write_bytes(b"x")
        with cache.open(tmp_path / "file") as file:
            assert not isinstance(file.inode.store, TieredStore)
        numbered = Origin(DATA[::-1])  # of another process it is another object that has this key
        numbered.key_scope = "process"
        with make_cache("1MiB") as other:
            other.through(level.wrap)
            with other.open(numbered) as file:
                assert file.read() == DATA[::-1]


class TestVersions:
    def test_a_new_version_never_shows_an_extent_of_the_old(self, level, make_cache):
        origin = Origin(DATA)
        filled(level, origin)
        origin.data, origin.version = DATA[::-1], "2"
        with make_cache("1MiB").open(TieredStore(origin, level)) as file:
            assert file.read() == DATA[::-1]
        assert origin.bytes_read() == 2 * len(DATA)

    def test_what_changes_while_it_is_fetched_is_not_put_there(self, level):
        origin = Origin(DATA)
        origin.after_read = lambda: setattr(origin, "version", "2")
        store = TieredStore(origin, level)
        store.readv(0, [memoryview(bytearray(EXTENT))])
        assert level.flush(PATIENCE_S)
        assert level.stats()["fills"] == 0

    def test_without_a_validator_nothing_is_asked_nor_put(self, server, level):
        origin = Origin(DATA)
        origin.version = None
        for _ in range(2):
            assert read_all(TieredStore(origin, level)) == DATA
        level.flush(PATIENCE_S)
        assert origin.bytes_read() == 2 * len(DATA)
        assert values_of(server, TieredStore(origin, level), "None") == {}
        assert level.stats()["fills"] == 0

    def test_a_promise_that_an_object_never_changes_is_no_validator(self, level):
        from pagecache.stores.validators import Version

        origin = Origin(DATA)
        origin.version_known = Version(len(DATA), None, None, None, 0.0)
        assert TieredStore(_Immutable(origin), level).shared_validator() is None
        origin.version_known = Version(len(DATA), "etag", "etag", None, 0.0)
        assert TieredStore(_Immutable(origin), level).shared_validator() == "1"

    def test_what_is_written_goes_to_the_origin_and_is_read_from_there(self, level, make_cache):
        origin = MemoryStore(DATA, key="written")
        key = "written object"
        assert read_all(TieredStore(origin, level, key=key)) == DATA
        level.flush(PATIENCE_S)
        changed = bytearray(DATA)
        with make_cache("1MiB").open(TieredStore(origin, level, key=key), "r+b") as file:
            file.pwrite(b"new bytes", 3 * PAGE)
            changed[3 * PAGE : 3 * PAGE + 9] = b"new bytes"
            file.fsync()
            file.truncate(len(DATA) - 7)
            del changed[-7:]
            file.invalidate()
            assert file.read() == changed
        assert origin.tobytes() == changed
        with make_cache("1MiB").open(TieredStore(origin, level, key=key)) as file:
            assert file.read() == changed

    def test_a_store_that_is_written_takes_nothing_from_the_server(self, level):
        """Its validator may lag behind its bytes, as the time of a file does."""
        origin = MemoryStore(DATA, key="lags")
        origin.validator = lambda: "1"
        store = TieredStore(origin, level, key="lags")
        read_all(store)
        level.flush(PATIENCE_S)
        store.writev(0, [memoryview(b"new")])
        assert read_all(store) == b"new" + DATA[3:]
        assert read_all(copy.copy(store)) == b"new" + DATA[3:]

    @pytest.mark.parametrize("scope", ["process", "machine"])
    def test_keys_that_others_do_not_know_are_refused(self, level, scope):
        origin = Origin(DATA)
        origin.key_scope = scope
        with pytest.raises(ValueError, match=f"in this {scope} only"):
            TieredStore(origin, level)
        assert TieredStore(origin, level, key="everywhere").key == origin.key

    def test_a_file_of_this_machine_needs_a_key(self, level, data_file):
        from pagecache.stores import FileStore

        path, data = data_file(3 * PAGE)
        store = FileStore(path)
        with pytest.raises(ValueError, match="machine only"):
            TieredStore(store, level)
        assert read_all(TieredStore(store, level, key="the file")) == data
        store.close()


class _Immutable:
    """An origin whose user promises that it never changes."""

    is_immutable = True

    def __init__(self, origin):
        self._origin = origin
        self.version = origin.version_known

    def __getattr__(self, name):
        return getattr(self._origin, name)


class TestFailure:
    def test_the_server_is_killed_in_the_middle_and_comes_back(self, own_server, make_cache, rng):
        data = pages_of(300 * PAGE)
        origin = Origin(data)
        cache = make_cache(24 * PAGE)
        with level_on(own_server, suspect_s=0.05) as level, cache.open(TieredStore(origin, level)) as file:
            assert file.read() == data
            for number in range(6):
                done = threading.Event()

                def read(seed, done=done):
                    from random import Random

                    own = Random(seed)
                    while not done.is_set():
                        offset, nbytes = own.randrange(len(data)), own.choice([1, PAGE, 9 * PAGE])
                        assert file.pread(nbytes, offset) == data[offset : offset + nbytes]

                crew = Crew(*[functools.partial(read, rng.random()) for _ in range(3)])
                before = len(origin.requests)
                own_server.kill()
                wait_until(lambda before=before: len(origin.requests) > before + 3, "reads of the origin")
                own_server.start()
                hits = level_hits(cache)
                wait_until(lambda hits=hits: level_hits(cache) > hits, f"hits after restart {number}")
                done.set()
                crew.join_well()
        cache.check()

    def test_a_silent_server_costs_one_time_out_and_is_left_alone(self, own_server):
        origin = Origin(DATA)
        with level_on(own_server, suspect_s=1e6) as level:
            store = filled(level, origin)
            own_server.freeze()
            hurry(level, 0.05)
            for _ in range(50):
                assert read_all(store) == DATA
            counts = store.source_counts()
            assert (counts["second_level_failures"], level.stats()["suspected"]) == (1, ["server"])
            assert level.stats()["queue_bytes"] == 0, "nothing is offered to a server that is suspected"
            assert not level._idle, "what comes late would be taken for another answer"

    def test_a_suspected_server_is_tried_again_by_one_request(self, own_server):
        origin = Origin(DATA)
        with level_on(own_server, suspect_s=1e6) as level:
            store = filled(level, origin)
            own_server.freeze()
            hurry(level, 0.05)
            read_all(store)
            level.suspects._clock = lambda: 1e12
            read_all(store)  # the one that tries, and fails
            assert store.source_counts()["second_level_failures"] == 2
            own_server.thaw()
            hurry(level, PATIENCE_S)
            level.suspects._clock = lambda: 1e15
            origin.requests.clear()
            assert read_all(store) == DATA
            assert (origin.requests, level.stats()["suspected"]) == ([], [])

    def test_a_server_that_was_never_there(self, make_cache, tmp_path):
        for url in (f"unix://{tmp_path}/none", f"memcached://{tmp_path}/none", "memcached://127.0.0.1:1"):
            if url.startswith("unix") and not has_client():
                continue
            with SecondLevel(url) as level, make_cache("1MiB").open(TieredStore(Origin(DATA), level)) as file:
                assert file.read() == DATA
                assert level.stats()["suspected"] == ["server"]

    def test_an_origin_that_fails_beside_what_was_asked_for_fails_no_read(self, level):
        origin = Origin(DATA)
        origin.bad = range(EXTENT, EXTENT + PAGE)
        store = TieredStore(origin, level)
        buffer = bytearray(PAGE)
        assert store.readv(EXTENT + PAGE, [memoryview(buffer)]) == PAGE
        assert buffer == DATA[EXTENT + PAGE : EXTENT + 2 * PAGE]
        with pytest.raises(OSError, match="bad page"):
            store.readv(EXTENT, [memoryview(buffer)])
        assert level.flights == {}

    def test_those_who_wait_for_a_read_that_fails_read_for_themselves(self, level):
        origin = Origin(DATA)
        origin.go_on.clear()
        origin.errors = [OSError(5, "once")] * 2  # of the extent, then of what was asked for
        store = TieredStore(origin, level)

        def read(number):
            buffer = bytearray(PAGE)
            store.readv(number * PAGE, [memoryview(buffer)])
            return bytes(buffer) == DATA[number * PAGE : (number + 1) * PAGE]

        crew = Crew(lambda: read(0), lambda: read(1))
        wait_until(lambda: store.source_counts()["second_level_misses"] == 2, "two misses")
        assert origin.entered.wait(PATIENCE_S)
        origin.go_on.set()
        results = crew.join()
        assert sorted(type(result).__name__ for result in results) == ["OSError", "bool"]
        assert True in results
        assert level.flights == {}


def level_hits(cache):
    return cache.stats().second_level_hits


class TestBounds:
    def test_the_queue_never_holds_more_than_its_limit(self, own_server):
        limit = 3 * (EXTENT + HEADER_BYTES)
        data = pages_of(100 * EXTENT)
        with level_on(own_server, queue_bytes=limit, timeout_s=PATIENCE_S, patience_s=PATIENCE_S) as level:
            store = TieredStore(Origin(data), level)
            read_all(store, EXTENT)  # connects
            level.flush(PATIENCE_S)
            own_server.freeze()
            before = len(store.origin.requests)
            for number in range(20):  # what is not there is asked for in vain, so nothing is asked
                version = store._version_of("1")
                level.fill(version, number, data[number * EXTENT : (number + 1) * EXTENT])
            stats = level.stats()
            own_server.thaw()
            assert level.flush(PATIENCE_S)
            assert stats["queue_bytes"] <= limit
            assert level.stats()["queue_bytes_max"] <= limit
            assert level.stats()["fills_dropped"] >= 17
            assert len(store.origin.requests) == before

    def test_a_reader_goes_on_while_the_queue_is_full(self, own_server):
        origin = Origin(pages_of(50 * EXTENT))
        with level_on(own_server, queue_bytes=EXTENT) as level:  # room for nothing: a header comes with each
            assert read_all(TieredStore(origin, level), EXTENT // 2) == origin.data
            halves = [(at, EXTENT // 2) for at in range(0, len(origin.data), EXTENT // 2)]
            assert origin.requests == halves, "no more is read than was asked for"
            assert level.stats()["queue_bytes_max"] == 0
            assert level.stats()["fills_dropped"] == 100

    def test_what_waits_to_be_written_is_read_from_there(self, own_server):
        origin = Origin(DATA)
        with level_on(own_server, timeout_s=PATIENCE_S, patience_s=PATIENCE_S) as level:
            store = TieredStore(origin, level)
            level._fills._send = lambda items: go_on.wait(PATIENCE_S) * len(items)
            go_on = threading.Event()
            assert read_all(store) == DATA
            assert read_all(store) == DATA
            assert origin.bytes_read() == len(DATA)
            assert store.source_counts()["second_level_joined"] == NR_EXTENTS
            go_on.set()

    @pytest.mark.parametrize("kind", ["valkey"])
    def test_a_server_without_memory_is_read_and_not_written(self, kind):
        if PROGRAMS[kind] is None:
            pytest.skip("no valkey-server and no redis-server")
        if not has_client():
            pytest.skip("no client library")
        with ValueServer(kind, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
            origin = Origin(pages_of(200 * EXTENT))
            with level_on(server) as level:
                store = TieredStore(origin, level)
                assert read_all(store, EXTENT) == origin.data
                level.flush(PATIENCE_S)
                stats = level.stats()
                assert stats["suspected"] == []
                assert stats["fills_failed"] > 0
                hits = store.source_counts()["second_level_hits"]
                assert read_all(store, EXTENT) == origin.data
                assert store.source_counts()["second_level_hits"] > hits
                assert not level.takes_fills(EXTENT), "it is left alone for a while"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"url": "memcached://127.0.0.1", "extent_bytes": "1MiB"}, "has 1048576 at most"),
            ({"url": "memcached://"}, "names no server"),
            ({"url": "http://x"}, "begins with one of"),
            ({"extent_bytes": 1000}, "whole pages"),
            ({"extent_bytes": "32MiB"}, "16 MiB at most"),
            ({"prefix": "a b"}, "no blanks"),
            ({"prefix": "x" * 200}, "short"),
            ({"timeout_s": 0}, "positive"),
            ({"ttl_s": -1}, "not negative"),
            ({"connections": 0}, "1 or more"),
        ],
    )
    def test_bad_arguments_are_reported(self, arguments, reason):
        with pytest.raises(ValueError, match=reason):
            SecondLevel(**{"url": "memcached://127.0.0.1", **arguments})

    def test_a_password_is_not_shown(self):
        if not has_client():
            pytest.skip("no client library")
        level = SecondLevel("valkey://user:secret@127.0.0.1:1/3?db=2")
        assert "secret" not in repr(level)
        assert "127.0.0.1:1" in repr(level)


class TestLife:
    def test_nothing_is_left_behind(self, server):
        before, threads = nr_descriptors(), set(threading.enumerate())
        with level_on(server) as level, pagecache.PageCache("1MiB") as cache:
            with cache.open(TieredStore(Origin(DATA), level)) as file:
                assert file.read() == DATA
            assert_nothing_is_held(cache)
        del cache, file
        assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "pagecache-fills"]
        wait_until(lambda: nr_descriptors() <= before, "the connections to be closed")

    def test_the_last_store_that_closes_closes_the_connections(self, server, level):
        store, other = TieredStore(Origin(DATA), level), TieredStore(Origin(DATA), level)
        read_all(store)
        level.flush(PATIENCE_S)
        assert len(level._idle) >= 1
        store.close()
        store.close()
        assert len(level._idle) >= 1
        other.close()
        assert len(level._idle) == 0

    def test_a_closed_level_is_no_level(self, level):
        origin = Origin(DATA)
        store = filled(level, origin)
        level.close()
        level.close()
        assert read_all(store) == DATA
        assert origin.bytes_read() == 2 * len(DATA)

    def test_what_waits_at_the_end_of_the_program_is_written(self, server):
        program = textwrap.dedent(f"""
            from support.second_level_support import *
            store = TieredStore(Origin({DATA[:EXTENT]!r}), {server.url!r})
            store.second_level._fills._send = lambda items, send=store.second_level._fills._send: [
                __import__("time").sleep(0.2), send(items)][1]
            read_all(store)
        """)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)])}
        subprocess.run([sys.executable, "-P", "-c", program], check=True, env=environment, timeout=60)
        with SecondLevel(server.url) as level:
            origin = Origin(DATA[:EXTENT])
            assert read_all(TieredStore(origin, level)) == origin.data
            assert origin.requests == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_a_child_has_connections_of_its_own(self, level):
        origin = Origin(DATA)
        store = filled(level, origin)
        read_end, write_end = os.pipe()
        is_held, is_over = threading.Event(), threading.Event()

        def hold():
            with level.lock.held():
                is_held.set()
                is_over.wait(PATIENCE_S)

        holder = threading.Thread(target=hold)
        holder.start()
        assert is_held.wait(PATIENCE_S)
        level.flights[store._version_of("1").name(0)] = object()  # nor does it wait for that thread's request
        child = os.fork()
        if child == 0:
            try:
                origin.requests.clear()
                ok = read_all(store) == DATA and origin.requests == []
                fresh = TieredStore(Origin(DATA[::-1], "other"), level)
                ok = ok and read_all(fresh) == DATA[::-1] and level.flush(PATIENCE_S)
                os.write(write_end, b"y" if ok and level.stats()["fills"] == NR_EXTENTS else b"n")
            finally:
                os._exit(0)
        is_over.set()
        holder.join(PATIENCE_S)
        level.flights.clear()
        os.close(write_end)
        assert os.read(read_end, 1) == b"y"
        os.close(read_end)
        assert os.waitpid(child, 0)[1] == 0
        origin.requests.clear()
        assert read_all(store) == DATA
        assert origin.requests == []


class TestClients:
    @pytest.mark.parametrize("library", ["valkey", "redis"])
    @pytest.mark.parametrize("password", ["right", "wrong"])
    def test_either_library_connects_by_tcp_with_a_password(self, library, password, monkeypatch):
        module = pytest.importorskip(library, reason=f"{library}, the client library, is not installed")
        if PROGRAMS["valkey"] is None:
            pytest.skip("no valkey-server and no redis-server")
        monkeypatch.setattr(connections, "client_library", lambda: module)
        origin = Origin(DATA)
        with ValueServer("valkey", "--requirepass", "right", tcp=True) as server:
            url = server.url.replace("//", f"//:{password}@")
            with SecondLevel(url, extent_bytes=EXTENT, **PATIENT) as level:
                filled(level, origin)
                assert read_all(TieredStore(origin, level)) == DATA
                is_right = password == "right"
                assert origin.bytes_read() == len(DATA) * (1 if is_right else 2)
                assert level.stats()["suspected"] == ([] if is_right else ["server"])

    def test_memcached_by_tcp(self):
        if PROGRAMS["memcached"] is None:
            pytest.skip("memcached is not installed")
        origin = Origin(DATA)
        with ValueServer("memcached", tcp=True) as server, level_on(server) as level:
            filled(level, origin)
            assert read_all(TieredStore(origin, level)) == DATA
            assert origin.bytes_read() == len(DATA)
