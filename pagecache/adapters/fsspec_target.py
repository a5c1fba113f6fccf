"""The target of a chained file system: what objects are read from, and what everything else is asked of."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import fsspec

from pagecache._core import Mutex
from pagecache.stores.fsspec_instances import Callers, Instance, Own, instance_of, instance_of_target, own_instance
from pagecache.stores.fsspec_kinds import is_connection
from pagecache.stores.fsspec_protocols import FileSystem


class Target:
    """The target.

    given: an instance; or None, and protocol and options say how to make one. thread_safe: as for FsspecStore.

    Objects are read from `instance`, which may be the cache's own. Then no other may have it: `fs`, for whatever users
    do with the target, is another one, made when it is asked for first. What is asked beside reading is asked of that too,
    as it may write, and then has to know of it in its listings; an archive, which only reads, is asked where it is read.
    """

    def __init__(
        self, given: FileSystem | None, protocol: str | None, options: Mapping[str, Any], thread_safe: bool | None
    ):
        self._made_from = (given, protocol, options, thread_safe)
        self._lock = Mutex()
        self._others: Callers | None = None
        self.instance: Instance = (
            instance_of(cast(FileSystem, given), thread_safe=thread_safe)
            if protocol is None
            else instance_of_target(protocol, options, thread_safe=thread_safe)
        )

    def renewed(self) -> "Target":
        """Return the same for a child of fork()."""
        return Target(*self._made_from)

    @property
    def template(self) -> FileSystem:
        """A file system whose rules for paths are the target's."""
        return self.instance.template

    def _visible(self) -> Callers:
        """Return the way to call the target that users have."""
        given, protocol, options, _ = self._made_from
        with self._lock.held():
            if self._others is None:
                self._others = Callers(own_instance(fsspec.filesystem(protocol, **options) if given is None else given))
            return self._others

    @property
    def fs(self) -> Any:
        """The target for any use."""
        return self._visible().fs if isinstance(self.instance, Own) else self.instance.fs

    @contextmanager
    def turn(self) -> Iterator[FileSystem]:
        """The target, for one call that is not a read. Context: as a turn of the instance."""
        others = self.instance
        if isinstance(others, Own) and is_connection(others.template):
            others = self._visible()
        with others.turn() as fs:
            yield fs
