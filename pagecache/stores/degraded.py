"""What works, but not as well as it could: each such state is said in the log (logger `pagecache`, WARNING), once for each
server, bucket or file system."""

import logging

from pagecache.stores.described import Memory

logger = logging.getLogger("pagecache")
_said = Memory()  # (state, origin)


def warn_once(state: str, origin: str, message: str, *args: object) -> None:
    """Say in the log that something is degraded, unless it was said of the origin. Context: any thread."""
    if _said.is_first((state, origin)):
        logger.warning(message + ". This is said once for each server, bucket or file system", *args)
