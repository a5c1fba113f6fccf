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
