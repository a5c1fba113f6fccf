"""Processes that share what they have cached: `PeerGroup` of them, and `PeerStore`, which reads through it.

    from pagecache.adapters.peers import PeerGroup

    group = PeerGroup(["10.0.0.1:7400", "10.0.0.2:7400"], "10.0.0.1:7400", cache=cache, secret=secret)
    with group, cache.open(group.store(origin)) as file: ...

Nothing here knows Dask; `pagecache.adapters.dask` starts a group in each of its workers.
"""

from pagecache.adapters.peers.group import PeerGroup
from pagecache.adapters.peers.membership import Member
from pagecache.adapters.peers.store import PeerStore

__all__ = ["Member", "PeerGroup", "PeerStore"]
