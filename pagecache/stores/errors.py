"""Errors of libraries as the OSError they mean: many come without an errno."""

import errno
import os

_NUMBERS: tuple[tuple[type[BaseException], int], ...] = (
    (FileNotFoundError, errno.ENOENT),
    (PermissionError, errno.EACCES),
    (IsADirectoryError, errno.EISDIR),
    (TimeoutError, errno.ETIMEDOUT),
)
_NUMBERS_OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
_NUMBERS_OF_NAME = {"PermissionDeniedError": errno.EACCES, "UnauthenticatedError": errno.EACCES}

_TRANSPORTS = ("aiohttp", "requests", "urllib3", "http", "httpx")


def says_absent(error: BaseException) -> bool:
    """Whether an error means that there is no such object, and does not hide that something failed: libraries raise
    FileNotFoundError from whatever kept them from looking."""
    if isinstance(getattr(error, "status", None), int):
        return getattr(error, "status", None) in (404, 410)
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        is_of_transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
        return not is_of_transport and not isinstance(error, (OSError, TimeoutError))
    cause = cause_of(error)
    return cause is None or says_absent(cause)


def cause_of(error: BaseException) -> BaseException | None:
    """Return what an error was raised from."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _hidden_error(error: Exception) -> Exception:
    """Return what an error that hides something was raised from."""
    while isinstance(error, FileNotFoundError) and isinstance(cause := cause_of(error), Exception):
        error = cause
    return error


def failed_request(error: Exception, name: str) -> OSError:
    """Return an OSError for an error that nothing is known of: itself, if it is one."""
    if isinstance(error, FileNotFoundError) and not says_absent(error):
        return failed_request(_hidden_error(error), name)
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return OSError(errno.EIO, f"cannot ask for the version: {str(error) or type(error).__name__}", name)


def encoded_error(error: OSError, encoding: str | None) -> OSError:
    """Return the error for an answer that is longer than what is stated, with the reason that is most likely.

    encoding: that the store names for the object.
    """
    how = f"it is stored with Content-Encoding {encoding}" if encoding else "the store states another size than it serves"
    remedy = "read it without a cache (cat_file), or store it as it is"
    return OSError(errno.EIO, f"{error.strerror}: {how}, so that no range of it can be relied on: {remedy}")


def meant_error(error: Exception, name: str) -> OSError | None:
    """Return the OSError that an error of a library means, or None if the error says it itself, or nothing is known.

    name: of the object.
    """
    if isinstance(error, FileNotFoundError) and not says_absent(error):
        hidden = _hidden_error(error)
        if isinstance(hidden, OSError) and hidden.errno is not None:
            return hidden
        return meant_error(hidden, name) or OSError(errno.EIO, str(hidden) or type(hidden).__name__, name)
    if isinstance(error, OSError) and error.errno is not None:
        return None
    number = next((number for kind, number in _NUMBERS if isinstance(error, kind)), None)
    number = number or _NUMBERS_OF_STATUS.get(getattr(error, "status", 0))
    number = number or _NUMBERS_OF_NAME.get(type(error).__name__)
    if number is None:
        return None
    reason = "there is no such object" if number == errno.ENOENT else str(error) or os.strerror(number)
    return OSError(number, reason, name)
