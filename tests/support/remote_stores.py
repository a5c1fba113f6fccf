"""Stores of the tests of background reads: they count what runs at once, hang on purpose, and answer out of order."""

import random
import threading
import time

from support import PAGE, PATIENCE_S, Store


class CountingStore(Store):
    """Notes the most requests that ran at once; each waits until `together` of them run, or for a moment."""

    preferred_request = 16 * PAGE
    max_request = 16 * PAGE
    parallel_requests = 4
    latency = "device"

    def __init__(self, data, key="counting", together=1, patience_s=0.5):
        super().__init__(data, key)
        self.patience_s = patience_s
        self.nr_running = self.most_running = 0
        self.together = together
        self._changed = threading.Condition()

    def answer(self, offset, buffers):
        with self._changed:
            self.nr_running += 1
            self.most_running = max(self.most_running, self.nr_running)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most_running >= self.together, self.patience_s)
        try:
            return super().answer(offset, buffers)
        finally:
            with self._changed:
                self.nr_running -= 1


class HangingStore(Store):
    """Requests for pages in `hanging` wait until `go_on` is set; the others are answered at once."""

    preferred_request = 4 * PAGE
    max_request = 4 * PAGE
    parallel_requests = 4
    latency = "device"

    def __init__(self, data, hanging, key="hanging"):
        super().__init__(data, key)
        self.hanging = hanging
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self._counting = threading.Lock()
        self.nr_left = 0

    def answer(self, offset, buffers):
        pages = range(offset // PAGE, (offset + sum(map(len, buffers)) + PAGE - 1) // PAGE)
        hangs = any(page in self.hanging for page in pages)
        if hangs:
            self.entered.set()
            assert self.go_on.wait(PATIENCE_S), "no test let the store answer"
        try:
            return super().answer(offset, buffers)
        finally:
            with self._counting:
                self.nr_left += hangs


class RandomStore(Store):
    """Fails, brings too little, or takes its time, at random; `is_kind` ends that. Requests overtake each other."""

    preferred_request = 8 * PAGE
    max_request = 8 * PAGE
    parallel_requests = 4
    latency = "device"

    def __init__(self, data, seed, key="random"):
        super().__init__(data, key)
        self._random = random.Random(seed)
        self._choice = threading.Lock()
        self.is_kind = False
        self.nr_errors = 0

    def answer(self, offset, buffers):
        with self._choice:
            fate, share = self._random.random(), self._random.random()
            fails = not self.is_kind and fate < 0.08
            self.nr_errors += fails
        if fails:
            raise OSError(5, "the store fails at random")
        if fate < 0.4:
            time.sleep(share / 1000)
        if fate < 0.6:
            return self.answer_part(offset, buffers, share)
        return super().answer(offset, buffers)

    def answer_part(self, offset, buffers, share):
        """Bring a part of what is there, at least one byte."""
        left = max(1, int(share * sum(map(len, buffers))))
        done = 0
        for buffer in buffers:
            part = buffer[: max(0, left - done)]
            if len(part):
                done += super().answer(offset + done, [part])
        return done


def wait_all_read(file):
    """Wait for all background reads of a file's object."""
    assert file.inode.wait_idle(PATIENCE_S), "background reads did not end"
