"""Backing stores: where the bytes of an object come from."""

from pagecache.stores.base import BackingStore, StoreHints, hints_of
from pagecache.stores.file import FileStore
from pagecache.stores.memory import MemoryStore

__all__ = ["BackingStore", "FileStore", "MemoryStore", "StoreHints", "hints_of"]
