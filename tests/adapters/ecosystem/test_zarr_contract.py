"""Zarr's own tests of stores, on a store read through a page cache."""

import pathlib

import pytest

zarr = pytest.importorskip("zarr", minversion="3")
testing = pytest.importorskip("zarr.testing.store")

from zarr.core.buffer import cpu, default_buffer_prototype  # noqa: E402
from zarr.core.sync import sync  # noqa: E402
from zarr.storage import FsspecStore, LocalStore, MemoryStore, WrapperStore, ZipStore  # noqa: E402

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


class TestOnFsspecStore(Contract):
    """Over a file system without coroutines, which Zarr wraps: two wrappers of one are not equal."""

    test_serializable_store = None

    @pytest.fixture
    def store_kwargs(self, tmp_path):
        return {"store": FsspecStore(self.fs(), path=str(tmp_path))}

    @pytest.fixture
    def open_kwargs(self, tmp_path):
        return {"store_cls": FsspecStore, "fs": self.fs(), "path": str(tmp_path)}

    @staticmethod
    def fs():
        fsspec = pytest.importorskip("fsspec", minversion="2024.12")
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        return AsyncFileSystemWrapper(fsspec.filesystem("file", auto_mkdir=True), asynchronous=True)

    async def set(self, store, key, value):
        path = pathlib.Path(store._store.path) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value.to_bytes())

    async def get(self, store, key):
        return self.buffer_cls.from_bytes((pathlib.Path(store._store.path) / key).read_bytes())


class Wrapped(WrapperStore):
    """A wrapper of which nothing is known."""


class TestOnUnknownWrapper(TestOnMemoryStore):
    """The tests run on Zarr's event loop, which an unknown store may need for what others do without one."""

    test_store_open_read_only = test_read_only_store_raises = test_with_read_only_store = None  # it takes no read_only
    test_sync_async_set_get_parity = test_get_sync_byte_range_parity = test_delete_sync_visible_to_async_get = None

    @pytest.fixture
    def store_kwargs(self):
        return {"store": Wrapped(MemoryStore())}

    @pytest.fixture
    def open_kwargs(self):
        return {"store_cls": Wrapped, "store": MemoryStore()}

    async def set(self, store, key, value):
        store._store._store._store_dict[key] = value

    async def get(self, store, key):
        return store._store._store._store_dict[key]

    def test_store_eq(self, store):
        assert store == store


class TestOnZipStore(Contract):
    test_with_read_only_store = None  # an archive has one form

    @pytest.fixture
    def store_kwargs(self, tmp_path):
        return {"store": ZipStore(tmp_path / "archive.zip", mode="w")}

    @pytest.fixture
    def open_kwargs(self, tmp_path):
        return {"store_cls": ZipStore, "path": tmp_path / "archive.zip", "mode": "w"}

    async def set(self, store, key, value):
        return store._store._set(key, value)

    async def get(self, store, key):
        return store._store._get(key, prototype=default_buffer_prototype())

    def test_store_supports_writes(self, store):
        assert store.supports_writes
