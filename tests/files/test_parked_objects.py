"""Objects that are not open: only the directory of the segment knows them, and opening one finds its pages."""

import errno
import gc
import random
import threading
import tracemalloc
import warnings
import weakref

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support import PAGE, Crew, checked_cache, pages_of
from support import Store as PlainStore
from support.write_steps import WritableStore

import pagecache
from pagecache.files import inode_table

LONG = "object/" + "k" * 300


class Store(PlainStore):
    """A store of a version."""

    def __init__(self, data, key="object", validator="v1"):
        super().__init__(data, key)
        self.version = validator


@pytest.fixture(autouse=True)
def park_at_once(monkeypatch):
    monkeypatch.setattr(inode_table, "RECENT_MAX", 0)


def read(cache, store, **options):
    with cache.open(store, **options) as file:
        return file.readall()


def park(cache):
    """Open something else, so that what was closed before is parked."""
    cache.open(Store(b"", key="something else")).close()
    cache.open(Store(b"", key="something else")).close()
    gc.collect()
    assert list(cache._inodes._inodes) == ["something else"]


class TestReopening:
    @pytest.mark.parametrize("key", ["", "short", LONG, "k" * (1 << 20), "\ud800", "\0"])
    def test_finds_pages_size_and_version_without_a_request(self, make_cache, key):
        cache, data = make_cache("1MiB"), pages_of(5 * PAGE + 123)
        stores = [Store(data, key=key, validator="v1") for _ in range(3)]
        for store in stores:
            assert read(cache, store) == data
            park(cache)
        assert [len(store.requests) > 0 for store in stores] == [True, False, False]

    def test_keys_that_differ_behind_what_is_kept_are_two(self, make_cache):
        cache = make_cache("1MiB")
        for _ in range(2):
            for name in "ab":
                assert read(cache, Store(name.encode() * 100, key=LONG + name, validator="same")) == name.encode() * 100
                park(cache)

    @pytest.mark.parametrize("validator", ["v2", "v" * 300, None])
    def test_another_version_begins_with_nothing(self, make_cache, validator):
        cache = make_cache("1MiB")
        assert read(cache, Store(b"old" * 2000, key="key", validator="v1")) == b"old" * 2000
        park(cache)
        for data in (b"new" * 3000, b"n" * 10):  # sizes change with it
            assert read(cache, Store(data, key="key", validator=f"{validator}{len(data)}" if validator else None)) == data
            park(cache)

    def test_a_long_validator_is_the_same_one_again(self, make_cache):
        cache = make_cache("1MiB")
        stores = [Store(b"x" * 5000, key="key", validator="v" * 500) for _ in range(3)]
        for store in stores:
            assert read(cache, store) == b"x" * 5000
            park(cache)
        assert [len(store.requests) for store in stores[1:]] == [0, 0]

    def test_a_local_file_and_one_that_was_replaced(self, make_cache, data_file):
        cache = make_cache("1MiB")
        path, data = data_file(3 * PAGE + 5)
        for _ in range(3):
            assert read(cache, path) == data
            park(cache)
        assert cache.stats().store_reads == 1
        assert [file.name for file in cache.stats(per_file=True).files if file.store_reads] == [str(path)]
        path.write_bytes(b"other" * 100)
        assert read(cache, path) == b"other" * 100

    def test_what_was_written_and_is_durable_comes_back(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(WritableStore(b"old", key="key"), "r+b") as file:
            file.pwrite(b"new bytes", 0)
            file.fsync()
            store = file.inode.store
        park(cache)
        with cache.open(store, "r+b") as file:
            assert file.pread(100, 0) == b"new bytes"
            file.truncate(3)
            file.pwrite(b"!", 3)
            file.fsync()
        park(cache)
        assert read(cache, store) == b"new!" == bytes(store.data)

    def test_what_is_dirty_keeps_its_inode(self, make_cache):
        cache, store = make_cache("1MiB", dirty_expire_s=3600), WritableStore(b"old", key="key")
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 0)
        file._give_up()
        for number in range(20):
            read(cache, Store(b"x", key=str(number)))
        assert cache._inodes.find("key").nr_open == 0
        assert read(cache, store) == b"new"
        cache.sync()
        assert bytes(store.data) == b"new"

    def test_priority_and_tenant_stay(self, make_cache):
        cache = make_cache("1MiB", shares={"search": "25%"})
        read(cache, Store(b"x" * PAGE, key="key"), priority="keep", tenant="search")
        park(cache)
        with cache.open(Store(b"x" * PAGE, key="key")) as file:
            assert file.priority == "keep"
            assert cache.segment.counters()["nr_file_pages"] == 1

    def test_an_error_of_write_back_is_reported_to_who_opens_it_next(self, make_cache):
        cache, store = make_cache("1MiB", on_write_error="drop"), WritableStore(b"old", key="key")
        file = cache.open(store, "r+b")
        file.pwrite(b"new", 0)
        store.writev = lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
        file._give_up()
        cache.flusher.sync_all()
        del store.writev
        park(cache)
        assert read(cache, WritableStore(b"old", key="key")) in (b"old", b"new")

    def test_whoever_looks_at_an_object_keeps_its_inode(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(b"x" * PAGE, key="key")) as file:
            file.readall()
            inode = file.inode
        park_others = [cache.open(Store(b"", key=str(number))) for number in range(3)]
        assert cache.find("key") is inode
        for other in park_others:
            other.close()
        reference = weakref.ref(inode)
        del inode, file
        park(cache)
        assert reference() is None
        again = cache.find("key")
        assert (again.mapping.nrpages, again.mapping.validator) == (1, "v1")
        with cache.open(Store(b"x" * PAGE, key="key")) as file:
            assert file.inode is again


