"""The extension modules of pagecache and the ways to build them.

`pip install .` builds the release. In a checkout, `python setup.py build_mode` builds in the mode named
by PAGECACHE_MODE:

    release   -O3: what users get; the demo and the benchmarks
    check     -O2 with the engine's assertions: what the tests run against
    debug     -O1 -g with assertions and the lines of the .pyx files, for a debugger
    asan      the assertions under AddressSanitizer and UndefinedBehaviorSanitizer
    tsan      the assertions under ThreadSanitizer
    portable  as check, without anything that only Linux or x86 has (tests/support/portable.h)
    annotate  as release, and Cython's HTML report in build/cython-annotate

`python setup.py sdist` makes the same archive of the same files, whenever and by whom it is made.

A build mode has the directory build/lib-MODE: the compiled module and links to the Python sources, so that modes never
meet and edited Python files need no build. PYTHONPATH chooses one. With PAGECACHE_BENCH=1 it also holds `_microbench`,
the benchmarks' own extension; in the modes check, asan and tsan `_engine_threads`, the tests' own. Makefile has a target
for each of these.
"""

import fcntl
import gzip
import io
import os
import sys
import sysconfig
import tarfile
from pathlib import Path

import Cython
from Cython.Build import cythonize
from Cython.Compiler.Errors import CompileError
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CCompilerError, ExecError

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("PAGECACHE_MODE", "release")

CHECKS = ["-DPAGECACHE_CHECKS=1", "-UNDEBUG"]
TRACEABLE = ["-O1", "-g", "-fno-omit-frame-pointer"]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
THREAD = ["-fsanitize=thread"]
POSIX_ONLY = ["-include", "tests/support/portable.h"]
FENCED = ["-Wno-tsan"]  # ThreadSanitizer knows no fences; the engine does without what depends on them there

UNCHECKED = ["-O3", "-g0", "-DNDEBUG", "-Wno-unused-but-set-variable"]  # some variables are set for an assertion only

MODES = {  # mode: (compiler flags, linker flags)
    "release": (UNCHECKED, []),
    "check": (["-O2", *CHECKS], []),
    "debug": ([*TRACEABLE, *CHECKS], []),
    "asan": ([*TRACEABLE, *CHECKS, *ADDRESS], ADDRESS),
    "tsan": ([*TRACEABLE, *CHECKS, *THREAD, *FENCED], THREAD),
    "portable": (["-O2", *CHECKS, *POSIX_ONLY], []),
    "annotate": (UNCHECKED, []),
}

NO_COMPILER = "pagecache-engine has no wheel for this system, and building it needs a C compiler (Debian: apt install gcc)"

WITH_ENGINE_THREADS = ("check", "asan", "tsan")  # the build modes in which the tests drive the engine from C threads
EXTRA_FLAGS = {"_engine_threads": ["-DPAGECACHE_RACE_POINTS=1"]}

EVERY_MODE = [
    "-pthread",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # What Cython's own output provokes, and says nothing about our code.
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    "-Wno-unreachable-code",
    "-Wno-missing-field-initializers",
    "-Wno-cast-function-type",
    "-Wno-sign-compare",
]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}


def extensions() -> list[Extension]:
    """Return the extension modules of this build, with the flags of its mode."""
    if MODE not in MODES:
        raise SystemExit(f"PAGECACHE_MODE is {MODE!r}; it must be one of {', '.join(MODES)}")
    compiler_flags, linker_flags = MODES[MODE]
    sources = {"pagecache._core": "pagecache/_core.pyx"}
    if os.environ.get("PAGECACHE_BENCH") == "1":
        sources["_microbench"] = "bench/hits/_microbench.pyx"
    if MODE in WITH_ENGINE_THREADS:
        sources["_engine_threads"] = "tests/engine/engine_threads/_engine_threads.pyx"
    return [
        Extension(
            name,
            [source],
            include_dirs=["pagecache", "pagecache/include"],
            define_macros=[("PAGECACHE_BUILDS_TABLE", None)],  # what other modules look for, this one has
            depends=engine_files(),
            extra_compile_args=EVERY_MODE + compiler_flags + EXTRA_FLAGS.get(name, []),
            extra_link_args=["-pthread", *linker_flags],
        )
        for name, source in sources.items()
    ]


def refuse_32_bits() -> None:
    """Raise SystemExit where pointers have 32 bits: a segment of virtual memory does not fit."""
    if sys.maxsize <= 2**32:
        raise SystemExit("pagecache-engine needs a 64-bit Python: its segment takes more addresses than 32 bits have")


