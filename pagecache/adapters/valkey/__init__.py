"""A second level below the caches of many processes and machines: a Valkey, Redis or memcached server holds extents.

    from pagecache.adapters.valkey import SecondLevel, TieredStore

    level = SecondLevel("valkey://10.0.0.9:6379")
    with cache.open(TieredStore(origin, level)) as file: ...

What one process has fetched from the origin others read from the server, today's or tomorrow's.  Everything above
(readahead, folio locks, validators) applies unchanged: `TieredStore` is a store like others.
"""

from pagecache.adapters.valkey.level import SecondLevel
from pagecache.adapters.valkey.store import TieredStore

__all__ = ["SecondLevel", "TieredStore"]
