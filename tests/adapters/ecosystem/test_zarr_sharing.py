"""What is cached of a Zarr store outlives the store: one that is made again, or unpickled, begins with it, and with nothing
that it has no right to, or that may have changed."""

import concurrent.futures
import gc
import pickle
import zipfile

import pytest
from support import Crew
from support.http_objects import ObjectServer

import pagecache

zarr = pytest.importorskip("zarr", minversion="3")
pytest.importorskip("aiohttp")
obstore = pytest.importorskip("obstore")

import fsspec  # noqa: E402
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper  # noqa: E402
from zarr.abc.store import RangeByteRequest, SuffixByteRequest  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import (  # noqa: E402
    FsspecStore,
    LocalStore,
    LoggingStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)

from pagecache.adapters import zarr_values  # noqa: E402
from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

PROTOTYPE = default_buffer_prototype()
OLD, NEW = bytes(range(256)) * 400, bytes(range(255, -1, -1)) * 400
PART = RangeByteRequest(5000, 90_000)


def buffer(data):
    return PROTOTYPE.buffer.from_bytes(data)


def get(store, key="c/0", byte_range=None):
    found = sync(store.get(key, PROTOTYPE, byte_range))
    return None if found is None else found.to_bytes()


def of_fsspec(base, **options):
    return FsspecStore.from_url(base, storage_options=options or None, read_only=True)


def of_obstore(base, **options):
    options = {"allow_http": True} | ({"default_headers": options["headers"]} if options else {})
    return ObjectStore(obstore.store.HTTPStore.from_url(base, client_options=options), read_only=True)


REMOTE = {"fsspec": of_fsspec, "obstore": of_obstore}


@pytest.fixture(params=REMOTE)
def make_remote(request):
    """What makes a store of a server's objects."""
    return REMOTE[request.param]


@pytest.fixture
def default(make_cache, monkeypatch):
    """The process's own cache."""
    cache = make_cache("8MiB")
    monkeypatch.setattr(pagecache.default, "_default", cache)
    return cache


class TestMadeAgain:
    def test_immutable_keys_cost_nothing(self, server, cache, make_remote):
        server.put("c/0", OLD)
        for number in range(5):
            store = PageCacheStore(make_remote(server.base), cache, recheck=False)
            assert (get(store), get(store, byte_range=PART)) == (OLD, OLD[5000:90_000])
            assert get(store, "c/none") is None
            assert server.counts.take() == ((2, len(OLD)) if number == 0 else (0, 0))
            del store
            gc.collect()

    def test_a_key_is_asked_for_once_by_each_that_is_made(self, server, cache, make_remote):
        server.put("c/0", OLD)
        assert get(PageCacheStore(make_remote(server.base), cache)) == OLD
        server.counts.take()
        for _ in range(3):
            store = PageCacheStore(make_remote(server.base), cache)
            for _ in range(3):
                assert (get(store), get(store, byte_range=PART)) == (OLD, OLD[5000:90_000])
            assert [method for method, *_ in server.counts.log] == ["HEAD"]
            server.counts.take()

    def test_the_pages_are_those_of_the_url(self, server, cache):
        server.put("c/0", OLD)
        assert get(PageCacheStore(of_fsspec(server.base), cache)) == OLD
        server.counts.take()
        with cache.open(server.url("c/0")) as file:
            assert file.pread(len(OLD), 0) == OLD
        assert server.counts.take()[1] == 0

    def test_by_threads_at_once(self, server, cache, make_remote):
        server.put("c/0", OLD)
        get(PageCacheStore(make_remote(server.base), cache))
        server.counts.take()
        assert (
            Crew(*[lambda: get(PageCacheStore(make_remote(server.base), cache, recheck=60))] * 8).join_well() == [OLD] * 8
        )
        assert server.counts.take() == (0, 0)

    @pytest.mark.parametrize("recheck", ["open", True])
    def test_what_has_changed_is_seen(self, server, cache, make_remote, recheck):
        server.put("c/0", OLD)
        stores = [PageCacheStore(make_remote(server.base), cache, recheck=recheck)]
        assert (get(stores[0]), get(stores[0], "c/1")) == (OLD, None)
        server.put("c/0", NEW)
        server.put("c/1", NEW)
        stores.append(PageCacheStore(make_remote(server.base), cache, recheck=recheck))
        for store in reversed(stores):
            assert (get(store, byte_range=PART), get(store), get(store, "c/1")) == (NEW[5000:90_000], NEW, NEW)
        server.delete("c/0")
        assert get(PageCacheStore(make_remote(server.base), cache, recheck=recheck)) is None

    def test_an_array(self, server, cache, make_remote, tmp_path):
        array = zarr.create_array(LocalStore(tmp_path), shape=(64, 64), shards=(32, 32), chunks=(8, 8), dtype="i4")
        array[:32] = 7
        server.put_tree(tmp_path)

        def total():
            return int(zarr.open_array(PageCacheStore(make_remote(server.base), cache, recheck=False), mode="r")[...].sum())

        assert total() == 7 * 32 * 64
        server.counts.take()
        assert total() == 7 * 32 * 64
        assert server.counts.take() == (0, 0)


