"""What runs on a host of network_hosts.py: `origin`, a server of one object, or `member`, one of a group of peers.

Commands come as lines of JSON, the first with the settings; each has one line for an answer.
"""

import json
import sys
import time

from support import pages_of

OBJECT = "object"
READ_BYTES = 64 * 1024


def answer(**values):
    """Say something."""
    print(json.dumps(values), flush=True)


def serve_origin(settings):
    """Serve an object of so many bytes; answers how many of them were sent since the last time."""
    from support.http_server import ObjectServer

    with ObjectServer(host=settings["address"]) as server:
        answer(url=server.put(OBJECT, pages_of(settings["nbytes"])))
        for _ in sys.stdin:
            answer(nbytes=server.bytes_sent())
            server.forget()


def take_part(settings):
    """Read the object as one of the members."""
    import pagecache
    from pagecache.adapters.peers import PeerGroup

    data, url = pages_of(settings["nbytes"]), settings["url"]
    with pagecache.PageCache(settings["cache"]) as cache:
        group = PeerGroup(settings["members"], settings["me"], cache=cache, secret="s", **settings["options"])
        with group:
            answer(ready=True)
            group.attach()
            with cache.open(url) as file:
                for line in sys.stdin:
                    if json.loads(line).get("drop"):
                        cache.drop_caches()
                    answer(**scan(cache, file, data), **group.stats())
        cache.check()


def scan(cache, file, data):
    """Read all; returns whether it is right, the longest read (seconds), and where it came from."""
    before, longest, wrong = cache.stats().as_dict(), 0.0, 0
    for offset in range(0, len(data), READ_BYTES):
        started = time.perf_counter()
        got = file.pread(READ_BYTES, offset)
        longest = max(longest, time.perf_counter() - started)
        wrong += got != data[offset : offset + READ_BYTES]
    after = cache.stats().as_dict()
    names = ("peer_bytes", "peer_failures", "origin_bytes")
    return {"wrong": wrong, "longest_s": longest, **{name: after[name] - before[name] for name in names}}


def main():
    """Do what the argument says."""
    settings = json.loads(sys.stdin.readline())
    {"origin": serve_origin, "member": take_part}[sys.argv[1]](settings)


if __name__ == "__main__":
    main()
