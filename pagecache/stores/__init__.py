"""Backing stores: where the bytes of an object come from."""

from pagecache.stores.base import BackingStore, StoreHints, hints_of
from pagecache.stores.file import FileStore
from pagecache.stores.fsspec import FsspecStore
from pagecache.stores.memory import MemoryStore
from pagecache.stores.obspec import ObspecStore

__all__ = ["BackingStore", "FileStore", "FsspecStore", "MemoryStore", "ObspecStore", "StoreHints", "hints_of"]
