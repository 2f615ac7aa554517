"""Gather: blocks of the main detector with the frames of other detectors that belong to them.

Blocks leave in the order in which they came, each when all its frames of other detectors are there,
or have been waited for long enough. No sockets here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from lima2py.frame import Absence, Block, Fate
from lima2py.policies import Policies
from lima2py.source import Source
from lima2py.trigger_map import Companion

_OWED = 4096
"""Blocks that left without all of their frames, and whose frames are dropped when they come."""


class Giver(NamedTuple):
    """An acquisition node with the frames of another detector.

    Attributes:
        node: its name.
        detector: the name of the detector in the system.
        frames: what is to be known of them.
    """

    node: str
    detector: str
    frames: Companion


@dataclass(slots=True, eq=False)
class _Due:
    """Frames of another detector that belong to a block: they come in their order.

    Attributes:
        first: the first that has not come.
        end: follows the last.
        epoch: in which the block was given.
    """

    first: int
    end: int
    epoch: int

    def take(self, part: Block) -> bool:
        """Count frames that have come; whether the next of these is among them."""
        is_next = part.index <= self.first < min(part.end, self.end)
        if part.origin[1] != self.epoch or not is_next:
            return False
        self.first = part.end
        return True

    @property
    def is_there(self) -> bool:
        """Whether all have come."""
        return self.first >= self.end


@dataclass(slots=True, eq=False)
class _Waiting:
    """A block that waits for frames of other detectors.

    Attributes:
        block: of the main detector.
        due: what belongs to it, by acquisition node.
        parts: what has come of that.
        until: when it is waited for no longer, `time.monotonic()`.
    """

    block: Block
    due: dict[int, _Due]
    parts: dict[int, list[Block]]
    until: float

    def take(self, source: int, part: Block) -> bool:
        """Take frames that it waits for; whether there are any."""
        taken = self.due[source].take(part)
        if taken:
            self.parts[source].append(part)
        return taken


class Gather:
    """Puts blocks of several detectors together by event.

    Args:
        givers: the acquisition nodes of other detectors, by rank.
        ends: of acquisition nodes that acquire no more, the event that follows those of their last
            frame; 0 if they are lost.
        policies: how long to wait, and what to do then.
        stop: is called with the reason when the acquisition should end.

    Attributes:
        missing: how many frames did not come in time, by detector.
    """

    def __init__(
        self,
        givers: Mapping[int, Giver],
        ends: Mapping[int, int],
        policies: Policies,
        stop: Callable[[str], None],
    ):
        self._givers = givers
        self._ends = ends
        self._policies = policies
        self._stop = stop
        self._waiting: deque[_Waiting] = deque()
        self._early: dict[int, deque[Block]] = {rank: deque() for rank in givers}
        self._owed: dict[int, deque[_Due]] = {rank: deque(maxlen=_OWED) for rank in givers}
        self._behind: set[int] = set()
        self.missing: dict[str, int] = {}

    def take(self, block: Block) -> None:
        """Take a block of any detector."""
        source = block.origin[0]
        if source not in self._givers:
            self._open(block)
        elif not any(waiting.take(source, block) for waiting in self._waiting):
            self._take_late(source, block)

    def _take_late(self, source: int, part: Block) -> None:
        """Drop frames whose block has left without them; others wait for their block."""
        owed = self._owed[source]
        for due in owed:
            if due.take(part):
                if due is owed[-1] and due.is_there:  # it has caught up
                    owed.clear()
                    self._behind.discard(source)
                return
        self._early[source].append(part)

    def ready(self) -> Iterator[Block]:
        """Blocks that are complete, or have been waited for long enough."""
        while self._waiting and self._is_ready(self._waiting[0]):
            yield self._close(self._waiting.popleft())

    @property
    def remarks(self) -> list[str]:
        """What the user should know of frames that did not come."""
        return [
            f"{count} frames of detector {name} did not come in time, or not at all"
            for name, count in self.missing.items()
        ]

    def _open(self, block: Block) -> None:
        due = {
            rank: _Due(*giver.frames.events.frames(block.index, block.end), block.origin[1])
            for rank, giver in self._givers.items()
        }
        until = time.monotonic() + self._policies.join_timeout
        waiting = _Waiting(block, due, {rank: [] for rank in due}, until)
        self._waiting.append(waiting)
        for rank, early in self._early.items():
            for _ in range(len(early)):
                part = early.popleft()
                if not waiting.take(rank, part):
                    early.append(part)

    def _is_ready(self, waiting: _Waiting) -> bool:
        """Whether nothing more is to come; from now on nobody waits for those that are late."""
        end = waiting.block.end
        late = {
            rank
            for rank, due in waiting.due.items()
            if not due.is_there and self._ends.get(rank, end) >= end
        }
        if not late <= self._behind and time.monotonic() < waiting.until:
            return False
        self._behind |= late
        return True

    def _close(self, waiting: _Waiting) -> Block:
        block = waiting.block
        companions: dict[str, Block] = {}
        for rank, (node, name, frames) in self._givers.items():
            due, said = waiting.due[rank], self._why(rank, node, name)
            companions[name] = frames.events.by_event(
                frames.spec, block.index, block.count, waiting.parts[rank], said
            )
            if not due.is_there:
                self._owed[rank].append(due)
                self.missing[name] = self.missing.get(name, 0) + due.end - due.first
                if self._policies.missing_modules == "stop":
                    where = f"frames {due.first} to {due.end - 1} of detector {name}"
                    self._stop(f"{where}: {said.detail}")
        return replace(block, companions=companions)

    def _why(self, rank: int, node: str, name: str) -> Absence:
        """Why frames have not come."""
        why = f"gave nothing in {self._policies.join_timeout:g} s"
        if rank in self._ends:
            why = "had no more frames" if self._ends[rank] else "is lost"
        return Absence(Fate.INCOMPLETE, name, f"acquisition node {node} {why}")


class Gathered(Source):
    """Blocks of the main detector with the frames of others, out of what comes from a source.

    Args:
        parts: where the blocks of the main detector and of others come from.
        gather: puts them together.
    """

    def __init__(self, parts: Source, gather: Gather):
        self._parts = parts
        self._gather = gather

    def __iter__(self) -> Iterator[Block | None]:
        """Blocks until none come any more."""
        for part in self._parts:
            if part is not None:
                self._gather.take(part)
            yield from self._gather.ready()
            if part is None:
                yield None
