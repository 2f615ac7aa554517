"""A processing node: pulls blocks and runs them through the graph; several runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from lima2py.errors import BadCommand, in_words
from lima2py.frame import FrameSpec
from lima2py.graph.flow import Flow
from lima2py.graph.latency import plain_latencies
from lima2py.graph.plan import Plan
from lima2py.graph.recent import Recent
from lima2py.memory import MemorySettings
from lima2py.node.life import Outcome
from lima2py.node.node import Node, forget_ended
from lima2py.node.observe import Effort
from lima2py.node.orders import (
    ProcessingOrder,
    ProcessingReady,
    context_of,
    pick_address,
    read_graph,
)
from lima2py.node.run import Run
from lima2py.node.sharing import credits_for
from lima2py.transport.board import NOTHING, SAVING, Board
from lima2py.transport.pull import Pull, Sender
from lima2py.transport.pulse import Pulse


class ProcessingRun(Run):
    """Pull → graph."""

    def __init__(self, order: ProcessingOrder, node: ProcessingNode):
        MemorySettings.load(order.memory, f"{node.who}, memory").apply_affinity()
        graph = read_graph(order.graph)
        lead = order.senders[0]
        spec = FrameSpec.from_plain(lead.spec)
        super().__init__(order.run, node.who, Plan.make(graph, spec))
        slots = min(sender.ring.slots for sender in order.senders)
        self.credits = credits_for(slots, order.nodes, self.plan.group)
        senders = [
            Sender(
                ready.rank,
                pick_address(ready.addresses, ready.host == node.identity),
                ready.ring,
                ready.handle,
            )
            for ready in order.senders
        ]
        self.pull = Pull(
            node.context,
            order.run,
            order.rank,
            node.incarnation,
            spec,
            senders,
            node.addresses("frames"),
            self.credits * len(senders),
            share_memory=not node.isolated,
        )
        self._transport = ExitStack()
        self._transport.callback(self.pull.close)
        try:
            self.board = Board()
            self._transport.callback(self.board.close)
            self._pulse = Pulse(
                node.context,
                [sender.address for sender in senders],
                order.run,
                order.rank,
                node.incarnation,
                self.board,
            )
            self._transport.callback(self._pulse.close)
            context = replace(
                context_of(lead, order, node.name),
                stop=self.pull.ask_stop,
                stopping=lambda: self.pull.stopped,
                alive=self.board.go_on,
            )
            self.flow = Flow(self.plan, context, self.credits, self.pull.ends)
            self.life.do("prepare")
        except BaseException:
            self._transport.close()
            raise

    def loop(self) -> Outcome:
        """Blocks through the graph until every acquisition node has said its end."""
        effort = Effort(self.flow)
        board = self.board
        self._pulse.start()
        try:
            for block in self.pull:
                if block is not None:
                    board.write(block.origin[0], block.index)
                    self.flow.process(block)
                board.write(0, SAVING)
                if done := self.flow.collect(idle=block is None):
                    self.pull.acknowledge(done)
                board.write(0, NOTHING)
                if effort.is_due:
                    self.pull.report(*effort.report())
            board.write(0, SAVING)
        except BaseException as error:  # others take over at once when they are told
            self.pull.farewell(self.flow.files, [f"{self.who}: {in_words(error)}"], [])
            raise
        if self.pull.stopped:  # before the end: others are given what is not complete
            self.pull.acknowledge(self.flow.collect(idle=True))
            self.flow.finish()
        else:
            self.pull.acknowledge(self.flow.finish())
        board.write(0, NOTHING)
        self.pull.report(*effort.report())
        self.errors += [f"{self.who}: {text}" for text in self.flow.errors]
        remarks = [f"{self.who}: {text}" for text in self.flow.remarks]
        self.pull.farewell(self.flow.files, self.errors, remarks)
        if self.pull.discarded:
            return Outcome.ABORTED
        return Outcome.FAILED if self.flow.failures else Outcome.COMPLETED

    def status(self) -> dict[str, Any]:
        """See `Run.status`."""
        self.end_was_seen |= not self.living
        return {
            **self._common_status(),
            "frames": self.flow.frames,
            "failures": self.flow.failures,
            "refused": self.pull.refused.plain(),
            "rank": self.pull.rank,
            "latency": {"tap": plain_latencies(self.flow.latency)},
            "disk": self.flow.waiting,
        }

    @property
    def recent(self) -> Mapping[str, Recent]:
        """See `Run.recent`."""
        return self.flow.recent

    def discard(self) -> None:
        """See `Run.discard`."""
        self.pull.stop()

    def close(self) -> None:
        """See `Run.close`."""
        self.flow.finish()
        self._transport.close()


class ProcessingNode(Node):
    """Hosts processing runs."""

    kind = "processing"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._runs: dict[str, ProcessingRun] = {}

    @property
    def runs(self) -> Mapping[str, ProcessingRun]:
        """See `Node.runs`."""
        return self._runs

    def commands(self) -> dict[str, Callable[..., Any]]:
        """See `Node.commands`."""
        return {**super().commands(), "prepare": self.prepare}

    def quick(self) -> dict[str, Callable[..., Any]]:
        """See `Node.quick`."""
        return {**super().quick(), "source_lost": self.source_lost}

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make ready for a run: `ProcessingOrder` in, `ProcessingReady` out.

        Raises:
            BadCommand: if the run is known already.
            BadParameter: if the graph cannot work.
            StorageError: if a file cannot be made.
        """
        told = msgspec.convert(order, ProcessingOrder)
        if told.run in self._runs and self._runs[told.run].living:
            raise BadCommand(f"{self.who} has run {told.run[:8]} already")
        forget_ended(self._runs)
        run = ProcessingRun(told, self)
        self._runs[told.run] = run
        ready = ProcessingReady(
            told.rank,
            self.name,
            self.identity,
            self.incarnation,
            run.pull.addresses,
            run.credits,
            run.pull.shared,
            run.board.handle,
            run.flow.files,
        )
        plain = msgspec.to_builtins(ready)
        assert isinstance(plain, dict)  # noqa: S101 - for the type checker
        return plain

    def source_lost(self, run: str, rank: int) -> None:
        """An acquisition node is dead: do not wait for its end."""
        found = self.run(run)
        assert isinstance(found, ProcessingRun)  # noqa: S101 - for the type checker
        found.pull.lose(rank)
