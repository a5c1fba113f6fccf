"""Zarr arrays through a page cache: real arrays on a real server, requests counted, writes and changes seen."""

import asyncio
import pickle
import threading

import numpy
import pytest
from support import Crew, wait_until
from support.http_objects import ObjectServer

zarr = pytest.importorskip("zarr", minversion="3")
pytest.importorskip("aiohttp")
pytest.importorskip("obstore")

from obstore.store import HTTPStore  # noqa: E402
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore  # noqa: E402

import pagecache  # noqa: E402
from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

PROTOTYPE = default_buffer_prototype()
SHAPE, SHARD, CHUNK = (64, 256, 256), (16, 256, 256), (4, 64, 64)


def buffer(data):
    return PROTOTYPE.buffer.from_bytes(data)


def of_fsspec(server):
    return FsspecStore.from_url(server.base, read_only=True)


def of_obstore(server):
    return ObjectStore(HTTPStore.from_url(server.base, client_options={"allow_http": True}), read_only=True)


@pytest.fixture(params=[of_fsspec, of_obstore])
def remote(request, server):
    """A Zarr store of the server's objects."""
    return request.param(server)


@pytest.fixture
def wanted(server, tmp_path, seed):
    """The contents of a sharded array at `sharded`, one of many chunks at `plain`, consolidated, on the server."""
    values = numpy.random.default_rng(seed).integers(0, 1000, SHAPE, dtype="i4")
    group = zarr.open_group(LocalStore(tmp_path / "group"), mode="w")
    group.create_array("sharded", shape=SHAPE, shards=SHARD, chunks=CHUNK, dtype="i4")[...] = values
    group.create_array("plain", shape=SHAPE, chunks=(16, 128, 128), dtype="i4")[...] = values
    zarr.consolidate_metadata(group.store)
    server.put_tree(tmp_path / "group")
    return values


def get(store, key, byte_range=None):
    found = sync(store.get(key, PROTOTYPE, byte_range))
    return None if found is None else found.to_bytes()


class Counting(WrapperStore):
    """Counts reads, and can make them wait or fail."""

    def __init__(self, store):
        super().__init__(store)
        self.nr_reads = 0
        self.error = None
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    async def get(self, key, prototype, byte_range=None):
        self.nr_reads += 1
        self.entered.set()
        value = await self._store.get(key, prototype, byte_range)
        while not self.go_on.is_set():
            await asyncio.sleep(0.001)
        if self.error is not None:
            raise self.error
        return value

    async def getsize(self, key):
        found = await self._store.get(key, PROTOTYPE)
        if found is None:
            raise FileNotFoundError(key)
        return len(found)


@pytest.fixture
def counting():
    return Counting(MemoryStore())


class TestArrays:
    @pytest.mark.parametrize("name", ["sharded", "plain"])
    def test_slices_twice_and_the_second_pass_asks_for_nothing(self, remote, cache, server, wanted, name, rng):
        store = PageCacheStore(remote, cache)
        corners = [tuple(rng.randrange(side - 20) for side in SHAPE) for _ in range(10)]
        for _ in range(2):
            server.counts.take()
            array = zarr.open_group(store, mode="r", use_consolidated=True)[name]
            for a, b, c in corners:
                got = array[a : a + 5, b : b + 20, c : c + 20]
                numpy.testing.assert_array_equal(got, wanted[a : a + 5, b : b + 20, c : c + 20])
            cache.check()  # waits for readahead
        assert server.counts.take() == (0, 0)

    @pytest.mark.parametrize("name", ["sharded", "plain"])
    def test_whole_through_a_small_cache(self, remote, make_cache, wanted, name):
        store = PageCacheStore(remote, make_cache("256KiB"))
        numpy.testing.assert_array_equal(zarr.open_group(store, mode="r")[name][...], wanted)

    def test_shards_take_fewer_requests_than_without(self, server, cache, wanted):
        counts = []
        for store in (of_obstore(server), PageCacheStore(of_obstore(server), cache)):
            array = zarr.open_array(store, path="sharded", mode="r")
            server.counts.take()
            for plane in range(16):
                numpy.testing.assert_array_equal(array[plane], wanted[plane])
            cache.check()
            counts.append(server.counts.take()[0])
        assert counts[1] < counts[0]  # by far, until Zarr joined ranges itself in 3.4: it asks for 32, and 272 before

    def test_threads(self, remote, cache, wanted, rng):
        array = zarr.open_group(PageCacheStore(remote, cache), mode="r")["sharded"]
        corners = [[rng.randrange(side - 20) for side in SHAPE] for _ in range(40)]

        def read(mine):
            for a, b, c in mine:
                numpy.testing.assert_array_equal(array[a : a + 9, b, c : c + 20], wanted[a : a + 9, b, c : c + 20])

        Crew(*[lambda start=start: read(corners[start::4]) for start in range(4)]).join_well()

    def test_written_and_read_back(self, cache, tmp_path, seed):
        store = PageCacheStore(LocalStore(tmp_path), cache)
        array = zarr.create_array(store, shape=SHAPE, shards=SHARD, chunks=CHUNK, dtype="i4", fill_value=7)
        wanted = numpy.full(SHAPE, 7)
        random = numpy.random.default_rng(seed)
        for _ in range(20):
            a, b, c = (int(random.integers(0, side - 10)) for side in SHAPE)
            wanted[a : a + 10, b : b + 10, c : c + 10] = piece = random.integers(0, 99, (10, 10, 10))
            array[a : a + 10, b : b + 10, c : c + 10] = piece
            numpy.testing.assert_array_equal(array[a : a + 20], wanted[a : a + 20])
        numpy.testing.assert_array_equal(zarr.open_array(LocalStore(tmp_path), mode="r")[...], wanted)


