#!/usr/bin/env bash
# gcsfs 2026.10.1 (with fsspec 2026.9.0): a file that is opened with `generation=` is read from the live object.
#
# Documented: `GCSFileSystem.open(path, generation=...)` opens that generation, and `info(path, generation=...)` describes it.
# Seen: `info` asks the service for the metadata of the live object, and so does `open`, which also reads its contents; only
#       `cat_file` takes the generation that was asked for. No error, no warning.
#
#   generation 1: b'first generation'   live, generation 2: b'second'
#   info(path, generation='1')          size 6, generation '2'
#   open(path, generation='1').read()   b'second'
#   cat_file(path, generation='1')      b'first generation'
#
# With version_aware=True and the generation in the path (`bucket/object#1`) all three are right.
# Exits 0 while that is so, 1 when it has changed, 2 when it cannot be tried.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv" || exit 2
"$place/venv/bin/python" -m pip install -q gcsfs==2026.10.1 fsspec==2026.9.0 || exit 2
cat > "$place/try.py" <<'PYTHON'
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # else it asks for the bucket's layout by gRPC
import gcsfs

GENERATIONS = {1: b"first generation", 2: b"second"}


class Service(BaseHTTPRequestHandler):
    """Metadata and contents of one object, as the JSON API serves them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        number = int(parse_qs(url.query).get("generation", [max(GENERATIONS)])[0])
        data, status, more = GENERATIONS[number], 200, {}
        if url.path == "/storage/v1/b/bucket/o/object":
            said = {"bucket": "bucket", "name": "object", "size": str(len(data)), "generation": str(number)}
            data = json.dumps(said).encode()
        elif url.path == "/storage/v1/b/bucket/o":
            data = b"{}"
        elif "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            end = min(int(last) + 1 if last else len(data), len(data))
            more = {"Content-Range": f"bytes {first}-{end - 1}/{len(data)}"}
            data, status = data[int(first) : end], 206
        self.send_response(status)
        for name, value in {**more, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
server.handle_error = lambda *_: None  # a client that has gone
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = f"http://127.0.0.1:{server.server_address[1]}"


def tried(path, version_aware, **options):
    fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=endpoint, version_aware=version_aware, skip_instance_cache=True)
    info = fs.info(path, **options)
    with fs.open(path, **options) as file:
        return info["size"], info["generation"], file.read(), fs.cat_file(path, **options)


by_option, by_path = tried("bucket/object", False, generation="1"), tried("bucket/object#1", True)
print("gcsfs", gcsfs.__version__)
print("generation='1':  size %s, generation %r, open %r, cat_file %r" % by_option)
print("bucket/object#1: size %s, generation %r, open %r, cat_file %r" % by_path)
same = by_option == (6, "2", b"second", b"first generation") and by_path == (16, "1", *[b"first generation"] * 2)
print("as described" if same else "this has changed")
sys.stdout.flush()
os._exit(0 if same else 1)
PYTHON
"$place/venv/bin/python" "$place/try.py"
