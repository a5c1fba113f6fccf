"""Build pagecache for any Python interpreters and run tests with each:

    python tests/run_with.py /path/to/python3.14t python3.12 -- tests/files/test_races.py -x
    python tests/run_with.py --threads 4 python3.14t          # pytest-run-parallel over the unit tests

Each interpreter gets an environment of its own in build/with. Behind `--` stands what pytest gets (default: tests). What a
free-threaded interpreter lacks wheels for is left out, and the tests that need it say so. On such an interpreter the GIL
stays off whatever other libraries ask for (PYTHON_GIL=0); the line printed for it tells whether it would have.

Exit status: 0 when all tests passed with all interpreters.
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("mypy", "numpy", "ruff", "pytest-benchmark", "pytest-run-parallel")  # wheels only, where there are any
UNIT_TESTS = (  # each test makes what it uses, so that several threads may run it at once
    "tests/engine/xarray/test_xa_find.py", "tests/engine/xarray/test_xa_marks.py", "tests/engine/xarray/test_xa_multi.py",
    "tests/engine/xarray/test_xa_normal.py", "tests/engine/xarray/test_xa_store.py", "tests/files/test_sizes.py",
    "tests/readahead/test_window.py",
    "tests/readahead/test_readahead_formulas.py",
)  # fmt: skip
DESCRIBE = """
import sys, sysconfig, platform
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
{extra}
asks = free and sys._is_gil_enabled()
print("{what}:", platform.python_implementation(), sys.version.split()[0],
      "free-threaded, sys._is_gil_enabled() is %s" % asks if free else "with the GIL", flush=True)
sys.exit(asks)
"""

CORE_ALONE = """
import importlib.util, os
spec = importlib.util.find_spec("pagecache", None)
[path] = [entry.path for entry in os.scandir(os.path.dirname(spec.origin))
          if entry.name == "_core" + sysconfig.get_config_var("EXT_SUFFIX")]
spec = importlib.util.spec_from_file_location("pagecache._core", path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def run(*command: object, **environment: str) -> int:
    """Run a command in the repository's root; return its exit status."""
    return subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}).returncode


def must(*command: object, **environment: str) -> None:
    """Run a command that has to succeed."""
    if run(*command, **environment):
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def requirements() -> list[str]:
    """Return what building, running and testing need, but for what is optional."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = [*settings["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["test"]]
    return [name for name in wanted if not name.startswith(OPTIONAL)]


def environment_of(interpreter: str) -> Path:
    """Make, or find, the environment of an interpreter; return its python."""
    tag = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    python = ROOT / "build" / "with" / tag / "bin" / "python"
    if not python.exists():
        must(interpreter, "-m", "venv", python.parent.parent)
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--prefer-binary")
    must(*pip, *requirements())
    for name in OPTIONAL:
        if run(*pip, "--only-binary", ":all:", name):
            print(f"{name} has no wheel for {tag}: left out", flush=True)
    return python


def test_with(interpreter: str, mode: str, arguments: list[str]) -> bool:
    """Build for an interpreter and run pytest. Returns whether all passed."""
    python = environment_of(interpreter)
    must(python, "setup.py", "-q", "build_mode", PAGECACHE_MODE=mode)
    environment = {"PYTHONPATH": str(ROOT / "build" / f"lib-{mode}"), "PYTHONSAFEPATH": "1"}
    with_libraries = DESCRIBE.format(extra="import mmh3, sortedcontainers", what="with the other libraries")
    run(python, "-c", with_libraries, **environment)
    if run(python, "-c", DESCRIBE.format(extra=CORE_ALONE, what="with pagecache._core"), **environment):
        print("pagecache turns the GIL on: one of its extension modules does not declare that it can do without")
        return False
    is_free = "import sys, sysconfig; sys.exit(not sysconfig.get_config_var('Py_GIL_DISABLED'))"
    if run(python, "-c", is_free) == 0:
        environment["PYTHON_GIL"] = "0"
    return run(python, "-m", "pytest", "-p", "no:cacheprovider", *arguments, **environment) == 0


def main() -> None:
    """Parse the command line and test with each interpreter."""
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", nargs="+", metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=0, help="run each unit test in so many threads at once")
    parser.add_argument("--mode", default="check", help="build mode of setup.py")
    options = parser.parse_args(given[:end])
    arguments = given[end + 1 :] or (list(UNIT_TESTS) if options.threads else ["tests"])
    if options.threads:
        arguments.append(f"--parallel-threads={options.threads}")
    failed = [name for name in options.interpreters if not test_with(name, options.mode, arguments)]
    print("failed: " + ", ".join(failed) if failed else "passed with " + ", ".join(options.interpreters))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
