"""Inline: the graph itself as outlet, of an acquisition node without processing nodes."""

from __future__ import annotations

from collections.abc import Iterable

from lima2py.frame import Block
from lima2py.graph.flow import Flow
from lima2py.transport import wire
from lima2py.transport.in_flight import Settled
from lima2py.transport.outlet import Outlet


class Inline(Outlet):
    """Blocks pass the graph at once: nothing is held back, or in flight."""

    def __init__(self, flow: Flow):
        super().__init__()
        self._flow = flow
        self._slots: dict[int, int] = {}

    @property
    def still_open(self) -> list[int]:
        """See `Outlet`."""
        return list(self._slots)

    def process(self, block: Block, slot: int) -> None:
        """See `Outlet`."""
        self._slots[block.index] = slot
        self._flow.process(block)

    def collect(self, idle: bool) -> list[Settled]:
        """See `Outlet`."""
        return self._settled(self._flow.collect(idle))

    def drain(self) -> Iterable[list[Settled]]:
        """See `Outlet`."""
        yield self._settled(self._flow.finish())
        self.errors += self._flow.errors
        self.remarks += self._flow.remarks

    def close(self) -> None:
        """See `Outlet`."""
        self._flow.finish()

    def _settled(self, done: list[wire.DoneBlock]) -> list[Settled]:
        return [Settled(self._slots.pop(block.index), 0, 1, block) for block in done]
