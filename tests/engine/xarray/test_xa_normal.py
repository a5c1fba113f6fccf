"""Compare-and-exchange, insertion, reservations, indices as identifiers."""

import errno

import pytest

INDEX_MAX = 2**64 - 1
UINT_MAX = 2**32 - 1


def busy(function, *arguments):
    """Return the message of the EBUSY that a call must raise."""
    with pytest.raises(OSError) as failure:
        function(*arguments)
    assert failure.value.errno == errno.EBUSY
    return str(failure.value)


def test_insert_on_an_entry_is_busy(xa):
    for i in (0, 1, 64, INDEX_MAX):
        xa.insert(i, "a")
        assert f"index {i}" in busy(xa.insert, i, "b")
        assert f"index {i}" in busy(xa.insert, i, None)
        assert xa[i] == "a"
    xa.store(128, "large", 6)
    busy(xa.insert, 191, "b")


def test_cmpxchg(xa):
    for i in (0, 1, 12345678, INDEX_MAX):
        assert xa.cmpxchg(i, None, 5) is None
        assert xa[i] == 5
        assert xa.cmpxchg(i, 6, 7) == 5
        assert xa.cmpxchg(i, None, 7) == 5
        assert xa[i] == 5
        assert xa.cmpxchg(i, 5, 7) == 5
        assert xa[i] == 7
        assert xa.cmpxchg(i, 7, None) == 7
        assert i not in xa
    assert xa.empty


def test_cmpxchg_of_objects_goes_by_identity(xa):
    a, b = [1], [1]
    xa[3] = a
    assert xa.cmpxchg(3, b, "c") is a and xa[3] is a
    assert xa.cmpxchg(3, a, "c") is a and xa[3] == "c"
    xa[3] = 1
    assert xa.cmpxchg(3, True, "d") == 1 and xa[3] == 1


def test_cmpxchg_without_memory_changes_nothing(xa):
    xa.fail_allocation(1)
    with pytest.raises(OSError) as failure:
        xa.cmpxchg(5, None, "a")
    assert failure.value.errno == errno.ENOMEM
    assert xa.empty


def test_cmpxchg_to_nothing_erases_the_whole_entry(xa):
    xa.store(0, "a", 3)
    xa.store(8, "b", 3)
    assert xa.cmpxchg(0, "a", None) == "a"
    for i in range(8):
        assert xa.load(i) is None and xa.get_order(i) == 0
    for i in range(8, 16):
        assert xa[i] == "b" and xa.get_order(i) == 3


def test_reserve_and_release(xa):
    for i in (0, 1, 64, 12345678, INDEX_MAX):
        xa.reserve(i)
        assert not xa.empty
        assert xa.load(i) is None and len(xa) == 0
        xa.check()
        xa.release(i)
        assert xa.empty and xa.nr_nodes == 0


def test_release_after_a_store_does_nothing(xa):
    for i in (0, 1, 12345678, INDEX_MAX):
        xa.reserve(i)
        xa[i] = "a"
        xa.check()
        xa.release(i)
        assert xa[i] == "a"
        xa.reserve(i)
        assert xa[i] == "a"
        xa.clear()


def test_store_into_a_reserved_slot_needs_no_memory(xa):
    """There is no other kind of allocation here, so every allocation is made to fail."""
    for i in (0, 1, 12345678, INDEX_MAX):
        xa.reserve(i)
        xa.fail_allocation(1)
        assert xa.store(i, "a") is None
        assert xa[i] == "a"
        with pytest.raises(OSError):
            xa.store(i ^ (1 << 40), "b")
        xa.check()
        xa.clear()


def test_reserve_without_memory(xa):
    xa.fail_allocation(1)
    with pytest.raises(OSError) as failure:
        xa.reserve(0)
    assert failure.value.errno == errno.ENOMEM
    assert xa.empty


def test_cmpxchg_on_a_reserved_slot(xa):
    for i in (0, 5, 12345678):
        xa.reserve(i)
        assert xa.cmpxchg(i, None, "a") is None
        assert xa.load(i) is None
        assert xa.cmpxchg(i, xa.RESERVED, "a") is None
        assert xa[i] == "a"
        xa.check()


def test_insert_on_a_reserved_slot_is_busy(xa):
    for i in (0, 5, 12345678):
        xa.insert(i, None)
        busy(xa.insert, i, "a")
        assert i not in xa
        xa.release(i)
        xa.insert(i, "a")


def test_erasing_a_reserved_slot(xa):
    for i in (0, 1, 12345678, INDEX_MAX):
        xa.reserve(i)
        assert xa.erase(i) is None
        assert xa.empty and xa.nr_nodes == 0


