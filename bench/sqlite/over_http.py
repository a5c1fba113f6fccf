"""Point queries on a database served over HTTP by a server that waits 20 ms before each answer: through a page cache, and
through a VFS on a file handle of fsspec with its own caches.

    python -m bench sqlite.over_http [--rows N] [--queries N] [--delay SECONDS]

Each way starts cold and asks twice: the queries, and then as many others.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import apsw
import fsspec
from support.http_server import ObjectServer

import pagecache
from bench.sqlite.point_queries import PAYLOAD, make_database, run
from pagecache.adapters.sqlite import connect

BUDGET = "256MiB"


class HandleFile:
    """A database on an open file of fsspec, for reading."""

    def __init__(self, file: Any):
        self.file = file

    def xRead(self, amount: int, offset: int) -> bytes:
        self.file.seek(offset)
        return bytes(self.file.read(amount))

    def xFileSize(self) -> int:
        return int(self.file.size)

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xClose(self) -> None:
        self.file.close()


class HandleVFS(apsw.VFS):
    """Opens databases as files of fsspec."""

    def __init__(self, name: str, **options: Any):
        super().__init__(name, "")
        self.options = options

    def xFullPathname(self, name: str) -> str:
        return name

    def xOpen(self, name: Any, flags: list[int]) -> HandleFile:
        flags[1] = apsw.SQLITE_OPEN_READONLY
        fs, path = fsspec.url_to_fs(name.filename(), skip_instance_cache=True)
        return HandleFile(fs.open(path, "rb", **self.options))


def measure(open_it: Callable[[], apsw.Connection], server: ObjectServer, rounds: list[list[int]]) -> str:
    """Run the rounds on a new connection. Returns a row of the table."""
    db, cells = open_it(), []
    for ids in rounds:
        server.forget()
        started = time.perf_counter()
        run(db, ids)
        seconds = time.perf_counter() - started
        cells.append(f"{seconds:6.2f} s {server.count():5} requests {server.bytes_sent() / 2**20:7.1f} MiB")
    db.close()
    return " | ".join(cells)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=64_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--delay", type=float, default=0.02)
    arguments = parser.parse_args()
    rng = random.Random(1)
    rounds = [[rng.randrange(1, arguments.rows + 1) for _ in range(arguments.queries)] for _ in range(2)]
    with tempfile.TemporaryDirectory() as directory, ObjectServer(delay_s=arguments.delay) as server:
        path = os.path.join(directory, "data.db")
        make_database(path, arguments.rows)
        with open(path, "rb") as file:
            url = server.put("data.db", file.read())
        blocks = {"cache_type": "blockcache", "block_size": 65536, "cache_options": {"maxblocks": 4096}}
        plain = [HandleVFS("default"), HandleVFS("64k", block_size=65536), HandleVFS("none", cache_type="none"),
                 HandleVFS("blocks", **blocks)]  # fmt: skip
        ways: dict[str, Callable[[], apsw.Connection]] = {
            "pagecache": lambda: connect(url, pagecache.PageCache(BUDGET)),
            "fsspec handle as it comes": lambda: apsw.Connection(url, vfs="default"),
            "fsspec handle, 64 KiB": lambda: apsw.Connection(url, vfs="64k"),
            "fsspec handle, blockcache of 256 MiB": lambda: apsw.Connection(url, vfs="blocks"),
            "fsspec handle, cache_type none": lambda: apsw.Connection(url, vfs="none"),
        }
        print(f"{os.path.getsize(path) / 2**20:.0f} MiB, twice {arguments.queries} point queries of {PAYLOAD} bytes; "
              f"{arguments.delay * 1000:.0f} ms for each request")  # fmt: skip
        for name, open_it in ways.items():
            print(f"{name:38} {measure(open_it, server, rounds)}", flush=True)
        del plain


if __name__ == "__main__":
    main()
