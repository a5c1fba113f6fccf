"""Which threads may call a file system of fsspec, and how many at once.

What is shared is the *instance*: one tar file object, one FTP connection, one table of listings.  A lock of ours cannot
guard the calls that its user makes beside the cache, so there are three ways:

* `Shared`: known to be safe, as asynchronous ones are, whose requests run on one event loop.  Any thread, any number.
* `Own`: an instance that only the cache has: made from a URL, or made anew from the same arguments.  Any thread, one
  call at a time; so readahead goes on in the background.  Costs a connection, or an archive's list of names.
* `Callers`: all others.  Threads that are reading through the cache, one at a time, and no others: another call of the file
  system itself meanwhile is a thread too many without the cache as well.  Readahead costs the reader the time that it
  takes.  Pages are the instance's: files that are opened on another one are read by their own threads.

A file system may stand on others (an archive on a remote file, a directory of another file system): it is as safe as they
are, and its own only if they are.

A child of fork() has locks of its own.  It makes instances anew where they were the cache's own: a connection, and the
position of a file, are the parent's as well.  What is its user's it uses as its user does.
"""

import hashlib
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from pagecache._core import Mutex
from pagecache.stores.abandoned import waiting
from pagecache.stores.base import NoRangesError
from pagecache.stores.fsspec_kinds import (
    DIRECTORY,
    fields_of,
    is_asynchronous,
    is_connected,
    is_connection,
    is_kind,
    is_safe_kind,
    is_thread_safe,
    may_be_own,
    nested,
    unwrapped,
)
from pagecache.stores.fsspec_protocols import FileSystem
from pagecache.stores.fsspec_remake import (
    apart,
    can_be_remade,
    identity_by_arguments,
    identity_of_arguments,
    is_private,
    remade,
)
from pagecache.stores.turns import Turns
from pagecache.stores.validators import ChangedError

_NUMBER, _TURNS, _OWN = "_pagecache_number", "_pagecache_turns", "_pagecache_own"  # what is kept with an instance
_ANSWERS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ChangedError,
            NoRangesError)  # fmt: skip
CONNECTIONS_MAX = 16  # that are kept although they are not used now
_numbers = itertools.count(1)
_lock = Mutex()
_connections: "OrderedDict[str, Own]" = OrderedDict()  # by identity, the one used last at the end
logger = logging.getLogger("pagecache")


class Shared:
    """A file system that any number of threads may call at once. fs: which."""

    is_parallel = True
    background_reads = True

    def __init__(self, fs: FileSystem):
        self.fs = self.template = fs
        self.identity = identity_of(fs)
        self.is_numbered = _NUMBER in fields_of(fs)

    def leave_behind(self) -> None:
        """Do nothing: others may call it while a call hangs."""

    @contextmanager
    def turn(self) -> Iterator[FileSystem]:
        """The file system, for one call."""
        yield self.fs


class _NumberedTurns(Turns):
    """Turns of which several are taken in the order of their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.number = next(_numbers)


class Own(Turns):
    """An instance that only the cache calls, one thread at a time.

    fs: the instance. It lives as long as the stores that use it, and as what it was made from.
    After a call that failed or was interrupted, a connection may hold half an answer: the next call is made on a new one.
    """

    is_parallel = False
    background_reads = True

    def __init__(self, fs: FileSystem):
        super().__init__()
        self._fs: FileSystem | None = fs
        self._kept = [fs]  # those of parent processes as well: they are not even closed here
        self._is_connected = is_connected(fs)
        self.identity = identity_of(fs)
        self.is_numbered = _NUMBER in fields_of(fs)

    @property
    def template(self) -> FileSystem:
        """An instance of which only the arguments and the rules for paths count."""
        return self._kept[-1]

    @property
    def fs(self) -> FileSystem:
        """The instance, which is this process's own.

        Raises RuntimeError if the parent's cannot be made anew, and what its class raises. Context: may connect.
        """
        with self.lock.held():
            return self._made()

    def _made(self) -> FileSystem:
        """Return the instance. Context: the turn is the calling thread's."""
        if self._fs is None:
            again = remade(self.template)
            if again is None:
                kind = type(self.template).__name__
                raise RuntimeError(f"{kind} is the parent process's, and its arguments do not say how to make another")
            self._fs = self._kept[-1] = again
        return self._fs

    def leave_behind(self, lock: Mutex | None = None) -> None:
        """Leave the instance to a call that hangs: the next ones are made on a new one.

        lock: of that call's turn; None: of whatever call is under way.
        """
        with _lock.held():
            if lock in (None, self.lock) and self.lock.is_held and can_be_remade(self.template):
                self.lock, self._fs = Mutex(), None

    def renew_after_fork(self) -> None:
        """Give a child a lock of its own, and let it make an instance of its own."""
        super().renew_after_fork()
        if self._fs is not None:
            self._kept.append(self._fs)
            self._fs = None

    @contextmanager
    def turn(self) -> Iterator[FileSystem]:
        """The file system, for one call. Context: waits for the calls of other threads; a signal ends the wait."""
        while True:
            lock = self.lock
            with lock.held():
                if lock is not self.lock:
                    continue  # the call that was waited for was left behind
                try:
                    fs = self._made()
                    with waiting(partial(self.leave_behind, lock)):
                        yield fs
                except _ANSWERS:
                    raise
                except BaseException:
                    if self._is_connected and lock is self.lock and can_be_remade(self.template):
                        self._fs = None
                    raise
                return


