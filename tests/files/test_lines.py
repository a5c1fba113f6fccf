"""Lines: what io.BytesIO gives for the same calls, whatever of the file is cached, changed or truncated meanwhile."""

import ctypes
import errno
import io
import itertools
import operator
import random
import signal
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support import (
    HAS_GIL,
    PAGE,
    PATIENCE_S,
    BlockingStore,
    Crew,
    FaultyStore,
    Store,
    assert_nothing_is_held,
    checked_cache,
    few,
)

import pagecache
from pagecache.files.versioned import AHEAD_BYTES
from pagecache.stats.trace import read_trace

NBYTES = 6 * PAGE
VERSIONED = [{}, {"recheck": 60}, {"recheck": True}, {"on_change": "reload"}]  # but for the first
LENGTHS = [0, 0, 1, 2, 30, 30, 200, PAGE - 2, PAGE - 1, PAGE, 9000]


def text_of(rng, nbytes=NBYTES):
    """Return lines of all lengths, the last one not ended."""
    out = bytearray()
    while len(out) < nbytes:
        out += bytes(rng.choices(b"ab\r\0", k=rng.choice(LENGTHS))) + b"\n"
    return bytes(out[:nbytes]).rstrip(b"\n") + b"x"


class AgainstBytesIO(RuleBasedStateMachine):
    """The same calls on a file and on io.BytesIO, with the same results and positions."""

    limits = st.one_of(st.none(), st.integers(-2, 300), st.sampled_from([PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 1 << 62]))
    near_a_page = st.builds(lambda page, by: max(0, page * PAGE + by), st.integers(0, 6), st.integers(-3, 3))
    offsets = st.one_of(st.integers(0, NBYTES + 10), near_a_page)

    def __init__(self, frames, seed, options):
        super().__init__()
        data = text_of(random.Random(seed))
        self.context = checked_cache(frames)
        self.ours = self.context.__enter__().open(pagecache.MemoryStore(data), "r+b", **options)
        self.theirs = io.BytesIO(data)

    def both(self, call):
        results = []
        for file in (self.ours, self.theirs):
            try:
                results.append(call(file))
            except StopIteration:
                results.append(StopIteration)
        assert results[0] == results[1]

    @rule(limit=limits)
    def readline(self, limit):
        self.both(lambda file: file.readline(limit))

    @rule(hint=limits)
    def readlines(self, hint):
        """BytesIO by itself stops when it has `hint` bytes, all other files when they have more."""
        self.both(lambda file: io.IOBase.readlines(file, hint) if file is self.theirs else file.readlines(hint))

    @rule()
    def one(self):
        self.both(next)

    @rule(nr=st.integers(1, 40))
    def some(self, nr):
        self.both(lambda file: list(itertools.islice(file, nr)))

    @rule(nbytes=st.integers(0, 2 * PAGE))
    def read(self, nbytes):
        self.both(lambda file: file.read(nbytes))

    @rule(offset=offsets)
    def seek(self, offset):
        self.both(lambda file: file.seek(offset))

    @rule(data=st.lists(st.sampled_from([b"\n", b"yy", b"z" * 500]), max_size=3), is_one=st.booleans())
    def write(self, data, is_one):
        if self.ours.tell() > len(self.theirs.getvalue()):
            return  # what lies between is another file's business
        self.both(lambda file: file.write(b"".join(data)) if is_one else file.writelines(data))

    @rule(nbytes=st.integers(0, 2 * PAGE))
    def read_buffer(self, nbytes):
        self.both(lambda file: bytes(file.read(nbytes) if file is self.theirs else file.read_buffer(nbytes)))

    @rule()
    def truncate_here(self):
        if self.ours.tell() <= len(self.theirs.getvalue()):
            self.both(lambda file: file.truncate())

    @rule(offset=offsets, data=st.lists(st.sampled_from([b"\n", b"yy", b"z" * 500, b"\n" * 5]), max_size=5))
    def write_elsewhere(self, offset, data):
        """Another place of the file changes: lines may begin and end elsewhere, and those that are known may be others."""
        data = b"".join(data)
        offset = min(offset, len(self.theirs.getvalue()))
        self.ours.pwrite(data, offset)
        position = self.theirs.tell()
        self.theirs.seek(offset)
        self.theirs.write(data)
        self.theirs.seek(position)

    @rule(offset=offsets)
    def truncate(self, offset):
        """Both truncated and extended, by zeros."""
        self.ours.truncate(offset)
        size = len(self.theirs.getvalue())
        self.theirs.truncate(offset)
        if offset > size:
            position = self.theirs.tell()
            self.theirs.seek(0, 2)
            self.theirs.write(bytes(offset - size))
            self.theirs.seek(position)

    @invariant()
    def is_at_the_same_place(self):
        assert self.ours.tell() == self.theirs.tell()

    def teardown(self):
        self.ours.close()
        self.context.__exit__(None, None, None)


