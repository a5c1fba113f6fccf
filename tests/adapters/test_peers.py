"""The comparison with peers: what is timed reads the right bytes, and the page says what was measured."""

import json
import random
import sys

import pytest
from support import ROOT

BENCH = ROOT / "bench"
MIB = 1 << 20
SIZES = (64, 4096, 65536, MIB)

sys.path.append(str(ROOT))
from bench.peers import catalogue, chart, extra, goals, peer, report, runs, timing  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of random bytes."""
    directory = tmp_path_factory.mktemp("peers")
    path = directory / "data"
    path.write_bytes(random.Random(5).randbytes(4 * MIB))
    return peer.Data(path, directory)


class Wrong(peer.Peer):
    """A peer that forgets the offset."""

    name = "wrong"
    kind = "cache"

    def statements(self, nbytes):
        return ("stored[:nbytes]",)

    def names(self, nbytes):
        return {"stored": self.data.path.read_bytes()}


class Absent(peer.Peer):
    """A peer whose library is not installed."""

    name = "absent"
    kind = "cache"
    modules = ("no_such_library_anywhere",)


class Counting(peer.Peer):
    """A peer that notes every offset, in two statements that also use names a loop might use itself."""

    name = "counting"
    kind = "cache"

    def __init__(self, data):
        super().__init__(data)
        self.offsets = []

    def statements(self, nbytes):
        return ("seek(offset)", "read(nbytes)")

    def names(self, nbytes):
        return {"seek": self.offsets.append, "read": bytes, "loop": None, "offsets_read": None}


def run_of(names_and_ns, uncopied=(), kinds=None, missing=None):
    """Return a run with one round after the other for each name."""
    ns = {timing.Cell(name, 4096, 1): rounds for name, rounds in names_and_ns.items()}
    kinds = kinds or {name: "ours" if "pagecache" in name else "cache" for name in names_and_ns}
    return runs.Run(timing.Times(ns, {(name, 4096) for name in uncopied}), kinds, {}, missing or {})


@pytest.mark.parametrize("each", catalogue.PEERS, ids=lambda each: each.name)
def test_every_peer_reads_what_is_in_the_file(each, data, tmp_path, seed):
    if reason := each.missing():
        pytest.skip(reason)
    opened = each(peer.Data(data.path, tmp_path))
    try:
        peer.check_bytes(opened, SIZES, seed, reads=8)
        reader = peer.compiled(opened, 4096)
        reader.loop([0, 4096])
    finally:
        opened.close()


def test_fsspec_caches_fetch_nothing_once_they_are_filled(data, tmp_path, seed):
    pytest.importorskip("fsspec")
    from bench.peers import fsspec_caches

    for each in fsspec_caches.PEERS:
        opened = each(peer.Data(data.path, tmp_path))
        fetched = opened.fetched_bytes
        peer.check_bytes(opened, SIZES, seed, reads=8)
        assert opened.fetched_bytes == fetched, each.name
        opened.close()


def test_wrong_bytes_end_the_run(data):
    with pytest.raises(ValueError, match=r"wrong read wrong bytes: 4096 at offset \d+"):
        catalogue.open_all([Wrong], data, [4096], seed=1)


def test_a_missing_library_is_listed_and_the_others_are_opened(data):
    opened = catalogue.open_all([Absent, Counting], data, [], seed=1)
    assert list(opened.missing) == ["absent"]
    assert "no_such_library_anywhere" in opened.missing["absent"]
    assert [each.name for each in opened.peers] == ["counting"]


def test_our_own_failure_is_not_taken_for_a_missing_peer(data):
    class Broken(peer.Peer):
        name = "pagecache broken"
        kind = "ours"

        def __init__(self, data):
            raise TypeError("broken")

    with pytest.raises(TypeError, match="broken"):
        catalogue.open_all([Broken], data, [], seed=1)


def test_a_loop_visits_its_offsets_once_in_order(data):
    counting = Counting(data)
    peer.compiled(counting, 64).loop([128, 0, 64])
    assert counting.offsets == [128, 0, 64]


def test_every_round_has_every_cell_and_other_offsets(data):
    counting, other = Counting(data), Counting(data)
    other.name = "other"
    times = timing.measure([counting, other], [MIB], (1, 2), rounds=3)
    assert {(cell.peer, cell.nr_threads) for cell in times.ns} == {(n, t) for n in ("counting", "other") for t in (1, 2)}
    assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in times.ns.values())
    assert set(counting.offsets) == {0, MIB, 2 * MIB, 3 * MIB}


def test_the_time_of_two_threads_is_over_the_reads_of_both():
    ticks = iter(range(0, 1000, 100))
    assert timing.elapsed_ns([lambda offsets: None], [[0]], clock=lambda: next(ticks)) == 100
    spans = []

    def loop(offsets):
        spans.append(tuple(offsets))

    timing.elapsed_ns([loop, loop], [[1], [2]])
    assert sorted(spans) == [(1,), (2,)]
    seen = []
    ns = timing.read_ns([lambda offsets: seen.append(len(offsets))] * 2, [range(timing.OFFSETS_MAX)] * 2, 10, 0)
    assert seen == [10 * timing.THREADS_FACTOR] * 2
    assert ns > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_fails_gives_no_time():
    def fail(offsets):
        raise OSError("gone")

    with pytest.raises(RuntimeError, match="a thread that read has failed"):
        timing.elapsed_ns([fail, lambda offsets: None], [[0], [0]])


def test_stored_objects_are_distinguished_from_copies():
    stored = bytes(4096)
    offsets = [0, 4096, 8192]
    assert peer.hands_out_stored_objects(lambda offset: stored, offsets)
    assert not peer.hands_out_stored_objects(lambda offset: bytes(bytearray(stored)), offsets)
    assert peer.hands_out_stored_objects(lambda offset: memoryview(bytearray(stored)), offsets)
    assert not peer.hands_out_stored_objects(lambda offset: memoryview(bytes(bytearray(stored))), offsets)


def test_copies_are_compared_with_copies_and_views_with_what_copies_nothing():
    run = run_of(
        {
            "pagecache pread, large folios": [200.0, 210.0],
            "pagecache view, large folios": [90.0, 100.0],
            "copying": [400.0, 420.0],
            "slow": [900.0, 900.0],
            "handing out": [50.0, 50.0],
        },
        uncopied=["handing out", "pagecache view, large folios"],
    )
    found = {goal.ours.peer: goal for goal in goals.goals(runs.Runs([run]))}
    copy, view = found["pagecache pread, large folios"], found["pagecache view, large folios"]
    assert (copy.theirs.peer, copy.ratios, copy.met) == ("copying", [0.5], True)
    assert (view.theirs.peer, view.ratios, view.met) == ("handing out", [1.9], False)


def test_the_system_is_no_cache_to_be_beaten():
    names = {"pagecache pread, large folios": [200.0], "os.pread": [100.0], "copying": [400.0]}
    kinds = {"pagecache pread, large folios": "ours", "os.pread": "system", "copying": "cache"}
    [goal] = goals.goals(runs.Runs([run_of(names, kinds=kinds)]))
    assert goal.theirs.peer == "copying"


def test_runs_are_kept_and_make_one_report(tmp_path):
    path = tmp_path / "deep/runs.json"
    assert runs.load(path).runs == []
    both = runs.Runs([run_of({"pagecache pread, large folios": [each], "copying": [100.0]}) for each in (50.0, 90.0)])
    runs.save(path, both)
    again = runs.load(path)
    assert again == both
    assert json.loads(path.read_text())
    [goal] = goals.goals(again)
    assert goal.ratios == [0.5, 0.9]
    assert again.best(goal.ours) == 50
    assert again.median(goal.ours) == 70


def test_the_page_says_what_is_missing_and_what_copies_nothing():
    run = run_of(
        {"pagecache pread, large folios": [1234.4], "handing out": [50.0]}, ["handing out"], missing={"absent": "no such"}
    )
    text = report.page(runs.Runs([run]), 256 * MIB)
    assert "* absent: no such" in text
    assert "| pagecache pread, large folios | 1,234 |" in text
    assert "| handing out | 50° |" in text
    assert "python -m bench peers --write" in text
    assert "256 MiB" in text


def test_the_chart_is_small_and_shows_every_peer(tmp_path):
    pytest.importorskip("matplotlib")
    run = run_of({"pagecache pread, large folios": [200.0], "copying": [400.0], "handing out": [50.0]}, ["handing out"])
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    chart.draw(runs.Runs([run]), svg, png)
    text = svg.read_text()
    assert all(name in text for name in run.kinds)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_another_program_can_time_us(data):
    for name, make in extra.factory(str(data.path)).items():
        opened = make()
        read = opened()
        content = data.path.read_bytes()
        for nbytes in SIZES:
            assert bytes(read(MIB, nbytes)) == content[MIB : MIB + nbytes], name
