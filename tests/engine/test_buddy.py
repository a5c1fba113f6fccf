"""The allocator of page frames: blocks never overlap, are aligned, merge again, and run out only when they must."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PAGE, Crew, add_page, few

from pagecache._core import AddressSpace, Segment

MAX_ORDER = 9
FRAMES = st.one_of(st.sampled_from([1, 2, 3, 64, 511, 512, 513, 4096]), st.integers(1, 3000))


class Frames:
    """A model of a segment's frames: which are taken, and what the allocator must therefore answer."""

    def __init__(self, nr_frames):
        self.segment = Segment(nr_frames, nr_mappings=4, data=False)
        self.nr_frames = nr_frames
        self.taken = bytearray(nr_frames)
        self.folios = []

    def has_room(self, order):
        """Whether an aligned block of free frames exists: eager merging makes it one block."""
        size = 1 << order
        starts = range(0, self.nr_frames - size + 1, size)
        return any(not any(self.taken[start : start + size]) for start in starts)

    def alloc(self, order):
        folio = self.segment.alloc_folio(order)
        assert (folio is not None) == self.has_room(order), f"order {order}"
        if folio is None:
            return
        first, size = folio.frame, 1 << order
        assert folio.order == order
        assert folio.nr_pages == size
        assert first % size == 0
        assert first + size <= self.nr_frames
        assert not any(self.taken[first : first + size]), "two folios overlap"
        self.taken[first : first + size] = b"\1" * size
        self.folios.append(folio)

    def free(self, position):
        folio = self.folios.pop(position % len(self.folios))
        first, size = folio.frame, folio.nr_pages
        folio.put()
        self.taken[first : first + size] = bytes(size)

    def check_count(self):
        assert self.segment.counters()["nr_free_pages"] == self.nr_frames - sum(self.taken)

    def free_all(self):
        while self.folios:
            self.free(0)
        self.check_count()
        self.segment.check()


def aligned_blocks(nr_frames):
    """Return the orders of the fewest aligned blocks that make up so many frames."""
    orders, start = [], 0
    while start < nr_frames:
        order = MAX_ORDER
        while start % (1 << order) or start + (1 << order) > nr_frames:
            order -= 1
        orders.append(order)
        start += 1 << order
    return orders


@few(60)
@given(FRAMES, st.lists(st.tuples(st.booleans(), st.integers(0, MAX_ORDER), st.integers(0, 2**32)), max_size=80))
def test_any_allocations_and_frees_keep_blocks_apart_aligned_and_counted(nr_frames, steps):
    frames = Frames(nr_frames)
    for is_free, order, position in steps:
        if is_free and frames.folios:
            frames.free(position)
        else:
            frames.alloc(order)
        frames.check_count()
    frames.free_all()


@few(15)
@given(FRAMES, st.integers(0, MAX_ORDER), st.randoms(use_true_random=False))
def test_all_blocks_merge_back_whatever_the_order_of_frees(nr_frames, order, rng):
    frames = Frames(nr_frames)
    while frames.has_room(order):
        frames.alloc(order)
    frames.alloc(order)
    while frames.folios:
        frames.free(rng.randrange(2**32))
    for largest in sorted(aligned_blocks(nr_frames), reverse=True):
        frames.alloc(largest)
    assert frames.segment.counters()["nr_free_pages"] == 0
    frames.free_all()


@pytest.mark.parametrize("nr_frames", [1, 2, 3, 64, 1000, 4096])
def test_every_single_frame_can_be_had_once_and_then_there_is_none(nr_frames):
    frames = Frames(nr_frames)
    for _ in range(nr_frames):
        frames.alloc(0)
    assert len({folio.frame for folio in frames.folios}) == nr_frames
    for order in range(MAX_ORDER + 1):
        assert frames.segment.alloc_folio(order) is None
        assert frames.segment.alloc_folio(order, False) is None
    frames.free(0)
    frames.alloc(0)
    frames.free_all()


def test_a_block_is_not_made_of_frames_that_are_no_buddies():
    frames = Frames(4)
    for _ in range(4):
        frames.alloc(0)
    frames.folios.sort(key=lambda folio: folio.frame)
    frames.free(1)
    frames.free(1)
    assert frames.segment.alloc_folio(1) is None
    frames.free(0)
    frames.alloc(1)
    frames.free_all()


@pytest.mark.parametrize("order", range(MAX_ORDER + 1))
def test_a_freed_block_is_the_next_to_be_used(order):
    segment = Segment(4096, nr_mappings=4, data=False)
    folios = [segment.alloc_folio(order) for _ in range(4)]
    frame = folios[2].frame
    folios[2].put()
    assert segment.alloc_folio(order).frame == frame


@pytest.mark.parametrize("order", [10, 11, 31, 2**32 - 1])
def test_orders_that_do_not_exist_are_refused(order):
    with pytest.raises(ValueError, match="order"):
        Segment(4).alloc_folio(order)


@pytest.mark.parametrize("order", [-1, 2**32])
def test_orders_that_are_no_small_numbers_are_refused(order):
    with pytest.raises(OverflowError):
        Segment(4).alloc_folio(order)


def test_a_folio_that_was_put_is_unusable():
    folio = Segment(4).alloc_folio()
    folio.put()
    for use in (folio.put, folio.lock, folio.tobytes, lambda: folio.index):
        with pytest.raises(ValueError, match="dropped"):
            use()


def test_an_allocation_evicts_what_is_cached_and_clean():
    segment = Segment(8, nr_mappings=4)
    mapping = AddressSpace(segment)
    for index in range(8):
        folio = segment.alloc_folio()
        assert mapping.add_folio(folio, index) == 0
        folio.end_read(True)
    del folio
    assert segment.counters()["nr_free_pages"] == 0
    kept = [segment.alloc_folio() for _ in range(8)]
    assert None not in kept
    assert mapping.nrpages == 0
    assert segment.alloc_folio() is None
    del kept
    segment.check()


def test_threads_never_get_the_same_frame(seed):
    segment = Segment(256, nr_mappings=8)

    def work(number):
        rng = random.Random(seed + number)
        mine = bytes([number + 1])
        mapping = AddressSpace(segment, f"thread {number}")
        held = []
        for step in range(300):
            if len(held) < 12 and rng.random() < 0.6:
                order = rng.randrange(4)
                index = (step + 1) * 8
                add_page(mapping, index, mine * (PAGE << order), order)
                folio = mapping.get_folio(index)
                if folio is not None:
                    held.append(folio)
            elif held:
                folio = held.pop(rng.randrange(len(held)))
                assert folio.tobytes() == mine * (PAGE << folio.order)
                folio.put()

    Crew(*(lambda n=number: work(n) for number in range(6))).join_well()
    segment.check()
