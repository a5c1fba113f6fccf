"""What stores of objects that others may replace have in common: what is known of the version, and reads held against it.

A subclass says what the object is now (`describe`), reads a range of one version (`read_range`, which raises ChangedError
for another one, and WholeAnswerError if all of the object came), and begins to read all of it (`open_body`).  What becomes
of a read follows from that:

    another version came          ESTALE, and the present version is known
    a condition was refused,
      though the version is it    once more without conditions, from now on
    HEAD and GET disagree         ESTALE, and HEAD is not believed from now on
    all came for a part           read in order from now on, beginning with what came
    more came than was asked for  EIO, which names the encoding if there is one
"""

import errno
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pagecache.stores.abandoned import lending
from pagecache.stores.attempts import NO_ATTEMPTS, Attempts
from pagecache.stores.base import NoRangesError
from pagecache.stores.degraded import warn_once
from pagecache.stores.described import Described, WholeAnswerError
from pagecache.stores.destination import Destination, TooLongError
from pagecache.stores.errors import encoded_error, meant_error
from pagecache.stores.in_order import Body, InOrder
from pagecache.stores.validators import ChangedError, Version, checked_recheck, stale_error, version_of
from pagecache.units import parse_size

logger = logging.getLogger("pagecache")
_Result = TypeVar("_Result")


