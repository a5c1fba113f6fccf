"""The command line: what `pagecache stat` reads, prints and refuses."""

import importlib.util
import json
import subprocess
import sys

import pytest
from support.http_server import ObjectServer

from pagecache.cli import EXIT_USAGE, main
from pagecache.cli.stat import parse_options

PAGE = 4096


def run_json(capsys, *words):
    """Run the verb in this process and return its one JSON object."""
    assert main(["stat", "--json", *map(str, words)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


class TestLocalFile:
    def test_whole_file(self, data_file, capsys):
        path, data = data_file(3_000_001)
        found = run_json(capsys, path)
        assert found["read_bytes"] == found["size_bytes"] == len(data)
        assert found["store_read_bytes"] == len(data)
        assert found["reads"] == 3
        assert found["store_reads"] >= 1
        assert found["misses"] >= 1
        assert set(found["cell_shares"]) == {1.0}

    def test_a_range(self, data_file, capsys):
        path, _ = data_file(4 << 20)
        found = run_json(capsys, path, "--offset", "1MiB", "--bytes", "512KiB", "--read-size", "512KiB")
        assert found["read_bytes"] == 512 << 10
        assert 512 << 10 <= found["store_read_bytes"] < 4 << 20
        assert found["cell_shares"][0] == 0.0
        assert found["cell_shares"][70] == 1.0

    def test_nothing_is_read_when_nothing_is_asked(self, data_file, capsys):
        path, _ = data_file(100_000)
        found = run_json(capsys, path, "--bytes", "0")
        assert (found["store_reads"], found["read_bytes"]) == (0, 0)

    def test_behind_the_end(self, data_file, capsys):
        path, _ = data_file(100)
        assert run_json(capsys, path, "--offset", "1MiB")["read_bytes"] == 0

    def test_a_cache_smaller_than_the_file(self, data_file, capsys):
        path, data = data_file(1 << 20)
        found = run_json(capsys, path, "--size", "64KiB")
        assert found["read_bytes"] == len(data)
        assert found["resident_bytes"] <= 64 << 10

    def test_text(self, data_file, capsys):
        path, _ = data_file(64 * PAGE)
        assert main(["stat", str(path)]) == 0
        output = capsys.readouterr().out
        for word in (str(path), "requests", "fetched", "readahead", "64 of 64 pages"):
            assert word in output

    def test_an_empty_file(self, data_file, capsys):
        path, _ = data_file(0)
        assert main(["stat", str(path)]) == 0
        assert "0 B" in capsys.readouterr().out


class TestUrl:
    def test_requests_are_those_that_the_server_saw(self, rng, capsys):
        pytest.importorskip("aiohttp")
        data = rng.randbytes(2_000_000)
        with ObjectServer() as server:
            found = run_json(capsys, server.put("object", data))
            assert found["read_bytes"] == len(data)
            assert found["store_reads"] == server.count("GET")
            assert found["store_read_bytes"] == len(data)
            assert "ETag" in found["validator"]

    def test_an_object_that_is_not_there(self, capsys):
        pytest.importorskip("aiohttp")
        with ObjectServer() as server:
            assert main(["stat", server.url("missing")]) == EXIT_USAGE
        assert "missing" in capsys.readouterr().err

    def test_an_unknown_protocol(self, capsys):
        pytest.importorskip("fsspec")
        assert main(["stat", "unheard-of://object"]) == EXIT_USAGE
        assert "unheard-of" in capsys.readouterr().err

    def test_options_reach_the_file_system(self, capsys):
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").pipe("/stat-options", b"abc")
        assert run_json(capsys, "memory://stat-options", "--option", "unused=true")["size_bytes"] == 3


class TestRefusals:
    def test_options_of_a_file(self, data_file, capsys):
        path, _ = data_file(10)
        for source in (str(path), f"file://{path}"):
            assert main(["stat", source, "--option", "anon=true"]) == EXIT_USAGE
            assert "has no option 'anon'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("rechek=5", "did you mean 'recheck'"),
            ("compression=gzip", "compression"),
            ("source=x", "source"),
            ("auto_mkdirs=true", "auto_mkdirs"),
        ],
    )
    def test_options_that_the_file_system_does_not_have(self, capsys, option, said):
        pytest.importorskip("aiohttp")
        pytest.importorskip("pagecache.adapters.fsspec")  # which an installed package registers by itself
        with ObjectServer() as server:
            url = server.put("object", b"bytes")
            assert main(["stat", url, "--option", option]) == EXIT_USAGE
            assert said in capsys.readouterr().err
            assert main(["stat", f"pagecache::{url}", "--option", option]) == EXIT_USAGE
            assert said in capsys.readouterr().err

    def test_every_verb_with_options(self, data_file, capsys, tmp_path):
        """A directory to mount, a database."""
        path, _ = data_file(10)
        (tmp_path / "mountpoint").mkdir()
        verbs = [["stat", str(path)]]
        if importlib.util.find_spec("apsw") is not None:
            verbs.append(["sqlite", str(path), "SELECT 1"])
        verbs.append(["mount", str(tmp_path), str(tmp_path / "mountpoint")])
        for words in verbs:
            assert main([*words, "--option", "anon=true"]) == EXIT_USAGE
            assert capsys.readouterr().err.startswith(f"pagecache {words[0]}: ")

    @pytest.mark.parametrize("words", [("--read-size", "0"), ("--offset", "x"), ("--option", "novalue"), ("--size", "1")])
    def test_arguments_that_make_no_sense(self, data_file, capsys, words):
        path, _ = data_file(10)
        assert main(["stat", str(path), *words]) == EXIT_USAGE
        assert capsys.readouterr().err.startswith("pagecache stat: ")

    def test_a_missing_file(self, tmp_path):
        command = [sys.executable, "-P", "-m", "pagecache", "stat", str(tmp_path / "missing")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == EXIT_USAGE
        assert "missing" in done.stderr
        assert "Traceback" not in done.stderr

    def test_values_of_options(self):
        assert parse_options(["anon=true", "n=3", "name=a=b"]) == {"anon": True, "n": 3, "name": "a=b"}
