#!/bin/sh
# fsspec's block cache on disk returns zeros after one request that failed, and to threads that read one cold object.
#
# Versions: fsspec 2026.9.0, aiohttp 3.14.5 (CPython 3.11 to 3.13).
#
# `blockcache::` (CachingFileSystem) notes that a block is there before the bytes are: a request that fails then leaves a hole
# in the file on disk, and each later read of it returns zeros without an exception. In the same way a second thread finds a block noted that the first one is still fetching.
#
# Expected: the bytes of the object, or an error.
# Seen: "the read that fails: TypeError: a bytes-like object is required, not 'ClientResponseError'", "the same again:
# b'\x00\x00\x00\x00' instead of ...", "8 threads: 137 of 160 reads wrong, 137 of them zeros" (the number differs in each run).
#
# Exits 0 if the read after the failure is zeros still, 1 if it has changed.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install -q fsspec==2026.9.0 aiohttp==3.14.5
cd "$here"
"$here/venv/bin/python" - <<'PYTHON'
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import fsspec

MIB = 1 << 20
DATA = b"".join(number.to_bytes(4, "little") for number in range(1, 16 * MIB // 4 + 1))  # no zeros at a multiple of 4
PLACES = [number * len(DATA) // 20 & ~3 for number in range(20)]


class WithRanges(BaseHTTPRequestHandler):
    """Ranges of DATA; the next `failing` GETs are answered by 503."""

    protocol_version = "HTTP/1.1"
    failing = 0

    def do_GET(self):
        body, status, more = DATA, 200, {"Accept-Ranges": "bytes"}
        if self.command == "GET" and WithRanges.failing:
            WithRanges.failing -= 1
            body, status = b"", 503
        elif found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2] or len(DATA) - 1), len(DATA) - 1)
            more["Content-Range"] = f"bytes {first}-{last}/{len(DATA)}"
            body, status = DATA[first : last + 1], 206
        self.send_response(status)
        for name, value in {**more, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


print(f"fsspec {fsspec.__version__}, aiohttp {aiohttp.__version__}, Python {sys.version.split()[0]}")
server = ThreadingHTTPServer(("127.0.0.1", 0), WithRanges)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"


def blockcache(directory):
    return fsspec.filesystem("blockcache", target_protocol="http", cache_storage=directory, skip_instance_cache=True)


def read_at(file, place):
    file.seek(place)
    return file.read(4)


with blockcache("failed").open(f"{url}/failed") as file:
    WithRanges.failing = 1
    try:
        print("the read that fails:", read_at(file, MIB))
    except Exception as error:
        print(f"the read that fails: {type(error).__name__}: {error}")
    again = read_at(file, MIB)
print("the same again:", again, "instead of", DATA[MIB : MIB + 4])

system, barrier, found = blockcache("threads"), threading.Barrier(8), []
files = [system.open(f"{url}/threads") for _ in range(8)]


def read_all(file):
    barrier.wait()
    for place in PLACES:
        try:
            found.append((place, read_at(file, place)))
        except Exception as error:
            found.append((place, type(error).__name__))


threads = [threading.Thread(target=read_all, args=(file,)) for file in files]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wrong = [got for place, got in found if got != DATA[place : place + 4]]
print(f"8 threads: {len(wrong)} of {len(found)} reads wrong, {wrong.count(bytes(4))} of them zeros")
sys.exit(0 if again == bytes(4) else 1)
PYTHON
