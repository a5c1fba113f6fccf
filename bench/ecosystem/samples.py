"""The real files that the libraries read side by side, made by those libraries, and a server of them in a process."""

import logging
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy

PARQUET_ROWS, PARQUET_COLUMNS, ROW_GROUP_ROWS = 2_200_000, 12, 220_000
ZARR_SHAPE, ZARR_SHARD, ZARR_CHUNK = (64, 1024, 1024), (16, 1024, 1024), (4, 128, 128)
HDF5_SETS = 2000
TIFF_SIDE, TIFF_TILE = 4096, 256
BUCKET = "bucket"
S3_SECRETS = ("aws_access_key_id", "aws_secret_access_key")
S3_KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}


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


def _serve_http(root: str, latency_s: float, pipe) -> None:
    from support.http_objects import ObjectServer

    with ObjectServer(latency_s) as server:
        server.put_tree(root)
        pipe.send(server.base)
        while pipe.recv() == "take":
            pipe.send(server.counts.take())


def _serve_s3(root: str, latency_s: float, pipe) -> None:
    """Serve the files by moto, which gets them past HTTP; each request waits before it is answered."""
    import boto3
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer
    from moto.s3.models import s3_backends

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    while server._server is None:
        time.sleep(0.01)
    application, lock, counts = server._server.app, threading.Lock(), [0, 0]

    def counting(environ, start_response):
        time.sleep(latency_s)
        with lock:
            counts[0] += 1
        for piece in application(environ, start_response):
            with lock:
                counts[1] += len(piece) if environ["REQUEST_METHOD"] == "GET" else 0
            yield piece

    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    boto3.client("s3", endpoint_url=address, **S3_KEYS).create_bucket(Bucket=BUCKET)
    backend = next(iter(s3_backends.values()))["aws"]
    for file in sorted(Path(root).rglob("*")):
        if file.is_file():
            backend.put_object(BUCKET, file.relative_to(root).as_posix(), file.read_bytes())
    server._server.app = counting
    pipe.send(address)
    while pipe.recv() == "take":
        with lock:
            taken, counts[:] = tuple(counts), [0, 0]
        pipe.send(taken)
    server.stop()


class RemoteServer:
    """A server of a directory's files in a process of its own, so that it takes none of the readers' time."""

    serve = staticmethod(_serve_http)

    def __init__(self, root: Path, latency_s: float):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self.serve, args=(str(root), latency_s, theirs), daemon=True)
        self._process.start()
        self.base = self._pipe.recv()

    def take(self) -> tuple[int, int]:
        """Return (requests, bytes) since the last time."""
        self._pipe.send("take")
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send("end")
        self._process.join()

    def url(self, path: str) -> str:
        """Return the address of an object."""
        return f"{self.base}/{path}"

    path = url  # what file systems call it

    def files(self, **options: Any) -> Any:
        """Return fsspec's file system for it, which shares nothing with another one."""
        return fsspec.filesystem("http", skip_instance_cache=True, use_listings_cache=False, **options)

    def chained(self, protocol: str, **options: Any) -> Any:
        """Return a file system of fsspec that caches."""
        if protocol != "pagecache":
            options["cache_storage"] = tempfile.mkdtemp()
        target = {"target_protocol": "http", "target_options": {"skip_instance_cache": True}}
        return fsspec.filesystem(protocol, skip_instance_cache=True, **target, **options)

    def address(self, path: str) -> tuple[str, dict[str, Any]]:
        """Return the URL of an object, and the options with which fsspec opens it."""
        return self.url(path), {"skip_instance_cache": True}

    def obstore(self, prefix: str = "") -> Any:
        """Return obstore's store for it, or for what is below a prefix."""
        from obstore.store import HTTPStore

        return HTTPStore.from_url(f"{self.base}/{prefix}", client_options={"allow_http": True})

    def gdal(self, path: str) -> tuple[str, dict[str, str]]:
        """Return what GDAL calls an object, and its options."""
        return f"/vsicurl/{self.url(path)}", {}


class S3Server(RemoteServer):
    """The same, of moto's S3."""

    serve = staticmethod(_serve_s3)

    def path(self, path: str) -> str:
        """Return what file systems call an object."""
        return f"{BUCKET}/{path}"

    def _options(self) -> dict[str, Any]:
        return {"endpoint_url": self.base, "key": S3_KEYS["aws_access_key_id"], "secret": S3_KEYS["aws_secret_access_key"],
                "client_kwargs": {"region_name": S3_KEYS["region_name"]}, "skip_instance_cache": True}  # fmt: skip

    def files(self, **options: Any) -> Any:
        """Return s3fs."""
        cache = {"default_cache_type": options.pop("cache_type")} if "cache_type" in options else {}
        return fsspec.filesystem("s3", use_listings_cache=False, **self._options(), **cache)

    def chained(self, protocol: str, **options: Any) -> Any:
        """Return a file system of fsspec that caches."""
        if protocol != "pagecache":
            options["cache_storage"] = tempfile.mkdtemp()
        target = {"target_protocol": "s3", "target_options": self._options()}
        return fsspec.filesystem(protocol, skip_instance_cache=True, **target, **options)

    def address(self, path: str) -> tuple[str, dict[str, Any]]:
        """Return the URL of an object, and the options with which fsspec opens it."""
        return f"s3://{BUCKET}/{path}", self._options()

    def gdal(self, path: str) -> tuple[str, dict[str, str]]:
        """Return what GDAL calls an object, and its options."""
        options = {"AWS_S3_ENDPOINT": self.base.removeprefix("http://"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"}
        keys = {"AWS_REGION": S3_KEYS["region_name"], **{name.upper(): S3_KEYS[name] for name in S3_SECRETS}}
        return f"/vsis3/{BUCKET}/{path}", {**options, **keys}

    def obstore(self, prefix: str = "") -> Any:
        """Return obstore's store for it, or for what is below a prefix."""
        from obstore.store import S3Store

        return S3Store(BUCKET, prefix=prefix or None, endpoint=self.base, client_options={"allow_http": True},
                       region=S3_KEYS["region_name"], access_key_id=S3_KEYS["aws_access_key_id"],
                       secret_access_key=S3_KEYS["aws_secret_access_key"])  # fmt: skip