class Callers:
    """An instance that others call too: the threads that read through the cache call it, one at a time. fs: which."""

    is_parallel = False
    background_reads = False
    is_numbered = True

    def __init__(self, fs: FileSystem):
        self.fs = self.template = fs
        self.identity = _numbered(fs)
        self._turns = sorted(_turns_of(fs), key=lambda turns: turns.number)

    def leave_behind(self) -> None:
        """Do nothing: it is its user's."""

    @contextmanager
    def turn(self) -> Iterator[FileSystem]:
        """The file system, for one call. Context: waits for the calls of other threads; a signal ends the wait."""
        with ExitStack() as held:
            for turns in self._turns:
                held.enter_context(turns.lock.held())
            yield self.fs


Instance = Shared | Own | Callers


def own_instance(fs: FileSystem) -> FileSystem:
    """Return a file system like this one that this process can use, from threads if it may be used from threads."""
    fs = unwrapped(fs)
    if not is_asynchronous(fs) or is_kind(fs, DIRECTORY):
        return fs
    if not getattr(fs, "asynchronous", False) and getattr(fs, "_pid", os.getpid()) == os.getpid():
        return fs  # not bound to a loop of the caller's, nor to the process that forked this one
    options = {name: value for name, value in fs.storage_options.items() if name not in ("asynchronous", "loop")}
    return type(fs)(*fs.storage_args, **options)


def identity_of(fs: FileSystem) -> str:
    """Return what is the same for file systems that reach the same objects with the same rights, in any process; a number
    of this process's for one whose arguments do not say enough."""
    return identity_by_arguments(fs) or _numbered(fs)


def instance_of(fs: FileSystem, *, thread_safe: bool | None = None, exclusive: bool = False) -> Instance:
    """Return the way to call a file system.

    thread_safe: whether it may be called from several threads at once; None: what is known. exclusive: whether nothing else
    calls this very instance.
    """
    known: Instance | None = getattr(fs, "instance", None) if fs.protocol == "pagecache" else None
    if known is not None and thread_safe is None:
        return known
    fs = own_instance(fs)
    if thread_safe or (thread_safe is None and is_thread_safe(fs)):
        return Shared(fs)
    return Own(fs) if exclusive else _own_of(fs) or Callers(fs)


def instance_made_for_us(fs: FileSystem) -> Instance:
    """Return the way to call a file system that was just made for this, unless others can get the same from fsspec."""
    fs = unwrapped(fs)
    return _kept(Own(fs)) if not is_thread_safe(fs) and is_private(fs) else instance_of(fs)


def instance_of_url(
    url: str, storage_options: Mapping[str, Any], *, thread_safe: bool | None = None
) -> tuple[Instance, str]:
    """Return the way to call the file system of a URL, which may be chained, and the path in it.

    storage_options: as `fsspec.open` takes them. thread_safe: as for `instance_of`. Raises as `fsspec.core.url_to_fs`.
    """
    from fsspec.core import get_filesystem_class, url_to_fs

    protocols = [_protocol_of(part) for part in url.split("::")]
    kinds = [get_filesystem_class(protocol) for protocol in protocols]
    if thread_safe is not None or not all(may_be_own(kind) or is_safe_kind(kind) for kind in kinds):
        fs, path = url_to_fs(url, **storage_options)
        return instance_of(fs, thread_safe=thread_safe), path
    options = dict(storage_options)
    if len(kinds) == 1 and may_be_own(kinds[0]):
        own = _connection(identity_of_arguments(kinds[0], (), _options_of(kinds[0], url, options)))
        if own is not None:
            return own, kinds[0]._strip_protocol(url)
    for protocol, kind in zip(protocols[1:], kinds[1:], strict=True):
        if not is_safe_kind(kind):
            options[protocol] = {**options.get(protocol, {}), "skip_instance_cache": True}
    if not is_safe_kind(kinds[0]):
        options["skip_instance_cache"] = True
    fs, path = url_to_fs(url, **options)
    return instance_made_for_us(fs), path


