"""An acquisition run: detector → ring → outlet, until every frame has a fate; then the books.

The node of rank 0 reserves the files of all nodes before anything starts.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lima2py.acquisition import Acquisition, Parameters
from lima2py.detector import Detector
from lima2py.errors import BadCommand, LimaError, in_words
from lima2py.frame import Absence, Block, Fate
from lima2py.graph.flow import Flow
from lima2py.graph.footprint import footprint
from lima2py.graph.latency import plain_latencies
from lima2py.graph.plan import plan_run
from lima2py.graph.recent import Recent
from lima2py.metadata import Metadata
from lima2py.node.books import Books
from lima2py.node.inline import Inline
from lima2py.node.life import ACTIVE, Outcome, State
from lima2py.node.node import Node
from lima2py.node.observe import Observer
from lima2py.node.orders import (
    AcquisitionOrder,
    AcquisitionReady,
    ConnectOrder,
    ProcessingReady,
    context_of,
    read_graph,
    seen_from_others,
)
from lima2py.node.readout import START_PATIENCE, Readout
from lima2py.node.run import Run
from lima2py.node.sharing import check_modules, check_room, frames_in_turn
from lima2py.policies import Policies
from lima2py.ring import Arena, Ring
from lima2py.storage.saving.quarantine import beside, put_aside
from lima2py.storage.saving.reserve import Reservation, reserve
from lima2py.storage.saving.space import needs, shortages
from lima2py.task import RunContext
from lima2py.transport.answers import Answers
from lima2py.transport.follow import Follow
from lima2py.transport.in_flight import Settled
from lima2py.transport.line import Receiver
from lima2py.transport.outlet import NO_NODES, Outlet
from lima2py.transport.push import Push
from lima2py.transport.sockets import MAX_HEADER
from lima2py.trigger_map import TriggerMap

FOLLOW_PATIENCE = 1.0
"""Seconds, beyond two periods, for frames of modules that the lead has, after it has stopped."""
BOOKS = 16 * 2**20
"""Bytes that the books take: the journal, the logbook, the masters in the end."""
LEDGER_ENTRY = 64
"""And for each frame."""
LARGEST_ACCOUNT = 2**31
"""Bytes of the ledger of another acquisition node, after a very long run."""


class AcquisitionRun(Run):
    """Detector → outlet."""

    def __init__(self, order: AcquisitionOrder, node: Node, detector: Detector, arena: Arena):
        asked = Acquisition.load(order.requested, "acquisition")
        share = order.share
        shares = max(1, order.nodes) * share.size
        graph = read_graph(order.graph)
        if order.other:  # what is done with its frames is planned with those of the main detector
            graph = replace(graph, tasks={})
        companions = {ready.other: ready.companion for ready in order.companions}
        plan, shape = plan_run(
            detector, asked, graph, arena.limit, shares, share.modules, companions
        )
        super().__init__(order.run, node.who, plan)
        group = order.group or frames_in_turn(plan, shape, asked.nb_frames, shares)
        self.order = order
        self.policies = Policies.load(order.policies, "policies")
        self.detector = detector
        self.remarks: list[str] = []
        self._node = node
        self._share = share = share._replace(group=group)
        self._events = TriggerMap(order.events)
        self._aborted = False
        self._closing = contextlib.ExitStack()
        self._outlet: Outlet | None = None
        self._flow: Flow | None = None  # if the graph runs here
        self._answers: Answers | None = None
        self._warnings: list[str] = []
        self.observer = Observer(node, detector, self.status, self.errors.append, order.size == 1)
        Metadata.load(order.metadata, "metadata").geometry.check(detector.info.pixel_size)
        try:
            if order.modules:
                check_modules(order, detector.info, self.policies)
                spec = detector.describe_modules(asked, share.modules)
            else:
                spec = plan.spec
            hardware = detector.prepare(asked, share)
            self.footprint = BOOKS + LEDGER_ENTRY * hardware.nb_frames
            self._ring = Ring(spec, shape, arena)
            self._closing.callback(self._ring.close)
            check_room(order, asked, self._ring)
            self._books = books = Books(
                order, plan, share, hardware.nb_frames, node, self.observer, self.errors
            )
            self._closing.callback(books.close)
            if order.nodes:
                largest = LARGEST_ACCOUNT if order.size > 1 else MAX_HEADER
                self._answers = Answers(node.context, node.addresses("answers"), largest)
                self._closing.callback(self._answers.close)
            if order.rank == 0:  # last, since it may clear away the files of an older run
                reserved = reserve(plan.sinks, Path(order.output), order.name, order.run)
                self._closing.callback(self._give_back, reserved)
                books.paths = dict(reserved.paths)
                self._warnings = self._look_for_room(hardware)
            self.ready = self._answer(hardware)
            self.readout = Readout(
                detector, hardware, spec, self._ring, share, plan.group, self.policies,
                self._make_room,
            )  # fmt: skip
            if not order.nodes:
                context = replace(
                    self._context,
                    stop=self.ask_stop,
                    stopping=lambda: self._aborted,
                    shelf=node.holdings.shelf,
                )
                self._flow = Flow(plan, context, max(1, shape.slots // 4))
                self.footprint += footprint(plan, shape.frames)
                self._outlet = Inline(self._flow)
                self._closing.callback(self._outlet.close)
                books.files[0] = self._flow.files
            self.life.do("prepare")
        except BaseException:
            self.close()
            raise

    @property
    def ring(self) -> Ring:
        """Where its frames lie."""
        return self._ring

    @property
    def _context(self) -> RunContext:
        of_other = seen_from_others(self.plan, self.order.companions)
        return replace(context_of(self.ready, self.order, self._node.name), of_other=of_other)

    def _answer(self, hardware: Acquisition) -> AcquisitionReady:
        detector, order = self.detector, self.order
        described = detector.describe_all()
        return AcquisitionReady(
            rank=order.rank,
            name=self._node.name,
            host=self._node.identity,
            hostname=platform.node(),
            addresses=self._answers.addresses if self._answers else [],
            spec=self.plan.spec.plain(),
            modules=list(self._share.modules),
            group=self._share.group,
            ring=self._ring.shape,
            handle=self._ring.arena.buffer.handle,
            paths=self._books.paths,
            parameters=Parameters(
                requested=order.plain_requests,
                hardware={"acquisition": hardware.plain(), "detector": described["parameters"]},
                pipeline=self.plan.plain(),
            ),
            policies=order.policies,
            detector=described,
            metadata=order.metadata,
            rois=self.plan.rois,
            plan=self.plan.table(),
            taps=list(self.plan.taps),
            started=time.time(),
            output=order.output,
            warnings=self._warnings,
            other=order.other,
            events=order.events,
        )

    def _look_for_room(self, hardware: Acquisition) -> list[str]:
        paths = {sink: Path(path) for sink, path in self._books.paths.items()}
        plan = self.plan
        return shortages(needs(plan.sinks, plan.specs, paths, hardware.nb_frames, plan.shares))

    def connect(self, order: ConnectOrder) -> None:
        """Meet the processing nodes."""
        assert self._answers is not None  # noqa: S101 - only nodes that push are connected
        receivers = [self._receiver(ready) for ready in order.receivers]
        lead, *others = [source.receiver(self._node.identity) for source in order.sources]
        if self.order.rank:
            self._books.paths = order.paths
            self._books.lead = lead.address
        if self.order.follows:
            self._outlet = self._follow(receivers, lead)
            self._closing.callback(self._outlet.close)
            return
        self._outlet = Push(
            self._node.context,
            self._answers,
            self.run,
            self.order.rank,
            receivers,
            self.plan.group,
            self._share.group,
            list(self.plan.sink_spans.values()),
            self.policies,
            self.ask_stop,
            hold=self.order.processing != "at_once",
            followers=others if self.order.leads else (),
        )
        self._closing.callback(self._outlet.close)
        self._outlet.on_statistics = self.observer.take
        if not self.order.leads:
            self._outlet.on_given_up = self._put_aside
        for ready in order.others:
            self.know(ready)

    def _follow(self, receivers: list[Receiver], lead: Receiver) -> Follow:
        assert self._answers is not None  # noqa: S101 - for the type checker
        return Follow(
            self._node.context,
            self._answers,
            self.run,
            self.order.rank,
            receivers,
            lead,
            FOLLOW_PATIENCE + 2 * self.readout.period,
            self._end_readout,
            self._events,
        )

    def _end_readout(self, reason: str) -> None:
        """The acquisition is over for a node that follows: the lead has ended, or is lost."""
        if reason:
            self.errors.append(reason)
        with contextlib.suppress(BadCommand):  # it is stopping, or has ended, already
            self.life.do("stop")
        self.readout.stop(0)

    def _put_aside(self, block: Block, why: Absence) -> None:
        """Keep what brought down nodes, for `lima2py isolate`."""
        folder = beside(self._books.paths, self.order.output)
        self.remarks.append(put_aside(folder, block, self._context, why.detail))

    def join(self, ready: ProcessingReady) -> bool:
        """Take one more processing node; whether it can still be of use. From any thread."""
        if not self.living or self._outlet is None:
            return False
        self._outlet.join(self._receiver(ready))
        return True

    def leave(self, rank: int) -> None:
        """A processing node shall leave when it has done what it has. From any thread."""
        if self._outlet is not None:
            self._outlet.leave(rank)

    def _receiver(self, ready: ProcessingReady) -> Receiver:
        self._books.files[ready.rank] = ready.files
        self.observer.names[ready.rank] = ready.name
        return ready.receiver(self.order.rank, self._node.identity)

    def know(self, ready: ProcessingReady) -> bool:
        """A processing node of a later stage takes part; whether the run goes on. Any thread."""
        self._books.files[ready.rank] = ready.files
        self.observer.names[ready.rank] = ready.name
        if self._outlet is not None:
            self._outlet.know(ready.rank)
        return self.living

    def start(self) -> None:
        """See `Run.start`. Returns when the detector has been started: it takes triggers now.

        Raises:
            BadCommand: if it is not prepared, or was not connected.
        """
        if self._outlet is None:
            raise BadCommand(f"{self.who} was prepared but is not connected to processing nodes")
        self.observer.start(self._flow)
        super().start()
        self.readout.started.wait(START_PATIENCE)

    def stop(self) -> None:
        """Acquire no more; what was acquired goes through, in time. From any thread."""
        self.life.do("stop")
        if self._outlet is not None:
            self._outlet.hurry(self.policies.drain_deadline)
        if not self.order.follows:  # the lead says where the run ends
            self.readout.stop(self.policies.drain_deadline)

    def process(self) -> None:
        """Process what waits in the ring, of a run whose processing was put off. From any thread.

        Raises:
            BadCommand: if it is over.
        """
        if not self.living or self._outlet is None:
            raise BadCommand(self.life.refusal("process"))
        self._outlet.release()

    @property
    def acquiring(self) -> bool:
        """Whether it needs the detector: it was started, and has not read its last frame."""
        return self.life.state in ACTIVE and not self.readout.finished

    def pause(self) -> None:
        """Acquire nothing until `resume`; what was acquired goes through. From any thread.

        Raises:
            BadCommand: if it is not running, or what triggers the detector cannot be held.
        """
        self.life.check("pause")
        self.readout.pause()
        self.life.do("pause")
        self._note_state()

    def resume(self) -> None:
        """Go on with the next frame. From any thread.

        Raises:
            BadCommand: if it is not paused.
        """
        self.life.check("resume")
        self.readout.resume()
        self.life.do("resume")
        self._note_state()

    def trigger(self) -> None:
        """One software trigger. From any thread.

        Raises:
            BadCommand: if it is paused, or the detector takes none now.
        """
        if self.life.state is State.PAUSED:
            raise BadCommand(self.life.refusal("trigger"))
        self.readout.trigger()

    def _note_state(self) -> None:
        with contextlib.suppress(BadCommand):  # the logbook is closed: it has ended meanwhile
            name = f"acquisition/{self._node.name}/state"
            self.observer.logbook.add(name, self.life.state.value)

    def ask_stop(self, reason: str) -> None:
        """A task asks for the end, with the reason. From any thread."""
        if reason not in self.errors:
            self.errors.append(reason)
        with contextlib.suppress(BadCommand):  # it is stopping, or has ended, already
            self.stop()

    def abort(self) -> None:
        """Acquire no more, and discard what is in flight. From any thread."""
        self.life.do("stop")
        self._aborted = True
        if self._outlet is not None:
            self._outlet.abort()
        self.readout.stop(0)

    @property
    def recent(self) -> Mapping[str, Recent]:
        """See `Run.recent`."""
        return self._flow.recent if self._flow is not None else {}

    def discard(self) -> None:
        """See `Run.discard`."""
        with contextlib.suppress(BadCommand):  # it has ended already
            self.abort()

    def _give_back(self, reserved: Reservation) -> None:
        if self._thread.ident is None:
            reserved.clear()
        reserved.release()

    def lose_nodes(self, reasons: Mapping[int, str]) -> None:
        """Processing nodes are dead, by rank and why. From any thread."""
        if self._outlet is not None:
            self._outlet.lose(reasons)

    def lose_source(self, rank: int) -> None:
        """Another acquisition node is dead: do not wait for its account. From any thread."""
        self._books.lost_sources.add(rank)

    def hurry(self) -> None:
        """Its node is about to end: others who go on have journals. From any thread."""
        self._books.leaving = True

    def loop(self) -> Outcome:
        """Frames from the detector to the outlet, until all are settled; then the books."""
        assert self._outlet is not None  # noqa: S101 - start has checked it
        outlet = self._outlet
        broken = False
        self._books.open()
        try:
            self.readout.start()
            for block in self.readout:
                if block is not None:
                    self._books.acquired(block)
                    outlet.process(block, self.readout.slot)
                self._settle(outlet.collect(idle=block is None))
            ended = self.readout.ended
        except BaseException as error:  # whatever it is, the frames must be accounted for
            broken = True
            said = in_words(error)
            if not isinstance(error, LimaError):
                said = f"detector {self.detector.info.name}: {said}"
            ended = (Fate.NOT_ACQUIRED, said)
            self.errors.append(f"{self.who}: {said}")
            outlet.fail(said)
        self.errors += self.readout.finish()
        self.remarks += self.readout.remarks
        self._ring.leave()
        if self.order.processing == "when_acquired":
            outlet.release()
        for settled in outlet.drain():
            self._settle(settled)
        self.errors += outlet.errors
        self.remarks += outlet.remarks
        fate, why = ended or (Fate.NODE_LOST, "nobody said what became of it")
        if self._aborted:
            fate, why = Fate.ABORTED, "aborted"
        rest = Absence(fate, "run", why)
        self._books.settle_rest(rest)
        broken |= outlet.broken and self.policies.detector_loss == "stop"
        outcome = self._outcome(ended, broken)
        outcome = self._books.finish(outcome, rest, outlet, self._context)
        self.remarks += self._books.remarks
        return outcome

    def _outcome(self, ended: tuple[Fate, str] | None, broken: bool) -> Outcome:
        """How our part of the run ended."""
        if self._aborted:
            return Outcome.ABORTED
        stopped = self.life.state is State.STOPPING
        short = ended is not None and self._books.ledger.nb_frames > 0  # an endless one may end
        if short and not stopped and not broken:
            assert ended is not None  # noqa: S101 - for the type checker
            self.errors.append(
                f"{self.who}: the readout ended at frame {self.readout.index} of"
                f" {self._books.ledger.nb_frames}: {ended[1]}"
            )
        if broken or (short and not stopped) or self._books.we_lost_frames:
            return Outcome.FAILED
        return Outcome.STOPPED if short else Outcome.COMPLETED

    def _make_room(self) -> int:
        """Free the slots of blocks that are settled; how many frames are."""
        assert self._outlet is not None  # noqa: S101 - for the type checker
        self._settle(self._outlet.collect(idle=False))
        return self._books.ledger.settled

    def _settle(self, settled: list[Settled]) -> None:
        self._books.settle(settled)
        for done in settled:
            if done.slot >= 0:
                self._ring.release(done.slot)

    def status(self) -> dict[str, Any]:
        """See `Run.status`."""
        ring, ledger = self._ring, self._books.ledger
        outlet, flow = self._outlet, self._flow
        self.end_was_seen |= not self.living and self._books.lead is not None  # it has no report
        # before what is open, so that nothing is left out
        following = self._events.event(self.readout.index)
        still_open = outlet.still_open if outlet is not None else []
        return {
            **self._common_status(),
            **(outlet.status() if outlet is not None else NO_NODES),
            "asked": ledger.nb_frames,
            "acquired": ledger.end,
            "settled": ledger.settled,
            "done_to": min([following, *still_open]),
            "counts": ledger.counts(),
            "frame_bytes": self.plan.spec.nbytes,
            "slots": ring.slots,
            "slots_used": ring.used,
            "slots_peak": ring.peak,
            "silent_for": self.readout.silent_for,
            "lag_seconds": self._books.latency.age,
            "latency": {
                "sink": plain_latencies(self._books.latency.by_sink),
                "tap": plain_latencies(flow.latency) if flow is not None else {},
            },
            "disk": flow.waiting if flow is not None else [],
            "rank": self.order.rank,
            "whole": self._books.whole,
        }

    def report(self) -> dict[str, Any]:
        """What became of the run, as plain values."""
        self.end_was_seen |= not self.living
        return {
            "run": self.run,
            "name": self.order.name,
            "outcome": self.outcome.value if self.outcome else None,
            "errors": list(self.errors),
            "remarks": list(self.remarks),
            "seconds": self.seconds,
            "ring_bytes": self.ready.ring.nbytes,
            **self._books.plain(),
        }

    def close(self) -> None:
        """See `Run.close`."""
        self.observer.stop()
        self._closing.close()
