"""The sequence counter of a folio: a reader of it before a removal, replacement, split or write sees that afterwards.

Readers without locks depend on it, and so do the translations of maps.
"""

import pytest
from support import PAGE, add_page, pages_of

from pagecache import truncate
from pagecache._core import AddressSpace, Segment


@pytest.fixture
def mapping():
    """A mapping of eight pages, in one folio each, of a segment that is in order when the test ends."""
    segment = Segment(64, nr_mappings=4)
    mapping = AddressSpace(segment)
    mapping.size = 8 * PAGE
    for index in range(8):
        add_page(mapping, index, pages_of(PAGE, index * PAGE))
    yield mapping
    segment.check()


def locked(mapping, index):
    folio = mapping.get_folio(index)
    folio.lock()
    return folio


def remove_locked(mapping, folio):
    folio.lock()
    mapping.remove_folio(folio)
    folio.unlock()


def replace(mapping, folio):
    folio.lock()
    new = mapping.segment.alloc_folio()
    new.trylock()
    new.mark_uptodate()
    mapping.replace_folio(folio, new)
    new.unlock()
    new.put()
    folio.unlock()


def fail(mapping, folio):
    """A read that ends badly."""
    folio.lock()
    folio.clear_uptodate()
    batch = mapping.adopt(folio)
    batch.fail(OSError(5, "bad"))


REMOVALS_OF_A_HELD_FOLIO = {
    "remove_folio": remove_locked,
    "replace_folio": replace,
    "truncate": lambda mapping, folio: truncate.truncate_inode_pages(mapping, 0),
    "truncate a part": lambda mapping, folio: truncate.truncate_inode_pages(mapping, 3 * PAGE + 100),
    "invalidate2": lambda mapping, folio: truncate.invalidate_inode_pages2_range(mapping, 3, 3),
    "failed read": fail,
}


@pytest.mark.parametrize("name", REMOVALS_OF_A_HELD_FOLIO)
def test_every_removal_of_a_folio_that_is_held_changes_it(mapping, name):
    folio = mapping.get_folio(3)
    before = folio.seq
    REMOVALS_OF_A_HELD_FOLIO[name](mapping, folio)
    assert folio.mapping_number == 0
    assert folio.seq > before
    assert folio.seq % 2 == 0
    folio.put()


def remove_clean(mapping):
    folio = locked(mapping, 3)
    assert mapping.remove_clean(folio)


def drop_behind(mapping):
    with mapping.get_folio(3) as folio:
        folio.set_dropbehind()
    batch = mapping.get_read_batch(3, 3)
    batch.drop_behind()
    batch.release()


REMOVALS_OF_A_FREE_FOLIO = {
    "reclaim": lambda mapping: mapping.segment.reclaim(64),
    "invalidate": lambda mapping: truncate.invalidate_mapping_pages(mapping, 3, 3),
    "remove_clean": remove_clean,
    "drop_behind": drop_behind,
    "truncate": lambda mapping: truncate.truncate_inode_pages(mapping, 3 * PAGE),
}


@pytest.mark.parametrize("name", REMOVALS_OF_A_FREE_FOLIO)
def test_a_frame_that_is_used_again_has_another_one(mapping, name):
    with mapping.get_folio(3) as folio:
        frame, before = folio.frame, folio.seq
    REMOVALS_OF_A_FREE_FOLIO[name](mapping)
    assert mapping.get_folio(3) is None
    held = [mapping.segment.alloc_folio() for _ in range(64 - mapping.nrpages)]
    again = next(folio for folio in held if folio.frame == frame)
    assert again.seq > before
    assert again.seq % 2 == 0
    del held, again


def test_a_write_changes_it(mapping):
    folio = locked(mapping, 3)
    for write in (folio.zero, folio.zero_unshared):
        before = folio.seq
        write(10, 20)
        assert folio.seq == before + 2
    folio.unlock()
    folio.put()


def test_a_write_that_is_refused_does_not(mapping):
    folio, other = locked(mapping, 3), mapping.get_folio(3)
    before = folio.seq
    assert not folio.zero_unshared(10, 20)
    assert folio.seq == before
    assert folio.tobytes() == pages_of(PAGE, 3 * PAGE)
    folio.unlock()
    folio.put()
    other.put()


def test_a_split_changes_it(mapping):
    add_page(mapping, 32, order=4)
    folio = locked(mapping, 32)
    before = folio.seq
    assert folio.split(40)
    assert folio.seq > before
    folio.unlock()
    folio.put()


def test_reading_locking_and_being_held_do_not(mapping):
    folio = mapping.get_folio(3)
    before = folio.seq
    folio.lock()
    folio.unlock()
    folio.mark_accessed()
    mapping.get_folio(3).put()
    folio.deactivate()
    assert folio.seq == before
    folio.put()