def engine_files() -> list[str]:
    """Return the files that the extensions are made of besides their .pyx: a touched one rebuilds them."""
    patterns = ["*.pxd", "core/*.pxd", "core/*.h", "include/*.h", "parts/*.pxi"]
    found = [path for pattern in patterns for path in (ROOT / "pagecache").glob(pattern)]
    found += (ROOT / "tests" / "engine" / "engine_threads").glob("*.pxi")
    return sorted(str(path.relative_to(ROOT)) for path in found)


def record(stamp: Path, settings: list) -> Path:
    """Write `settings` to `stamp` unless they are there already: what is older than a stamp was built otherwise."""
    text = "\n".join(map(str, settings))
    if not stamp.exists() or stamp.read_text() != text:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(text)
    return stamp


class Build(build_ext):
    """Translates each .pyx file to C under build/ (never beside the sources), then compiles it."""

    def build_extension(self, extension: Extension) -> None:
        """Translate and compile one extension, whatever of it is out of date."""
        suffix = {"debug": "-debug", "annotate": "-annotate"}.get(MODE, "")
        directory = Path("build") / f"cython{suffix}"
        generated = (directory / extension.sources[0]).with_suffix(".c")
        stamp = record(directory / f"{extension.name}.settings", [Cython.__version__, DIRECTIVES])
        try:
            [translated] = cythonize(
                [extension],
                build_dir=str(directory),
                compiler_directives=DIRECTIVES,
                emit_linenums=MODE == "debug",
                annotate=MODE == "annotate",
                include_path=["."],
                force=generated.exists() and generated.stat().st_mtime < stamp.stat().st_mtime,
            )
        except CompileError as error:  # Cython has printed where and why
            raise SystemExit(f"{extension.sources[0]} cannot be translated to C") from error
        extension.sources = translated.sources
        try:
            super().build_extension(extension)
        except (CCompilerError, ExecError) as error:
            if isinstance(error.__cause__, ExecError) or isinstance(error, ExecError) or "No such file" in str(error):
                raise SystemExit(NO_COMPILER) from error
            raise


class BuildMode(Build):
    """Builds the extensions and links the Python sources beside them into build/lib-MODE."""

    description = "build the build mode named by PAGECACHE_MODE into build/lib-MODE"

    def finalize_options(self) -> None:
        """Keep what belongs to one mode and one Python apart from the others."""
        self.build_lib = str(Path("build") / f"lib-{MODE}")
        self.build_temp = str(Path("build") / f"temp-{MODE}-{sysconfig.get_config_var('SOABI')}")
        super().finalize_options()
        stamp = record(Path(self.build_temp) / "settings", [sys.version, EVERY_MODE, MODES[MODE]])
        for extension in self.extensions:
            extension.depends = [*extension.depends, str(stamp)]

    def run(self) -> None:
        """Build, then link."""
        super().run()
        self.link_sources(Path(self.build_lib) / "pagecache")

    @staticmethod
    def link_sources(package: Path) -> None:
        """Make `package` show exactly the files of the source package, and the modules built for it."""
        package.mkdir(parents=True, exist_ok=True)
        for link in package.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()
        for source in (ROOT / "pagecache").iterdir():
            link = package / source.name
            if source.suffix != ".so" and source.name != "__pycache__" and not link.is_symlink():
                link.symlink_to(os.path.relpath(source, package))


class SourceArchive(sdist):
    """Makes an archive that depends on its files alone: sorted, of one owner, with one time (SOURCE_DATE_EPOCH, or 0)."""

    def make_archive(self, base_name: str, format: str, **options: object) -> str:  # the name that setuptools calls
        """Write BASE_NAME.tar.gz. Returns its path."""
        if format != "gztar":
            return super().make_archive(base_name, format, **options)
        seconds = int(os.environ.get("SOURCE_DATE_EPOCH", 0))
        root, name = Path(str(options.get("root_dir") or ".")), str(options["base_dir"])
        path = Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "wb") as raw,
            gzip.GzipFile("", "wb", mtime=seconds, fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as archive,
        ):
            for member in sorted(root.joinpath(name).rglob("*")):
                entry = archive.gettarinfo(str(member), str(member.relative_to(root)))
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                entry.mtime = seconds
                entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
                content = member.read_bytes() if entry.isreg() else b""
                archive.addfile(entry, io.BytesIO(content))
        return str(path)


def main() -> None:
    """Run setuptools; two builds in one tree wait for each other."""
    refuse_32_bits()
    directory = ROOT / "build"
    directory.mkdir(exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "build_mode": BuildMode, "sdist": SourceArchive})


main()
