"""The real files that the libraries read side by side, made by those libraries, and a server of them in a process."""

import multiprocessing
import sys
from pathlib import Path

import numpy

TESTS = Path(__file__).resolve().parents[2] / "tests" / "ecosystem"
PARQUET_ROWS, PARQUET_COLUMNS, ROW_GROUP_ROWS = 2_200_000, 12, 220_000
ZARR_SHAPE, ZARR_SHARD, ZARR_CHUNK = (64, 1024, 1024), (16, 1024, 1024), (4, 128, 128)
HDF5_SETS = 2000
TIFF_SIDE, TIFF_TILE = 4096, 256


def make_parquet(root: Path) -> None:
    """A Parquet file of 200 MB: random doubles, which do not compress."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = numpy.random.default_rng(1)
    columns = {f"c{number}": random.random(PARQUET_ROWS) for number in range(PARQUET_COLUMNS - 1)}
    table = pa.table({"id": numpy.arange(PARQUET_ROWS), **columns})
    pq.write_table(table, root / "table.parquet", row_group_size=ROW_GROUP_ROWS, use_dictionary=False)


def make_zarr(root: Path) -> None:
    """A sharded Zarr array in a consolidated group."""
    import zarr

    group = zarr.open_group(str(root / "cube.zarr"), mode="w")
    values = numpy.random.default_rng(2).integers(0, 4000, ZARR_SHAPE, dtype="i2")
    group.create_array("cube", shape=ZARR_SHAPE, shards=ZARR_SHARD, chunks=ZARR_CHUNK, dtype="i2")[...] = values
    zarr.consolidate_metadata(group.store)


def make_hdf5(root: Path) -> None:
    """An HDF5 file of many small data sets with attributes."""
    import h5py

    random = numpy.random.default_rng(3)
    with h5py.File(root / "many.h5", "w") as file:
        for number in range(HDF5_SETS):
            made = file.create_dataset(f"g{number % 20}/d{number}", data=random.random(int(random.integers(50, 3000))))
            made.attrs["number"] = number


def make_tiff(root: Path) -> None:
    """A tiled, compressed GeoTIFF of three bands."""
    import rasterio

    profile = {"driver": "GTiff", "width": TIFF_SIDE, "height": TIFF_SIDE, "count": 3, "dtype": "uint8", "tiled": True}
    profile |= {"blockxsize": TIFF_TILE, "blockysize": TIFF_TILE, "compress": "deflate", "interleave": "pixel"}
    profile |= {"crs": "EPSG:4326", "transform": rasterio.transform.from_origin(10, 50, 0.001, 0.001)}
    with rasterio.open(root / "image.tif", "w", **profile) as raster:
        raster.write(numpy.random.default_rng(4).integers(0, 200, (3, TIFF_SIDE, TIFF_SIDE), dtype="uint8"))


MAKERS = {"table.parquet": make_parquet, "cube.zarr": make_zarr, "many.h5": make_hdf5, "image.tif": make_tiff}


def make_all(root: Path) -> None:
    """Make the files that are not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        if not (root / name).exists():
            print(f"Making {name}", file=sys.stderr)
            make(root)


def _serve(root: str, latency_s: float, pipe) -> None:
    sys.path.insert(0, str(TESTS))
    from http_objects import ObjectServer

    with ObjectServer(latency_s) as server:
        server.put_tree(root)
        pipe.send(server.base)
        while pipe.recv() == "take":
            pipe.send(server.counts.take())


class RemoteServer:
    """A server of a directory's files in a process of its own, so that it takes none of the readers' time."""

    def __init__(self, root: Path, latency_s: float):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(str(root), latency_s, theirs), daemon=True)
        self._process.start()
        self.base = self._pipe.recv()

    def url(self, path: str) -> str:
        """Return the address of an object."""
        return f"{self.base}/{path}"

    def take(self) -> tuple[int, int]:
        """Return (requests, bytes) since the last time."""
        self._pipe.send("take")
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send("end")
        self._process.join()
