"""Zarr's own tests of stores, on a store read through a page cache."""

import pytest

zarr = pytest.importorskip("zarr", minversion="3")
testing = pytest.importorskip("zarr.testing.store")

from zarr.core.buffer import cpu  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import LocalStore, MemoryStore  # noqa: E402

import pagecache  # noqa: E402
from pagecache.adapters.zarr import PageCacheStore  # noqa: E402


@pytest.fixture(autouse=True)
def default(make_cache, monkeypatch):
    """The process's own cache, for what is opened or unpickled without one."""
    cache = make_cache("4MiB")
    monkeypatch.setattr(pagecache.default, "_default", cache)
    return cache


class Contract(testing.StoreTests):
    store_cls = PageCacheStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store(self, open_kwargs):
        return sync(self.store_cls.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs):
        return self.store_cls(**store_kwargs)

    def test_store_supports_writes(self, store):
        assert store.supports_writes

    def test_store_supports_listing(self, store):
        assert store.supports_listing

    def test_store_repr(self, store):
        assert repr(store) == f"PageCacheStore({store._store!r})"
        assert str(store) == f"pagecache-{store._store}"


class TestOnLocalStore(Contract):
    @pytest.fixture
    def store_kwargs(self, tmp_path):
        return {"store": LocalStore(tmp_path)}

    @pytest.fixture
    def open_kwargs(self, tmp_path):
        return {"store_cls": LocalStore, "root": tmp_path}

    async def set(self, store, key, value):
        path = store._store.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.to_bytes())

    async def get(self, store, key):
        return self.buffer_cls.from_bytes((store._store.root / key).read_bytes())


class TestOnMemoryStore(Contract):
    @pytest.fixture
    def store_kwargs(self):
        return {"store": MemoryStore()}

    @pytest.fixture
    def open_kwargs(self):
        return {"store_cls": MemoryStore}

    async def set(self, store, key, value):
        store._store._store_dict[key] = value

    async def get(self, store, key):
        return store._store._store_dict[key]

    def test_store_eq(self, store, store_kwargs):
        assert store == store
        assert self.store_cls(**store_kwargs) == self.store_cls(**store_kwargs)


class TestOnObjectStore(Contract):
    @pytest.fixture
    def store_kwargs(self, tmp_path):
        obstore = pytest.importorskip("obstore")
        from zarr.storage import ObjectStore

        return {"store": ObjectStore(obstore.store.LocalStore(str(tmp_path)))}

    @pytest.fixture
    def open_kwargs(self, store_kwargs):
        return {"store_cls": type(store_kwargs["store"]), "store": store_kwargs["store"].store}

    async def set(self, store, key, value):
        import obstore

        obstore.put(store._store.store, key, value.to_bytes())

    async def get(self, store, key):
        import obstore

        return self.buffer_cls.from_bytes(obstore.get(store._store.store, key).bytes())
