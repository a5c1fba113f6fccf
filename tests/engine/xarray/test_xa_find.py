"""Finding, iterating, stepping, pausing; cursors that others pull the ground from under."""

import errno
import os

import pytest

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
INDEX_MAX = 2**64 - 1
ORDERS = range(20)


def walk(cursor, pause=False):
    """Return the indices a cursor finds, and pause after each if asked to."""
    found = []
    while cursor.find() is not None:
        found.append(cursor.index)
        if pause:
            cursor.pause()
    return found


def test_reader_whose_node_goes_away(xa):
    xa[0], xa[1] = "a", "b"
    cursor = xa.cursor(0)
    assert cursor.load() == "a" and cursor.state == "node"
    del xa[1]
    assert cursor.reload() is xa.RETRY
    assert cursor.retry(xa.RETRY) and cursor.state == "restart"
    assert cursor.load() == "a" and cursor.state == "head"


def test_retry_of_what_is_real(xa):
    cursor = xa.cursor(0)
    for value in (None, 0, 5, "a"):
        assert not cursor.retry(value)
    assert cursor.retry(xa.RESERVED)
    cursor.load()
    assert cursor.retry(xa.RESERVED) and cursor.state == "head"
    assert cursor.retry(xa.RETRY) and cursor.state == "restart"


def test_iteration_walks_over_stored_retry_entries(xa):
    cursor = xa.cursor()
    for i in (0, 1):
        cursor.set(i)
        cursor.store(xa.RETRY)
    cursor.set(0)
    seen = []
    while (value := cursor.find()) is not None:
        assert value is xa.RETRY
        seen.append(cursor.index)
        cursor.store(cursor.index)
    assert seen == [0, 1]
    assert list(xa.items()) == [(0, 0), (1, 1)]


def test_erasing_through_a_cursor_shrinks_the_tree(xa):
    xa[0], xa[1] = "a", "b"
    reader = xa.cursor(0)
    assert reader.load() == "a"
    cursor = xa.cursor(1)
    assert cursor.load() == "b" and cursor.state == "node"
    assert cursor.store(None) == "b"
    assert cursor.state == "bounds"
    assert reader.reload() is xa.RETRY
    assert xa[0] == "a" and xa._head[1] == 0


def test_erasing_while_iterating_visits_each_once(xa):
    for stored, erased in ((range(10), (0, 10)), (range(200), (50, 100)), (range(0, 5000, 3), (0, 5000)),
                           (range(64, 4096, 64), (100, 4000)), ((0, 1, 64, 4096, 1 << 30), (0, INDEX_MAX))):
        for store_at_max in (False, True):
            for i in stored:
                xa[i] = 5
            if store_at_max:
                xa[INDEX_MAX] = 5
                del xa[INDEX_MAX]
            cursor = xa.cursor(erased[0])
            visited = []
            while cursor.find(erased[1]) is not None:
                visited.append(cursor.index)
                assert cursor.store(None) == 5
            assert visited == [i for i in stored if erased[0] <= i <= erased[1]]
            assert list(xa) == [i for i in stored if i not in visited]
            xa.check()
            xa.clear()


@pytest.mark.parametrize("order", ORDERS)
def test_iteration_gives_a_large_entry_once(xa, order):
    for base in (0, 1 << order, 9 << order):
        size = 1 << order
        xa.store(base, "large", order)
        xa.store(base + 2 * size, "next", order)
        assert walk(xa.cursor(base)) == [base, base + 2 * size]
        assert list(xa.items(base)) == [(base, "large"), (base + 2 * size, "next")]
        if order:
            assert walk(xa.cursor(base + 1)) == [base + 1, base + 2 * size]
            assert list(xa.items(base + 1)) == [(base + 1, "large"), (base + 2 * size, "next")]
        xa.clear()


@pytest.mark.parametrize("count", [100 if STRESS else 40])
def test_find_gives_the_lowest_at_or_after(xa, count):
    for i in range(count):
        xa[i] = i
        xa.set_mark(i, 0)
        for j in range(i + 1, count):
            xa[j] = j
            for k in range(count):
                expected = (i, i) if k <= i else (j, j) if k <= j else None
                assert xa.find(k) == expected
                assert xa.find(k, mark=0) == ((i, i) if k <= i else None)
                assert xa.find_after(k) == ((i, i) if k < i else (j, j) if k < j else None)
            del xa[j]
        del xa[i]


def test_an_erased_entry_loses_its_mark_and_others_keep_theirs(xa):
    for i in range(70):
        for j in range(i + 1, 70):
            for k in (i, j):
                xa[k] = k
                xa.set_mark(k, 0)
            del xa[j]
            assert xa.get_mark(i, 0) and not xa.get_mark(j, 0)
            xa[j] = j
            assert not xa.get_mark(j, 0)
            del xa[i], xa[j]


