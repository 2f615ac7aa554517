"""Lead: what the acquisition node that deals out frames tells those with other pieces of them.

They give their pieces to the node to which it gave its own, and let go of what is settled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import zmq

from lima2py.transport import wire
from lima2py.transport.line import Line, Receiver


class Followers:
    """The acquisition nodes that follow this one.

    Args:
        context: of ZeroMQ.
        run: id of the acquisition.
        receivers: where each of them takes orders.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], run: str, receivers: Sequence[Receiver]
    ):
        self._run = run
        self._lines: dict[int, Line] = {}
        self._parted: list[Line] = []
        self._names = {receiver.rank: receiver.name for receiver in receivers}
        self._blocks: list[tuple[int, int, int, int]] = []
        self._settled: list[tuple[int, int]] = []
        self._gone: list[int] = []
        try:
            for receiver in receivers:
                self._lines[receiver.rank] = Line(context, receiver)
        except BaseException:
            self.close()
            raise

    def __bool__(self) -> bool:
        return bool(self._lines)

    def name(self, rank: int) -> str:
        """Of one of them."""
        return self._names.get(rank, str(rank))

    def given(self, index: int, count: int, node: int, epoch: int) -> None:
        """A node was given frames."""
        if self._lines:
            self._blocks.append((index, count, node, epoch))

    def settled(self, index: int, count: int) -> None:
        """Nobody needs frames any more."""
        if self._lines:
            self._settled.append((index, count))

    def gone(self, node: int) -> None:
        """A processing node is lost, or has left."""
        if self._lines:
            self._gone.append(node)

    def flush(self) -> None:
        """Tell them what is new."""
        if self._blocks or self._settled or self._gone:
            self.tell(wire.Given(self._run, self._blocks, self._settled, self._gone))
            self._blocks, self._settled, self._gone = [], [], []

    def tell(self, message: wire.Message) -> None:
        """Send a message to all of them; never waits."""
        for line in self._lines.values():
            line.send(message)

    def lost(self) -> list[str]:
        """Which of them are lost since, and why; one that was frozen hears that it is over."""
        troubles = {rank: line.trouble(math.inf, False) for rank, line in self._lines.items()}
        found = []
        for rank, why in troubles.items():
            if why is not None:
                self._parted.append(line := self._lines.pop(rank))
                line.send(wire.Over(self._run, False))
                found.append(f"acquisition node {self.name(rank)} was lost: {why}")
        return found

    def over(self, discard: bool) -> None:
        """Every frame has a fate: they are told, and go."""
        self.flush()
        self.tell(wire.Over(self._run, discard))
        self.close()

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        for line in (*self._lines.values(), *self._parted):
            line.close(linger=1000)
        self._lines.clear()
