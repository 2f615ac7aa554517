"""A peer that speaks ZeroMQ's protocol by hand (ZMTP 3.0, ZeroMQ RFC 23), and not as it should."""

from __future__ import annotations

import socket
import struct
from typing import Self

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4


class Stranger:
    """A connection whose handshake is done.

    Args:
        port: on the loopback.
        kind: of socket that it says it is: one that the peer takes.
    """

    def __init__(self, port: int, kind: str = "PUSH"):
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        try:
            self._meet(kind)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _meet(self, kind: str) -> None:
        self.socket.sendall(GREETING)
        self._take(len(GREETING))
        ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind.encode()
        self.socket.sendall(bytes([_COMMAND, len(ready)]) + ready)
        self._take(self._take(2)[1])  # before theirs has come, only commands may be sent

    def send(self, part: bytes, more: bool = False) -> None:
        """Send a part of a message."""
        self.socket.sendall(struct.pack(">BQ", _LONG | (_MORE if more else 0), len(part)) + part)

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self.socket.recv(size - len(found))
            if not more:
                raise ConnectionError("they hung up")
            found += more
        return found

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
