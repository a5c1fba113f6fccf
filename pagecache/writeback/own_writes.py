"""Changes of a store by the cache itself, which are no news to it; what others have changed is not overwritten."""

import contextlib
import errno
from collections.abc import Iterator

from pagecache import _core
from pagecache._core import STAMP_DOUBTFUL, STAMP_SAME
from pagecache.requests.backing import BackedMapping

CHANGED = (
    "others have changed it since it was read, and it is not overwritten; "
    "invalidate(discard=True) gives up what is not written and takes it as it is"
)


class ForeignChange(OSError):
    """Others have changed the object whose bytes are cached. is_doubtful: or only attributes of it, such as its mode."""

    is_doubtful = False


def foreign_change(mapping: BackedMapping, state: int | None = None) -> ForeignChange:
    """Return the error (ESTALE) for changing an object that is no longer the one that is cached. state: of its stamp."""
    error = ForeignChange(errno.ESTALE, f"cannot change {mapping.name}: {CHANGED}")
    error.is_doubtful = state == STAMP_DOUBTFUL
    return error


@contextlib.contextmanager
def own_write(mapping: BackedMapping, size: int | None = None) -> Iterator[None]:
    """Within the block the cache changes the object's store: its version, which follows, is taken for that of the cached
    bytes.

    size: what the object has afterwards (bytes); None: what it has. Raises ForeignChange, before the block if others
    had changed the object, and after it if that has happened meanwhile, as far as is known; what asking the store does.
    Context: nothing may be waited for in the block that waits for write-back of the object.
    """
    backing = mapping.backing
    if mapping.fd < 0:
        if not backing.is_current(mapping):
            raise foreign_change(mapping)
        with _core.OwnWrite(mapping, False):
            try:
                yield
            finally:
                backing.take_version(mapping)
        return
    with mapping.store_lock.held():
        state = mapping.stamp_state()
        if state != STAMP_SAME:
            raise foreign_change(mapping, state)
        own = _core.OwnWrite(mapping, True, mapping.stamp[2] if size is None else size)
        with own:
            try:
                yield
            except BaseException:
                own.size = -1  # it may have been done in part
                raise
        if not own.is_alone:
            raise foreign_change(mapping)


@contextlib.contextmanager
def own_attributes(mapping: BackedMapping) -> Iterator[None]:
    """Within the block the owner of the cache changes attributes of an open object: time, mode, names. That is no news, but
    what others have changed before is. Raises what asking a store for its version does."""
    backing = mapping.backing
    if mapping.fd < 0:
        is_same = backing.is_current(mapping)
        with _core.OwnWrite(mapping, False):
            try:
                yield
            finally:
                if is_same:
                    backing.take_version(mapping)
        return
    with mapping.store_lock.held():
        is_same = mapping.stamp_state() == STAMP_SAME
        with _core.OwnWrite(mapping, is_same, mapping.stamp[2]):
            yield
