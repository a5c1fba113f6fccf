"""How an object of Google Cloud Storage is read through gcsfs: as its other asynchronous file systems, but for generations.

gcsfs' own `_info` takes a generation and describes the live object nevertheless; its files read that, too.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from pagecache.options import check_spelling
from pagecache.stores.destination import Destination
from pagecache.stores.fsspec_async import AsyncRanges
from pagecache.stores.fsspec_protocols import AsyncFileSystem, FileSystem, FsspecObject
from pagecache.stores.fsspec_sync import fresh_options
from pagecache.stores.validators import Version


class GcsFileSystem(AsyncFileSystem, Protocol):
    """What is used of gcsfs besides."""

    def split_path(self, path: str) -> tuple[str, str, str | None]: ...

    async def _call(self, method: str, path: str, *args: str, json_out: bool, **options: str) -> Mapping[str, Any]: ...

    def _process_object(self, bucket: str, said: Mapping[str, Any]) -> dict[str, Any]: ...


_Object = FsspecObject[GcsFileSystem]


class GcsRanges(AsyncRanges[GcsFileSystem]):
    """gcsfs: a generation that is asked for by an option is what size and version are asked of, too."""

    def check_options(self, store: _Object) -> None:
        """Check that a generation is called so: gcsfs takes any option, and reads the live object. Raises TypeError."""
        super().check_options(store)
        check_spelling(store.options, ("generation",), (), f"{type(store.fs).__name__}.open")

    @staticmethod
    def reads_ranges(store: FsspecObject[FileSystem]) -> bool:
        """Return True: `_cat_file` takes a generation, though not by name; files of gcsfs read the live object."""
        return True

    def info(self, store: _Object) -> dict[str, Any]:
        """Return what the service says about the object now, or about the generation of the call."""
        generation = store.options.get("generation")
        return super().info(store) if generation is None else store.run(self._generation(store, str(generation)))

    async def _generation(self, store: _Object, generation: str) -> dict[str, Any]:
        fs = store.fs
        bucket, key, _ = fs.split_path(store.path)
        fresh_options(fs, fs._info, store.path)
        said = await fs._call("GET", "b/{}/o/{}", bucket, key, json_out=True, generation=generation)
        return fs._process_object(bucket, said)

    async def _fetch(self, store: _Object, version: Version, start: int, destination: Destination) -> bool:
        await super()._fetch(store, version, start, destination)
        return "generation" in store.options  # the bytes of a generation never change