class TestOneRequest:
    @pytest.mark.parametrize("nbytes", [1, 10_000, 3_000_000])
    def test_for_16_concurrent_gets_of_a_cold_key(self, remote, cache, server, rng, nbytes):
        data = rng.randbytes(nbytes)
        server.put("c/0", data)
        store = PageCacheStore(remote, cache)

        async def many():
            return await asyncio.gather(*[store.get("c/0", PROTOTYPE) for _ in range(16)])

        assert [found.to_bytes() for found in sync(many())] == [data] * 16
        assert server.counts.take() == (1, nbytes)
        assert get(store, "c/0") == data
        assert server.counts.take() == (0, 0)

    def test_for_16_threads(self, remote, cache, server, rng):
        data = rng.randbytes(10_000)
        server.put("c/0", data)
        store = PageCacheStore(remote, cache)
        found = Crew(*[lambda: store.get_sync("c/0").to_bytes()] * 16).join_well()
        assert found == [data] * 16
        assert server.counts.take() == (1, 10_000)

    def test_for_16_parts_of_a_cold_shard(self, server, cache, rng):
        data = rng.randbytes(200_000)
        server.put("c/0", data)
        store = PageCacheStore(of_obstore(server), cache)

        async def many():
            return await asyncio.gather(*[store.get("c/0", PROTOTYPE, SuffixByteRequest(1000)) for _ in range(16)])

        assert [found.to_bytes() for found in sync(many())] == [data[-1000:]] * 16
        assert server.counts.take()[0] == 1

    def test_for_a_key_that_does_not_exist(self, remote, cache, server):
        store = PageCacheStore(remote, cache)
        for _ in range(3):
            assert get(store, "c/none") is None
            assert store.get_sync("c/none", byte_range=RangeByteRequest(0, 10)) is None
        assert server.counts.take()[0] == 1

    def test_waiters_go_on_when_the_first_gives_up(self, cache, counting):
        sync(counting._store.set("k", buffer(b"value")))
        store = PageCacheStore(counting, cache)
        counting.go_on.clear()

        async def scene():
            tasks = [asyncio.ensure_future(store.get("k", PROTOTYPE)) for _ in range(4)]
            while not store._values.loading:
                await asyncio.sleep(0.001)
            tasks[0].cancel()
            counting.go_on.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

        results = sync(scene())
        assert isinstance(results[0], asyncio.CancelledError)
        assert [found.to_bytes() for found in results[1:]] == [b"value"] * 3

    def test_an_error_reaches_all_that_waited_and_none_later(self, cache, counting):
        sync(counting._store.set("k", buffer(b"value")))
        store = PageCacheStore(counting, cache)
        counting.error = ConnectionResetError("planned")

        async def many():
            return await asyncio.gather(*[store.get("k", PROTOTYPE) for _ in range(4)], return_exceptions=True)

        assert [str(error) for error in sync(many())] == ["planned"] * 4
        counting.error = None
        assert get(store, "k") == b"value"
        assert not store._values.loading