def test_iteration_skips_reserved_slots(xa):
    for i in range(0, 200, 3):
        xa.reserve(i)
    for i in range(1, 200, 3):
        xa[i] = i
    assert list(xa) == list(range(1, 200, 3))
    assert xa.find(0) == (1, 1)
    assert xa.find_after(1) == (4, 4)
    assert xa.find(197) == (199, 199)
    assert xa.find(197, 198) is None
    assert xa.extract() == list(range(1, 200, 3))


def test_alloc_skips_reserved_slots(xa):
    xa.reserve(0)
    xa.reserve(2)
    assert [xa.alloc("a") for _ in range(3)] == [1, 3, 4]
    xa.release(2)
    xa.release(0)
    assert [xa.alloc("a") for _ in range(3)] == [0, 2, 5]


@pytest.mark.parametrize("base", [0, 1])
def test_alloc_gives_the_lowest(xa, base):
    for forget in (xa.erase, lambda index: xa.clear()):
        assert xa.alloc("a", base) == base
        forget(base)
        assert xa.empty
        assert xa.alloc("a", base) == base
        assert xa.alloc("b", base) == base + 1
        xa[base + 2] = "stored"
        assert xa.alloc("c", base) == base + 3
        del xa[base + 1]
        assert xa.alloc("d", base) == base + 1
        xa.clear()


def test_alloc_passes_full_nodes_and_large_entries(xa):
    xa.store(0, "large", 9)
    xa.store_range(512, 5000, "range")
    assert xa.alloc("a") == 5001
    del xa[4096]
    assert xa.alloc("b") == 4096
    assert [xa.alloc("c", 4000) for _ in range(3)] == [4097, 4098, 4099]


def test_alloc_at_the_end_of_the_range(xa):
    assert xa.alloc("a", UINT_MAX - 1, UINT_MAX) == UINT_MAX - 1
    assert xa.alloc("b", UINT_MAX - 1, UINT_MAX) == UINT_MAX
    busy(xa.alloc, "c", UINT_MAX - 1, UINT_MAX)
    assert list(xa.items()) == [(UINT_MAX - 1, "a"), (UINT_MAX, "b")]
    assert xa.alloc("d", INDEX_MAX, INDEX_MAX) == INDEX_MAX
    busy(xa.alloc, "e", INDEX_MAX, INDEX_MAX)


def test_alloc_of_an_empty_range_is_busy(xa):
    busy(xa.alloc, "a", 10, 5)
    xa[7] = "b"
    busy(xa.alloc, "a", 10, 5)
    assert list(xa) == [7]


def test_alloc_of_none_occupies(xa):
    assert xa.alloc(None) == 0
    assert not xa.empty
    assert xa.alloc(None) == 1
    assert xa.erase(1) is None
    assert xa.alloc("a") == 1
    assert xa.erase(0) is None
    assert xa.alloc("b") == 0


def test_alloc_without_memory(xa):
    xa[0] = "a"
    xa.fail_allocation(1)
    with pytest.raises(OSError) as failure:
        xa.alloc("b")
    assert failure.value.errno == errno.ENOMEM
    assert list(xa) == [0]


def test_alloc_cyclic(xa):
    assert xa.alloc_cyclic("a", 1, 1, 100) == (1, 2, False)
    assert xa.alloc_cyclic("b", 2, 1, 100) == (2, 3, False)
    del xa[1]
    assert xa.alloc_cyclic("c", 3, 1, 100) == (3, 4, False)
    assert xa.alloc_cyclic("d", 100, 1, 100) == (100, 101, False)
    assert xa.alloc_cyclic("e", 101, 1, 100) == (1, 2, True)
    assert xa.alloc_cyclic("f", UINT_MAX, 1) == (UINT_MAX, UINT_MAX + 1, False)
    assert xa.alloc_cyclic("g", UINT_MAX + 1, 1) == (4, 5, True)
    for i in range(1, 11):
        xa[i] = "full"
    busy(xa.alloc_cyclic, "h", 5, 1, 10)


def test_values_of_any_low_bits(xa):
    """Pointers to anything cannot be stored here, and entries of the engine's own kinds are refused; objects and
    integers of which the entries differ in every low bit can be, at every index."""
    values = [object() for _ in range(8)] + list(range(8))
    for value in values:
        for i in range(8):
            assert xa.store(i, value) is None
            assert xa[i] is value
            assert list(xa.items()) == [(i, value)]
            assert xa.cursor(i).load() is value
            xa.check()
            del xa[i]
            xa.reserve(i)
            xa.fail_allocation(1)
            xa[i] = value
            xa.fail_allocation(0)
            assert xa[i] is value
            xa.clear()
        assert xa.alloc(value) == 0
        assert xa.alloc(value) == 1
        assert xa.alloc(value, 7, 7) == 7
        assert xa[0] is xa[1] is xa[7] is value
        xa.clear()
