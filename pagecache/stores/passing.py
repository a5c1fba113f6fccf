"""Errors that can pass: the same request may go well a moment later.

They are answers that say so (408, 429, 500, 502, 503, 504), time-outs, and connections that were refused or cut.  Anything
else stays as it is however often it is asked: 403, 404, 412, a changed object, an answer that is not what it says it is.
Libraries wrap what they meet, so the chain of causes is looked through, the outermost first; a status counts for more than
how the connection ended.
"""

import datetime
import email.utils
import errno
import re
from collections.abc import Iterator, Mapping

from pagecache.stores.errors import cause_of, says_absent

PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))
_PASSING_ERRNO = frozenset(
    (errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EHOSTUNREACH,
     errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET)
)  # fmt: skip
_LASTING_ERRNO = frozenset(
    (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EISDIR, errno.ENOTDIR, errno.EFBIG, errno.ENOTSUP,
     errno.EINVAL, errno.EEXIST)
)  # fmt: skip
_PASSING_NAMES = frozenset(  # of classes and their bases, whose libraries need not be installed
    ("ClientConnectionError", "ClientPayloadError",  # aiohttp
     "HTTPClientError", "EndpointConnectionError", "ResponseStreamingError",  # botocore
     "ChunkedEncodingError", "ProxyError", "Timeout",  # requests
     "IncompleteRead", "RemoteDisconnected", "ProtocolError",  # http.client, urllib3
     "ServiceRequestError", "ServiceResponseError",  # azure
     "SSHException", "error_temp")  # paramiko, ftplib
)  # fmt: skip
_LASTING_NAMES = frozenset(
    ("ClientConnectorCertificateError", "ClientConnectorSSLError", "ClientConnectorDNSError", "SSLCertVerificationError",
     "InvalidURL", "AuthenticationException", "BadHostKeyException")
)  # fmt: skip
_STATUS_IN_TEXT = re.compile(r"status(?: code)?:? (\d{3})\b")
_CUT_IN_TEXT = re.compile(r"error sending request|error decoding response body|request or response body error|timed out")


def _chain_of(error: BaseException) -> Iterator[BaseException]:
    seen = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = cause_of(found)


def _number_of(code: object) -> int | None:
    """Return the number that gcsfs has in a JSON answer, perhaps as text."""
    return int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else None


def _is_status(value: object) -> bool:
    return isinstance(value, int) and 400 <= value < 600


def status_of(error: BaseException) -> int | None:
    """Return the status of HTTP that an error of a library tells, without its causes; None if it tells none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        values = [getattr(error, "status", None), getattr(error, "status_code", None)]
        values.append(getattr(response, "status_code", None))
        if type(error).__module__.startswith("gcsfs"):
            values.append(_number_of(getattr(error, "code", None)))
    if type(error).__module__.startswith("obstore"):
        match = _STATUS_IN_TEXT.search(str(error))
        values.append(int(match[1]) if match else None)
    return next((int(value) for value in values if _is_status(value)), None)


def _headers_of(error: BaseException) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    return {str(name).lower(): str(value) for name, value in dict(headers or {}).items()}


def can_pass(error: BaseException) -> bool:
    """Whether the same request may go well a moment later."""
    chain = list(_chain_of(error))
    status = next((status for one in chain if (status := status_of(one)) is not None), None)
    if status is not None:
        return status in PASSING_STATUS
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and says_absent(error):
        return False
    for one in chain:
        names = {kind.__name__ for kind in type(one).__mro__}
        if names & _LASTING_NAMES or (isinstance(one, OSError) and one.errno in _LASTING_ERRNO):
            return False
        if isinstance(one, (TimeoutError, ConnectionError, EOFError)) or names & _PASSING_NAMES:
            return True
        if isinstance(one, OSError) and one.errno in _PASSING_ERRNO:
            return True
        if type(one).__module__.startswith("obstore") and _CUT_IN_TEXT.search(str(one)):
            return True
    return False


def retry_after_s(error: BaseException) -> float:
    """Return how long (seconds) a server wants not to be asked again (Retry-After, RFC 9110, section 10.2.3); 0.0 if it
    does not say."""
    said = next((headers["retry-after"] for one in _chain_of(error) if "retry-after" in (headers := _headers_of(one))), "")
    if said.strip().isdigit():
        return float(said)
    try:
        until = email.utils.parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
