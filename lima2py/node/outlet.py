"""Where an acquisition node hands its blocks: to processing nodes, or through the graph itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from lima2py.frame import Block
from lima2py.graph.flow import Flow
from lima2py.transport import wire
from lima2py.transport.in_flight import Settled


class Outlet(Protocol):
    """Where an acquisition node hands its blocks, and learns what became of them."""

    @property
    def errors(self) -> list[str]:
        """What went wrong so far."""

    @property
    def remarks(self) -> list[str]:
        """What the user should know when all is done, though nothing went wrong."""

    @property
    def still_open(self) -> list[int]:
        """The first frames of the blocks that are not settled. From any thread."""

    def process(self, block: Block, slot: int) -> None:
        """Take a block that lies in a slot."""

    def collect(self, idle: bool) -> list[Settled]:
        """The blocks settled since."""

    def drain(self) -> Iterable[list[Settled]]:
        """Say the end, and give what settles until nothing is left."""

    def abort(self) -> None:
        """Discard what is in flight. From any thread."""

    def release(self) -> None:
        """Hold nothing back any more. From any thread."""

    def hurry(self, seconds: float) -> None:
        """Give up what is not done in so many seconds. From any thread."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""


class Inline:
    """The outlet of a node without processing nodes: the graph itself."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self._slots: dict[int, int] = {}

    @property
    def errors(self) -> list[str]:
        """See `Outlet`."""
        return self.flow.errors

    @property
    def remarks(self) -> list[str]:
        """See `Outlet`."""
        return self.flow.remarks

    @property
    def still_open(self) -> list[int]:
        """See `Outlet`."""
        return list(self._slots)

    def process(self, block: Block, slot: int) -> None:
        """See `Outlet`."""
        self._slots[block.index] = slot
        self.flow.process(block)

    def collect(self, idle: bool) -> list[Settled]:
        """See `Outlet`."""
        return self._settled(self.flow.collect(idle))

    def drain(self) -> Iterable[list[Settled]]:
        """See `Outlet`."""
        yield self._settled(self.flow.finish())

    def abort(self) -> None:
        """See `Outlet`: nothing is in flight here."""
        return

    def release(self) -> None:
        """See `Outlet`: nothing is held back here."""
        return

    def hurry(self, seconds: float) -> None:
        """See `Outlet`: what was acquired is done already."""
        return

    def close(self) -> None:
        """See `Outlet`."""
        self.flow.finish()

    def _settled(self, done: list[wire.DoneBlock]) -> list[Settled]:
        return [Settled(self._slots.pop(block.index), 0, 1, block) for block in done]