class TestHits:
    def test_need_no_event_loop(self, cache, counting):
        sync(counting._store.set("k", buffer(b"value")))
        store = PageCacheStore(counting, cache)
        get(store, "k")
        counting.error = AssertionError("the store was asked")
        assert store.get_sync("k").to_bytes() == b"value"
        coroutine = store.get("k", PROTOTYPE, RangeByteRequest(1, 3))
        with pytest.raises(StopIteration) as ended:  # it never suspends
            coroutine.send(None)
        assert ended.value.value.to_bytes() == b"al"

    def test_a_miss_in_the_loop_that_it_needs_is_an_error_not_a_deadlock(self, cache, counting):
        sync(counting._store.set("k", buffer(b"value")))
        store = PageCacheStore(counting, cache)

        async def block():
            return store.get_sync("k")

        with pytest.raises(RuntimeError, match="event loop"):
            sync(block())
        assert get(store, "k") == b"value"

    def test_a_miss_in_a_loop_that_the_store_does_not_need(self, remote, cache, server):
        server.put("k", b"value")
        store = PageCacheStore(remote, cache)

        async def block():
            return store.get_sync("k").to_bytes()

        assert sync(block()) == b"value"

    @pytest.mark.parametrize("way", ["get", "get_sync", "get_partial_values", "get_ranges", "get_ranges_sync"])
    def test_parts_in_any_way(self, remote, cache, server, rng, way):
        data = rng.randbytes(30_000)
        server.put("k", data)
        store = PageCacheStore(remote, cache)
        requests, parts = [], []
        for _ in range(20):
            start = rng.randrange(29_000)
            end = start + rng.choice([1, 500, 9000])
            requests += [RangeByteRequest(start, end), OffsetByteRequest(start), SuffixByteRequest(end - start)]
            parts += [data[start:end], data[start:], data[start - end :]]

        async def collect(stream):
            return [entry async for batch in stream for entry in batch]

        if way == "get":
            found = [sync(store.get("k", PROTOTYPE, request)) for request in requests]
        elif way == "get_sync":
            found = [store.get_sync("k", byte_range=request) for request in requests]
        elif way == "get_partial_values":
            found = sync(store.get_partial_values(PROTOTYPE, (("k", request) for request in requests)))
        elif way == "get_ranges":
            found = [part for _, part in sorted(sync(collect(store.get_ranges("k", requests, prototype=PROTOTYPE))))]
        else:
            found = [part for _, part in store.get_ranges_sync("k", requests, prototype=PROTOTYPE)]
        assert [part.to_bytes() for part in found] == parts

    def test_ranges_of_a_key_that_does_not_exist(self, remote, cache):
        with pytest.raises(BaseExceptionGroup) as raised:
            PageCacheStore(remote, cache).get_ranges_sync("k", [RangeByteRequest(0, 1)], prototype=PROTOTYPE)
        assert raised.group_contains(FileNotFoundError)


