"""`_core.pyi` says what `pagecache._core` is: stubtest compares them, but for what the allowlist explains."""

import importlib.util
import os
import subprocess
import sys

import pytest
from support import ROOT, SUPPORT

ALLOWLIST = SUPPORT / "stubtest_allowlist.txt"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_stubs_agree_with_module():
    assert (ROOT / "pagecache" / "_core.pyi").exists()
    options = [
        "--mypy-config-file", str(ROOT / "pyproject.toml"), "--allowlist", str(ALLOWLIST), "--ignore-unused-allowlist",
    ]  # what Cython adds depends on its version
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "mypy.stubtest", "pagecache._core", *options],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
