"""The objects that a cache knows: found by the key of their store, shared by the files that are open on one, and forgotten.

Of the objects that are not open, those that were closed longest ago are looked at first, a few for each one that is
opened: what has no pages is forgotten, what has some waits for its next turn. So opening one costs the same however many
are known. Nothing is forgotten that is dirty, or not durable yet.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator

import mmh3

from pagecache import truncate
from pagecache._core import Mutex
from pagecache.files.inode import Inode
from pagecache.stores.base import BackingStore, is_within
from pagecache.weak_members import WeakMembers
from pagecache.writeback.flusher import is_dirty

IDLE_MIN = 8192  # objects that are not open and known even if nothing of them is cached
LOOKS = 4  # at objects that may be forgotten, for each one that is opened
FORGET_TRIES = 64
logger = logging.getLogger("pagecache")


def hash_of(key: str) -> bytes:
    """Return the hash under which the object of a store's key is known."""
    return mmh3.hash_bytes(str(key))


class InodeTable:
    """The objects of one cache. make: makes the inode of a store, which may be refused with ENFILE.

    Context: any thread.
    """

    def __init__(self, make: Callable[[BackingStore], Inode]):
        self.lock = Mutex()
        self._make = make
        self._inodes: dict[bytes, Inode] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()  # perhaps closed; the one closed longest ago first
        self._all: WeakMembers[Inode] = WeakMembers()

    def __iter__(self) -> Iterator[Inode]:
        """Iterate over the objects that are open or cached, forgotten ones that are open too."""
        return iter(self._all)

    def find(self, key: str) -> Inode | None:
        """Return the object that a store's key names, if it is open or cached."""
        inode = self._inodes.get(hash_of(key))
        return inode if inode is not None and inode.mapping.key == key else None

    def known(self) -> list[Inode]:
        """Return the objects that can be found."""
        with self.lock.held():
            return list(self._inodes.values())

    # -- opening -------------------------------------------------------------------------------------------------------

    def acquire(self, store: BackingStore, *, writes: bool = False) -> Inode:
        """Return the shared inode of a store's key and version, counted as open once more."""
        key = hash_of(store.key)
        while True:
            with self.lock.held():
                inode = self._inodes.get(key)
                if inode is None or inode.mapping.key != store.key or inode.serves(store):
                    return self._shared(key, store, writes)
                is_doubtful = inode.is_doubtful(store)
            if is_doubtful and inode.look_closer():  # without the lock, as this waits for reads under way
                continue
            with self.lock.held():
                dropped = [self._pop(key)] if self._inodes.get(key) is inode else []
                inode = None
            _give_up(dropped)

    def _shared(self, key: bytes, store: BackingStore, writes: bool) -> Inode:
        """Return the inode of a key, made if there is none for this store, counted as open. Context: self.lock held."""
        inode = self._inodes.get(key)
        if inode is None or inode.mapping.key != store.key:
            inode = self._inodes[key] = self._new(store)
            self._idle.pop(key, None)
            self._all.add(inode)
        inode.acquire(store, writes=writes)
        return inode

    def acquire_again(self, inode: Inode, store: BackingStore | None, *, writes: bool = False) -> None:
        """Count an inode that is open as open once more. store: another one of the object, or None."""
        with self.lock.held():
            inode.acquire(store, writes=writes)

    def _new(self, store: BackingStore) -> Inode:
        """Return an inode for a store. One that was forgotten may be held for a moment by a look at all: then others
        are forgotten too, if any is idle. Raises OSError (ENFILE). Context: self.lock held."""
        for _ in range(LOOKS):
            if len(self._idle) < IDLE_MIN:
                break
            self._forget_oldest(without_pages=True)
        for _ in range(FORGET_TRIES):
            try:
                return self._make(store)
            except OSError as error:
                if error.errno != errno.ENFILE or not self._idle:
                    raise
                self._forget_oldest(without_pages=False)
        return self._make(store)

    def _forget_oldest(self, *, without_pages: bool) -> None:
        """Forget the object that was closed longest ago, if it may be; else it is looked at again in its next turn.
        without_pages: only if nothing of it is cached. Context: self.lock held."""
        try:
            key = self._idle.popitem(last=False)[0]
        except KeyError:
            return
        inode = self._inodes.get(key)
        if inode is None or inode.nr_open:
            return  # it comes back when it is closed
        if not inode.is_idle or (without_pages and inode.mapping.nrpages):
            self._idle[key] = None
        else:
            del self._inodes[key]

    def note_closed(self, inode: Inode) -> None:
        """Note that a file of an object was closed. Context: wherever a file is collected: takes no lock."""
        key = hash_of(inode.mapping.key)
        if not inode.nr_open and self._inodes.get(key) is inode:
            self._idle[key] = None
            try:
                self._idle.move_to_end(key)
            except KeyError:  # another thread has just looked at it
                self._idle[key] = None

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def _pop(self, key: bytes) -> Inode:
        """Let an object not be found any more. Context: self.lock held."""
        self._idle.pop(key, None)
        return self._inodes.pop(key)

    def forget(self, keys: tuple[str, ...], whole: bool) -> None:
        """Forget objects by their keys, or what those begin with. whole: only if they end there, or before a "/" or "#"."""
        roots, dropped = frozenset(keys), []
        with self.lock.held():
            for hashed, inode in list(self._inodes.items()):
                known = str(inode.mapping.key)
                if is_within(known, roots) if whole else known.startswith(keys):
                    dropped.append(self._pop(hashed))
        _give_up(dropped)

    def discard(self, key: str) -> None:
        """Forget the object of a store's key, and give up what is dirty of it, unless it is open."""
        hashed = hash_of(key)
        with self.lock.held():
            inode = self._pop(hashed) if hashed in self._inodes else None
        if inode is not None and inode.nr_open == 0:
            inode.discard()

    def clear(self) -> None:
        """Let no object be found any more."""
        with self.lock.held():
            self._idle.clear()
            self._inodes.clear()


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
