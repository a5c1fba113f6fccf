"""An open file keeps the contract of io.RawIOBase: what is written for plain files works on it."""

import copy
import csv
import gzip
import io
import pickle
import random
import sqlite3
import tarfile
import zipfile

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from support import PAGE, checked_cache, few

import pagecache

NBYTES = 150_007


@pytest.fixture(scope="module")
def lines_path(tmp_path_factory):
    """A file of lines of all lengths: empty, short, across pages, longer than any buffer; the last one is not ended."""
    rng = random.Random(7)
    out = bytearray()
    while len(out) < NBYTES:
        out += rng.randbytes(rng.choice([0, 1, 30, 80, 500, 4095, 4096, 9000])).replace(b"\n", b"\r") + b"\n"
    path = tmp_path_factory.mktemp("contract") / "lines"
    path.write_bytes(out[:NBYTES].rstrip(b"\n") + b"x")
    return path


@pytest.fixture
def lines(make_cache, lines_path, frames):
    """The same file open through a cache of `frames` pages, and its bytes."""
    with make_cache(frames * PAGE).open(lines_path) as file:
        yield file, lines_path.read_bytes()


class AgainstPlainFile(RuleBasedStateMachine):
    """The same calls on a file of ours and on `open(path, "rb", buffering=0)`, with the same results."""

    sizes = st.one_of(st.none(), st.integers(-3, 9000), st.integers(NBYTES - 5, NBYTES + 5), st.just(2**23))

    def __init__(self, path, frames):
        super().__init__()
        self.cache = checked_cache(frames)
        self.ours = self.cache.__enter__().open(path)
        self.theirs = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by teardown

    def both(self, call):
        outcomes = []
        for file in (self.ours, self.theirs):
            try:
                outcomes.append(call(file))
            except (ValueError, OSError, StopIteration) as error:
                outcomes.append(StopIteration if isinstance(error, StopIteration) else OSError)
            outcomes.append(file.tell())
        assert outcomes[:2] == outcomes[2:]

    @rule(size=sizes)
    def read(self, size):
        self.both(lambda file: file.read(size))

    @rule(nbytes=st.integers(0, 20000))
    def readinto(self, nbytes):
        def call(file):
            buffer = bytearray(nbytes)
            return file.readinto(buffer), buffer

        self.both(call)

    @rule()
    def readall(self):
        self.both(lambda file: file.readall())

    @rule(size=sizes)
    def readline(self, size):
        self.both(lambda file: file.readline(size))

    @rule(hint=st.one_of(st.none(), st.integers(-1, 30000)))
    def readlines(self, hint):
        self.both(lambda file: file.readlines(hint))

    @rule()
    def iterate_once(self):
        self.both(next)

    @rule(offset=st.one_of(st.integers(-NBYTES - 10, NBYTES + 10), st.just(2**33)), whence=st.integers(0, 2))
    def seek(self, offset, whence):
        self.both(lambda file: file.seek(offset, whence))

    def teardown(self):
        self.theirs.close()
        self.ours.close()
        self.cache.__exit__(None, None, None)


def test_every_call_does_what_a_plain_file_does(lines_path, frames):
    run_state_machine_as_test(lambda: AgainstPlainFile(lines_path, frames), settings=few(20))


class TestRawIOBase:
    def test_is_one(self, lines):
        file, _ = lines
        assert isinstance(file, io.RawIOBase)
        assert not isinstance(file, io.TextIOBase)

    def test_says_what_it_can_do(self, lines, lines_path):
        file, _ = lines
        assert (file.readable(), file.seekable(), file.writable(), file.isatty()) == (True, True, False, False)
        assert (file.mode, file.closed) == ("rb", False)
        assert file.name == str(lines_path)
        assert str(lines_path) in repr(file)
        file.flush()

    def test_has_no_descriptor_and_nothing_below_it(self, lines):
        file, _ = lines
        for call in (file.fileno, file.detach):
            with pytest.raises(io.UnsupportedOperation):
                call()

    @pytest.mark.parametrize("name, arguments", [("write", (b"x",)), ("writelines", ([b"x"],)), ("truncate", (3,))])
    def test_refuses_to_write(self, lines, name, arguments):
        file, data = lines
        with pytest.raises(io.UnsupportedOperation):
            getattr(file, name)(*arguments)
        assert file.readall() == data

    def test_close_is_idempotent_and_ends_the_context(self, lines):
        file, _ = lines
        with file as same:
            assert same is file
        assert file.closed
        file.close()

    def test_position_stays_when_a_read_is_refused(self, lines):
        file, _ = lines
        file.seek(77)
        for bad in (b"read-only", "text", None, 3, memoryview(bytearray(8))[::2]):
            with pytest.raises(TypeError):
                file.readinto(bad)
        assert file.tell() == 77

    def test_readinto_fills_any_writable_buffer(self, lines):
        file, data = lines
        numbers = memoryview(bytearray(80)).cast("d")
        assert file.readinto(numbers) == 80
        assert numbers.tobytes() == data[:80]
        window = bytearray(100)
        assert file.readinto(memoryview(window)[10:20]) == 10
        assert window == bytes(10) + data[80:90] + bytes(80)

    def test_iterates_over_lines(self, lines):
        file, data = lines
        assert list(file) == io.BytesIO(data).readlines()

    def test_two_handles_have_two_positions(self, make_cache, lines_path):
        cache = make_cache("64KiB")
        with cache.open(lines_path) as one, cache.open(lines_path) as other:
            one.seek(1000)
            assert (one.tell(), other.tell()) == (1000, 0)
            assert one.read(10) == other.pread(10, 1000)
            assert other.tell() == 0

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda file: pickle.loads(pickle.dumps(file))])
    def test_a_copy_is_another_file_at_the_same_position(self, lines, make_cache, way):
        file, data = lines
        file.seek(100)
        with pagecache.using(make_cache("1MiB")), way(file) as again:
            assert again.read(10) == data[100:110]
        assert file.read(10) == data[100:110]
        with pytest.raises(TypeError, match="open it again"):
            copy.copy(file)


