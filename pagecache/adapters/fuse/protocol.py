"""What the kernel and a file system say to each other over /dev/fuse: <linux/fuse.h> as far as it is used here.

The kernel keeps this interface stable: a request is a header and a body, an answer a header and a body; numbers are those
of the machine, and structures are padded by hand.  Names in bodies end with a zero byte.
"""

import os
import stat
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

KERNEL_VERSION, KERNEL_MINOR_VERSION = 7, 38  # of the interface that is described here
ROOT_ID = 1
NS = 10**9
MAX_PAGES = 256
MAX_WRITE = MAX_PAGES * 4096  # bytes of one request
HEADER_ROOM = 4096  # of a request beside the bytes that it writes; a name and a value of an attribute are more, see below
XATTR_ROOM = 65536 + 512


class Opcode(IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    TMPFILE = 51


class Init(IntFlag):
    """What kernel and file system agree on at the beginning."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class SetAttr(IntFlag):
    """Which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11


class Opened(IntFlag):
    """How the kernel treats an open file."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


GETATTR_FH = 1 << 0
READ_LOCKOWNER = WRITE_LOCKOWNER = 1 << 1
WRITE_CACHE = 1 << 0  # the kernel writes a page of its own, through whatever handle there is
WRITE_KILL_SUIDGID = 1 << 2
OPEN_KILL_SUIDGID = 1 << 0
FSYNC_FDATASYNC = 1 << 0
NOTIFY_INVAL_INODE = 2

IN_HEADER = Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, length of extensions, padding
REQUEST = Struct("=4xIQQ")  # opcode, unique, node: of the header
CALLER = Struct("=24xIII")  # uid, gid, pid: of the header
OUT_HEADER = Struct("=IiQ")  # length, -errno, unique
ATTR = Struct("=QQQQQQIIIIIIIIII")
ENTRY = Struct("=QQQQII")  # node, generation, entry valid, attributes valid (s), and their ns; ATTR follows
ATTR_OUT = Struct("=QII")  # valid (s, ns); ATTR follows
GETATTR_IN = Struct("=IIQ")  # flags, -, handle
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")  # valid, -, handle, size, -, atime, mtime, ctime, their ns, mode, -, uid, gid, -
MKNOD_IN = Struct("=IIII")  # mode, device, umask, -
MKDIR_IN = Struct("=II")  # mode, umask
RENAME_IN = Struct("=Q")  # new directory
RENAME2_IN = Struct("=QII")  # new directory, flags, -
LINK_IN = Struct("=Q")  # node
OPEN_IN = Struct("=II")  # flags, open flags
CREATE_IN = Struct("=IIII")  # flags, mode, umask, open flags
OPEN_OUT = Struct("=QIi")  # handle, Opened, -
RELEASE_IN = Struct("=QIIQ")  # handle, flags, release flags, -
FLUSH_IN = Struct("=QIIQ")  # handle
READ_IN = Struct("=QQIIQII")  # handle, offset, size, read flags, -, flags, -
WRITE_IN = Struct("=QQIIQII")  # handle, offset, size, write flags, -, flags, -
WRITE_OUT = Struct("=II")  # size, -
STATFS_OUT = Struct("=QQQQQIIII24x")  # blocks, free, available, files, free files, bytes of a block, a name, a fragment
FSYNC_IN = Struct("=QII")  # handle, flags, -
SETXATTR_IN = Struct("=II")  # size, flags
GETXATTR_IN = Struct("=II")  # size, -
INIT_IN = Struct("=IIIII")  # major, minor, read ahead, flags, more flags
INIT_OUT = Struct("=IIIIHHIIHHI28x")  # ..., background, congestion, max write, time granularity (ns), max pages, -, flags
FORGET_IN = Struct("=Q")  # lookups
BATCH_FORGET_IN = Struct("=II")  # count, -
FORGET_ONE = Struct("=QQ")  # node, lookups
FALLOCATE_IN = Struct("=QQQII")  # handle, offset, length, mode, -
LSEEK_IN = Struct("=QQII")  # handle, offset, whence, -
LSEEK_OUT = Struct("=Q")  # offset
DIRENT = Struct("=QQII")  # inode number, offset of the next, length of the name, type; the name follows, padded to 8
INVAL_INODE_OUT = Struct("=Qqq")  # node, offset (negative: attributes only), length

REQUEST_BYTES = HEADER_ROOM + max(MAX_WRITE, XATTR_ROOM)


class Attributes(NamedTuple):
    """What the kernel learns of a file: a struct stat without its device. times: ns."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    blksize: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    def pack(self) -> bytes:
        """Return the structure of the kernel."""
        atime, atime_ns = divmod(self.atime_ns, NS)
        mtime, mtime_ns = divmod(self.mtime_ns, NS)
        ctime, ctime_ns = divmod(self.ctime_ns, NS)
        return ATTR.pack(
            self.ino, self.size, self.blocks, atime & _U64, mtime & _U64, ctime & _U64, atime_ns, mtime_ns, ctime_ns,
            self.mode, self.nlink, self.uid, self.gid, device_number(self.rdev), self.blksize, 0,
        )  # fmt: skip


_U64 = (1 << 64) - 1


def device_number(rdev: int) -> int:
    """Return a device's number as the kernel writes it in 32 bits."""
    if not rdev:
        return 0
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def device_of(number: int) -> int:
    """Return the device whose number the kernel writes so."""
    return os.makedev((number & 0xFFF00) >> 8, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def signed(seconds: int) -> int:
    """Return the seconds of a time, which may be before 1970."""
    return seconds - (1 << 64) if seconds >> 63 else seconds


def dirent(ino: int, offset: int, mode: int, name: bytes) -> bytes:
    """Return one entry of a directory. offset: where the next one is. mode: its type counts."""
    packed = DIRENT.pack(ino, offset, len(name), stat.S_IFMT(mode) >> 12) + name
    return packed + bytes(-len(packed) % 8)


def names(body: memoryview, count: int) -> list[bytes]:
    """Return the names, each with a zero byte at its end, that a body begins with."""
    return bytes(body).split(b"\0", count)[:count]


class Changes(NamedTuple):
    """What a SETATTR asks for; None: as it is.

    handle: of an open file through which it comes. size: bytes. times: ns. is_atime_now, is_mtime_now: the present instead.
    drops_privileges: the program has no right to leave set-user-id and set-group-id bits behind.
    """

    handle: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    is_atime_now: bool = False
    is_mtime_now: bool = False
    drops_privileges: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given: chown(2) to no other owner, which changes a time; or what precedes a write that takes
        set-user-id bits away."""
        return not self.sets_times and self[1:5] == (None, None, None, None)

    @property
    def sets_times(self) -> bool:
        """Whether a time is given."""
        return self.atime_ns is not None or self.mtime_ns is not None or self.is_atime_now or self.is_mtime_now

    @classmethod
    def unpack(cls, body: memoryview) -> "Changes":
        """Return what the body of a request says."""
        fields = SETATTR_IN.unpack_from(body)
        valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = fields

        def time_of(given: SetAttr, now: SetAttr, seconds: int, ns: int) -> tuple[int | None, bool]:
            if not valid & given:
                return None, False
            return (None, True) if valid & now else (signed(seconds) * NS + ns, False)

        atime_set, is_atime_now = time_of(SetAttr.ATIME, SetAttr.ATIME_NOW, atime, atime_ns)
        mtime_set, is_mtime_now = time_of(SetAttr.MTIME, SetAttr.MTIME_NOW, mtime, mtime_ns)
        return cls(
            handle if valid & SetAttr.FH else None,
            stat.S_IMODE(mode) if valid & SetAttr.MODE else None,
            uid if valid & SetAttr.UID else None,
            gid if valid & SetAttr.GID else None,
            size if valid & SetAttr.SIZE else None,
            atime_set, mtime_set, is_atime_now, is_mtime_now, bool(valid & SetAttr.KILL_SUIDGID),
        )  # fmt: skip
