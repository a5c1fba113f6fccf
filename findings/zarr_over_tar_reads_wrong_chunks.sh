#!/bin/sh
# Zarr over fsspec's tar file system gives wrong numbers, without an exception.
#
# Versions: zarr 3.1.6, fsspec 2026.9.0, numpy 2.3.5 (CPython 3.11 to 3.13).
#
# `FsspecStore.from_url("tar://...")` puts an AsyncFileSystemWrapper over the synchronous file system, as fsspec offers it for
# that; it calls the file system in threads (`asyncio.to_thread`), and Zarr asks for ten chunks at once. TarFileSystem has one
# file object, whose position the threads move for each other: chunks come with the bytes of others, or with headers of the
# archive. The bytes are as many as they should be, so nothing notices. zarr.config.set({"async.concurrency": 1}) avoids it.
#
# Expected: the numbers that were written.  Seen (CPython 3.11, 2 cores): rows that differ in every
# read or nearly so, for example "wrong rows in 20 reads of 200: 288"; sometimes tarfile.ReadError besides.
#
# Exits 0 if that is so still, 1 if 200 reads in a row are right.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install -q zarr==3.1.6 fsspec==2026.9.0 numpy==2.3.5
cd "$here"
"$here/venv/bin/python" - <<'PYTHON'
import sys
import tarfile
import warnings

import fsspec
import numpy
import zarr
from zarr.storage import FsspecStore

warnings.simplefilter("ignore")
print(f"zarr {zarr.__version__}, fsspec {fsspec.__version__}, numpy {numpy.__version__}, Python {sys.version.split()[0]}")
data = numpy.arange(200 * 4096, dtype="i4").reshape(200, 4096)
zarr.create_array("array", shape=data.shape, chunks=(1, 4096), dtype=data.dtype, compressors=None)[:] = data
with tarfile.open("array.tar", "w") as tar:
    tar.add("array")

store = FsspecStore.from_url("tar://array::file://array.tar", read_only=True)


def wrong_rows():
    try:
        read = zarr.open_array(store, mode="r")[:]
    except tarfile.ReadError as error:
        print("raised, besides:", error)
        return 0
    return int((read != data).any(axis=1).sum())


wrong = reads = 0
while reads < 20 or (wrong == 0 and reads < 200):
    wrong += wrong_rows()
    reads += 1
print(f"wrong rows in {reads} reads of {len(data)}: {wrong}")
with zarr.config.set({"async.concurrency": 1}):
    print("wrong rows in 5 reads, one request at a time:", sum(wrong_rows() for _ in range(5)))
sys.exit(0 if wrong else 1)
PYTHON
