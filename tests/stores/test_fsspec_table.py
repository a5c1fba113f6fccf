"""docs/libraries/fsspec-threads.md says of every file system that fsspec knows what the code does with it."""

import re

import pytest
from support import ROOT

from pagecache.stores import fsspec_kinds as kinds

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
from fsspec.registry import known_implementations  # noqa: E402

PAGE = ROOT / "docs/libraries/fsspec-threads.md"
WRITTEN_FOR = "2026.9.0"  # the fsspec whose names the page has
ROW = re.compile(r"\| (`[^|]*`) \| (?:`([^`|]*)`)? ?\| ([^|]*) ?\| ([^|]*) \| ([^|]*) \|\n")
ANY, OWN, CALLERS = "by any thread", "own instance", "by its callers"


def rows():
    """Return {names: (class, whether it is for threads, why, how it is called)}."""
    return {
        tuple(re.findall(r"`([^`]+)`", names)): (kind or "", safe.strip(), why, called)
        for names, kind, safe, why, called in ROW.findall(PAGE.read_text())
    }


ROWS = rows()


def test_every_name_is_there_once():
    names = [name for names in ROWS for name in names]
    assert len(names) == len(set(names))
    if fsspec.__version__ == WRITTEN_FOR:
        assert set(names) <= set(known_implementations)
        theirs = {name for name, entry in known_implementations.items() if entry["class"].startswith("fsspec.")}
        assert theirs <= set(names)


def test_those_that_are_called_by_any_thread_are_the_list_and_asynchronous_ones():
    listed = {kind for kind, _, why, called in ROWS.values() if called == ANY and why != "asynchronous"}
    assert listed | {kinds.ARROW} == set(kinds.THREAD_SAFE)


def test_those_that_are_made_anew_are_the_list():
    assert {kind for kind, _, _, called in ROWS.values() if called == OWN} == set(kinds.REMADE)


def test_what_is_said_of_threads_is_what_is_done():
    for names, (_, safe, why, called) in ROWS.items():
        assert why, names
        if called == ANY:
            assert safe == "yes", names
        elif called in (OWN, CALLERS):
            assert safe in ("no", "unknown"), names


@pytest.mark.parametrize("names", ROWS, ids=", ".join)
def test_classes_that_are_installed_are_as_the_page_says(names):
    kind, _, why, called = ROWS[names]
    for name in names:
        try:
            found = fsspec.get_filesystem_class(name)
        except (ImportError, AttributeError, ValueError) as error:
            pytest.skip(f"{name} cannot be imported: {error}")
        is_plain_gcs = kinds.name_of(found) == "gcsfs.core.GCSFileSystem"  # GcsServer has gcsfs leave its extension out
        assert kinds.name_of(found) == kind or (is_plain_gcs and "gcs" in names)
        is_asynchronous = why == "asynchronous"
        assert is_asynchronous == (kinds.is_safe_kind(found) and kind not in kinds.THREAD_SAFE)
        assert kinds.is_safe_kind(found) == (called == ANY)
        assert kinds.may_be_own(found) == (called == OWN or kind == kinds.DIRECTORY)