@pytest.mark.parametrize("options", VERSIONED, ids=str)
def test_every_call_does_what_bytesio_does(frames, seed, options):
    run_state_machine_as_test(lambda: AgainstBytesIO(frames, seed, options), settings=few(15 if options else 30))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\n\n", b"x", b"x\n", b"\nx", b"a" * PAGE + b"\n", b"a" * (PAGE - 1) + b"\n", b"\n" * 3 * PAGE]
)
@pytest.mark.parametrize("kind", ["file", "versioned", "recorded"])
def test_every_way_to_read_all_lines(make_cache, tmp_path, frames, data, kind):
    cache = make_cache(frames * PAGE)
    recorder = cache.record(tmp_path / "trace.txt") if kind == "recorded" else None
    with cache.open(Store(data), **({"recheck": True, "on_change": "reload"} if kind == "versioned" else {})) as file:
        expected = io.BytesIO(data).readlines()
        for read in (list, lambda f: f.readlines(), lambda f: f.readlines(0), lambda f: list(iter(f.readline, b""))):
            file.seek(0)
            assert read(file) == expected
            assert file.tell() == len(data)
            assert (file.readline(), file.readlines(), next(file, None)) == (b"", [], None)
    if recorder is not None:
        recorder.stop()


def test_arguments_are_those_of_other_files(make_cache):
    with make_cache(8 * PAGE).open(Store(b"one\ntwo\n")) as file:
        for call in (file.readline, file.readlines):
            with pytest.raises(TypeError):
                call("1")
            with pytest.raises(TypeError):
                call(1.5)
            with pytest.raises(OverflowError):
                call(1 << 70)
        assert iter(file) is file
        assert (file.readline(0), file.readline(2), file.readline(-5), file.tell()) == (b"", b"on", b"e\n", 4)
    for call in (file.readline, lambda: file.readline(0), file.readlines, lambda: iter(file), lambda: next(file)):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_file_that_cannot_be_read_has_no_lines(make_cache):
    with make_cache(8 * PAGE).open(pagecache.MemoryStore(b"one\n"), "ab") as file:
        for call in (file.readline, lambda: file.readline(0), file.readlines, lambda: next(file)):
            with pytest.raises(io.UnsupportedOperation):
                call()


def test_a_file_that_grows_is_read_on(make_cache):
    store = pagecache.MemoryStore(b"one\ntw")
    with make_cache(8 * PAGE).open(store, "r+b") as file:
        assert list(file) == [b"one\n", b"tw"]
        file.pwrite(b"o\nthree\n", 6)
        assert (file.readline(), next(file), next(file, None)) == (b"o\n", b"three\n", None)


