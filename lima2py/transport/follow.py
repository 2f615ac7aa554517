"""Follow: hand pieces of frames to the processing nodes that another acquisition node chose.

The node that leads (`Push`, of rank 0) says which node it gave which frames, and which frames are
settled; here lie other pieces of the same frames, modules of the detector perhaps. They are kept
in the ring until the lead says that nobody needs them, and given again if it gives its own again.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq

from lima2py.errors import ProtocolError
from lima2py.frame import Block
from lima2py.transport import wire
from lima2py.transport.answers import Answers
from lima2py.transport.in_flight import Settled
from lima2py.transport.line import Line, Receiver
from lima2py.transport.lines import LINGER_MS, Lines
from lima2py.transport.outlet import Outlet
from lima2py.trigger_map import TriggerMap

LEAD = 0
LOOK_EVERY = 0.05
"""Seconds between two looks at whether nodes live."""
DRAIN_PATIENCE = 2.0
"""Seconds that the lead may take to say that it has given up what was not done."""


@dataclass(slots=True, eq=False)
class _Held:
    """A block in the ring, the events it is for, and how many of these are not settled."""

    block: Block
    slot: int
    first: int
    end: int
    left: int


class Follow(Outlet):
    """The outlet of an acquisition node that follows another one.

    The lead says what becomes of processing nodes, and holds back what is to be held back.

    Args:
        context: of ZeroMQ.
        answers: where messages for us arrive.
        run: id of the acquisition.
        source: rank of this acquisition node.
        receivers: the processing nodes.
        lead: the acquisition node that leads.
        patience: seconds that the detector may be silent when the lead acquires no more.
        on_stop: is called when the acquisition should end: with the reason, empty if the lead has
            ended, too.
        events: which of our frames go with which of the lead.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        answers: Answers,
        run: str,
        source: int,
        receivers: list[Receiver],
        lead: Receiver,
        patience: float,
        on_stop: Callable[[str], None],
        events: TriggerMap,
    ):
        super().__init__()
        self._answers = answers
        self._run = run
        self._source = source
        self._patience = patience
        self._on_stop = on_stop
        self._events = events
        self._lines = Lines(context, run, source, answers.poller)
        self._gone: set[int] = set()
        self._firsts: list[int] = []
        self._held: dict[int, _Held] = {}
        # From here on frames are those of the lead: events.
        self._end = 0  # follows the last that was acquired
        self._due: list[tuple[int, int, int, int]] = []  # given by the lead, not all acquired
        self._early: dict[int, list[tuple[int, int, int]]] = {}  # by nodes that are not known yet
        self._skip: list[tuple[int, int]] = []  # settled before they were acquired
        self._free: list[_Held] = []
        self._told: deque[Receiver] = deque()
        self._looked = time.monotonic()
        self._last = math.inf
        self._acquired_at = self._looked
        self._deadline = math.inf
        self._over: wire.Over | None = None
        self._orphaned = False
        self._aborted = False
        self._lead = Line(context, lead)
        try:
            for receiver in receivers:
                self._add(receiver)
        except BaseException:
            self.close()
            raise

    def process(self, block: Block, slot: int) -> None:
        """See `Outlet`: what the lead has given of its frames is given at once."""
        first, self._end = self._events.event(block.index), self._events.event(block.end)
        held = _Held(block, slot, first, self._end, self._end - first)
        self._firsts.append(first)
        self._held[first] = held
        for first, end, node, epoch in self._due:
            self._give(held, first, end, node, epoch)
        self._due = [one for one in self._due if one[1] > self._end]
        for first, end in self._skip:
            self._settle(held, first, end)
        self._skip = [one for one in self._skip if one[1] > self._end]
        self._acquired_at = time.monotonic()
        if self._end >= self._last:
            self._on_stop("")

    def collect(self, idle: bool) -> list[Settled]:
        """See `Outlet`: the blocks nobody needs any more."""
        self._receive(wait=idle)
        free, self._free = self._free, []
        return [_nobody_needs(held) for held in free]

    def drain(self) -> Iterator[list[Settled]]:
        """Give what is free until the lead says that every frame has a fate."""
        self._lines.say(wire.Last(self._run, self._source, self._end))
        while not (self._over or self._orphaned or self._aborted):
            if time.monotonic() > self._deadline:
                self.errors.append("the stop took too long (drain_deadline)")
                break
            yield self.collect(idle=True)
        discard = self._aborted or (self._over is not None and self._over.discard)
        self._lines.say(wire.End(self._run, self._source, discard))
        yield [_nobody_needs(held) for held in (*self._free, *self._held.values())]
        self._held.clear()

    def fail(self, why: str) -> None:
        """See `Outlet`: the lead is told."""
        self._lead.send(wire.Cut(self._run, self._source, -1, why))

    def close(self) -> None:
        """See `Outlet`."""
        self._lines.close()
        self._lead.close(LINGER_MS)

    # From any thread:

    @property
    def still_open(self) -> list[int]:
        """See `Outlet`: those that somebody may need."""
        return list(self._held)

    def abort(self) -> None:
        """See `Outlet`."""
        self._aborted = True

    def hurry(self, seconds: float) -> None:
        """The lead gives up what is not done in so many seconds; wait a little longer for it."""
        self._deadline = min(self._deadline, time.monotonic() + seconds + DRAIN_PATIENCE)

    def join(self, receiver: Receiver) -> None:
        """See `Outlet`."""
        self._told.append(receiver)

    # Everything below runs in the run's thread.

    def _add(self, receiver: Receiver) -> None:
        self._lines.add(receiver)
        for first, end, epoch in self._early.pop(receiver.rank, []):
            self._give_all(first, end, receiver.rank, epoch)

    def _give_all(self, first: int, end: int, node: int, epoch: int) -> None:
        """Give a node what we have of some frames, now or when we have it."""
        if node in self._gone:
            return
        if node not in self._lines:
            self._early.setdefault(node, []).append((first, end, epoch))
            return
        for held in self._overlapping(first, end):
            self._give(held, first, end, node, epoch)
        if end > self._end:
            self._due.append((first, end, node, epoch))

    def _give(self, held: _Held, first: int, end: int, node: int, epoch: int) -> None:
        block = held.block
        first, end = self._events.frames(first, end)
        first, end = max(first, block.index), min(end, block.end)
        line = self._lines.get(node)
        if first >= end or line is None:
            return
        offset = first - block.index
        part = block if end - first == block.count else block.part(offset, end - block.index)
        line.give(self._run, self._source, epoch, part, held.slot, offset)

    def _settle_all(self, first: int, end: int) -> None:
        for held in self._overlapping(first, end):
            self._settle(held, first, end)
        if end > self._end:
            self._skip.append((first, end))

    def _settle(self, held: _Held, first: int, end: int) -> None:
        settled = min(end, held.end) - max(first, held.first)
        if settled <= 0:
            return
        held.left -= settled
        if held.left == 0:
            del self._held[held.first]
            del self._firsts[bisect_right(self._firsts, held.first) - 1]
            self._free.append(held)

    def _overlapping(self, first: int, end: int) -> list[_Held]:
        """The blocks that are for some of these frames."""
        found = []
        for place in range(max(0, bisect_right(self._firsts, first) - 1), len(self._firsts)):
            if self._firsts[place] >= end:
                break
            found.append(self._held[self._firsts[place]])
        return found

    def _receive(self, wait: bool) -> None:
        while self._told:
            self._add(self._told.popleft())
        self._answers.hand(self._run, self._take, wait)
        if time.monotonic() > self._looked + LOOK_EVERY:
            self._look()

    def _take(self, message: wire.Message) -> None:
        match message:
            case wire.Given():
                for rank in message.gone:
                    self._forget(rank)
                for first, count, node, epoch in message.blocks:
                    self._give_all(first, first + count, node, epoch)
                for first, count in message.settled:
                    self._settle_all(first, first + count)
            case wire.Last():
                self._last = message.end
                self._acquired_at = time.monotonic()
                if self._end >= self._last:
                    self._on_stop("")
            case wire.Over():
                self._over = message
                if self._end < self._last:  # the lead has lost us, and did without
                    self._on_stop("")
            case wire.StopRequest():
                self._on_stop(message.reason)
            case wire.Beat() | wire.Closed():
                return  # the lead sees to them
            case _:
                raise ProtocolError(f"a {type(message).__name__} message to a follower", "kind")

    def _forget(self, rank: int) -> None:
        """A processing node that is lost, or has left."""
        self._gone.add(rank)
        self._early.pop(rank, None)
        if rank in self._lines:
            self._lines.part(rank, wire.End(self._run, self._source, False))

    def _look(self) -> None:
        """Whether the lead and the nodes live."""
        self._looked = now = time.monotonic()
        if not self._over and not self._orphaned:
            why = self._lead.trouble(math.inf, False)
            if why is not None:
                self._orphaned = True
                said = f"acquisition node {self._lead.receiver.name}, which leads, was lost: {why}"
                self.errors.append(said)
                self._on_stop(said)
        for rank, line in list(self._lines.items()):
            why = line.trouble(math.inf, False)
            if why is not None and not self._over:
                self._lead.send(wire.Cut(self._run, self._source, rank, why))
                self._forget(rank)
        silent = not self._held and now > self._acquired_at + self._patience
        if silent and self._end < self._last < math.inf:
            self._on_stop("")  # what the lead had more of will not come here


def _nobody_needs(held: _Held) -> Settled:
    block = held.block
    return Settled(held.slot, -1, 0, wire.DoneBlock(block.index, block.count, 0, 0, [], []))
