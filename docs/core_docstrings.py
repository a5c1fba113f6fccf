"""Gives the API reference the docstrings of the compiled module, whose stub file has none: from the Cython sources, so
that nothing has to be built for it."""

import inspect
import re
from pathlib import Path
from typing import Any

import griffe

PARTS = Path(__file__).resolve().parent.parent / "pagecache" / "parts"
CLASS = re.compile(r"^cdef class (\w+)")
METHOD = re.compile(r"^    def (\w+)\(")
DOCSTRING = re.compile(r'\s*"""(.*?)"""', re.DOTALL)
VERBS = {"Reads ": "Read ", "Writes ": "Write ", "Returns ": "Return ", "Moves ": "Move ", "Shows ": "Show "}


def docstrings_of(text: str) -> dict[str, str]:
    """Return the docstrings of the methods of the classes of a Cython file, by "Class.method"."""
    found, class_name, position = {}, "", 0
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        position += len(line)
        if match := CLASS.match(line):
            class_name = match[1]
        elif match := METHOD.match(line):
            name, after = match[1], position
            while not lines[number].rstrip().endswith(":"):
                number += 1
                after += len(lines[number])
            if docstring := DOCSTRING.match(text, after):
                found[f"{class_name}.{name}"] = inspect.cleandoc(docstring[1])
    return found


class CoreDocstrings(griffe.Extension):
    """Adds what is missing to the classes of `pagecache._core`."""

    def __init__(self) -> None:
        self.docstrings: dict[str, str] = {}
        for path in sorted(PARTS.glob("*.pxi")):
            self.docstrings.update(docstrings_of(path.read_text()))

    def on_function_instance(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Give a function its docstring, in the imperative that the rest of the reference has."""
        text = self.docstrings.get(".".join(func.path.split(".")[-2:]))
        if func.path.startswith("pagecache._core.") and func.docstring is None and text:
            for verb, imperative in VERBS.items():
                if text.startswith(verb):
                    text = imperative + text[len(verb) :]
            func.docstring = griffe.Docstring(text, parent=func)
