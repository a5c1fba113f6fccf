"""What each request of the kernel asks the file system for, and how its answer is written."""

import errno
import os
from collections.abc import Callable
from typing import Any

from pagecache.adapters.fuse import protocol
from pagecache.adapters.fuse.credentials import Caller
from pagecache.adapters.fuse.protocol import Attributes, Changes, Opcode

TIMEOUT_S = 1  # how long the kernel may take names and attributes for known

Answer = bytes | memoryview | None  # a body; a part of the request's buffer right behind a header; none


class Request:
    """One request. fd: where it came from, and the answer goes. buffer: of its thread, which begins with it and may be
    written over once it is understood."""

    __slots__ = ("buffer", "fd", "nbytes", "node", "opcode", "unique")

    def __init__(self, fd: int, buffer: memoryview, nbytes: int):
        self.fd = fd
        self.opcode, self.unique, self.node = protocol.REQUEST.unpack_from(buffer)
        self.buffer = buffer
        self.nbytes = nbytes

    @property
    def caller(self) -> Caller:
        """Whose request it is."""
        return Caller(*protocol.CALLER.unpack_from(self.buffer))

    @property
    def body(self) -> memoryview:
        """What follows the header."""
        return self.buffer[protocol.IN_HEADER.size : self.nbytes]