def instance_of_target(protocol: str, options: Mapping[str, Any], *, thread_safe: bool | None = None) -> Instance:
    """Return the way to call a file system that is made of a protocol and options, as for `fsspec.filesystem`.

    thread_safe: as for `instance_of`. Raises as `fsspec.filesystem`.
    """
    from fsspec import filesystem, get_filesystem_class
    from fsspec.config import apply_config

    kind = get_filesystem_class(protocol)
    if thread_safe is not None or is_safe_kind(kind) or not may_be_own(kind):
        return instance_of(filesystem(protocol, **options), thread_safe=thread_safe)
    own = _connection(identity_of_arguments(kind, (), apply_config(kind, dict(options))))
    return own or instance_made_for_us(filesystem(protocol, **apart(options)))


# -- what is kept ------------------------------------------------------------------------------------------------------


def _numbered(fs: FileSystem) -> str:
    """Return the identity of one instance, which is a number."""
    with _lock.held():
        number = fields_of(fs).setdefault(_NUMBER, f"{os.getpid()}.{next(_numbers)}")
    return hashlib.sha256(f"{type(fs).__qualname__} number {number}".encode()).hexdigest()[:32]


def _turns_of(fs: FileSystem) -> list[_NumberedTurns]:
    """Return the turns of an instance and of those that it stands on, the same for all that call them."""
    with _lock.held():
        found: list[_NumberedTurns] = [fields_of(fs).setdefault(_TURNS, _NumberedTurns())]
    return found + [turns for below in nested(fs) if not is_thread_safe(below) for turns in _turns_of(below)]


def _own_of(fs: FileSystem) -> Own | None:
    """Return an instance of our own that is like one of a user's, the same for all callers; None if there can be none."""
    fields = fields_of(fs)
    if _OWN not in fields:
        own = (_connection(identity_by_arguments(fs)) if is_connection(fs) else None) or _made_like(fs)
        with _lock.held():
            fields.setdefault(_OWN, own)
    found: Own | None = fields[_OWN]
    return found


def _made_like(fs: FileSystem) -> Own | None:
    try:
        again = remade(fs)
    except Exception as error:  # a server that allows one connection, a password that counts once
        logger.warning("%s cannot be made anew, and is read in the threads of its user only: %s", type(fs).__name__, error)
        return None
    return None if again is None else _kept(Own(again))


def _connection(identity: str | None) -> Own | None:
    """Return the connection of ours that reaches the same objects, if there is one."""
    with _lock.held():
        own = None if identity is None else _connections.get(identity)
        if own is not None:
            _connections.move_to_end(own.identity)
        return own


def _kept(own: Own) -> Own:
    """Keep a connection for others that need the same, unless another thread was faster; returns the one that is kept. An
    archive is not kept: another one may take its place."""
    if not is_connection(own.template) or own.is_numbered:
        return own
    with _lock.held():
        own = _connections.setdefault(own.identity, own)
        _connections.move_to_end(own.identity)
        if len(_connections) > CONNECTIONS_MAX:
            _connections.popitem(last=False)
        return own


# -- URLs --------------------------------------------------------------------------------------------------------------


def _protocol_of(part: str) -> str:
    """Return the protocol of one part of a chained URL."""
    from fsspec.core import split_protocol
    from fsspec.registry import available_protocols

    return split_protocol(part)[0] or (part if part in available_protocols() else "file")


def _options_of(kind: type[FileSystem], url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the file system that fsspec makes of a URL."""
    from fsspec.config import apply_config

    made: dict[str, Any] = apply_config(kind, {**kind._get_kwargs_from_urls(url), **options})
    return made


def _after_fork_in_child() -> None:
    global _lock
    _lock = Mutex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
