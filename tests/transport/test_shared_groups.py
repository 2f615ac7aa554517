"""Frames that are accumulated survive the loss of nodes: every sum is whole, or absent with cause.

The real `Push`, the real `Flow`; between them, instead of sockets, lists of messages, so that nodes
can die, leave and come between any two of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2py.errors import ProtocolError
from lima2py.frame import Block, Fate
from lima2py.graph.flow import Flow
from lima2py.node.ledger import Ledger
from lima2py.node.sharing import credits_for
from lima2py.policies import Policies
from lima2py.task import RunContext
from lima2py.transport import lines as lines_module
from lima2py.transport import packing, wire
from lima2py.transport.board import NOTHING, SAVING, At
from lima2py.transport.in_flight import Settled
from lima2py.transport.line import Receiver
from lima2py.transport.push import Push
from lima2py.transport.refusals import Refusals
from tests.graph.test_flow import Keep
from tests.graph.test_groups import SPEC, accumulating, blocks, plan_of

RUN = "a" * 32
LOSSES = 3
"""So many, and nobody suspects a block that had no part in them."""


class Postbox:
    """What nodes answer, until `Push` takes it."""

    def __init__(self) -> None:
        self.poller = zmq.Poller()
        self.refused = Refusals("an answer")
        self.answers: deque[wire.Message] = deque()

    def hand(self, run: str, take: Callable[[wire.Message], None], wait: bool) -> None:
        while self.answers:
            try:
                take(self.answers.popleft())
            except ProtocolError as error:
                self.refused.note(error)


@dataclass
class Node:
    """A processing node: what was sent to it, its graph, and its board."""

    rank: int
    credits: int
    size: int
    postbox: Postbox
    inbox: deque[tuple[wire.Message, Any]] = field(default_factory=deque)
    over: bool = False

    def __post_init__(self) -> None:
        self.at = At(0, NOTHING, 0.0)
        self.plan = plan_of(accumulating(self.size))
        self.ends: dict[int, set[int]] = {}
        self.flow = Flow(self.plan, RunContext(RUN, "g"), self.credits, self.ends)

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.rank, f"proc{self.rank}", "x", "", self.credits, True)

    def answer(self, done: list[wire.DoneBlock]) -> None:
        if done:
            self.postbox.answers.append(wire.Done(RUN, self.rank, "x", done))

    def work(self, poison: frozenset[int]) -> bool:
        """Take one message; whether it survives that."""
        message, pixels = self.inbox.popleft()
        if isinstance(message, wire.BlockMessage):
            block = packing.block_of(message, SPEC, 99, pixels)
            self.at = At(0, block.index, 0.0)
            for frame in block.frames():
                if frame.index in poison and frame.data is not None:
                    return False
            self.flow.process(block)
            self.at = At(0, NOTHING, 0.0)
        elif isinstance(message, wire.Last):
            self.ends[0] = {message.end}
        elif isinstance(message, wire.End):
            self.leave()
        return True

    def rest(self) -> None:
        self.answer(self.flow.collect(idle=True))

    def leave(self) -> None:
        """As after SIGTERM, or the end: what is done is said, and nothing else."""
        self.rest()
        self.over = True
        self.postbox.answers.append(wire.Closed(RUN, self.rank, "x", {}, [], []))


class Line:
    """Instead of the line to a node: its inbox."""

    nodes: dict[int, Node]

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], receiver: Receiver) -> None:
        self.receiver = receiver
        self.leaving = self.told_end = False
        self.monitor = context.socket(zmq.PAIR)
        self._node = self.nodes[receiver.rank]

    @property
    def at(self) -> At:
        return self._node.at

    def send(self, message: wire.Message) -> None:
        self._node.inbox.append((message, None))

    def give(self, run: str, source: int, epoch: int, block: Block, slot: int, offset: int,
             given_up: None = None) -> None:  # fmt: skip
        absences = packing.pack_absences(block.absences)
        message = wire.BlockMessage(
            run, source, epoch, block.index, block.count, slot, absences, {}, 0.0, offset
        )
        self._node.inbox.append((message, block.data))

    def hear(self, at: At | None = None) -> None:
        return

    def trouble(self, deadline: float, busy: bool) -> None:
        return

    def hangs(self, deadline: float) -> bool:
        return False

    def close(self, linger: int = 0) -> None:
        self.monitor.close(linger=0)


class World:
    """One acquisition node and some processing nodes, step by step."""

    def __init__(self, nodes: int, size: int, slots: int, poison: frozenset[int], **policies: Any):
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.postbox = Postbox()
        self.size, self.slots, self.poison = size, slots, poison
        self.credits = credits_for(slots, nodes, size)
        self.all: dict[int, Node] = {}
        Line.nodes = self.all
        self.ledger = Ledger(plan_of(accumulating(size)).sink_spans, 0)
        receivers = [self.new_node().receiver for _ in range(nodes)]
        self.push = Push(
            self.context, self.postbox, RUN, 0, receivers, size, 2 * size, (size, 1),  # type: ignore[arg-type]
            Policies.load({"node_patience": 1000, **policies}, "policies"), lambda _why: None,
        )  # fmt: skip
        self.losses = 0
        self.kept: dict[int, Block] = {}

    @property
    def living(self) -> list[Node]:
        return [node for node in self.all.values() if not node.over]

    def new_node(self) -> Node:
        node = Node(len(self.all), self.credits, self.size, self.postbox)
        self.all[node.rank] = node
        return node

    def acquire(self, block: Block) -> None:
        self.ledger.acquired(block.end)
        self.kept[block.index] = block
        self.push.process(block, len(self.kept))

    def settle(self, settled: Sequence[Settled]) -> None:
        for _, node, sent, done in settled:
            self.ledger.settle(done, node, sent)

    def lose(self, node: Node, how: str) -> None:
        node.over = True
        self.push.lose({node.rank: how})
        self.settle(self.push.collect(idle=False))
        self.push.join(self.new_node().receiver)

    def step(self, what: str, which: int) -> None:
        self.settle(self.push.collect(idle=False))
        node = self.living[which % len(self.living)]
        if what == "work":
            if node.inbox and not self.deliver(node):
                self.lose(node, "it met poison")
        elif what == "rest":
            node.rest()
        elif self.losses < LOSSES - len(self.poison):
            self.losses += 1
            if what == "die":
                if self.losses == 1 and not self.poison:
                    node.at = At(0, SAVING, 0.0)
                self.lose(node, "it was killed")
            else:
                node.leave()
                self.push.join(self.new_node().receiver)
        self.settle(self.push.collect(idle=False))

    def deliver(self, node: Node) -> bool:
        message, _ = node.inbox[0]
        if isinstance(message, wire.BlockMessage) and message.slot >= 0:
            whole = next(
                block for block in self.kept.values() if block.index <= message.index < block.end
            )
            first = message.index - whole.index
            node.inbox[0] = (
                message,
                np.ascontiguousarray(whole.pixels[first : first + message.count]).data,
            )
        return node.work(self.poison)

    def through(self, then: Sequence[tuple[str, int]]) -> None:
        """Until all is settled; whoever works, works on, when some more has happened."""
        drained = self.push.drain()
        self.settle(next(drained, []))
        for what, which in then:
            self.step(what, which)
        for _ in range(500):
            for node in self.living:
                while node.inbox and not node.over:
                    if not self.deliver(node):
                        self.lose(node, "it met poison")
                if not node.over:
                    node.rest()
            found = next(drained, None)
            if found is None:
                break
            self.settle(found)
        else:
            pytest.fail(f"it hangs: {self.push.status()}")

    def close(self) -> None:
        self.push.close()
        self.context.destroy(linger=0)


def cut(sizes: Sequence[int], group: int) -> list[Block]:
    """Blocks as the readout gives them: one that begins within a group ends with it."""
    made, first = [], 0
    for size in sizes:
        made.append(min(size, group - first % group) if first % group else size)
        first += made[-1]
    return blocks(made)


steps = st.lists(
    st.tuples(st.sampled_from(["work", "work", "rest", "leave", "die"]), st.integers(0, 3)),
    max_size=12,
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "Line", Line)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    nodes=st.integers(1, 3),
    size=st.integers(1, 6),
    slots=st.integers(3, 30),
    story=st.lists(st.tuples(st.integers(1, 9), steps), min_size=1, max_size=8),
    poison=st.frozensets(st.integers(0, 30), max_size=1),
    after=steps,
    dispatch=st.sampled_from(["least_loaded", "round_robin"]),
)
def test_every_sum_is_that_of_all_its_frames_or_absent_with_its_cause(
    lines: None, nodes: int, size: int, slots: int, story: list[tuple[int, list[tuple[str, int]]]],
    poison: frozenset[int], after: list[tuple[str, int]], dispatch: str,
) -> None:  # fmt: skip
    given = cut([count for count, _ in story], size)
    world = World(nodes, size, slots, poison, dispatch=dispatch)
    try:
        for block, (_, then) in zip(given, story, strict=True):
            world.acquire(block)
            for what, which in then:
                world.step(what, which)
        world.through(after)
        check(world, given[-1].end)
    finally:
        world.close()


def check(world: World, end: int) -> None:
    size, poison = world.size, world.poison
    splits = 3 * size >= world.slots
    """One that does not fit is split."""
    raw, sums = world.ledger.table("raw"), world.ledger.table("sums")
    wanted = [Fate.POISON if frame in poison else Fate.SAVED for frame in range(end)]
    assert raw.fate[:end].tolist() == wanted
    for product in range(end // size):
        frames = range(product * size, (product + 1) * size)
        if splits and sums.fate[product] == Fate.NODE_LOST:
            continue
        if poison.intersection(frames):
            assert sums.fate[product] == Fate.POISON
            continue
        assert sums.fate[product] == Fate.SAVED, product
        keep = world.all[int(sums.node[product])].plan.sinks["sums"]
        assert isinstance(keep, Keep)
        rows = [frame for block in keep._kept for frame in block.frames()]
        row = rows[int(sums.row[product])]
        assert row.index == product
        assert row.data is not None
        assert np.all(row.data == sum(frame + 1 for frame in frames))
