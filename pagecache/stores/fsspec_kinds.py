"""What is known of the file systems of fsspec and threads, from reading their code.

A synchronous file system that stands in neither table, or a subclass of one that does, may share anything with others:
it is called in the threads of its user only.  docs/libraries/fsspec-threads.md says the same of all that fsspec knows.
"""

import os
from collections.abc import Mapping
from typing import Any, cast

from pagecache.stores.fsspec_protocols import FileSystem, Generic, OnOther, ReferenceFileSystem, Wrapper
from pagecache.stores.validators import validator_of

# May be called by any number of threads at once, while their user calls them as well.
THREAD_SAFE = {
    "fsspec.implementations.arrow.ArrowFSWrapper": "it holds nothing, and Arrow's file systems are for many threads",
    "fsspec.implementations.arrow.HadoopFileSystem": "it holds nothing, and Arrow's file systems are for many threads",
    "fsspec.implementations.data.DataFileSystem": "the bytes are in the path",
    "fsspec.implementations.local.LocalFileSystem": "each read opens a file of its own",
    "fsspec.implementations.memory.MemoryFileSystem": "a read is one slice of bytes in memory",
}

# Not for several threads at once, but an instance made anew from the same arguments shares nothing with the first one.
REMADE = {
    "boxfs.boxfs.BoxFileSystem": "one client with one session, and tables of paths",
    "dropboxdrivefs.core.DropboxDriveFileSystem": "one client with one session of requests",
    "fsspec.implementations.dbfs.DatabricksFileSystem": "one session of requests, listings",
    "fsspec.implementations.ftp.FTPFileSystem": "one control connection, which answers in order",
    "fsspec.implementations.gist.GistFileSystem": "listings",
    "fsspec.implementations.git.GitFileSystem": "one repository object of libgit2",
    "fsspec.implementations.github.GithubFileSystem": "listings that a look-up finds half way forgotten",
    "fsspec.implementations.jupyter.JupyterFileSystem": "one session of requests",
    "fsspec.implementations.libarchive.LibArchiveFileSystem": "one file object with one position",
    "fsspec.implementations.sftp.SFTPFileSystem": "one channel; a thread takes the answers of others off it",
    "fsspec.implementations.tar.TarFileSystem": "one file object with one position",
    "fsspec.implementations.webhdfs.WebHDFS": "one session of requests",
    "fsspec.implementations.zip.ZipFileSystem": "names are listed while others look them up, one count of open members",
    "huggingface_hub.hf_file_system.HfFileSystem": "tables that a look-up finds half way forgotten",
    "lakefs_spec.spec.LakeFSFileSystem": "one client, and a transaction",
    "ocifs.core.OCIFileSystem": "one client with one session of requests, listings",
    "ossfs.core.OSSFileSystem": "one session of requests, listings",
    "tosfs.core.TosFileSystem": "one client",
    "webdav4.fsspec.WebdavFileSystem": "one client with one session",
}

ARCHIVES = frozenset(f"fsspec.implementations.{name}FileSystem" for name in ("libarchive.LibArchive", "tar.Tar", "zip.Zip"))
ARROW = "fsspec.implementations.arrow.ArrowFSWrapper"
CACHING = "fsspec.implementations.cached.CachingFileSystem"
DIRECTORY = "fsspec.implementations.dirfs.DirFileSystem"
GENERIC = "fsspec.generic.GenericFileSystem"
REFERENCE = "fsspec.implementations.reference.ReferenceFileSystem"
WRAPPER = "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper"
_LOCAL = ("fsspec.implementations.local.LocalFileSystem", "fsspec.implementations.memory.MemoryFileSystem")


def name_of(kind: type) -> str:
    """Return the name of a class with its module, as in the tables: nothing is imported to compare it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_kind(fs: object, name: str) -> bool:
    """Whether a file system is of a class, or of one made from it."""
    return any(name_of(base) == name for base in type(fs).__mro__)


def fields_of(fs: object) -> dict[str, Any]:
    """Return the attributes of an instance itself: caching file systems show their target's."""
    fields: dict[str, Any] = object.__getattribute__(fs, "__dict__")
    return fields


