"""URLs that carry a signature of the right to read: the part of a URL that is the same after it was signed anew.

A signed URL is another one for every hour, so that nothing would be found again by it.  `key_without="signature"` leaves
out of the key what is known to belong to a signature, but only where that signature is there: the same short names mean
something else elsewhere.  Names or patterns of parameters can be given instead.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import unquote_plus

SIGNATURE = "signature"
_SIGNATURES = tuple(
    (frozenset(shown_by.split()), frozenset(names.split()))
    for shown_by, names in (
        (
            "x-amz-signature",
            "x-amz-algorithm x-amz-credential x-amz-date x-amz-expires x-amz-security-token x-amz-signature"
            " x-amz-signedheaders",
        ),
        ("awsaccesskeyid signature", "awsaccesskeyid expires signature x-amz-security-token"),
        (
            "x-goog-signature",
            "x-goog-algorithm x-goog-credential x-goog-date x-goog-expires x-goog-signature x-goog-signedheaders",
        ),
        ("googleaccessid signature", "expires googleaccessid signature"),
        ("key-pair-id signature", "expires hash-algorithm key-pair-id policy signature"),
        ("sig sv", "saoid scid sdd se sig sip skoid sks skt sktid ske skv sp spr sr srt ss st suoid sv"),
    )
)  # (what shows that a URL has such a signature, what belongs to it), in small letters


def checked_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return a `key_without` argument as a tuple. Raises TypeError for what is none."""
    if isinstance(names, str):
        names = (names,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"key_without must be {SIGNATURE!r}, or names of parameters of a URL, not {names!r}")
    return tuple(names)


def url_without(url: str, names: Sequence[str]) -> str:
    """Return a URL without some parameters of its query; all others stay as they are, in their order.

    names: of parameters, with `*` and `?` as in file names; "signature" stands for those of the signature that it has.
    """
    start, separator, query = url.partition("?")
    query, hash_sign, fragment = query.partition("#")
    parts = query.split("&") if query else []
    known = {_name_of(part).lower() for part in parts}
    of_signatures = {name for shown_by, group in _SIGNATURES if shown_by <= known for name in group}

    def is_left_out(part: str) -> bool:
        name = _name_of(part)
        return any(
            (pattern == SIGNATURE and name.lower() in of_signatures) or fnmatchcase(name, pattern) for pattern in names
        )

    kept = "&".join(part for part in parts if not is_left_out(part))
    return start + (separator if kept or not parts else "") + kept + hash_sign + fragment


def _name_of(part: str) -> str:
    return unquote_plus(part.partition("=")[0])
