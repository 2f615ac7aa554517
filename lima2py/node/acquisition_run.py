"""An acquisition run: detector → outlet, with the ledger; then the books.

The node of rank 0 keeps the books: it reserves the files before a run, takes the accounts of the
other acquisition nodes after it, and writes the masters.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from lima2py.acquisition import Acquisition, Parameters
from lima2py.detector import Detector, Share
from lima2py.errors import BadCommand, LimaError, in_words
from lima2py.frame import Absence, Fate
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan, plan_run
from lima2py.graph.recent import Recent
from lima2py.memory import Heap, MemorySettings, Ring, RingShape, Shared, Spare
from lima2py.metadata import Metadata
from lima2py.node.ledger import Ledger
from lima2py.node.life import Outcome, State, worst
from lima2py.node.node import Node
from lima2py.node.observe import Observer
from lima2py.node.orders import (
    AcquisitionOrder,
    AcquisitionReady,
    ConnectOrder,
    context_of,
    pick_address,
    read_graph,
)
from lima2py.node.outlet import Inline, Outlet
from lima2py.node.readout import Readout
from lima2py.node.run import Run
from lima2py.policies import Policies
from lima2py.storage.masters.master import Ending
from lima2py.storage.masters.of_run import Previews, write_masters
from lima2py.storage.masters.virtual import MAX_MAPPINGS
from lima2py.storage.saving.reserve import Reservation, reserve
from lima2py.storage.saving.space import needs, shortages
from lima2py.transport import wire
from lima2py.transport.push import STALL, Books, Push, Receiver, Settled
from lima2py.transport.sockets import connect, new_socket

OUR_FAULT = (
    Fate.NODE_LOST,
    Fate.POISON,
    Fate.DEADLINE,
    Fate.TASK_FAILED,
    Fate.NOT_SAVED,
    Fate.OVERRUN,
)
"""Fates that make a run `failed`: the detector delivered the frame, and we lost it."""
KEPT_RANGES = 1000


def _shared_group(plan: Plan, shape: RingShape, nb_frames: int, shares: int) -> int:
    """How many consecutive frames one node gets: a block at least.

    Sparse frames of several nodes are shown in order by a list of stretches, which must stay short:
    there the groups are longer, as far as the ring holds two for every node.
    """
    group = max(plan.group, shape.frames // plan.group * plan.group)
    if shares > 1 and any(plan.specs[sink].kind == "sparse" for sink in plan.sinks):
        wanted = -(-nb_frames // MAX_MAPPINGS)
        room = shape.slots * shape.frames // (2 * shares)
        group = max(group, min(wanted, room) // group * group)
    return group


class AcquisitionRun(Run):
    """Detector → outlet."""

    def __init__(self, order: AcquisitionOrder, node: Node, detector: Detector, spare: Spare):
        settings = MemorySettings.load(order.memory, f"{node.who}, memory")
        settings.apply_affinity()
        asked = Acquisition.load(order.requested, "acquisition")
        shares = max(1, order.nodes) * order.size
        plan, shape = plan_run(detector, asked, read_graph(order.graph), settings.ring, shares)
        super().__init__(order.run, node.who, plan)
        group = order.group or _shared_group(plan, shape, asked.nb_frames, shares)
        self.order = order
        self.policies = Policies.load(order.policies, "policies")
        self.detector = detector
        self.masters: dict[str, str] = {}
        self.remarks: list[str] = []
        self._node = node
        self._share = Share(order.rank, order.size, group)
        self._lead_books: str | None = None
        self._aborted = False
        self._began = 0.0
        self._lost_sources: set[int] = set()
        self._files: dict[int, dict[str, list[str]]] = {}
        self._outlet: Outlet | None = None
        self._books: Books | None = None
        self._ring: Ring | None = None
        self._reserved: Reservation | None = None
        self._warnings: list[str] = []
        self.observer = Observer(node, detector, self.status, self.errors.append, order.size == 1)
        Metadata.load(order.metadata, "metadata").geometry.check(detector.info.pixel_size)
        try:
            hardware = detector.prepare(asked, self._share)
            self._ring = Ring(
                plan.spec, shape, spare.allocator(Shared if order.nodes else Heap, settings)
            )
            self.ledger = Ledger(plan.sink_spans, hardware.nb_frames)
            if order.nodes:
                self._books = Books(node.context, node.addresses("books"))
            if order.rank == 0:  # last, since it may clear away the files of an older run
                self._reserved = reserve(plan.sinks, Path(order.output), order.name, order.run)
                self._warnings = self._look_for_room(hardware)
            self.ready = self._answer(hardware)
            self.readout = Readout(
                detector, hardware, plan.spec, self._ring, self._share, plan.group
            )
            if not order.nodes:
                context = replace(context_of(self.ready, order, node.name), stop=self.ask_stop)
                flow = Flow(plan, context, max(1, shape.slots // 4))
                self._outlet = Inline(flow)
                self._files[0] = flow.files
            self.life.do("prepare")
        except BaseException:
            self.close()
            raise

    def _answer(self, hardware: Acquisition) -> AcquisitionReady:
        assert self._ring is not None  # noqa: S101 - for the type checker
        detector, order = self.detector, self.order
        described = detector.describe_all()
        return AcquisitionReady(
            rank=order.rank,
            host=self._node.identity,
            hostname=platform.node(),
            addresses=self._books.addresses if self._books else [],
            spec=self.plan.spec.plain(),
            group=self._share.group,
            ring=self._ring.shape,
            handle=self._ring.buffer.handle,
            paths=dict(self._reserved.paths) if self._reserved else {},
            parameters=Parameters(
                requested={
                    "acquisition": order.requested,
                    "detector": {"name": order.detector.name, **order.detector.overrides},
                    "graph": {"file": order.graph.where, "text": order.graph.text},
                    "policies": self.policies.plain(),
                },
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
            warnings=self._warnings,
        )

    def _look_for_room(self, hardware: Acquisition) -> list[str]:
        assert self._reserved is not None  # noqa: S101 - for the type checker
        paths = {sink: Path(path) for sink, path in self._reserved.paths.items()}
        return shortages(needs(self.plan.sinks, self.plan.specs, paths, hardware.nb_frames))

    def connect(self, order: ConnectOrder) -> None:
        """Meet the processing nodes."""
        assert self._books is not None  # noqa: S101 - only nodes that push are connected
        receivers = []
        for ready in order.receivers:
            same_host = ready.host == self._node.identity
            receivers.append(
                Receiver(
                    ready.rank,
                    ready.name,
                    ready.incarnation,
                    pick_address(ready.addresses, same_host),
                    ready.credits,
                    self.order.rank in ready.shared,
                )
            )
            self._files[ready.rank] = ready.files
            self.observer.names[ready.rank] = ready.name
        self._outlet = Push(
            self._node.context,
            self._books,
            self.run,
            self.order.rank,
            receivers,
            self._share.group,
            list(self.plan.sink_spans.values()),
            self.ask_stop,
        )
        self._outlet.on_statistics = self.observer.take
        if self.order.rank:
            same_host = order.books_host == self._node.identity
            self._lead_books = pick_address(order.books, same_host)

    def start(self) -> None:
        """See `Run.start`.

        Raises:
            BadCommand: if it is not prepared, or was not connected.
        """
        if self._outlet is None:
            raise BadCommand(f"{self.who} was prepared but is not connected to processing nodes")
        self.observer.start(self._outlet)
        super().start()

    def stop(self) -> None:
        """Acquire no more; what was acquired goes through. From any thread."""
        self.life.do("stop")
        self.detector.stop()

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
        self.detector.stop()

    @property
    def recent(self) -> Mapping[str, Recent]:
        """See `Run.recent`."""
        return self._outlet.flow.recent if isinstance(self._outlet, Inline) else {}

    def discard(self) -> None:
        """See `Run.discard`."""
        with contextlib.suppress(BadCommand):  # it has ended already
            self.abort()

    def lose_nodes(self, reasons: Mapping[int, str]) -> None:
        """Processing nodes are dead, by rank and why. From any thread."""
        if isinstance(self._outlet, Push):
            self._outlet.lose(reasons)

    def lose_source(self, rank: int) -> None:
        """Another acquisition node is dead: do not wait for its account. From any thread."""
        self._lost_sources.add(rank)

    def loop(self) -> Outcome:
        """Frames from the detector to the outlet, until all are settled; then the books."""
        assert self._outlet is not None  # noqa: S101 - start has checked it
        outlet = self._outlet
        previews = None
        if self.order.rank == 0:
            logs = self.observer.logbook.series
            previews = Previews(self.plan.sinks, self.ready.paths, logs)
        broken = False
        self._began = time.time()
        try:
            self.detector.start()
            for block in self.readout:
                if block is not None:
                    self.ledger.acquired(block.end)
                    outlet.process(block, self.readout.slot)
                self._settle(outlet.collect(idle=block is None))
                if previews is not None:
                    previews.refresh()
            ended = self.readout.ended
        except BaseException as error:  # whatever it is, the frames must be accounted for
            broken = True
            said = in_words(error)
            if not isinstance(error, LimaError):
                said = f"detector {self.detector.info.name}: {said}"
            ended = (Fate.NOT_ACQUIRED, said)
            self.errors.append(f"{self.who}: {said}")
        self.detector.stop()
        for settled in outlet.drain():
            self._settle(settled)
            if previews is not None:
                previews.refresh()
        if previews is not None:
            previews.finish()
        self.errors += outlet.errors
        self.remarks += outlet.remarks
        return self._close_books(ended, broken)

    def _settle(self, settled: Iterable[Settled]) -> None:
        assert self._ring is not None  # noqa: S101 - for the type checker
        for slot, node, done in settled:
            self.ledger.settle(done, node)
            if slot >= 0:
                self._ring.release(slot)

    def _close_books(self, ended: tuple[Fate, str] | None, broken: bool) -> Outcome:
        fate, why = ended or (Fate.NODE_LOST, "nobody said what became of it")
        if self._aborted:
            fate, why = Fate.ABORTED, "aborted"
        said = Absence(fate, "run", why)
        self.ledger.close(said, self._share)
        stopped = self.life.state is State.STOPPING
        if self._aborted:
            outcome = Outcome.ABORTED
        elif broken or self._ended_early(ended, stopped) or self._we_lost_frames():
            outcome = Outcome.FAILED
            if not broken and self._ended_early(ended, stopped):
                self.errors.append(
                    f"{self.who}: the readout ended at frame {self.readout.index} of"
                    f" {self.ledger.nb_frames}: {why}"
                )
        else:
            cut_short = stopped and ended is not None and self.ledger.nb_frames > 0
            outcome = Outcome.STOPPED if cut_short else Outcome.COMPLETED
        if self._lead_books is not None:
            self._send_account(outcome)
            return outcome
        accounts = self._gather_accounts()
        for account in accounts:
            self.ledger.merge(account.ledger)
            self.observer.logbook.merge(account.logs)
            self.errors += [text for text in account.errors if text not in self.errors]
            outcome = worst([outcome, Outcome(account.outcome)])
        for rank in (0, *(account.source for account in accounts)):
            # Endless runs end at another frame on each node.
            self.ledger.close(said, self._share._replace(rank=rank))
        if self.order.size > 1:
            self.ledger.close(Absence(Fate.NODE_LOST, "ledger", "its acquisition node was lost"))
            if self._we_lost_frames() and outcome is not Outcome.ABORTED:
                outcome = Outcome.FAILED
        return self._write_masters(outcome)

    def _ended_early(self, ended: tuple[Fate, str] | None, stopped: bool) -> bool:
        """Whether the readout ended, unasked, before all frames; an endless one may end."""
        return ended is not None and not stopped and self.ledger.nb_frames > 0

    def _we_lost_frames(self) -> bool:
        counts = self.ledger.counts()
        return any(counts.get(fate.word) for fate in OUR_FAULT)

    def _send_account(self, outcome: Outcome) -> None:
        assert self._lead_books is not None  # noqa: S101 - for the type checker
        socket = new_socket(self._node.context, zmq.PUSH, hwm=0)
        try:
            connect(socket, self._lead_books)
            logs, ledger = self.observer.close(), self.ledger.pack()
            account = wire.Account(
                self.run, self.order.rank, ledger, outcome.value, self.errors, logs
            )
            socket.send(wire.encode(account))
        finally:
            socket.close(linger=10_000)

    def _gather_accounts(self) -> list[wire.Account]:
        if self.order.size == 1 or not isinstance(self._outlet, Push):
            return []
        others = set(range(1, self.order.size))
        deadline = time.monotonic() + STALL
        while others - set(self._outlet.accounts) - self._lost_sources:
            if time.monotonic() > deadline:
                missing = sorted(others - set(self._outlet.accounts))
                self.errors.append(f"{self.who}: no account from acquisition nodes {missing}")
                break
            self._outlet.listen()
        return [self._outlet.accounts[rank] for rank in sorted(self._outlet.accounts)]

    def _write_masters(self, outcome: Outcome) -> Outcome:
        if isinstance(self._outlet, Push):
            for rank, closed in self._outlet.closed.items():
                self._files[rank] = closed.files
        context = context_of(self.ready, self.order, self._node.name)
        self.masters, problems = write_masters(
            self.plan.sinks,
            replace(context, started=self._began),
            {name: self.ledger.table(name) for name in self.plan.sinks},
            self._files,
            Ending(outcome.value, self.errors, self.observer.close(), ended=time.time()),
        )
        if problems:
            self.errors += [f"{self.who}: {text}" for text in problems]
            outcome = worst([outcome, Outcome.FAILED])
        return outcome

    def status(self) -> dict[str, Any]:
        """See `Run.status`."""
        ring = self._ring
        push = self._outlet if isinstance(self._outlet, Push) else None
        following = self.readout.index  # before what is open, so that nothing is left out
        still_open = self._outlet.still_open if self._outlet is not None else []
        return {
            **self._common_status(),
            "asked": self.ledger.nb_frames,
            "acquired": self.ledger.end,
            "settled": self.ledger.settled,
            "done_to": min([following, *still_open]),
            "counts": self.ledger.counts(),
            "frame_bytes": self.plan.spec.nbytes,
            "slots": ring.shape.slots if ring else 0,
            "slots_used": ring.used if ring else 0,
            "slots_peak": ring.peak if ring else 0,
            "in_flight": push.in_flight if push else {},
        }

    def report(self) -> dict[str, Any]:
        """What became of the run, as plain values."""
        return {
            "run": self.run,
            "name": self.order.name,
            "outcome": self.outcome.value if self.outcome else None,
            "asked": self.ledger.asked,
            "counts": self.ledger.counts(),
            "sinks": self.ledger.sink_counts(),
            "absences": self.ledger.ranges()[:KEPT_RANGES],
            "masters": dict(self.masters),
            "errors": list(self.errors),
            "remarks": list(self.remarks),
            "seconds": self.seconds,
            "ring_bytes": self.ready.ring.slots * self.ready.ring.stride,
        }

    def close(self) -> None:
        """See `Run.close`."""
        self.observer.stop()
        if self._outlet is not None:
            self._outlet.close()
        if self._books is not None:
            self._books.close()
        if self._ring is not None:
            self._ring.close()
        if self._reserved is not None:
            self._reserved.release()
            self._reserved = None
