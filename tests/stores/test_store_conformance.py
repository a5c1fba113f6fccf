"""The stores of this package keep to the protocol, and the suite that says so finds those that do not."""

import itertools
import subprocess
import sys
import time

import pytest
from support import PAGE

from pagecache.stores import FileStore, MemoryStore
from pagecache.testing import StoreTests


class TestMemoryStore(StoreTests):
    def make_store(self, data):
        return MemoryStore(data)

    def reopen(self, store):
        return store


class TestReadOnlyMemoryStore(StoreTests):
    writable = False

    def make_store(self, data):
        store = MemoryStore(data)
        store.writable = False
        return store

    def change(self, store, data):
        store.replace(data)
        return True


class FileStoreTests(StoreTests):
    direct = False

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path):
        self.paths = (tmp_path / f"object-{number}" for number in itertools.count())

    def make_store(self, data):
        path = next(self.paths)
        path.write_bytes(data)
        return FileStore(path, "r+b", direct=self.direct)

    def reopen(self, store):
        return FileStore(store.path, "rb", direct=self.direct)


class TestFileStore(FileStoreTests):
    pass


class TestReadOnlyFileStore(FileStoreTests):
    writable = False

    def make_store(self, data):
        path = next(self.paths)
        path.write_bytes(data)
        return FileStore(path)

    def change(self, store, data):
        with open(store.path, "wb") as file:
            file.write(data)
        return True


class TestDirectFileStore(FileStoreTests):
    direct = True
    alignment = PAGE

    def make_store(self, data):
        try:
            return super().make_store(data)
        except OSError as error:
            pytest.skip(f"no O_DIRECT here: {error}")

    def change(self, store, data):
        with open(store.path, "wb") as file:
            file.write(data)
        return True


class OneKey(MemoryStore):
    def __init__(self, data):
        super().__init__(data, key="one")


class ShortSize(MemoryStore):
    def size(self):
        return super().size() & ~1


class ShortReads(MemoryStore):
    def readv(self, offset, buffers):
        return super().readv(offset, buffers[:1])


class LateReads(MemoryStore):
    def readv(self, offset, buffers):
        return super().readv(offset + (offset > 0), buffers)


class BlindValidator(MemoryStore):
    def validator(self):
        return "always"


class RestlessValidator(MemoryStore):
    numbers = itertools.count()

    def validator(self):
        return str(next(self.numbers))


class SharedPosition(MemoryStore):
    """Seeks, waits, and reads: two threads get each other's bytes."""

    def readv(self, offset, buffers):
        self.position = offset
        time.sleep(0.0005)
        return super().readv(self.position, buffers)


class LosesWrites(MemoryStore):
    def writev(self, offset, buffers):
        super().writev(offset, buffers[:1])
        return sum(map(len, buffers))


class Overclaims(MemoryStore):
    def writev(self, offset, buffers):
        return super().writev(offset, buffers) + 1


class KeepsBuffers(MemoryStore):
    def writev(self, offset, buffers):
        self.kept = list(buffers)
        return super().writev(offset, buffers)


class DirtyGap(MemoryStore):
    def writev(self, offset, buffers):
        gap = offset - self.size()
        if gap > 0:
            super().writev(self.size(), [memoryview(b"?" * gap)])
        return super().writev(offset, buffers)


class CannotGrow(MemoryStore):
    def truncate(self, size):
        super().truncate(min(size, self.size()))


class CutsNothing(MemoryStore):
    """Shrinks its size only: what was truncated is there again when it grows."""

    def __init__(self, data):
        super().__init__(data)
        self.shown = len(data)

    def size(self):
        return self.shown

    def readv(self, offset, buffers):
        left, cut = max(0, self.shown - offset), []
        for buffer in buffers:
            cut.append(buffer[:left])
            left -= len(cut[-1])
        return super().readv(offset, cut)

    def writev(self, offset, buffers):
        done = super().writev(offset, buffers)
        self.shown = max(self.shown, offset + done)
        return done

    def truncate(self, size):
        if size > len(self._data):
            super().truncate(size)
        self.shown = size


class WideHoles(MemoryStore):
    def punch_hole(self, offset, length):
        super().punch_hole(offset // PAGE * PAGE, length)


class HolesCut(MemoryStore):
    def punch_hole(self, offset, length):
        super().punch_hole(offset, length)
        if offset + length >= self.size():
            self.truncate(offset)


class ClosesOnce(MemoryStore):
    is_closed = False

    def close(self):
        assert not self.is_closed
        self.is_closed = True


class WrongHints(MemoryStore):
    preferred_request = 1 << 30


class NoSync(MemoryStore):
    sync = None


def tests_of(suite):
    """Return (name, arguments) of the tests of a suite, as pytest would make them."""
    for name in dir(suite):
        if name.startswith("test_"):
            marks = [mark for mark in getattr(getattr(suite, name), "pytestmark", ()) if mark.name == "parametrize"]
            if not marks:
                yield name, {}
            for mark in marks:
                names, values = mark.args
                for value in values:
                    names_list = [names] if isinstance(names, str) else names
                    yield name, dict(zip(names_list, [value] if isinstance(names, str) else value, strict=True))


def failures_of(store_class):
    """Run the suite on a store; returns the names of the tests that fail."""

    class Suite(StoreTests):
        def make_store(self, data):
            return store_class(data)

    failed = set()
    for name, arguments in tests_of(Suite):
        suite, made = Suite(), []

        def new(data, suite=suite, made=made):
            made.append(suite.make_store(data))
            return made[-1]

        try:
            arguments |= {} if name == "test_closing_is_idempotent" else {"new": new}
            getattr(suite, name)(**arguments)
        except pytest.skip.Exception:
            pass
        except Exception:
            failed.add(name)
    return failed


BROKEN = {
    OneKey: "key_is_stable_and_tells_objects_apart",
    ShortSize: "size_and_bytes_are_those_of_the_object",
    ShortReads: "any_range_can_be_read",
    LateReads: "any_range_can_be_read",
    BlindValidator: "the_validator_changes_with_the_bytes",
    RestlessValidator: "the_validator_stays_while_nothing_changes",
    SharedPosition: "many_threads_can_read",
    LosesWrites: "what_is_written_is_read",
    Overclaims: "what_is_written_is_read",
    KeepsBuffers: "buffers_are_not_kept_nor_changed",
    DirtyGap: "writing_behind_the_end_extends_and_the_gap_is_zeros",
    CannotGrow: "truncate_cuts_and_extends_with_zeros",
    CutsNothing: "truncate_cuts_and_extends_with_zeros",
    WideHoles: "a_hole_is_zeros_and_the_size_stays",
    HolesCut: "a_hole_is_zeros_and_the_size_stays",
    ClosesOnce: "closing_is_idempotent",
    WrongHints: "hints_are_valid",
    NoSync: "has_what_a_store_needs",
}


@pytest.mark.parametrize("store_class", BROKEN, ids=lambda store_class: store_class.__name__)
def test_a_broken_store_is_found(store_class):
    assert f"test_{BROKEN[store_class]}" in failures_of(store_class)


def test_a_good_store_is_not():
    assert failures_of(MemoryStore) == set()


def test_a_suite_without_a_store_says_what_it_lacks():
    with pytest.raises(NotImplementedError, match="makes its stores"):
        StoreTests().make_store(b"")


def test_importing_the_package_needs_no_pytest():
    program = "import sys; sys.modules['pytest'] = None; import pagecache; assert 'pagecache.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
