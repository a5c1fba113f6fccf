"""What SQLite learns of a failure: its own code for the operation, with the cause's text."""

import errno

import apsw

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def sqlite_error(code: int, message: str) -> Exception:
    """Return the exception that apsw hands to SQLite as `code` (an extended result code)."""
    error = apsw.exception_for(code)
    error.args = (message,)
    return error


def io_error(code: int, cause: BaseException) -> Exception:
    """Return the exception for a failed operation.

    code: the SQLITE_IOERR_* of the operation. Where the cause says more, that counts: SQLITE_FULL for a store without
    space, SQLITE_IOERR_NOMEM for a cache in which no page can be freed.
    """
    number = cause.errno if isinstance(cause, OSError) else None
    if number in _FULL:
        code = apsw.SQLITE_FULL
    elif number == errno.ENOMEM:
        code = apsw.SQLITE_IOERR_NOMEM
    error = sqlite_error(code, str(cause) or type(cause).__name__)
    error.__cause__ = cause
    return error


def open_error(cause: BaseException) -> Exception:
    """Return the exception for a file that cannot be opened."""
    error = sqlite_error(apsw.SQLITE_CANTOPEN, str(cause) or type(cause).__name__)
    error.__cause__ = cause
    return error


def is_refusal(cause: OSError) -> bool:
    """Whether an error says that something may be read but not written."""
    return cause.errno in _READ_ONLY
