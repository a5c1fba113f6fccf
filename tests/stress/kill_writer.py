"""A process that writes one file through a cache until it is killed, and says of what it wrote what is durable.

    python tests/stress/kill_writer.py PATH LOG SEED FRAMES DURABILITY

The file is divided into lanes, one for each thread. A thread writes whole records of its own lane, each byte of which
depends on place and generation, and appends a line to the log (one write(2), which outlives the process) only when the
call that makes them durable has returned:

    start GENERATION RECORD...   these records are about to be written with this generation
    done GENERATION RECORD...    they are durable
    cut RECORD / was-cut RECORD  from this record on the lane will be, is durably truncated (last lane only)
"""

import os
import random
import sys
import threading

RECORD = 1000  # bytes: most records lie over a page's edge
NR_RECORDS = 60  # of a lane
NR_THREADS = 2
NR_WRITES = 6  # records at most between two syncs
HEADER = 4  # bytes of the generation at the beginning of a record


def content(lane, record, generation):
    """Return the bytes of a record."""
    seed = f"{lane} {record} {generation}"
    return generation.to_bytes(HEADER, "little") + random.Random(seed).randbytes(RECORD - HEADER)


def offset_of(lane, record):
    """Return where a record is in the file."""
    return (lane * NR_RECORDS + record) * RECORD


class Writer:
    """One thread of the process: writes its lane, generation by generation.

    file: open for writing, with a durability. log: a descriptor. may_cut: whether it also truncates the file.
    """

    def __init__(self, file, lane, rng, log, may_cut):
        self.file, self.lane, self.rng, self.log, self.may_cut = file, lane, rng, log, may_cut
        self.generation = 0

    def say(self, *words):
        """Append a line to the log."""
        os.write(self.log, f"{self.lane} {' '.join(map(str, words))}\n".encode())

    def run(self):
        """Write until the process dies."""
        while True:
            self.generation += 1
            if self.may_cut and self.rng.random() < 0.2:
                self.cut()
            else:
                self.write()

    def write(self):
        """Write some records with a new generation and make them durable."""
        if self.rng.random() < 0.5:
            first = self.rng.randrange(NR_RECORDS)
            records = list(range(first, min(first + NR_WRITES, NR_RECORDS)))
        else:
            records = sorted(self.rng.sample(range(NR_RECORDS), self.rng.randrange(1, NR_WRITES)))
        self.say("start", self.generation, *records)
        for record in records:
            self.put(offset_of(self.lane, record), content(self.lane, record, self.generation))
        if self.file.durability not in ("dsync", "sync"):
            self.rng.choice((self.file.fsync, self.file.fdatasync))()
        self.say("done", self.generation, *records)

    def put(self, offset, data):
        """Write a record: by pwrite, or through a map where the file is long enough and the mode allows it."""
        if self.file.durability == "write-back" and self.rng.random() < 0.3:
            start = offset // 4096 * 4096
            try:
                mapped = self.file.mmap(offset + len(data) - start, start, 2)
            except ValueError:  # behind the end of the file
                self.file.pwrite(data, offset)
                return
            with mapped:
                mapped[offset - start :] = data
        else:
            self.file.pwrite(data, offset)

    def cut(self):
        """Truncate the lane, perhaps extend the file with zeros again, and make that durable."""
        record = self.rng.randrange(1, NR_RECORDS)
        self.say("cut", record)
        self.file.truncate(offset_of(self.lane, record))
        if self.rng.random() < 0.5:
            self.file.truncate(offset_of(self.lane, NR_RECORDS))
        self.file.fsync()
        self.say("was-cut", record)


def main(path, log_path, seed, nr_frames, durability):
    """Write until the process is killed."""
    import pagecache

    cache = pagecache.PageCache(nr_frames * 4096, dirty_limit="40%")
    rng = random.Random(seed)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    files = [cache.open(path, "r+b", durability=durability) for _ in range(NR_THREADS)]
    writers = [
        Writer(file, lane, random.Random(rng.random()), log, lane == NR_THREADS - 1) for lane, file in enumerate(files)
    ]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
