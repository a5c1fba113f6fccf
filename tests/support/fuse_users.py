"""Being another user for a moment, and access control lists, for tests of mounts."""

import os
import pickle
import struct
import traceback

import pytest

NOBODY = 65534
ACL_ACCESS, ACL_DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def as_user(call, *args, uid=NOBODY, gid=None, groups=(), umask=0o022):
    """Call a function in a process of another user, and return what it returns, or raise the OSError that it raises."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(readable)
            os.setgroups(list(groups))
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            try:
                answer = ("returned", call(*args))
            except OSError as error:
                answer = ("raised", (error.errno, error.strerror))
            except BaseException:
                answer = ("failed", traceback.format_exc())
            with os.fdopen(writable, "wb") as file:
                file.write(pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as file:
        data = file.read()
    os.waitpid(child, 0)
    kind, value = pickle.loads(data)
    if kind == "raised":
        raise OSError(*value)
    assert kind == "returned", value
    return value


def number_of(call, *args, **options):
    """Return the errno of the error that a function raises, 0 if it raises none."""
    try:
        call(*args, **options)
    except OSError as error:
        return error.errno
    return 0


def acl(owner, group, other, users=(), groups=(), mask=None):
    """Return an access control list as an extended attribute holds it. users, groups: (number, permissions)."""
    mask = 7 if mask is None else mask
    entries = [(USER_OBJ, owner, NO_ID), *((USER, bits, number) for number, bits in users), (GROUP_OBJ, group, NO_ID),
               *((GROUP, bits, number) for number, bits in groups), (MASK, mask, NO_ID), (OTHER, other, NO_ID)]  # fmt: skip
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def needs_acl(directory):
    """Skip the test where a directory's file system has no access control lists."""
    probe = os.path.join(directory, "acl-probe")
    os.close(os.open(probe, os.O_CREAT | os.O_WRONLY))
    try:
        os.setxattr(probe, ACL_ACCESS, acl(7, 0, 0, users=[(1, 4)]))
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    finally:
        os.unlink(probe)