class TestFailures:
    def test_a_line_that_cannot_be_read_whole_is_read_again(self, make_cache):
        text = b"a" * 10 + b"\n" + b"b" * 2 * PAGE + b"\n" + b"c\n"
        broken = [True]
        store = FaultyStore(text, lambda number, first, last: OSError(errno.EIO, "no") if last >= 1 and broken[0] else None)
        store.max_request = PAGE
        with make_cache(64 * PAGE).open(store) as file:
            file.is_random = True
            assert next(file) == b"a" * 10 + b"\n"
            for call in (file.readline, file.readlines, lambda: next(file)):
                with pytest.raises(OSError, match="no"):
                    call()
                assert file.tell() == 11
            broken[0] = False
            assert file.readlines() == [b"b" * 2 * PAGE + b"\n", b"c\n"]

    def test_an_object_that_was_replaced_is_an_error_in_the_middle_of_its_lines(self, make_cache):
        store = Store(b"line\n" * 3 * PAGE)
        with make_cache(64 * PAGE).open(store) as file:
            file.is_random = True
            first = next(file)
            store.version = "2"
            with pytest.raises(OSError, match="changed") as raised:
                list(file)
            assert raised.value.errno == errno.ESTALE
            assert (first, file.tell() % 5, file.tell() < 3 * PAGE) == (b"line\n", 0, True)

    @pytest.mark.parametrize("call", ["readlines", "readline"])
    def test_a_signal_ends_a_call_that_is_long(self, make_cache, call):
        """It is sent, and the call begun, without a step of the interpreter between them, which would see it first."""
        text = b"a" * 300 * PAGE if call == "readline" else b"a\n" * 150 * PAGE

        class Interrupted(BaseException):
            pass

        def handler(number, frame):
            raise Interrupted

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with make_cache(512 * PAGE).open(Store(text)) as file:
                file.pread(len(text), 0)
                send = partial(ctypes.PyDLL(None).__getattr__("raise"), int(signal.SIGUSR1))
                with pytest.raises(Interrupted):
                    list(map(operator.call, [send, getattr(file, call)]))
                assert file.tell() == 0
                assert b"".join(file) == text
        finally:
            signal.signal(signal.SIGUSR1, before)


class TestTruncation:
    def test_while_a_line_waits_for_its_page(self, make_cache):
        store = BlockingStore(b"a" * PAGE + b"\n" + b"b" * PAGE + b"\n")
        store.writev, store.sync = None, lambda datasync=False: None

        def truncate(size):
            store.data = store.data[:size]

        store.truncate = truncate
        cache = make_cache(64 * PAGE)
        with cache.open(store, "r+b") as file, cache.open(store, "r+b") as other:
            crew = Crew(file.readlines, lambda: store.entered.wait(PATIENCE_S) and other.truncate(PAGE - 5))
            assert store.entered.wait(PATIENCE_S)
            store.go_on.set()
            lines, _ = crew.join_well()
            whole = [b"a" * PAGE + b"\n", b"b" * PAGE + b"\n"]
            assert lines in ([b"a" * (PAGE - 5)], whole[:1], whole)
            file.seek(0)
            assert file.readlines() == [b"a" * (PAGE - 5)]

    def test_while_threads_read_lines(self, make_cache, rng):
        """The file is truncated and written to its former size all the time: no line has a byte that was never in it."""
        line = b"x" * 99 + b"\n"
        text = line * 400
        with make_cache(32 * PAGE).open(pagecache.MemoryStore(text), "r+b") as writer:
            cuts = [rng.randrange(len(text)) for _ in range(60)]

            def cut():
                for size in cuts:
                    writer.truncate(size)
                    writer.pwrite(text[size:], size)

            def read():
                with writer.cache.open(writer.inode.store) as file:
                    for _ in range(20):
                        file.seek(0)
                        for found in file:
                            assert found.strip(b"x") in (b"", b"\n")
                            assert len(found) <= 100

            Crew(cut, read, read).join_well()


class TestThreads:
    @pytest.mark.parametrize("kind", ["file", "versioned", "looking", "recorded"])
    @pytest.mark.parametrize("way", ["next", "readline", "readlines", "mixed"])
    def test_that_share_a_file_get_each_line_once_and_whole(self, make_cache, tmp_path, frames, kind, way):
        text = b"".join(b"%d %s\n" % (number, b"." * (number * 7 % 300)) for number in range(1500))
        cache = make_cache(frames * PAGE)
        recorder = cache.record(tmp_path / "trace.txt") if kind == "recorded" else None
        kinds = {"versioned": {"recheck": 3600, "on_change": "reload"}, "looking": {"recheck": True}}
        options = kinds.get(kind, {})
        with cache.open(pagecache.MemoryStore(text), **options) as file:
            ways = {
                "next": lambda: list(iter(lambda: next(file, b""), b"")),
                "readline": lambda: list(iter(file.readline, b"")),
                "readlines": lambda: list(itertools.chain(*iter(lambda: file.readlines(100), []))),
            }
            calls = list(ways.values())[:3] if way == "mixed" else [ways[way]] * 3
            lines = list(itertools.chain(*Crew(*calls).join_well()))
            assert sorted(lines) == sorted(io.BytesIO(text).readlines())
            assert file.tell() == len(text)
        if recorder is not None:
            recorder.stop()


