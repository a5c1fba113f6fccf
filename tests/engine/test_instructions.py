"""The hit path takes as many instructions as were recorded: what makes it slower fails here, whatever the machine does
beside."""

import shutil
import sys

import pytest
from support import instruction_counts

NR_TRIES = 3

pytestmark = pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts are recorded on Linux")
def test_hit_path_takes_as_many_instructions_as_were_recorded():
    recorded = instruction_counts.recorded().get(instruction_counts.key())
    if recorded is None:
        pytest.skip(f"nothing recorded for {instruction_counts.key()}: tests/support/instruction_counts.py --record")
    for _ in range(NR_TRIES):  # the cache's own threads may be at work in one
        differences = instruction_counts.compare(instruction_counts.count(), recorded)
        if not differences:
            return
    assert not differences, "; ".join(differences) + " (if it has to be: tests/support/instruction_counts.py --record)"
