"""Outlet: where an acquisition node hands its blocks, and learns what became of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lima2py.frame import Block
from lima2py.transport import wire
from lima2py.transport.in_flight import Settled
from lima2py.transport.line import Receiver

NO_NODES: Mapping[str, Any] = MappingProxyType(
    {"in_flight": {}, "waiting": 0, "lost": {}, "refused": {}}
)
"""The status of an outlet that has no processing nodes: blocks each has by rank, blocks that wait
for one, those that are lost by rank, messages that were refused by reason."""


class Outlet(ABC):
    """To processing nodes (`Push`, `Follow`), or through the graph itself (`Inline`).

    What only some of them can do has no effect on the others.

    Attributes:
        errors: what went wrong, in words.
        remarks: what the user should know when all is done, though nothing went wrong.
        lost: why processing nodes were lost, by rank.
        closed: the last words of processing nodes, by rank.
        accounts: those of the other acquisition nodes, by rank.
        broken: whether another acquisition node, which has parts of the frames, is lost.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.remarks: list[str] = []
        self.lost: dict[int, str] = {}
        self.closed: dict[int, wire.Closed] = {}
        self.accounts: dict[int, wire.Account] = {}
        self.broken = False

    # In the run's thread:

    @abstractmethod
    def process(self, block: Block, slot: int) -> None:
        """Take a block that lies in a slot of the ring. Never waits."""

    @abstractmethod
    def collect(self, idle: bool) -> list[Settled]:
        """The blocks settled since; when idle, waits a moment for answers."""

    @abstractmethod
    def drain(self) -> Iterable[list[Settled]]:
        """Say the end, and give what settles until nothing is left."""

    def fail(self, why: str) -> None:
        """No more frames come from here: tell those who wait for them."""
        return

    def listen(self) -> None:
        """Wait a moment for whatever answer comes."""
        return

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; may be called twice."""

    # From any thread:

    @property
    @abstractmethod
    def still_open(self) -> list[int]:
        """The first frames of the blocks that are not settled."""

    def status(self) -> dict[str, Any]:
        """What the processing nodes have, as plain values: see `NO_NODES`."""
        return dict(NO_NODES)

    def join(self, receiver: Receiver) -> None:
        """Take one processing node more."""
        return

    def know(self, rank: int) -> None:
        """A node of a later stage takes part, of which those that are fed here tell."""
        return

    def leave(self, rank: int) -> None:
        """Give a node nothing new, and tell it the end once it has nothing left."""
        return

    def lose(self, reasons: Mapping[int, str]) -> None:
        """Processing nodes are dead, by rank, and why."""
        return

    def abort(self) -> None:
        """Discard what is in flight."""
        return

    def release(self) -> None:
        """Hold no block back any more."""
        return

    def hurry(self, seconds: float) -> None:
        """Give up what is not done in so many seconds."""
        return
