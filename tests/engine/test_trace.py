"""Access traces: every format, what is refused, the command line, and recording a live program."""

import gc
import json
import random
import struct
import zipfile
from array import array

import pytest
from support import PAGE, Store

import pagecache
from pagecache.cli import EXIT_USAGE, main
from pagecache.cli import trace as verb
from pagecache.files.recorded import write_trace
from pagecache.stats.trace import POLICIES, read_trace, run_policy


def npy(values, kind):
    """Return the bytes of a .npy file of integers."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({len(values)},), }}\n".encode()
    code = {"u1": "B", "i2": "h", "u4": "I", "i8": "q", "u8": "Q"}[kind[1:]]
    order = ">" if kind[0] == ">" else "<"
    body = struct.pack(f"{order}{len(values)}{code}", *values)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


class TestFormats:
    @pytest.mark.parametrize("kind", ["|u1", "<i2", ">i2", "<u4", ">u4", "<i8", "<u8", ">u8"])
    def test_arrays_of_all_kinds_of_integers(self, tmp_path, kind):
        path = tmp_path / "trace.npy"
        path.write_bytes(npy([1, 5, 0, 77, 5], kind))
        assert list(read_trace(path)) == [1, 5, 0, 77, 5]

    def test_npz_is_read_by_its_key(self, tmp_path):
        path = tmp_path / "trace.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("times.npy", npy([9], "<u4"))
            archive.writestr("pages.npy", npy([3, 4], "<u4"))
        assert list(read_trace(path)) == [3, 4]

    def test_agrees_with_numpy(self, tmp_path, rng):
        numpy = pytest.importorskip("numpy")
        pages = [rng.randrange(1 << 40) for _ in range(1000)]
        numpy.savez_compressed(tmp_path / "a.npz", pages=numpy.array(pages, dtype=numpy.uint64))
        assert list(read_trace(tmp_path / "a.npz")) == pages
        write_trace(tmp_path / "b.npz", array("Q", pages))
        assert numpy.load(tmp_path / "b.npz")["pages"].tolist() == pages

    def test_text(self, tmp_path):
        path = tmp_path / "trace.txt"
        path.write_text("# page, operation\n7 r\n\n3,w\n  7 # again\n")
        assert list(read_trace(path)) == [7, 3, 7]

    def test_oracle_general_numbers_objects_in_ascending_order(self, tmp_path):
        path = tmp_path / "trace.oracleGeneral"
        objects = [10**18, 5, 10**18, 7]
        path.write_bytes(b"".join(struct.pack("<IQIq", time, name, 4096, -1) for time, name in enumerate(objects)))
        assert list(read_trace(path)) == [2, 0, 2, 1]
        assert list(read_trace(path.rename(tmp_path / "other.bin"), "oracleGeneral")) == [2, 0, 2, 1]

    @pytest.mark.parametrize("suffix", [".npz", ".npy", ".txt"])
    def test_what_is_written_is_read(self, tmp_path, rng, suffix):
        for nr in (0, 1, 1000):
            pages = array("Q", [rng.randrange(1 << 50) for _ in range(nr)])
            write_trace(tmp_path / f"trace{suffix}", pages)
            assert read_trace(tmp_path / f"trace{suffix}") == pages

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("a.txt", b"1\nx\n", "line 2"),
            ("a.txt", b"-1\n", "line 1"),
            ("a.txt", b"99999999999999999999999\n", "line 1"),
            ("a.txt", b"1125899906842624\n", "too large"),
            ("a.npz", b"PK", "not an .npz"),
            ("a.npy", b"\x93NUMPY\x01\x00\x05\x00{bad}", "header"),
            ("a.npy", b"nothing", "no NumPy array"),
            ("a.npy", npy([1, 2, 3], "<u4")[:-1], "ends early"),
            ("a.npy", npy([1, -2], "<i8"), "-2 is not a page number"),
            ("a.npy", npy([1], "<u4").replace(b"<u4", b"<f4"), "integers"),
            ("a.npy", npy([1], "<u4").replace(b"(1,)", b"1   "), "header"),
            ("a.oracleGeneral", bytes(25), "whole records"),
        ],
    )
    def test_bad_files_are_refused(self, tmp_path, name, data, says):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=says):
            read_trace(tmp_path / name)


class TestVerb:
    @pytest.fixture
    def trace_path(self, tmp_path):
        rng = random.Random(1)
        path = tmp_path / "loop.txt"
        path.write_text("\n".join(str(page) for page in [*range(200)] * 10 + [rng.randrange(50) for _ in range(500)]))
        return path

    def test_json_says_what_the_engine_missed(self, trace_path, capsys):
        assert main(["trace", str(trace_path), "--sizes", "10%,50", "--policy", "lirs,kernel", "--json", "--check"]) == 0
        outcome = json.loads(capsys.readouterr().out)
        assert (outcome["accesses"], outcome["distinct_pages"]) == (2500, 200)
        found = {(each["policy"], each["pages"]): each["miss_ratio"] for each in outcome["runs"]}
        assert set(found) == {("lirs", 20), ("kernel", 20), ("lirs", 50), ("kernel", 50)}
        pages = read_trace(trace_path)
        for (policy, nr_frames), ratio in found.items():
            assert ratio == run_policy(pages, policy, nr_frames)
        assert found["lirs", 50] < found["kernel", 50] - 0.1

    def test_table_and_chart(self, trace_path, capsys):
        assert main(["trace", str(trace_path)]) == 0
        text = capsys.readouterr().out
        assert "2,500 accesses to 200 distinct pages" in text
        for policy in POLICIES:
            assert text.count(policy) == 6
        assert "20% (40 pages)" in text

    @pytest.mark.parametrize("text", ["0%", "-1%", "nan%", "x", "", "0", "1KiB", "1e400%"])
    def test_sizes_that_cannot_be_are_refused(self, trace_path, text, capsys):
        assert main(["trace", str(trace_path), f"--sizes={text}"]) == EXIT_USAGE
        assert "size" in capsys.readouterr().err or text in ("0", "1KiB")

    def test_sizes(self):
        assert [verb.frames_of(text, 1000) for text in ("0.01%", "1%", "7", "64KiB", " 100% ")] == [1, 10, 7, 16, 1000]

    def test_other_input_that_cannot_be_is_refused(self, trace_path, tmp_path, capsys):
        (tmp_path / "empty").write_text("")
        assert main(["trace", str(tmp_path / "empty")]) == EXIT_USAGE
        assert main(["trace", str(tmp_path / "missing")]) == EXIT_USAGE
        assert main(["trace", str(trace_path), "--policy", "best"]) == EXIT_USAGE
        assert "unknown policy 'best'" in capsys.readouterr().err

    def test_bars_are_as_long_as_ratios(self):
        runs = [{"size": "1%", "policy": "lirs", "miss_ratio": ratio} for ratio in (0.0, 0.5, 1.0)]
        assert [line.count("#") for line in verb.chart(runs, "ascii")] == [0, 25, 50]
        assert verb.chart(runs, "utf-8")[2].count("█") == 50

    def test_all_pages_fit_and_each_misses_once(self):
        pages = array("Q", [*range(500)] * 3)
        assert {run_policy(pages, policy, 500, check=True) for policy in POLICIES} == {1 / 3}
        assert run_policy(array("Q"), "lirs", 5) == 0


class TestRecorder:
    def test_what_is_used_is_what_is_recorded(self, make_cache, tmp_path):
        cache = make_cache("1MiB")
        path = tmp_path / "live.npz"
        with cache.open(Store(bytes(50 * PAGE), key="a")) as before:
            before.pread(10, 0)
            with cache.record(path) as recorder, cache.open(Store(bytes(9 * PAGE), key="b")) as other:
                assert before.pread(10, 3 * PAGE) == bytes(10)
                before.pread(10, 3 * PAGE + 50)
                before.preadinto(bytearray(2 * PAGE + 1), 5 * PAGE)
                other.read(PAGE)
                other.read(PAGE + 1)
                other.readinto(bytearray(10))
                before.view(10, 0).release()
                before.pread(10, 60 * PAGE)
            before.pread(10, 9 * PAGE)
            assert type(before) is pagecache.File
        b = 1 << 30
        assert list(read_trace(path)) == [3, 5, 6, 7, b, b + 1, b + 2, 0]
        assert recorder.stop() == recorder.nr_accesses == 8
        assert cache.recorder is None

    def test_writes_are_recorded(self, make_cache, tmp_path):
        cache = make_cache("1MiB")
        with cache.open(pagecache.MemoryStore(bytes(10 * PAGE)), "r+b") as file:
            with cache.record(tmp_path / "live.txt"):
                file.pwrite(b"x" * 10, 4 * PAGE)
                file.write(b"y" * (PAGE + 1))
            assert file.pread(2, 4 * PAGE) == b"xx"
        assert list(read_trace(tmp_path / "live.txt")) == [4, 0, 1]

    def test_pages_of_large_objects_have_numbers_of_their_own(self, make_cache, tmp_path):
        """Those of every 4 TiB of an object, and of the object that comes after it."""

        class Vast(Store):
            def size(self):
                return 9 << 40

            def answer(self, offset, buffers):
                return sum(map(len, buffers))

        cache = make_cache("1MiB")
        with cache.open(Vast(b"", key="vast")) as vast, cache.open(Store(bytes(PAGE), key="next")) as beside:
            vast.fadvise(pagecache.FADV_RANDOM)
            with cache.record(tmp_path / "live.txt"):
                for pos in (0, 4 << 40, 8 << 40, (4 << 40) - 1):
                    vast.pread(2, pos)
                beside.pread(1, 0)
        a, b, c, d = (number << 30 for number in range(4))
        assert list(read_trace(tmp_path / "live.txt")) == [a, b, c, a + (1 << 30) - 1, b, d]

    def test_an_object_that_gets_the_place_of_another_has_numbers_of_its_own(self, make_cache, tmp_path):
        cache = make_cache("1MiB")
        numbers = set()
        with cache.record(tmp_path / "live.txt"):
            for key in ("first", "second"):
                with cache.open(Store(bytes(PAGE), key=key)) as file:
                    file.pread(1, 0)
                    numbers.add(file.mapping.number)
                cache.forget(key)
                del file
                gc.collect()
        if len(numbers) > 1:
            pytest.skip("the engine gave the second object another number")
        assert list(read_trace(tmp_path / "live.txt")) == [0, 1 << 30]

    def test_one_recorder_at_a_time(self, make_cache, tmp_path):
        cache = make_cache("1MiB")
        with cache.record(tmp_path / "a.npy"), pytest.raises(ValueError, match=r"already.*a\.npy"):
            cache.record(tmp_path / "b.npy")
        with pytest.raises(ValueError, match=r"must end in .npz"):
            cache.record(tmp_path / "c.csv")
        cache.record(tmp_path / "b.npy").stop()

    def test_a_recorded_program_runs_again_in_the_engine(self, make_cache, tmp_path, rng):
        cache = make_cache(64 * PAGE)
        path = tmp_path / "live.npz"
        with cache.open(Store(bytes(300 * PAGE))) as file, cache.record(path):
            file.fadvise(pagecache.FADV_RANDOM)
            for _ in range(2000):
                file.pread(1, min(int(rng.paretovariate(0.5)), 299) * PAGE)
        pages = read_trace(path)
        assert 0 < run_policy(pages, "adaptive", 64) < 0.6
