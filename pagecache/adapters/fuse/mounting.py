"""Putting a mount into the tree of names, and taking it away again.

Root does that itself; other users, who may not, by `fusermount3`, which opens /dev/fuse and passes the descriptor on.  A
mount point need not be empty, as fusermount3 does not ask for that either (since libfuse 3.0): what is below it is hidden
until the mount ends.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import socket
import stat
import subprocess

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
INSTALL = "install fuse3 (Debian: apt install fuse3)"
_libc = ctypes.CDLL(None, use_errno=True)


def check(mountpoint: str, source: str | None = None) -> None:
    """Raise OSError for what cannot be mounted on, and for a mount that would have to serve itself.

    source: the directory that is mounted, if it is one.
    """
    if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), mountpoint)
    if source is None:
        return
    if is_within(mountpoint, source):
        raise OSError(errno.EINVAL, f"the mount point must be outside of its source {source}", mountpoint)
    if is_within(source, mountpoint):
        reason = f"the mount point must not be above its source {source}, which it would hide"
        raise OSError(errno.EINVAL, reason, mountpoint)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory or in it, by whatever name."""
    above = os.path.realpath(path)
    wanted = os.stat(directory)
    while True:
        if os.path.samestat(os.stat(above), wanted):
            return True
        if above == os.path.dirname(above):
            return False
        above = os.path.dirname(above)


class Mountpoint:
    """A mount. path: of the directory. name, subtype: what `mount` shows. fd: of /dev/fuse; it belongs to the server of
    the mount.

    Raises OSError: it may not be mounted; ImportError: fusermount3 is needed and missing.
    """

    def __init__(self, path: str, name: str, *, subtype: str, read_only: bool, allow_other: bool):
        self.path = os.path.realpath(path)
        words = ["default_permissions", *(["allow_other"] if allow_other else [])]
        self._is_own = os.geteuid() == 0
        if self._is_own:
            try:
                self.fd = self._mount(name, subtype, read_only, words)
            except PermissionError:  # root in a container, perhaps
                self._is_own = False
        if not self._is_own:
            words += ["ro" if read_only else "rw", "nosuid", "nodev", f"subtype={subtype}"]
            shown = re.sub(r"[,\\]", lambda found: f"%{ord(found[0]):02x}", name)
            self.fd = self._mount_by_helper([*words, f"fsname={shown}"])
        self._device = self._device_there()

    def _mount(self, name: str, subtype: str, read_only: bool, words: list[str]) -> int:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0)
        options = [f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}", *words]
        kind = f"fuse.{subtype}".encode()
        if _libc.mount(os.fsencode(name), os.fsencode(self.path), kind, ctypes.c_ulong(flags), ",".join(options).encode()):
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, f"cannot mount {name}: {os.strerror(number)}", self.path)
        return fd

    def _mount_by_helper(self, options: list[str]) -> int:
        helper = shutil.which("fusermount3")
        if helper is None:
            raise ImportError(f"mounting as another user than root needs fusermount3: {INSTALL}")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = subprocess.run(
                [helper, "-o", ",".join(options), "--", self.path], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL, env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                reason = done.stderr.strip() or f"fusermount3 ended with {done.returncode}"
                raise OSError(errno.EPERM, f"cannot mount: {reason}", self.path)
            _, fds, *_ = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise OSError(errno.EIO, "fusermount3 has passed no descriptor on", self.path)
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _device_there(self) -> str | None:
        """Return the device number of what is mounted at the path now, as /proc writes it."""
        found = None
        with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                words = line.split()
                if _unescape(words[4]) == os.fsencode(self.path):
                    found = words[2].decode()
        return found

    def unmount(self) -> None:
        """Take the mount away, if it is still there, although it is in use, and cut its connection. Raises nothing."""
        if self._device is None or self._device_there() != self._device:
            return
        if self._is_own and not _libc.umount2(os.fsencode(self.path), MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW):
            return
        number = self._device.partition(":")[2]
        with contextlib.suppress(OSError), open(f"/sys/fs/fuse/connections/{number}/abort", "w") as file:
            file.write("1")
        with contextlib.suppress(OSError):
            subprocess.run(["fusermount3", "-u", "-z", "--", self.path], capture_output=True, check=False)


def _unescape(word: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), word)
