"""What a server holds for an extent, under which name, and how it is known to be right.

An object is divided into extents of equal size; the last one is shorter.  The value of an extent is

    magic, version of the format, bytes of this header; length of the data, bytes of an extent, number of the extent;
    BLAKE2b-256 of the object's key, validator and size; mmh3-128 of the data; the data

A reader knows all of it but the checksum and the data, so it compares the first 56 bytes as a whole with what it expects,
then the length, then the checksum.  A value that differs in anything is a miss, and is replaced by the next fill.  Key and
validator, which may hold secrets, are never sent, only their hash.

The checksum is against accident.  Who may write to the server may put bytes there that pass: it is trusted as the
origin is.
"""

import hashlib
import struct

import mmh3

MAGIC = b"PcXt"
VERSION = 1
_FIELDS = struct.Struct("<4sHHIIQ32s")
CHECKSUM_BYTES = 16
HEADER_BYTES = _FIELDS.size + CHECKSUM_BYTES
NAME_BYTES_MAX = 200  # memcached takes 250
Extent = bytes | bytearray | memoryview  # the bytes of one


def checksum(data: Extent) -> bytes:
    """Return the checksum of an extent's bytes, any bytes-like object. Context: of a large one without the GIL."""
    if hasattr(mmh3, "mmh3_x64_128_digest"):  # mmh3 >= 5: takes any buffer
        return bytes(mmh3.mmh3_x64_128_digest(data))
    return mmh3.hash_bytes(bytes(data))


class ObjectVersion:
    """One version of an object, as a second level knows it.

    key: the same in every process. validator: of this version. size, extent_bytes: bytes. prefix: of names on the server.
    """

    def __init__(self, key: str, validator: str, size: int, extent_bytes: int, prefix: str):
        self.validator = validator
        self.size = size
        self.extent_bytes = extent_bytes
        fields = [str(number).encode() for number in (VERSION, extent_bytes, size)]
        fields += [text.encode("utf-8", "surrogatepass") for text in (key, validator)]
        joined = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
        self._identity = hashlib.blake2b(joined, digest_size=32, person=b"pagecache").digest()
        self._stem = f"{prefix}:{self._identity[:16].hex()}:"

    def name(self, extent: int) -> bytes:
        """Return the name of an extent on the server."""
        return f"{self._stem}{extent}".encode()

    def length(self, extent: int) -> int:
        """Return how many bytes of the object an extent holds."""
        return min(self.extent_bytes, self.size - extent * self.extent_bytes)

    def header(self, extent: int) -> bytes:
        """Return what the value of an extent begins with, up to the checksum."""
        return _FIELDS.pack(
            MAGIC, VERSION, HEADER_BYTES, self.length(extent), self.extent_bytes, extent, self._identity
        )  # fmt: skip

    def encode(self, extent: int, data: Extent) -> list[Extent]:
        """Return the pieces of the value of an extent."""
        return [self.header(extent), checksum(data), data]

    def decode(self, extent: int, value: memoryview) -> memoryview | None:
        """Return the data of a value, or None if it is not whole, not of this extent and version, or damaged."""
        if len(value) != HEADER_BYTES + self.length(extent) or value[: _FIELDS.size] != self.header(extent):
            return None
        data = value[HEADER_BYTES:]
        return data if checksum(data) == value[_FIELDS.size : HEADER_BYTES] else None
