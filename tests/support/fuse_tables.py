"""Tables of what system calls do to files of each kind, owner and mode, run on a mount and beside it.

Each case is prepared by root in a directory of its own, and carried out by a user; what came of it (an errno, and
everything that can be seen of the files before and after) must be the same on the mount as on the file system below it.
"""

import itertools
import os
import socket
import stat
import time

NOBODY, OTHER, GROUP = 65534, 12345, 23456
LONG = "n" * 256
KINDS = ("file", "directory", "full directory", "fifo", "socket", "link", "dangling link", "none")
OLD_NS = 10**18
SIZES = (0, 3, 7, 5000, 1 << 50, -1)


def make(path, kind):
    """Make something of a kind."""
    if kind == "file":
        with open(path, "wb") as file:
            file.write(b"content")
    elif kind in ("directory", "full directory"):
        os.mkdir(path)
        if kind == "full directory":
            make(f"{path}/inner", "file")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    elif kind == "link":
        make(f"{path}-target", "file")
        os.symlink(os.path.basename(path) + "-target", path)
    elif kind == "dangling link":
        os.symlink("nowhere", path)
    elif kind != "none":
        raise ValueError(kind)


def give(path, uid=0, gid=0, mode=None):
    """Set owner and mode, if there is anything."""
    if not os.path.lexists(path):
        return
    os.lchown(path, uid, gid)
    if mode is not None and not os.path.islink(path):
        os.chmod(path, mode)


def seen(directory):
    """Return what can be seen of a directory and all that is in it, without what cannot be the same twice."""
    found = {}
    names = {}
    for base, directories, files in os.walk(directory):
        for name in (".", *directories, *files):
            path = os.path.normpath(os.path.join(base, name))
            status = os.lstat(path)
            number = names.setdefault(status.st_ino, len(names))
            is_directory = stat.S_ISDIR(status.st_mode)
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            found[os.path.relpath(path, directory)] = (
                oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink,
                None if is_directory else status.st_size, None if is_directory else number, target, status.st_mtime_ns,
                status.st_ctime_ns,
            )  # fmt: skip
    return found


def changes(before, after):
    """Return what came of a case: what there is, and which times moved."""
    found = {}
    for name, (*fields, mtime_ns, ctime_ns) in after.items():
        *_, old_mtime_ns, old_ctime_ns = before.get(name, (None, None))
        moved = "new" if name not in before else (mtime_ns != old_mtime_ns, ctime_ns != old_ctime_ns)
        found[name] = (*fields, moved)
    return found


# -- cases: (name, prepare(directory), act(directory)) -----------------------------------------------------------------


def renames():
    """Each kind onto each kind, in directories of each owner and mode."""
    for old, new in itertools.product(KINDS, KINDS):
        def prepare(base, old=old, new=new):
            os.mkdir(f"{base}/to", 0o777)
            make(f"{base}/old", old)
            make(f"{base}/to/new", new)
            for name in ("", "/to", "/old", "/to/new"):
                give(base + name, NOBODY, NOBODY)
        yield f"rename {old} onto {new}", prepare, lambda base: os.rename(f"{base}/old", f"{base}/to/new")
    places = ((0o755, 0), (0o777, 0), (0o1777, 0), (0o1777, NOBODY), (0o1777, OTHER), (0o555, NOBODY), (0o300, NOBODY))
    for (from_mode, from_owner), (to_mode, to_owner) in itertools.product(places, places):
        for owner, replaced in ((NOBODY, None), (OTHER, None), (NOBODY, OTHER), (OTHER, NOBODY)):
            for kind in ("file", "directory"):
                one, two = (from_mode, from_owner), (to_mode, to_owner)

                def prepare(base, kind=kind, owner=owner, replaced=replaced, one=one, two=two):
                    os.mkdir(f"{base}/from")
                    os.mkdir(f"{base}/to")
                    make(f"{base}/from/old", kind)
                    give(f"{base}/from/old", owner, owner)
                    if replaced is not None:
                        make(f"{base}/to/new", kind)
                        give(f"{base}/to/new", replaced, replaced)
                    for name, (mode, place_owner) in (("from", one), ("to", two)):
                        give(f"{base}/{name}", place_owner, place_owner, mode)

                places_named = f"from {from_mode:o} {from_owner} to {to_mode:o} {to_owner}"
                title = f"rename {kind} of {owner} over {replaced} {places_named}"
                yield title, prepare, lambda base: os.rename(f"{base}/from/old", f"{base}/to/new")


