"""What type checkers make of a user's program: what `open` returns follows from its arguments; misspelled choices show."""

import importlib.util
import os
import subprocess
import sys

import pytest
from support import ROOT

GOOD = """
import pagecache

cache = pagecache.PageCache("64MiB", policy="lirs")
file: pagecache.File = cache.open("data.bin")
again: pagecache.File = cache.open(pagecache.MemoryStore(b"x"), recheck=False)
reloading: pagecache.VersionedFile = cache.open("https://host/data.bin", on_change="reload")
checked: pagecache.VersionedFile = cache.open("data.bin", "r+b", recheck=2.5)
header: bytes = file.pread(16, 0)
page: memoryview = file.view(4096, 0)
nbytes: int = file.pwrite(b"new", 0)
for line in file:
    line.strip()
with cache.open("data.bin") as opened:
    size: int = opened.size
hits: int = cache.stats().hits
"""
BAD = {  # a line, and what it holds that is wrong
    'cache.open("data.bin", "r")': "mode",
    'cache.open("data.bin", on_change="relaod")': "on_change",
    'cache.open("data.bin", durability="safe")': "durability",
    'pagecache.PageCache("64MiB", policy="lru")': "policy",
    'wrong: pagecache.File = cache.open("data.bin", recheck=True)': "type of the result",
    "cache.open(3.5)": "source",
}


def mypy(directory):
    """Check a directory's programs; returns the run."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--no-error-summary", "."]
    return subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=110)


def pyright(directory):
    """Check a directory's programs; returns the run."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs pyright")
    command = [sys.executable, "-P", "-m", "pyright", "--pythonpath", sys.executable, "."]
    ran = subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=110)
    if "No configuration file found" not in ran.stdout and "error" not in ran.stdout and ran.returncode:
        pytest.skip(f"pyright cannot run here: {ran.stderr.strip()[-200:]}")
    return ran


def environment():
    """Return an environment in which the checkers read the sources."""
    return {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_right_program_is_right(checker, tmp_path):
    (tmp_path / "program.py").write_text(GOOD)
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"]}}')
    ran = checker(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_every_mistake_is_found(checker, tmp_path):
    lines = ["import pagecache", 'cache = pagecache.PageCache("64MiB")', *BAD]
    (tmp_path / "program.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}"]}}')
    said = checker(tmp_path).stdout
    missed = [line for number, line in enumerate(lines, 1) if line in BAD and f"program.py:{number}:" not in said]
    assert not missed, said