class Answers:
    """Serves requests, each by the method of its name. operations: what is served; its `files` are the open ones."""

    def __init__(self, operations: Any):
        self._operations = operations
        self._files = operations.files
        self._by_opcode: dict[int, Callable[[Request], Answer]] = {
            opcode: getattr(self, f"on_{opcode.name.lower()}") for opcode in Opcode if hasattr(self,
            f"on_{opcode.name.lower()}")
        }

    def of(self, request: Request) -> Answer:
        """Do what a request asks for. Raises OSError: ENOSYS for what is not known here, then the kernel does without."""
        serve = self._by_opcode.get(request.opcode)
        if serve is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return serve(request)

    # -- names ---------------------------------------------------------------------------------------------------------

    def on_lookup(self, request: Request) -> Answer:
        return _entry(*self._operations.lookup(request.node, _last_name(request.body)))

    def on_forget(self, request: Request) -> Answer:
        (nr_lookups,) = protocol.FORGET_IN.unpack_from(request.body)
        self._operations.forget(request.node, nr_lookups)
        return None

    def on_batch_forget(self, request: Request) -> Answer:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(request.body)
        at = protocol.BATCH_FORGET_IN.size
        for number, nr_lookups in protocol.FORGET_ONE.iter_unpack(request.body[at : at + count * protocol.FORGET_ONE.size]):
            self._operations.forget(number, nr_lookups)
        return None

    def on_readlink(self, request: Request) -> Answer:
        target: bytes = self._operations.readlink(request.node)
        return target

    def on_symlink(self, request: Request) -> Answer:
        name, target = protocol.names(request.body, 2)
        return _entry(*self._operations.symlink(request.caller, request.node, name, target))

    def on_mknod(self, request: Request) -> Answer:
        mode, device, umask, _ = protocol.MKNOD_IN.unpack_from(request.body)
        name = _last_name(request.body[protocol.MKNOD_IN.size :])
        caller, device = request.caller._replace(umask=umask), protocol.device_of(device)
        return _entry(*self._operations.mknod(caller, request.node, name, mode, device))

    def on_mkdir(self, request: Request) -> Answer:
        mode, umask = protocol.MKDIR_IN.unpack_from(request.body)
        name = _last_name(request.body[protocol.MKDIR_IN.size :])
        return _entry(*self._operations.mkdir(request.caller._replace(umask=umask), request.node, name, mode))

    def on_unlink(self, request: Request) -> Answer:
        self._operations.unlink(request.caller, request.node, _last_name(request.body))
        return b""

    def on_rmdir(self, request: Request) -> Answer:
        self._operations.rmdir(request.caller, request.node, _last_name(request.body))
        return b""

    def on_rename(self, request: Request) -> Answer:
        (new_parent,) = protocol.RENAME_IN.unpack_from(request.body)
        return self._renamed(request, new_parent, 0, request.body[protocol.RENAME_IN.size :])

    def on_rename2(self, request: Request) -> Answer:
        new_parent, flags, _ = protocol.RENAME2_IN.unpack_from(request.body)
        return self._renamed(request, new_parent, flags, request.body[protocol.RENAME2_IN.size :])

    def _renamed(self, request: Request, new_parent: int, flags: int, body: memoryview) -> Answer:
        old, new = protocol.names(body, 2)
        self._operations.rename(request.caller, (request.node, old), (new_parent, new), flags)
        return b""

    def on_link(self, request: Request) -> Answer:
        (number,) = protocol.LINK_IN.unpack_from(request.body)
        name = _last_name(request.body[protocol.LINK_IN.size :])
        return _entry(*self._operations.link(request.caller, number, request.node, name))

    # -- attributes ----------------------------------------------------------------------------------------------------

    def on_getattr(self, request: Request) -> Answer:
        flags, _, handle = protocol.GETATTR_IN.unpack_from(request.body)
        return _attributes(self._operations.attributes(request.node, handle if flags & protocol.GETATTR_FH else None))

    def on_setattr(self, request: Request) -> Answer:
        return _attributes(self._operations.change(request.caller, request.node, Changes.unpack(request.body)))

    def on_statfs(self, request: Request) -> Answer:
        found = self._operations.statfs(request.node)
        return protocol.STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree, found.f_bsize, found.f_namemax,
            found.f_frsize, 0,
        )  # fmt: skip

    def on_getxattr(self, request: Request) -> Answer:
        size, _ = protocol.GETXATTR_IN.unpack_from(request.body)
        name = _last_name(request.body[protocol.GETXATTR_IN.size :])
        return _value(self._operations.getxattr(request.caller, request.node, name), size)

    def on_listxattr(self, request: Request) -> Answer:
        size, _ = protocol.GETXATTR_IN.unpack_from(request.body)
        names = self._operations.listxattr(request.caller, request.node)
        return _value(b"".join(name + b"\0" for name in names), size)

    def on_setxattr(self, request: Request) -> Answer:
        size, flags = protocol.SETXATTR_IN.unpack_from(request.body)
        name, value = bytes(request.body[protocol.SETXATTR_IN.size :]).split(b"\0", 1)
        self._operations.setxattr(request.caller, request.node, name, value[:size], flags)
        return b""

    def on_removexattr(self, request: Request) -> Answer:
        self._operations.removexattr(request.caller, request.node, _last_name(request.body))
        return b""

    # -- open files ----------------------------------------------------------------------------------------------------

    def on_open(self, request: Request) -> Answer:
        flags, open_flags = protocol.OPEN_IN.unpack_from(request.body)
        drops_privileges = bool(open_flags & protocol.OPEN_KILL_SUIDGID)
        handle, treated = self._operations.open(
            request.caller, request.node, flags, drops_privileges=drops_privileges
        )
        return protocol.OPEN_OUT.pack(handle, treated, 0)

    def on_create(self, request: Request) -> Answer:
        return self._made_open(request, self._operations.create, _last_name(request.body[protocol.CREATE_IN.size :]))

    def on_tmpfile(self, request: Request) -> Answer:
        return self._made_open(request, self._operations.tmpfile)

    def _made_open(self, request: Request, make: Callable[..., Any], *name: bytes) -> Answer:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(request.body)
        caller = request.caller._replace(umask=umask)
        number, attributes, handle, treated = make(caller, request.node, *name, flags, mode)
        return _entry(number, attributes) + protocol.OPEN_OUT.pack(handle, treated, 0)

    def on_read(self, request: Request) -> Answer:
        handle, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(request.buffer, protocol.IN_HEADER.size)
        target = request.buffer[protocol.OUT_HEADER.size : protocol.OUT_HEADER.size + size]
        return target[: self._files.read(handle, target, offset)]

    def on_write(self, request: Request) -> Answer:
        handle, offset, size, write_flags, _, flags, _ = protocol.WRITE_IN.unpack_from(request.body)
        data = request.body[protocol.WRITE_IN.size : protocol.WRITE_IN.size + size]
        is_own = write_flags & protocol.WRITE_CACHE  # the kernel's page, of a map: flags are those of any handle
        self._files.write(
            handle, data, offset, appends=bool(flags & os.O_APPEND and not is_own),
            unprivileged=request.caller if write_flags & protocol.WRITE_KILL_SUIDGID else None,
        )  # fmt: skip
        return protocol.WRITE_OUT.pack(size, 0)

    def on_lseek(self, request: Request) -> Answer:
        handle, offset, whence, _ = protocol.LSEEK_IN.unpack_from(request.body)
        return protocol.LSEEK_OUT.pack(self._files.lseek(handle, offset, whence))

    def on_fallocate(self, request: Request) -> Answer:
        handle, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(request.body)
        self._files.allocate(handle, mode, offset, length)
        return b""

    def on_flush(self, request: Request) -> Answer:
        self._files.flush(protocol.FLUSH_IN.unpack_from(request.body)[0])
        return b""

    def on_fsync(self, request: Request) -> Answer:
        handle, flags, _ = protocol.FSYNC_IN.unpack_from(request.body)
        self._files.fsync(handle, bool(flags & protocol.FSYNC_FDATASYNC))
        return b""

    def on_release(self, request: Request) -> Answer:
        self._files.release(protocol.RELEASE_IN.unpack_from(request.body)[0])
        return b""

    # -- open directories ----------------------------------------------------------------------------------------------

    def on_opendir(self, request: Request) -> Answer:
        return protocol.OPEN_OUT.pack(self._operations.opendir(request.caller, request.node), 0, 0)

    def on_readdir(self, request: Request) -> Answer:
        handle, offset, size, *_ = protocol.READ_IN.unpack_from(request.body)
        entries: bytes = self._operations.directories.read(handle, offset, size)
        return entries

    def on_fsyncdir(self, request: Request) -> Answer:
        self._operations.directories.sync(protocol.FSYNC_IN.unpack_from(request.body)[0])
        return b""

    def on_releasedir(self, request: Request) -> Answer:
        self._operations.directories.release(protocol.RELEASE_IN.unpack_from(request.body)[0])
        return b""


def _last_name(body: memoryview) -> bytes:
    return protocol.names(body, 1)[0]


def _entry(number: int, attributes: Attributes) -> bytes:
    return protocol.ENTRY.pack(number, 0, TIMEOUT_S, TIMEOUT_S, 0, 0) + attributes.pack()


def _attributes(attributes: Attributes) -> bytes:
    return protocol.ATTR_OUT.pack(TIMEOUT_S, 0, 0) + attributes.pack()


def _value(value: bytes, size: int) -> bytes:
    """Return a value, or its length if that is what is asked for. Raises OSError (ERANGE) if there is no room for it."""
    if not size:
        return protocol.GETXATTR_IN.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
