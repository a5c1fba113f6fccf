"""What gcsfs asks of Google Cloud Storage to read objects, and no more: metadata, contents, and generations of both.

Import this before gcsfs, which else looks for the storage's layout by gRPC.
"""

import base64
import hashlib
import json
import os
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.http_server import Answer, ObjectServer

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
METADATA, CONTENTS = "/storage/v1/b/", "/download/storage/v1/b/"


class GcsServer(ObjectServer):
    """Buckets of objects with generations; counts requests as ObjectServer does.

    encodings: the Content-Encoding that an object is stored with, by `bucket/key`; so it is served to those who take that
    encoding. honours_range_of_encoded: whether a range of that can be had.
    """

    def __init__(self, **options: Any):
        self.generations: dict[str, list[bytes]] = {}
        self.encodings: dict[str, str] = {}
        self.honours_range_of_encoded = False
        super().__init__(**options)

    @property
    def endpoint(self) -> str:
        """What gcsfs takes as endpoint_url."""
        return self.url("").rstrip("/")

    def put_object(self, path: str, data: bytes) -> int:
        """Make a new generation of `bucket/key`; returns its number."""
        self.generations.setdefault(path, []).append(bytes(data))
        return len(self.generations[path])

    def find(self, path: str) -> tuple[bytes, str, float] | None:
        """Return (data, etag, time of the last change) of what a request names, or None."""
        parts = urlsplit(path)
        root = next((root for root in (METADATA, CONTENTS) if parts.path.startswith(root)), None)
        if root is None:
            return None
        bucket, _, key = parts.path.removeprefix(root).partition("/o/")
        name = f"{bucket}/{unquote(key)}"
        known = self.generations.get(name, [])
        number = int(parse_qs(parts.query).get("generation", [len(known)])[0])
        if not 0 < number <= len(known):
            return None
        data = known[number - 1]
        return (self._metadata(name, number, data) if root == METADATA else data), f'"{number}"', 0.0

    def alter(self, answer: Answer) -> None:
        """Name the encoding of contents."""
        encoding = self.encodings.get(self._name_of(answer.path)) if "/download/" in answer.path else None
        if encoding is not None and answer.status in (200, 206):
            answer.headers["Content-Encoding"] = encoding
            if not self.honours_range_of_encoded:
                answer.status, answer.body = 200, answer.data or b""
                answer.headers.pop("Content-Range", None)
        super().alter(answer)

    @staticmethod
    def _name_of(path: str) -> str:
        bucket, _, key = urlsplit(path).path.partition("/b/")[2].partition("/o/")
        return f"{bucket}/{unquote(key)}"

    def _metadata(self, name: str, number: int, data: bytes) -> bytes:
        bucket, _, key = name.partition("/")
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        said = {"kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(data)), "generation": str(number),
                "metageneration": "1", "md5Hash": md5, "etag": f"etag-{number}"}  # fmt: skip
        if name in self.encodings:
            said["contentEncoding"] = self.encodings[name]
        return json.dumps(said).encode()
