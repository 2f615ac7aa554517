"""Cut connections that send and send, and never come to the end of a message.

ZeroMQ limits the size of a part and the number of messages that wait, but not the number of parts
of one message, and hands out nothing before it has the last of them: a peer that always says "more
follows" fills the memory of this process without the process being told. So a thread looks at the
connections of our ports from outside: one that has brought too many bytes since its last message
was taken is shut down, and ZeroMQ lets go of what it had of it.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterable, Iterator

import zmq

from lima2py.errors import ProtocolError
from lima2py.transport.refusals import Refusals
from lima2py.units import as_size

LOOK_EVERY = 0.05
"""Seconds between two looks: what comes meanwhile is the memory that a stranger can take."""
_BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` lies in `struct tcp_info` of Linux (linux/tcp.h), 64 bits."""


class Guard:
    """Watches the connections of some ports; does nothing where there are none.

    Args:
        addresses: where the socket listens; only those of tcp are watched.
        most: bytes that may be on their way on one connection, all messages together.
        refused: where connections that are cut are counted.
    """

    def __init__(self, addresses: Iterable[str], most: int, refused: Refusals):
        self._ports = {int(text.rpartition(":")[2]) for text in addresses if text[:4] == "tcp:"}
        self._most = most
        self._refused = refused
        self._taken: dict[int, int] = {}  # messages, by the descriptor they came through
        self._seen: dict[int, tuple[object, int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        if self._ports:
            self._thread.start()

    def took(self, part: zmq.Frame) -> None:
        """A whole message was taken, of which this is a part."""
        if not self._ports:
            return
        try:
            descriptor = int(part.get(zmq.SRCFD))
        except zmq.ZMQError:
            return  # a peer that speaks ZMTP 1.0: none of ours
        self._taken[descriptor] = self._taken.get(descriptor, 0) + 1

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            for descriptor, connection, peer in self._connections():
                self._look(descriptor, connection, peer)

    def _look(self, descriptor: int, connection: socket.socket, peer: object) -> None:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (received,) = struct.unpack_from("=Q", told, _BYTES_RECEIVED)
        taken = self._taken.get(descriptor, 0)
        before, then, base = self._seen.get(descriptor, (None, 0, 0))
        if peer != before:
            self._seen[descriptor] = peer, taken, 0
        elif taken != then:
            self._seen[descriptor] = peer, taken, received
        elif received - base > self._most:
            connection.shutdown(socket.SHUT_RDWR)
            self._seen[descriptor] = peer, taken, received  # it is told of once
            size = as_size(received - base)
            text = f"{size} came from {peer} without the end of a message: it was cut off"
            self._refused.note(ProtocolError(text, "endless"))

    def _connections(self) -> Iterator[tuple[int, socket.socket, object]]:
        """Those of our ports: the descriptor that ZeroMQ has, the connection, the peer.

        Each is looked at through a copy of the descriptor: ZeroMQ may close its own at any time,
        and the number may then stand for something else.
        """
        for name in os.listdir("/proc/self/fd"):
            try:
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    own = os.dup(int(name))
                else:
                    continue
            except OSError:
                continue  # closed by now
            found = socket.socket(fileno=own)
            try:
                if found.family in (socket.AF_INET, socket.AF_INET6) and (
                    found.getsockname()[1] in self._ports
                ):
                    yield int(name), found, found.getpeername()
            except OSError:
                pass  # it listens, or is not connected any more
            finally:
                found.close()
