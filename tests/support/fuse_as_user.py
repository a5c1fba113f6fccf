"""Mounts as another user: `fuse_as_user.py UID WORDS...`, with the words of `pagecache mount`.

Where other users may not open /dev/fuse, fusermount3 cannot help them: then root mounts, in that user's name, and what
serves is the user's all the same.
"""

import ctypes
import os
import socket
import stat
import sys

from pagecache import cli
from pagecache.adapters.fuse import mounting


def mounted_by_root(uid, mountpoint):
    """Mount for a user. Returns the descriptor."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={uid},group_id={uid},default_permissions".encode()
    flags = ctypes.c_ulong(mounting.MS_NOSUID | mounting.MS_NODEV)
    if ctypes.CDLL(None).mount(b"test", os.fsencode(mountpoint), b"fuse.pagecache", flags, options):
        raise OSError("root could not mount")
    return fd


def asked(helper):
    """Have the process that stayed root mount. Returns the descriptor."""
    helper.send(b"?")
    _, fds, *_ = socket.recv_fds(helper, 1, 1)
    helper.close()
    os.wait()
    return fds[0]


def main(uid, *words):
    """Become the user, and mount. Returns the exit status."""
    words = ["mount", *words]
    cli.make_parser(words)  # imports what another user may not be able to read
    uid = int(uid)
    if not os.stat("/dev/fuse").st_mode & stat.S_IWOTH:
        ours, theirs = socket.socketpair()
        if not os.fork():  # stays root until it is asked
            ours.close()
            if theirs.recv(1):
                socket.send_fds(theirs, [b"!"], [mounted_by_root(uid, words[2])])
            os._exit(0)
        theirs.close()
        mounting.Mountpoint._mount_by_helper = lambda self, options: asked(ours)
    os.setgroups([uid])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
