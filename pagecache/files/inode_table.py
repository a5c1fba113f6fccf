"""The objects that a cache knows: found by the key of their store, shared by the files that are open on one, and forgotten.

An inode is there while the object is open, while something of it is to be written or made durable, and a while
longer. Of those that are not open, the one closed longest ago is parked when there are too many: its pages, size and
version stay, known by the directory in the segment (core/directory.pxd), and the inode goes. Opening the object makes
a new one over the same pages. So an object that is not open costs a record in the segment, and opening one costs the
same however many are known.

    open    an inode that is there, or parked but still looked at  ->  that one
            else the directory  ->  a new inode over its record; else a new one over a new record
    park    the directory has the object; the record is let go of when the last reference to the inode is gone
"""

import contextlib
import errno
import heapq
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pagecache import truncate
from pagecache._core import AddressSpace, LongValidator, Mutex, ObjectKey, Segment, find_object, known_objects
from pagecache.files.inode import Inode, Memo
from pagecache.stats.numbers import FileStats, read_file_stats
from pagecache.stores.base import BackingStore, is_within
from pagecache.units import LAST_PAGE
from pagecache.weak_members import WeakMembers
from pagecache.writeback.flusher import is_dirty

RECENT_MAX = 256  # inodes of objects that are not open
PARKS_MAX = 4  # of them, for each object that is opened
LOOKED_AT_MAX = 256  # parked inodes that may be looked at still
MEMOS_MAX = 8192  # objects of which more is remembered than the directory holds
LISTED_AT_ONCE = 4096
LISTED_MAX = 4096  # objects that are not open which are listed
RECLAIM_TRIES = 8
RECLAIM_PAGES = 64
logger = logging.getLogger("pagecache")


class KnownObject(NamedTuple):
    """What the directory knows of an object that is not open.

    key: its beginning, if it is not is_whole. name: perhaps its end only. nrpages: cached pages.
    """

    number: int
    generation: int
    key: str
    is_whole: bool
    validator: str | LongValidator | None
    name: str
    nrpages: int


class IdleObject:
    """An object that is not open, as it is listed. Context: it may be opened, or go, meanwhile."""

    nr_open = 0

    def __init__(self, segment: Segment, known: KnownObject, memo: Memo | None):
        self.name = known.name
        self._counts: dict[str, int] = {} if memo is None else memo[1]
        self.mapping = AddressSpace(segment, known.name, number=known.number)

    def stats(self) -> FileStats:
        """Return what was counted for this object. Context: walks its pages."""
        return read_file_stats(self.mapping, self.name, 0, self._counts)


