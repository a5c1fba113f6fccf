"""Separate hosts on one machine: network namespaces, joined by a router in this process that delays packets and drops them.

Each host has one device (TUN), whose packets come here; the kernel's own delay (netem) is not everywhere. A pair of hosts
that is cut hears nothing of each other: no reset, no error, as when a cable is pulled.
"""

import errno
import fcntl
import heapq
import itertools
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 32 * 1024
PACKET_BYTES_MAX = 1 << 16
WORKER = Path(__file__).with_name("network_worker.py")


def why_not():
    """Return why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"no TUN devices: {error}"
    name = f"pagecache-{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Network:
    """Hosts by name, each with an address; a context manager. delay_s: of each packet, one way."""

    def __init__(self, names, *, delay_s=0.0):
        self.delay_s = delay_s
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self.nr_dropped = 0
        self._cut = set()
        self._fds = {}
        self._processes = []
        self._ends = threading.Event()
        try:
            for name, address in self.addresses.items():
                self._fds[bytes(map(int, address.split(".")))] = self._make_host(name, address)
        except BaseException:
            self._remove()
            raise
        self._router = threading.Thread(target=self._route, name="router", daemon=True)
        self._router.start()

    @staticmethod
    def namespace(name):
        """Return the name of a host's namespace."""
        return f"pagecache-{os.getpid()}-{name}"

    def _make_host(self, name, address):
        space, device = self.namespace(name), f"pc{os.getpid() % 100000}{name}"[:15]
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
            for command in (
                f"ip netns add {space}",
                f"ip link set {device} netns {space}",
                f"ip -n {space} link set lo up",
                f"ip -n {space} link set {device} mtu {MTU} up",
                f"ip -n {space} addr add {address}/24 dev {device}",
            ):
                subprocess.run(command.split(), check=True, capture_output=True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def cut(self, one, other):
        """Let two hosts hear nothing of each other from now on."""
        self._cut |= set(itertools.permutations((self._raw(one), self._raw(other))))

    def heal(self):
        """Let all hosts hear each other again."""
        self._cut = set()

    def _raw(self, name):
        return bytes(map(int, self.addresses[name].split(".")))

    def _route(self):
        fds, waiting, numbers = list(self._fds.values()), [], itertools.count()
        while not self._ends.is_set():
            pause = max(0.0, min(0.05, waiting[0][0] - time.monotonic())) if waiting else 0.05
            for fd in select.select(fds, [], [], pause)[0]:
                packet = self._read(fd)
                if packet is None:
                    continue
                source, target = packet[12:16], packet[16:20]
                if target not in self._fds or (source, target) in self._cut:
                    self.nr_dropped += 1
                    continue
                heapq.heappush(waiting, (time.monotonic() + self.delay_s, next(numbers), self._fds[target], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, fd, packet = heapq.heappop(waiting)
                self._write(fd, packet)

    @staticmethod
    def _read(fd):
        """Return an IPv4 packet, or None."""
        try:
            packet = os.read(fd, PACKET_BYTES_MAX)
        except OSError:
            return None
        return packet if len(packet) >= 20 and packet[0] >> 4 == 4 else None

    @staticmethod
    def _write(fd, packet):
        try:
            os.write(fd, packet)
        except OSError as error:  # lost, as packets are
            if error.errno not in (errno.EAGAIN, errno.EIO, errno.ENOBUFS):
                raise

    def start(self, name, what, **settings):
        """Start a worker on a host (see network_worker.py), and return it; `started` waits for it."""
        worker = Worker(self.namespace(name), what, {"address": self.addresses[name], **settings})
        self._processes.append(worker)
        return worker

    def _remove(self):
        for worker in self._processes:
            worker.close()
        for fd in self._fds.values():
            os.close(fd)
        for name in self.addresses:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)

    def close(self):
        """End the workers and remove the hosts."""
        self._ends.set()
        self._router.join()
        self._remove()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class Worker:
    """A process on a host, which gets its commands line by line and answers so."""

    def __init__(self, namespace, what, settings):
        places = [str(Path(entry).resolve()) for entry in sys.path if entry]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, str(WORKER.parent.parent)])}
        command = ["ip", "netns", "exec", namespace, sys.executable, "-P", str(WORKER), what]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._started = None
        self.tell(**settings)

    @property
    def started(self):
        """What the worker said when it was ready."""
        if self._started is None:
            self._started = self.answer()
        return self._started

    def tell(self, **command):
        """Send a command."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self):
        """Return the answer to the oldest command that has none."""
        line = self.process.stdout.readline()
        assert line, f"the worker has ended: {self.process.wait()}"
        return json.loads(line)

    def ask(self, **command):
        """Send a command and return its answer."""
        assert self.started
        self.tell(**command)
        return self.answer()

    def close(self):
        """End the process."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
