"""All peers, in the order of the table."""

import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from . import arrays, databases, fsspec_caches, memory, ours, system
from .peer import Data, Peer, check_bytes

PEERS: tuple[type[Peer], ...] = (
    *ours.PEERS,
    *system.PEERS,
    *memory.PEERS,
    *fsspec_caches.PEERS,
    *databases.PEERS,
    *arrays.PEERS,
)


@dataclass
class Opened:
    """The peers that could be opened, and why the others could not."""

    peers: list[Peer] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """Close all of them."""
        for peer in self.peers:
            peer.close()


def chosen(only: str, classes: Iterable[type[Peer]] = PEERS) -> list[type[Peer]]:
    """Return the peers whose names contain one of the words in `only`, which commas separate; all if it is empty."""
    words = [word for word in only.split(",") if word]
    return [each for each in classes if not words or any(word in each.name for word in words)]


def open_all(classes: Iterable[type[Peer]], data: Data, sizes: Iterable[int], seed: int) -> Opened:
    """Open peers, filled, and compare bytes of each with the file. What cannot be opened is listed with the reason.

    Raises:
        ValueError: a peer read wrong bytes.
        Exception: what needs no other library than this one could not be opened.
    """
    opened = Opened()
    sizes = list(sizes)
    for each in classes:
        reason = each.missing()
        if not reason:
            try:
                opened.peers.append(each(data))
            except Exception as error:
                if each.kind != "cache" or not each.modules:
                    raise
                traceback.print_exc(file=sys.stderr)
                reason = f"{type(error).__name__}: {error}"
        if reason:
            opened.missing[each.name] = reason
        else:
            check_bytes(opened.peers[-1], sizes, seed)
    return opened
