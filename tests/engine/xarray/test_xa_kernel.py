"""What Linux checks of its XArray (lib/test_xarray.c), as far as the other files here do not: the loops over all orders and
pairs, and what is stored where a search has ended. Not translated: what has no counterpart here (create_range, pointers to
errors, allocation that waits).
"""

import errno
import itertools

import pytest

INDEX_MAX = (1 << 64) - 1
UINT_MAX = (1 << 32) - 1
RESERVED_BASES = (0, 1)


def store_where_the_conflicts_ended(xa, start, order):
    """What replaces all that is in a range: look at each entry in it, then store over them. Returns how many."""
    cursor = xa.cursor(start, order)
    count = 0
    while (value := cursor.find_conflict()) is not None:
        assert start <= value < start + (1 << order)
        count += 1
    assert cursor.find_conflict() is None
    cursor.store(start)
    assert xa[start] == xa[start + (1 << order) - 1] == start
    assert xa.get_order(start) == order
    if start:
        assert xa.load(start - 1) is None or start - 1 == 63
    assert xa.load(start + (1 << order)) is None
    xa.check()
    assert xa.erase(start) == start
    return count


@pytest.mark.parametrize("order", range(14))
def test_a_store_after_the_last_conflict_replaces_all_of_them(xa, order):
    size = 1 << order
    for start in (0, size):
        assert store_where_the_conflicts_ended(xa, start, order) == 0
        assert xa.empty
    for at in (size, 2 * size - 1):
        xa[at] = at
        assert store_where_the_conflicts_ended(xa, size, order) == 1
        assert xa.empty
    for start in (0, size):
        for index in range(start, start + size):
            xa[index] = index
        assert store_where_the_conflicts_ended(xa, start, order) == size
        assert xa.empty


def test_a_store_after_the_last_conflict_leaves_what_lies_beside(xa):
    xa[63], xa[65] = 63, 65
    assert store_where_the_conflicts_ended(xa, 64, 2) == 1
    assert list(xa.items()) == [(63, 63)]


@pytest.mark.parametrize("order", range(0, 63, 7))
def test_a_cursor_whose_conflicts_have_ended_erases_and_stores_in_its_range(xa, order):
    """Of any order, in the middle of a large array, and at its end."""
    for start in {1 << order, (INDEX_MAX >> order) << order}:
        xa[start] = 1
        cursor = xa.cursor(start, order)
        assert cursor.find_conflict() == 1 and cursor.find_conflict() is None
        assert (cursor.index, cursor.load()) == (start, 1 if order == 0 else cursor.load())
        cursor.store(None)
        assert xa.empty
        cursor.set_order(start, order)
        assert cursor.find_conflict() is None
        cursor.store(2)
        assert [xa.find(0), xa.get_order(start)] == [(start, 2), order]
        xa.clear()


@pytest.mark.parametrize("order", range(20))
def test_conflicts_tell_their_order_from_parts_and_from_above(xa, order):
    cursor = xa.cursor()
    for i in range(10):
        base = i << order
        cursor.set_order(base, order)
        cursor.store(i)
        for k in range(order):
            cursor.set_order(base + (1 << k), k)
            assert (cursor.find_conflict(), cursor.get_order(), cursor.find_conflict()) == (i, order, None)
        cursor.set_order((i & ~1) << order, order + 1)
        assert (cursor.find_conflict(), cursor.get_order(), cursor.find_conflict()) == (i, order, None)
        cursor.set_order(base, order)
        cursor.store(None)
    assert xa.empty


def test_every_order_overwrites_every_other(xa):
    for first, second in itertools.product(range(0, 60, 3), range(60)):
        xa.store(0, first, first)
        xa.store(0, second, second)
        for k in range(0, 60, 4):
            expected = second if max(first, second) >= k else None
            if first > second and k > second:  # a smaller entry replaces the larger one as a whole
                expected = second if first >= k else None
            assert xa.load((1 << k) - 1) == expected, (first, second, k)
        xa.erase(0)
        assert xa.empty


