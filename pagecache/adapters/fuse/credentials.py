"""Doing something with the rights of the program that is served, in the thread that serves it.

Where root serves others, the kernel checks what they may do by attributes that may be a second old, and by names that may
have been replaced meanwhile.  So whatever changes or opens something is done as the caller: user, group and other groups
for access to files are a thread's own on Linux (setfsuid, setfsgid, setgroups as a system call).  With another user's
number the thread has none of root's powers over files; the file system itself then decides, ACLs and quotas included, and
what is made belongs to the caller.  A caller waits in the kernel as long as its request is served, so its number in /proc
is its own.

A thread also has the caller's umask, after it has given up the process's (`unshare`): a directory with a default ACL does
without.
"""

import contextlib
import ctypes
import errno
import os
import platform
import threading
from collections.abc import Iterator
from typing import NamedTuple

CLONE_FS = 0x200
CAP_DAC_OVERRIDE = 1
PROBE_ID = 65534
SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "loongarch64": 159, "ppc64le": 81, "s390x": 206}
STATUS_BYTES = 8192

_libc = ctypes.CDLL(None, use_errno=True)
_thread = threading.local()
_NOTHING = contextlib.nullcontext()


class Caller(NamedTuple):
    """The program whose request is served. pid: of its thread, 0 if it cannot be seen from here. umask: its own."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


def groups_of(caller: Caller) -> list[int]:
    """Return the other groups of a program that waits; none if it cannot be seen."""
    if not caller.pid:
        return []
    try:
        fd = os.open(b"/proc/%d/status" % caller.pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        _, _, rest = os.read(fd, STATUS_BYTES).partition(b"\nGroups:")
    except OSError:
        return []
    finally:
        os.close(fd)
    return [int(word) for word in rest.partition(b"\n")[0].split()]


def is_member(caller: Caller, gid: int) -> bool:
    """Whether a program that waits is in a group."""
    return caller.gid == gid or gid in groups_of(caller)


def _set_groups(groups: list[int]) -> None:
    number = SYS_SETGROUPS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the groups of one thread cannot be set on {platform.machine()}")
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(number, len(groups), array):
        raise OSError(ctypes.get_errno(), "the groups of a thread cannot be set")


def _set_ids(uid: int, gid: int) -> None:
    """Set user and group for access to files; these calls say nothing, so they are asked."""
    _libc.setfsgid(ctypes.c_uint32(gid))
    _libc.setfsuid(ctypes.c_uint32(uid))
    none = ctypes.c_uint32((1 << 32) - 1)
    if (_libc.setfsuid(none) & 0xFFFFFFFF, _libc.setfsgid(none) & 0xFFFFFFFF) != (uid, gid):
        raise OSError(errno.EPERM, f"this process may not act as user {uid} and group {gid}")


class Rights:
    """Whose rights count in one mount. serves_others: whether root serves users besides itself.

    Raises OSError if it does, and cannot take their rights.
    """

    def __init__(self, serves_others: bool):
        self._switches = serves_others
        self._own_groups = os.getgroups() if serves_others else []
        if serves_others:
            self._probe()

    def _probe(self) -> None:
        """Try it, in a thread that ends. Raises OSError."""
        failed: list[OSError] = []

        def probe() -> None:
            try:
                with self.of(Caller(PROBE_ID, PROBE_ID, 0)):
                    with open(f"/proc/self/task/{threading.get_native_id()}/status") as file:
                        line = next(line for line in file if line.startswith("CapEff:"))
                    if int(line.split()[1], 16) >> CAP_DAC_OVERRIDE & 1:
                        raise OSError(errno.EPERM, "a thread keeps root's powers as another user")
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        thread.join()
        if failed:
            raise OSError(failed[0].errno, f"others cannot be served with their own rights: {failed[0].strerror}")

    def of(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """Within the block this thread has the rights of a caller, if it serves others and that is another user.

        Raises OSError when it begins: nothing has been done then.
        """
        return _NOTHING if not self._switches or caller.uid == 0 else self._switched(caller)

    @contextlib.contextmanager
    def _switched(self, caller: Caller) -> Iterator[None]:
        groups = groups_of(caller)
        try:
            _set_groups(groups)
            _set_ids(caller.uid, caller.gid)
            yield
        finally:
            _set_ids(0, os.getegid())  # user 0 is this process's own, so this is always allowed
            with contextlib.suppress(OSError):  # no memory: root needs no other groups
                _set_groups(self._own_groups)


def mode_for(caller: Caller, mode: int) -> int:
    """Return the mode to ask the system for, so that a new file gets what the caller's umask and the directory's default
    ACL leave of one. Context: what is made has to be made by this thread, next."""
    if not _has_own_umask():
        return mode & ~caller.umask
    if _thread.umask != caller.umask:
        os.umask(caller.umask)
        _thread.umask = caller.umask
    return mode


def _has_own_umask() -> bool:
    """Whether this thread's umask is its own; it is made so if it can be."""
    if not hasattr(_thread, "umask"):
        is_own = threading.current_thread() is not threading.main_thread() and not _libc.unshare(CLONE_FS)
        _thread.umask = -1 if is_own else None
    return _thread.umask is not None