class TestWrites:
    @pytest.mark.parametrize("way", ["set", "set_sync", "_set_many", "delete", "delete_sync", "delete_dir", "clear"])
    def test_are_seen_by_all_forms_of_the_store(self, cache, way):
        store = PageCacheStore(MemoryStore(), cache)
        reader = store.with_read_only(True)
        store.set_sync("a/k", buffer(b"old"))
        assert get(reader, "a/k") == b"old"
        arguments = {"set": ("a/k", buffer(b"newer")), "_set_many": ([("a/k", buffer(b"newer"))],), "delete_dir": ("a",)}
        done = getattr(store, way)(*arguments.get(way.removesuffix("_sync"), () if way == "clear" else ("a/k",)))
        if done is not None:
            sync(done)
        assert get(reader, "a/k") == (b"newer" if "set" in way else None)
        assert sync(reader.exists("a/k")) is ("set" in way)

    def test_of_the_same_size(self, cache):
        store = PageCacheStore(MemoryStore(), cache)
        for number in range(20):
            value = bytes([number]) * 10_000
            sync(store.set("k", buffer(value)))
            assert get(store, "k", RangeByteRequest(5000, 6000)) == value[:1000]
            assert store.get_sync("k").to_bytes() == value

    def test_a_value_that_was_under_way_is_not_kept(self, cache, counting):
        sync(counting._store.set("k", buffer(b"old")))
        store = PageCacheStore(counting, cache)
        counting.go_on.clear()
        reader = Crew(lambda: store.get_sync("k").to_bytes())
        wait_until(counting.entered.is_set, "the read")
        sync(store.set("k", buffer(b"newer")))
        counting.go_on.set()
        assert reader.join_well() == [b"old"]
        assert get(store, "k") == b"newer"

    def test_a_value_that_was_read_during_the_write_is_not_kept(self, cache):
        class Slow(MemoryStore):
            async def set(self, key, value):
                readers.append(get_in_thread(store, key))
                await super().set(key, value)

        def get_in_thread(store, key):
            return Crew(lambda: store.get_sync(key).to_bytes()).join_well()[0]

        readers, inner = [], Slow()
        inner.set_sync("k", buffer(b"old"))
        store = PageCacheStore(inner, cache)
        sync(store.set("k", buffer(b"newer")))
        assert readers == [b"old"]
        assert get(store, "k") == b"newer"

    def test_if_not_exists(self, cache):
        store = PageCacheStore(MemoryStore(), cache)
        assert get(store, "k") is None
        sync(store.set_if_not_exists("k", buffer(b"value")))
        assert get(store, "k") == b"value"

    def test_two_stores_never_share_by_chance(self, cache):
        first, second = PageCacheStore(MemoryStore(), cache), PageCacheStore(MemoryStore(), cache)
        first.set_sync("k", buffer(b"1"))
        second.set_sync("k", buffer(b"2"))
        assert (get(first, "k"), get(second, "k")) == (b"1", b"2")


class TestChanges:
    """Another program replaces an object."""

    OLD, NEW = bytes(200_000), b"\1" * 200_000

    def test_never_checked(self, remote, cache, server):
        server.put("k", self.OLD)
        store = PageCacheStore(remote, cache)
        assert get(store, "k") == self.OLD
        server.put("k", self.NEW)
        assert get(store, "k") == self.OLD
        store.invalidate("k")
        assert get(store, "k") == self.NEW

    def test_checked_at_each_read(self, remote, cache, server):
        store = PageCacheStore(remote, cache, recheck=True)
        for data in (self.OLD, self.NEW, self.NEW, b"short", None, self.OLD):
            server.put("k", data) if data is not None else server.delete("k")
            assert get(store, "k") == data
            assert get(store, "k", RangeByteRequest(1, 3)) == (None if data is None else data[1:3])
            found = store.get_sync("k")
            assert (found and found.to_bytes()) == data

    def test_a_check_that_finds_no_change_reads_nothing(self, server, cache):
        server.put("k", self.OLD)
        store = PageCacheStore(of_obstore(server), cache, recheck=True)
        get(store, "k")
        server.counts.take()
        get(store, "k")
        assert [method for method, *_ in server.counts.log] == ["HEAD"]

    def test_checked_when_opened(self, remote, cache, server):
        server.put("k", self.OLD)
        store = PageCacheStore(remote, cache, recheck="open")
        assert get(store, "k") == self.OLD
        server.put("k", self.NEW)
        assert get(store, "k") == self.OLD
        assert get(store.with_read_only(True), "k") == self.OLD  # the same store in another form
        assert get(PageCacheStore(remote, cache, recheck="open"), "k") == self.NEW
        assert get(store, "k") == self.NEW

    def test_checked_after_a_time(self, remote, cache, server, monkeypatch):
        from pagecache.adapters import zarr_reading as adapter

        server.put("k", self.OLD)
        store = PageCacheStore(remote, cache, recheck=60)
        assert get(store, "k") == self.OLD
        server.put("k", self.NEW)
        assert get(store, "k") == self.OLD
        now = adapter.time.monotonic()
        monkeypatch.setattr(adapter.time, "monotonic", lambda: now + 61)
        assert get(store, "k") == self.NEW

    def test_parts_of_two_versions_never_meet(self, server, cache):
        server.put("k", self.OLD)
        store = PageCacheStore(of_obstore(server), cache)
        assert get(store, "k", SuffixByteRequest(100)) == bytes(100)
        server.put("k", self.NEW)
        with pytest.raises(OSError, match="changed"):
            get(store, "k")
        assert get(store, "k") == self.NEW
        assert get(store, "k", SuffixByteRequest(100)) == self.NEW[-100:]

    def test_unknown_recheck(self, cache):
        for recheck in ("sometimes", -1):
            with pytest.raises(ValueError, match="recheck"):
                PageCacheStore(MemoryStore(), cache, recheck=recheck)


