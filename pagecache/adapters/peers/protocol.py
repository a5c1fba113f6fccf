"""The frames between peers: a request for bytes of one version of one object, and its answers.

A request is a header and three strings (key, validator, name).  It is answered by any number of PENDING, which say that
the owner is alive and waits for the origin, and then by DATA, a header followed by exactly the bytes asked for, or by
REFUSED with a reason.  Numbers are big-endian and bounded; what does not fit a bound is no frame, and ends the connection.
Nothing that arrives is unpickled or evaluated.
"""

import struct
from typing import NamedTuple

MAGIC = b"PgC1"
GET = 1
DATA, PENDING, REFUSED = 2, 3, 4
MAY_ASK_OWNER = 1  # flag of a request: the receiver may ask the owner; without it only the origin is asked

NOT_MINE, STALE, UNKNOWN, FAILED, BUSY = 1, 2, 3, 4, 5
REASONS = {
    NOT_MINE: "not the owner",
    STALE: "another version",
    UNKNOWN: "cannot open the object",
    FAILED: "cannot read the object",
    BUSY: "no memory",
}

REQUEST = struct.Struct("!4sBBxxIQQIHHH")  # magic, kind, flags, number, epoch, offset, bytes, lengths of the strings
ANSWER = struct.Struct("!4sBBxxIQI")  # magic, kind, reason, number, epoch, bytes
STRING_BYTES_MAX = 8192
REQUEST_BYTES_MAX = 64 * 1024 * 1024
OFFSET_MAX = (1 << 63) - 1


class ProtocolError(Exception):
    """What arrived is no frame, or not the one that had to come."""


class Request(NamedTuple):
    """What is asked of a peer: nbytes at offset of the version `validator` of the object `key`; name: its URL or path."""

    number: int
    flags: int
    epoch: int
    offset: int
    nbytes: int
    key: str
    validator: str
    name: str


class Answer(NamedTuple):
    """The header of an answer. nbytes: of data that follow."""

    kind: int
    reason: int
    number: int
    epoch: int
    nbytes: int


def encode_request(request: Request) -> bytes:
    """Return the bytes of a request. Raises ProtocolError if a string is too long or a number out of bounds."""
    try:
        strings = [text.encode() for text in (request.key, request.validator, request.name)]
        lengths = [len(text) for text in strings]
        if max(lengths) > STRING_BYTES_MAX or not 0 < request.nbytes <= REQUEST_BYTES_MAX:
            raise ProtocolError("a request that no peer would accept")
        head = REQUEST.pack(
            MAGIC, GET, request.flags, request.number, request.epoch, request.offset, request.nbytes, *lengths
        )
    except (struct.error, UnicodeEncodeError) as error:
        raise ProtocolError(str(error)) from None
    return b"".join([head, *strings])


def decode_request_head(head: bytes | bytearray | memoryview) -> tuple[tuple[int, int, int, int, int], list[int]]:
    """Return (number, flags, epoch, offset, nbytes) and the lengths of the three strings. Raises ProtocolError."""
    magic, kind, flags, number, epoch, offset, nbytes, *lengths = REQUEST.unpack(head)
    if magic != MAGIC or kind != GET:
        raise ProtocolError("not a request")
    if max(lengths) > STRING_BYTES_MAX or not 0 < nbytes <= REQUEST_BYTES_MAX or offset > OFFSET_MAX - nbytes:
        raise ProtocolError("a request out of bounds")
    return (number, flags, epoch, offset, nbytes), lengths


def decode_request(fields: tuple[int, int, int, int, int], lengths: list[int], text: bytes | bytearray) -> Request:
    """Return the request whose strings have come as well. Raises ProtocolError."""
    ends = [lengths[0], lengths[0] + lengths[1], sum(lengths)]
    try:
        strings = [bytes(text[end - length : end]).decode() for end, length in zip(ends, lengths, strict=True)]
    except UnicodeDecodeError as error:
        raise ProtocolError(str(error)) from None
    return Request(*fields, *strings)


def encode_answer(answer: Answer) -> bytes:
    """Return the bytes of an answer's header."""
    return ANSWER.pack(MAGIC, answer.kind, answer.reason, answer.number, answer.epoch, answer.nbytes)


def decode_answer(head: bytes | bytearray | memoryview, request: Request) -> Answer:
    """Return the header of an answer to a request. Raises ProtocolError if it is none, or not to this one."""
    magic, *fields = ANSWER.unpack(head)
    answer = Answer(*fields)
    if magic != MAGIC or answer.number != request.number or answer.kind not in (DATA, PENDING, REFUSED):
        raise ProtocolError("not an answer to this request")
    if answer.nbytes != (request.nbytes if answer.kind == DATA else 0):
        raise ProtocolError(f"an answer of {answer.nbytes} bytes where {request.nbytes} were asked for")
    return answer