@pytest.mark.parametrize("order", range(20))
def test_neighbours_of_one_order_come_and_go(xa, order):
    """As the page cache adds and removes folios: with holes before, behind and between."""
    size = 1 << order
    pos, positions = 7, []
    while pos < INDEX_MAX // 2:
        positions += [pos >> 12, (pos + 157) >> 12]
        pos = pos * pos + 564
    for base in {index >> order << order for index in positions}:
        places = [base, base + size, base + 2 * size]
        within = sorted({0, 1 % size, size // 2, size - 1})

        def seen(places=places, within=within):
            return [{xa.load(place + i) for i in within} for place in places]

        xa.store(places[0], "a", order)
        assert seen() == [{"a"}, {None}, {None}]
        xa[places[1]] = "b"
        assert xa.load(places[1]) == "b"
        xa.erase(places[1])
        xa.store(places[1], "b", order)
        assert seen() == [{"a"}, {"b"}, {None}]
        for place in (places[1], places[0]):
            xa.store(place, None, order)
        assert xa.empty
        for alone in (1, 2):
            xa.store(places[alone], "c", order)
            assert seen() == [{"c"} if i == alone else {None} for i in range(3)]
            xa.store(places[alone], None, order)
            assert xa.empty


@pytest.mark.parametrize("base", RESERVED_BASES)
def test_identifiers_are_given_in_order_and_again(xa, base):
    def alloc(value, low=base, high=UINT_MAX):
        return xa.alloc(value, low, high)

    assert alloc(base) == base
    assert [alloc(i) for i in range(base + 1, 128)] == list(range(base + 1, 128))
    for i in range(base, 128):
        assert xa.erase(i) == i
    assert xa.empty and alloc(base) == base
    xa.clear()
    assert (alloc(base), alloc(base + 1)) == (base, base + 1)
    xa.erase(base + 1)
    xa[base + 1] = 7
    assert alloc(8) == base + 2
    xa.erase(base)
    assert alloc(9) == base
    xa.erase(base + 1)
    xa.erase(base + 2)
    assert [alloc(i) for i in range(1, 1000)] == [base + i for i in range(1, 1000)]
    xa.clear()
    for _ in range(10):
        xa.alloc(None, base)
    assert xa.store(3, 3) is None and xa.store(4, 4) is None and xa.store(4, None) == 4
    xa.reserve(4)
    assert xa.erase(5) is None and xa.alloc(None, base) == 5
    assert xa.erase(3) == 3
    for i in {*range(base, base + 10)} - {3}:
        assert not xa.empty
        assert xa.erase(i) is None
    assert xa.empty


@pytest.mark.parametrize("base", RESERVED_BASES)
def test_cyclic_identifiers_say_when_they_begin_anew(xa, base):
    last = 0x3FFF
    assert xa.alloc_cyclic(1, 0, 1, last) == (1, 2, False)
    index, after, wrapped = xa.alloc_cyclic(0x3FFD, 0x3FFD, 1, last)
    assert (index, wrapped) == (0x3FFD, False)
    xa.erase(0x3FFD)
    xa.erase(1)
    assert xa.empty
    for i in range(0x3FFE, 0x4003):
        expected = i if i <= last else i - last
        index, after, wrapped = xa.alloc_cyclic(expected, after, 1, last)
        assert (index, wrapped) == (expected, expected == 1)
    xa.clear()
    index, after, wrapped = xa.alloc_cyclic(0, UINT_MAX, base)
    assert (index, wrapped) == (UINT_MAX, False)
    index, after, wrapped = xa.alloc_cyclic(0, after, base)
    assert (index, wrapped) == (base, True)
    index, after, wrapped = xa.alloc_cyclic(0, after, base)
    assert (index, wrapped) == (base + 1, False)
    index, after, wrapped = xa.alloc_cyclic(0, INDEX_MAX, base, INDEX_MAX)
    assert (index, after, wrapped) == (INDEX_MAX, INDEX_MAX + 1, False)
    assert xa.alloc_cyclic(0, after, base, INDEX_MAX) == (base + 2, base + 3, True)
    assert xa.alloc_cyclic(0, 1 << 200, base, INDEX_MAX) == (base + 3, base + 4, True)


def test_cyclic_identifiers_when_all_are_taken(xa):
    for i in range(4):
        assert xa.alloc_cyclic(i, i, 0, 3)[0] == i
    for start in (0, 2, 4):
        with pytest.raises(OSError) as failure:
            xa.alloc_cyclic("x", start, 0, 3)
        assert failure.value.errno == errno.EBUSY
    xa.erase(1)
    assert xa.alloc_cyclic("x", 2, 0, 3) == (1, 2, True)
    xa.erase(3)
    assert xa.alloc_cyclic("y", 2, 0, 3) == (3, 4, False)


def test_pauses_between_entries_of_every_order(xa):
    orders = range(63)

    def visited(start, pauses):
        cursor, found = xa.cursor(start), []
        while (value := cursor.find()) is not None:
            found.append(value)
            if pauses:
                cursor.pause()
        return found

    index = 1
    for order in orders:
        xa.store(index, order, order)
        index += 1 << order
    assert visited(0, False) == visited(0, True) == list(orders)
    xa.clear()
    index = 0
    for order in reversed(orders):
        xa.store(index, order, order)
        index += 1 << order
    assert visited(0, False) == visited(1, True) == list(reversed(orders))


def test_steps_over_a_dense_array_and_a_hole(xa):
    nr = 1 << 12
    for i in range(nr):
        xa[i] = i
    for low, high in [(0, 0), (1 << 8, 1 << 11)]:
        for i in range(low, high):
            xa.erase(i)
        expected = [None if low <= i < high else i for i in range(nr)]
        cursor = xa.cursor(nr - 1)
        assert [cursor.prev() for _ in range(nr)] == list(reversed(expected))
        assert cursor.prev() is None and cursor.index == INDEX_MAX
        assert [cursor.next() for _ in range(nr)] == expected


def test_a_large_entry_at_the_end_has_nothing_behind_it(xa):
    for order in range(5, 63):
        xa.store(0, 0, order - 4)
        assert xa.find_after(1 << (order - 5)) is None
        xa.erase(0)
        assert xa.empty


def test_nodes_beyond_what_entries_can_name_are_not_used(make_xa):
    """An entry of 32 bits names 2**30 / 5 nodes; with a higher number it would be taken for a value, and the page lost."""
    nodes_max = (1 << 30) // 5 - 205 + 1
    with pytest.raises(ValueError, match="nr_nodes must be in"):
        make_xa(nr_nodes=nodes_max + 1)
    try:
        xa = make_xa(nr_nodes=nodes_max)
    except MemoryError:
        pytest.skip("needs 64 GiB of addresses")
    xa._skip_groups(nodes_max // 64 - 1)
    stored = [0]
    xa[0] = 0
    with pytest.raises(OSError) as failure:
        for index in range(0, 64 << 12, 1 << 12):
            xa[index] = index
            stored.append(index)
    assert failure.value.errno == errno.ENOMEM
    assert dict(xa.items()) == {index: index for index in stored}
    assert 60 < xa.nr_nodes <= 64
    xa[stored[-1] + 1] = "beside"
    assert xa[stored[-1] + 1] == "beside"
