"""Compiles the anchors whose libraries are installed: `python -P -m anchors.build`."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "build/anchors"
FLAGS = ("-O3", "-DNDEBUG", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra")

COMPLAINT = re.compile("error: |cannot find ")


@dataclass(frozen=True)
class Source:
    """A file to compile, and what it needs."""

    name: str
    file: str
    libraries: tuple[str, ...] = ()
    package: str = ""  # Debian's

    def command(self, output: Path) -> list[str]:
        """Return the compiler's arguments."""
        if self.file.endswith(".cpp"):
            compiler = [os.environ.get("CXX", "c++"), "-std=c++17"]
        else:
            compiler = [os.environ.get("CC", "cc")]
        links = [f"-l{library}" for library in self.libraries]
        return [*compiler, *FLAGS, str(HERE / self.file), "-o", str(output), *links]


SOURCES = (
    Source("bare radix walk, pointers", "radix.c"),
    Source("liburcu cds_lfht", "lfht.c", ("urcu-memb", "urcu-cds"), "liburcu-dev"),
    Source("Judy", "judy.c", ("Judy",), "libjudy-dev"),
    Source("TBB concurrent_hash_map", "tbb_hash_map.cpp", ("tbb",), "libtbb-dev"),
    Source("RocksDB HyperClockCache", "hyper_clock.cpp", ("rocksdb",), "librocksdb-dev"),
)


@dataclass
class Built:
    """Libraries by name of anchor, and why others are missing."""

    paths: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def build(output: Path = OUTPUT, sources: tuple[Source, ...] = SOURCES) -> Built:
    """Compile what can be compiled into `output`, unless it is there and newer than its source."""
    output.mkdir(parents=True, exist_ok=True)
    built = Built()
    for source in sources:
        path = (output / source.file).with_suffix(".so")
        reason = compiled(source, path)
        if reason:
            built.missing[source.name] = reason
        else:
            built.paths[source.name] = path
    return built


def compiled(source: Source, path: Path) -> str:
    """Compile one file; return why that is not possible, or nothing."""
    newest = max((HERE / name).stat().st_mtime for name in (source.file, "anchor.h"))
    if path.exists() and path.stat().st_mtime >= newest:
        return ""
    command = source.command(path)
    if shutil.which(command[0]) is None:
        return f"there is no {command[0]}"
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode == 0:
        return ""
    remedy = f"apt install {source.package}: " if source.package else ""
    return remedy + next((line for line in ran.stderr.splitlines() if COMPLAINT.search(line)), ran.stderr.strip()[:200])


def main() -> int:
    """Compile and say what was compiled; return 1 if something is missing."""
    built = build()
    for name, path in built.paths.items():
        print(f"{name}: {path}")
    for name, reason in built.missing.items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    return 1 if built.missing else 0


if __name__ == "__main__":
    sys.exit(main())
