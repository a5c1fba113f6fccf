"""`make bench ONLY=NAME ARGS=...` and `make bench-list`: the index of the benchmarks.

    PYTHONPATH=build/lib-release:.:tests python -P -m bench                    lists them
    PYTHONPATH=build/lib-release:.:tests python -P -m bench stores.remote ...  runs one, with its own arguments
"""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def benchmarks() -> dict[str, Path]:
    """Return every program below this directory, by name."""
    found = {}
    for path in sorted(HERE.rglob("*.py")):
        if path == Path(__file__).resolve() or 'if __name__ == "__main__":' not in path.read_text():
            continue
        parts = path.relative_to(HERE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__main__" else parts)] = path
    return found


def named(name: str) -> str | None:
    """Return the whole name of a benchmark: of `remote`, if there is one of that name, `stores.remote`."""
    found = [whole for whole in benchmarks() if name in (whole, whole.rpartition(".")[2])]
    return found[0] if len(found) == 1 else None


def purpose_of(path: Path) -> str:
    """Return the first line of a program's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def main(words: list[str]) -> int:
    """List the benchmarks, or run the one that is named. Returns the exit status."""
    if not words:
        for name, path in benchmarks().items():
            print(f"  {name:28}{purpose_of(path)}")
        return 0
    name = named(words[0])
    if name is None:
        print(f"there is no benchmark {words[0]!r}: make bench-list", file=sys.stderr)
        return 2
    sys.argv[1:] = words[1:]
    runpy.run_module(f"bench.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
