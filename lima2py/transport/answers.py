"""Answers: where what nodes say of a run arrives at one that hands out blocks."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from lima2py.errors import ProtocolError
from lima2py.transport import wire
from lima2py.transport.inbox import Inbox
from lima2py.transport.sockets import MAX_HEADER

PATIENCE_MS = 20
_AT_ONCE = 1000
"""Strangers who send without a pause do not keep the run from anything else."""


class Answers(Inbox):
    """A PULL socket, bound when the run is prepared.

    Args:
        context: of ZeroMQ.
        addresses: where to listen.
        largest: the largest answer, in bytes.

    Attributes:
        poller: wakes up for an answer, and for what else is registered with it.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: list[str],
        largest: int = MAX_HEADER,
    ):
        super().__init__(
            context,
            addresses,
            what="a message among the answers of nodes",
            hwm=0,
            largest=largest,
            longest=largest,
            most=largest + MAX_HEADER,
        )
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)

    def hand(self, run: str, take: Callable[[wire.Message], None], wait: bool) -> None:
        """Hand on what has arrived.

        Args:
            run: id of the acquisition; messages of others are refused.
            take: is given each message; may refuse it by a `ProtocolError`.
            wait: whether to wait a moment for the first one.
        """
        if wait:
            self.poller.poll(PATIENCE_MS)
        for _ in range(_AT_ONCE):
            try:
                received = self.receive()
                if received is None:
                    continue
                message, rest = received
                if message.run != run:
                    raise ProtocolError(f"an answer to run {message.run[:40]}", "run")
                if rest:
                    raise ProtocolError(f"an answer of {len(rest) + 1} parts", "parts")
                take(message)
            except zmq.Again:
                break
            except ProtocolError as error:
                self.refused.note(error)