class TestLife:
    def test_pickles_without_contents(self, cache, tmp_path, monkeypatch, make_cache):
        store = PageCacheStore(LocalStore(tmp_path), cache, recheck=5, name="mine")
        store.set_sync("k", buffer(bytes(100_000)))
        get(store, "k")
        other = make_cache("1MiB")
        monkeypatch.setattr(pagecache.default, "_default", other)
        pickled = pickle.dumps(store)
        assert len(pickled) < 1000
        restored = pickle.loads(pickled)
        assert restored == store and restored.cache is other
        assert get(restored, "k") == bytes(100_000)

    def test_stores_of_one_name_share_pages(self, cache, server, rng):
        data = rng.randbytes(100_000)
        server.put("k", data)
        first, second = (PageCacheStore(of_obstore(server), cache, name=server.base) for _ in range(2))
        assert get(first, "k", RangeByteRequest(1000, 90_000)) == data[1000:90_000]
        server.counts.take()
        assert get(second, "k", RangeByteRequest(1000, 90_000)) == data[1000:90_000]
        assert server.counts.take() == (0, 0)

    def test_stores_whose_versions_are_equal_by_chance_share_nothing(self, cache, server, rng):
        with ObjectServer() as other:
            for place in (server, other):
                place.put("k", rng.randbytes(10_000))
                place._server.objects["k"] = (place.get("k"), '"1"')
            stores = [(place, PageCacheStore(of_obstore(place), cache)) for place in (server, other)]
            for _ in range(2):
                for place, store in stores:
                    assert get(store, "k", RangeByteRequest(10, 9000)) == place.get("k")[10:9000]

    def test_closed_and_used_again(self, cache):
        store = PageCacheStore(MemoryStore(), cache)
        store.set_sync("k", buffer(b"value" * 1000))
        get(store, "k")
        store.close()
        assert get(store, "k") == b"value" * 1000

    def test_many_more_keys_than_open_files(self, cache, monkeypatch):
        from pagecache.adapters import zarr_values

        monkeypatch.setattr(zarr_values, "MAX_FILES", 4)
        monkeypatch.setattr(zarr_values, "MAX_KEYS", 8)
        inner = MemoryStore()
        store = PageCacheStore(inner, cache)
        for number in range(20):
            sync(inner.set(f"k{number}", buffer(bytes([number]) * 5000)))
        for _ in range(2):
            for number in range(20):
                assert get(store, f"k{number}") == bytes([number]) * 5000
        assert len(store._values._files) <= 4 and len(store._values._values) <= 8

    def test_values_larger_than_the_cache(self, make_cache, rng):
        store = PageCacheStore(MemoryStore(), make_cache("64KiB"))
        data = rng.randbytes(1_000_000)
        store.set_sync("k", buffer(data))
        for _ in range(2):
            assert get(store, "k") == data
            assert get(store, "k", RangeByteRequest(10, 900_000)) == data[10:900_000]

    def test_an_event_loop_that_stops_in_the_middle_of_a_read(self, cache):
        inner = Counting(MemoryStore())
        sync(inner._store.set("k", buffer(bytes(500_000))))
        store = PageCacheStore(inner, cache)
        loop, tasks = asyncio.new_event_loop(), []
        loop.run_until_complete(store.get("k", PROTOTYPE, SuffixByteRequest(1)))
        inner.entered.clear()
        inner.go_on.clear()

        async def begin():
            tasks.append(asyncio.ensure_future(store.get("k", PROTOTYPE, RangeByteRequest(0, 10))))
            while not inner.entered.is_set():
                await asyncio.sleep(0.001)

        loop.run_until_complete(begin())
        inner.go_on.set()
        assert get(store, "k", RangeByteRequest(0, 10)) == bytes(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
