#!/bin/sh
# fsspec's wrapper of Arrow's file systems cannot read a range that begins at byte 0.
#
# Versions: fsspec 2026.9.0, pyarrow 22.0.0 (CPython 3.11 to 3.13).
#
# `ArrowFSWrapper.cat_file(path, start, end)`, and so that of `hdfs://` and `arrow_hdfs://`, opens the file as a stream without
# seek unless `start` is neither None nor 0; the method that it then calls seeks to `start` if that is not None, and asks for
# the position if `end` is given. So ranges from the beginning, as readers of headers ask for them, raise OSError, while
# ranges from any other byte, and whole files, are read.
#
# Seen: "start=0 end=5: OSError: only valid on seekable files", "start=None end=5: OSError: ...", "start=1 end=5: b'1234'".
#
# Exits 0 if that is so still, 1 if it has changed.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install -q fsspec==2026.9.0 pyarrow==22.0.0
cd "$here"
"$here/venv/bin/python" - <<'PYTHON'
import os
import sys

import fsspec
import pyarrow
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem

print(f"fsspec {fsspec.__version__}, pyarrow {pyarrow.__version__}, Python {sys.version.split()[0]}")
path = os.path.abspath("file")
with open(path, "wb") as file:
    file.write(b"0123456789")
fs, seen = ArrowFSWrapper(LocalFileSystem()), []
for start, end in [(0, 5), (None, 5), (1, 5), (None, None)]:
    try:
        seen.append(fs.cat_file(path, start, end))
        print(f"start={start} end={end}: {seen[-1]!r}")
    except OSError as error:
        seen.append(OSError)
        print(f"start={start} end={end}: OSError: {error}")
sys.exit(0 if seen == [OSError, OSError, b"1234", b"0123456789"] else 1)
PYTHON
