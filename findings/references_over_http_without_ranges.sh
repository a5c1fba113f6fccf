#!/bin/sh
# References (kerchunk) to parts of a file on an HTTP server without ranges bring the whole file for each part.
#
# Versions: fsspec 2026.9.0, aiohttp 3.14.5 (CPython 3.11 to 3.13).
#
# A reference [url, offset, size] is read by `HTTPFileSystem._cat_file(url, start, end)`, which asks with a Range header and
# returns the body of any answer. A server may ignore Range (RFC 9110, section 14.2) and answer 200 with all of the file: so
# every chunk of a data set is the same bytes, the file from its beginning, without an exception. `cat_file` and `cat_ranges`
# of the HTTP file system do the same. Files that are opened notice it: "doesn't appear to support range requests".
#
# Expected: 4 bytes from offset 8, b'CCCC', or an error.
# Seen: "reference: b'AAAABBBBCCCCDDDD'", "cat_file(8, 12): b'AAAABBBBCCCCDDDD'", "cat_ranges: b'AAAABBBBCCCCDDDD'".
#
# Exits 0 if that is so still, 1 if it has changed.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install -q fsspec==2026.9.0 aiohttp==3.14.5
cd "$here"
"$here/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp
import fsspec

DATA = b"AAAABBBBCCCCDDDD"


class WithoutRanges(BaseHTTPRequestHandler):
    """As `python -m http.server`: every GET is answered with all there is."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(DATA)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


print(f"fsspec {fsspec.__version__}, aiohttp {aiohttp.__version__}, Python {sys.version.split()[0]}")
server = ThreadingHTTPServer(("127.0.0.1", 0), WithoutRanges)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}/data"
http = fsspec.filesystem("http")
references = fsspec.filesystem("reference", fo={"chunk/2": [url, 8, 4]}, remote_protocol="http")
seen = {
    "reference": references.cat_file("chunk/2"),
    "cat_file(8, 12)": http.cat_file(url, 8, 12),
    "cat_ranges": http.cat_ranges([url], [8], [12])[0],
}
for name, found in seen.items():
    print(f"{name}: {found!r}")
sys.exit(0 if set(seen.values()) == {DATA} else 1)
PYTHON
