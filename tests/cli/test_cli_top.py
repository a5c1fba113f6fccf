"""`pagecache top`, and the socket that it asks."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time

import pytest
from support.fuse_mount import Mount, needs_fuse

import pagecache
from pagecache.cli import EXIT_USAGE, main, top, top_screen
from pagecache.stats import server as live

PAGE = 4096
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    """Sockets of these tests are in a directory of their own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def cache_of(picture, nr_frames):
    """Return the picture of the cache of so many frames."""
    return next(cache for cache in picture["caches"] if cache["nr_frames"] == nr_frames)


class TestAnswer:
    def test_counters_and_maps_are_those_of_the_cache(self, make_cache, data_file):
        path, _ = data_file(64 * PAGE)
        cache = make_cache(333 * PAGE)
        with cache.open(path, "r+b") as file, pagecache.serve_stats() as server:
            file.fadvise(pagecache.FADV_RANDOM)
            for page in (0, 5, 63):
                file.pread(1, page * PAGE)
            file.pwrite(b"x", 5 * PAGE)
            found = cache_of(live.ask(server.path, nr_files=3, nr_cells=64), 333)
            assert found["hits"] == cache.stats().hits
            assert found["nr_dirty"] == 1
            (its,) = found["files"]
            assert (its["name"], its["size_bytes"], its["nr_dirty"], its["cell_pages"]) == (str(path), 64 * PAGE, 1, 1)
            resident = [cell[0] for cell in its["cells"]]
            assert resident == list(file.mincore())
            assert [number for number, cell in enumerate(its["cells"]) if cell[1]] == [5]
            few = cache_of(live.ask(server.path, nr_files=1, nr_cells=10), 333)["files"][0]
            assert len(few["cells"]) == 10
            assert sum(cell[0] for cell in few["cells"]) == sum(resident)

    def test_most_pages_first_and_no_more_than_asked_for(self, make_cache, data_file):
        cache = make_cache(100 * PAGE)
        files = [cache.open(data_file(pages * PAGE)[0]) for pages in (1, 8, 3)]
        for file in files:
            file.read()
        with pagecache.serve_stats() as server:
            found = cache_of(live.ask(server.path, nr_files=2, nr_cells=0), 100)
        assert [file["size_bytes"] // PAGE for file in found["files"]] == [8, 3]
        assert found["nr_files"] == 3
        for file in files:
            file.close()

    @pytest.mark.parametrize("line", [b"", b"what?\n", b"[]\n", b'{"files": "many"}\n', b"x" * 10_000, b"{}\n"])
    def test_bad_questions_do_not_end_the_server(self, line):
        with pagecache.serve_stats() as server:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(server.path)
                connection.sendall(line)
                connection.shutdown(socket.SHUT_WR)
            assert live.ask(server.path)["pid"] == os.getpid()

    def test_no_other_user_may_ask(self, tmp_path):
        with pagecache.serve_stats() as server:
            assert os.stat(os.path.dirname(server.path)).st_mode & 0o077 == 0
        os.chmod(live.directory(), 0o755)
        with pytest.raises(PermissionError):
            pagecache.serve_stats()

    def test_sockets_go_with_their_servers(self):
        server, other = pagecache.serve_stats(), pagecache.serve_stats()
        assert sorted(live.running()) == sorted([server.path, other.path])
        server.close()
        server.close()
        assert live.running() == [other.path]
        other.close()
        assert os.listdir(live.directory()) == []

    def test_a_socket_of_a_process_that_was_killed_is_replaced(self):
        live.StatsServer(None, lambda nr_files, nr_cells: {}).close()
        path = os.path.join(live.directory(), f"{os.getpid()}.sock")
        with socket.socket(socket.AF_UNIX) as deserted:
            deserted.bind(path)
        assert live.running() == []
        with pagecache.serve_stats() as server:
            assert server.path == path

    def test_a_forked_child_answers_for_no_process(self):
        with pagecache.serve_stats() as server:
            child = os.fork()
            if child == 0:
                os._exit(0 if not live._servers else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert live.ask(server.path)["pid"] == os.getpid()


@pytest.fixture
def process():
    """A process that has asked for it in its environment, with a file of 10 pages cached; and its number."""
    script = "import pagecache, sys; c = pagecache.PageCache(4096 * 50); f = c.open(pagecache.MemoryStore(bytes(40960)));" \
        " f.read(); print('ready', flush=True); sys.stdin.read()"  # fmt: skip
    environment = {**os.environ, "PAGECACHE_SERVE_STATS": "1"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


class TestVerb:
    def test_of_a_process(self, process, capsys):
        for target in ([], [str(process.pid)], [os.path.join(live.directory(), f"{process.pid}.sock")]):
            assert main(["top", "--once", "--json", *target]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["pid"] == process.pid
            assert cache_of(found, 50)["files"][0]["resident_bytes"] == 40960

    def test_text(self, process, capsys):
        assert main(["top", "--once", str(process.pid)]) == 0
        output = capsys.readouterr().out
        words = (str(process.pid), "hits", "misses", "hit ratio", "write-back", "dirty", "readahead", "40.0 KiB", "map:")
        for word in words:
            assert word in output
        assert "\x1b" not in output

    def test_it_ends_with_the_process(self, process):
        command = [sys.executable, "-P", "-m", "pagecache", "top", "--json", "--interval", "0.01", str(process.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
            pictures = [json.loads(watcher.stdout.readline()) for _ in range(3)]
            assert len({picture["seconds"] for picture in pictures}) == 3
            process.kill()
            watcher.stdout.read()
            assert watcher.wait(PATIENCE_S) == 0

    def test_on_a_terminal(self, process):
        command = [sys.executable, "-P", "-m", "pagecache", "top", "--interval", "0.05", str(process.pid)]
        terminal, other = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment) as watcher:
            try:
                os.close(other)
                shown = read_until(terminal, lambda text: text.count("\x1b[H") >= 3 and "0/s" in text)
                assert "\x1b[?1049h" in shown
                assert "hit ratio" in shown
                os.write(terminal, b"q")
                shown += read_until(terminal, lambda text: "\x1b[?1049l" in text)
                assert watcher.wait(PATIENCE_S) == 0
            finally:
                watcher.kill()
        os.close(terminal)

    @pytest.mark.parametrize("words", [["999999999"], ["/"], ["/nowhere"], ["--interval", "0"], []])
    def test_whom_it_cannot_ask(self, words, capsys):
        assert main(["top", *words]) == EXIT_USAGE
        assert capsys.readouterr().err.startswith("pagecache top: ")

    @needs_fuse()
    def test_of_a_mount(self, tmp_path, capsys):
        source = tmp_path / "source"
        source.mkdir()
        with Mount(source, "--size", "256KiB") as mount:
            with open(mount.path / "file", "wb", buffering=0) as file:
                file.write(bytes(5 * PAGE))
                assert main(["top", "--once", "--json", str(mount.path)]) == 0
                found = json.loads(capsys.readouterr().out)
                assert found["pid"] == mount.process.pid
                assert cache_of(found, 64)["files"][0]["nr_dirty"] == 5
            assert main(["top", "--once", str(mount.path / "file")]) == 0
            assert "source/file" in capsys.readouterr().out
        assert live.running() == []


def read_until(terminal, is_enough):
    """Read what is written to a terminal until it is enough. Returns it."""
    text, deadline = "", time.monotonic() + PATIENCE_S
    while not is_enough(text):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
    return text


class TestScreen:
    FILE = {"name": "a\nb", "size_bytes": 8 * PAGE, "resident_bytes": 4 * PAGE, "nr_dirty": 1, "misses": 3, "cell_pages": 1,
            "cells": [[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]}  # fmt: skip

    def test_a_map(self):
        assert top_screen.draw_map(self.FILE, 8, "utf-8") == "█dw    █"
        assert top_screen.draw_map(self.FILE, 8, "ascii") == "#dw    #"
        assert top_screen.draw_map(self.FILE, 4, "utf-8") == "dw ▒"

    @pytest.mark.parametrize("columns", [20, 60, 100, 200])
    @pytest.mark.parametrize("rows", [5, 24])
    def test_it_fits_a_terminal(self, make_cache, columns, rows):
        cache = make_cache(64 * PAGE)
        files = [cache.open(pagecache.MemoryStore(bytes(PAGE), key=f"{'long' * 9}-{number}")) for number in range(40)]
        for file in files:
            file.read()
        picture = live.picture_of_process([cache], 40, 60)
        lines = top_screen.lines(picture, picture, columns, rows, "utf-8")
        assert len(lines) <= rows
        assert all("\n" not in line for line in lines)

    def test_rates(self, make_cache):
        cache = make_cache(64 * PAGE)
        file = cache.open(pagecache.MemoryStore(bytes(PAGE)))
        before = live.picture_of_process([cache], 1, 1)
        for _ in range(51):
            file.pread(1, 0)
        now = live.picture_of_process([cache], 1, 1)
        now["seconds"] = before["seconds"] + 2
        hits = next(line for line in top_screen.lines(now, before, 100, None, "utf-8") if line.startswith("hits"))
        assert hits.split()[1:3] == ["50", "25/s"]
        assert "98.0% now" in "\n".join(top_screen.lines(now, before, 100, None, "utf-8"))


def test_an_interrupt_ends_it(tmp_path):
    with pagecache.serve_stats() as server:
        command = [sys.executable, "-P", "-m", "pagecache", "top", "--interval", "100", server.path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
            assert "pagecache top" in watcher.stdout.readline()
            watcher.send_signal(signal.SIGINT)
            assert watcher.wait(PATIENCE_S) == 130


def test_the_words_of_a_target(tmp_path):
    with pytest.raises(OSError, match="in no mount of pagecache"):
        top.socket_of(str(tmp_path))