def odd_names():
    """Names that are too long, too deep, in loops, below files, or nowhere."""
    def prepare(base):
        give(base, NOBODY, NOBODY)
        make(f"{base}/file", "file")
        make(f"{base}/sub", "full directory")
        os.symlink("loop", f"{base}/loop")
        os.symlink("sub", f"{base}/link")
        os.link(f"{base}/file", f"{base}/hard")
        for name in ("file", "sub", "sub/inner"):
            give(f"{base}/{name}", NOBODY, NOBODY)
    winding, too_long = "/".join(["sub/.."] * 400) + "/file", "/".join(["sub"] + [".."] * 3000)
    for name in ("none/x", "file/x", "loop/x", LONG, f"{LONG}/x", "link/inner", "link", "sub/..", "sub/.", "", "loop",
                 "file", "hard", winding, too_long):  # fmt: skip
        for call in (
            lambda path: os.unlink(path), lambda path: os.rmdir(path), lambda path: os.mkdir(path),
            lambda path: os.stat(path).st_mode, lambda path: os.chmod(path, 0o600), lambda path: os.truncate(path, 1),
            lambda path: os.close(os.open(path, os.O_RDONLY)), lambda path: os.close(os.open(path, os.O_CREAT | os.O_RDWR)),
            lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)),
            lambda path: os.close(os.open(path, os.O_NOFOLLOW | os.O_RDONLY)), lambda path: os.listdir(path),
            lambda path: os.close(os.open(path, os.O_DIRECTORY | os.O_RDONLY)), lambda path: os.mkfifo(path),
            lambda path: os.symlink("x", path), lambda path: os.link(path, f"{path}-2"), lambda path: os.readlink(path),
            lambda path: os.rename(path, os.path.dirname(path) + "/renamed"), lambda path: os.utime(path),
        ):  # fmt: skip
            yield f"name {name[:20]!r}", prepare, lambda base, call=call, name=name: call(f"{base}/{name}")
    for pair in (("sub", "sub/inner2"), ("sub", "sub"), ("file", "file"), ("file", "hard"), ("sub", "file"),
                 ("file", "sub"), ("sub/inner", "file"), ("sub", LONG), ("link", "sub"), ("file", "link"),
                 ("loop", "file")):  # fmt: skip
        for call in (os.rename, os.link):
            title = f"{call.__name__} {pair[0]} to {pair[1][:10]}"
            yield title, prepare, lambda base, call=call, pair=pair: call(*(f"{base}/{one}" for one in pair))


def removals():
    """Each kind, in directories of each owner and mode; by unlink and rmdir."""
    places = ((0o755, 0), (0o777, 0), (0o1777, 0), (0o1777, NOBODY), (0o1777, OTHER), (0o555, NOBODY), (0o300, NOBODY))
    for kind, (mode, place_owner), owner in itertools.product(KINDS, places, (0, NOBODY, OTHER)):
        def prepare(base, kind=kind, mode=mode, place_owner=place_owner, owner=owner):
            make(f"{base}/it", kind)
            give(f"{base}/it", owner, owner)
            give(base, place_owner, place_owner, mode)
        for call in (os.unlink, os.rmdir):
            title = f"{call.__name__} {kind} of {owner} in {mode:o} {place_owner}"
            yield title, prepare, lambda base, call=call: call(f"{base}/it")


