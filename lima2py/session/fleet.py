"""The fleet: the nodes of a system made ready for runs, together; and those that come back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import msgspec

from lima2py.errors import LimaError, NodeError
from lima2py.node.life import ACTIVE, State
from lima2py.node.orders import (
    AcquisitionOrder,
    AcquisitionReady,
    ConnectOrder,
    DetectorOrder,
    Peer,
    ProcessingOrder,
    ProcessingReady,
)
from lima2py.session.budget import Budgets
from lima2py.session.call import Call, Wanted, text_of
from lima2py.session.launch import Handle
from lima2py.session.nodes import Nodes
from lima2py.session.place import NodePlace
from lima2py.session.recall import Recalled, recall, remember
from lima2py.session.staging import Staging
from lima2py.session.standing import Standing
from lima2py.transport.keys import Keys

PREPARE_TIMEOUT = 120.0
GIVE_UP_TIMEOUT = 10.0
Ready = TypeVar("Ready")


class Fleet(Nodes):
    """The nodes of a system, and what is prepared on them: see `Nodes` for what it takes."""

    def __init__(
        self, keys: Keys | None = None, standing: Standing | None = None, take_over: bool = False
    ) -> None:
        super().__init__(keys, standing, take_over)
        self._calls: dict[str, Call] = {}
        self._budgets = Budgets()

    def members(self, run: str) -> dict[int, Handle]:
        """The processing nodes of a run that was just prepared, by rank."""
        call = self._calls.get(run)
        handles = {handle.name: handle for handle in self.processing}
        return {rank: handles[name] for rank, name in call.members.items()} if call else {}

    def prepare(self, wanted: Wanted) -> AcquisitionReady:
        """Make all nodes, which were started, ready for a run and let them meet.

        Returns:
            What the acquisition node that keeps the books answered.
        """
        with self.lock:
            nodes = [*self.acquisition, *self.processing]
            if self.stays:
                _clear_away(nodes)
            graph = wanted.graph.text
            staging = Staging.of(wanted.graph, self._system)
            with_ring = [*(node.name for node in self.acquisition), *staging.handing_on]
            rings = self._budgets.begin(self._system, nodes, with_ring, graph)
            lead = self._prepare(wanted, rings)
            fits, table = self._budgets.settle(nodes)
            if not fits:
                self.give_up(wanted.run)
                rings = self._budgets.begin(self._system, nodes, with_ring, graph)
                lead = self._prepare(wanted, rings)
                _, table = self._budgets.settle(nodes, last=True)
            return msgspec.structs.replace(lead, plan=f"{lead.plan}\n{table}")

    def enlist(self, handle: Handle, run: str) -> int:
        """Let a processing node take part in a run that goes on.

        Returns:
            Its rank in the run.

        Raises:
            LimaError: if it cannot, or the run is over.
        """
        with self.lock:
            call = self._calls.get(run)
            if call is None:
                raise NodeError(f"node {handle.name} has no run to come back to")
            rank, call.ranks = call.ranks, call.ranks + 1
            ready = self._prepare_one(handle, rank, call)
            self._budgets.tell(handle)
            call.staging.keep(ready)
            self._introduce(handle, ready, call)
            handle.call("start", run=run)
            call.members[rank] = handle.name
            if self.stays:
                remember(call, self.acquirers([ready.other for ready in call.readies]))
            if not self._announce(call, ready):
                handle.call("give_up", run=run)
                raise NodeError(f"node {handle.name} came back when the run was over")
            return rank

    def _introduce(self, handle: Handle, ready: ProcessingReady, call: Call) -> None:
        """Let a node that came again, and those of the stage behind it, meet."""
        if ready.feeder is None:
            return
        feeder = msgspec.to_builtins(ready.feeder)
        staging, met = call.staging, []
        for other in staging.of_stage(staging.stage_of(handle.name) + 1).values():
            with suppress(LimaError):  # it is lost, too: the watch finds that out
                met.append(self._of_name(other.name).look("meet", run=call.run, feeder=feeder))
        handle.call("connect", run=call.run, receivers=met)

    def _announce(self, call: Call, ready: ProcessingReady) -> bool:
        """Tell those who may give a processing node blocks; whether the run goes on."""
        stage = call.staging.stage_of(ready.name)
        told = {"run": call.run, "ready": msgspec.to_builtins(ready)}
        for other in call.staging.of_stage(stage - 1).values():
            with suppress(LimaError):  # it is lost, too
                self._of_name(other.name).look("join", **told)
        wanted = False
        handles = self.acquirers([ready.other for ready in call.readies])
        for acquisition in reversed(handles):  # last the one that may lead the others
            with suppress(NodeError):  # it is lost: the watch finds that out
                wanted |= acquisition.look("know" if stage else "join", **told)
        return wanted

    def _prepare(self, wanted: Wanted, rings: Mapping[str, int]) -> AcquisitionReady:
        system = self._system
        graph = wanted.graph
        text = text_of(graph)
        staging = Staging.of(graph, system)
        companions = self._prepare_others(wanted, len(staging.nodes[0]), rings)
        readies: list[AcquisitionReady] = []
        modules = [list(place.modules) for place in system.main]
        places = system.main or (None,)
        for rank, (handle, place) in enumerate(zip(self.acquirers(()), places, strict=True)):
            order = self._order(
                wanted,
                place,
                system.detector,
                system.set,
                requested=wanted.asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
                metadata=wanted.metadata.plain(),
                nodes=len(staging.nodes[0]),
                rank=rank,
                size=len(places) + len(companions),
                modules=modules if any(modules) else [],
                group=readies[0].group if readies else 0,
                ring=rings.get(handle.name, 0),
                companions=companions,
            )
            readies.append(_prepare(handle, order, AcquisitionReady))
        readies += companions
        readies[0] = lead = told_of_stages(readies[0], staging)
        members = {
            rank: handle.name
            for rank, handle in enumerate(self.processing)
            if staging.stage_of(handle.name) >= 0
        }
        told = wanted.plain() if self.stays else {}
        ranks = len(self.processing)
        call = Call(wanted.run, wanted.name, text, readies, ranks, members, told, staging)
        self._calls[wanted.run] = call
        if self.processing:
            receivers, *later = self._prepare_processing(call)
            sources = [
                Peer(ready.rank, ready.name, ready.host, ready.addresses) for ready in readies
            ]
            others = [ready for stage in later for ready in stage]
            connect = ConnectOrder(receivers, sources, lead.paths, others)
            for handle in self.acquirers(graph.companions):
                handle.call("connect", run=wanted.run, order=msgspec.to_builtins(connect))
        if self.stays:
            remember(call, self.acquirers(graph.companions))
        return lead

    def _prepare_others(
        self, wanted: Wanted, nodes: int, rings: Mapping[str, int]
    ) -> list[AcquisitionReady]:
        """Make the nodes of the other detectors ready whose frames the graph takes."""
        system, names = self._system, wanted.graph.companions
        places = [place for place in system.acquisition if place.detector in names]
        handles = self.acquirers(names)[len(self.acquirers(())) :]
        readies = []
        for rank, (handle, place) in enumerate(zip(handles, places, strict=True), len(system.main)):
            other = system.detectors[place.detector]
            order = self._order(
                wanted,
                place,
                other.detector,
                other.set,
                requested=other.asked(place.detector, wanted.asked),
                metadata={},
                nodes=nodes,
                rank=rank,
                size=len(system.main) + len(places),
                ring=rings.get(handle.name, 0),
                other=place.detector,
                events=other.trigger_map.pattern,
            )
            readies.append(_prepare(handle, order, AcquisitionReady))
        return readies

    def _order(
        self,
        wanted: Wanted,
        place: NodePlace | None,
        detector: str,
        parameters: Mapping[str, Any],
        **own: Any,
    ) -> AcquisitionOrder:
        """What an acquisition node is told of a run."""
        return AcquisitionOrder(
            run=wanted.run,
            name=wanted.name,
            output=wanted.output,
            graph=text_of(wanted.graph),
            detector=DetectorOrder(detector, dict(parameters), str(self._system.base)),
            memory=self._system.memory_of(place),
            policies=wanted.policies.plain(),
            processing=wanted.processing,
            **own,
        )

    def recall(self, known: Collection[str]) -> list[Recalled]:
        """The runs that the nodes of a system that is up know, the oldest first.

        Args:
            known: ids of those that need not be told.
        """
        self.meet_again()
        found = recall(self.acquisition, self.processing, known)
        for run in found:
            if run.state is State.PREPARED or run.state in ACTIVE:
                self._calls[run.call.run] = run.call
        return found

    def forget(self, run: str) -> None:
        """A run is over: no node comes back to it."""
        self._calls.pop(run, None)

    def give_up(self, run: str) -> None:
        """Undo what was prepared, or started, in part."""
        self.forget(run)
        for handle in [*self.acquisition, *self.processing]:
            try:
                handle.call("give_up", timeout=GIVE_UP_TIMEOUT, run=run)
            except NodeError:
                continue  # it is gone, and what it held with it; or is when it is needed again

    def close(self) -> None:
        """See `Nodes`."""
        with self.lock:
            self._calls.clear()
        super().close()

    def _prepare_processing(self, call: Call) -> list[list[ProcessingReady]]:
        """Make the processing nodes ready, stage by stage, and let them meet."""
        found: list[list[ProcessingReady]] = []
        for names in call.staging.nodes:
            ranks = [rank for rank, name in call.members.items() if name in names]
            with ThreadPoolExecutor(len(ranks)) as pool:
                prepare = partial(self._prepare_place, call)
                found.append(list(pool.map(prepare, ranks)))
            for ready in found[-1]:
                call.staging.keep(ready)
        for stage, behind in pairwise(found):
            receivers = msgspec.to_builtins(behind)
            for ready in stage:
                self.processing[ready.rank].call("connect", run=call.run, receivers=receivers)
        return found

    def _prepare_place(self, call: Call, place: int) -> ProcessingReady:
        return self._prepare_one(self.processing[place], place, call)

    def _prepare_one(self, handle: Handle, rank: int, call: Call) -> ProcessingReady:
        memory = self._system.memory_of(self._system.processing[handle.rank])
        staging = call.staging
        stage = staging.stage_of(handle.name)
        order = ProcessingOrder(
            run=call.run,
            name=call.name,
            graph=call.graph,
            memory=memory,
            rank=rank,
            nodes=len(staging.nodes[stage]),
            senders=call.readies,
            stage=stage,
            stages=staging.tasks if staging.several else {},
            feeders=staging.feeders(stage),
            behind=staging.behind(stage),
            ring=self._budgets.rings.get(handle.name, 0),
        )
        return _prepare(handle, order, ProcessingReady)


def told_of_stages(ready: AcquisitionReady, staging: Staging) -> AcquisitionReady:
    """What the acquisition node that keeps the books answered, with what runs where."""
    if not staging.several:
        return ready
    plan = f"{ready.plan}\n{staging.table}"
    return msgspec.structs.replace(ready, plan=plan, where=staging.where)


def _prepare(handle: Handle, order: Any, ready: type[Ready]) -> Ready:
    plain = handle.call("prepare", timeout=PREPARE_TIMEOUT, order=msgspec.to_builtins(order))
    return msgspec.convert(plain, ready)


def _clear_away(nodes: Sequence[Handle]) -> None:
    """Give up what a session that was killed has prepared, and not started."""
    for handle in nodes:
        for told in handle.look("runs"):
            if told["state"] == State.PREPARED.value:
                handle.call("give_up", run=told["run"])
