"""Lines: those to all processing nodes that one node gives blocks to; they come and go."""

from __future__ import annotations

import zmq

from lima2py.transport import wire
from lima2py.transport.line import Line, Receiver

LINGER_MS = 1000
"""Milliseconds in which one that is told the end late may still hear of it."""


class Lines(dict[int, Line]):
    """By the ranks of the nodes.

    Args:
        context: of ZeroMQ.
        run: id of the acquisition.
        source: rank of the node that gives.
        poller: wakes up when a connection comes or goes.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        run: str,
        source: int,
        poller: zmq.Poller,
    ):
        super().__init__()
        self._context = context
        self._run = run
        self._source = source
        self._poller = poller
        self._said: list[wire.Last | wire.End] = []

    @property
    def ended(self) -> bool:
        """Whether they were told the end."""
        return bool(self._said) and isinstance(self._said[-1], wire.End)

    def say(self, message: wire.Last | wire.End) -> None:
        """Tell all, and those that come later."""
        self._said.append(message)
        for line in self.values():
            line.send(message)

    def add(self, receiver: Receiver) -> bool:
        """Take one node more; whether it is in time to be given blocks."""
        line = Line(self._context, receiver)
        for message in (wire.Start(self._run, self._source), *self._said):
            line.send(message)
        if self.ended:
            line.close(LINGER_MS)
            return False
        self[receiver.rank] = line
        self._poller.register(line.monitor, zmq.POLLIN)
        return True

    def part(self, rank: int, last: wire.End | None) -> None:
        """A node has left, or is lost; it is told a last word, if it may still hear it."""
        line = self.pop(rank)
        self._poller.unregister(line.monitor)
        if last is not None:
            line.send(last)
        line.close(LINGER_MS)

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        for line in self.values():
            line.close(LINGER_MS)