def unwrapped(fs: FileSystem) -> FileSystem:
    """Return the file system below those of ours, as bytes are cached once, and below wrappers that call it in threads."""
    while True:
        if fs.protocol == "pagecache":
            fs = cast(OnOther, fs).fs
        elif is_kind(fs, WRAPPER):
            fs = cast(Wrapper, fs).sync_fs
        else:
            return fs


def nested(fs: FileSystem) -> list[FileSystem]:
    """Return the file systems that one stands on, as far as it is known to stand on any."""
    fields = fields_of(fs)
    if is_kind(fs, REFERENCE):
        return list({id(below): below for below in map(unwrapped, cast(ReferenceFileSystem, fs).fss.values())}.values())
    if is_kind(fs, DIRECTORY) or is_kind(fs, CACHING):
        return [unwrapped(fields["fs"])]
    if is_kind(fs, WRAPPER):
        return [unwrapped(cast(Wrapper, fs).sync_fs)]
    below = getattr(fields.get("of"), "fs", None)
    return [unwrapped(below)] if below is not None else []


def is_asynchronous(fs: FileSystem) -> bool:
    """Whether requests are coroutines, on the loop of the file system or of the one that it stands on."""
    if is_kind(fs, CACHING):
        return False
    if is_kind(fs, DIRECTORY):
        return is_asynchronous(unwrapped(cast(OnOther, fs).fs))
    return bool(getattr(fs, "async_impl", False)) and not is_kind(fs, WRAPPER)


def is_local(fs: FileSystem) -> bool:
    """Whether the bytes are of this machine, and reached without a request."""
    if any(is_kind(fs, name) for name in _LOCAL):
        return True
    return is_kind(fs, DIRECTORY) and all(map(is_local, nested(fs)))


def is_of_machine(fs: FileSystem) -> bool:
    """Whether a path names something on this machine only."""
    return any(is_kind(fs, name) for name in _LOCAL) or any(map(is_of_machine, nested(fs)))


def is_thread_safe(fs: FileSystem) -> bool:
    """Whether any number of threads may call, and their user as well."""
    if name_of(type(fs)) in THREAD_SAFE:
        return True
    if is_kind(fs, GENERIC):  # else it takes the instances of its user into the loop's thread
        return cast(Generic, fs).method in ("default", "options")
    if is_kind(fs, REFERENCE) or is_kind(fs, DIRECTORY) or is_kind(fs, WRAPPER):
        return all(map(is_thread_safe, nested(fs)))
    return is_asynchronous(fs)


def is_connection(fs: FileSystem) -> bool:
    """Whether an instance is one that others with the same arguments may have instead."""
    return name_of(type(fs)) in REMADE and name_of(type(fs)) not in ARCHIVES


def is_connected(fs: FileSystem) -> bool:
    """Whether an instance is, or stands on, a connection of its own."""
    return not is_thread_safe(fs) and (is_connection(fs) or any(map(is_connected, nested(fs))))


def archive_version(fs: FileSystem) -> str | None:
    """Return what distinguishes the file under an archive from others of its name; None for what is no archive, and
    where nothing does."""
    if name_of(type(fs)) not in ARCHIVES:
        return None
    opened = getattr(fields_of(fs).get("of"), "fobjects", None)
    file: Any = opened[0] if opened else None
    if isinstance(getattr(file, "details", None), Mapping):
        return validator_of(file.details)
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):
        return None
    return f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"


def may_be_own(kind: type) -> bool:
    """Whether instances of a class share nothing, unless they stand on something that does."""
    return name_of(kind) in REMADE or name_of(kind) == DIRECTORY


def is_safe_kind(kind: type) -> bool:
    """Whether all instances of a class may be called from several threads at once."""
    names = [name_of(base) for base in kind.__mro__]
    depends = any(name in names for name in (CACHING, DIRECTORY, GENERIC, REFERENCE, WRAPPER))
    return names[0] in THREAD_SAFE or bool(getattr(kind, "async_impl", False) and not depends)