def modes():
    """chmod of each kind, by owners, members of the group and others, to each kind of mode."""
    owners = ((0, 0), (NOBODY, NOBODY), (NOBODY, GROUP), (NOBODY, OTHER), (OTHER, GROUP))
    wanted = (0, 0o777, 0o4755, 0o2755, 0o6770, 0o2660, 0o1777, 0o7777)
    for kind, (uid, gid), mode in itertools.product(KINDS[:6], owners, wanted):
        def prepare(base, kind=kind, uid=uid, gid=gid):
            give(base, NOBODY, NOBODY)
            make(f"{base}/it", kind)
            give(f"{base}/it", uid, gid)
            give(f"{base}/it-target", uid, gid)
        yield f"chmod {kind} of {uid}:{gid} to {mode:o}", prepare, lambda base, mode=mode: os.chmod(f"{base}/it", mode)
        if kind == "file":
            def act(base, mode=mode):
                with open(f"{base}/it", "rb") as file:
                    os.fchmod(file.fileno(), mode)
            yield f"fchmod {kind} of {uid}:{gid} to {mode:o}", prepare, act


def owners():
    """chown of each kind with each mode, to each owner."""
    before = ((0, 0), (NOBODY, NOBODY), (NOBODY, OTHER), (OTHER, OTHER))
    wanted = ((-1, -1), (NOBODY, -1), (-1, NOBODY), (-1, GROUP), (-1, OTHER), (OTHER, -1), (0, 0), (NOBODY, GROUP))
    kinds, bits = ("file", "directory", "fifo", "link"), (0o644, 0o6755, 0o2644)
    for kind, (uid, gid), new, mode in itertools.product(kinds, before, wanted, bits):
        def prepare(base, kind=kind, uid=uid, gid=gid, mode=mode):
            give(base, NOBODY, NOBODY)
            make(f"{base}/it", kind)
            give(f"{base}/it", uid, gid, mode)
            give(f"{base}/it-target", uid, gid, mode)
        title = f"{kind} {mode:o} of {uid}:{gid} to {new[0]}:{new[1]}"
        yield f"chown {title}", prepare, lambda base, new=new: os.chown(f"{base}/it", *new)
        yield f"lchown {title}", prepare, lambda base, new=new: os.lchown(f"{base}/it", *new)


def times():
    """utimensat of each kind, by owners, by those who may write, and by others."""
    owners = ((NOBODY, NOBODY, 0o600), (NOBODY, NOBODY, 0o400), (OTHER, GROUP, 0o660), (OTHER, OTHER, 0o606),
              (OTHER, OTHER, 0o600))  # fmt: skip
    for kind, (uid, gid, mode) in itertools.product(("file", "directory", "fifo", "link", "dangling link", "none"), owners):
        def prepare(base, kind=kind, uid=uid, gid=gid, mode=mode):
            give(base, NOBODY, NOBODY)
            make(f"{base}/it", kind)
            give(f"{base}/it", uid, gid, mode)
            give(f"{base}/it-target", uid, gid, mode)
        for what, call in (
            ("now", lambda path: os.utime(path)), ("set", lambda path: os.utime(path, ns=(OLD_NS + 1, OLD_NS + 2))),
            ("link now", lambda path: os.utime(path, follow_symlinks=False)),
            ("link set", lambda path: os.utime(path, ns=(OLD_NS + 1, OLD_NS + 2), follow_symlinks=False)),
        ):  # fmt: skip
            yield f"utime {what} {kind} {mode:o} of {uid}:{gid}", prepare, lambda base, call=call: call(f"{base}/it")


