"""Storing, loading and erasing: every index, growing and shrinking, memory that runs out, what counts hold."""

import errno
import random

import pytest

from pagecache._core import XArray

INDEX_MAX = 2**64 - 1
EDGES = sorted({*(2**k for k in range(10, 64)), *(2**k - 1 for k in range(10, 65))})


def test_store_at_0_needs_no_memory(make_xa):
    """There is no blocking allocation here, so the array simply has no node."""
    xa = make_xa(nr_nodes=0)
    assert xa.store(0, "a") is None
    assert xa[0] == "a"
    assert xa.erase(0) == "a"
    assert xa.empty


def test_store_at_1_fails_without_memory_and_then_succeeds(xa):
    """Blocking allocation is replaced by a fault that happens once."""
    xa.fail_allocation(1)
    with pytest.raises(OSError, match="index 1") as failure:
        xa.store(1, "a")
    assert failure.value.errno == errno.ENOMEM
    assert xa.empty and xa.nr_nodes == 0
    assert xa.store(1, "a") is None
    assert xa.erase(1) == "a"


def test_ascending_inserts_and_erases_show_at_once(xa):
    n = 1024
    for i in range(n):
        assert [xa.load(j) for j in range(i)] == list(range(i))
        assert all(xa.load(j) is None for j in range(i, n, 7))
        assert xa.store(i, i) is None
    for i in range(n):
        assert xa.erase(i) == i
        assert all(xa.load(j) is None for j in range(0, i + 1, 5))
        assert [xa.load(j) for j in range(i + 1, n)] == list(range(i + 1, n))
    assert xa.empty and xa.nr_nodes == 0


@pytest.mark.parametrize("order_of", [sorted, lambda x: x[::-1], lambda x: random.Random(5).sample(x, len(x))])
def test_array_is_empty_when_all_are_erased_in_any_order(xa, order_of):
    indices = [*range(200), *EDGES]
    for i in indices:
        xa.store(i, i % 1000)
    for i in order_of(indices):
        assert xa.erase(i) == i % 1000
        assert i not in xa
        xa.check()
    assert xa.empty and xa.nr_nodes == 0


@pytest.mark.parametrize("order", range(15))
def test_head_is_restored_after_store_at_max(xa, order):
    last = (1 << order) - 1
    xa.store(0, 7, order)
    assert xa[last] == 7 and xa.load(last + 1) is None
    head = xa._head
    xa.store(INDEX_MAX, 8)
    assert xa[INDEX_MAX] == 8 and xa[last] == 7 and xa.load(last + 1) is None
    assert xa._head != head
    assert xa.erase(INDEX_MAX) == 8
    assert xa._head == head
    assert xa[last] == 7


def test_insert_leaves_the_neighbours_alone(xa):
    for i in [*range(1024), *EDGES]:
        xa.insert(i, i % 1000)
        for j in (i - 1, i + 1):
            if 0 <= j <= INDEX_MAX:
                assert xa.load(j) is None
        assert xa.load(i) == i % 1000
        assert xa.erase(i) == i % 1000
        assert xa.empty


def test_store_returns_the_previous_entry(xa):
    for i in (0, 1, 63, 64, INDEX_MAX):
        assert xa.store(i, "a") is None
        assert xa.store(i, "b") == "a"
        assert xa.store(i, 5) == "b"
        assert xa.store(i, None) == 5
        assert xa.store(i, None) is None


def test_loads_are_right_while_the_tree_grows_and_shrinks(xa):
    shown = {}
    for k in range(0, 64, 3):
        shown[1 << k] = k
        xa.store(1 << k, k)
        assert {i: xa.load(i) for i in shown} == shown
        assert xa.load(0) is None
    for k in reversed(range(0, 64, 3)):
        assert xa.erase(1 << k) == k
        del shown[1 << k]
        assert {i: xa.load(i) for i in shown} == shown
        xa.check()


def test_tree_shrinks_as_it_empties(xa):
    xa[0] = "a"
    assert xa.height == 0
    for k, height in ((6, 2), (12, 3), (63, 11)):
        xa[1 << k] = "b"
        assert xa.height == height
        del xa[1 << k]
        assert xa.height == 0 and xa.nr_nodes == 0


