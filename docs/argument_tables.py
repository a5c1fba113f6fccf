"""Renders the arguments of the API reference as tables, from signatures and from docstrings that say "name: what it is."

A docstring names arguments at the beginning of a paragraph or sentence, several of one meaning with commas between them;
the meaning lasts until the next name, the end of the paragraph, or a sentence that begins with Returns, Raises or Context.
What is left of the text stands before the table; what it returns and raises, and its context, come after it.
"""

import re
from typing import Any

import griffe

OUTCOMES = ("Returns", "Return", "Raises", "Context")
OUTCOME = re.compile(rf"(?:^|(?<=[.;] )|(?<=\.\n))(?=(?:{'|'.join(OUTCOMES)}):? )", re.MULTILINE)
INTRODUCTION = re.compile(r"\A.*?(?:\n[ \t]*\n|\Z)", re.DOTALL)  # the first paragraph: what it does, or returns


def meanings_of(text: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """Return a text without what it says of arguments, and that by name. names: of the arguments."""
    if not names:
        return text, {}
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    label = re.compile(rf"(?:^|(?<=[.;?)] )|(?<=[.;]\n))((?:{either})(?:, (?:{either}))*): ", re.MULTILINE)
    left, found = [], {}
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if "::" in paragraph.split("\n")[0] or paragraph.startswith("    "):
            left.append(paragraph)
            continue
        parts = label.split(paragraph)
        kept = [parts[0]]
        for group, meaning in zip(parts[1::2], parts[2::2], strict=True):
            meaning, *after = OUTCOME.split(meaning, maxsplit=1)
            kept += after
            for name in group.split(", "):
                found[name] = " ".join(meaning.split()).rstrip(".;").removeprefix("and ")
        left.append(" ".join(part.strip() for part in kept if part.strip()))
    return "\n\n".join(part for part in left if part), found


def cell(text: str) -> str:
    """Return a text as a table's cell may hold it."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: Any) -> str:
    """Return code as a table's cell may hold it: a bar is not one of the table's."""
    return f"<code>{str(text).replace('&', '&amp;').replace('<', '&lt;').replace('|', '&#124;')}</code>" if text else ""


def table_of(parameters: list[griffe.Parameter], found: dict[str, str]) -> str:
    """Return a table of arguments in Markdown, with meanings if any argument has one."""
    rows = [["argument", "type", "default", "meaning"], ["---"] * 4]
    for each in parameters:
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(each.kind, "")
        default = "" if stars or each.required else code(each.default)
        rows.append([code(stars + each.name), code(each.annotation), default, cell(found.get(each.name, ""))])
    return "\n".join(f"| {' | '.join(row if found else row[:3])} |" for row in rows)


def with_table(text: str, parameters: list[griffe.Parameter]) -> str:
    """Return a docstring in Markdown whose arguments are a table."""
    shown = [each for each in parameters if each.name not in ("self", "cls") and not each.name.startswith("_")]
    if not shown:
        return text
    text, found = meanings_of(text, [each.name for each in shown])
    introduction = (INTRODUCTION.match(text) or [""])[0]
    before, *outcomes = OUTCOME.split(text[len(introduction) :])
    return "\n\n".join(part.strip() for part in (introduction, before, table_of(shown, found), *outcomes) if part.strip())


class ArgumentTables(griffe.Extension):
    """Puts a table into the docstring of each function, and of each class that is made with arguments."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go over everything that the package defines itself."""
        self._visit(pkg)

    def _visit(self, item: Any) -> None:
        for member in list(item.members.values()):
            if member.is_alias:
                continue
            if member.is_function:
                self._describe(member, member)
            elif member.is_class or member.is_module:
                if member.is_class:
                    self._describe(member, member.members.get("__init__"))
                self._visit(member)

    @staticmethod
    def _describe(item: Any, called: Any) -> None:
        if item.docstring is not None and called is not None and not called.is_alias and called.is_function:
            item.docstring.value = with_table(item.docstring.value, list(called.parameters))
