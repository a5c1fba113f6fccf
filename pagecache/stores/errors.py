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


def failed_request(error: Exception, name: str) -> OSError:
    """Return an OSError for an error that nothing is known of: itself, if it is one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return OSError(errno.EIO, f"cannot ask for the version: {str(error) or type(error).__name__}", name)


def meant_error(error: Exception, name: str) -> OSError | None:
    """Return the OSError that an error of a library means, or None if the error says it itself, or nothing is known.

    name: of the object.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None
    number = next((number for kind, number in _NUMBERS if isinstance(error, kind)), None)
    number = number or _NUMBERS_OF_STATUS.get(getattr(error, "status", 0))
    number = number or _NUMBERS_OF_NAME.get(type(error).__name__)
    if number is None:
        return None
    reason = "there is no such object" if number == errno.ENOENT else str(error) or os.strerror(number)
    return OSError(number, reason, name)