@pytest.mark.parametrize("order", range(20))
def test_adds_and_deletes_with_holes_beside(xa, order):
    size = 1 << order
    for base in (0, size, 5 * size, 64 * size):
        for hole in (0, 1):
            at = [base + size * (1 + 2 * i + hole) for i in range(8)]
            for i in at:
                assert xa.store(i, i % 2**31, order) is None
            for i in at:
                assert xa.load(i) == xa.load(i + size - 1) == i % 2**31
                assert xa.load(i - 1) is None and xa.load(i + size) is None
            for i in at:
                assert xa.erase(i + size // 2) == i % 2**31
            assert xa.empty


def test_destroy(xa):
    xa.clear()
    assert xa.empty
    for i in [*range(1000), INDEX_MAX]:
        xa.store(i, "a")
        xa.clear()
        assert xa.empty and xa.nr_nodes == 0 and len(xa) == 0
    xa.store(1 << 11, "a", 11)
    xa.reserve(5)
    xa.clear()
    assert xa.empty and xa.nr_nodes == 0


def test_a_failed_store_changes_nothing(xa):
    for i in (0, 5, 100, 1 << 20):
        xa.store(i, i)
    xa.set_mark(0, 1)
    xa.store(1 << 12, "large", 9)
    before = list(xa.items()), xa.nr_nodes, xa._head
    for index, order in ((1 << 40, 0), (1 << 30, 3), ((1 << 20) + 64, 0), (INDEX_MAX, 0), (1 << 19, 6), (7 << 13, 7)):
        nth = 1
        while True:
            xa.fail_allocation(nth)
            try:
                xa.store(index, "b", order)
                break
            except OSError as failure:
                assert failure.errno == errno.ENOMEM
            xa.check()
            assert (list(xa.items()), xa.nr_nodes, xa._head) == before
            assert xa.get_mark(0, 1) and not xa.get_mark(5, 1)
            nth += 1
        xa.fail_allocation(0)
        assert nth > 1
        xa.erase(index)
        assert (list(xa.items()), xa.nr_nodes, xa._head) == before


def test_a_full_pool_is_an_error_and_can_be_emptied(make_xa):
    xa = make_xa(nr_nodes=8)
    xa.store(1, "a")
    stored = [1]
    with pytest.raises(OSError) as failure:
        for i in range(64, 10**6, 64):
            xa.store(i, "b")
            stored.append(i)
    assert failure.value.errno == errno.ENOMEM
    assert list(xa) == stored and xa.nr_nodes <= 8
    xa.check()
    for i in stored:
        del xa[i]
    assert xa.nr_nodes == 0


class Thing:
    """An object whose end can be seen."""

    alive = 0

    def __init__(self):
        Thing.alive += 1

    def __del__(self):
        Thing.alive -= 1


def test_objects_live_exactly_as_long_as_entries_name_them(xa):
    xa[3] = Thing()
    xa.store(4096, Thing(), 9)
    xa.store_range(100, 777, Thing())
    assert Thing.alive == 3
    xa[3] = 1
    assert Thing.alive == 2
    xa.split(4096, 7)
    xa.erase(4096)
    xa.erase(4096 + 128)
    xa.erase(4096 + 256)
    assert Thing.alive == 2
    xa.erase(4096 + 511)
    assert Thing.alive == 1
    xa.store(0, None, 10)
    assert Thing.alive == 0
    thing = Thing()
    xa.fail_allocation(1)
    with pytest.raises(OSError):
        xa.store(5, thing)
    del thing
    assert Thing.alive == 0
    xa[1] = xa[2] = Thing()
    del xa[1]
    assert Thing.alive == 1
    xa.clear()
    assert Thing.alive == 0


def test_an_object_may_use_the_array_when_it_dies(xa):
    class Last:
        def __del__(self):
            xa[7] = "last words"

    xa[7] = Last()
    xa[7] = "replaced"
    assert xa[7] == "last words"
    xa.store(64, Last(), 6)
    xa.clear()
    assert list(xa.items()) == [(7, "last words")]


def test_a_cycle_through_the_array_is_collected():
    import gc

    xa = XArray(nr_nodes=10)
    thing = Thing()
    thing.array = xa
    xa[5] = thing
    del thing, xa
    gc.collect()
    assert Thing.alive == 0


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**31, -1, True, 2.5, "text", b"bytes", (1,), Thing])
def test_values_come_back_as_they_are(xa, value):
    for i in (0, 5):
        xa[i] = value
        assert xa[i] is value or (type(xa[i]) is int and xa[i] == value)
        assert i in xa


def test_mapping_protocol(xa):
    with pytest.raises(KeyError):
        xa[5]
    with pytest.raises(KeyError):
        del xa[5]
    assert not xa and len(xa) == 0 and 5 not in xa
    xa[5] = "a"
    xa.store(64, "b", 6)
    assert xa and len(xa) == 2
    assert 5 in xa and 127 in xa and 128 not in xa
    assert list(xa) == [5, 64]
    xa[5] = None
    assert list(xa.items()) == [(64, "b")]


def test_bad_arguments():
    with pytest.raises(ValueError):
        XArray(nr_nodes=-1)
    with pytest.raises(TypeError):
        XArray(5)
    xa = XArray(nr_nodes=5)
    for index in (-1, 2**64):
        with pytest.raises(OverflowError):
            xa.store(index, 1)
        with pytest.raises(OverflowError):
            xa.load(index)
    for index in ("1", None, 1.5):
        with pytest.raises(TypeError):
            xa.store(index, 1)
    for order in (-1, 64):
        with pytest.raises(ValueError):
            xa.store(0, 1, order)
    with pytest.raises(TypeError):
        xa.store(0, 1, 1.0)
    for mark in (-1, 3):
        for method in (xa.set_mark, xa.clear_mark, xa.get_mark):
            with pytest.raises(ValueError):
                method(0, mark)
    for marker in (XArray.RETRY, XArray.RESERVED, XArray.NODE, XArray.SIBLING):
        with pytest.raises(TypeError):
            xa.store(0, marker)
    with pytest.raises(ValueError):
        xa.store_range(5, 4, "a")
    assert xa.empty
