"""An XArray against a model: random operations, also with nodes that run out, and the n-th allocation failing."""

import errno
import os
import random

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.xa_model import INDEX_MAX, LEVEL, Model

from pagecache._core import XArray

STRESS = os.environ.get("PAGECACHE_STRESS") == "1"
SEQUENCES = 300 if STRESS else 40
OPERATIONS = 200 if STRESS else 60

# Few places, so that operations meet: around the edges of nodes of every level, and where the index ends.
near = st.one_of(st.integers(0, 10), st.integers(56, 72), st.integers(120, 136), st.integers(4088, 4104))
indices = st.one_of(
    near,
    st.integers(0, 300),
    st.builds(lambda k, d: max(0, min(INDEX_MAX, (1 << k) + d)), st.integers(0, 64), st.integers(-2, 2)),
    st.integers(0, INDEX_MAX),
)
orders = st.one_of(st.integers(0, 9), st.integers(0, 63))
marks = st.integers(0, 2)
values = st.one_of(st.integers(0, 2**31 - 1), st.builds(object))


def outcome(operation, *arguments):
    """Return (result, 0) or (None, errno)."""
    try:
        return operation(*arguments), 0
    except OSError as failure:
        return None, failure.errno


class XArrayMachine(RuleBasedStateMachine):
    """Every operation is done to an array and to the model; loads around what it touched must agree."""

    @initialize(scarce=st.booleans(), few=st.integers(0, 40))
    def make(self, scarce, few):
        self.xa = XArray(nr_nodes=few if scarce else 1 << 20)
        self.scarce = scarce
        self.model = Model()
        self.touched = {0, 1, 63, 64, INDEX_MAX}

    def touch(self, index, order=0):
        first = index >> order << order
        last = min(first + (1 << order) - 1, INDEX_MAX)
        places = {0, index, first - 1, first, (first + last) // 2, last, last + 1}
        self.touched = {i for i in places if 0 <= i <= INDEX_MAX}

    def apply(self, operation, model_operation, *arguments):
        """Do both, or neither if there is no memory."""
        result, error = outcome(operation, *arguments)
        if error:
            assert error == errno.ENOMEM and self.scarce
            return
        assert result == model_operation(*arguments)

    @rule(index=indices, value=values, order=orders)
    def store(self, index, value, order):
        self.touch(index, order)
        self.apply(self.xa.store, self.model.store, index, value, order)

    @rule(index=indices)
    def erase(self, index):
        self.touch(index, self.xa.get_order(index))
        assert self.xa.erase(index) == self.model.store(index, None)

    @rule(index=indices, order=st.integers(0, 63))
    def erase_range_of_order(self, index, order):
        self.touch(index, order)
        assert self.xa.store(index, None, order) == self.model.store(index, None, order)

    @rule(index=indices, value=st.one_of(st.none(), values), matching=st.booleans())
    def cmpxchg(self, index, value, matching):
        self.touch(index)
        entry = self.model.at(index)
        current = entry.value if entry else None
        old = current if matching else "something else"
        result, error = outcome(self.xa.cmpxchg, index, old, value)
        if error:
            assert error == errno.ENOMEM and self.scarce
            return
        assert result == current
        if matching and not (entry and entry.reserved):
            self.model.store(index, value)

    @rule(index=indices, value=st.one_of(st.none(), values))
    def insert(self, index, value):
        self.touch(index)
        _, error = outcome(self.xa.insert, index, value)
        if self.model.at(index):
            assert error == errno.EBUSY
        elif error:
            assert error == errno.ENOMEM and self.scarce
        elif value is None:
            self.model.reserve(index)
        else:
            self.model.store(index, value)

    @rule(index=indices)
    def reserve(self, index):
        self.touch(index)
        self.apply(self.xa.reserve, self.model.reserve, index)

    @rule(index=indices)
    def release(self, index):
        self.touch(index)
        self.xa.release(index)
        self.model.release(index)

    @rule(first=near, length=st.integers(1, 5000), value=st.one_of(st.none(), values))
    def store_range(self, first, length, value):
        self.touch(first, 12)
        self.apply(self.xa.store_range, self.model.store_range, first, first + length - 1, value)

    @rule(index=indices, order=orders, trying=st.booleans())
    def split(self, index, order, trying):
        entry = self.model.at(index)
        assume(entry is None or not entry.reserved)
        assume(entry is None or entry.order - order <= (11 if STRESS else 7))
        self.touch(index, order)
        possible = self.model.can_split(index, order)
        if trying and possible:
            smallest = entry.order - (entry.order % LEVEL or min(entry.order, 1))
            possible = order >= smallest
        _, error = outcome(self.xa.cursor(index, order).try_split if trying else self.xa.cursor(index, order).split)
        if not possible:
            assert error == errno.EINVAL
        elif error:
            assert error == errno.ENOMEM and self.scarce
        else:
            self.model.split(index, order)

    @rule(index=indices, mark=marks)
    def set_mark(self, index, mark):
        self.touch(index)
        self.xa.set_mark(index, mark)
        if entry := self.model.at(index):
            entry.marks.add(mark)

    @rule(index=indices, mark=marks)
    def clear_mark(self, index, mark):
        self.touch(index)
        self.xa.clear_mark(index, mark)
        if entry := self.model.at(index):
            entry.marks.discard(mark)

    @rule(index=near, marked=st.sets(marks), order=st.integers(1, 9), value=values)
    def cover_what_is_marked(self, index, marked, order, value):
        self.store(index, value, 0)
        for mark in marked:
            self.set_mark(index, mark)
        self.store(index + 1, value, order)

    @rule(first=indices, last=indices, mark=st.one_of(st.none(), marks))
    def search(self, first, last, mark):
        found = self.model.items(first, last, mark)
        assert self.xa.find(first, last, mark) == (found[0] if found else None)
        entry = self.model.at(first)
        after = entry.last + 1 if entry else first + 1
        found = self.model.items(after, last, mark) if after <= last else []
        assert self.xa.find_after(first, last, mark) == (found[0] if found else None)

    @rule(index=indices, order=orders)
    def conflicts(self, index, order):
        first = index >> order << order
        cursor = self.xa.cursor(index, order)
        found = []
        while (value := cursor.find_conflict()) is not None:
            found.append((cursor.index, value, cursor.get_order()))
        entries = self.model.overlapping(first, first + (1 << order) - 1)
        assert found == [(max(e.first, first), XArray.RESERVED if e.reserved else e.value, e.order) for e in entries]

    @rule(index=indices, steps=st.integers(1, 5), forward=st.booleans())
    def step(self, index, steps, forward):
        cursor = self.xa.cursor(index)
        for i in range(steps):
            value = cursor.next() if forward else cursor.prev()
            at = (index + i if forward else index - i) % 2**64
            assert cursor.index == at
            entry = self.model.at(at)
            if entry and at >> entry.order // LEVEL * LEVEL != entry.first >> entry.order // LEVEL * LEVEL:
                assert value is XArray.SIBLING
            else:
                assert value == (entry.value if entry and not entry.reserved else XArray.RESERVED if entry else None)

    @rule(start=near, every=st.integers(1, 4), mark=st.one_of(st.none(), marks))
    def walk_with_pauses(self, start, every, mark):
        cursor = self.xa.cursor(start)
        found = []
        while (value := cursor.find() if mark is None else cursor.find_marked(mark)) is not None:
            if value is not XArray.RESERVED:
                found.append((cursor.index, value))
            if len(found) % every == 0:
                cursor.pause()
        assert found == self.model.items(start, mark=mark)

    @rule(value=st.one_of(st.none(), values), first=near, length=st.integers(0, 300))
    def alloc(self, value, first, length):
        expected = self.model.lowest_empty(first, first + length)
        index, error = outcome(self.xa.alloc, value, first, first + length)
        if error:
            assert error == errno.EBUSY if expected is None else error == errno.ENOMEM and self.scarce
            return
        self.touch(index)
        assert index == expected
        if value is None:
            self.model.reserve(index)
        else:
            self.model.store(index, value)

    @rule(nth=st.integers(1, 12), index=indices, value=values, order=orders)
    def store_without_memory(self, nth, index, value, order):
        self.xa.fail_allocation(nth)
        self.touch(index, order)
        before = self.xa.nr_nodes
        result, error = outcome(self.xa.store, index, value, order)
        self.xa.fail_allocation(0)
        if error:
            assert error == errno.ENOMEM and self.xa.nr_nodes == before
        else:
            assert result == self.model.store(index, value, order)

    @rule()
    def clear(self):
        self.xa.clear()
        self.model = Model()

    @invariant()
    def agrees(self):
        if not hasattr(self, "xa"):
            return
        for index in self.touched:
            entry = self.model.at(index)
            assert self.xa.load(index) == (entry.value if entry else None)
            assert self.xa.get_order(index) == (entry.order if entry else 0)
            for mark in range(3):
                assert self.xa.get_mark(index, mark) == bool(entry and mark in entry.marks)
        self.xa.check()

    def teardown(self):
        if not hasattr(self, "xa"):
            return
        self.xa.check()
        assert list(self.xa.items()) == self.model.items()
        for mark in range(3):
            assert list(self.xa.items(mark=mark)) == self.model.items(mark=mark)
            assert self.xa.marked(mark) == any(mark in e.marks for e in self.model.entries.values())
        assert self.xa.empty == (not self.model.entries)
        self.xa.clear()
        self.xa.check()
        assert self.xa.nr_nodes == 0


TestXArrayMachine = XArrayMachine.TestCase
if not STRESS:
    TestXArrayMachine.settings = settings(max_examples=150, stateful_step_count=50)


def random_operation(rng):
    """Return a random change as a function of an array."""
    index = rng.choice((rng.randrange(200), rng.randrange(5000), 1 << rng.randrange(64), rng.randrange(2**64)))
    order = rng.choice((0, 0, 0, rng.randrange(10), rng.randrange(64)))
    value = rng.randrange(1000)
    return rng.choice((
        lambda xa: xa.store(index, value, order),
        lambda xa: xa.store(index, value),
        lambda xa: xa.erase(index),
        lambda xa: xa.reserve(index),
        lambda xa: xa.store_range(index % 10000, index % 10000 + 777, value),
        lambda xa: xa.cmpxchg(index, None, value),
        lambda xa: xa.alloc(value, index % 300),
        lambda xa: xa.split(index, max(0, xa.get_order(index) - 1 - value % 6)),
        lambda xa: xa.set_mark(index, value % 3),
    ))


def picture(xa):
    """Return everything that can be seen of an array."""
    return ([(i, value, xa.get_order(i), [xa.get_mark(i, mark) for mark in range(3)]) for i, value in xa.items()],
            xa.nr_nodes, xa._head, xa.nr_shadow_nodes)


@pytest.mark.parametrize("sequence", range(SEQUENCES))
def test_the_nth_allocation_fails_for_every_n(make_xa, seed, sequence):
    """Each operation is tried with its 1st, 2nd, ... allocation failing, and must leave no trace until it succeeds."""
    rng = random.Random(seed + sequence)
    xa = make_xa()
    for _ in range(OPERATIONS):
        operation = random_operation(rng)
        before = picture(xa)
        nth = 0
        while True:
            nth += 1
            xa.fail_allocation(nth)
            _, error = outcome(operation, xa)
            xa.fail_allocation(0)
            xa.check()
            if error != errno.ENOMEM:
                break
            assert picture(xa) == before
        assert error in (0, errno.EBUSY, errno.EINVAL)
        if len(xa) > 100:
            xa.clear()
