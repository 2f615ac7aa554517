"""Two hosts made of network namespaces, joined by a wire that can be slow, lossy, or cut.

Each host is a process in namespaces of its own that owns one end of the wire, a TUN device; what
it sends and gets are packets over a local socket. Between them stands this process: it holds them
back, or throws them away. An ordinary user may do all this, where the system lets it.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue

import pytest

LARGEST = 65_536
"""Bytes of a packet, at most."""
END = """
import fcntl, os, socket, struct, subprocess, sys, threading
wire = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(wire, 0x400454CA, struct.pack("16sH", b"wire", 0x1001))  # TUNSETIFF: TUN, NO_PI
address = f"addr add {sys.argv[1]}/24 dev wire"
for words in (address, "link set wire mtu 60000 up", "link set lo up"):
    subprocess.run(["ip", *words.split()], check=True)
other = socket.socket(fileno=int(sys.argv[2]))

def out():
    while True:
        other.send(os.read(wire, 65536))

threading.Thread(target=out, daemon=True).start()
print("up", flush=True)
while packet := other.recv(65536):
    try:
        os.write(wire, packet)
    except OSError:
        pass  # a packet that this host does not want
"""


class Way:
    """One direction of the wire.

    Attributes:
        cut: whether all packets are lost.
        delay: seconds that each takes.
        loss: the part of them that is lost.
    """

    def __init__(self, source: socket.socket, sink: socket.socket):
        self.cut = False
        self.delay = 0.0
        self.loss = 0.0
        self._source = source
        self._sink = sink
        self._packets: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        self._chance = random.Random(7)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._take, self._give)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the end, once both ends of the wire are closed."""
        for thread in self._threads:
            thread.join()

    def _take(self) -> None:
        try:
            while packet := self._source.recv(LARGEST):
                if not self.cut and self._chance.random() >= self.loss:
                    self._packets.put((time.monotonic() + self.delay, packet))
        except OSError:
            pass  # its host is gone
        self._packets.put((0.0, b""))

    def _give(self) -> None:
        while True:
            due, packet = self._packets.get()
            if not packet:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                self._sink.send(packet)
            except OSError:
                continue  # its host is gone


class Host:
    """One of the two hosts.

    Attributes:
        address: on the network.
    """

    def __init__(self, address: str, end: socket.socket):
        self.address = address
        end.set_inheritable(True)
        self._process = subprocess.Popen(
            ["unshare", "-Urn", sys.executable, "-c", END, address, str(end.fileno())],
            pass_fds=[end.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        end.close()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "up\n":
            _, why = self._process.communicate()
            pytest.skip(f"this user may not make a network here: {why.strip()[-200:]}")

    def there(self, command: Sequence[str]) -> list[str]:
        """The command that does this one on that host."""
        enter = ["nsenter", "-t", str(self._process.pid), "-U", "-n", "--preserve-credentials"]
        return [*enter, *command]

    def close(self) -> None:
        """The end of it."""
        self._process.kill()
        self._process.communicate()


class Network:
    """Two hosts, and the two directions between them."""

    def __init__(self, here: Host, other: Host, out: Way, back: Way):
        self.here, self.other, self.out, self.back = here, other, out, back

    @contextmanager
    def cut(self, *ways: Way) -> Iterator[None]:
        """Lose all packets that go these ways; all, if none is given, as if a plug was pulled."""
        for way in ways or (self.out, self.back):
            way.cut = True
        yield
        for way in ways or (self.out, self.back):
            way.cut = False


@contextmanager
def two_hosts() -> Iterator[Network]:
    """Two hosts, as long as this lasts; the test is skipped where they cannot be had."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("this user may not use /dev/net/tun")
    with ExitStack() as stack:
        hosts, ends = [], []
        for address in ("10.99.0.1", "10.99.0.2"):
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(mine.close)
            hosts.append(Host(address, theirs))
            stack.callback(hosts[-1].close)
            ends.append(mine)
        ways = [Way(ends[0], ends[1]), Way(ends[1], ends[0])]
        try:
            yield Network(hosts[0], hosts[1], *ways)
        finally:
            for host in hosts:
                host.close()
            for way in ways:
                way.join()