class TestVersions:
    """Files that look at the version: most lines need no look, and no Python."""

    @pytest.fixture
    def store(self):
        """A store that counts how often it is asked for its version; each line says of which version it is."""

        class Counting(Store):
            nr_looks = 0

            def validator(self):
                self.nr_looks += 1
                return self.version

            def become(self, version):
                self.data, self.version = self.of(version), version

            @staticmethod
            def of(version):
                return b"".join(b"%s %05d %s\n" % (version.encode(), n, b"." * (n % 50)) for n in range(5000))

        return Counting(Counting.of("1"))

    @pytest.fixture
    def nr_python(self, monkeypatch):
        """Calls of Python for a read at the position."""
        calls = []
        for name in ("_line_after_look", "_read_after_look"):
            plain = getattr(pagecache.VersionedFile, name)
            monkeypatch.setattr(pagecache.VersionedFile, name, lambda *args, plain=plain: calls.append(1) or plain(*args))
        return calls

    @pytest.mark.skipif(not HAS_GIL, reason="without the GIL every read looks")
    @pytest.mark.parametrize("options", VERSIONED[1:], ids=str)
    @pytest.mark.parametrize("way", ["next", "readline", "read", "text"])
    def test_cached_bytes_are_read_without_python(self, make_cache, store, nr_python, options, way):
        with make_cache("1MiB").open(store, **options) as file:
            file.readall()
            file.seek(0)
            store.nr_looks = 0
            ways = {
                "next": lambda: b"".join(file),
                "readline": lambda: b"".join(iter(file.readline, b"")),
                "read": lambda: b"".join(iter(lambda: file.read(100), b"")),
                "text": lambda: "".join(io.TextIOWrapper(file, newline="")).encode(),
            }
            assert ways[way]() == store.data
            nr_looks = 2 + len(store.data) // AHEAD_BYTES
            if options != {"recheck": True}:
                assert len(nr_python) <= 3
            elif way == "next":
                assert len(nr_python) <= store.nr_looks <= nr_looks + 1
            else:
                assert store.nr_looks >= len(nr_python) > 20 * nr_looks or way == "text"  # which has a buffer

    @pytest.mark.parametrize("options", VERSIONED[1:], ids=str)
    @pytest.mark.parametrize("reloads", [False, True])
    def test_a_change_between_two_lines(self, make_cache, store, options, reloads):
        """Bytes may be as old as `recheck` says; then there is an error, or the new version where the old one ended."""
        with make_cache("1MiB").open(store, **(options | {"on_change": "reload"} if reloads else options)) as file:
            assert file.readlines() == io.BytesIO(store.of("1")).readlines()
            file.seek(0)
            lines = [next(file), next(file)]
            store.become("2")
            if options == {"recheck": 60}:
                assert [next(file), file.readline()] == store.of("1").splitlines(True)[2:4]
                file._look_holds(file._file, 0.0)
                file._checked_at -= 61
            elif options == {"on_change": "reload"}:
                file.invalidate()
            position = file.tell()
            if reloads or options == {"on_change": "reload"}:
                assert file.readline() == store.of("2")[position:].splitlines(True)[0]
                assert {line[:1] for line in file} == {b"2"}
            else:
                with pytest.raises(OSError, match="changed") as raised:
                    file.readline()
                assert (raised.value.errno, file.tell()) == (errno.ESTALE, position)
            assert lines == store.of("1").splitlines(True)[:2]

    def test_iteration_that_looks_is_at_most_one_piece_behind(self, make_cache, store):
        with make_cache("1MiB").open(store, recheck=True) as file:
            file.readall()
            file.seek(0)
            next(file)
            store.become("2")
            with pytest.raises(OSError, match="changed"):
                list(file)
            assert file.tell() <= AHEAD_BYTES + 100
            for call in (lambda: next(file), file.readline, lambda: file.read(5)):
                with pytest.raises(OSError, match="changed"):
                    call()

    @pytest.mark.parametrize("options", [{"recheck": True}, {"recheck": 1e-9}, {}], ids=str)
    def test_threads_share_a_file_whose_version_changes(self, make_cache, store, options, frames):
        """Each line is of one version, whole, and none comes twice."""
        with make_cache(frames * PAGE).open(store, on_change="reload", **options) as file:
            go_on = [True]

            def change():
                for number in range(2, 8):
                    store.become(str(number))
                    file.invalidate()
                go_on[0] = False

            def read():
                lines = []
                while True:
                    lines.append(next(file, b""))
                    if not lines[-1]:
                        if not go_on[0]:
                            return lines
                        file.seek(0)

            for line in itertools.chain(*Crew(change, read, read).join_well()[1:]):
                assert line == b"" or line[2:] in known_lines(store)

    @pytest.mark.parametrize("reloads", [False, True])
    def test_what_is_set_on_the_file_is_set_on_that_of_the_present_version(self, make_cache, store, reloads):
        with make_cache("1MiB").open(store, recheck=60, on_change="reload" if reloads else "error") as file:
            file.priority, file.drop_behind = "high", True
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(2):
                plain = file._file
                assert (plain.priority, plain.drop_behind, plain.is_random) == ("high", True, True)
                assert (file.priority, file.drop_behind, file.is_random) == ("high", True, True)
                store.become("2")
                file.invalidate()
                assert file._file is not plain
            with pytest.raises(AttributeError):
                file.no_such_thing  # noqa: B018


