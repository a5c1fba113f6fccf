"""How an object of fsspec's ReferenceFileSystem is read: a part of another object, all of one, or bytes that it holds.

Its own `info` states the size of what is written down, which for bytes in base64 is more than there are; it calls all that
it does not know a directory; and the size of a whole object is what the target makes of it, where any failure may be "not
found".  So sizes come from the bytes themselves, and from the target as this cache asks it.
"""

import hashlib
from collections.abc import Callable
from typing import Any, cast

from pagecache.stores.described import Described
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.fsspec_protocols import FsspecObject, ReferenceFileSystem
from pagecache.stores.versioned import VersionedStore


class ReferenceRanges(AsyncRanges[ReferenceFileSystem]):
    """fsspec's ReferenceFileSystem."""

    def describe(self, store: FsspecObject[ReferenceFileSystem]) -> Described:
        """Return what is known of the object now."""
        fs, path = store.fs, store.path
        reference = fs.references.get(path)
        if reference is None:
            return Described(self._info_of_unknown(store))
        if not isinstance(reference, (list, tuple)):
            data = self.cat_whole(store)
            return Described({"size": len(data), "checksum": hashlib.sha256(data).hexdigest()})
        if len(reference) > 1:
            return super().describe(store)
        url = reference[0] if reference[0] is not None else fs.target
        protocol = url.partition("://")[0] if "://" in url else None
        target = cast(Callable[..., VersionedStore], type(store))(fs.fss[protocol], url, recheck="open")
        info: dict[str, Any] = {"size": target.size()}
        if target.validator() is not None:
            info["checksum"] = target.validator()
        target.close()
        return Described(info)

    def _info_of_unknown(self, store: FsspecObject[ReferenceFileSystem]) -> dict[str, Any]:
        """Return what `info` says about a path without a reference: it is a directory if there is something below it.

        Raises FileNotFoundError.
        """
        info = self.info(store)
        if info.get("type") == "directory" and not store.fs.ls(store.path, detail=False):
            raise FileNotFoundError(store.path)
        return info
