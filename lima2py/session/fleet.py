"""The nodes of a system: started when they are needed, and made ready for a run together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec

from lima2py.acquisition import Acquisition
from lima2py.errors import LimaError, NodeError
from lima2py.graph.definition import GraphDefinition
from lima2py.metadata import Metadata
from lima2py.node.acquisition import AcquisitionNode
from lima2py.node.orders import (
    AcquisitionOrder,
    AcquisitionReady,
    ConnectOrder,
    DetectorOrder,
    GraphText,
    ProcessingOrder,
    ProcessingReady,
)
from lima2py.policies import Policies
from lima2py.session.launch import Child, Handle, Inside, Remote
from lima2py.session.member import SILENCE
from lima2py.session.system import NodePlace, System
from lima2py.transport.keys import Keys
from lima2py.transport.sockets import PrivateFolder, new_context

PREPARE_TIMEOUT = 120.0
GIVE_UP_TIMEOUT = 10.0
Ready = TypeVar("Ready")


class Wanted(NamedTuple):
    """A run that is asked for.

    Attributes:
        run: its id.
        name: what the user calls it.
        graph: what is to be done.
        output: the folder for the files.
        asked: what the detector shall do.
        metadata: what the user says of the experiment.
        policies: what to do when something goes wrong.
        processing: when frames are processed: `at_once`, `when_acquired`, `when_told`.
    """

    run: str
    name: str
    graph: GraphDefinition
    output: str
    asked: Acquisition
    metadata: Metadata
    policies: Policies
    processing: str


@dataclass
class _Call:
    """What nodes need to know to take part in a run.

    Attributes:
        ranks: how many processing nodes have had a part in it.
    """

    run: str
    name: str
    graph: GraphText
    readies: list[AcquisitionReady]
    ranks: int


class Fleet:
    """Handles on all nodes of a system, in the order of the system file.

    Args:
        keys: that the session uses on the network.

    Attributes:
        acquisition: the acquisition nodes, once started; the first one keeps the books.
        processing: the processing nodes.
        lock: is held while nodes are started, or made ready.
    """

    def __init__(self, keys: Keys | None = None) -> None:
        self.acquisition: list[Handle] = []
        self.processing: list[Handle] = []
        self._context = new_context(keys)
        self._folder: PrivateFolder | None = None
        self.lock = threading.RLock()
        self._calls: dict[str, _Call] = {}

    @property
    def of_graph(self) -> list[Handle]:
        """The nodes that run the graph."""
        return self.processing or self.acquisition

    def start(self, system: System) -> None:
        """Start, or start again, what is not there.

        Args:
            system: which nodes there are; without any, one is kept in this process.

        Raises:
            NodeError: if a node does not come up, or is not where it should be.
        """
        with self.lock:
            self._start(system)

    def _start(self, system: System) -> None:
        self._system = system
        if not system.processing:
            if not self.acquisition:
                self.acquisition.append(Inside(AcquisitionNode("local")))
            return
        if self._folder is None:
            self._folder = PrivateFolder()
        fresh: list[Child] = []
        for kind, places, handles in (
            ("acquisition", system.acquisition, self.acquisition),
            ("processing", system.processing, self.processing),
        ):
            for rank, place in enumerate(places):
                if rank < len(handles):
                    if _is_there(old := handles[rank], kind):
                        continue
                    old.close()
                    del handles[rank]
                handle = self._reach(kind, rank, place, self._folder)
                handles.insert(rank, handle)
                if isinstance(handle, Child):
                    fresh.append(handle)
        for child in fresh:
            child.wait_ready()

    def prepare(self, wanted: Wanted) -> AcquisitionReady:
        """Make all nodes, which were started, ready for a run and let them meet.

        Returns:
            What the acquisition node that keeps the books answered.
        """
        with self.lock:
            return self._prepare(wanted)

    def bring_back(self, lost: Handle, run: str) -> Handle:
        """Start a processing node again that a run has lost.

        Args:
            lost: the handle on it; a node that somebody else started must be there again.
            run: id of the run.

        Returns:
            The handle on it from now on.

        Raises:
            LimaError: if it cannot be.
        """
        if isinstance(lost, Remote):  # before anybody has to wait for us
            _is_there(lost, "processing")
        with self.lock:
            if self.processing[lost.rank] is lost:  # if not, another run has seen to it
                if isinstance(lost, Child):
                    lost.close()
                    self.processing[lost.rank] = self._again(lost.rank)
                else:
                    lost.call("give_up", run=run)
            return self.processing[lost.rank]

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
            ready = msgspec.to_builtins(self._prepare_one(handle, rank, call))
            handle.call("start", run=run)
            if not self._announce(run, ready):
                handle.call("give_up", run=run)
                raise NodeError(f"node {handle.name} came back when the run was over")
            return rank

    def _announce(self, run: str, ready: object) -> bool:
        """Tell acquisition nodes of a processing node; whether any of them can use it."""
        wanted = False
        for acquisition in self.acquisition:
            with suppress(NodeError):  # it is lost: the watch finds that out
                wanted |= acquisition.look("join", run=run, ready=ready)
        return wanted

    def _again(self, place: int) -> Handle:
        assert self._folder is not None  # noqa: S101 - there are child nodes
        child = self._reach("processing", place, self._system.processing[place], self._folder)
        assert isinstance(child, Child)  # noqa: S101 - for the type checker
        try:
            child.wait_ready()
        except LimaError:
            child.close()
            raise
        return child

    def _prepare(self, wanted: Wanted) -> AcquisitionReady:
        system = self._system
        graph = wanted.graph
        text = GraphText(graph.text, graph.where, str(graph.base))
        readies: list[AcquisitionReady] = []
        places = system.acquisition or (None,)
        for rank, (handle, place) in enumerate(zip(self.acquisition, places, strict=True)):
            order = AcquisitionOrder(
                run=wanted.run,
                name=wanted.name,
                output=wanted.output,
                graph=text,
                detector=DetectorOrder(system.detector, system.set, str(system.base)),
                requested=wanted.asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
                memory=system.memory_of(place),
                metadata=wanted.metadata.plain(),
                policies=wanted.policies.plain(),
                processing=wanted.processing,
                nodes=len(self.processing),
                rank=rank,
                size=len(self.acquisition),
                group=readies[0].group if readies else 0,
            )
            readies.append(_prepare(handle, order, AcquisitionReady))
        lead = readies[0]
        call = _Call(wanted.run, wanted.name, text, readies, len(self.processing))
        self._calls[wanted.run] = call
        if self.processing:
            receivers = self._prepare_processing(call)
            connect = ConnectOrder(receivers, lead.addresses, lead.host, lead.paths)
            for handle in self.acquisition:
                handle.call("connect", run=wanted.run, order=msgspec.to_builtins(connect))
        return lead

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
        """End the nodes that are ours; leave nothing behind. May be called twice."""
        with self.lock:
            self._calls.clear()
            for handle in [*self.acquisition, *self.processing]:
                handle.close()
        self._context.destroy(linger=0)
        if self._folder is not None:
            self._folder.close()

    def _reach(self, kind: str, rank: int, place: NodePlace, folder: PrivateFolder) -> Remote:
        """A handle on a node: on one that runs somewhere, or on one started here now."""
        if place.address is None:
            host = self._system.host_of(place)
            return Child(self._context, kind, place.node, rank, folder, host)
        remote = Remote(self._context, place.node, rank, place.address)
        try:
            remote.check_kind(kind)
        except LimaError:
            remote.close()
            raise
        return remote

    def _prepare_processing(self, call: _Call) -> list[ProcessingReady]:
        with ThreadPoolExecutor(len(self.processing)) as pool:
            return list(
                pool.map(
                    lambda place: self._prepare_one(self.processing[place], place, call),
                    range(len(self.processing)),
                )
            )

    def _prepare_one(self, handle: Handle, rank: int, call: _Call) -> ProcessingReady:
        memory = self._system.memory_of(self._system.processing[handle.rank])
        nodes = len(self.processing)
        order = ProcessingOrder(call.run, call.name, call.graph, memory, rank, nodes, call.readies)
        return _prepare(handle, order, ProcessingReady)


def _is_there(handle: Handle, kind: str) -> bool:
    """Whether a node can be told something; one of ours that hangs is ended.

    Raises:
        NodeError: if one that somebody else started is not there.
    """
    if not isinstance(handle, Child):
        if isinstance(handle, Remote):
            handle.check_kind(kind)
        return True
    try:
        handle.look("describe", timeout=SILENCE)
    except NodeError:
        handle.kill()
        return False
    return True


def _prepare(handle: Handle, order: Any, ready: type[Ready]) -> Ready:
    plain = handle.call("prepare", timeout=PREPARE_TIMEOUT, order=msgspec.to_builtins(order))
    return msgspec.convert(plain, ready)
