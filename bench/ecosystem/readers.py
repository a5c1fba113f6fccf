"""What is done with the files, and through what: each way to read gives the same answer, or it is wrong.

A way is made once, for both passes, and called once a pass; it opens what it reads anew each time.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import numpy

import pagecache
import pagecache.adapters.fsspec
from bench.ecosystem.samples import TIFF_TILE, ZARR_SHAPE
from pagecache.adapters.objects import Objects
from pagecache.stores.fsspec import FsspecStore

FSSPEC_CACHES = ["none", "bytes", "readahead", "blockcache", "background", "all"]
CACHE_SIZE = "1GiB"
WHOLE = "512MiB"  # for those who ask for whole objects
RECHECK_S = 600  # objects are taken to be the same for so long, as fsspec's own caches do for ever
Pass = Callable[[], Any]
Way = tuple[str, Callable[[], tuple[Pass, Callable[[], None]]]]


def openers(server: Any, name: str) -> Iterator[tuple[str, Callable[[], tuple[Callable[[], Any], Callable[[], None]]]]]:
    """Yield (name, make), where make() returns a function that opens the object, and one that ends the way."""
    for kind in FSSPEC_CACHES:
        yield f"fsspec {kind}", lambda kind=kind: opening_with(server.files(), server.path(name), cache_type=kind)
    for protocol in ("blockcache", "filecache"):
        yield f"fsspec {protocol}::", lambda protocol=protocol: opening_with(server.chained(protocol), server.path(name))
    yield "pagecache::", lambda: opening_chained(server, name)
    yield "pagecache::, whole_up_to", lambda: opening_chained(server, name, whole_up_to=WHOLE)
    yield "pagecache, obstore", lambda: opening_obstore(server, name)
    yield "pagecache, obstore, whole_up_to", lambda: opening_obstore(server, name, whole_up_to=WHOLE)


def opening_with(files: Any, path: str, **options: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Return how to open the object through a file system of fsspec, and how to end that."""
    return lambda: files.open(path, **options), lambda: None


