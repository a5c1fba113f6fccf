"""How an object is opened: what each argument of `PageCache.open` may be."""

import os
from typing import Literal, get_args

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]  # of a file, or a URL
Mode = Literal["rb", "r+b", "w+b", "x+b", "ab", "a+b"]
Durability = Literal["write-back", "write-through", "dsync", "sync"]
OnChange = Literal["error", "reload"]
Priority = Literal["normal", "low", "high", "keep"]
Policy = Literal["adaptive", "kernel", "s3fifo", "sieve", "lirs"]
Recheck = bool | Literal["open"] | float
MODES: tuple[str, ...] = get_args(Mode)
_SPELT_OTHERWISE = {"rb+": "r+b", "wb+": "w+b", "xb+": "x+b", "ab+": "a+b"}
_MODES_MEANT = {
    "r": "rb", "r+": "r+b", "w": "w+b", "w+": "w+b", "wb": "w+b", "x": "x+b", "x+": "x+b", "xb": "x+b", "a": "ab",
    "a+": "a+b",
}  # fmt: skip


def checked_mode(mode: str) -> str:
    """Return a mode as it is written here: "rb+" means "r+b". Raises ValueError, with the mode to use, for another."""
    if mode in MODES:
        return mode
    if mode in _SPELT_OTHERWISE:
        return _SPELT_OTHERWISE[mode]
    use = f"'{_MODES_MEANT[mode]}'" if mode in _MODES_MEANT else f"one of {', '.join(MODES)}"
    raise ValueError(f"unknown mode {mode!r}: files are binary, use {use}")


def check_choices(durability: str, on_change: str) -> None:
    """Raise ValueError, with what may be chosen, for a durability or an on_change that there is not."""
    if durability not in get_args(Durability):
        raise ValueError(f"unknown durability {durability!r}: use one of {', '.join(get_args(Durability))}")
    if on_change not in get_args(OnChange):
        raise ValueError(f"on_change must be 'error' or 'reload', not {on_change!r}")
