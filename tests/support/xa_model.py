"""What an XArray should hold, as a list of disjoint ranges: slow, simple, and without a tree."""

INDEX_MAX = 2**64 - 1
LEVEL = 6


class Entry:
    """What covers first .. first + 2**order - 1."""

    def __init__(self, first, order, value, marks=()):
        self.first, self.order, self.value, self.marks = first, order, value, set(marks)
        self.last = first + (1 << order) - 1

    @property
    def reserved(self):
        """Whether it only keeps the place."""
        return self.value is None


class Model:
    """A sparse array whose entries are found by looking at all of them."""

    def __init__(self):
        self.entries = {}

    def at(self, index):
        """Return the entry that covers an index, or None."""
        return next((e for e in self.entries.values() if e.first <= index <= e.last), None)

    def overlapping(self, first, last):
        """Return the entries in a range, ascending."""
        if first > last:
            return []
        return sorted((e for e in self.entries.values() if e.first <= last and first <= e.last), key=lambda e: e.first)

    def load(self, index):
        """Return the value at an index."""
        entry = self.at(index)
        return entry.value if entry else None

    def store(self, index, value, order=0):
        """Store a value, or erase with None; a larger entry there is replaced whole. Return the previous value."""
        old = self.at(index)
        before = old.value if old else None
        if old and old.order >= order:
            self.remove([old])
            if value is not None:
                self.add(Entry(old.first, old.order, value, old.marks))
            return before
        first = index >> order << order
        gone = self.overlapping(first, first + (1 << order) - 1)
        self.remove(gone)
        if value is not None:
            self.add(Entry(first, order, value, set().union(*(e.marks for e in gone))))
        return before

    def reserve(self, index):
        """Keep an empty index."""
        if self.at(index) is None:
            self.add(Entry(index, 0, None))

    def release(self, index):
        """Give up a reservation."""
        entry = self.at(index)
        if entry and entry.reserved:
            self.remove([entry])

    def store_range(self, first, last, value):
        """Store over aligned pieces."""
        while first <= last:
            order = (first & -first).bit_length() - 1 if first else 63
            while first + (1 << order) - 1 > last:
                order -= 1
            self.store(first, value, order)
            first += 1 << order

    def can_split(self, index, order):
        """Return whether the entry at an index can be split to an order."""
        entry = self.at(index)
        return entry and order <= entry.order and entry.order // LEVEL - order // LEVEL < 2

    def split(self, index, order):
        """Split the entry at an index into pieces with its value and marks."""
        entry = self.at(index)
        self.remove([entry])
        for first in range(entry.first, entry.last + 1, 1 << order):
            self.add(Entry(first, order, entry.value, entry.marks))

    def items(self, start=0, last=INDEX_MAX, mark=None):
        """Return what iteration from start to last gives."""
        return [(max(e.first, start), e.value) for e in self.overlapping(start, last)
                if not e.reserved and (mark is None or mark in e.marks)]

    def lowest_empty(self, first, last):
        """Return the lowest index that nothing covers, or None."""
        for entry in self.overlapping(first, last):
            if entry.first > first:
                break
            first = entry.last + 1
        return first if first <= last else None

    def add(self, entry):
        """Add an entry."""
        self.entries[entry.first] = entry

    def remove(self, entries):
        """Remove entries."""
        for entry in entries:
            del self.entries[entry.first]