def task(pickled):
    """What a task does: it unpickles a store, and reads."""
    return get(pickle.loads(pickled))


class TestUnpickled:
    def test_in_tasks_of_one_process(self, server, default, make_remote):
        server.put("c/0", OLD)
        pickled = pickle.dumps(PageCacheStore(make_remote(server.base)))
        assert [task(pickled) for _ in range(5)] == [OLD] * 5
        assert server.counts.take() == (1, len(OLD))
        server.put("c/0", NEW)
        assert task(pickled) == OLD  # the store that was pickled was opened before
        assert task(pickle.dumps(PageCacheStore(make_remote(server.base)))) == NEW

    def test_in_tasks_of_other_processes(self, server, make_remote):
        server.put("c/0", OLD)
        pickled = pickle.dumps(PageCacheStore(make_remote(server.base)))
        import multiprocessing

        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert list(pool.map(task, [pickled] * 4)) == [OLD] * 4
        assert server.counts.take() == (1, len(OLD))

    def test_forms_are_one_store(self, server, cache, make_remote):
        server.put("c/0", OLD)
        store = PageCacheStore(make_remote(server.base), cache)
        assert get(store) == OLD
        server.counts.take()
        assert get(store.with_read_only(True)) == get(store.with_read_only(True)) == OLD
        assert server.counts.take() == (0, 0)


class TestRights:
    """What was read with one's rights is not given to others."""

    def test_other_headers(self, server, cache, make_remote):
        server.put("c/0", OLD)
        for token in ("mine", "yours"):
            headers = {"Authorization": token}
            assert get(PageCacheStore(make_remote(server.base, headers=headers), cache, recheck=False)) == OLD
            assert server.counts.take() == (1, len(OLD))

    def test_other_roots(self, server, cache, make_remote):
        server.put("a/c/0", OLD)
        server.put("b/c/0", NEW)
        for name, data in {"a": OLD, "b": NEW}.items():
            assert get(PageCacheStore(make_remote(server.url(name)), cache, recheck=False)) == data

    def test_other_servers_with_equal_entity_tags(self, cache, make_remote, server):
        with ObjectServer() as other:
            for place, data in ((server, OLD), (other, NEW)):
                place.put("c/0", data)
                place._server.objects["c/0"] = (data, '"1"')
            for _ in range(2):
                for place, data in ((server, OLD), (other, NEW)):
                    assert get(PageCacheStore(make_remote(place.base), cache, recheck=False)) == data

    def test_other_missing_keys(self, server, cache):
        """A key that one store takes for missing is no missing key for one that takes it for an error."""
        fs = fsspec.filesystem("http", asynchronous=True)
        lenient = FsspecStore(fs, path=server.base, allowed_exceptions=(FileNotFoundError,))
        strict = FsspecStore(fs, path=server.base, allowed_exceptions=())
        for _ in range(2):
            assert get(PageCacheStore(lenient, cache, recheck=False), "none") is None
            with pytest.raises(FileNotFoundError):
                get(PageCacheStore(strict, cache, recheck=False), "none")

    def test_other_providers_of_credentials_whose_address_comes_back(self, cache):
        from pagecache.adapters.zarr_sources import source_of

        identities = set()
        for _ in range(20):
            source = obstore.store.S3Store("bucket", credential_provider=lambda: None)
            identities.add(source_of(ObjectStore(source)).identity)
            del source
            gc.collect(1)
        assert len(identities) == 20