def sizes():
    """truncate and ftruncate, and opening with O_TRUNC, of each kind and size, by those who may and others."""
    owners = ((NOBODY, NOBODY, 0o644), (NOBODY, NOBODY, 0o444), (NOBODY, NOBODY, 0o6777), (OTHER, OTHER, 0o644),
              (OTHER, GROUP, 0o664), (OTHER, OTHER, 0o6777), (OTHER, OTHER, 0o2767), (OTHER, GROUP, 0o2767))  # fmt: skip
    for kind, (uid, gid, mode) in itertools.product(("file", "directory", "link", "dangling link", "none"), owners):
        def prepare(base, kind=kind, uid=uid, gid=gid, mode=mode):
            give(base, NOBODY, NOBODY)
            make(f"{base}/it", kind)
            give(f"{base}/it", uid, gid, mode)
            give(f"{base}/it-target", uid, gid, mode)
        def opened(path, flags, size=None):
            fd = os.open(path, flags)
            try:
                if size is not None:
                    os.ftruncate(fd, size)
            finally:
                os.close(fd)
        for what, call in (
            *((f"truncate to {size}", lambda path, size=size: os.truncate(path, size)) for size in SIZES),
            ("ftruncate", lambda path: opened(path, os.O_RDWR, 3)),
            ("ftruncate of a reader", lambda path: opened(path, os.O_RDONLY, 3)),
            ("O_TRUNC", lambda path: opened(path, os.O_WRONLY | os.O_TRUNC)),
            ("O_RDONLY O_TRUNC", lambda path: opened(path, os.O_TRUNC)),
            ("O_APPEND", lambda path: opened(path, os.O_WRONLY | os.O_APPEND)),
            ("O_RDWR", lambda path: opened(path, os.O_RDWR)),
            ("O_CREAT O_TRUNC", lambda path: opened(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT)),
        ):  # fmt: skip
            yield f"{what} {kind} {mode:o} of {uid}:{gid}", prepare, lambda base, call=call: call(f"{base}/it")


def makings():
    """Things that are made where something is already, or where one may not; and what is theirs of it."""
    places = ((0o755, 0, 0), (0o777, 0, 0), (0o2777, 0, GROUP), (0o2777, OTHER, OTHER), (0o755, NOBODY, NOBODY),
              (0o666, NOBODY, NOBODY))  # fmt: skip
    for present, (mode, uid, gid) in itertools.product(("none", "file", "directory", "link", "dangling link"), places):
        def prepare(base, present=present, mode=mode, uid=uid, gid=gid):
            make(f"{base}/it", present)
            give(f"{base}/it", NOBODY, NOBODY)
            give(base, uid, gid, mode)
        for what, call in (
            ("mkdir", lambda path: os.mkdir(path, 0o2775)), ("mkfifo", lambda path: os.mkfifo(path, 0o664)),
            ("mknod", lambda path: os.mknod(path, stat.S_IFREG | 0o6775)), ("symlink", lambda path: os.symlink("to", path)),
            ("device", lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))), ("bind", bind),
            ("creat", lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o6775))),
            ("excl", lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0))),
        ):  # fmt: skip
            yield f"{what} over {present} in {mode:o} {uid}:{gid}", prepare, lambda base, call=call: call(f"{base}/it")
    for kind, owner in itertools.product(KINDS, (NOBODY, OTHER, 0)):
        def prepare(base, kind=kind, owner=owner):
            os.mkdir(f"{base}/to")
            make(f"{base}/old", kind)
            for name in ("", "/to"):
                give(base + name, NOBODY, NOBODY)
            give(f"{base}/old", owner, owner)
        yield f"link {kind} of {owner}", prepare, hard_link


def hard_link(base):
    """Give what there is another name, in another directory."""
    os.link(f"{base}/old", f"{base}/to/new", follow_symlinks=False)


def bind(path):
    """Make a socket by binding it, by a name that is short enough."""
    fd = os.open(os.path.dirname(path), os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{fd}/{os.path.basename(path)}")
    finally:
        os.close(fd)


TABLES = (renames, odd_names, removals, modes, owners, times, sizes, makings)


def run(base, cases, as_somebody):
    """Prepare cases in directories below a base, have a user carry them out, and return what came of each.

    as_somebody: calls a function in a process of theirs.
    """
    befores = []
    for number, (_, prepare, _) in enumerate(cases):
        directory = f"{base}/{number}"
        os.mkdir(directory)
        prepare(directory)
        for where, directories, files in os.walk(directory):
            for name in (".", *directories, *files):
                os.utime(os.path.join(where, name), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
        befores.append(seen(directory))
    time.sleep(0.02)  # two changes at one time of the file system's clock would be none

    def act():
        numbers = []
        for number, (_, _, call) in enumerate(cases):
            try:
                call(f"{base}/{number}")
                numbers.append(0)
            except OSError as error:
                numbers.append(error.errno)
        return numbers

    numbers = as_somebody(act)
    afters = [seen(f"{base}/{place}") for place in range(len(cases))]
    return [(number, changes(*states)) for number, *states in zip(numbers, befores, afters, strict=True)]
