"""The house style, as tests: sizes, which way imports run, docstrings, error contracts of the engine's functions."""

import ast
import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import pagecache

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pagecache"
SOURCE_DIRECTORIES = ("pagecache", "tests", "bench")
SOURCE_SUFFIXES = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h"}
GENERATED_SUFFIXES = {".c", ".cpp", ".html", ".so", ".o", ".pyc", ".whl"}
FILE_LINES_MAX = 600
MANIFEST_LINES_MAX = 100
LINE_COLUMNS_MAX = 124

SOURCES = sorted(
    path
    for directory in SOURCE_DIRECTORIES
    for path in (ROOT / directory).rglob("*")
    if path.suffix in SOURCE_SUFFIXES and "__pycache__" not in path.parts
)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "findings").glob("*")])
ENGINE = sorted((PACKAGE / "core").glob("*.pxd"))
BOUNDARY = [PACKAGE / "_core.pyx", *sorted((PACKAGE / "parts").glob("*.pxi"))]
PYTHON = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py" and path != PACKAGE / "__init__.py")
TOP_MODULES_MAX = 14
LAYERS = [  # of ARCHITECTURE.md's table, the highest first: what the last column of each row names
    set(re.findall(r"`([\w/.*]+)`", row.rsplit("|", 2)[1]))
    for row in re.findall(r"^\| .* \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    if row.count("|") == 4 and "---" not in row
]

REFUSED_WORDS = {  # in code, comments, docstrings and messages: what to write instead
    r"nobody|somebody|anybody|everybody|whoever|whom": "say which thread, page or lock, or 'no thread'",
    r"told": "errors are reported, callbacks are called, versions are distinguished",
    r"(?:file|object|page|folio|store)s? (?:that |which )?(?:is|are|was|were) (?:being )?cut|uncut": "files are truncated",
}
ALLOWED_WORDS = {  # by path: phrases in which such a word is right; NOBODY, the user, is not looked at
    "tests/test_source.py": ["nobody|somebody|anybody|everybody|whoever|whom", "told", "uncut", "nobody", "somebody"],
    "tests/adapters/test_fuse_rights.py": ["nobody"],  # the user
    "tests/adapters/test_fuse_tables.py": ["nobody", "somebody"],  # a user
    "tests/adapters/sqlite/test_sqlite_names.py": ["store:nobody"],
}

IMPORT = re.compile(r"^\s*(?:from\s+(\.*[\w.]+)\s+c?import\s|c?import\s+([\w., ]+))", re.MULTILINE)
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\s|cimport\s+([\w.]+))", re.MULTILINE)
INLINE_SIGNATURE = re.compile(r"^cdef inline [^:]*:", re.MULTILINE)


def name_of(path):
    """Return a path as messages should show it."""
    return str(path.relative_to(ROOT))


def imports_of(path):
    """Return the dotted names that a Python file imports anywhere, as absolute names."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def cimports_of(path):
    """Return the modules that a Cython file cimports."""
    return {found or other for found, other in CIMPORT.findall(path.read_text())}


def module_of(path):
    """Return the dotted name of a Python file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_among(names):
    """Return those of the dotted names that are modules of the package, without the package itself."""
    known = {module_of(path) for path in PYTHON}
    return {name for name in names if name in known}


def layer_of(module):
    """Return the row of ARCHITECTURE.md's table that a module is in, 0 for the highest; -1: in none."""
    place = module.removeprefix("pagecache.").split(".")
    names = {f"{place[0]}.py", f"{place[0]}/", "/".join(place) + ".py"}
    return next((number for number, layer in enumerate(LAYERS) if layer & names), -1)


def within(name, *packages):
    """Return whether a dotted name is one of `packages` or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def cycle_in(graph):
    """Return the names of one cycle of `graph` (name -> names), or an empty list."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name))), [])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
class TestEveryFile:
    def test_is_short(self, path):
        assert len(path.read_text().splitlines()) <= FILE_LINES_MAX

    def test_has_short_and_clean_lines(self, path):
        text = path.read_text()
        bad = [
            f"{name_of(path)}:{number}: {len(line)} columns, white space at the end, or a tab"
            for number, line in enumerate(text.splitlines(), 1)
            if len(line) > LINE_COLUMNS_MAX or line != line.rstrip() or "\t" in line
        ]
        assert not bad, "\n".join(bad)
        assert not text or text.endswith("\n"), "no newline at the end"

    def test_leaves_nothing_to_do_later(self, path):
        marks = "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"])
        assert not re.search(rf"\b({marks})\b", path.read_text())


