"""Options of one call of a file system: `fs.open(path, version_id=...)`, `fs.cat_file(url, headers=...)` and so on.

They choose the bytes, or are the right to them.  So they go to every request for the object, those for size and version
included, and what they brought is cached under a key of its own: it is served only with the same options.  Which of
them choose bytes, and which are rights, only the library knows; a key too many costs a request, one too few the truth.
What only says how the library would fetch is left out, as the cache decides that: block sizes, caches, concurrency.
"""

import hashlib
import inspect
import pickle
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pagecache.options import unknown_option
from pagecache.stores.fsspec_protocols import FileSystem

HOW_IT_IS_FETCHED = frozenset(
    ("acl", "autocommit", "batch_size", "block_size", "cache_options", "cache_type", "callback", "chunk_size", "chunksize",
     "concurrency", "fill_cache", "max_concurrency", "mode", "refresh", "size")
)  # fmt: skip
_PLAIN = (str, bytes, bool, int, float, type(None))
PICKLE_PROTOCOL = 4
_NUMBERED = "\0"  # stands before the number of an object; no repr holds one
_numbers: dict[int, str] = {}  # by address, as long as the object lives


def request_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return those of a call's options that go to its requests; None is no option."""
    return {name: value for name, value in (options or {}).items() if value is not None and name not in HOW_IT_IS_FETCHED}


def key_part(options: Mapping[str, Any]) -> str:
    """Return what a key ends with for these request options: nothing for none of them. It holds no secret."""
    if not options:
        return ""
    return f"#options={hashlib.sha256(_text_of(options).encode()).hexdigest()[:32]}"


def are_of_this_process(options: Mapping[str, Any]) -> bool:
    """Whether some option is an object that cannot be distinguished from others by its contents."""
    return _NUMBERED in _text_of(options)


def _text_of(value: object) -> str:
    """Return a text that is the same for equal options, in any process if that can be."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{name!r}: {_text_of(item)}" for name, item in value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text_of, value)) + "]"
    if type(value) in _PLAIN:
        return repr(value)
    try:
        return f"{type(value).__qualname__} {pickle.dumps(value, PICKLE_PROTOCOL).hex()}"
    except Exception:  # anything may be an option, and fail in its own way
        return f"{_NUMBERED}{_number_of(value)}"


def _number_of(value: object) -> str:
    """Return what no other object has had: addresses come back. Context: any thread; each step is one of the table's."""
    fresh = uuid.uuid4().hex
    number = _numbers.setdefault(id(value), fresh)
    if number is fresh:
        try:
            weakref.finalize(value, _numbers.pop, id(value), None).atexit = False
        except TypeError:  # then it is another one each time
            del _numbers[id(value)]
    return number


def are_read_by_cat_file(fs: FileSystem, name: str, names: Collection[str]) -> bool:
    """Whether `cat_file` of a file system takes these options: by name, or as it takes any, unless `open` has one by name.

    For what is taken as any is may be swallowed: adlfs' `cat_file` takes a version and reads the latest.

    name: "cat_file" or "_cat_file".
    """
    if not names:
        return True
    cat_file = getattr(fs, name)
    known, of_open = inspect.signature(cat_file).parameters, inspect.signature(fs._open).parameters
    return not _missing(cat_file, names) and not any(name in of_open and name not in known for name in names)


def _missing(function: Callable[..., Any], names: Collection[str]) -> list[str]:
    if not names:
        return []
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return [name for name in names if name not in parameters]


def check_taken(function: Callable[..., Any], names: Collection[str], owner: str) -> None:
    """Check that a method of a library takes these options. Raises TypeError, which names the nearest one."""
    missing = _missing(function, names)
    if missing:
        parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "path", "url")]
        raise unknown_option(missing[0], parameters, owner)
