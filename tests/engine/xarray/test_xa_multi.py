"""Entries that cover several indices: orders, replacement, ranges, splitting, node counts, the list of shadow nodes."""

import errno
import os

import pytest

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
INDEX_MAX = 2**64 - 1
RANGE_SIZE = 128 if STRESS else 64


def edges(first, last):
    """Return some indices of a range: the ends, those next to them, and the middle."""
    return sorted({first, min(first + 1, last), (first + last) // 2, max(last - 1, first), last})


def covered(xa, first, last):
    """Return how often each index of first..last is covered, as seen by iteration and get_order."""
    seen = [0] * (last - first + 1)
    for index, _ in xa.items(first, last + 1):
        order = xa.get_order(index)
        base = index >> order << order
        for i in range(max(base, first), min(base + (1 << order) - 1, last) + 1):
            seen[i - first] += 1
    return seen


def test_order_3_entry(xa):
    xa.store(0, "a", 3)
    for i in range(8):
        assert xa[i] == "a" and xa.get_order(i) == 3
    assert xa.load(8) is None and xa.get_order(8) == 0


@pytest.mark.parametrize("order", range(64))
def test_a_store_covers_exactly_its_aligned_range(xa, order):
    size = 1 << order
    for base in {0, size, 3 * size, 64 * size, 2**64 - size}:
        if base > 2**64 - size:
            continue
        xa.store(base + size // 3, "a", order)
        for i in edges(base, base + size - 1):
            assert xa[i] == "a" and xa.get_order(i) == order
        assert base == 0 or xa.load(base - 1) is None
        assert base + size > INDEX_MAX or xa.load(base + size) is None
        assert xa.find(0) == (base, "a") and xa.find_after(base) is None
        xa.check()
        assert xa.erase(base + size - 1) == "a"
        assert xa.empty


def test_storing_nothing_with_order_63_empties_everything(xa):
    for i in (0, 1, 64, 4096, 1 << 40, (1 << 63) - 1):
        xa[i] = "a"
    xa.store(128, "large", 6)
    xa.store(0, None, 63)
    assert xa.empty and xa.nr_nodes == 0
    xa[1 << 63] = "upper half"
    xa[5] = "a"
    xa.store(0, None, 63)
    assert list(xa.items()) == [(1 << 63, "upper half")]


def test_counts_of_an_order_1_value(xa):
    xa.store(0, 5, 1)
    cursor = xa.cursor(0)
    assert cursor.load() == 5
    assert (cursor.node_count, cursor.node_nr_values) == (2, 2)
    xa[3] = "a"
    assert (cursor.node_count, cursor.node_nr_values) == (3, 2)
    xa.erase(3)
    xa.erase(0)
    assert xa.empty


def test_order_2_over_smaller_ones(xa):
    xa[0], xa[1] = 1, 2
    xa.store(0, 7, 2)
    cursor = xa.cursor(0)
    assert cursor.load() == 7
    assert (cursor.node_count, cursor.node_nr_values) == (4, 4)
    assert xa.load(4) is None


def test_storing_nothing_though_the_first_slot_is_empty(xa):
    xa[1] = xa[2] = "a"
    xa.store(0, None, 2)
    assert xa.empty
    for i in (70, 5000):
        xa[i] = "a"
    xa.store(0, None, 13)
    assert xa.empty


def test_overwriting_one_order_by_another(xa):
    for i in range(60):
        for j in range(60):
            xa.store(0, i, i)
            xa.store(0, j + 100, j)
            largest = max(i, j)
            for k in range(60):
                assert xa.load((1 << k) - 1) == (j + 100 if k <= largest else None)
            assert xa.get_order(0) == largest
            assert xa.erase(0) == j + 100
            assert xa.empty


@pytest.mark.parametrize("order", range(20))
def test_order_0_store_into_a_large_entry(xa, order):
    for index in (0, 200, *((1 << i) + 1 for i in range(20))):
        base = index >> order << order
        xa.store(index, "a", order)
        cursor = xa.cursor(index)
        assert cursor.store("b") == "a"
        for i in edges(base, base + (1 << order) - 1):
            assert xa[i] == "b" and xa.get_order(i) == order
        xa.check()
        assert cursor.store(None) == "b"
        assert xa.empty


def test_a_store_keeps_the_cursor_s_index(xa):
    xa.store(4095, 0, 9)
    cursor = xa.cursor(4095)
    assert cursor.store(1) == 0
    assert cursor.index == 4095
    assert cursor.store(None) == 1
    assert xa.empty


@pytest.mark.parametrize("order", range(20))
def test_order_at_any_tied_index(xa, order):
    assert xa.get_order(0) == xa.get_order(INDEX_MAX) == 0
    for base in (0, 1 << order, 77 << order):
        xa.store(base, "a", order)
        for i in edges(base, base + (1 << order) - 1):
            assert xa.get_order(i) == order
            cursor = xa.cursor(i)
            assert cursor.load() == "a" and cursor.get_order() == order
        assert xa.get_order(base + (1 << order)) == 0
        xa.clear()
        assert xa.get_order(base) == 0


@pytest.mark.parametrize("order", range(20))
def test_conflicts_of_a_part_and_of_more(xa, order):
    size = 1 << order
    for base in (0, size, 6 * size):
        xa.store(base, "a", order)
        for k in {0, order // 2, max(order - 1, 0), order, order + 1, order + 3}:
            for at in {base, base + size // 2, base + size - 1}:
                cursor = xa.cursor(at, k)
                assert cursor.find_conflict() == "a"
                assert cursor.get_order() == order
                assert cursor.find_conflict() is None
        assert xa.cursor(base + size, order).find_conflict() is None
        xa.clear()


def test_conflicts_are_the_entries_in_the_range(xa):
    def conflicts(index, order):
        cursor = xa.cursor(index, order)
        values = []
        while (value := cursor.find_conflict()) is not None:
            values.append(value)
        return values

    for order in range(20):
        for i in {0, 1, 1 << order, 3 << order}:
            xa[0] = xa[1] = 7
            xa[i] = i
            base = i >> order << order
            present = [xa[j] for j in sorted({0, 1, i}) if base <= j < base + (1 << order)]
            assert conflicts(i, order) == present
            xa.store(i, "large", order)
            assert conflicts(i, order) == ["large"]
            xa.clear()
    xa[63] = xa[65] = 5
    assert conflicts(64, 2) == [5]
    xa.store(64, "large", 2)
    assert xa[63] == 5 and xa[65] == "large"


def test_a_store_of_an_order_at_a_moved_cursor_is_aligned(xa):
    xa[70] = "a"
    cursor = xa.cursor(64, 3)
    assert cursor.find() == "a" and cursor.index == 70
    cursor.store("large")
    assert list(xa.items()) == [(64, "large")] and xa.get_order(71) == 3
    xa.check()


def test_slots_of_a_range_exist_before_they_are_used(xa):
    """There is no create_range, which leaves empty nodes behind that no invariant could tell from lost ones; reserving
    each index does the same. It is idempotent, and keeps what is stored."""
    xa.store(96, "large", 4)
    xa[70] = "a"
    for _ in range(2):
        for i in range(64, 192):
            xa.reserve(i)
            xa.check()
    assert list(xa.items()) == [(70, "a"), (96, "large")]
    assert xa.get_order(96) == 4
    for i in range(64, 192):
        xa.fail_allocation(1)
        expected = "a" if i == 70 else "large" if i == 96 else i - 1 if 96 < i < 112 else None
        assert xa.store(i, i) == expected
    assert [xa[i] for i in range(112, 192)] == list(range(112, 192))
    cursor = xa.cursor(64)
    cursor.set_error(errno.EEXIST)
    assert cursor.store("b") is None and cursor.error == errno.EEXIST and xa[64] == 64


@pytest.mark.parametrize("base", [0, 128, 4095, 4096, 123456, 1 << 24])
def test_store_range(xa, base):
    for i in range(base, base + RANGE_SIZE):
        for j in range(i, base + RANGE_SIZE, 1 if STRESS else 3):
            xa.store_range(i, j, "a")
            assert xa[i] == xa[j] == xa[(i + j) // 2] == "a"
            assert i == 0 or xa.load(i - 1) is None
            assert xa.load(j + 1) is None
            xa.store_range(i, j, None)
            assert xa.empty


@pytest.mark.parametrize("first, last", [(0, INDEX_MAX), (1, INDEX_MAX), (0, INDEX_MAX - 1), (5, 1 << 40), (63, 64),
                                         (INDEX_MAX, INDEX_MAX), (1 << 63, INDEX_MAX), (100, 100)])
def test_store_range_makes_few_aligned_pieces(xa, first, last):
    xa.store_range(first, last, "a")
    xa.check()
    at = first
    for index, value in xa.items():
        assert index == at and value == "a"
        at += 1 << xa.get_order(index)
    assert at == last + 1
    assert len(xa) <= 2 * 63
    xa.store_range(first, last, None)
    assert xa.empty and xa.nr_nodes == 0


def test_store_range_over_others(xa):
    for i in range(0, 300, 7):
        xa[i] = i
        xa.set_mark(i, 1)
    xa.store_range(10, 200, "a")
    assert [i for i, value in xa.items() if value != "a"] == [0, 7, *range(203, 300, 7)]
    assert covered(xa, 10, 200) == [1] * 191
    xa.check()
    xa.store(1024, "large", 10)
    xa.store_range(1500, 1510, "b")
    assert xa.get_order(1500) == 10 and xa[1024] == xa[2047] == "b"


def test_store_range_without_memory_changes_nothing(xa):
    for first, last in ((70, 5000), (0, 1), (63, 1 << 30), (5, INDEX_MAX), (1 << 20, (1 << 20) + 70)):
        for present in ((), (0,), (64, 65), (1 << 30,), (0, 1, 2)):
            for i in present:
                xa[i] = i
            before = list(xa.items()), xa.nr_nodes, xa._head
            nth = 1
            while True:
                xa.fail_allocation(nth)
                try:
                    xa.store_range(first, last, "a")
                    break
                except OSError as failure:
                    assert failure.errno == errno.ENOMEM
                xa.check()
                assert (list(xa.items()), xa.nr_nodes, xa._head) == before
                nth += 1
            xa.fail_allocation(0)
            xa.check()
            assert xa[first] == xa[last] == "a"
            xa.clear()


def pieces_after_split(xa, base, order, new_order, split):
    """Store a marked value, split it, and return the first index of each piece."""
    xa.store(base, 7, order)
    xa.set_mark(base, 1)
    split(base + (1 << order) // 2)
    pieces = range(base, base + (1 << order), 1 << new_order)
    assert list(xa.items()) == [(i, 7) for i in pieces]
    assert [i for i, _ in xa.items(mark=1)] == list(pieces)
    assert not xa.marked(0)
    cursor = xa.cursor(base)
    while (value := cursor.find(base + (1 << order) - 1)) is not None:
        assert value == 7 and cursor.get_order() == new_order
    xa.check()
    return pieces


@pytest.mark.parametrize("order", range(1, 12))
def test_split(xa, order):
    for new_order in range(order):
        for base in (0, 1 << order, 3 << order):
            pieces = pieces_after_split(xa, base, order, new_order, lambda at, to=new_order: xa.split(at, to))
            for number, i in enumerate(pieces):
                assert xa.store(i, number + 1, new_order) == 7
            for number, i in enumerate(pieces):
                assert xa[i] == xa[i + (1 << new_order) - 1] == number + 1
                assert xa.get_mark(i, 1)
            xa.check()
            xa.clear()


@pytest.mark.parametrize("order", range(1, 12))
def test_try_split(xa, order):
    for new_order in range(order):
        crosses = new_order // 6 < order // 6
        for base in (0, 1 << order, 3 << order):
            if crosses and new_order < order - 1:
                xa.store(base, 7, order)
                with pytest.raises(OSError) as failure:
                    xa.cursor(base, new_order).try_split()
                assert failure.value.errno == errno.EINVAL
                assert list(xa.items()) == [(base, 7)] and xa.get_order(base) == order
            else:
                before = xa.nr_nodes
                pieces_after_split(xa, base, order, new_order, lambda at, to=new_order: xa.cursor(at, to).try_split())
                assert xa.nr_nodes <= before + 3
            xa.clear()


def test_split_limits(xa):
    def invalid(index, order):
        with pytest.raises(OSError) as failure:
            xa.split(index, order)
        assert failure.value.errno == errno.EINVAL

    invalid(5, 0)
    xa[5] = "a"
    invalid(5, 1)
    invalid(6, 0)
    xa.split(5, 0)
    xa.store(4096, "b", 12)
    for order in range(6):
        invalid(4096, order)
    invalid(4096, 13)
    xa.split(4096, 12)
    xa.split(4096, 6)
    assert len(xa) == 65
    with pytest.raises(ValueError):
        xa.split(4096, 5, ["x"])
    assert len(xa) == 65


def test_split_with_values(xa):
    xa.store(64, "a", 6)
    xa.set_mark(64, 2)
    xa.split(100, 4, ["w", None, 5, "z"])
    assert list(xa.items()) == [(64, "w"), (96, 5), (112, "z")]
    assert [i for i, _ in xa.items(mark=2)] == [64, 96, 112]
    xa.check()


@pytest.mark.parametrize("order, new_order", [(6, 0), (7, 5), (9, 0), (11, 5)])
def test_split_without_memory_changes_nothing(xa, order, new_order):
    xa.store(1 << order, 7, order)
    xa[1 << 20] = "a"
    before = list(xa.items()), xa.nr_nodes
    for nth in range(1, 1 + (1 << order % 6)):
        xa.fail_allocation(nth)
        with pytest.raises(OSError) as failure:
            xa.split(1 << order, new_order)
        assert failure.value.errno == errno.ENOMEM
        assert (list(xa.items()), xa.nr_nodes) == before and xa.get_order(1 << order) == order
        xa.check()
    xa.split(1 << order, new_order)


@pytest.mark.parametrize("base", [0, 64, 4096])
def test_list_of_shadow_nodes(xa, base):
    xa[base], xa[base + 1] = 1, 2
    assert xa.nr_shadow_nodes == 1
    assert xa.oldest_shadow_node() == (base, 6)
    xa[base + 2] = "pointer"
    assert xa.nr_shadow_nodes == 0 and xa.oldest_shadow_node() is None
    xa[base + 2] = 3
    assert xa.nr_shadow_nodes == 1
    xa.cursor(*xa.oldest_shadow_node()).store(None)
    assert xa.empty and xa.nr_shadow_nodes == 0


def test_reclaiming_the_shadow_nodes_empties_the_array(xa):
    for i in range(0, 10000, 5):
        xa[i] = i
    xa.store(1 << 20, 5, 9)
    xa.store(1 << 40, 6)
    while (place := xa.oldest_shadow_node()) is not None:
        xa.cursor(*place).store(None)
        xa.check()
    assert xa.empty


def test_shadow_nodes_through_growth_shrinking_and_splits(xa):
    xa[0] = 5
    assert xa.nr_shadow_nodes == 0
    xa[1 << 12] = "a"
    assert xa.oldest_shadow_node() == (0, 6)
    del xa[1 << 12]
    assert xa.nr_shadow_nodes == 0
    xa.store(64, 5, 6)
    xa.split(64, 0)
    assert xa.nr_shadow_nodes == 2
    xa.clear()
    assert xa.nr_shadow_nodes == 0


@pytest.mark.parametrize("order", range(1, 12))
def test_counts(xa, order):
    cursor = xa.cursor(1 << order)
    xa.store(0, "pointer", order)
    cursor.load()
    assert 0 < cursor.node_count <= 1 << order
    assert cursor.node_nr_values == 0
    xa.store(1 << order, 5, order)
    assert cursor.node_count == 2 * cursor.node_nr_values
    xa.erase(1 << order)
    assert cursor.node_nr_values == 0
    xa.erase(0)
    assert xa.empty