class TestForgetting:
    def test_by_key_by_what_it_begins_with_and_by_a_long_one(self, make_cache):
        cache = make_cache("1MiB")
        names = ["dir/a", "dir/b", "dir", "directory", LONG, LONG + "/below", "else"]
        stores = {name: Store(name.encode(), key=name) for name in names}

        def cached():
            before = {name: len(store.requests) for name, store in stores.items()}
            for store in stores.values():
                read(cache, store)
            park(cache)
            return {name for name, store in stores.items() if len(store.requests) == before[name]}

        cached()
        assert cached() == set(names)
        cache.forget("dir")
        assert cached() == {"directory", LONG, LONG + "/below", "else"}
        cache.forget("dir", whole=False)
        assert cached() == {LONG, LONG + "/below", "else"}
        cache.forget(LONG)
        assert not cached() & {LONG, LONG + "/below"}
        cache.discard("else")
        cache.discard("never seen")
        assert "else" not in cached()

    def test_drop_caches_drops_theirs_too(self, make_cache):
        cache = make_cache("1MiB")
        for number in range(10):
            read(cache, Store(bytes(PAGE), key=str(number)))
        park(cache)
        assert cache.drop_caches() == 10
        assert cache.segment.counters()["nr_file_pages"] == 0
        assert read(cache, Store(bytes(PAGE), key="3")) == bytes(PAGE)

    def test_close_gives_up_their_pages(self):
        cache = pagecache.PageCache("1MiB")
        for number in range(10):
            read(cache, Store(bytes(PAGE), key=str(number)))
        segment = cache.segment
        cache.close()
        counters = segment.counters()
        assert counters["nr_file_pages"] == counters["nr_objects_known"] == counters["nr_mappings"] == 0
        segment.check()

    def test_two_stores_of_one_key_with_other_sizes_at_once(self, make_cache):
        cache = make_cache("1MiB")
        versions = [(b"a" * 3000, "v1"), (b"b" * 9000, "v2"), (b"c" * 10, "v3")]

        def user(data, validator):
            for _ in range(40):
                try:
                    assert read(cache, Store(data, key="key", validator=validator)) == data
                except OSError as error:
                    assert error.errno == errno.ESTALE

        Crew(*(lambda version=version: user(*version) for version in versions)).join_well()


class TestCost:
    def test_an_object_that_nobody_has_open_takes_640_bytes_of_the_segment_and_nothing_else(self, make_cache):
        cache, nr = make_cache("64MiB"), 3000
        stores = (Store(b"x" * 100, key=f"dir/object {number}") for number in range(2 * nr))
        for _, store in zip(range(nr), stores, strict=False):
            read(cache, store)
        park(cache)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        sizes = cache.segment.sizes()
        for store in stores:
            read(cache, store)
        del store
        park(cache)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 60 * nr, f"{grown / nr:.0f} bytes of Python for each object"
        used = cache.segment.sizes()
        beyond = sum(used[name][2] - sizes[name][2] for name in ("mappings", "directory", "nodes"))
        assert beyond <= 640 * nr
        assert len(list(cache._inodes)) < 5

    def test_counts_of_engine_steps_do_not_grow_with_the_number_of_objects(self, make_cache):
        cache = make_cache("4MiB")
        for number in range(5000):
            read(cache, Store(b"x", key=str(number)))
        sizes = cache.segment.sizes()
        assert sizes["mappings"][2] // sizes["mappings"][0] <= 1024 + 16 + 1024 // 64 + 8
        assert cache.segment.counters()["nr_objects_known"] == sizes["mappings"][2] // sizes["mappings"][0]


