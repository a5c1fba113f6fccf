"""File systems of fsspec made anew, so that the cache has an instance which shares nothing with one of its user's.

Made anew is only what is known to share nothing (`REMADE`), from arguments that are values, and with all that it stands on;
what comes of it is looked at once more: no other caller may find the same instance in fsspec's own tables.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pagecache.stores.fsspec_kinds import ARCHIVES, DIRECTORY, REMADE, is_thread_safe, name_of, nested, unwrapped
from pagecache.stores.fsspec_protocols import DirectoryFileSystem, FileSystem

_OPTIONS_WITHOUT_MEANING = ("asynchronous", "loop", "skip_instance_cache", "batch_size", "use_listings_cache",
                            "listings_expiry_time", "max_paths")  # fmt: skip
_VALUES = (str, bytes, bool, int, float, type(None), os.PathLike)


def is_private(fs: FileSystem) -> bool:
    """Whether an instance that was just made, and is held only here, shares nothing with others."""
    name = name_of(type(fs))
    if (name not in REMADE and name != DIRECTORY) or any(other is fs for other in type(fs)._cache.copy().values()):
        return False
    return _is_closed(fs) and all(is_thread_safe(below) or is_private(below) for below in nested(fs))


def can_be_remade(fs: FileSystem) -> bool:
    """Whether another instance can be made that shares nothing with this one, as far as is known before it is."""
    name = name_of(type(fs))
    if name != DIRECTORY and (name not in REMADE or not _is_value(fs.storage_args) or not _is_value(fs.storage_options)):
        return False
    return _is_closed(fs) and all(is_thread_safe(below) or can_be_remade(below) for below in nested(fs))


def remade(fs: FileSystem) -> FileSystem | None:
    """Return another instance like this one, that shares nothing with it; None if that cannot be had, or be known.

    Raises what its class raises. Context: connects, or reads an archive's list of names.
    """
    if not can_be_remade(fs):
        return None
    kind: Callable[..., FileSystem] = type(fs)
    if name_of(type(fs)) == DIRECTORY:
        directory = cast(DirectoryFileSystem, fs)
        below = remade(unwrapped(directory.fs))
        return None if below is None else kind(path=directory.path, fs=below, skip_instance_cache=True)
    options = dict(fs.storage_options)
    if name_of(type(fs)) in ARCHIVES:
        options["target_options"] = apart(options.get("target_options") or {})
    again = kind(*fs.storage_args, **{**options, "skip_instance_cache": True})
    return again if is_private(again) else None


def identity_by_arguments(fs: FileSystem) -> str | None:
    """Return what is the same for file systems that reach the same objects with the same rights, in any process; None if
    only the instance itself shows."""
    if not getattr(fs, "global_store", True):  # files in memory that are the instance's own
        return None
    return identity_of_arguments(type(fs), fs.storage_args, fs.storage_options)


def identity_of_arguments(kind: type, args: Sequence[Any], options: Mapping[str, Any]) -> str | None:
    """Return the identity of a file system of this class with these arguments; None as `identity_by_arguments`."""
    text = f"{name_of(kind)} {tuple(map(_meant, args))!r} {sorted(_meant_options(options).items(), key=str)!r}"
    return None if " at 0x" in text else hashlib.sha256(text.encode()).hexdigest()[:32]  # addresses come back


def _meant(value: object) -> object:
    """Return what an argument says of the objects that are reached, and of the rights."""
    if isinstance(value, Mapping):
        return _meant_options(value)
    if hasattr(value, "storage_options") and hasattr(value, "storage_args"):
        # what it says of itself may be an address, however written
        return identity_by_arguments(cast(FileSystem, value)) or " at 0x"
    return value


def _meant_options(options: Mapping[str, Any]) -> dict[str, object]:
    return {name: _meant(item) for name, item in options.items() if name not in _OPTIONS_WITHOUT_MEANING}


def _is_value(argument: object) -> bool:
    """Whether an argument is one that is not shared by being passed on."""
    if isinstance(argument, Mapping):
        return all(_is_value(key) and _is_value(item) for key, item in argument.items())
    if isinstance(argument, (list, tuple, set, frozenset)):
        return all(map(_is_value, argument))
    return isinstance(argument, _VALUES)


def _is_closed(fs: FileSystem) -> bool:
    """Whether an instance is no archive, or one that is only read, from a file that it has opened itself."""
    return name_of(type(fs)) not in ARCHIVES or (bool(nested(fs)) and getattr(fs, "mode", "r") == "r")


def apart(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a target with which fsspec makes an instance that it gives to no other caller."""
    options = {**options, "skip_instance_cache": True}
    if options.get("target_protocol"):
        options["target_options"] = apart(options.get("target_options") or {})
    return options
