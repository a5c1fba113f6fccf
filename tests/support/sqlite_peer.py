"""Another process on the same database: it runs SQL on request, with SQLite's own VFS ("plain") or through a cache.

    python sqlite_peer.py plain|cached        then lines [sql, bindings] in JSON on standard input; OPEN PATH and CLOSE too
"""

import json
import subprocess
import sys
from pathlib import Path


class Peer:
    """Such a process, seen from the test. It may have one database after the other open."""

    def __init__(self, kind):
        command = [sys.executable, "-P", str(Path(__file__).resolve()), kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, sql, *bindings):
        """Have something run, without waiting for it."""
        self.process.stdin.write(json.dumps([sql, bindings]) + "\n")
        self.process.stdin.flush()

    def finish(self):
        """Return the rows of what was started last, or the name of what went wrong: "BusyError"."""
        return json.loads(self.process.stdout.readline())

    def run(self, sql, *bindings):
        """Run SQL and return its rows, or the name of what went wrong."""
        self.start(sql, *bindings)
        return self.finish()

    def kill(self):
        """End the process as kill -9 does."""
        self.process.kill()
        self.process.wait()

    def end(self):
        """Kill it and give its pipes back."""
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


def opener(kind):
    """Return a function that opens a path."""
    import apsw

    if kind == "plain":
        return apsw.Connection
    import pagecache
    from pagecache.adapters.sqlite import connect

    cache = pagecache.PageCache("1MiB")
    return lambda path: connect(path, cache)


def main(kind):
    """Run what comes until nothing comes any more."""
    import apsw

    open_path, db = opener(kind), None
    for line in sys.stdin:
        sql, bindings = json.loads(line)
        answer = []
        try:
            if sql == "OPEN":
                db = open_path(*bindings)
            elif sql == "CLOSE":
                db.close(True)
            elif sql == "INCREMENT":
                db.set_busy_timeout(60_000)
                for _ in range(bindings[0]):
                    db.execute("BEGIN IMMEDIATE; UPDATE t SET b = b + 1 WHERE a = 1; COMMIT")
            else:
                answer = db.execute(sql, bindings or None).fetchall()
        except apsw.Error as error:
            answer = type(error).__name__
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
