"""What distinguishes one version of an object from another, and how often that is looked at."""

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

# Names under which file systems and object stores give them, in order of trust.
_STRONG = ("ETag", "etag", "e_tag", "VersionId", "version_id", "version", "generation", "md5Hash", "md5", "Content-MD5",
           "content_md5", "crc32c", "Digest", "checksum")  # fmt: skip
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "modifiedTime", "created")
_ENCODINGS = ("Content-Encoding", "content-encoding", "contentEncoding", "content_encoding", "ContentEncoding")
_SAME_NAME = {"etag": "ETag", "e_tag": "ETag", "version_id": "VersionId", "version": "VersionId"}
_EPOCH = datetime(1970, 1, 1)


class ChangedError(Exception):
    """The store says that the object is not of the version asked for.

    is_refusal: it only refused a request under the condition that it is, and said nothing about what there is.
    """

    def __init__(self, reason: str = "it is another version", *, is_refusal: bool = False):
        super().__init__(reason)
        self.is_refusal = is_refusal


@dataclass(frozen=True)
class Version:
    """What a store said about an object at one time.

    size: bytes. validator: None if nothing distinguishes versions. etag, last_modified: as given, for conditional requests.
    checked_at: when, on the monotonic clock (seconds). encoding: in which the store sends the object, whose size is that of
    what was encoded; None: as it is.
    """

    size: int
    validator: str | None
    etag: str | None
    last_modified: str | None
    checked_at: float
    encoding: str | None = None

    @property
    def strong_etag(self) -> str | None:
        """The entity tag, if it may stand in If-Match: weak ones never match there."""
        return self.etag if self.etag and opaque_tag(self.etag) == self.etag else None

    def age_s(self) -> float:
        """Return how long ago this was said (seconds)."""
        return time.monotonic() - self.checked_at


def opaque_tag(etag: str) -> str:
    """Return what weak comparison (RFC 9110, section 8.8.3.2) compares: a tag without the mark of being weak.

    Servers make a tag weak while a file is young, and strong a second later, or for one method and not for the other.
    """
    return etag[2:] if etag[:2] in ("W/", "w/") else etag


def encoding_of(info: Mapping[str, Any]) -> str | None:
    """Return the encoding that headers, or an `info`, say that an object is sent in; None if it is sent as it is."""
    said = next((str(info[name]).strip() for name in _ENCODINGS if info.get(name)), "")
    return said if said.lower() not in ("", "identity") else None


def validator_of(info: Mapping[str, Any]) -> str | None:
    """Return what identifies the bytes: entity tag, version or checksum with the size; without those, time of the last
    change with the size; None if neither is known, for a size alone says nothing about the bytes.

    info: as `head` of an object store or `info` of an fsspec file system return it.
    """
    for names in (_STRONG, _TIMES):
        found = {_SAME_NAME.get(name, name): info[name] for name in names if _is_told(info.get(name))}
        if "ETag" in found:
            found["ETag"] = opaque_tag(str(found["ETag"]))
        if found:
            return " ".join(f"{name}={value}" for name, value in (found | {"size": info.get("size")}).items())
    return None


def _is_told(value: object) -> bool:
    """Whether something is said. The beginning of 1970 means nothing: obstore has it where a server says no time."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None) != _EPOCH
    return bool(value) and not (isinstance(value, str) and "1 Jan 1970 00:00:00" in value)


def version_of(info: Mapping[str, Any], name: str, checked_at: float) -> Version:
    """Return the version that an `info` or `head` describes.

    name: for messages. checked_at: taken before the store was asked.
    Raises IsADirectoryError, and OSError (ENOTSUP) for an object without a size.
    """
    if info.get("type") == "directory":
        raise IsADirectoryError(errno.EISDIR, "this is a directory, not an object", name)
    if not isinstance(info.get("size"), int):
        raise OSError(errno.ENOTSUP, "the store does not say how large this object is: it cannot be read in ranges", name)
    etag = next((str(info[key]) for key in ("ETag", "etag", "e_tag") if info.get(key)), None)
    modified = info.get("Last-Modified")
    return Version(info["size"], validator_of(info), etag, modified and str(modified), checked_at, encoding_of(info))


def is_proved(etag: str | None, modified: str | None, version: Version) -> bool:
    """Whether an answer says that it is of this version. Raises ChangedError if it says the contrary.

    A weak tag does not distinguish all bytes: where one of the two is weak, times that are known have to agree as well.
    """
    has_tags, has_times = bool(etag and version.etag), bool(modified and version.last_modified)
    if etag and version.etag:
        if opaque_tag(etag) != opaque_tag(version.etag):
            raise ChangedError(f"its entity tag is {etag}, not {version.etag}")
        if etag == version.strong_etag:
            return True
    if has_times and modified != version.last_modified:
        raise ChangedError(f"it was modified at {modified}, not at {version.last_modified}")
    return has_tags or has_times


def checked_recheck(recheck: object) -> bool | Literal["open"] | float:
    """Return a `recheck` argument. Raises ValueError and TypeError for what is none."""
    if isinstance(recheck, bool):
        return recheck
    if recheck == "open":
        return "open"
    if not isinstance(recheck, (int, float)):
        raise TypeError(f"recheck must be True, False, 'open' or a number of seconds, not {recheck!r}")
    if not recheck >= 0:
        raise ValueError(f"recheck must not be a negative number of seconds, not {recheck!r}")
    return float(recheck)


def max_age_of(recheck: bool | str | float) -> float | None:
    """Return how old what is known of the version may be when cached bytes are read (seconds); None: as old as it is."""
    if recheck is True:
        return 0.0
    return None if recheck is False or isinstance(recheck, str) else recheck


def stale_error(name: str, offset: int, immutable: bool = False) -> OSError:
    """Return the error for bytes that are not of the version that was opened."""
    remedy = "open it with recheck='open', as it does change" if immutable else "reopen it, or use on_change='reload'"
    return OSError(errno.ESTALE, f"{name} was replaced (seen at offset {offset}): {remedy}")