class TestRaces:
    @pytest.mark.parametrize("frames", [2, 3, 64])
    def test_open_against_forget_against_truncate(self, frames, rng):
        """Reads get bytes of the object, whatever becomes of the others meanwhile."""
        with checked_cache(frames, dirty_expire_s=3600) as cache, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stores = [WritableStore(bytes([65 + number]) * (PAGE + 100), key=f"o{number}") for number in range(6)]
            seeds = [rng.random() for _ in range(6)]
            ends = threading.Event()

            def user(seed):
                random_ = random.Random(seed)
                for _ in range(120):
                    number = random_.randrange(6)
                    try:
                        with cache.open(stores[number], random_.choice(["rb", "rb", "r+b"])) as file:
                            data = file.pread(2 * PAGE, 0)
                            assert set(data) <= {65 + number, 0}, (number, set(data))
                            if file.may_write:
                                size = random_.choice([0, 10, PAGE + 100])
                                file.truncate(size)
                                file.pwrite(bytes([65 + number]) * 100, 0)
                    except pagecache.CacheFullError:
                        pass
                    except OSError as error:
                        assert error.errno in (errno.ESTALE, errno.ENOENT, errno.EBUSY), error

            def forgetter(seed):
                random_ = random.Random(seed)
                while not ends.is_set():
                    cache.forget(f"o{random_.randrange(6)}")
                    cache.segment.reclaim(2)
                    cache.drop_caches()
                    list(cache._inodes.idle())
                    ends.wait(0.001)

            crew = Crew(lambda: forgetter(seeds[4]), lambda: forgetter(seeds[5]))
            Crew(*(lambda seed=seed: user(seed) for seed in seeds[:4])).join_well()
            ends.set()
            crew.join_well()
            cache.sync()


class Objects(RuleBasedStateMachine):
    """A dictionary of stores beside the cache."""

    frames = 64
    keys = st.sampled_from(["", "a", "dir/b", LONG, LONG + "x"])

    def __init__(self):
        super().__init__()
        inode_table.RECENT_MAX = 0
        self.cache = pagecache.PageCache(self.frames * PAGE, dirty_expire_s=3600)
        self.contents = {}
        self.open_files = []

    def store(self, key):
        data, validator = self.contents.setdefault(key, (key.encode()[:5] * 700, 0))
        return Store(data, key=key, validator=f"v{validator}")

    @rule(key=keys)
    def read(self, key):
        if not any(file.mapping.key == key for file, _ in self.open_files):
            assert read(self.cache, self.store(key)) == self.contents[key][0]

    @rule(key=keys)
    def open(self, key):
        if len(self.open_files) < 3 and not any(file.mapping.key == key for file, _ in self.open_files):
            self.open_files.append((self.cache.open(self.store(key)), self.contents[key][0]))

    @rule()
    def close(self):
        if self.open_files:
            file, data = self.open_files.pop(0)
            assert file.pread(1 << 20, 0) == data
            file.close()

    @rule(key=keys, size=st.integers(0, 3 * PAGE))
    def replace(self, key, size):
        if not any(file.mapping.key == key for file, _ in self.open_files):
            version = self.contents.get(key, (b"", 0))[1] + 1
            self.contents[key] = (bytes([version % 251]) * size, version)

    @rule(key=keys)
    def forget(self, key):
        self.cache.forget(key)

    @rule(nr=st.integers(1, 8))
    def evict(self, nr):
        self.cache.segment.reclaim(nr)

    @rule()
    def drop(self):
        self.cache.drop_caches()

    @invariant()
    def holds(self):
        self.cache.check()

    def teardown(self):
        for file, _ in self.open_files:
            file.close()
        self.cache.close()


@pytest.mark.parametrize("frames", [1, 2, 3, 64])
def test_are_as_a_dictionary_of_stores_is(frames):
    machine = type(f"Objects{frames}", (Objects,), {"frames": frames})
    machine.TestCase.settings = settings(
        max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine.TestCase("runTest").runTest()
