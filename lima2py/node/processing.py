"""A processing node: pulls blocks and runs them through the graph; several runs at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from lima2py.errors import BadCommand, in_words
from lima2py.frame import Block, FrameSpec
from lima2py.graph.flow import Flow
from lima2py.graph.footprint import footprint
from lima2py.graph.latency import plain_latencies
from lima2py.graph.plan import Plan
from lima2py.graph.recent import Recent
from lima2py.graph.stages import part_of
from lima2py.memory import Placed, Shared
from lima2py.memory_settings import MemorySettings
from lima2py.node.intake import Intake
from lima2py.node.life import Outcome
from lima2py.node.node import Node, forget_ended
from lima2py.node.observe import Effort
from lima2py.node.onward import Onward
from lima2py.node.orders import (
    Feeder,
    ProcessingOrder,
    ProcessingReady,
    context_of,
    read_graph,
    seen_from_others,
)
from lima2py.node.run import Run
from lima2py.ring import Arena
from lima2py.storage.saving.quarantine import beside, put_aside
from lima2py.transport.board import NOTHING, ONWARD, SAVING, Board
from lima2py.transport.pulse import Pulse


class ProcessingRun(Run):
    """Pull → graph."""

    def __init__(self, order: ProcessingOrder, node: ProcessingNode):
        settings = MemorySettings.load(order.memory, f"{node.who}, memory")
        settings.apply_to_process()
        graph = read_graph(order.graph)
        lead = order.senders[0]
        others = [ready for ready in order.senders if ready.other]
        companions = {ready.other: ready.companion for ready in others}
        plan = Plan.make(graph, FrameSpec.from_plain(lead.spec), companions)
        part = part_of(plan, order.stages, order.stage) if order.stages else plan
        super().__init__(order.run, node.who, part)
        self.order = order
        self.intake = Intake(order, node, plan, part, settings)
        self.pull = self.intake.pull
        self._transport = ExitStack()
        self._transport.callback(self.intake.close)
        try:
            self.board = Board()
            self._transport.callback(self.board.close)
            self._pulse = Pulse(
                node.context,
                [sender.address for sender in self.intake.senders],
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
                of_other=seen_from_others(plan, others),
                shelf=node.holdings.shelf,
            )
            self._run, self._aside = context, beside(lead.paths, lead.output)
            self._put_aside: list[str] = []
            self.onward: Onward | None = None
            if order.behind:
                self.onward = Onward(
                    order, node, plan, part, self.pull, self.intake.most,
                    node.arena_for(settings, order.ring), context, self._wait,
                )  # fmt: skip
                self._transport.callback(self.onward.close)
            self.flow = Flow(self.plan, context, self.intake.credits, self.pull.edges)
            frames = max(ready.ring.frames for ready in order.senders)
            self.footprint = footprint(self.plan, frames) + self.intake.footprint
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
            for block in self.intake:
                if block is not None:
                    board.write(block.origin[0], block.index)
                    if self.pull.given_up:
                        block = self._leave_out(block)
                    self.flow.process(block)
                    if self.onward is not None:
                        self.onward.give(block, self.flow)
                self._tell_done(idle=block is None and self.pull.idle)
                if effort.is_due:
                    self.pull.report(*effort.report())
            board.write(0, SAVING)
        except BaseException as error:  # others take over at once when they are told
            self.pull.farewell(self.flow.files, [f"{self.who}: {in_words(error)}"], [], {})
            raise
        # If it is stopped before the end, others are given what is not complete.
        last = self.flow.collect(idle=True) if self.pull.stopped else self.flow.finish()
        behind: dict[int, dict[str, list[str]]] = {}
        if self.onward is not None:
            board.write(0, ONWARD)
            for done in self.onward.drain(last):
                self.pull.acknowledge(done)
            behind = self.onward.files
            self.errors += self.onward.push.errors
        else:
            self.pull.acknowledge(last)
        self.flow.finish()
        board.write(0, NOTHING)
        self.pull.report(*effort.report())
        self.errors += [f"{self.who}: {text}" for text in self.flow.errors]
        told = [*self.flow.remarks, *self.intake.remarks, *self._put_aside]
        told += self.onward.remarks if self.onward is not None else []
        remarks = [f"{self.who}: {text}" for text in told]
        remarks += self.onward.push.remarks if self.onward is not None else []
        self.pull.farewell(self.flow.files, self.errors, remarks, behind)
        if self.pull.discarded:
            return Outcome.ABORTED
        return Outcome.FAILED if self.flow.failures else Outcome.COMPLETED

    def _leave_out(self, block: Block) -> Block:
        """The same block; if it is given up, it is put aside, and tasks see nothing of it."""
        source, epoch = block.origin
        why = self.pull.given_up.pop((source, block.index, epoch), None)
        if why is None:
            return block
        self._put_aside.append(put_aside(self._aside, block, self._run, why.detail))
        refused = dict.fromkeys(range(block.count), why)
        others = {name: other.refuse(refused) for name, other in block.companions.items()}
        return replace(block.refuse(refused), companions=others)

    def _tell_done(self, idle: bool, wait: bool = False) -> None:
        """Report what is done.

        Args:
            idle: whether nothing else is to do, so that sinks may flush.
            wait: whether to wait a moment for the next stage.
        """
        board, onward = self.board, self.onward
        board.write(0, SAVING)
        done = self.flow.collect(idle)
        if onward is not None:
            board.write(0, ONWARD)
            done = onward.collect(done, wait)
        if done:
            self.intake.acknowledge(done)
        board.write(0, ONWARD if onward is not None and onward.waits else NOTHING)

    def _wait(self) -> None:
        """The next stage has no room for more."""
        self._tell_done(idle=False, wait=True)

    def meet(self, feeder: Feeder) -> None:
        """Take one more node of the stage before. From any thread, of a run at work."""
        self._pulse.add(self.intake.meet(feeder).address)

    def lose_nodes(self, reasons: Mapping[int, str]) -> None:
        """Processing nodes are dead, by rank and why. From any thread."""
        if self.onward is not None:
            self.onward.push.lose(reasons)
        self.intake.lose_nodes(reasons)

    def status(self) -> dict[str, Any]:
        """See `Run.status`."""
        self.end_was_seen |= not self.living
        return {
            **self._common_status(),
            **(self.onward.status() if self.onward is not None else {}),
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
        self._arena: tuple[MemorySettings, Arena] | None = None

    @property
    def runs(self) -> Mapping[str, ProcessingRun]:
        """See `Node.runs`."""
        return self._runs

    def commands(self) -> dict[str, Callable[..., Any]]:
        """See `Node.commands`."""
        return {**super().commands(), "prepare": self.prepare, "connect": self.connect}

    def quick(self) -> dict[str, Callable[..., Any]]:
        """See `Node.quick`."""
        return {
            **super().quick(),
            "source_lost": self.source_lost,
            "nodes_lost": lambda run, reasons: self._run(run).lose_nodes(reasons),
            "meet": self.meet,
            "join": self.join,
            "leave": self.leave,
        }

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
        forget_ended(self._runs, self.holdings.shelf)
        run = ProcessingRun(told, self)
        self._runs[told.run] = run
        return self._ready(run)

    def connect(self, run: str, receivers: list[dict[str, Any]]) -> None:
        """Meet the nodes of the next stage: takes what each of them answered to `prepare`."""
        onward = self._run(run).onward
        assert onward is not None  # noqa: S101 - only such nodes are connected
        onward.connect(msgspec.convert(receivers, list[ProcessingReady]))

    def meet(self, run: str, feeder: dict[str, Any]) -> dict[str, Any]:
        """One more node of the stage before: `Feeder` in, `ProcessingReady` out.

        Raises:
            BadCommand: if the run is over.
        """
        found = self._run(run)
        if not found.living:
            raise BadCommand(f"{self.who} has ended run {run[:8]}")
        found.meet(msgspec.convert(feeder, Feeder))
        return self._ready(found)

    def join(self, run: str, ready: dict[str, Any]) -> bool:
        """One more node of the next stage; whether it can still be of use."""
        found = self._run(run)
        if not found.living or found.onward is None:
            return False
        found.onward.join(msgspec.convert(ready, ProcessingReady))
        return True

    def leave(self, run: str, rank: int) -> None:
        """A node of the next stage shall leave when it has done what it has."""
        onward = self._run(run).onward
        if onward is not None:
            onward.push.leave(rank)

    def source_lost(self, run: str, rank: int) -> None:
        """An acquisition node is dead: do not wait for its end."""
        self._run(run).intake.lose_source(rank)

    def close(self) -> None:
        """See `Node.close`."""
        super().close()
        if self._arena is not None:
            self._arena[1].retire()

    def arena_for(self, settings: MemorySettings, ring: int) -> Arena:
        """The memory for what is handed on: taken once, as long as the same is asked for."""
        if self._arena is None or self._arena[0] != settings:
            if self._arena is not None:
                self._arena[1].retire()
            allocator = Placed(Shared(settings.huge_pages), settings)
            self._arena = settings, Arena(allocator, settings.ring_bytes)
        self.holdings.arena = arena = self._arena[1]
        arena.resize(ring or arena.nbytes)
        return arena

    def _run(self, run: str) -> ProcessingRun:
        found = self.run(run)
        assert isinstance(found, ProcessingRun)  # noqa: S101 - for the type checker
        return found

    def _ready(self, run: ProcessingRun) -> dict[str, Any]:
        ready = ProcessingReady(
            run.order.rank,
            self.name,
            self.identity,
            self.incarnation,
            run.pull.addresses,
            run.intake.credits,
            run.pull.shared,
            run.board.handle,
            run.flow.files,
            run.onward.feeder if run.onward is not None else None,
        )
        plain = msgspec.to_builtins(ready)
        assert isinstance(plain, dict)  # noqa: S101 - for the type checker
        return plain
