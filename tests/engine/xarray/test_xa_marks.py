"""Marks: independent of each other, kept on entries, summed up above them."""

import os

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
INDEX_MAX = 2**64 - 1
INDICES = [*range(0, 16384, 4), INDEX_MAX - 3]


def marks(xa, index):
    """Return the set of marks at an index."""
    return {mark for mark in range(3) if xa.get_mark(index, mark)}


def test_absent_entries_have_no_marks(xa):
    for i in INDICES:
        for mark in range(3):
            xa.set_mark(i, mark)
            assert not xa.get_mark(i, mark)
            assert not xa.marked(mark)
    xa[1] = "a"
    for i in (0, 2, 64, INDEX_MAX):
        xa.set_mark(i, 0)
        assert not xa.get_mark(i, 0) and not xa.marked(0)


def test_a_store_sets_no_mark(xa):
    for i in INDICES:
        xa[i] = 5
        assert marks(xa, i) == set()
    assert not any(map(xa.marked, range(3)))


def test_marks_are_independent_of_each_other_and_of_neighbours(xa):
    for i in INDICES:
        xa[i] = xa[i + 1] = 5
        xa.set_mark(i, 0)
        assert marks(xa, i) == {0} and marks(xa, i + 1) == set()
        assert xa.marked(0) and not xa.marked(1)
        xa.set_mark(i + 1, 2)
        xa.clear_mark(i, 0)
        assert marks(xa, i) == set() and marks(xa, i + 1) == {2}
        del xa[i], xa[i + 1]
        assert not xa.marked(2)


def test_erasing_clears_the_marks(xa):
    for i in INDICES:
        xa[i] = 5
        for mark in range(3):
            xa.set_mark(i, mark)
        del xa[i]
        assert marks(xa, i) == set()
        xa.set_mark(i, 0)
        assert marks(xa, i) == set()
        xa[i] = 6
        assert marks(xa, i) == set()
        del xa[i]


def test_marks_survive_replacement(xa):
    for i in (0, 5, 64, INDEX_MAX):
        xa[i] = "a"
        xa.set_mark(i, 1)
        xa[i] = "b"
        assert marks(xa, i) == {1}
        xa.store(1 << 30, "c")
        assert marks(xa, i) == {1}
        del xa[1 << 30]
        assert marks(xa, i) == {1}
        xa.clear()


def test_a_large_entry_gets_the_marks_of_all_it_covers(xa):
    for index in INDICES[:-1]:
        for order in range(2, 8):
            base = index >> order << order
            following = base + (1 << order)
            xa[index + 1] = xa[index + 2] = xa[following] = 5
            xa.set_mark(index + 1, 0)
            xa.set_mark(index + 2, 2)
            xa.store(index, "large", order)
            step = 1 if STRESS or order < 4 else (1 << order) // 4 - 1
            for i in (*range(base, following, step), following - 1):
                assert marks(xa, i) == {0, 2}
            assert marks(xa, following) == set()
            xa.erase(index)
            del xa[following]
        assert xa.empty
    xa.check()


def test_neighbours_stay_unmarked_and_iteration_sees_each_once(xa):
    for order in range(2, 12):
        size = 1 << order
        xa[size] = xa[size + 1] = xa[2 * size] = 5
        xa.set_mark(size + 1, 0)
        xa.store(size, "large", order)
        for i in (size, size + 1, 2 * size - 1):
            assert [value for _, value in xa.items(i)] == ["large", 5]
            assert [value for _, value in xa.items(i, mark=0)] == ["large"]
        assert marks(xa, 2 * size) == set()
        xa.clear()


def test_init_marks(xa):
    for index, order in ((0, 0), (7, 0), (64, 6), (256, 7)):
        xa.store(index, "a", order)
        for mark in range(3):
            xa.set_mark(index, mark)
        cursor = xa.cursor(index + (1 << order) - 1)
        assert cursor.load() == "a"
        assert cursor.get_mark(1)
        cursor.init_marks()
        assert marks(xa, index) == set()
        assert not any(map(xa.marked, range(3)))
        xa.check()


def test_marked_iteration(xa):
    for i in range(3500, 4500):
        xa[i] = i
        xa.set_mark(i, 0)
    for i in (*range(3400, 3500), *range(4500, 4600)):
        xa[i] = i
    assert [i for i, _ in xa.items(mark=0)] == list(range(3500, 4500))
    cursor = xa.cursor()
    found = []
    while cursor.find_marked(0) is not None:
        found.append(cursor.index)
    assert found == list(range(3500, 4500))


def test_marked_iteration_from_the_middle_of_an_entry(xa):
    xa.store(0x40, "large", 2)
    xa.set_mark(0x41, 0)
    cursor = xa.cursor(0x41)
    assert cursor.find_marked(0) == "large"
    assert cursor.find_marked(0) is None
    assert list(xa.items(0x41, mark=0)) == [(0x41, "large")]


def test_a_mark_shows_at_every_index_of_an_entry(xa):
    for order in range(12):
        base = 3 << order
        last = base + (1 << order) - 1
        xa.store(base, "large", order)
        for i in {base, last, (base + last) // 2}:
            xa.set_mark(i, 1)
            assert all(marks(xa, j) == {1} for j in range(base, last + 1, max(1, (1 << order) // 16)))
            assert marks(xa, base - 1) == marks(xa, last + 1) == set()
            xa.clear_mark(last, 1)
            assert marks(xa, base) == set()


def test_sums_follow_when_the_last_mark_goes(xa):
    places = [0, 1, 63, 64, 4095, 4096, 1 << 30]
    for i in places:
        xa[i] = 5
        xa.set_mark(i, 0)
        xa.set_mark(i, 1)
    for i in places:
        assert xa.marked(0)
        xa.clear_mark(i, 0)
        xa.check()
    assert not xa.marked(0) and xa.marked(1)
    assert list(xa.items(mark=0)) == []
    for i in places:
        assert xa.marked(1)
        del xa[i]
        xa.check()
    assert not xa.marked(1)


def test_marks_of_a_single_entry_move_into_and_out_of_the_head(xa):
    xa[0] = "a"
    xa.set_mark(0, 2)
    xa[1] = "b"
    assert marks(xa, 0) == {2} and marks(xa, 1) == set()
    xa.set_mark(1, 0)
    del xa[1]
    assert marks(xa, 0) == {2} and xa.height == 0 and not xa.marked(0)
    xa.clear_mark(0, 2)
    xa[1] = "b"
    assert marks(xa, 0) == set()


def test_a_cursor_above_several_entries_marks_none(xa):
    xa[1] = "a"
    xa[70] = "b"
    cursor = xa.cursor(0, 6)
    assert cursor.load() is xa.NODE
    cursor.set_mark(0)
    assert not xa.marked(0)
    xa.set_mark(1, 0)
    cursor.clear_mark(0)
    assert xa.marked(0)
    xa.check()


def test_a_cursor_at_a_sibling_marks_the_entry(xa):
    xa.store(64, "a", 2)
    cursor = xa.cursor(65)
    assert cursor.next() is xa.SIBLING
    cursor.set_mark(0)
    assert marks(xa, 64) == marks(xa, 67) == {0}
    xa.check()
