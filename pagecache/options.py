"""Unknown options are refused, with the name that was probably meant: an option is never swallowed."""

import difflib
import inspect
from collections.abc import Collection, Iterable

OF_OPEN = ("recheck", "on_change", "direct", "durability", "priority", "tenant")  # of `PageCache.open`
OF_URLS = ("whole_up_to", "thread_safe", "key_without", "timeout_s", "retries")  # more of them, for URLs
_OF_LIBRARIES = ("timeout",)  # what libraries take without naming it, and is not one of ours that was misspelled
_IS_MEANT = 0.6  # from what likeness on a name is offered
_IS_MISSPELLED = 0.86  # from what likeness on a name of another library's is taken for one of ours: "chek" is not


def unknown_option(name: str, known: Collection[str], owner: str, hint: str = "") -> TypeError:
    """Return the error for an option that its owner does not have: it names the nearest one, else all of them.

    owner: what was called, for the message. hint: what else to say, as a clause.
    """
    meant = difflib.get_close_matches(name, known, 1, _IS_MEANT)
    text = f"{owner} has no option {name!r}"
    if meant:
        text += f": did you mean {meant[0]!r}?"
    elif known and not hint:
        text += f": it has {', '.join(sorted(known))}"
    return TypeError(f"{text} ({hint})" if hint and meant else f"{text}: {hint}" if hint else text)


def check_options(given: Iterable[str], known: Collection[str], owner: str, hint: str = "") -> None:
    """Check that all options have names that are known. Raises TypeError, which names the nearest one."""
    for name in given:
        if name not in known:
            raise unknown_option(name, known, owner, hint)


def check_spelling(given: Iterable[str], ours: Collection[str], theirs: Collection[str], owner: str) -> None:
    """Check options that are passed on to a library which may take any: one that is all but one of ours is a mistake.

    ours: names that the caller knows. theirs: names that the library is known to have. Raises TypeError.
    """
    for name in given:
        is_known = name in ours or name in theirs or name in _OF_LIBRARIES
        if not is_known and difflib.get_close_matches(name, ours, 1, _IS_MISSPELLED):
            raise unknown_option(name, ours, owner)


def constructor_parameters(kind: type) -> set[str]:
    """Return the names of the arguments that a class and its bases take."""
    constructors = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}
