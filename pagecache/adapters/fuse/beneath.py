"""Names below a directory, never anywhere else, whatever others do to the directory meanwhile.

A mount serves programs that may not go where it may go itself, and they may change its source while it looks.  So a path of
the mount is never given to the system as a string from the root of all: it is resolved from a descriptor of the source, by
`openat2` with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, or, where the kernel does not have that or it
is forbidden, by one `openat` with O_NOFOLLOW for each component.  A symbolic link on the way is an error (ESTALE): the
kernel, which follows links itself, looks again then.  What is found is an O_PATH descriptor, which opens nothing and has no
effect.

What is done to a name is done to its last component, by the descriptor of its directory; what is done to a file is done
through /proc/self/fd, which leads to what the descriptor holds and not to a name.
"""

import ctypes
import errno
import os
import platform

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_FLAGS = PATH_FLAGS | os.O_DIRECTORY
PATH_BYTES_MAX = 4000  # of one call; longer ways are gone in several
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
SYS_OPENAT2 = 437  # the same on all machines but alpha
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
RENAME_EXCHANGE = 2
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NS = 10**9
ESTALE = errno.ESTALE
NO_OPENAT2 = (errno.ENOSYS, errno.EPERM)  # too old a kernel; a sandbox
ON_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EAGAIN)  # what names that have been replaced lead to

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("ns", ctypes.c_long)]


_how = _OpenHow(PATH_FLAGS, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
_NO_NAMES = frozenset((b"", b".", b".."))
_has_openat2 = platform.machine() != "alpha"


def stale(name: bytes) -> OSError:
    """Return the error for a name that leads elsewhere by now: the kernel then asks for it once more."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fsdecode(name))


def is_plain(name: bytes) -> bool:
    """Whether bytes are the name of one entry of a directory."""
    return b"/" not in name and b"\0" not in name and name not in _NO_NAMES


def open_path(root_fd: int, components: list[bytes]) -> int:
    """Return an O_PATH descriptor of what a way below a directory leads to; the caller closes it.

    A symbolic link at the end is found itself. Raises OSError: ESTALE if the way is none any more, ENOENT.
    """
    if not all(is_plain(name) for name in components):
        raise OSError(errno.EINVAL, "a name of one entry is needed", os.fsdecode(b"/".join(components)))
    if not components:
        return _openat2(root_fd, b".")
    fd, at = root_fd, 0
    try:
        while at < len(components):
            end, nbytes = at + 1, len(components[at])
            while end < len(components) and nbytes + 1 + len(components[end]) <= PATH_BYTES_MAX:
                nbytes += 1 + len(components[end])
                end += 1
            found = _openat2(fd, b"/".join(components[at:end]))
            if fd != root_fd:
                os.close(fd)
            fd, at = found, end
    except BaseException:
        if fd != root_fd:
            os.close(fd)
        raise
    return fd


def _openat2(dir_fd: int, path: bytes) -> int:
    global _has_openat2
    if _has_openat2:
        while True:
            fd = _libc.syscall(SYS_OPENAT2, dir_fd, path, ctypes.byref(_how), ctypes.sizeof(_how))
            if fd >= 0:
                return int(fd)
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number not in NO_OPENAT2:
                raise _error(number, path)
            _has_openat2 = False
            break
    return _walk(dir_fd, path)


def _walk(dir_fd: int, path: bytes) -> int:
    """Do as `_openat2`, component by component."""
    *directories, last = path.split(b"/")
    fd = dir_fd
    try:
        for name in directories:
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
            if fd != dir_fd:
                os.close(fd)
            fd = below
        return os.open(last, PATH_FLAGS, dir_fd=fd)
    except OSError as error:
        raise _error(error.errno or errno.EIO, path) from None
    finally:
        if fd != dir_fd:
            os.close(fd)


def _error(number: int, path: bytes) -> OSError:
    return stale(path) if number in ON_THE_WAY else OSError(number, os.strerror(number), os.fsdecode(path))


def of_descriptor(fd: int) -> bytes:
    """Return the path by which this process reaches what a descriptor holds; it is no name of it."""
    return b"/proc/self/fd/%d" % fd


def open_again(fd: int, flags: int) -> int:
    """Open the file that an O_PATH descriptor holds, which asks for permission. flags: of open(2). Raises OSError."""
    return os.open(of_descriptor(fd), (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC)


def link(fd: int, dir_fd: int, name: bytes) -> None:
    """Give what a descriptor holds a name. Raises OSError."""
    if _libc.linkat(AT_FDCWD, of_descriptor(fd), dir_fd, name, AT_SYMLINK_FOLLOW):
        _raise(name)


def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """Rename in one step; flags are those of renameat2(2). Raises OSError."""
    if not flags:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        return
    call = getattr(_libc, "renameat2", None)
    if call is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fsdecode(new))
    if call(old_fd, old, new_fd, new, flags):
        _raise(new)


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None, now: tuple[bool, bool] = (False, False)) -> None:
    """Set the times of what a descriptor holds (ns since 1970; None: as it is). Raises OSError.

    now: which of the two is the present, of the system's clock; write permission is enough to set both so, without owning
    it.
    """
    specs = (_Timespec * 2)()
    for spec, time_ns, is_now in zip(specs, (atime_ns, mtime_ns), now, strict=True):
        if is_now:
            spec.ns = UTIME_NOW
        elif time_ns is None:
            spec.ns = UTIME_OMIT
        else:
            spec.seconds, spec.ns = divmod(time_ns, NS)
    if _libc.utimensat(AT_FDCWD, of_descriptor(fd), specs, 0):
        _raise(of_descriptor(fd))


def _raise(name: bytes) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fsdecode(name))
