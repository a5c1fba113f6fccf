"""Real servers of values for tests and benchmarks: Valkey or Redis, and memcached, started here and stopped in the end.

PAGECACHE_VALKEY_SERVER names the server; else valkey-server, then redis-server, is looked for in PATH.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_PATIENCE_S = 20


def valkey_program():
    """Return the path of valkey-server or redis-server, or None."""
    given = os.environ.get("PAGECACHE_VALKEY_SERVER")
    return shutil.which(given) if given else shutil.which("valkey-server") or shutil.which("redis-server")


def has_client():
    """Return whether a client library of Valkey is installed."""
    return any(importlib.util.find_spec(name) for name in ("valkey", "redis"))


def memcached_program():
    """Return the path of memcached, or None."""
    return shutil.which("memcached")


PROGRAMS = {"valkey": valkey_program(), "memcached": memcached_program()}


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class ValueServer:
    """A server in a process of its own, whose address stays when it starts again.

    kind: "valkey" or "memcached". options: of its command line. tcp: reached on a port of the loopback interface, not by a
    Unix socket.
    """

    def __init__(self, kind="valkey", *options, tcp=False):
        self.kind = kind
        self.directory = tempfile.mkdtemp(prefix="pagecache-values-")
        self.path = str(Path(self.directory) / "socket")
        self.options = options
        self.process = None
        self.port = _free_port() if tcp else 0
        scheme = "memcached" if kind == "memcached" else "valkey" if tcp else "unix"
        self.url = f"{scheme}://127.0.0.1:{self.port}" if tcp else f"{scheme}://{self.path}"
        self.start()

    def _command(self):
        if self.kind == "memcached":
            user = ["-u", "root"] if os.geteuid() == 0 else []
            place = ["-l", "127.0.0.1", "-p", str(self.port)] if self.port else ["-s", self.path]
            return [memcached_program(), *place, "-m", "256", *user, *self.options]
        place = ["--bind", "127.0.0.1", "--port", str(self.port)]
        place += [] if self.port else ["--unixsocket", self.path]
        settings = ["--save", "", "--appendonly", "no", "--dir", self.directory]
        return [valkey_program(), *place, *settings, *self.options]

    def start(self):
        """Start the server, empty, and wait until it answers."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_PATIENCE_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command()[0]} does not start")
            time.sleep(0.01)

    def _answers(self):
        try:
            said = self.say(b"version\r\n" if self.kind == "memcached" else b"PING\r\n")
            return said.startswith((b"VERSION", b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def say(self, command):
        """Send a command, and return the first bytes of the answer."""
        with socket.socket(socket.AF_INET if self.port else socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(START_PATIENCE_S)
            connection.connect(("127.0.0.1", self.port) if self.port else self.path)
            connection.sendall(command)
            return connection.recv(1 << 16)

    def kill(self):
        """End the server at once: connections break, and its values are gone."""
        self.process.kill()
        self.process.wait()

    def freeze(self):
        """Let the server be silent: connections are taken, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        """End the server and remove what it left."""
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
