"""The command line: `pagecache sqlite`."""

import os
import sqlite3
import subprocess
import sys

import pytest
from support.http_server import ObjectServer

from pagecache.cli import EXIT_USAGE, main

pytest.importorskip("apsw")


def run(capfd, *words):
    """Run the verb in this process. Returns (status, output, errors)."""
    status = main(["sqlite", *map(str, words)])
    return status, *capfd.readouterr()


def test_statements_and_dot_commands(tmp_path, capfd):
    path = tmp_path / "data.db"
    assert run(capfd, path, "CREATE TABLE t(a, b)", "INSERT INTO t VALUES(1, 'one'), (2, 'two')") == (0, "", "")
    assert run(capfd, path, "SELECT * FROM t") == (0, "1|one\n2|two\n", "")
    status, output, errors = run(capfd, "--stats", path, ".mode csv", "SELECT * FROM t", ".tables")
    assert (status, output.split()) == (0, ["1,one", "2,two", "t"])
    assert "hits" in errors
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT * FROM t").fetchall() == [(1, "one"), (2, "two")]
    plain.close()


def test_the_first_failure_ends_it(tmp_path, capfd):
    path = tmp_path / "data.db"
    status, output, errors = run(capfd, path, "SELECT 1", "SELECT * FROM missing", "SELECT 2")
    assert (status, output) == (1, "1\n")
    assert "no such table: missing" in errors
    status, output, errors = run(capfd, path, ".missing")
    assert (status, output) == (1, "")
    assert "missing" in errors


def test_read_only(tmp_path, capfd):
    path = tmp_path / "data.db"
    status, _, errors = run(capfd, "--readonly", path, "SELECT 1")
    assert (status, path.exists()) == (EXIT_USAGE, False)
    assert "data.db" in errors
    run(capfd, path, "CREATE TABLE t(a)")
    status, _, errors = run(capfd, "--readonly", path, "INSERT INTO t VALUES(1)")
    assert status == 1
    assert "readonly" in errors


def test_what_cannot_be_opened(tmp_path, capfd):
    status, output, errors = run(capfd, tmp_path / "missing" / "data.db", "SELECT 1")
    assert (status, output) == (EXIT_USAGE, "")
    assert errors.startswith("pagecache sqlite: cannot open")
    status, _, errors = run(capfd, tmp_path / "data.db", "SELECT 1", "--option", "anon=true")
    assert status == EXIT_USAGE
    assert "are for URLs" in errors


def test_a_url(tmp_path, capfd):
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    path = tmp_path / "data.db"
    run(capfd, path, "CREATE TABLE t(a)", "INSERT INTO t VALUES(7)")
    with ObjectServer() as server:
        url = server.put("data.db", path.read_bytes())
        assert run(capfd, url, "SELECT a FROM t") == (0, "7\n", "")
        status, _, errors = run(capfd, server.url("missing.db"), "SELECT 1")
        assert status == EXIT_USAGE
        assert "missing.db" in errors


def test_the_shell_reads_standard_input(tmp_path):
    command = [sys.executable, "-P", "-m", "pagecache", "sqlite", str(tmp_path / "data.db")]
    text = "CREATE TABLE t(a);\nINSERT INTO t\nVALUES(3);\nSELECT a + 1 FROM t;\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.stdout.split() == ["4"]
    assert done.returncode == 0
