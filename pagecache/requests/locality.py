"""Whether the misses of one object lie close together."""

from collections import deque

NEAR_PAGES = 256  # misses that lie no further apart are close together
RECENT_MISSES = 8  # each miss is compared with so many before it
SCORE_CLOSE, SCORE_MAX = 3, 8  # from which score on misses are close together; a miss far from all others counts twice


class Locality:
    """Whether the misses of one object lie close together. Racy by design: it steers only how much is read."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT_MISSES)
        self._score = 0
        self.nr_misses = 0
        self.nr_read_around = 0  # pages, of an object that is small

    def note(self, index: int) -> bool:
        """Note a miss of page `index`. Returns whether the latest ones are close together."""
        is_near = any(abs(index - other) <= NEAR_PAGES for other in tuple(self._recent))
        self._recent.append(index)
        self._score = min(self._score + 1, SCORE_MAX) if is_near else max(self._score - 2, 0)
        return self._score >= SCORE_CLOSE
