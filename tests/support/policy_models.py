"""The eviction policies again, as plain Python on lists: what the engine must do, access by access."""

MASK64 = (1 << 64) - 1
RULES = {"s3fifo": (100, False, 100), "lirs": (10, True, 400)}  # small share in permille, by recency, memory in percent
BATCH_PART = 128


def folio_hash(mapping, index):
    """Return the engine's hash of a folio."""
    z = (index * 0x9E3779B97F4A7C15 + mapping * 0xC2B2AE3D27D4EB4F) & MASK64
    z ^= z >> 32
    return ((z * 0xD6E8FEB86659FD93) & MASK64) >> 32


class Ghosts:
    """The words of evicted folios: four entries each, the newest first."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.words = [[] for _ in range(capacity)]
        self.length = max(1, capacity // 4)

    def word(self, key):
        return self.words[key * self.capacity >> 32]

    def add(self, key, stamp):
        word = self.word(key)
        word.insert(0, (key & 1023, stamp // self.length % 63))
        del word[4:]

    def take(self, key, clock):
        word = self.word(key)
        for at, (tag, epoch) in enumerate(word):
            if tag == key & 1023:
                del word[at]
                age = (clock // self.length - epoch) % 63
                return None if age > clock // self.length else (clock // self.length - age) * self.length
        return None


class Page:
    """A cached page: uses since it was last moved (two at most), and when that was."""

    def __init__(self, stamp):
        self.uses, self.stamp = 0, stamp
        self.is_fresh = True  # the use that created it took one of the two flags


class Model:
    """What all policies share: a dictionary of pages, evicted in batches when the frames are all in use."""

    def __init__(self, nr_frames):
        self.nr_frames = nr_frames
        self.batch = min(32, max(1, nr_frames // BATCH_PART))
        self.pages = {}
        self.clock = 0

    def access(self, index):
        """Use a page once. Return whether it missed."""
        page = self.pages.get(index)
        if page is not None:
            page.uses = min(page.uses + 1, 1 if page.is_fresh else 2)
            return False
        if len(self.pages) == self.nr_frames:
            gone = [self.pick() for _ in range(self.batch)]
            for victim in gone:
                self.leave(victim)
        self.clock += 1
        self.admit(index)
        return True

    def leave(self, victim):
        """Note that a victim is gone."""


class Sieve(Model):
    """One queue, newest last, and a hand that walks from the oldest to the newest."""

    def __init__(self, nr_frames):
        super().__init__(nr_frames)
        self.queue, self.hand = [], None

    def admit(self, index):
        self.queue.append(index)
        self.pages[index] = Page(self.clock)

    def pick(self):
        while True:
            at = 0 if self.hand is None else self.queue.index(self.hand)
            index = self.queue[at]
            self.hand = self.queue[at + 1] if at + 1 < len(self.queue) else None
            page = self.pages[index]
            if page.uses == 0:
                self.queue.remove(index)
                del self.pages[index]
                return index, page
            page.uses, page.is_fresh = 0, False


class Queues(Model):
    """Two queues, newest last, and ghosts."""

    def __init__(self, nr_frames, policy, mapping=1):
        super().__init__(nr_frames)
        permille, self.by_recency, self.memory = RULES[policy]
        self.small_share = max(1, (nr_frames * permille + 500) // 1000)
        self.small, self.main = [], []
        self.ghosts = Ghosts(nr_frames)
        self.mapping = mapping

    def has_room(self):
        return len(self.main) + self.small_share < self.nr_frames

    def is_over(self):
        return len(self.main) + self.small_share > self.nr_frames

    def rotate_used(self):
        page = self.pages[self.main[0]]
        if page.uses == 0:
            return False
        page.uses, page.stamp, page.is_fresh = page.uses - 1, self.clock, False
        self.main.append(self.main.pop(0))
        return True

    def admits(self, stamp):
        if not self.by_recency or self.has_room():
            return True
        for _ in range(8):
            if not self.main or not self.rotate_used():
                break
        if not self.main:
            return True
        tail = self.pages[self.main[0]]
        return tail.uses == 0 and tail.stamp < stamp

    def drop_tail(self):
        page = self.pages[self.main[0]]
        page.uses, page.is_fresh = 0, False
        self.small.append(self.main.pop(0))

    def enter_main(self, index):
        self.main.append(index)
        for _ in range(32 if self.by_recency else 0):
            if not self.main or not self.is_over():
                break
            if not self.rotate_used():
                self.drop_tail()

    def admit(self, index):
        key = folio_hash(self.mapping, index)
        stamp = self.ghosts.take(key, self.clock)
        is_known = stamp is not None and (self.clock - stamp) * 100 <= self.nr_frames * self.memory
        self.pages[index] = Page(self.clock)
        if self.by_recency and self.has_room():
            self.main.append(index)
        elif is_known and self.admits(stamp):
            self.enter_main(index)
        else:
            self.small.append(index)

    def pick(self):
        while True:
            if self.small and (not self.main or not self.is_over()):
                index = self.small[0]
                page = self.pages[index]
                if page.uses == 0:
                    self.small.pop(0)
                    return index, self.pages.pop(index)
                enters = self.admits(page.stamp)
                page.uses, page.stamp, page.is_fresh = 0, self.clock, False
                self.small.remove(index)
                if enters:
                    self.enter_main(index)
                else:
                    self.small.append(index)
            elif not self.rotate_used():
                if self.by_recency:
                    self.drop_tail()
                else:
                    index = self.main.pop(0)
                    return index, self.pages.pop(index)

    def leave(self, victim):
        index, page = victim
        self.ghosts.add(folio_hash(self.mapping, index), page.stamp)


def model_of(policy, nr_frames):
    """Return the model of a policy."""
    return Sieve(nr_frames) if policy == "sieve" else Queues(nr_frames, policy)
