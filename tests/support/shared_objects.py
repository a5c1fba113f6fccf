"""Objects that a cache has open and that others change behind its back, for tests of what then happens."""

import errno

import pytest

from pagecache.stores import FileStore, MemoryStore
from support import PAGE, let_time_pass, pages_of
from support.write_steps import WritableStore

SIZE = 8 * PAGE + 123
DATA = pages_of(SIZE)
KINDS = ["file", "direct", "memory", "store", "parallel"]


class Shared:
    """An object that we have open through a cache, and that others change behind its back."""

    def __init__(self, kind, tmp_path):
        self.kind = kind
        self.options = {}
        self.path = tmp_path / "data"
        if kind in ("file", "direct"):
            self.path.write_bytes(DATA)
            self.source = self.path
            self.options = {"direct": kind == "direct"}
        elif kind == "memory":
            self.source = MemoryStore(DATA)
        else:
            self.source = WritableStore(DATA)
            self.source.parallel_requests = 4 if kind == "parallel" else 1

    def open(self, cache, mode="r+b", **options):
        return cache.open(self.source, mode, **self.options, **options)

    @property
    def data(self):
        if self.kind in ("file", "direct"):
            return self.path.read_bytes()
        return self.source.tobytes() if self.kind == "memory" else bytes(self.source.data)

    @data.setter
    def data(self, data):
        """Put other bytes there, in place."""
        if self.kind in ("file", "direct"):
            let_time_pass(self.path)
            with open(self.path, "r+b", buffering=0) as file:
                file.truncate(len(data))
                file.write(data)
        elif self.kind == "memory":
            self.source.replace(data)
        else:
            self.source.data[:] = data
            self.source.nr_changes += 1


def made(kind, tmp_path):
    """Return a shared object, or skip the test where there is no O_DIRECT."""
    if kind == "direct":
        try:
            FileStore(tmp_path / "probe", "w+b", direct=True).close()
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error.strerror}")
    return Shared(kind, tmp_path)


def appended(data):
    return data + b"appended by others"


def overwritten(data):
    return data[: 2 * PAGE] + b"overwritten by others" + data[2 * PAGE + 21 :]


def shortened(data):
    return data[: PAGE + 7]


def emptied(data):
    return b""


CHANGES = [appended, overwritten, shortened, emptied]


def is_stale(call):
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.ESTALE, caught.value
    return caught.value
