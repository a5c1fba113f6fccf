"""Writes files on a mount for ever, and says on standard output what must survive: `fuse_kill_writer.py DIRECTORY SEED`.

"synced NAME GENERATION NBYTES": fsync of the file returned after it had this content. "renamed NAME GENERATION NBYTES": the
file was replaced by rename after fsync, while it was open, and fsync of the directory returned.
"""

import os
import random
import sys


def content(name, generation, nbytes):
    """Return the bytes of a generation of a file."""
    return random.Random(f"{name} {generation}").randbytes(nbytes)


def write(fd, data, rng):
    """Write all of some data in pieces, in any order."""
    starts = list(range(0, len(data), 3000))
    rng.shuffle(starts)
    for start in starts:
        os.pwrite(fd, data[start : start + 3000], start)


def main(directory, seed):
    """Write until killed."""
    rng = random.Random(seed)
    directory_fd = os.open(directory, os.O_RDONLY)
    generation = 0
    while True:
        generation += 1
        name = f"file-{rng.randrange(4)}"
        path = os.path.join(directory, name)
        data = content(name, generation, rng.randrange(1, 60_000))
        if rng.random() < 0.5:
            print(f"writing {name} {generation} {len(data)}", flush=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 0)
            write(fd, data, rng)
            os.fsync(fd)
            print(f"synced {name} {generation} {len(data)}", flush=True)
            os.close(fd)
            os.fsync(directory_fd)
        else:
            with open(path, "a"):  # open while it is replaced
                fd = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                write(fd, data, rng)
                os.fsync(fd)
                os.close(fd)
                print(f"renaming {name} {generation} {len(data)}", flush=True)
                os.rename(path + ".new", path)
                os.fsync(directory_fd)
                print(f"renamed {name} {generation} {len(data)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
