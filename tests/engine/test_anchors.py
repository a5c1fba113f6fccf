"""The anchors: what can be compiled finds what was put in, and the page compares the right numbers."""

import shutil
import sys

import pytest
from support import ROOT

NR_PAGES = 4096

sys.path.append(str(ROOT))
from bench.anchors import anchor, build, table  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What can be compiled here."""
    return build.build(tmp_path_factory.mktemp("anchors"))


def rounds(**cells):
    """Return a run: name__operation=(one thread, two threads), on random pages."""
    ns = {}
    for key, numbers in cells.items():
        name, operation = key.split("__")
        names = {"ours": table.OURS, "radix": table.RADIX, "clock": table.HYPER_CLOCK}
        operations = {"lookup": anchor.LOOKUP, "pin": anchor.PIN, "copy": "copy of 64 bytes"}
        for nr_threads, each in enumerate(numbers, 1):
            for hot in (False, True):
                ns[table.Cell(names[name], operations[operation], hot, nr_threads)] = [each]
    return table.Rounds(ns, ns)


@pytest.mark.parametrize("source", build.SOURCES, ids=lambda source: source.name)
def test_every_anchor_finds_what_was_put_in(source, built):
    if source.name in built.missing:
        pytest.skip(built.missing[source.name])
    opened = anchor.Library(source.name, built.paths[source.name], NR_PAGES)
    for operation in opened.operations:
        for hot in (False, True):
            for nr_threads in (1, 2):
                elapsed_ns, cpu_ns = opened.run(operation, nr_threads, hot, NR_PAGES + 100)
                assert elapsed_ns > 0
                assert cpu_ns > 0


def test_the_bare_walk_needs_a_compiler_only(built):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert build.SOURCES[0].name in built.paths


def test_what_is_found_wrong_is_no_result(built):
    if build.SOURCES[0].name not in built.paths:
        pytest.skip(built.missing[build.SOURCES[0].name])
    opened = anchor.Library("radix", built.paths[build.SOURCES[0].name], NR_PAGES)
    opened.sums[-1] += 1
    with pytest.raises(RuntimeError, match="something else than what was put in"):
        opened.run(anchor.LOOKUP, 1, False, NR_PAGES)


def test_a_missing_library_is_listed_with_the_package_to_install(tmp_path):
    source = build.Source("nothing", "radix.c", ("no_such_library_anywhere",), "libnothing-dev")
    found = build.build(tmp_path, (source,))
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert found.paths == {}
    assert "libnothing-dev" in found.missing["nothing"]
    assert "no_such_library_anywhere" in found.missing["nothing"]


def test_goals_compare_one_thread_and_throughput_of_two():
    one = rounds(ours__lookup=(4.0, 2.5), radix__lookup=(1.0, 0.5), ours__pin=(30.0, 15.0), clock__pin=(100.0, 50.0),
                 ours__copy=(40.0, 20.0))  # fmt: skip
    text = table.page([one, one], {"absent": "apt install it"}, 65536)
    for row in (
        "lookup, random pages | bare radix walk, pointers | 4.00 | 4.00 | 4.00 | 4.00, 4.00 | <= 4.0 | yes",
        "lookup+pin+unpin, random pages | RocksDB HyperClockCache | 0.30 | 0.30 | 0.30 | 0.30, 0.30 | <= 0.25 | no",
        "lookup, random pages, 2 threads | 1 thread | 1.60 | 1.60 | 3.20 | 1.60, 1.60 | >= 1.9 | no",
        "copy of 64 bytes, random pages, 2 threads | 1 thread | 2.00 | 2.00 | 4.00 | 2.00, 2.00 | >= 1.9 | yes",
    ):
        assert f"| {row} |" in text
    assert "* absent: apt install it" in text
