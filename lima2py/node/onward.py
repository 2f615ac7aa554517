"""Onward: what a processing node hands on to the next stage of nodes.

To that stage it is what an acquisition node is to the first: it has a ring, in which products lie
until they are safely done behind it, and gives them anew when a node there is lost. A block is
reported done when this stage and the next have done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from lima2py.frame import Absence, Block
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.graph.stages import crossing, specs_of
from lima2py.node.merge import Merge
from lima2py.node.node import Node
from lima2py.node.orders import Feeder, ProcessingOrder, ProcessingReady
from lima2py.ring import Arena, Ring
from lima2py.storage.saving.quarantine import beside, put_aside
from lima2py.task import RunContext
from lima2py.transport.answers import Answers
from lima2py.transport.bundle import Bundle
from lima2py.transport.in_flight import Settled
from lima2py.transport.outlet import NO_NODES
from lima2py.transport.pull import Pull
from lima2py.transport.push import Push
from lima2py.transport.wire import DoneBlock


def bundle_of(order: ProcessingOrder, plan: Plan, stage: int) -> Bundle:
    """What the nodes of a stage hand on to the next.

    Args:
        order: for a node of this run.
        plan: of the whole graph.
        stage: its place.
    """
    frames = order.senders[0].ring.frames
    return Bundle(specs_of(plan, crossing(plan, order.stages, stage)), frames)


class Onward:
    """The outlet of a processing node.

    Args:
        order: for the run.
        node: whose it is.
        plan: of the whole graph.
        part: of that, what this node runs.
        pull: where blocks come from, and reports go.
        blocks: the most that are here at a time.
        arena: the memory for what is handed on.
        run: for tasks.
        wait: is called while the ring is full.

    Attributes:
        feeder: what the next stage must know.
        remarks: what the user should know, though nothing went wrong.
    """

    def __init__(
        self,
        order: ProcessingOrder,
        node: Node,
        plan: Plan,
        part: Plan,
        pull: Pull,
        blocks: int,
        arena: Arena,
        run: RunContext,
        wait: Callable[[], None],
    ):
        self._order = order
        self._node = node
        self._pull = pull
        self._run = run
        self._wait = wait
        self._group = plan.group
        self._names = crossing(plan, order.stages, order.stage)
        spans = plan.sink_spans
        ours = {name: spans[name] for name in part.sinks}
        theirs = {name: span for name, span in spans.items() if order.stages[name] > order.stage}
        self._spans = list(theirs.values())
        self._merge = Merge(order.rank, ours, theirs, list(spans))
        self._given: dict[int, Block] = {}
        self._newest: dict[int, int] = {}  # by sender: follows the last frame that came
        self._said: set[int] = set()
        self._push: Push | None = None
        self.remarks: list[str] = []
        self._closing = ExitStack()
        try:
            self._bundle = bundle_of(order, plan, order.stage)
            shape = self._bundle.shape(arena.limit, blocks)
            self._ring = Ring(self._bundle.spec, shape, arena)
            self._closing.callback(self._ring.close)
            self._answers = Answers(node.context, node.addresses("answers"))
            self._closing.callback(self._answers.close)
        except BaseException:
            self._closing.close()
            raise
        pull.wake_by(self._answers.socket)
        self.feeder = Feeder(
            order.rank, node.identity, self._answers.addresses, shape, arena.buffer.handle
        )

    def connect(self, receivers: Iterable[ProcessingReady]) -> None:
        """Meet the nodes of the next stage."""
        order = self._order
        self._push = push = Push(
            self._node.context,
            self._answers,
            order.run,
            order.rank,
            [ready.receiver(order.rank, self._node.identity) for ready in receivers],
            self._group,
            max(self._group, order.senders[0].group),
            self._spans,
            self._run.policies,
            self._pull.ask_stop,
        )
        self._closing.callback(push.close)
        push.on_statistics = self._pull.hand_on
        push.on_given_up = self._put_aside

    @property
    def push(self) -> Push:
        """The way to the next stage, once it was connected."""
        assert self._push is not None  # noqa: S101 - it was
        return self._push

    @property
    def waits(self) -> bool:
        """Whether what this node has done is with the next stage."""
        return bool(self._merge)

    def join(self, ready: ProcessingReady) -> None:
        """Take one more node of the next stage. From any thread."""
        self.push.join(ready.receiver(self._order.rank, self._node.identity))

    def give(self, block: Block, flow: Flow) -> None:
        """Hand on what tasks made of a block, which has just passed."""
        bundle = self._bundle.block(block, flow.products(self._names))
        self._merge.begin(block.index, block.count)
        self._given[block.index] = block
        self._newest[block.origin[0]] = block.end
        slot = -1
        if bundle.data is not None:
            slot = self._take_slot()
            if slot < 0:
                return  # the run is given up
            bundle = self._bundle.write(bundle, self._ring.view(slot)[0])
        self.push.process(bundle, slot)

    def collect(self, done: list[DoneBlock], idle: bool = False) -> list[DoneBlock]:
        """What is done here and behind.

        Args:
            done: the blocks that are safe in the sinks of this node now.
            idle: whether to wait a moment for answers.
        """
        self._say_last()
        return self._merge.add_ours(done) + self._settle(self.push.collect(idle))

    def drain(self, done: list[DoneBlock]) -> Iterator[list[DoneBlock]]:
        """Say the end, and give what is done until nothing is left.

        Args:
            done: the last blocks that are safe in the sinks of this node.
        """
        if self._pull.stopped:
            self.push.abort()
        self._say_last()
        yield self._merge.add_ours(done)
        for settled in self.push.drain(gone=self._pull.left):
            yield self._settle(settled)

    def status(self) -> dict[str, Any]:
        """How it is, as plain values. From any thread."""
        return {
            "slots": self._ring.slots,
            "slots_used": self._ring.used,
            "slots_peak": self._ring.peak,
            **(self._push.status() if self._push is not None else NO_NODES),
        }

    @property
    def files(self) -> dict[int, dict[str, list[str]]]:
        """Those of all nodes behind, by rank and sink."""
        found: dict[int, dict[str, list[str]]] = {}
        for rank, closed in self.push.closed.items():
            found.update({**closed.behind, rank: closed.files})
        return found

    def close(self) -> None:
        """Let go of everything; may be called twice."""
        self._closing.close()

    def _take_slot(self) -> int:
        """A free slot of the ring; -1 if the run is given up before there is one."""
        while (slot := self._ring.take()) is None:
            self._wait()
            if self._pull.stopped:
                return -1
        return slot

    def _settle(self, settled: list[Settled]) -> list[DoneBlock]:
        for one in settled:
            if one.slot >= 0:
                self._ring.release(one.slot)
        done = self._merge.add_theirs(settled)
        for block in done:
            self._given.pop(block.index, None)
        return done

    def _say_last(self) -> None:
        """Tell behind which frame no more come, of every detector that has said so, or is lost."""
        ends: Mapping[int, int] = self._pull.ends
        for source in ends.keys() - self._said:
            self._said.add(source)
            if end := ends[source] or self._newest.get(source, 0):
                self.push.say_last(end)

    def _put_aside(self, bundle: Block, why: Absence) -> None:
        """Keep what brought down nodes, as it came, for `lima2py isolate`."""
        if self._order.stage:
            return  # what came here is no frame of the detector
        first = max(index for index in self._given if index <= bundle.index)
        given = self._given[first]
        part = given.part(bundle.index - first, bundle.end - first)
        lead = self._order.senders[0]
        folder = beside(lead.paths, lead.output)
        self.remarks.append(put_aside(folder, part, self._run, why.detail))
