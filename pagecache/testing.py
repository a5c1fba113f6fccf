"""The conformance suite of backing stores: the author of one finds out whether a cache can rely on it.

    from pagecache.testing import StoreTests

    class TestMyStore(StoreTests):
        def make_store(self, data):
            return MyStore(upload(data))

pytest then collects a test for each rule of the protocol (`pagecache.stores.base.BackingStore`).
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import pytest

from pagecache.cache import PageCache
from pagecache.stores import BackingStore, hints_of
from pagecache.stores.base import WritableStore, is_writable

PAGE = 4096
SIZES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 9 * PAGE + 77)
NR_THREADS = 8


def _bytes_of(size: int) -> bytes:
    """Return bytes of which no two pages are alike."""
    return b"".join(number.to_bytes(8, "little") for number in range(1, size // 8 + 2))[:size]


def _read(store: BackingStore, offset: int, sizes: Sequence[int], alignment: int = 1) -> bytes:
    """Read into buffers of these sizes, once."""
    buffers = [memoryview(bytearray(size + alignment - 1)) for size in sizes]
    buffers = [_aligned(buffer, size, alignment) for buffer, size in zip(buffers, sizes, strict=True)]
    got = store.readv(offset, buffers)
    assert isinstance(got, int), f"readv returned {type(got).__name__}, not the bytes it filled"
    assert 0 <= got <= sum(sizes), f"readv claims {got} bytes of {sum(sizes)}"
    return b"".join(buffers)[:got]


def _aligned(buffer: memoryview, size: int, alignment: int) -> memoryview:
    """Return that part of a buffer that begins at a multiple in memory."""
    if alignment == 1:
        return buffer[:size]
    import ctypes

    skip = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % alignment
    return buffer[skip : skip + size]


class PunchableStore(WritableStore, Protocol):
    """All that a store may have; what it has, the flags of `StoreTests` say."""

    def punch_hole(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        ...


NewStore = Callable[[bytes], PunchableStore]


class StoreTests:
    """What every store must keep to; subclass it, with a name that pytest collects, and say how to make a store.

    writable: whether the store can be written: then it must have `writev`, `truncate` and `sync`.
    holes: whether it has `punch_hole`. extends: whether it can be written behind its end.
    validates: whether its validator changes with every change. persistent: whether `reopen` finds what was written.
    alignment: what offsets, sizes and addresses of its requests are multiples of (bytes); the end of the object need not.
    """

    writable = True
    holes = True
    extends = True
    validates = True
    persistent = True
    alignment = 1

    # -- what a subclass supplies --------------------------------------------------------------------------------------

    def make_store(self, data: bytes) -> BackingStore:
        """Return a new store, of an object of its own, that holds these bytes."""
        raise NotImplementedError("a subclass of StoreTests makes its stores")

    def reopen(self, store: BackingStore) -> BackingStore | None:
        """Return another store of the same object, the first may be closed. None: there is no such thing."""
        return None

    def change(self, store: PunchableStore, data: bytes) -> bool:
        """Put other bytes in place of the object's, as another writer would. Returns False if that cannot be done."""
        if not self.writable or self.alignment > 1:
            return False
        store.truncate(0)
        store.writev(0, [memoryview(data)])
        return True

    # -- helpers -------------------------------------------------------------------------------------------------------

    @pytest.fixture
    def new(self) -> Iterator[NewStore]:
        """A function that makes stores, which are closed in the end."""
        made: list[PunchableStore] = []

        def make(data: bytes) -> PunchableStore:
            made.append(cast(PunchableStore, self.make_store(data)))
            return made[-1]

        yield make
        for store in made:
            store.close()

    def contents(self, store: BackingStore) -> bytes:
        """Return all bytes of a store's object."""
        return _read(store, 0, [-(-(store.size() + 1) // PAGE) * PAGE], self.alignment)

    def needs(self, **flags: bool) -> None:
        """Skip a test unless the store supports what it is about."""
        missing = [name for name, there in flags.items() if not there]
        if missing:
            pytest.skip(f"this store is not {', not '.join(missing)}")

    # -- identity ------------------------------------------------------------------------------------------------------

    def test_has_what_a_store_needs(self, new: NewStore) -> None:
        store = new(b"x")
        assert isinstance(store, BackingStore), "key, size, validator, readv and close are needed"
        assert is_writable(store) == self.writable
        for name in ("writev", "truncate", "sync"):
            assert not self.writable or callable(getattr(store, name, None)), f"a writable store needs {name}"
        assert not self.holes or callable(getattr(store, "punch_hole", None))

    def test_key_is_stable_and_tells_objects_apart(self, new: NewStore) -> None:
        one, two = new(b"same"), new(b"same")
        assert isinstance(one.key, str)
        assert one.key
        assert one.key == one.key
        assert one.key != two.key, "two objects with one key would share their pages"

    def test_hints_are_valid(self, new: NewStore) -> None:
        hints = hints_of(new(b"x"))
        assert hints.preferred_request <= hints.max_request
        assert hints.max_request >= PAGE
        assert hints.latency in ("local", "device", "remote")
        assert isinstance(hints.stable_writes, bool)

    def test_another_store_of_the_object_has_its_key_version_and_bytes(self, new: NewStore) -> None:
        store = new(_bytes_of(3 * PAGE))
        other = self.reopen(store)
        if other is None:
            pytest.skip("this store cannot be reopened")
        try:
            assert (other.key, other.validator()) == (store.key, store.validator())
            assert self.contents(other) == _bytes_of(3 * PAGE)
        finally:
            other.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", SIZES)
    def test_size_and_bytes_are_those_of_the_object(self, new: NewStore, size: int) -> None:
        store = new(_bytes_of(size))
        assert store.size() == size
        assert self.contents(store) == _bytes_of(size)

    def test_any_range_can_be_read(self, new: NewStore) -> None:
        data, rng = _bytes_of(20 * PAGE + 5), random.Random(1)
        store = new(data)
        for _ in range(100):
            offset = rng.randrange(len(data)) // self.alignment * self.alignment
            sizes = [-(-rng.randrange(1, 3 * PAGE) // self.alignment) * self.alignment for _ in range(rng.randrange(1, 5))]
            assert _read(store, offset, sizes, self.alignment) == data[offset : offset + sum(sizes)]

    def test_a_read_is_short_only_at_the_end(self, new: NewStore) -> None:
        store = new(_bytes_of(2 * PAGE + 5))
        assert len(_read(store, 0, [2 * PAGE], self.alignment)) == 2 * PAGE
        assert len(_read(store, PAGE, [PAGE, PAGE], self.alignment)) == PAGE + 5
        assert len(_read(store, 2 * PAGE, [PAGE, PAGE], self.alignment)) == 5
        assert _read(store, 3 * PAGE, [PAGE], self.alignment) == b""
        assert _read(store, 300 * PAGE, [PAGE], self.alignment) == b""

    def test_many_threads_can_read(self, new: NewStore) -> None:
        data = _bytes_of(64 * PAGE)
        store, wrong = new(data), []

        def read(number: int) -> None:
            rng = random.Random(number)
            for _ in range(50):
                offset = rng.randrange(60) * PAGE
                try:
                    if _read(store, offset, [PAGE, 2 * PAGE], self.alignment) != data[offset : offset + 3 * PAGE]:
                        wrong.append(f"other bytes at offset {offset}")
                except Exception as error:
                    wrong.append(repr(error))

        threads = [threading.Thread(target=read, args=(number,)) for number in range(NR_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    # -- versions ------------------------------------------------------------------------------------------------------

    def test_the_validator_stays_while_nothing_changes(self, new: NewStore) -> None:
        store = new(_bytes_of(PAGE))
        before = store.validator()
        assert before is None or isinstance(before, str)
        self.contents(store)
        assert store.validator() == before

    def test_the_validator_changes_with_the_bytes(self, new: NewStore) -> None:
        self.needs(validates=self.validates)
        store = new(_bytes_of(PAGE))
        seen = {store.validator()}
        for number in range(1, 4):
            if not self.change(store, bytes([number]) * (PAGE + number)):
                pytest.skip("nothing else can change this object")
            assert store.validator() not in seen, "a change went unnoticed"
            seen.add(store.validator())

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write(self, store: PunchableStore, offset: int, pieces: Sequence[bytes | bytearray]) -> None:
        """Write buffers, again what the store did not take; they are read-only, as those of a cache."""
        data = b"".join(pieces)
        done = 0
        while done < len(data):
            buffers = [memoryview(piece) for piece in pieces] if done == 0 else [memoryview(data)[done:]]
            wrote = store.writev(offset + done, buffers)
            assert isinstance(wrote, int), f"writev returned {type(wrote).__name__}, not the bytes it took"
            assert 0 < wrote <= len(data) - done, f"writev claims {wrote} bytes of {len(data) - done}"
            done += wrote

    @pytest.mark.parametrize("offset", [0, 7, PAGE, 3 * PAGE - 1])
    def test_what_is_written_is_read(self, new: NewStore, offset: int) -> None:
        self.needs(writable=self.writable, unaligned=self.alignment == 1)
        store, expected = new(_bytes_of(5 * PAGE)), bytearray(_bytes_of(5 * PAGE))
        self._write(store, offset, [b"one", b"", b"two" * PAGE, b"x"])
        expected[offset : offset + 3 * PAGE + 4] = b"one" + b"two" * PAGE + b"x"
        assert store.size() == len(expected)
        assert self.contents(store) == expected

    @pytest.mark.parametrize("gap", [0, 1, 5 * PAGE])
    def test_writing_behind_the_end_extends_and_the_gap_is_zeros(self, new: NewStore, gap: int) -> None:
        self.needs(writable=self.writable, extends=self.extends, unaligned=self.alignment == 1)
        store = new(_bytes_of(PAGE + 5))
        self._write(store, PAGE + 5 + gap, [b"far"])
        assert store.size() == PAGE + 8 + gap
        assert self.contents(store) == _bytes_of(PAGE + 5) + bytes(gap) + b"far"

    def test_buffers_are_not_kept_nor_changed(self, new: NewStore) -> None:
        self.needs(writable=self.writable, unaligned=self.alignment == 1)
        store, source = new(bytes(2 * PAGE)), bytearray(_bytes_of(PAGE))
        self._write(store, 0, [source])
        assert source == _bytes_of(PAGE)
        source[:] = bytes(PAGE)
        assert self.contents(store)[:PAGE] == _bytes_of(PAGE), "the store shows what became of the buffer"
        source.clear()

    @pytest.mark.parametrize("size", [0, 1, PAGE, 2 * PAGE + 5, 3 * PAGE, 7 * PAGE + 1])
    def test_truncate_cuts_and_extends_with_zeros(self, new: NewStore, size: int) -> None:
        self.needs(writable=self.writable)
        store, data = new(_bytes_of(3 * PAGE)), _bytes_of(3 * PAGE)
        store.truncate(size)
        assert store.size() == size
        assert self.contents(store) == data[:size] + bytes(max(0, size - 3 * PAGE))
        store.truncate(8 * PAGE)
        assert self.contents(store) == data[:size] + bytes(8 * PAGE - min(size, 3 * PAGE)), "what was truncated came back"

    @pytest.mark.parametrize(("offset", "length"), [(0, PAGE), (10, 20), (PAGE, 3 * PAGE), (3 * PAGE, 50 * PAGE), (5, 0)])
    def test_a_hole_is_zeros_and_the_size_stays(self, new: NewStore, offset: int, length: int) -> None:
        self.needs(writable=self.writable, holes=self.holes)
        store, data = new(_bytes_of(5 * PAGE)), _bytes_of(5 * PAGE)
        if length:
            store.punch_hole(offset, min(length, 5 * PAGE - offset))
        end = min(offset + length, len(data))
        assert store.size() == len(data)
        assert self.contents(store) == data[:offset] + bytes(end - offset) + data[end:]

    def test_sync_can_be_asked_for_at_any_time(self, new: NewStore) -> None:
        self.needs(writable=self.writable)
        store = new(_bytes_of(PAGE))
        store.sync()
        store.truncate(2 * PAGE)
        store.sync(True)
        store.sync(datasync=False)
        assert self.contents(store) == _bytes_of(PAGE) + bytes(PAGE)

    # -- the end -------------------------------------------------------------------------------------------------------

    def test_closing_is_idempotent(self) -> None:
        store = self.make_store(b"x")
        store.close()
        store.close()

    # -- in a cache ----------------------------------------------------------------------------------------------------

    def test_a_cache_shows_its_bytes(self, new: NewStore) -> None:
        data = _bytes_of(50 * PAGE + 11)
        with PageCache(16 * PAGE) as cache, cache.open(new(data)) as file:
            assert file.read() == data
            assert file.pread(2 * PAGE, 20 * PAGE + 3) == data[20 * PAGE + 3 : 22 * PAGE + 3]
            cache.check()

    def test_what_is_written_through_a_cache_is_in_the_store(self, new: NewStore) -> None:
        self.needs(writable=self.writable, extends=self.extends)
        expected, rng = bytearray(_bytes_of(20 * PAGE + 11)), random.Random(2)
        store = new(bytes(expected))
        with PageCache(16 * PAGE) as cache, cache.open(store, "r+b") as file:
            for _ in range(100):
                offset, data = rng.randrange(len(expected) + 500), rng.randbytes(rng.choice([1, 100, PAGE, 3 * PAGE]))
                file.pwrite(data, offset)
                expected[len(expected) :] = bytes(max(0, offset - len(expected)))
                expected[offset : offset + len(data)] = data
                if rng.random() < 0.1:
                    size = rng.randrange(len(expected))
                    file.truncate(size)
                    del expected[size:]
                if rng.random() < 0.1:
                    file.punch_hole(offset, 2 * PAGE)
                    end = min(offset + 2 * PAGE, len(expected))
                    expected[offset:end] = bytes(max(0, end - offset))
                if rng.random() < 0.1:
                    file.fsync()
                    assert self.contents(store) == expected
                at = rng.randrange(len(expected) + 1)
                assert file.pread(2 * PAGE, at) == expected[at : at + 2 * PAGE]
            file.fsync()
            assert self.contents(store) == expected
            other = self.reopen(store) if self.persistent else None
            if other is not None:
                try:
                    assert self.contents(other) == expected
                finally:
                    other.close()
            cache.check()
