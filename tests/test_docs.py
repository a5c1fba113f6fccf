"""Every Python block of the README and of the pages in docs/ runs, page by page, and the site's pages are all there."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.docs_runner import MISSING, blocks_of, run_block

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "tests" / "support" / "docs_runner.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIBRARIES = ("fsspec", "s3", "obstore", "zarr", "h5py", "pyarrow", "pandas", "polars", "duckdb", "rasterio", "sqlite",
             "xarray", "dask")  # fmt: skip


def name_of(path):
    """Return a path as messages should show it."""
    return str(path.relative_to(ROOT))


def run_page(path, directory):
    """Run a page's blocks in a process of its own."""
    places = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {**os.environ, "PAGECACHE_SIZE": "64MiB", "PYTHONPATH": os.pathsep.join([*places, str(ROOT / "tests")])}
    command = [sys.executable, "-P", "-W", "ignore", str(RUNNER), str(path)]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=110)


@pytest.mark.parametrize("path", [path for path in PAGES if blocks_of(path.read_text())], ids=name_of)
def test_blocks_run(path, tmp_path):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    done = run_page(path, tmp_path)
    if done.returncode == MISSING:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]


class TestRunner:
    """The test above would be worthless if blocks were not found, not run, or failed unnoticed."""

    def page(self, tmp_path, *blocks):
        path = tmp_path / "page.md"
        path.write_text("# Title\n\n" + "\n".join(f"text\n\n```python\n{block}\n```\n" for block in blocks))
        return path

    def test_a_block_that_fails_fails_with_its_line(self, tmp_path):
        pytest.importorskip("fsspec")
        done = run_page(self.page(tmp_path, "x = 1", "assert x == 2, 'as said'"), tmp_path)
        assert done.returncode == 1
        assert "as said" in done.stderr
        assert 'page.md", line 12' in done.stderr

    def test_a_missing_library_is_reported_and_one_of_our_own_is_a_failure(self, tmp_path):
        pytest.importorskip("fsspec")
        done = run_page(self.page(tmp_path, "import surely_not_there"), tmp_path)
        assert (done.returncode, done.stderr.strip()) == (MISSING, "surely_not_there is not installed")
        assert run_page(self.page(tmp_path, "import pagecache.surely_not_there"), tmp_path).returncode == 1

    def test_blocks_may_await(self):
        namespace = {}
        run_block("import asyncio\nawait asyncio.sleep(0)\nx = 1\n", "page", 0, namespace)
        assert namespace["x"] == 1

    def test_only_python_blocks_are_run(self):
        assert blocks_of("```sh\nls\n```\n```python\nx\n```\n") == [(4, "x\n")]


class TestSite:
    def test_every_library_has_a_page_that_the_index_names(self):
        index = (ROOT / "docs" / "index.md").read_text()
        for library in LIBRARIES:
            assert blocks_of((ROOT / "docs" / "libraries" / f"{library}.md").read_text()), library
            assert f"(libraries/{library}.md)" in index

    def test_every_page_is_in_the_navigation(self):
        navigation = (ROOT / "mkdocs.yml").read_text()
        pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES if path.is_relative_to(ROOT / "docs")}
        assert pages == set(re.findall(r"[\w/-]+\.md", navigation))

    def test_measured_tables_say_how_they_were_made_and_are_quoted(self):
        """Each has its command and the machine, and a page of docs/ links to it."""
        quoted = "".join(path.read_text() for path in PAGES)
        results = sorted((ROOT / "bench" / "results").glob("[!0-9]*.md"))
        assert results
        for path in results:
            text = path.read_text()
            assert re.search(r"python -m bench \w|`make \w+", text), f"{path.name} has no command"
            assert re.search(r"machine|cores", text, re.IGNORECASE), f"{path.name} has no machine"
            assert f"bench/results/{path.name})" in quoted, f"no page quotes {path.name}"

    def test_it_builds_without_a_warning(self, tmp_path):
        for module in ("mkdocs", "material", "mkdocstrings"):
            pytest.importorskip(module, reason=f"{module} is not installed")
        build = ["build", "--strict", "--site-dir", str(tmp_path / "site")]  # --quiet would count no warnings
        command = [sys.executable, "-P", "-m", "mkdocs", *build]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stderr
        reference = (tmp_path / "site" / "api" / "index.html").read_text()
        assert "Read up to nbytes at byte" in reference, "the docstrings of the compiled module are missing"
        row = next((row for row in reference.split("<tr>") if "<td><code>dirty_limit</code></td>" in row), "")
        assert "how much may be dirty" in row, "arguments are no tables"

    def test_arguments_become_a_table(self, monkeypatch):
        """What docstrings say of arguments, in whatever order, goes into the table; what follows it stays text."""
        griffe = pytest.importorskip("griffe", reason="griffe is not installed")
        monkeypatch.syspath_prepend(ROOT / "docs")
        import argument_tables

        code = 'def f(size: "int | str", *, first=0, last=None, **more): ...'
        with griffe.temporary_visited_module(code) as module:
            parameters = list(module["f"].parameters)
        text = """Do it, as `size: 5` says.

        size: bytes, or
        "5%". first, last: pages; None: all. Raises ValueError. Context: any thread.

        more: the rest."""
        shown = argument_tables.with_table(inspect.cleandoc(text), parameters)
        assert shown.split("\n\n") == [
            "Do it, as `size: 5` says.",
            "\n".join(
                (
                    "| argument | type | default | meaning |",
                    "| --- | --- | --- | --- |",
                    '| <code>size</code> | <code>int &#124; str</code> |  | bytes, or "5%" |',
                    "| <code>first</code> |  | <code>0</code> | pages; None: all |",
                    "| <code>last</code> |  | <code>None</code> | pages; None: all |",
                    "| <code>**more</code> |  |  | the rest |",
                )
            ),
            "Raises ValueError.",
            "Context: any thread.",
        ]

    def test_every_public_name_is_in_the_reference(self):
        import pagecache

        reference = (ROOT / "docs" / "api.md").read_text()
        classes = [name for name in pagecache.__all__ if isinstance(getattr(pagecache, name), type)]
        assert [name for name in classes if f"::: pagecache.{name}\n" not in reference] == []
