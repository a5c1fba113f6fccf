"""What is remembered of a descriptor without a reference is believed only if all of the descriptor says the same."""

import ctypes

import pytest
from support import PAGE, Store, pages_of

from pagecache._core import Segment

FOLIOS_OFFSET_AT = 40  # in the header: magic, version, total bytes, offsets of mappings, buckets, nodes and folios
FOLIO_BYTES, SEQ_AT = 64, 8
NODES_MAX = (1 << 30) // 5 - 205 + 1


def seqs(segment):
    """The sequence counters of all descriptors, as they lie in memory."""
    folios = segment.base_address + ctypes.c_uint64.from_address(segment.base_address + FOLIOS_OFFSET_AT).value
    return [ctypes.c_uint32.from_address(folios + frame * FOLIO_BYTES + SEQ_AT) for frame in range(segment.nr_frames)]


@pytest.mark.parametrize("way", ["read", "readline"])
@pytest.mark.parametrize("other", ["another object", "another page"])
def test_a_position_s_folio_is_looked_at_again_when_its_counter_has_come_round(make_cache, way, other):
    """After 2**31 removals the frame's counter is what it was; here it is set."""
    cache = make_cache(PAGE)
    data = pages_of(4 * PAGE).replace(b"\n", b"\r")
    data = b"\n".join(data[at : at + 99] for at in range(0, len(data), 100))
    with cache.open(Store(data)) as file, cache.open(Store(b"\n" * len(data), key="other")) as beside:
        read = {"read": lambda: file.read(8), "readline": file.readline}[way]
        file.fadvise(1)  # one page at a time
        beside.pread(1, 0)
        cache.drop_caches()
        first = read()
        assert data.startswith(first)
        counters = seqs(cache.segment)
        before = [counter.value for counter in counters]
        cache.drop_caches()
        (beside if other == "another object" else file).pread(1, 0 if other == "another object" else PAGE)
        assert counters[0].value > before[0]
        counters[0].value = before[0]
        expected = data[len(first) :]
        assert expected.startswith(read())


def test_an_index_has_as_many_nodes_as_its_entries_can_name():
    assert Segment._nr_nodes_for(1024) == 9216
    assert Segment._nr_nodes_for(1 << 28) == NODES_MAX
    assert Segment._nr_nodes_for((1 << 28) - (1 << 17)) == NODES_MAX
