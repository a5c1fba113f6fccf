"""What the headers of an HTTP answer say: which part of an object it is, how large that is, how it is encoded.

Servers write Content-Range in more ways than RFC 9110 (section 14.4) has; what cannot be misunderstood is read.
"""

import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from pagecache.stores.destination import Destination
from pagecache.stores.in_order import PIECE
from pagecache.stores.validators import ChangedError, Version, encoding_of

_PART = re.compile(r"(?:bytes)?[\s:=]*(\d+)\s*-\s*(\d+)\s*/\s*(\d+|\*)\s*\Z", re.IGNORECASE)
_NO_PART = re.compile(r"(?:bytes)?[\s:=]*\*\s*/\s*(\d+)\s*\Z", re.IGNORECASE)
_VERSION_HEADERS = ("ETag", "Last-Modified", "Content-MD5", "Digest", "Content-Encoding")


class Part(NamedTuple):
    """Bytes [start, end) of an object of so many bytes (None: not said)."""

    start: int
    end: int
    size: int | None


def part_of(headers: Mapping[str, str]) -> Part | None:
    """Return the part that an answer says it is; None if it says nothing that can be understood."""
    match = _PART.match(headers.get("Content-Range", "").strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    return Part(int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3]))


def size_beside_part(headers: Mapping[str, str]) -> int | None:
    """Return how large an object is of which the part that was asked for does not exist (status 416), if that is said."""
    match = _NO_PART.match(headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def length_of(headers: Mapping[str, str]) -> int | None:
    """Return how many bytes of the object an answer brings; None if it does not say, or is encoded."""
    said = headers.get("Content-Length", "").strip()
    return int(said) if said.isdigit() and encoding_of(headers) is None else None


def version_info_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what an answer says about the version of its object."""
    return {name: headers[name] for name in _VERSION_HEADERS if headers.get(name)}


def checked_part(headers: Mapping[str, str], start: int, version: Version) -> Part:
    """Return the part that an answer is, which holds byte `start` of an object of the known version.

    Raises ChangedError if it is of an object of another size or encoding, OSError (EIO) if it is no part that can be used.
    """
    part = part_of(headers)
    if part is None or not part.start <= start < part.end:
        said = headers.get("Content-Range")
        raise OSError(errno.EIO, f"the server answered with the range {said!r} where byte {start} was asked for")
    if part.size not in (None, version.size):
        raise ChangedError(f"the object has {part.size} bytes, not {version.size}")
    check_encoding(headers, version)
    length = length_of(headers)
    if length not in (None, part.end - part.start):
        raise OSError(errno.EIO, f"the server sends {length} bytes as the range {headers['Content-Range']!r}")
    return part


async def copy_part(
    read: Callable[[int], Awaitable[bytes]], part: Part, start: int, end: int, destination: Destination
) -> int:
    """Copy bytes [start, end) of an answer that is a part; it is read to its end, unless it goes on behind what is wanted.

    read: of the answer, so many bytes at most. Returns how many bytes came that were not wanted. Raises OSError (EIO) if
    the answer is not as long as its part.
    """
    at = part.start
    while at < end or part.end == end:
        piece = await read(PIECE)
        if not piece:
            break
        destination.put(piece[max(0, start - at) : max(0, end - at)])
        at += len(piece)
        if at > part.end:
            raise OSError(errno.EIO, f"more came than the range {part.start}-{part.end - 1} that the answer is said to be")
    if at < end:
        said = f"{part.start}-{part.end - 1}"
        raise OSError(errno.EIO, f"the answer ended at byte {at}, though it is said to be the range {said}")
    return at - part.start - (end - start)


def check_whole(headers: Mapping[str, str], version: Version) -> None:
    """Check that an answer with all of an object is of one as large as known. Raises ChangedError."""
    check_encoding(headers, version)
    if length_of(headers) not in (None, version.size):
        raise ChangedError(f"the object has {length_of(headers)} bytes, not {version.size}")


def check_encoding(headers: Mapping[str, str], version: Version) -> None:
    """Check that an answer is encoded as the object was when its size was found. Raises ChangedError."""
    encoding = encoding_of(headers)
    if encoding != version.encoding:
        raise ChangedError(f"the object comes with Content-Encoding {encoding}, not {version.encoding}")
