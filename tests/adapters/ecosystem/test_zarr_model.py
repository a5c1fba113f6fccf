"""Random use of Zarr stores that come and go, beside a model of what each of them may see; Zarr's own state machines."""

import errno
import gc
import pickle

import pytest
from support import STRESS

import pagecache

zarr = pytest.importorskip("zarr", minversion="3")
pytest.importorskip("aiohttp")
obstore = pytest.importorskip("obstore")

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest  # noqa: E402
from zarr.core.buffer import default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore  # noqa: E402

from pagecache.adapters.zarr import PageCacheStore  # noqa: E402

PROTOTYPE = default_buffer_prototype()
KEYS = [f"c/{number}" for number in range(4)]
RECHECKS = ["open", True, False, 1e9]


def buffer(data):
    return PROTOTYPE.buffer.from_bytes(data)


def of_fsspec(server, root):
    return FsspecStore.from_url(server.base, read_only=True)


def of_obstore(server, root):
    return ObjectStore(obstore.store.HTTPStore.from_url(server.base, client_options={"allow_http": True}), read_only=True)


def of_files(server, root):
    return LocalStore(root)


class Model:
    """Stores over one place, what they know of its keys, and what is there."""

    def __init__(self, make_store, server, root, cache, rng):
        self._make_store, self._server, self._root = make_store, server, root
        self._cache, self._rng = cache, rng
        self._there = {}
        self._known = {}  # key: (value, when it was compared)
        self._step = 0
        self._nr_versions = 0
        self._stores = []

    def run(self, nr_steps):
        for _ in range(3):
            self.make()
        for _ in range(nr_steps):
            self._step += 1
            self._rng.choices([self.read, self.put, self.make, self.drop, self.write], [60, 10, 6, 6, 6])[0]()

    def make(self):
        """Make a store, or unpickle one."""
        if self._stores and self._rng.random() < 0.3:
            store, recheck, opened = self._rng.choice(self._stores)
            form = (
                pickle.loads(pickle.dumps(store))
                if self._cache is pagecache.default_cache()
                else store.with_read_only(True)
            )
            self._stores.append((form, recheck, opened))
        else:
            recheck = self._rng.choice(RECHECKS)
            store = PageCacheStore(self._make_store(self._server, self._root), self._cache, recheck=recheck)
            self._stores.append((store, recheck, self._step))
        self._step += 1

    def drop(self):
        """Let some stores go, or all."""
        self._stores = self._rng.sample(self._stores, self._rng.randrange(len(self._stores) + 1))
        if self._rng.random() < 0.3:
            gc.collect()
        if not self._stores:
            self.make()

    def _new_value(self):
        self._nr_versions += 1
        nbytes = self._rng.choice([0, 1, 100, 4096, 10_000, 70_000])
        return bytes([self._nr_versions % 251]) * nbytes

    def put(self):
        """Change a value behind the stores' backs."""
        key, value = self._rng.choice(KEYS), self._new_value()
        if self._rng.random() < 0.2:
            self._there.pop(key, None)
            self._server.delete(key)
            (self._root / key).unlink(missing_ok=True)
            return
        self._there[key] = value
        self._server.put(key, value)
        fresh = self._root / "fresh"
        fresh.write_bytes(value)
        (self._root / "c").mkdir(exist_ok=True)
        fresh.replace(self._root / key)

    def write(self):
        """Change a value through a store, if it can be written; all that share with it see that."""
        store = self._rng.choice(self._stores)[0]
        if store.read_only:
            return
        key, value = self._rng.choice(KEYS), self._new_value()
        self._known.pop(key, None)
        if self._rng.random() < 0.3:
            self._there.pop(key, None)
            sync(store.delete(key))
        else:
            self._there[key] = value
            sync(store.set(key, buffer(value)))

    def read(self):
        """Read a part of a value by a store."""
        store, recheck, opened = self._rng.choice(self._stores)
        key = self._rng.choice(KEYS)
        not_before = {"open": opened, True: self._step, False: 0, 1e9: 0}[recheck]
        is_known = key in self._known and self._known[key][1] >= not_before
        if not is_known:
            self._known[key] = (self._there.get(key), self._step)
        expected = self._known[key][0]
        wanted = self._range(len(expected or b""))
        try:
            found = self._get(store, key, wanted)
        except OSError as error:
            assert error.errno == errno.ESTALE, error
            assert is_known and expected != self._there.get(key), "nothing has changed"
            del self._known[key]
            return
        assert found == (None if expected is None else cut(expected, wanted)), (key, wanted, recheck)

    def _range(self, size):
        start = self._rng.randrange(size + 1)
        length = self._rng.choice([1, 50, 5000, 50_000])
        if size == 0:
            return None
        choices = [None, SuffixByteRequest(length)]
        if start < size:
            choices += [OffsetByteRequest(start), RangeByteRequest(start, start + length)]
        return self._rng.choice(choices)

    def _get(self, store, key, wanted):
        if self._rng.random() < 0.3:
            found = store.get_sync(key, byte_range=wanted)
        else:
            found = sync(store.get(key, PROTOTYPE, wanted))
        return None if found is None else found.to_bytes()


def cut(data, wanted):
    if isinstance(wanted, RangeByteRequest):
        return data[wanted.start : wanted.end]
    if isinstance(wanted, OffsetByteRequest):
        return data[wanted.offset :]
    return data[max(0, len(data) - wanted.suffix) :] if isinstance(wanted, SuffixByteRequest) else data


@pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 4096])
@pytest.mark.parametrize("make_store", [of_fsspec, of_obstore, of_files])
def test_stores_that_come_and_go(server, make_cache, tmp_path, rng, make_store, nr_frames):
    cache = make_cache(nr_frames * 4096)
    Model(make_store, server, tmp_path, cache, rng).run(3000 if STRESS else 150)


class Wrapped(WrapperStore):
    """A wrapper of which nothing is known."""


MACHINES = {
    "memory": lambda root: MemoryStore(),
    "wrapped": lambda root: Wrapped(MemoryStore()),
    "obstore": lambda root: ObjectStore(obstore.store.MemoryStore()),
}


@pytest.mark.parametrize("machine", ["ZarrStoreStateMachine", "ZarrHierarchyStateMachine"])
@pytest.mark.parametrize("inner", MACHINES)
def test_zarrs_state_machines(make_cache, tmp_path, inner, machine):
    hypothesis = pytest.importorskip("hypothesis")
    stateful = pytest.importorskip("zarr.testing.stateful")
    from hypothesis.stateful import run_state_machine_as_test

    store = PageCacheStore(MACHINES[inner](tmp_path), make_cache("256KiB"))
    settings = hypothesis.settings(
        max_examples=200 if STRESS else 4,
        stateful_step_count=50 if STRESS else 15,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(lambda: getattr(stateful, machine)(store), settings=settings)
