"""The command line: what `pagecache demo` prints, refuses and returns."""

import io
import json
import os
import random
import re
import subprocess
import sys

import pytest

from pagecache.cli import EXIT_INTERRUPTED, EXIT_USAGE, demo, main, residency
from pagecache.cli.progress import Progress

MIB = 1024 * 1024


def run_command(*words, **options):
    """Run the command line in a process of its own, as a program would: no terminal, no input."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "pagecache", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        **options,
    )


def run_json(capsys, *words):
    """Run the demo in this process and return its exit status and its one JSON object."""
    status = main(["demo", "--json", *map(str, words)])
    output = capsys.readouterr()
    assert output.err == ""
    return status, json.loads(output.out)


class TestDemo:
    def test_every_byte_agrees(self, data_file, capsys):
        path, _ = data_file(5 * MIB + 1234)
        assert main(["demo", str(path), "--size", "1MiB"]) == 0
        output = capsys.readouterr()
        assert "Every byte agrees with plain reads." in output.out
        assert output.out.count("  agree") == 4
        assert output.err == ""

    def test_json_schema(self, data_file, capsys):
        path, data = data_file(3 * MIB + 1)
        status, found = run_json(capsys, path, "--size", "1MiB", "--seed", 7)
        assert status == 0
        assert found["agrees"] is True
        assert found["file"] == {"path": str(path), "reason": "as asked", "bytes": len(data)}
        assert found["cache"]["bytes"] <= MIB
        assert found["seed"] == 7
        assert [each["name"] for each in found["passes"]] == ["in order", "at random", "mmap()", "written"]
        for each in found["passes"]:
            assert each["agrees"] is True
            assert each["sha256"] == each["expected_sha256"]
            assert re.fullmatch("[0-9a-f]{64}", each["sha256"])
            assert all(each[counter] >= 0 for counter in demo.COUNTERS)
        assert found["cached_read"]["pagecache_ns"] > 0
        assert found["cached_read"]["region_bytes"] <= found["cache"]["bytes"]
        assert found["residency"]["pages"] == 3 * 256 + 1
        assert 0 < found["residency"]["resident_pages"] <= found["cache"]["bytes"] // 4096

    def test_counters_tell_what_happened(self, data_file, capsys):
        path, data = data_file(4 * MIB)
        _, found = run_json(capsys, path, "--size", "1MiB")
        in_order, at_random, mapped, _ = found["passes"]
        assert in_order["misses"] > 0
        assert in_order["readahead_pages"] > 0
        assert in_order["evictions"] >= (len(data) - MIB) // 4096 // 512
        assert at_random["misses"] > 0
        assert mapped["pgmajfault"] + mapped["readahead_pages"] > 0  # a marker that was left may save all major faults
        assert found["cached_read"]["misses"] == 0

    def test_file_that_fits_gets_a_cache_of_a_quarter(self, data_file, capsys):
        path, data = data_file(4 * MIB)
        status, found = run_json(capsys, path)
        assert status == 0
        assert found["cache"]["bytes"] <= len(data) // 4
        assert "a quarter of the file" in found["cache"]["reason"]

    @pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 65537])
    def test_tiny_file(self, data_file, capsys, nbytes):
        path, _ = data_file(nbytes)
        status, found = run_json(capsys, path)
        assert status == 0
        if nbytes > 4096:
            assert found["cache"]["bytes"] < nbytes
        else:
            assert found["cache"]["bytes"] == 4096
            assert found["cache"]["reason"] == "one page: the file has no more"

    def test_same_seed_reads_in_same_order(self, data_file, capsys):
        path, _ = data_file(2 * MIB)
        first, second = (run_json(capsys, path, "--size", "512KiB", "--seed", 3)[1] for _ in range(2))
        assert first["passes"][1]["misses"] == second["passes"][1]["misses"]

    def test_difference_is_found_and_reported(self, data_file, capsys, monkeypatch):
        path, _ = data_file(MIB)
        monkeypatch.setattr(demo, "hash_in_order", lambda file, file_bytes: "0" * 64)
        assert main(["demo", str(path), "--size", "256KiB"]) == 1
        output = capsys.readouterr().out
        assert "DIFFER" in output
        assert "plain" in output
        status, found = run_json(capsys, path, "--size", "256KiB")
        assert status == 1
        assert found["agrees"] is False

    def test_without_path_takes_largest_installed_file(self, tmp_path, monkeypatch):
        prefix, base_prefix = tmp_path / "environment", tmp_path / "base"
        for directory in (prefix / "deep", base_prefix):
            directory.mkdir(parents=True)
        (prefix / "small").write_bytes(b"x" * 10)
        (prefix / "deep" / "large").write_bytes(b"x" * 1000)
        (prefix / "link").symlink_to(base_prefix / "huge")
        (base_prefix / "huge").write_bytes(b"x" * 5000)
        monkeypatch.setattr(sys, "prefix", str(prefix))
        monkeypatch.setattr(sys, "base_prefix", str(base_prefix))
        assert demo.choose_file(None) == (str(base_prefix / "huge"), "the largest file under sys.base_prefix")
        monkeypatch.setattr(demo, "PREFIX_FILE_BYTES_MIN", 500)
        assert demo.choose_file(None) == (str(prefix / "deep" / "large"), "the largest file under sys.prefix")

    def test_no_file_anywhere(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
        with pytest.raises(ValueError, match="name one"):
            demo.choose_file(None)


class TestBadInput:
    def refused(self, capsys, *words):
        """Run words that must be refused; return the one line that says why."""
        assert main(["demo", *map(str, words)]) == EXIT_USAGE
        output = capsys.readouterr()
        assert output.out == ""
        [line] = output.err.splitlines()
        assert line.startswith("pagecache demo: ")
        return line

    def test_directory(self, tmp_path, capsys):
        assert f"{tmp_path} is not a regular file" in self.refused(capsys, tmp_path)

    def test_missing(self, tmp_path, capsys):
        line = self.refused(capsys, tmp_path / "nowhere")
        assert "nowhere" in line
        assert "No such file" in line

    def test_empty(self, tmp_path, capsys):
        path = tmp_path / "empty"
        path.touch()
        assert f"{path} is empty" in self.refused(capsys, path)

    def test_pipe(self, tmp_path, capsys):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        assert "not a regular file" in self.refused(capsys, path)

    def test_unreadable(self, tmp_path, capsys, unprivileged):
        path = tmp_path / "secret"
        path.write_bytes(b"x")
        path.chmod(0)
        with unprivileged():
            line = self.refused(capsys, path)
        assert "secret" in line
        assert "Permission denied" in line

    @pytest.mark.parametrize("size", ["lots", "-1", "0", "", "1XiB", "4095", "200%"])
    def test_size(self, data_file, capsys, size):
        path, _ = data_file(4096)
        assert main(["demo", str(path), f"--size={size}"]) == EXIT_USAGE
        output = capsys.readouterr()
        assert output.out == ""
        assert len(output.err.splitlines()) == 1

    @pytest.mark.parametrize("words", [[], ["nonsense"], ["demo", "--nonsense"], ["demo", "--seed", "x"]])
    def test_usage(self, capsys, words):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == EXIT_USAGE
        assert "usage: pagecache" in capsys.readouterr().err


class TestProcess:
    def test_not_a_terminal(self, data_file):
        path, _ = data_file(2 * MIB)
        ran = run_command("demo", path, "--size", "512KiB")
        assert ran.returncode == 0
        assert ran.stderr == b""
        assert b"\x1b" not in ran.stdout
        assert b"\r" not in ran.stdout

    def test_ascii_output(self, data_file):
        path, _ = data_file(2 * MIB, name="d\u00e9j\u00e0")
        ran = run_command("demo", path, "--size", "512KiB", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert ran.returncode == 0
        assert ran.stdout.isascii()

    def test_reader_that_leaves(self, data_file):
        path, _ = data_file(MIB)
        reader, writer = os.pipe()
        os.close(reader)
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "pagecache", "demo", str(path), "--size", "256KiB"],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=100,
        )
        os.close(writer)
        assert ran.stderr == b""
        assert ran.returncode != 0

    def test_version(self):
        ran = run_command("--version")
        assert ran.returncode == 0
        assert ran.stdout.startswith(b"pagecache ")

    def test_help_imports_no_verb(self):
        code = "import sys, pagecache.cli as c; c.make_parser([]); assert 'pagecache.cli.demo' not in sys.modules"
        subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=100)

    def test_interrupt(self, monkeypatch):
        def interrupted(arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(demo, "run", interrupted)
        assert main(["demo"]) == EXIT_INTERRUPTED


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class TestProgress:
    def test_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        stream = Terminal()
        with Progress("reading", 200, stream) as progress:
            progress.advance(100)
        assert "reading [" in stream.getvalue()
        assert " 50%" in stream.getvalue()
        assert stream.getvalue().endswith("\r\x1b[K")

    def test_anything_else(self):
        stream = io.StringIO()
        with Progress("reading", 200, stream) as progress:
            progress.advance(100)
        assert stream.getvalue() == ""

    @pytest.mark.parametrize("columns", [1, 5, 20, 80, 500])
    def test_fits(self, columns):
        progress = Progress("reading", 0, io.StringIO())
        for amount in (0, 1, 100):
            progress.advance(amount)
            assert len(progress.line(columns)) <= max(columns, 4)


class TestResidency:
    def test_cells_cover_every_page(self, rng):
        for _ in range(200):
            resident = bytes(rng.choice([0, 1]) for _ in range(rng.randrange(1, 500)))
            nr_cells_max = rng.randrange(1, 100)
            shares = residency.cell_shares(resident, nr_cells_max)
            pages = residency.cell_pages(len(resident), nr_cells_max)
            assert len(shares) <= nr_cells_max
            whole = sum(shares[:-1]) * pages + shares[-1] * (len(resident) - pages * (len(shares) - 1))
            assert whole == pytest.approx(sum(resident))

    def test_only_lowest_bit_counts(self):
        assert residency.cell_shares(bytes([0b10, 0b11]), 2) == [0.0, 1.0]

    def test_shades(self):
        assert residency.picture([0.0, 0.01, 0.5, 0.99, 1.0], 10, "utf-8") == ["| ░▒▓█|"]
        assert residency.picture([0.0, 0.01, 0.5, 0.99, 1.0], 3, "ascii") == ["| .:|", "|+# |"]
        assert residency.picture([0.0, 1.0], 3, None) == ["| #|"]
        assert residency.picture([], 3, "utf-8") == []


def test_random_pass_hashes_blocks_in_order_of_the_file(data_file, make_cache):
    path, data = data_file(300_000)
    cache = make_cache("256KiB")
    with cache.open(path, "rb") as file:
        seeds = random.Random(0).sample(range(1000), 3)
        hashes = {demo.hash_at_random(file, len(data), seed) for seed in seeds}
    assert hashes == {demo.plain_hashes(str(path), len(data))[1]}


class TestCompletion:
    def answers(self, line, tmp_path):
        """Return what a shell learns of how a line goes on."""
        pytest.importorskip("argcomplete")
        place = tmp_path / "answers"
        environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                       "_ARGCOMPLETE_STDOUT_FILENAME": str(place), "_ARGCOMPLETE_IFS": "\n"}  # fmt: skip
        subprocess.run([sys.executable, "-P", "-m", "pagecache"], env=environment, timeout=100)
        return [word.strip() for word in place.read_text().split("\n")]

    def test_knows_the_verbs(self, tmp_path):
        assert {"stat", "stats", "mount"} & set(self.answers("pagecache ", tmp_path)) == {"stat", "mount"}

    def test_knows_the_options_of_a_verb(self, tmp_path):
        assert "--json" in self.answers("pagecache stat --js", tmp_path)