class TestLayersOnTop:
    @pytest.mark.parametrize("buffer_bytes", [1, 100, 4096, 1 << 16])
    def test_buffered_reader(self, lines, buffer_bytes):
        file, data = lines
        with io.BufferedReader(file, buffer_bytes) as reader:
            assert reader.peek(1)[:1] == data[:1]
            assert reader.read(5000) == data[:5000]
            assert reader.readline() == data[5000 : data.index(b"\n", 5000) + 1]
            assert reader.seek(-100, io.SEEK_END) == len(data) - 100
            assert reader.read() == data[-100:]
            reader.seek(0)
            assert reader.read() == data
        assert file.closed

    def test_text_wrapper(self, make_cache, frames, tmp_path):
        text = "".join(f"{number}: größer als {number * 7}\r\n" for number in range(3000))
        path = tmp_path / "text"
        path.write_bytes(text.encode())
        raw = make_cache(frames * PAGE).open(path)
        with io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8") as file:
            assert file.read(100) == text.replace("\r\n", "\n")[:100]
            mark = file.tell()
            rest = file.read()
            file.seek(mark)
            assert file.read() == rest
            file.seek(0)
            assert list(file) == text.replace("\r\n", "\n").splitlines(keepends=True)

    def test_csv(self, make_cache, frames, tmp_path):
        rows = [[str(number), f'a "quoted" {number}', "line\nbreak"] for number in range(2000)]
        path = tmp_path / "table.csv"
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        raw = make_cache(frames * PAGE).open(path)
        with io.TextIOWrapper(io.BufferedReader(raw), newline="") as file:
            assert list(csv.reader(file)) == rows

    def test_zip(self, make_cache, frames, tmp_path, rng):
        members = {f"member{number}": rng.randbytes(rng.randrange(30000)) for number in range(20)}
        path = tmp_path / "archive.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, data) in enumerate(members.items()):
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
        with make_cache(frames * PAGE).open(path) as file, zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            for name in rng.sample(sorted(members), len(members)):
                assert archive.read(name) == members[name]

    @pytest.mark.parametrize("compression", ["", "gz"])
    def test_tar(self, make_cache, frames, tmp_path, rng, compression):
        members = {f"directory/member{number}": rng.randbytes(rng.randrange(30000)) for number in range(10)}
        path = tmp_path / "archive.tar"
        with tarfile.open(path, f"w:{compression}") as archive:
            for name, data in members.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
        with make_cache(frames * PAGE).open(path) as file, tarfile.open(fileobj=file) as archive:
            assert {member.name: archive.extractfile(member).read() for member in archive} == members

    def test_gzip(self, make_cache, frames, tmp_path, rng):
        data = rng.randbytes(50000) + bytes(200000)
        path = tmp_path / "data.gz"
        path.write_bytes(gzip.compress(data))
        with make_cache(frames * PAGE).open(path) as file, gzip.open(file) as unpacked:
            assert unpacked.seek(49000) == 49000
            assert unpacked.read(2000) == data[49000:51000]
            unpacked.seek(0)
            assert unpacked.read() == data


class TestDatabasePages:
    @pytest.mark.parametrize("page_bytes", [512, 1024, 4096, 8192, 65536])
    def test_random_pages_of_a_database(self, make_cache, frames, tmp_path, rng, page_bytes):
        path = tmp_path / "data.sqlite"
        database = sqlite3.connect(path)
        database.execute(f"pragma page_size = {page_bytes}")
        database.execute("create table blobs (id integer primary key, data blob)")
        database.executemany("insert into blobs (data) values (?)", [(rng.randbytes(3000),) for _ in range(300)])
        database.commit()
        database.close()
        plain = path.read_bytes()
        assert plain[16:18] == (page_bytes % 65535).to_bytes(2, "big")
        with make_cache(frames * PAGE).open(path) as file:
            for _ in range(300):
                offset = rng.randrange(len(plain) // page_bytes) * page_bytes
                if rng.random() < 0.5:
                    assert file.pread(page_bytes, offset) == plain[offset : offset + page_bytes]
                else:
                    file.seek(offset)
                    assert file.read(page_bytes) == plain[offset : offset + page_bytes]