class TestOnThisMachine:
    def test_directories(self, cache, tmp_path, monkeypatch):
        file = tmp_path / "c" / "0"
        file.parent.mkdir()
        file.write_bytes(OLD)
        first = PageCacheStore(LocalStore(tmp_path), cache)
        assert get(first) == OLD
        nr_requests = cache.stats().store_reads
        assert get(PageCacheStore(LocalStore(str(tmp_path)), cache), byte_range=PART) == OLD[5000:90_000]
        assert cache.stats().store_reads == nr_requests
        file.write_bytes(NEW)
        assert get(PageCacheStore(LocalStore(tmp_path), cache)) == NEW
        monkeypatch.chdir(tmp_path)
        assert get(PageCacheStore(LocalStore("."), cache, recheck=False)) == NEW

    def test_archives(self, cache, tmp_path):
        path = tmp_path / "archive.zip"
        for data in (OLD, NEW):
            with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
                archive.writestr("c/0", data)
            (tmp_path / "new.zip").replace(path)
            nr_requests = []
            for _ in range(2):
                store = PageCacheStore(ZipStore(path), cache)
                assert (get(store, byte_range=PART), get(store)) == (data[5000:90_000], data)
                nr_requests.append(cache.stats().store_reads)
                store.close()
            assert nr_requests[0] == nr_requests[1]

    def test_archives_that_grow(self, cache, tmp_path):
        with PageCacheStore(ZipStore(tmp_path / "archive.zip", mode="w"), cache) as store:
            for number in range(5):
                store.set_sync(f"c/{number}", buffer(bytes([number]) * 5000))
            assert [get(store, f"c/{number}") for number in range(5)] == [bytes([number]) * 5000 for number in range(5)]
        with PageCacheStore(ZipStore(tmp_path / "archive.zip"), cache) as store:
            assert [get(store, f"c/{number}") for number in range(5)] == [bytes([number]) * 5000 for number in range(5)]

    def test_memory(self, cache):
        values = {"c/0": buffer(OLD)}
        stores = [PageCacheStore(MemoryStore(values), cache, recheck=False) for _ in range(2)]
        assert get(stores[0]) == OLD
        sync(stores[1].set("c/0", buffer(NEW)))
        assert get(stores[0]) == get(stores[1]) == NEW
        del stores
        for number in range(50):  # dictionaries whose addresses come back
            assert get(PageCacheStore(MemoryStore({"c/0": buffer(bytes([number]) * 9)}), cache)) == bytes([number]) * 9
            gc.collect(1)


class Unknown(WrapperStore):
    """A wrapper of which nothing is known."""


class TestWithoutVersions:
    """Stores that tell no versions: their bytes are believed as long as recheck says, and no longer."""

    @pytest.fixture
    def files(self, tmp_path):
        """A file system of fsspec that has neither entity tags nor conditional requests."""
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "0").write_bytes(OLD)
        return tmp_path

    @staticmethod
    def store_of(files):
        return FsspecStore(AsyncFileSystemWrapper(fsspec.filesystem("file"), asynchronous=True), path=str(files))

    def test_are_read_anew_by_a_store_that_is_made_anew(self, files, cache):
        for data in (OLD, NEW):
            (files / "c" / "0").write_bytes(data)
            store = PageCacheStore(self.store_of(files), cache)
            assert (get(store), get(store, byte_range=SuffixByteRequest(99))) == (data, data[-99:])

    @pytest.mark.parametrize("recheck", [False, 3600])
    def test_are_believed_by_those_who_say_so(self, files, cache, recheck):
        for _ in range(3):
            assert get(PageCacheStore(self.store_of(files), cache, recheck=recheck)) == OLD
            (files / "c" / "0").write_bytes(NEW)
        store = PageCacheStore(self.store_of(files), cache, recheck=recheck)
        store.invalidate("c/0")
        assert get(PageCacheStore(self.store_of(files), cache, recheck=recheck)) == NEW

    def test_of_a_wrapper_that_changes_nothing(self, files, cache, caplog):
        for _ in range(2):
            assert get(PageCacheStore(LoggingStore(LocalStore(files)), cache, recheck=False)) == OLD
            (files / "c" / "0").write_bytes(NEW)

    def test_of_an_unknown_wrapper_share_only_by_name(self, files, cache):
        unnamed = [PageCacheStore(Unknown(LocalStore(files)), cache, recheck=False) for _ in range(2)]
        named = [PageCacheStore(Unknown(LocalStore(files)), cache, recheck=False, name="mine") for _ in range(2)]
        assert [get(unnamed[0]), get(named[0])] == [OLD, OLD]
        del named[0]
        (files / "c" / "0").write_bytes(NEW)
        assert [get(unnamed[1]), get(named[0])] == [NEW, OLD]
        assert get(PageCacheStore(Unknown(LocalStore(files)), cache, name="mine")) == NEW
        assert get(PageCacheStore(Unknown(LocalStore(files)), cache, recheck=False, name="other")) == NEW


class TestWrites:
    @pytest.mark.parametrize("made", ["before", "after"])
    def test_are_seen_by_all_that_read_the_same(self, cache, tmp_path, made):
        writer = PageCacheStore(LocalStore(tmp_path), cache, recheck=False)
        readers = [PageCacheStore(LocalStore(tmp_path), cache, recheck=False) for _ in range(3)]
        for number in range(10):
            value = bytes([number]) * 10_000
            sync(writer.set("c/0", buffer(value)))
            if made == "after":
                readers = [PageCacheStore(LocalStore(tmp_path), cache, recheck=False)]
            assert {get(reader) for reader in readers} == {value}
        sync(writer.delete("c/0"))
        assert [get(reader) for reader in readers] == [None] * len(readers)

    def test_of_a_store_that_is_gone(self, cache, tmp_path):
        assert get(PageCacheStore(LocalStore(tmp_path), cache, recheck=False)) is None
        sync(PageCacheStore(LocalStore(tmp_path), cache, recheck=False).set("c/0", buffer(OLD)))
        assert get(PageCacheStore(LocalStore(tmp_path), cache, recheck=False)) == OLD