class VersionedStore:
    """One object of which one version is read.

    name: for messages. recheck: False for objects that never change: they are not looked at after reads whose answers do
    not say which version they are of. version: what is known of the object; None: it is asked for when it is needed.
    whole_up_to: bytes; an object no larger is read whole by its first miss. attempts: how requests are tried. origin: of
    the object, see `speed_of`. lets_go: reads leave the buffers alone from the moment at which `Call.let_go` has returned.
    leaves_behind: a call that hangs keeps no other one from being made, though they are made one at a time.
    """

    origin: str
    lets_go = True
    leaves_behind = False

    def __init__(
        self,
        name: str,
        *,
        recheck: bool | str | float,
        version: Version | None,
        whole_up_to: int | str,
        attempts: Attempts,
    ):
        self.name = name
        self.attempts = attempts
        self.recheck = checked_recheck(recheck)
        self.is_immutable = self.recheck is False
        self.whole_up_to = parse_size(whole_up_to)
        self.serves_ranges = True  # until it shows that it does not
        self.sends_conditions = True  # until one is refused that holds
        self.known_version = version
        self._in_order = InOrder()
        self._is_by_head = False

    # -- for subclasses ------------------------------------------------------------------------------------------------

    def describe(self) -> Described:
        """Ask what the object is now; the caller closes a body that comes along. Raises OSError."""
        raise NotImplementedError

    def read_range(self, version: Version, start: int, destination: Destination) -> bool:
        """Fill a destination from byte `start` on. Returns whether the bytes are known to be of the version.

        Raises ChangedError, WholeAnswerError, TooLongError, and what the library raises.
        """
        raise NotImplementedError

    def open_body(self, version: Version) -> Body:
        """Begin to read all of a version. Raises ChangedError, and what the library raises."""
        raise NotImplementedError

    def doubt_head(self) -> None:
        """Do not believe what HEAD says about the object any more."""

    def limited(self, function: Callable[[], _Result]) -> _Result:
        """Return what a request brings. Raises TimeLimitError when the try that it belongs to is over, if a subclass can
        end it."""
        return function()

    def take_attempts(self, other: object) -> None:
        """Try requests as another store of the object wants it, where it says something."""
        self.attempts = self.attempts.merged(getattr(other, "attempts", NO_ATTEMPTS))

    # -- versions ------------------------------------------------------------------------------------------------------

    @property
    def version(self) -> Version:
        """What is known of the object."""
        return self.known_version or self.refresh()

    def refresh(self) -> Version:
        """Ask for the present version. Raises OSError."""
        asked_at = time.monotonic()
        described = self.attempts.run(self.name, lambda: self.limited(self.describe))
        version = version_of(described.info, self.name, asked_at)
        self._is_by_head = described.by_head
        logger.debug("%s: %d bytes, %s", self.name, version.size, version.validator or "no validator")
        if version.validator is None and not self.is_immutable:
            how = "a change cannot be noticed, and every opening begins with nothing cached, but for recheck=False"
            warn_once("no validator", self.origin, "nothing tells versions of %s apart: %s", self.name, how)
        if described.serves_ranges is False:
            self._note_no_ranges()
        if described.body is not None:
            self._in_order.begin_with(described.body, version)
        if self.known_version is None or self.known_version.checked_at <= asked_at:  # answers may overtake each other
            self.known_version = version
        return version

    def _note_no_ranges(self) -> None:
        """Read the object from its beginning from now on, and say so."""
        self.serves_ranges = False
        how = "its first miss reads it whole if half the cache holds it, else from its beginning as far as wanted"
        warn_once("no ranges", self.origin, "%s cannot be read in ranges: %s", self.name, how)

    def size(self) -> int:
        """Return the size (bytes) of the version that is known."""
        return self.version.size

    def validator(self) -> str | None:
        """Return the validator of the version that is known; asks for nothing. With recheck=False a size is enough."""
        version = self.version
        return f"size={version.size}" if version.validator is None and self.is_immutable else version.validator

    # -- reading -------------------------------------------------------------------------------------------------------

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from `offset`; return the bytes filled.

        Raises OSError (ESTALE) when the object is no longer of the known version; then `validator` returns the new one.
        """
        return self._read(offset, buffers, tells=False)

    def readv_in_ranges(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """As `readv`, but raises NoRangesError, once, when it shows that ranges cannot be had; then nothing is filled."""
        return self._read(offset, buffers, tells=True)

    def take_surplus_bytes(self) -> int:
        """Return how many bytes came that were not wanted, since this was last called."""
        return self._in_order.take_surplus_bytes()

    def add_surplus(self, nbytes: int) -> None:
        """Count bytes that came and were not wanted."""
        self._in_order.add_surplus(nbytes)

    def _read(self, offset: int, buffers: Sequence[memoryview], tells: bool) -> int:
        return self.attempts.run(self.name, lambda: self._try(offset, buffers, tells))

    def _try(self, offset: int, buffers: Sequence[memoryview], tells: bool) -> int:
        """Read once; the buffers are let go of at the end, though a late answer may still come."""
        version = self.version
        destination = Destination(buffers)

        def let_go() -> None:
            destination.detach()
            self._in_order.wake()

        try:
            with lending(let_go):
                done, is_verified = self._read_version(version, offset, destination, tells)
        finally:
            let_go()
        if version.validator is not None:
            now = self.version if is_verified or self.is_immutable else self.refresh()
            if now.validator != version.validator:
                raise stale_error(self.name, offset, self.is_immutable)
        return done

    def _read_version(self, version: Version, offset: int, destination: Destination, tells: bool) -> tuple[int, bool]:
        """Fill a destination. Returns (bytes filled, whether they are known to be of the version). Raises OSError,
        NoRangesError."""

        def fill() -> bool:
            return self._fill(version, offset, destination, tells)

        try:
            try:
                is_verified = self.limited(fill)
            except ChangedError as change:
                if not self._refuses_what_holds(version, change):
                    raise
                is_verified = self.limited(fill)
        except ChangedError as change:
            raise self._change_error(version, offset, change) from None
        except NoRangesError:
            raise
        except TooLongError as error:
            raise encoded_error(error, version.encoding) from None
        except Exception as error:
            meant = meant_error(error, self.name)
            if meant is None:
                raise
            raise meant from error
        return destination.done, is_verified

    def _fill(self, version: Version, offset: int, destination: Destination, tells: bool) -> bool:
        """Fill a destination from `offset` on. Returns whether the bytes are known to be of the version."""
        if self.serves_ranges:
            try:
                return self.read_range(version, offset, destination)
            except WholeAnswerError as whole:
                self._in_order.begin_with(whole.body, version)
                if offset > 0 or destination.wanted < version.size:
                    self._note_no_ranges()
                    if tells:
                        raise NoRangesError from None
        return self._in_order.read(version, offset, destination, lambda: self.open_body(version))

    def _refuses_what_holds(self, version: Version, change: ChangedError) -> bool:
        """Whether a request was refused under a condition that holds, which is then no longer made."""
        if not change.is_refusal or version.validator is None or self.refresh().validator != version.validator:
            return False
        self.sends_conditions = False
        how = "no conditions are made any more, and versions are compared with what the answers say"
        warn_once("no conditions", self.origin, "%s was refused under a condition that holds: %s", self.name, how)
        return True

    def _change_error(self, version: Version, offset: int, change: ChangedError) -> OSError:
        """Return the error for an answer that is of another version than the known one. Raises OSError when the present one
        cannot be asked for."""
        now = self.refresh()
        if (now.validator, now.size) != (version.validator, version.size):
            return stale_error(self.name, offset, self.is_immutable)
        if not self._is_by_head:
            return OSError(errno.EIO, f"{self.name} is not what the store says it is: {change}")
        self.doubt_head()
        how = "HEAD is not believed any more, and a GET asks for size and version"
        warn_once("untrue HEAD", self.origin, "%s is not what HEAD says it is: %s", self.name, how)
        self.refresh()
        return OSError(errno.ESTALE, f"{self.name} is not what HEAD says it is: {change}; open it again: now GET is asked")

    def close(self) -> None:
        """Give up the answer that is open, if there is one."""
        self._in_order.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

