"""When objects were last modified, for libraries that ask: what a store says, else since when this version is known."""

import calendar
import itertools
import time
from collections import OrderedDict
from email.utils import parsedate_to_datetime

from pagecache._core import Mutex
from pagecache.stores.validators import Version

NAMES_MAX = 8192
_unknown = itertools.count()


class Ages:
    """Since when the present version of each object is known.

    The time of an object is the same as long as its validator is, and later for another one, by a second at least, which is
    what libraries compare. Times of the objects asked for least recently are forgotten, so that they seem changed.
    Context: any thread.
    """

    def __init__(self) -> None:
        self._lock = Mutex()
        self._since: OrderedDict[str, tuple[object, int]] = OrderedDict()

    def since_s(self, name: str, validator: str | None) -> int:
        """Return since when an object has had this validator (seconds since the epoch). None: a new one each time."""
        version: object = validator if validator is not None else next(_unknown)
        with self._lock.held():
            known, since = self._since.get(name, (None, 0))
            if known != version:
                since = max(int(time.time()), since + 1)
                self._since[name] = (version, since)
            self._since.move_to_end(name)
            if len(self._since) > NAMES_MAX:
                self._since.popitem(last=False)
        return since


def last_modified_s(version: object) -> int | None:
    """Return when a version was made (seconds since the epoch), if a server said so, in words that can be read."""
    said = version.last_modified if isinstance(version, Version) else None
    if not said:
        return None
    try:
        return calendar.timegm(parsedate_to_datetime(said).utctimetuple())
    except (ValueError, OverflowError):
        return None