class TestWhatIsKept:
    def test_files_are_closed_with_the_last_store(self, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(zarr_values, "WHOLE_MAX", 1000)
        stores = [PageCacheStore(LocalStore(tmp_path), cache) for _ in range(2)]
        sync(stores[0].set("c/0", buffer(OLD)))
        get(stores[0])
        files = stores[0]._values._files
        [value] = files.values()
        file = value.file
        del stores[0]
        gc.collect()
        assert not file.closed
        del stores[0]
        gc.collect()
        assert file.closed and not files and value.file is None

    @pytest.mark.parametrize("whole_max, nr_files", [(1 << 20, 0), (1000, 4)])
    def test_no_file_is_kept_but_of_values_that_are_read_in_parts(self, cache, monkeypatch, whole_max, nr_files):
        monkeypatch.setattr(zarr_values, "MAX_FILES", 4)
        monkeypatch.setattr(zarr_values, "WHOLE_MAX", whole_max)
        inner = MemoryStore({f"k{number}": buffer(bytes([number]) * 5000) for number in range(40)})
        store = PageCacheStore(inner, cache)
        for _ in range(2):
            for number in range(40):
                assert get(store, f"k{number}") == bytes([number]) * 5000
        assert sum(value.file is not None for value in store._values._values.values()) == nr_files
        assert sum(inode.nr_open for inode in cache.inodes()) == nr_files
        assert cache.stats().hits >= 40

    def test_what_was_evicted_is_read_anew_and_what_was_written_is_not_read(self, cache):
        inner = MemoryStore({f"k{number}": buffer(bytes([number]) * 5000) for number in range(40)})
        store = PageCacheStore(inner, cache, recheck=False)
        for number in range(40):
            get(store, f"k{number}")
        cache.drop_caches()
        assert all(get(store, f"k{number}") == bytes([number]) * 5000 for number in range(40))
        sync(store.set("k3", buffer(b"new" * 2000)))
        assert get(store, "k3") == b"new" * 2000
        cache.forget(store._values.key_of("k4"))
        assert get(store, "k4") == bytes([4]) * 5000

    def test_an_array_of_more_chunks_than_any_table_used_to_have(self, make_cache):
        """12,000 chunks, of which the cache holds some: once this was an error after 8,192."""
        cache, nr = make_cache("8MiB"), 12000
        inner = MemoryStore({f"c/{number}": buffer(b"%5d" % number * 20) for number in range(nr)})
        store = PageCacheStore(inner, cache)
        for _ in range(2):
            assert all(get(store, f"c/{number}") == b"%5d" % number * 20 for number in range(nr))

    def test_tables_have_an_end(self, cache, tmp_path, monkeypatch):
        monkeypatch.setattr(zarr_values, "MAX_TABLES", 8)
        monkeypatch.setattr(zarr_values, "MAX_KEYS", 100)
        for number in range(20):
            store = PageCacheStore(LocalStore(tmp_path / str(number)), cache)
            for key in range(30):
                assert get(store, f"c/{key}") is None
        tables = zarr_values._tables[cache]
        assert len(tables) <= 8 and sum(map(len, tables.values())) <= 100 + 30

    def test_nothing_of_a_cache_that_is_gone(self, make_cache, tmp_path):
        (tmp_path / "k").write_bytes(OLD)
        for _ in range(3):
            cache = make_cache("1MiB")
            assert get(PageCacheStore(LocalStore(tmp_path), cache, recheck=False), "k") == OLD
            cache.close()
        store = PageCacheStore(LocalStore(tmp_path), cache, recheck=False)
        with pytest.raises(ValueError, match="closed"):
            get(store, "k", RangeByteRequest(0, 10))


class TestOptions:
    def test_misspelled(self, cache):
        for call in (
            lambda: PageCacheStore(MemoryStore(), cache, rechek=True),
            lambda: sync(PageCacheStore.open(MemoryStore, rechek=True)),
        ):
            with pytest.raises(TypeError, match="did you mean 'recheck'"):
                call()

    def test_reach_their_place(self, cache, tmp_path):
        store = sync(PageCacheStore.open(LocalStore, tmp_path, read_only=True, cache=cache, recheck=5, name="mine"))
        assert (store.cache, store._recheck, store._name, store.read_only) == (cache, 5, "mine", True)
