"""Inbox: where a node takes messages of a run, and refuses what is none of them.

What is malformed, foreign or out of place is dropped and counted by reason; a connection that
sends without end is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import zmq

from lima2py.errors import ProtocolError
from lima2py.transport import wire
from lima2py.transport.guard import Guard
from lima2py.transport.refusals import Refusals
from lima2py.transport.sockets import bind, new_socket


class Received(NamedTuple):
    """A message, and the parts that follow its header."""

    message: wire.Message
    rest: list[zmq.Frame]


class Inbox:
    """A PULL socket that is bound to addresses.

    Args:
        context: of ZeroMQ.
        addresses: where to listen.
        what: arrives, for the log: `a message among the frames of run 1234`.
        hwm: the most messages that wait.
        largest: the largest part of a message, in bytes.
        longest: the longest header, in bytes: what is decoded takes far more memory than that.
        most: the most bytes that may be on their way on one connection.

    Attributes:
        socket: to be polled.
        addresses: where peers reach it.
        refused: what was refused.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Sequence[str],
        *,
        what: str,
        hwm: int,
        largest: int,
        longest: int = 2**20,
        most: int,
    ):
        self.refused = Refusals(what)
        self._longest = longest
        self.socket = new_socket(context, zmq.PULL, hwm=hwm, largest=largest)
        try:
            self.addresses = [bind(self.socket, address) for address in addresses]
        except BaseException:
            self.socket.close(linger=0)
            raise
        self._guard = Guard(self.addresses, most, self.refused)

    def receive(self) -> Received | None:
        """The next message; None if it was refused.

        Raises:
            zmq.Again: if none is waiting.
        """
        header, *rest = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        self._guard.took(header)
        try:
            if len(header) > self._longest:
                raise ProtocolError(f"a header of {len(header)} bytes", "malformed")
            return Received(wire.decode(header.buffer), rest)
        except ProtocolError as error:
            self.refused.note(error)
            return None

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._guard.close()
        self.socket.close(linger=0)