def known_lines(store):
    """Return what lines are behind their version."""
    if not hasattr(store, "known"):
        store.known = {line[2:] for line in store.of("1").splitlines(True)}
    return store.known


class TestCache:
    def test_pages_that_leave_when_read_are_brought_once(self, make_cache):
        text = b"a line of some length\n" * 5000
        store = Store(text)
        cache = make_cache("1MiB")
        with cache.open(store) as file:
            file.drop_behind = True
            assert list(file) == io.BytesIO(text).readlines()
            assert sum(nbytes for _, nbytes in store.requests) == len(text)
            file.seek(0)
            store.requests.clear()
            while file.read(100):
                pass
            assert sum(nbytes for _, nbytes in store.requests) == len(text)
        assert cache.stats().nr_file_pages == 0
        assert_nothing_is_held(cache)

    def test_readahead_goes_before_them(self, make_cache):
        store = Store(b"line\n" * 64 * PAGE)
        with make_cache("4MiB").open(store) as file:
            assert sum(1 for _ in file) == 64 * PAGE
            assert len(store.requests) <= 16
            assert sum(nbytes for _, nbytes in store.requests) == len(store.data)

    def test_lines_count_as_reads(self, make_cache):
        cache = make_cache("1MiB")
        with cache.open(Store(b"line\n" * 10)) as file:
            file.pread(1, 0)
            before = cache.stats()
            assert len(list(file)) == 10
            after = cache.stats()
        assert (after.hits - before.hits, after.bytes_asked - before.bytes_asked) == (10, 50)

    def test_a_recorder_gets_each_page(self, make_cache, tmp_path):
        path = tmp_path / "trace.txt"
        cache = make_cache("1MiB")
        with cache.open(Store(b"a" * 99 + b"\n" + b"b" * 3 * PAGE + b"\n" + b"c\n" * 5)) as file:
            with cache.record(path):
                list(file)
                file.seek(0)
                file.readline()
                file.seek(0)
                file.readlines()
                file.seek(0)
            list(file)
        assert list(read_trace(path)) == [0, 1, 2, 3, 0, 1, 2, 3]


class TestWrapped:
    @pytest.mark.parametrize("wrap", [lambda file: file, io.BufferedReader], ids=["file", "BufferedReader"])
    def test_text(self, make_cache, frames, wrap):
        text = "".join(f"{number},λ,{'.' * (number % 90)}\r\n" for number in range(800))
        with make_cache(frames * PAGE).open(Store(text.encode())) as file:
            wrapped = io.TextIOWrapper(wrap(file), "utf-8", newline="")
            assert list(wrapped) == text.splitlines(keepends=True)