@pytest.mark.parametrize("order", range(1, 20))
def test_find_from_the_middle_of_an_entry(xa, order):
    size = 1 << order
    xa.store(size, "a", order)
    xa.store(2 * size, "b", order)
    for i in {size, size + 1, 2 * size - 1}:
        assert xa.find(i) == (i, "a")
        assert xa.find_after(i) == (2 * size, "b")
        assert xa.find_after(i, 2 * size - 1) is None
    assert xa.find(0, size - 1) is None
    assert xa.find(0, size) == (size, "a")
    assert xa.find(3 * size) is None


def test_erasing_inside_an_iteration_from_any_tied_index(xa):
    for i in range(8):
        xa.store(64 + 8 * i, i, 3)
    for index, value in xa.items(66):
        assert xa.erase(index + (5 if index > 66 else 0)) == value
    assert xa.empty


def test_find_after_from_inside_an_entry_at_0(xa):
    for order in range(1, 13):
        xa.store(0, "a", order)
        for i in {0, 1, (1 << order) - 1, 1 << order}:
            assert xa.find_after(i) is None
        xa.clear()
    xa[0] = "a"
    assert xa.find_after(0) is None


def test_iteration_over_nothing(xa):
    assert list(xa) == list(xa.items()) == list(xa.items(mark=0)) == xa.extract() == walk(xa.cursor()) == []
    xa[5] = "a"
    assert list(xa.items(6)) == list(xa.items(0, 5)) == list(xa.items(7, 3)) == list(xa.items(mark=1)) == []
    assert xa.cursor(6).find() is None
    assert xa.cursor(3).find(2) is None and xa.find(9, 3) is None


def test_find_marked_backwards_restarts(xa):
    cursor = xa.cursor(5)
    assert cursor.find_marked(0, 0) is None and cursor.state == "restart"
    for i in (0, 3, 100):
        xa[i] = "a"
        xa.set_mark(i, 0)
    cursor = xa.cursor(5)
    assert cursor.find_marked(0, 4) is None and cursor.state == "restart"
    cursor.set(4)
    assert cursor.find_marked(0, 50) is None and cursor.state == "restart"
    cursor.set(101)
    assert cursor.find_marked(0) is None and cursor.state == "bounds"
    assert cursor.index == 4096
    assert cursor.store("b") is None
    assert xa[4096] == "b" and xa[0] == "a"


def test_a_store_where_a_search_ended_goes_to_its_index(xa):
    xa[0] = "a"
    cursor = xa.cursor(0)
    assert cursor.find() == "a" and cursor.find() is None
    assert cursor.index == 1
    cursor.store("b")
    assert list(xa.items()) == [(0, "a"), (1, "b")]
    cursor = xa.cursor(0)
    for _ in range(71):
        cursor.next()
    cursor.store("c")
    assert list(xa.items()) == [(0, "a"), (1, "b"), (70, "c")]


def test_find_after_reaches_the_last_index(xa):
    xa[INDEX_MAX] = "a"
    for i in (0, 1, INDEX_MAX - 1):
        assert xa.find_after(i) == (INDEX_MAX, "a")
    assert xa.find_after(INDEX_MAX) is None
    assert list(xa.items(INDEX_MAX)) == list(xa.items(0, 2**64)) == [(INDEX_MAX, "a")]


@pytest.mark.parametrize("order", ORDERS)
def test_search_with_a_pause_every_four_visits(xa, order):
    def search(wanted):
        cursor = xa.cursor()
        visits = 0
        while (value := cursor.find()) is not None:
            if value == wanted:
                return cursor.index
            visits += 1
            if visits % 4 == 0:
                cursor.pause()
        return -1

    for index in range(0, 1 << (order + 5), 1 << order):
        xa.store(index, index, order)
        assert xa[index] == index
        assert search(index) == index
    assert search("absent") == -1


def test_pause_after_every_entry_visits_each_once(xa):
    limit = 20
    index = 0
    stored = []
    for order in range(limit):
        xa.store(index, order, order)
        assert xa.get_order(index) == order
        stored.append(index >> order << order)
        index += 1 << order
    stored = sorted({xa.find(i)[0] for i in stored})
    assert walk(xa.cursor()) == walk(xa.cursor(), pause=True) == list(xa)
    xa.clear()
    index = 0
    stored = []
    for order in range(limit - 1, 0, -1):
        xa.store(index, order, order)
        stored.append(index)
        index += 1 << order
    assert walk(xa.cursor(), pause=True) == walk(xa.cursor()) == stored
    assert walk(xa.cursor(1), pause=True) == [1, *stored[1:]]