class InodeTable:
    """The objects of one cache. make: makes the inode of a store, over a mapping of the directory if one is given.

    Context: any thread.
    """

    def __init__(self, segment: Segment, make: Callable[[BackingStore | None, AddressSpace | None], Inode]):
        self.lock = Mutex()
        self._segment = segment
        self._make = make
        self._inodes: dict[str, Inode] = {}
        self._recent: OrderedDict[str, None] = OrderedDict()  # perhaps closed; the one closed longest ago first
        self._parked: dict[str, weakref.ref[Inode]] = {}  # that are looked at still, or were a moment ago
        self._memos: OrderedDict[str, Memo] = OrderedDict()
        self._all: WeakMembers[Inode] = WeakMembers()

    def __iter__(self) -> Iterator[Inode]:
        """Iterate over the inodes that are there, of forgotten objects that are open too."""
        return iter(self._all)

    def find(self, key: str) -> Inode | None:
        """Return the object that a store's key names, if it is open or cached."""
        inode = self._inodes.get(str(key))
        if inode is None and isinstance(key, str) and find_object(self._segment, ObjectKey(key)) is not None:
            with self.lock.held():
                inode = self._known(key, None)
        return inode if inode is not None and inode.mapping.key == key else None

    def knows(self, key: str) -> bool:
        """Whether the object that a store's key names is open or cached."""
        return str(key) in self._inodes or find_object(self._segment, ObjectKey(str(key))) is not None

    def largest_idle(self) -> "list[IdleObject]":
        """Return those objects that only the directory knows and that have most pages cached, up to a number of them."""
        found = []
        for known in heapq.nlargest(LISTED_MAX, self.idle(), key=lambda known: known.nrpages):
            with contextlib.suppress(ValueError):  # it went by itself
                found.append(IdleObject(self._segment, known, self._memos.get(known.key)))
        return found

    def idle(self) -> Iterator[KnownObject]:
        """Iterate over the objects that only the directory knows. Context: others may open and forget them meanwhile."""
        number = 1
        while number:
            found, number = known_objects(self._segment, number, LISTED_AT_ONCE)
            yield from (KnownObject(*known) for known in found)

    # -- opening -------------------------------------------------------------------------------------------------------

    def acquire(self, store: BackingStore, *, writes: bool = False) -> Inode:
        """Return the shared inode of a store's key and version, counted as open once more."""
        key = str(store.key)
        while True:
            with self.lock.held():
                inode = self._inodes.get(key) or self._known(key, store)
                if inode is None or inode.mapping.key != store.key:
                    inode = self._new(key, store)
                elif not inode.serves(store):
                    is_doubtful, other, inode = inode.is_doubtful(store), inode, None
                if inode is not None:
                    inode.acquire(store, writes=writes)
                    self._park_surplus()
                    return inode
            if is_doubtful and other.look_closer():  # without the lock, as this waits for reads under way
                continue
            with self.lock.held():
                dropped = [self._pop(key)] if self._inodes.get(key) is other else []
                del other
            _give_up(dropped)

    def acquire_again(self, inode: Inode, store: BackingStore | None, *, writes: bool = False) -> None:
        """Count an inode that is open as open once more. store: another one of the object, or None."""
        with self.lock.held():
            inode.acquire(store, writes=writes)

    def _known(self, key: str, store: BackingStore | None) -> Inode | None:
        """Return the inode of an object that was parked, if it is known still. Context: self.lock held."""
        reference = self._parked.pop(key, None)
        inode = reference() if reference is not None else None
        if inode is None:
            try:
                mapping = AddressSpace(self._segment, key=ObjectKey(key))
            except KeyError:
                return None
            mapping.key = key
            inode = self._make(store, mapping)
            inode.recall(self._memos.pop(key, None))
            self._all.add(inode)
        inode.mapping.stays = False
        self._inodes[key] = inode
        self._recent[key] = None
        return inode

    def _new(self, key: str, store: BackingStore) -> Inode:
        """Return a new inode for a store. Raises OSError (ENFILE) when all records are held. Context: self.lock held."""
        for _ in range(RECLAIM_TRIES):
            try:
                inode = self._make(store, None)
                break
            except OSError as error:
                if error.errno != errno.ENFILE:
                    raise
                while self._recent and self._park_oldest():
                    pass
                self._segment.reclaim(RECLAIM_PAGES)  # an object without pages makes room
        else:
            inode = self._make(store, None)
        if key in self._inodes:
            self._pop(key)  # of a key that is another one, and reads the same
        self._inodes[key] = inode
        self._recent.pop(key, None)
        self._all.add(inode)
        if isinstance(store.key, str):
            inode.mapping.publish(ObjectKey(key))
        return inode

    # -- parking -------------------------------------------------------------------------------------------------------

    def note_closed(self, inode: Inode) -> None:
        """Note that a file of an object was closed. Context: wherever a file is collected: takes no lock."""
        key = str(inode.mapping.key)
        if not inode.nr_open and self._inodes.get(key) is inode:
            self._recent[key] = None
            try:
                self._recent.move_to_end(key)
            except KeyError:  # another thread has just looked at it
                self._recent[key] = None

    def _park_surplus(self) -> None:
        """Park some objects if more are there than should be, though they are not open. Context: self.lock held."""
        for _ in range(PARKS_MAX):
            if len(self._recent) <= RECENT_MAX:
                return
            self._park_oldest()

    def _park_oldest(self) -> bool:
        """Park the object that was closed longest ago, if it may be; else it is looked at again in its next turn. Returns
        whether it is gone from here. Context: self.lock held."""
        try:
            key = self._recent.popitem(last=False)[0]
        except KeyError:
            return False
        inode = self._inodes.get(key)
        if inode is None or inode.nr_open:
            return True  # it comes back when it is closed
        if not inode.is_idle:
            self._recent[key] = None
            return False
        del self._inodes[key]
        if inode.may_be_parked and inode.mapping.place is not None:
            memo = inode.memo()
            if memo is not None:
                self._memos[key] = memo
                if len(self._memos) > MEMOS_MAX:
                    self._memos.popitem(last=False)
            inode.mapping.stays = True
            reference = weakref.ref(inode)
            del inode
            if reference() is not None:
                self._parked[key] = reference
                if len(self._parked) > LOOKED_AT_MAX:
                    self._parked = {name: seen for name, seen in self._parked.items() if seen() is not None}
        return True

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def known(self) -> list[Inode]:
        """Return the inodes that can be found."""
        with self.lock.held():
            return list(self._inodes.values())

    def _pop(self, key: str) -> Inode:
        """Let an object not be found any more. Context: self.lock held."""
        self._recent.pop(key, None)
        inode = self._inodes.pop(key)
        inode.mapping.unpublish()
        return inode

    def forget(self, keys: tuple[str, ...], whole: bool) -> None:
        """Forget objects by their keys, or what those begin with. whole: only if they end there, or before a "/" or "#"."""
        roots, dropped = frozenset(keys), []

        def is_meant(known: str) -> bool:
            return is_within(known, roots) if whole else known.startswith(keys)

        with self.lock.held():
            for key in [key for key in self._inodes if is_meant(key)]:
                dropped.append(self._pop(key))
            for known in self.idle():
                if is_meant(known.key) if known.is_whole else _may_begin(known.key, keys):
                    self._drop(known.number, known.generation)
            self._parked = {key: seen for key, seen in self._parked.items() if not is_meant(key)}
        _give_up(dropped)

    def _drop(self, number: int, generation: int) -> None:
        """Let an object that is not open go, with its pages. Context: self.lock held."""
        with contextlib.suppress(KeyError):  # it went by itself
            AddressSpace(self._segment, number=number, generation=generation)

    def discard(self, key: str) -> None:
        """Forget the object of a store's key, and give up what is dirty of it, unless it is open."""
        inode = None
        with self.lock.held():
            if key in self._inodes:
                inode = self._pop(key)
            else:
                self._parked.pop(key, None)
                place = find_object(self._segment, ObjectKey(key))
                if place is not None:
                    self._drop(*place)
        if inode is not None and inode.nr_open == 0:
            inode.discard()

    def drop_clean(self) -> int:
        """Drop all pages that are clean and not in use. Returns the pages dropped."""
        nr = sum(truncate.invalidate_mapping_pages(inode.mapping, 0, LAST_PAGE) for inode in self.known())
        for known in self.idle():
            with contextlib.suppress(ValueError):  # it went by itself
                nr += truncate.invalidate_mapping_pages(AddressSpace(self._segment, number=known.number), 0, LAST_PAGE)
        return nr

    def clear(self) -> None:
        """Let no object be found any more."""
        with self.lock.held():
            self._recent.clear()
            self._parked.clear()
            self._memos.clear()
            inodes = list(self._inodes.values())
            self._inodes.clear()
            for inode in inodes:
                inode.mapping.unpublish()
            for known in self.idle():
                self._drop(known.number, known.generation)


def _may_begin(beginning: str, keys: tuple[str, ...]) -> bool:
    """Whether a key of which only the beginning is known may begin with one of several; if not, that costs a read."""
    return any(beginning.startswith(key) or key.startswith(beginning) for key in keys)


def _give_up(dropped: list[Inode]) -> None:
    """Let go of the pages of inodes that are forgotten; where files are open, they go with the last of them.

    Context: without the table's lock, as this waits for reads under way, which may need others to open files here.
    """
    while dropped:
        inode = dropped.pop()
        if inode.nr_open == 0:
            if is_dirty(inode):
                logger.critical("%s was changed by others: what could not be written to it is lost", inode.name)
            inode.mapping.size = 0
            truncate.truncate_inode_pages(inode.mapping, 0)
