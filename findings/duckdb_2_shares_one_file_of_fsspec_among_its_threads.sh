#!/bin/sh
# DuckDB 2.0 over fsspec's local file system, or any other registered one, gives wrong sums, without an exception.
#
# Versions: duckdb 2.0.1 (and, for comparison, 1.5.6), fsspec 2026.9.0 (CPython 3.11 to 3.13).
#
# A file system of fsspec that is registered with a connection (`register_filesystem`) opens Python file objects. DuckDB 1.5
# opened one for each thread that scans a Parquet file; 2.0 opens one for all of them, and each thread calls seek() and read()
# in turns. Nothing keeps the others out between the two but the GIL, which Python code may lose anywhere: fsspec's
# LocalFileOpener, and even more so its AbstractBufferedFile (HTTP, S3 ...), whose position is an attribute. A read then
# begins where another thread has sought. `threads = 1` makes it rarer, and does not end it.
#
# Expected: the sum.  Seen (CPython 3.11, 2 cores, `file://`): "2.0.1, 8 threads: 6 right, 3 wrong,
# 1 errors", "2.0.1, 1 threads: 9 right, 1 wrong", "1.5.6, 8 threads: 100 right". Files are valid, and read rightly when DuckDB
# opens them itself.
#
# Exits 0 if that is so still, 1 if 100 queries in a row are right.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
cat > query.py <<'PYTHON'
import sys

import duckdb
import fsspec

ROWS, RIGHT = 400_000, 400_000 * 399_999 // 2
duckdb.execute(
    f"COPY (SELECT range AS id FROM range({ROWS})) TO 'rows.parquet' (ROW_GROUP_SIZE 4096, COMPRESSION uncompressed)"
)
assert duckdb.execute("SELECT sum(id)::BIGINT FROM 'rows.parquet'").fetchone() == (RIGHT,)


def outcomes(threads, at_most):
    """Return how many queries were right, wrong, and errors; ends with the tenth that shows something."""
    right = wrong = errors = 0
    while right + wrong + errors < (10 if wrong else at_most):
        with duckdb.connect(config={"threads": threads}) as connection:
            connection.register_filesystem(fsspec.filesystem("file"))
            try:
                query = f"SELECT sum(id)::BIGINT FROM read_parquet('file://{sys.argv[1]}/rows.parquet')"
                (found,) = connection.execute(query).fetchone()
            except Exception:
                errors += 1
            else:
                right, wrong = right + (found == RIGHT), wrong + (found != RIGHT)
    print(f"duckdb {duckdb.__version__}, fsspec {fsspec.__version__}, Python {sys.version.split()[0]}, {threads} threads: "
          f"{right} right, {wrong} wrong, {errors} errors")
    return wrong


outcomes(1, 10)
sys.exit(0 if outcomes(8, 100) else 1)
PYTHON
for version in 1.5.6 2.0.1; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/python" -m pip install -q "duckdb==$version" fsspec==2026.9.0
    if "venv-$version/bin/python" query.py "$here"; then seen=0; else seen=1; fi
done
exit $seen