def opening_chained(server: Any, name: str, **options: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Return how to open the object through `pagecache::` with a new cache, and how to end that."""
    cache = pagecache.PageCache(CACHE_SIZE)
    files = server.chained("pagecache", recheck=RECHECK_S, **options)

    def open_file() -> Any:
        with pagecache.using(cache):
            return files.open(server.path(name))

    def end() -> None:
        files.invalidate_cache()
        cache.close()

    return open_file, end


def opening_obstore(server: Any, name: str, **options: Any) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Return how to open the object through obstore with a new cache, and how to end that."""
    cache = pagecache.PageCache(CACHE_SIZE)
    objects = Objects(cache, lambda path: pagecache.ObspecStore(server.obstore(), path, **options))

    def end() -> None:
        objects.close()
        cache.close()

    return lambda: objects.open(name), end


def opened(server: Any, path: str, **options: Any) -> Any:
    """Return the store of an object through fsspec."""
    url, storage_options = server.address(path)
    files, path = fsspec.core.url_to_fs(url, **storage_options)
    return FsspecStore(files, path, **options)


def with_files(server: Any, path: str, read: Callable[[Any], Any]) -> Iterator[Way]:
    """Yield the ways to do something with a file object."""
    for name, make in openers(server, path):

        def begin(make=make):
            open_file, end = make()

            def run():
                with open_file() as file:
                    return read(file)

            return run, end

        yield name, begin


# -- pyarrow -----------------------------------------------------------------------------------------------------------

COLUMNS = ["c2", "c5", "c9"]


def total(table: Any) -> float:
    """Return a number that depends on all values."""
    return round(sum(float(table[name].to_numpy().sum()) for name in COLUMNS), 3)


def read_parquet(file: Any) -> float:
    """Read three columns."""
    import pyarrow.parquet as pq

    return total(pq.read_table(file, columns=COLUMNS))


def read_parquet_prefetched(file: Any) -> float:
    """Read three columns that are asked for all at once."""
    from pagecache.adapters.arrow import prefetch_parquet

    prefetch_parquet(file, COLUMNS)
    return read_parquet(file)


def parquet_ways(server: Any) -> Iterator[Way]:
    """pyarrow: 3 columns of a 200 MB Parquet file."""
    yield from with_files(server, "table.parquet", read_parquet)
    for name, begin in with_files(server, "table.parquet", read_parquet_prefetched):
        if name.startswith("pagecache") and "whole" not in name:
            yield f"{name}, prefetch_parquet", begin


# -- h5py --------------------------------------------------------------------------------------------------------------


def walk_hdf5(file: Any) -> float:
    """Read every data set and its attributes."""
    import h5py

    sums: list[float] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            sums.append(float(item[...].sum()) + int(item.attrs["number"]))

    with h5py.File(file, "r") as opened:
        opened.visititems(visit)
    return round(sum(sums), 3)


def hdf5_ways(server: Any) -> Iterator[Way]:
    """h5py: walking a file of 2000 small data sets."""
    yield from with_files(server, "many.h5", walk_hdf5)


# -- zarr --------------------------------------------------------------------------------------------------------------


def zarr_ways(server: Any) -> Iterator[Way]:
    """zarr: 12 slices of a sharded array."""
    import zarr
    from zarr.experimental.cache_store import CacheStore
    from zarr.storage import FsspecStore as ZarrFsspecStore
    from zarr.storage import MemoryStore, ObjectStore

    from pagecache.adapters.zarr import PageCacheStore

    url, options = server.address("cube.zarr")

    def of_fsspec() -> Any:
        return ZarrFsspecStore.from_url(url, read_only=True, storage_options=options)

    def of_obstore() -> Any:
        return ObjectStore(server.obstore("cube.zarr"), read_only=True)

    def slices(store: Any) -> int:
        array = zarr.open_group(store, mode="r", use_consolidated=True)["cube"]
        random = numpy.random.default_rng(5)
        found, sizes = 0, (1, 300, 300)
        for _ in range(12):
            spare = [side - size for side, size in zip(ZARR_SHAPE, sizes, strict=True)]
            plane, row, column = (int(random.integers(0, most)) for most in spare)
            found += int(array[plane, row : row + 300, column : column + 300].astype("i8").sum())
        return found

    for kind, make in (("fsspec", of_fsspec), ("obstore", of_obstore)):
        for name, wrap in (
            ("plain", lambda store: store),
            ("zarr CacheStore", lambda store: CacheStore(store, cache_store=MemoryStore())),
            ("pagecache", None),
        ):

            def begin(make=make, wrap=wrap):
                cache = pagecache.PageCache(CACHE_SIZE)
                store = PageCacheStore(make(), cache) if wrap is None else wrap(make())
                return lambda: slices(store), cache.close

            yield f"{name} on {kind}", begin


# -- DuckDB ------------------------------------------------------------------------------------------------------------


def duckdb_ways(server: Any) -> Iterator[Way]:
    """DuckDB: one query over two columns of a 200 MB Parquet file."""
    import duckdb

    from pagecache.adapters.duckdb import register

    def query(connection: Any, name: str) -> float:
        return round(connection.execute(f"SELECT sum(c3) FROM '{name}' WHERE id % 3 = 0").fetchone()[0], 3)

    from fsspec.implementations.http import HTTPFileSystem

    class Dated(HTTPFileSystem):
        """DuckDB asks for times of modification, which fsspec's HTTP files have not."""

        def modified(self, path: str) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(0, datetime.UTC)

    url, options = server.address("table.parquet")

    def begin_plain(kind: str) -> Any:
        connection = duckdb.connect()
        is_http = url.startswith("http")
        connection.register_filesystem(Dated(cache_type=kind, **options) if is_http else server.files(cache_type=kind))
        return lambda: query(connection, url), connection.close

    def begin_ours(**more: Any) -> Any:
        connection, cache = duckdb.connect(), pagecache.PageCache(CACHE_SIZE)
        files = register(connection, cache, lambda path: opened(server, path, **more))

        def end() -> None:
            connection.close()
            files.close()
            cache.close()

        return lambda: query(connection, "pagecache://table.parquet"), end

    for kind in FSSPEC_CACHES:
        yield f"fsspec {kind}", lambda kind=kind: begin_plain(kind)
    yield "pagecache", begin_ours
    yield "pagecache, whole_up_to", lambda: begin_ours(whole_up_to=WHOLE)


# -- rasterio ----------------------------------------------------------------------------------------------------------


def read_tiles(path: str, **options: Any) -> int:
    """Read 16 tiles here and there."""
    import rasterio
    from rasterio.windows import Window

    random = numpy.random.default_rng(6)
    with rasterio.open(path, **options) as raster:
        found = 0
        for _ in range(16):
            row, column = (int(random.integers(0, 16)) * TIFF_TILE for _ in range(2))
            found += int(raster.read(1, window=Window(column, row, TIFF_TILE, TIFF_TILE)).astype("i8").sum())
    return found


def rasterio_ways(server: Any) -> Iterator[Way]:
    """rasterio: 16 tiles of a GeoTIFF."""
    import rasterio

    from pagecache.adapters.rasterio import PageCacheOpener

    def begin_gdal() -> Any:
        path, options = server.gdal("image.tif")
        os.environ.update(options)  # keys are not for rasterio.Env

        def run() -> int:
            with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
                return read_tiles(path)

        return run, lambda: None

    def begin_fsspec(kind: str) -> Any:
        files = server.files(cache_type=kind)
        return lambda: read_tiles("image.tif", opener=lambda path, mode="rb": files.open(server.path(path))), lambda: None

    def begin_ours(**more: Any) -> Any:
        cache = pagecache.PageCache(CACHE_SIZE)
        opener = PageCacheOpener(cache, lambda path: opened(server, path, **more))

        def end() -> None:
            opener.close()
            cache.close()

        return lambda: read_tiles("image.tif", opener=opener), end

    yield "GDAL", begin_gdal
    for kind in FSSPEC_CACHES:
        yield f"fsspec {kind}", lambda kind=kind: begin_fsspec(kind)
    yield "pagecache", begin_ours
    yield "pagecache, whole_up_to", lambda: begin_ours(whole_up_to=WHOLE)


WORKS = {
    "parquet": parquet_ways, "zarr": zarr_ways, "hdf5": hdf5_ways, "duckdb": duckdb_ways, "rasterio": rasterio_ways,
}
S3_WORKS = {f"s3-{work}": ways for work, ways in WORKS.items()}
