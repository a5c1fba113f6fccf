"""Times readers in turns: every round visits every peer, each time beginning with another one."""

import gc
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .peer import Loop, Peer, Reader, compiled, hands_out_stored_objects

OFFSETS_MAX = 65_536
READS_MIN = 8
ROUND_NS = 4_000_000  # short enough that some rounds are not disturbed
THREADS_FACTOR = 4  # threads that take turns with a GIL need longer than its switch interval
CALIBRATION_NS = 1_000_000
CALIBRATIONS = 3
OBJECTS = 15  # looked at to see whether a peer copies

Clock = Callable[[], int]


@dataclass(frozen=True)
class Cell:
    """What one number of the table is about."""

    peer: str
    nbytes: int
    nr_threads: int


@dataclass
class Times:
    """Nanoseconds of a read in every round, by cell; and which peers copy nothing, by name and size."""

    ns: dict[Cell, list[float]]
    uncopied: set[tuple[str, int]]


def random_offsets(nbytes: int, file_bytes: int, seed: int) -> list[int]:
    """Return offsets for reads of `nbytes`, multiples of it."""
    generator = random.Random(seed)
    return [generator.randrange(file_bytes // nbytes) * nbytes for _ in range(OFFSETS_MAX)]


def elapsed_ns(loops: Sequence[Loop], offsets: Sequence[Sequence[int]], clock: Clock = time.perf_counter_ns) -> int:
    """Run every loop, each in a thread if there are several; return the time from the first start to the last end."""
    if len(loops) == 1:
        start = clock()
        loops[0](offsets[0])
        return clock() - start
    barrier = threading.Barrier(len(loops))
    spans: list[tuple[int, int]] = []

    def run(loop: Loop, mine: Sequence[int]) -> None:
        barrier.wait()
        start = clock()
        loop(mine)
        spans.append((start, clock()))

    threads = [threading.Thread(target=run, args=each) for each in zip(loops, offsets, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(spans) != len(loops):
        raise RuntimeError("a thread that read has failed; see above")
    return max(end for _, end in spans) - min(start for start, _ in spans)


def reads_of_a_round(loop: Loop, offsets: Sequence[int]) -> int:
    """Return how many reads make a round long enough to time and short enough to repeat."""
    count = READS_MIN
    while True:
        taken_ns = min(elapsed_ns([loop], [offsets[:count]]) for _ in range(CALIBRATIONS))
        if taken_ns >= CALIBRATION_NS or count >= len(offsets):
            return max(READS_MIN, min(len(offsets), count * ROUND_NS // max(taken_ns, 1)))
        count = min(4 * count, len(offsets))


def read_ns(loops: Sequence[Loop], offsets: Sequence[Sequence[int]], count: int, round_number: int) -> float:
    """Return the nanoseconds of a read in one round, of other offsets in every round."""
    if len(loops) > 1:
        count = min(OFFSETS_MAX, count * THREADS_FACTOR)
    first = round_number * 7919 % (OFFSETS_MAX - count + 1)
    some = [each[first : first + count] for each in offsets]
    return elapsed_ns(loops, some) / (count * len(loops))


def rotated(things: Sequence, by: int) -> Iterator:
    """Yield the things, from another one on each time."""
    start = by % len(things)
    return itertools.chain(things[start:], things[:start])


def measure_size(peers: Sequence[Peer], nbytes: int, thread_counts: Sequence[int], rounds: int, times: Times) -> None:
    """Time all peers reading `nbytes`; add what was found to `times`."""
    nr_readers = max(thread_counts)
    offsets = {  # other ones for each number of threads: what one has read is in the processor's caches for the next
        nr_threads: [random_offsets(nbytes, peers[0].data.nbytes, 100 * nr_threads + slot) for slot in range(nr_threads)]
        for nr_threads in thread_counts
    }
    some = offsets[thread_counts[0]][0]
    loops: dict[str, list[Loop]] = {}
    counts: dict[str, int] = {}
    for peer in peers:
        readers: list[Reader] = [compiled(peer, nbytes) for _ in range(nr_readers)]
        loops[peer.name] = [reader.loop for reader in readers]
        counts[peer.name] = reads_of_a_round(readers[0].loop, some)
        if hands_out_stored_objects(readers[0].read, some[:OBJECTS]):
            times.uncopied.add((peer.name, nbytes))
    for number in range(rounds):
        for peer in rotated(peers, number * 5):
            for nr_threads in rotated(thread_counts, number):
                ns = read_ns(loops[peer.name][:nr_threads], offsets[nr_threads], counts[peer.name], number)
                times.ns.setdefault(Cell(peer.name, nbytes, nr_threads), []).append(ns)


def measure(
    peers: Sequence[Peer],
    sizes: Sequence[int],
    thread_counts: Sequence[int],
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Times:
    """Time all peers at every size and number of threads.

    Context: the collector rests meanwhile.
    """
    times = Times({}, set())
    gc.collect()
    gc.disable()
    try:
        for nbytes in sizes:
            progress(f"reads of {nbytes} bytes")
            measure_size(peers, nbytes, thread_counts, rounds, times)
    finally:
        gc.enable()
    return times