def test_find_at_the_last_index(xa):
    xa[INDEX_MAX] = "a"
    cursor = xa.cursor(0)
    assert cursor.find() == "a"
    assert cursor.find() is None
    cursor.set(0)
    assert cursor.find() == "a"
    cursor.pause()
    assert cursor.state == "bounds"
    assert cursor.find() is None
    assert cursor.find() is None


def test_next_and_prev(xa):
    n = 1 << 16
    for i in range(n):
        xa[i] = i
    for holes in (range(0), range(256, 32768)):
        for i in holes:
            del xa[i]
        cursor = xa.cursor(0)
        for i in range(n):
            assert cursor.next() == (None if i in holes else i)
            assert cursor.index == i
        assert cursor.next() is None and cursor.index == n
        for i in reversed(range(n)):
            assert cursor.prev() == (None if i in holes else i)
            assert cursor.index == i
        assert cursor.prev() is None and cursor.index == INDEX_MAX
        assert cursor.next() == 0 and cursor.index == 0


def test_next_and_prev_in_tiny_arrays(xa):
    cursor = xa.cursor(0)
    assert cursor.next() is cursor.next() is None
    xa[0] = "a"
    cursor.set(0)
    assert (cursor.next(), cursor.next()) == ("a", None)
    cursor.set(0)
    assert (cursor.prev(), cursor.prev()) == ("a", None)
    assert cursor.index == INDEX_MAX


def test_next_from_the_last_index(xa):
    xa[0], xa[1] = "a", "b"
    cursor = xa.cursor(INDEX_MAX)
    assert cursor.next() is None and cursor.index == INDEX_MAX
    assert cursor.next() == "a" and cursor.index == 0
    assert cursor.prev() is None and cursor.index == INDEX_MAX


def test_next_and_prev_show_siblings(xa):
    xa.store(64, "a", 2)
    cursor = xa.cursor(63)
    assert [cursor.next() for _ in range(6)] == [None, "a", xa.SIBLING, xa.SIBLING, xa.SIBLING, None]
    assert [cursor.prev() for _ in range(5)] == [xa.SIBLING, xa.SIBLING, xa.SIBLING, "a", None]
    assert repr(xa.SIBLING) == "<XArray.SIBLING>"


def test_errors_stick_until_the_cursor_is_moved(xa):
    cursor = xa.cursor(5)
    xa[5] = xa[6] = "a"
    xa.set_mark(5, 0)
    cursor.set_error(errno.EEXIST)
    assert cursor.state == "error" and cursor.error == errno.EEXIST
    for call in (cursor.load, cursor.reload, cursor.find, cursor.find_conflict, cursor.next, cursor.prev):
        assert call() is None
    assert cursor.find_marked(0) is None and cursor.store("b") is None and not cursor.get_mark(0)
    cursor.pause()
    cursor.set_mark(1)
    cursor.clear_mark(0)
    cursor.init_marks()
    assert cursor.error == errno.EEXIST and cursor.index == 5
    assert xa[5] == "a" and xa.get_mark(5, 0) and not xa.marked(1)
    cursor.reset()
    assert cursor.load() == "a" and cursor.error == 0
    xa.fail_allocation(1)
    cursor.set(1 << 20)
    with pytest.raises(OSError):
        cursor.store("b")
    assert cursor.error == errno.ENOMEM and cursor.find() is None
    cursor.set(6)
    assert cursor.find() == "a"


def test_a_cursor_goes_on_behind_its_index_when_others_change_the_array(xa):
    for i in range(0, 300, 3):
        xa[i] = i
    cursor = xa.cursor()
    seen = []
    while (value := cursor.find()) is not None:
        seen.append(value)
        if value == 90:
            xa.clear()
            xa[80] = xa[95] = 95
            xa[1 << 40] = 7
        if value == 7:
            del xa[1 << 40], xa[80], xa[95]
    assert seen == [*range(0, 91, 3), 95, 7]
    xa[0] = xa[70] = "a"
    cursor.set(70)
    cursor.load()
    xa.clear()
    for i in range(64):
        xa[i] = i
    cursor.set_mark(0)
    cursor.clear_mark(0)
    xa.check()
    assert not xa.marked(0)


def test_iterators_see_what_changes_ahead(xa):
    for i in range(10):
        xa[i] = i
    seen = []
    for i, _ in xa.items():
        seen.append(i)
        xa.erase(i + 1)
        if i < 5:
            xa[i + 20] = i
    assert seen == [0, 2, 4, 6, 8, 20, 22, 24]


def test_extract(xa):
    for i in range(100):
        xa[i] = i
        if i % 10 == 0:
            xa.set_mark(i, 1)
    assert xa.extract(50, 59) == list(range(50, 60))
    assert xa.extract(5, mark=1) == list(range(10, 100, 10))
    assert xa.extract(limit=3) == [0, 1, 2]
    assert xa.extract(limit=0) == []