class TestLayers:
    """core < _core < thin Python < stores and adapters < cli: nothing imports what is above it."""

    @pytest.mark.parametrize("path", ENGINE, ids=name_of)
    def test_engine_knows_only_itself_and_libc(self, path):
        for name in cimports_of(path):
            assert within(name, "pagecache.core", "libc", "posix"), f"cimport of {name}"
        assert not re.search(r"^\s*cdef class|^\s*(from [\w.]+ )?import ", path.read_text(), re.MULTILINE)

    def test_engine_has_no_cycle(self):
        graph = {f"pagecache.core.{path.stem}": cimports_of(path) for path in ENGINE}
        assert cycle_in(graph) == []

    @pytest.mark.parametrize("path", BOUNDARY, ids=name_of)
    def test_boundary_does_not_import_adapters_or_cli(self, path):
        for found in IMPORT.findall(path.read_text()):
            for name in filter(None, found):
                assert not within(name.strip(), "pagecache.adapters", "pagecache.cli"), f"import of {name}"

    @pytest.mark.parametrize("path", PYTHON, ids=name_of)
    def test_imports_run_downwards(self, path):
        """ARCHITECTURE.md's table is the order: a module imports its own row, and the rows below."""
        own = layer_of(module_of(path))
        for name in modules_among(imports_of(path)):
            assert layer_of(name) >= own, f"import of {name}, which is in a layer above"

    def test_every_module_is_in_one_layer(self):
        assert [name_of(path) for path in PYTHON if layer_of(module_of(path)) < 0] == []

    def test_modules_have_no_circle(self):
        graph = {module_of(path): modules_among(imports_of(path)) - {module_of(path)} for path in PYTHON}
        graph = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
        assert cycle_in(graph) == []

    def test_few_modules_lie_at_the_top(self):
        assert len(list(PACKAGE.glob("*.py"))) <= TOP_MODULES_MAX


class TestEngine:
    def test_manifest_is_a_map(self):
        lines = (PACKAGE / "_core.pyx").read_text().splitlines()
        assert len(lines) <= MANIFEST_LINES_MAX

    @pytest.mark.parametrize("path", ENGINE, ids=name_of)
    def test_functions_without_the_gil_say_how_they_fail(self, path):
        for signature in INLINE_SIGNATURE.findall(path.read_text()):
            assert "nogil" not in signature or re.search(r"\bnoexcept\b", signature), signature

    def test_every_header_has_its_declarations(self):
        for header in (PACKAGE / "core").glob("*.h"):
            assert header.with_suffix(".pxd").exists(), name_of(header)


class TestWords:
    """The words of code, comments and docs: what they point to is in the repository."""

    def test_no_tag_points_outside_the_repository(self):
        tag = re.compile(r"\bK\d+\.\d+\b|\(K\d+\b|\btest_k\d+_\d+\w*")
        found = [
            f"{name_of(path)}: {', '.join(tags)}" for path in [*SOURCES, *PAGES] if (tags := tag.findall(path.read_text()))
        ]
        assert not found, "\n".join(found)

    @pytest.mark.parametrize("path", SOURCES, ids=name_of)
    def test_no_refused_word(self, path):
        text = path.read_text()
        for phrase in ALLOWED_WORDS.get(name_of(path), []):
            text = text.replace(phrase, "")
        found = [
            f"{name_of(path)}:{number}: {match[0]!r}: {instead}"
            for number, line in enumerate(text.splitlines(), 1)
            for words, instead in REFUSED_WORDS.items()
            for match in re.finditer(rf"\b(?:{words})\b", line, re.IGNORECASE)
            if not match[0].isupper()
        ]
        assert not found, "\n".join(found)

    def test_sections_that_are_named_exist(self):
        """Code names a section as "docs/kernel.md, races of truncation"."""
        titles = re.findall(r"^##+ (?:[\d.]+ )?(.*)$", (ROOT / "docs/kernel.md").read_text(), re.MULTILINE)
        known = {title.lower() for title in titles}
        named = [
            (name_of(path), title)
            for path in SOURCES
            for title in re.findall(r"^The rules: docs/kernel\.md, (.*)\.$", path.read_text(), re.MULTILINE)
        ]
        assert len(named) > 20
        assert [place for place in named if place[1] not in known] == []


class TestPublicNames:
    def test_all_exist(self):
        assert [name for name in pagecache.__all__ if not hasattr(pagecache, name)] == []

    def test_all_are_documented(self):
        described = (type, type(pagecache))
        for name in pagecache.__all__:
            value = getattr(pagecache, name)
            if isinstance(value, described) or callable(value):
                assert (inspect.getdoc(value) or "").strip(), f"pagecache.{name} has no docstring"

    @pytest.mark.parametrize(("name", "has"), [("live", "ask"), ("prefetch", "Prefetch")])
    def test_moved_modules_are_found_where_they_were_documented(self, name, has):
        with pytest.warns(DeprecationWarning, match=f"pagecache.{name} is pagecache"):
            module = getattr(pagecache, name)
        assert hasattr(module, has)

    def test_a_name_that_there_never_was_is_none(self):
        with pytest.raises(AttributeError, match="has no attribute 'open'"):
            _ = pagecache.open

    def test_module_says_what_it_is(self):
        assert pagecache.__doc__


def test_findings_are_listed_and_can_be_run():
    """Each script of findings/ has a row of its README, and says its exit status; none imports the package."""
    scripts = sorted((ROOT / "findings").glob("*.sh"))
    assert [f"`{path.name}`" for path in scripts] == re.findall(
        r"^\| (`\w+\.sh`) \|", (ROOT / "findings/README.md").read_text(), re.M
    )
    for path in scripts:
        assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
        assert "Exits 0" in path.read_text(), f"{path.name} does not say what its exit status means"
        assert not re.search(r"import pagecache|install .*pagecache", path.read_text()), path.name


def test_no_generated_file_is_tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    git = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
    tracked = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    by_hand = ("docs/", "bench/anchors/", "bench/fuse/passthrough.c", "tests/models/", "tests/support/c_api_probe.c")
    suspects = [name for name in tracked if not name.startswith(by_hand)]
    assert [name for name in suspects if Path(name).suffix in GENERATED_SUFFIXES] == []
    assert [name for name in tracked if name.startswith(("build/", "dist/", ".venv/", "bench/results/20"))] == []
