"""Runs the Python blocks of one page in order, in the working directory: `python docs_runner.py PAGE`.

What a page names is there: files of these names in the directory, at https://data.example.org/ (a server of this process)
and in s3://bucket/ (moto's server), and a server of values at valkey://values.example.org:6379. A block may be read by
itself, so one that follows a `cache.close()` has a new cache, and an elided `readv` fills nothing. Exit status 77, with the
reason, says that a library is missing.
"""

import ast
import asyncio
import contextlib
import inspect
import os
import re
import sys
from pathlib import Path

from support.http_server import ObjectServer

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "https://data.example.org/"
VALUES = "valkey://values.example.org:6379"
ELIDED = ("        ...\n", "        return sum(map(len, buffers))\n")
MISSING = 77
ROWS = 50_000


def blocks_of(text):
    """Return (first line, source) of the Python blocks of a page."""
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in FENCE.finditer(text)]


def make_bytes(path):
    path.write_bytes(b"".join(number.to_bytes(8, "little") for number in range(125_000)))


def make_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": range(ROWS), "value": [n * 0.5 for n in range(ROWS)], "text": ["text"] * ROWS})
    pq.write_table(table, path, row_group_size=10_000)


def make_csv(path):
    path.write_text("id,value\n" + "".join(f"{number},{number * 0.5}\n" for number in range(1000)))


def make_zarr(path):
    import numpy
    import zarr

    data = numpy.arange(10_000).reshape(100, 100)
    zarr.create_array(path, data=data, chunks=(10, 10), shards=(50, 50))


def make_hdf5(path):
    import h5py
    import numpy

    with h5py.File(path, "w") as file:
        for number in range(20):
            file[f"set{number}"] = numpy.full(1000, number)


def data_set():
    import numpy
    import xarray

    return xarray.Dataset({"temperature": (("time", "x"), numpy.arange(4000.0).reshape(4, 1000))})


def make_netcdf(path):
    data_set().to_netcdf(path, engine="h5netcdf")


def make_xarray_zarr(path):
    data_set().to_zarr(path, consolidated=True)


def make_tiff(path):
    import numpy
    import rasterio

    pixels = numpy.arange(512 * 512, dtype="u4").reshape(512, 512).astype("u2")
    profile = {"driver": "GTiff", "width": 512, "height": 512, "count": 1, "dtype": "uint16", "tiled": True,
               "blockxsize": 256, "blockysize": 256}  # fmt: skip
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels, 1)


def make_sqlite(path):
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE items(id INTEGER PRIMARY KEY, name, price)")
        database.executemany("INSERT INTO items VALUES(?, ?, ?)", ((n, f"item {n}", n * 0.5) for n in range(5000)))
    database.close()


def make_npz(path):
    import numpy

    numpy.savez(path, first=numpy.arange(1000), second=numpy.ones((100, 100)))


def make_zip(path):
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"member-{number}.txt", f"text {number} " * 1000)


def make_tar(path):
    import io
    import tarfile

    with tarfile.open(path, "w") as archive:
        for number in range(20):
            data = f"text {number} ".encode() * 1000
            entry = tarfile.TarInfo(f"member-{number}.txt")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def make_json_lines(path):
    path.write_text("".join(f'{{"id": {number}, "value": {number * 0.5}}}\n' for number in range(2000)))


def make_safetensors(path):
    import numpy
    import safetensors.numpy

    tensors = {"first": numpy.arange(1000.0), "second": numpy.arange(6000, dtype="f4").reshape(60, 100)}
    safetensors.numpy.save_file(tensors, str(path))


SAMPLES = {
    "data.bin": make_bytes, "table.parquet": make_parquet, "table.csv": make_csv, "array.zarr": make_zarr,
    "data.h5": make_hdf5, "data.nc": make_netcdf, "data.zarr": make_xarray_zarr, "image.tif": make_tiff,
    "data.db": make_sqlite, "arrays.npz": make_npz, "archive.zip": make_zip, "archive.tar": make_tar,
    "lines.jsonl": make_json_lines, "model.safetensors": make_safetensors,
}  # fmt: skip


def put_samples(text, server):
    """Make what a page names, here and on the server."""
    for name, make in SAMPLES.items():
        if name in text:
            make(Path(name))
            for path in [Path(name), *Path(name).rglob("*")]:
                if path.is_file():
                    server.put(str(path), path.read_bytes())


def start_s3():
    """Start a server of the S3 interface with a bucket of what is in the directory; libraries find it by environment."""
    import s3fs
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{1}".format(*server.get_host_and_port()),
    }  # fmt: skip
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    for path in Path().rglob("*"):
        if path.is_file():
            system.put_file(str(path), f"bucket/{path}")
    return server


def start_values():
    """Start a server of values. Raises ModuleNotFoundError if there is no program."""
    from support.value_servers import ValueServer, valkey_program

    if valkey_program() is None:
        raise ModuleNotFoundError("no server", name="valkey-server")
    return ValueServer()


def run_block(source, page, line, namespace):
    """Run one block in the namespace of its page; its lines are those of the page."""
    tree = ast.increment_lineno(ast.parse(source, page), line)
    code = compile(tree, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, namespace))
    else:
        exec(code, namespace)


def local(source, address, values):
    """Return a block with the addresses of the servers in place of those of the pages."""
    source = source.replace(*ELIDED).replace(ADDRESS, address).replace(VALUES, values)
    return re.sub(r"""(filesystem\(|target_protocol=|\{)"https\"""", r'\1"http"', source)


def run_page(page, text):
    """Run all blocks of a page."""
    import pagecache.adapters  # what an installed package's entry point does
    from pagecache.adapters import fsspec as _  # noqa: F401

    namespace = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ObjectServer())
        values = stack.enter_context(start_values()).url if VALUES in text else VALUES
        put_samples(text, server)
        s3 = start_s3() if any("s3://bucket/data" in source for _, source in blocks_of(text)) else None
        try:
            for line, source in blocks_of(text):
                if "cache" in namespace and namespace["cache"].closed:
                    namespace["cache"] = pagecache.PageCache(namespace["cache"].size)
                run_block(local(source, server.url(""), values), page, line, namespace)
        finally:
            if s3 is not None:
                s3.stop()
    cache = namespace.get("cache")
    if cache is not None and not cache.closed:
        cache.check()


def main():
    """Run the page that is named."""
    page = sys.argv[1]
    try:
        run_page(page, Path(page).read_text())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "pagecache":
            raise
        print(f"{error.name} is not installed", file=sys.stderr)
        sys.exit(MISSING)


if __name__ == "__main__":
    main()
