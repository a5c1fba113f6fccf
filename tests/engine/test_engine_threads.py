"""The engine under threads without the GIL: every word that a reader sees may be there, and nothing is lost."""

import os

import pytest
from support import STRESS

engine_threads = pytest.importorskip("_engine_threads", reason="built only in the lanes check, asan and tsan")

NR_FILES = 2
NR_STEPS = 50_000 if STRESS else 5_000  # of each thread

pytestmark = pytest.mark.stress


@pytest.fixture
def descriptors(tmp_path):
    """Descriptors of empty files."""
    made = [os.open(tmp_path / f"file-{number}", os.O_RDWR | os.O_CREAT) for number in range(NR_FILES)]
    yield made
    for descriptor in made:
        os.close(descriptor)


@pytest.mark.parametrize("faults", [False, True], ids=["sound", "failing write-back"])
@pytest.mark.parametrize("nr_threads", [4, 8])
@pytest.mark.parametrize("nr_frames", [48, 256, 1100], ids="frames={}".format)  # few; half of all; with kswapd
def test_threads_see_only_what_may_be_there(descriptors, nr_frames, nr_threads, faults, seed):
    counts = engine_threads.run(descriptors, nr_frames, nr_threads, NR_STEPS, seed % 2**32, faults)
    assert sum(counts.values()) == nr_threads * NR_STEPS
    assert min(counts.values()) > 0


@pytest.mark.parametrize("nr_frames", [1, 2, 3, 64], ids="frames={}".format)
@pytest.mark.parametrize("policy", engine_threads.POLICIES)
def test_every_policy_keeps_its_lists_while_folios_leave_otherwise(descriptors, nr_frames, policy, seed):
    """Removal, truncation and splits take folios that the policy is moving between its lists."""
    counts = engine_threads.run(descriptors, nr_frames, 4, NR_STEPS, seed % 2**32, False, policy=policy)
    assert sum(counts.values()) == 4 * NR_STEPS


@pytest.mark.parametrize("policy", engine_threads.POLICIES)
def test_every_policy_keeps_its_lists_while_the_same_pages_come_and_go(descriptors, policy, seed):
    """Few pages more than frames, read again and again: folios are on the move all the time."""
    counts = engine_threads.run(descriptors, 24, 4, 2 * NR_STEPS, seed % 2**32, False, 40, policy)
    assert counts["read"] > 0 and counts["evict"] > 0


@pytest.mark.parametrize("nr_threads", [2, 4])
def test_no_read_takes_the_zeros_of_a_truncation_for_what_is_written_there_since(descriptors, nr_threads, seed):
    """The size is the same before the read and after it."""
    assert min(engine_threads.run_cuts(descriptors, nr_threads, 100 * NR_STEPS, seed % 2**32)) > 0


@pytest.mark.parametrize(("m", "page", "nr_valid"), [(0, 0, 1), (0, 3, 0), (1, 0, 0)], ids=["same", "page", "file"])
def test_a_reader_of_many_pages_copies_none_that_came_into_the_frame_since(descriptors, m, page, nr_valid):
    assert engine_threads.pages_valid_after_reuse(descriptors, m, page) == nr_valid


@pytest.mark.parametrize(("what", "is_valid"), [("nothing", True), ("write", False), ("removal", False)])
def test_a_line_counts_if_its_page_is_what_it_was_when_the_end_was_looked_for(descriptors, what, is_valid):
    assert engine_threads.line_valid_after(descriptors, what) == is_valid
