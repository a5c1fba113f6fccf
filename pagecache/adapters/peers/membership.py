"""Which members a group has, and which of them owns an extent.

An object is divided into extents of some MiB.  The owner of an extent is found by rendezvous hashing: each member gets a
number, mmh3 of (key, validator, extent, name of the member), and the largest wins.  So every process finds the same owner
without a question, whatever PYTHONHASHSEED is; each member owns an equal share; and when a member joins or leaves,
only the extents that it gains or had move, 1/n of all.

The epoch is the scheduler's count of changes; of two lists the one of the later epoch counts.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mmh3

from pagecache._core import Mutex

OWNERS_MAX = 65536  # extents whose owner is remembered
_NUMBER_BYTES = 8


class Member(NamedTuple):
    """One process of the group.

    name: the same in every process. address: "host:port" of its page server. host: what members of one machine
    have in common; they reach each other through Unix sockets.
    """

    name: str
    address: str
    host: str

    @classmethod
    def of(cls, given: "Member | str | Sequence[str]") -> "Member":
        """Return a member from "host:port", or from its three fields. Raises ValueError."""
        if isinstance(given, str):
            address = given.removeprefix("tcp://")
            return cls(address, address, split_address(address)[0])
        name, address, host = (str(field) for field in given)
        split_address(address)
        return cls(name, address, host)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[v6]:port". Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"the address of a member must be 'host:port', not {address!r}")
    return host.strip("[]"), int(port)


def object_digest(key: str, validator: str) -> bytes:
    """Return what stands for one version of an object in placement (16 bytes)."""
    return mmh3.hash_bytes(f"{len(key)}:{key}{validator}".encode("utf-8", "surrogatepass"))


def score(digest: bytes, extent: int, name: bytes) -> int:
    """Return the number of a member for an extent: the member with the largest owns it."""
    return mmh3.hash64(digest + extent.to_bytes(_NUMBER_BYTES, "little") + name, signed=False)[0]


class Membership:
    """The members of one epoch. Immutable; safe from any thread.

    members: each name once. me: the name of this process; it may be missing.
    """

    def __init__(self, members: Iterable[Member], me: str, epoch: int = 0):
        self.by_name = {member.name: member for member in sorted(members)}
        self.epoch = epoch
        self.me = me
        own = self.by_name.get(me)
        self._all = [(name.encode(), member) for name, member in self.by_name.items()]
        self._near = [(name, member) for name, member in self._all if own is not None and member.host == own.host]
        self._owners: dict[tuple[bytes, int], Member | None] = {}
        self._deputies: dict[tuple[bytes, int], Member | None] = {}
        self._lock = Mutex()

    @property
    def members(self) -> list[Member]:
        """All members, by name."""
        return list(self.by_name.values())

    def owner(self, digest: bytes, extent: int) -> Member | None:
        """Return the member that reads an extent from the origin for all; None in an empty group."""
        return self._best(self._owners, self._all, digest, extent)

    def deputy(self, digest: bytes, extent: int) -> Member | None:
        """Return the member of this machine through which the others of this machine read a far owner's extent."""
        return self._best(self._deputies, self._near, digest, extent)

    def _best(
        self,
        known: dict[tuple[bytes, int], Member | None],
        members: list[tuple[bytes, Member]],
        digest: bytes,
        extent: int,
    ) -> Member | None:
        key = (digest, extent)
        try:
            return known[key]
        except KeyError:
            pass
        best = max(members, key=lambda pair: (score(digest, extent, pair[0]), pair[0]), default=(b"", None))[1]
        with self._lock.held():
            if len(known) >= OWNERS_MAX:
                known.clear()
            known[key] = best
        return best

    def source(self, digest: bytes, extent: int) -> tuple[Member | None, bool]:
        """Return which member this process asks for an extent, None for the origin, and whether that one may ask the owner.

        The owner asks the origin. Others of its machine ask the owner; on other machines a deputy asks the owner, and the
        others ask the deputy, so that an extent crosses the network once for each machine.
        """
        owner = self.owner(digest, extent)
        own = self.by_name.get(self.me)
        if owner is None or own is None or owner is own:
            return None, False
        if owner.host == own.host:
            return owner, False
        deputy = self.deputy(digest, extent)
        return (owner, False) if deputy is own or deputy is None else (deputy, True)

    def keeps(self, digest: bytes, extent: int) -> bool:
        """Whether others may ask this process for an extent, so that its pages are no mere copy."""
        source, asks_deputy = self.source(digest, extent)
        if source is None:
            return True
        own = self.by_name[self.me]
        return not asks_deputy and source.host != own.host and len(self._near) > 1
