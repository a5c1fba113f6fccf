"""Which source reads a Zarr store."""

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, ObjectStore, ZipStore

from pagecache.adapters.zarr_fsspec import fsspec_source
from pagecache.adapters.zarr_local import LocalSource, MemorySource, ZipSource
from pagecache.adapters.zarr_obstore import ObstoreSource
from pagecache.adapters.zarr_source import StoreSource


def source_of(store: Store) -> StoreSource:
    """Return what reads the values of a Zarr store best. Subclasses that read in a way of their own, and wrappers, are
    asked by their own methods; only a wrapper that is known to change nothing reads what the store below it reads."""
    kind = type(store)
    if isinstance(store, LocalStore) and (kind.get, kind.get_sync) == (LocalStore.get, LocalStore.get_sync):
        return LocalSource(store)
    if isinstance(store, MemoryStore) and (kind.get, kind.get_sync) == (MemoryStore.get, MemoryStore.get_sync):
        return MemorySource(store)
    if isinstance(store, ZipStore) and (kind.get, kind._get) == (ZipStore.get, ZipStore._get):
        return ZipSource(store)
    if kind is ObjectStore:
        return ObstoreSource(store)
    if kind is FsspecStore:
        return fsspec_source(store)
    if kind is LoggingStore:
        below = source_of(store._store)
        return StoreSource(store, None if below.identity is None else f"logged {below.identity}", below.anchor)
    return StoreSource(store)
