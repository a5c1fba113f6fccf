"""Random steps of ours and of another program on one local file, beside a model: nothing of theirs is ever overwritten
unless that was reported (ESTALE), and what a sync returned for is in the file."""

import contextlib
import errno
import os

import pytest
from support import PAGE, STRESS, let_time_pass
from support.write_steps import dirty_pages

import pagecache
from pagecache._core import STAMP_DOUBTFUL

SIZE_MAX = 12 * PAGE
STEPS = 3000 if STRESS else 250


class Pair:
    """A file, our two handles on it, and what we must see of it.

    foreign: what another program has done since our version was taken: "" nothing, "seen" a change that can be seen,
    "hidden" one whose time was set back.
    """

    def __init__(self, cache, path, rng):
        self.cache, self.path, self.rng = cache, path, rng
        self.foreign = ""
        self.nr_stale = self.nr_foreign = 0
        self._open()

    def _open(self):
        self.file = self.cache.open(self.path, "r+b")
        self.appender = self.cache.open(self.path, "a+b")
        self.take()

    def take(self):
        """Our version is what the file has now."""
        self.view = bytearray(self.stored())
        self.foreign = ""
        self.nr_versions = self.file.inode.nr_versions

    def stored(self):
        return self.path.read_bytes()

    def place(self):
        return self.rng.choice([0, self.rng.randrange(SIZE_MAX), max(0, len(self.view) - self.rng.randrange(100))])

    def data(self):
        return self.rng.randbytes(self.rng.choice([1, 100, PAGE, self.rng.randrange(1, 3 * PAGE)]))

    def put(self, offset, data):
        self.ours = (offset, data)
        self.view.extend(bytes(max(0, offset - len(self.view))))
        self.view[offset : offset + len(data)] = data

    # -- ours ----------------------------------------------------------------------------------------------------------

    def step(self):
        """Do one step, and check what it has done."""
        name = self.rng.choices(list(STEPS_OF_OURS), STEPS_OF_OURS.values())[0]
        before, was_dirty = self.stored(), dirty_pages(self.file) > 0
        try:
            getattr(self, name)()
        except OSError as error:
            assert error.errno == errno.ESTALE or "others have changed it" in str(error), error
            assert self.foreign, f"{name} was refused, and no other program had changed the file"
            assert self.stored() == before, f"{name} was refused, and changed the file"
            self.nr_stale += 1
            if name not in ("read", "sync"):
                self.give_up()
            return
        after = self.stored()
        if self.file.inode.nr_versions != self.nr_versions:  # it looked closer, or took the object anew
            if self.foreign:
                assert not was_dirty
                assert self.foreign == "hidden" or name in ("append", "reopen"), f"{name} went on with another version"
                self.view = bytearray(after if name in ("cut", "punch") else before)
                if name == "append":
                    self.put(len(before), self.ours[1])
                elif name in ("write", "store_through_a_map"):
                    self.put(*self.ours)
                assert self.file.pread(1 << 30, 0) == self.view
            self.foreign, self.nr_versions = "", self.file.inode.nr_versions
            return
        if self.foreign:
            assert after == before, f"{name} changed a file that others had changed"
            if name == "sync":
                assert not was_dirty, "a sync has returned, and what was dirty is not in the file"
        elif name == "sync":
            assert after == self.view
        else:
            assert self.is_between(after, before)

    def is_between(self, after, before):
        """Whether each byte of the file is the one that was there or the one that we have written."""
        longest = max(len(before), len(self.view))
        old, new, now = (bytes(data).ljust(longest, b"\0") for data in (before, self.view, after))
        return len(after) <= longest and all(c in (a, b) for a, b, c in zip(old, new, now, strict=True))

    def write(self):
        offset, data = self.place(), self.data()
        self.file.pwrite(data, offset)
        self.put(offset, data)

    def append(self):
        data = self.data()[:100]
        self.appender.write(data)
        self.put(len(self.view), data)

    def store_through_a_map(self):
        if self.view:
            at, data = self.rng.randrange(len(self.view)), self.data()
            data = data[: len(self.view) - at]
            try:
                with self.file.mmap(access=pagecache.ACCESS_WRITE) as mapped:
                    mapped[at : at + len(data)] = data
            except pagecache.mm.BusError as error:
                raise OSError(error.errno, str(error)) from error
            self.put(at, data)

    def read(self):
        offset, nbytes = self.place(), self.rng.randrange(4 * PAGE)
        found = self.file.pread(nbytes, offset)
        if self.foreign == "hidden" and self.file.inode.nr_versions != self.nr_versions:
            assert found == self.stored()[offset : offset + nbytes], "one read has two versions"
        else:
            assert found == self.view[offset : offset + nbytes], "not what was written"

    def sync(self):
        self.rng.choice([self.file.fsync, self.file.flush, self.appender.fsync, self.cache.sync])()

    def cut(self):
        size = self.rng.choice([0, len(self.view) // 2, len(self.view) + 10, self.rng.randrange(SIZE_MAX)])
        self.file.truncate(size)
        self.view = self.view[:size] + bytes(max(0, size - len(self.view)))

    def punch(self):
        offset, nbytes = self.place(), self.rng.randrange(1, 3 * PAGE)
        self.file.punch_hole(offset, nbytes)
        end = min(offset + nbytes, len(self.view))
        if end > offset:
            self.view[offset:end] = bytes(end - offset)

    def forget(self):
        self.cache.drop_caches()

    def reopen(self):
        error = None
        for file in (self.file, self.appender):
            try:
                file.close()
            except OSError as failed:
                assert failed.errno == errno.ESTALE or "others have changed it" in str(failed), failed
                error = failed
        assert self.foreign or error is None
        if not self.foreign:
            assert self.stored() == self.view
        self._open()

    def give_up(self):
        self.file.invalidate(discard=True)
        self.appender.invalidate(discard=True)
        self.take()
        assert self.file.pread(1 << 30, 0) == self.view

    # -- theirs --------------------------------------------------------------------------------------------------------

    def theirs(self):
        """Another program does something."""
        let_time_pass(self.path)
        self.nr_foreign += 1
        kinds = ["overwrite", "append", "shorten", "touch"]
        if self.foreign != "hidden":
            kinds += ["chmod", "link", "rename"]
        if self.file.inode.mapping.stamp_state() != STAMP_DOUBTFUL:
            kinds.append("hide")  # beside a change of attributes it would be explained by that
        kind = self.rng.choice(kinds)
        status = os.stat(self.path)
        if kind == "chmod":
            os.chmod(self.path, 0o600 | self.nr_foreign)  # another one each time: what is changed back explains nothing
        elif kind == "link":
            os.link(self.path, f"{self.path}-{self.nr_foreign}")
        elif kind == "rename":
            self.path = self.path.rename(self.path.with_name(f"data-{self.nr_foreign}"))
        elif kind == "touch":
            os.utime(self.path)
            self.foreign = "seen"
        elif kind == "shorten":
            os.truncate(self.path, status.st_size // 2)
            self.foreign = "seen"
        else:
            with open(self.path, "r+b", buffering=0) as file:
                size = max(1, status.st_size)
                at = status.st_size if kind == "append" else self.rng.randrange(size)
                data = self.data()
                if kind == "hide":
                    data = data[: status.st_size - at]
                os.pwrite(file.fileno(), data, at)
            if kind == "hide" and self.foreign != "seen":
                os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))
                self.foreign = "hidden"
            else:
                self.foreign = "seen"


STEPS_OF_OURS = {
    "write": 8, "append": 4, "store_through_a_map": 2, "read": 8, "sync": 4, "cut": 1, "punch": 1, "forget": 1, "reopen": 1,
    "give_up": 1,
}  # fmt: skip


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_nothing_of_others_is_lost(make_cache, tmp_path, frames, direct, rng):
    path = tmp_path / "data"
    path.write_bytes(rng.randbytes(5 * PAGE + 77))
    cache = make_cache(frames * PAGE, dirty_limit="60%", dirty_background="50%", dirty_expire_s=3600)
    opens = cache.open
    cache.open = lambda path, mode: opens(path, mode, direct=direct)
    try:
        pair = Pair(cache, path, rng)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error.strerror}")
    for _ in range(STEPS):
        if rng.random() < 0.15:
            pair.theirs()
        else:
            pair.step()
    assert pair.nr_stale
    assert pair.nr_foreign > pair.nr_stale // 4
    with contextlib.suppress(OSError):
        pair.give_up()
    pair.file.close()
    pair.appender.close()
