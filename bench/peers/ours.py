"""This library, with the file in large folios and in small ones."""

from pathlib import Path

import pagecache
from bench.common import workload

from .peer import Data, Peer


class Ours(Peer):
    """A cache a little larger than the file, so that reclaim has nothing to do."""

    kind = "ours"
    modules = ("pagecache",)
    folios = ""
    method = ""

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.cache = pagecache.PageCache(data.nbytes + max(data.nbytes // 32, 2 << 20))
        self.file = workload.open_cached(self.cache, Path(data.path), self.folios)

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the call."""
        return ("read(nbytes, offset)",)

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the method."""
        return {"read": getattr(self.file, self.method)}

    def close(self) -> None:
        """Close the file and the cache."""
        self.file.close()
        self.cache.close()


class PreadLarge(Ours):
    """A copy, one object."""

    name = "pagecache pread, large folios"
    folios = "large"
    method = "pread"


class PreadSmall(PreadLarge):
    """A copy, one object."""

    name = "pagecache pread, small folios"
    folios = "small"


class PreadintoLarge(PreadLarge):
    """A copy into a buffer of the caller's."""

    name = "pagecache preadinto, large folios"
    method = "preadinto"

    def statements(self, nbytes: int) -> tuple[str, ...]:
        """Return the call."""
        return ("read(buffer, offset)", "buffer")

    def names(self, nbytes: int) -> dict[str, object]:
        """Return the method and a buffer of this thread."""
        return {**super().names(nbytes), "buffer": bytearray(nbytes)}


class ViewLarge(PreadLarge):
    """No copy."""

    name = "pagecache view, large folios"
    method = "view"


class ViewSmall(PreadSmall):
    """No copy where one folio holds it."""

    name = "pagecache view, small folios"
    method = "view"


PEERS = (PreadLarge, PreadSmall, PreadintoLarge, ViewLarge, ViewSmall)
