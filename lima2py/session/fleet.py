"""The nodes of a system: started when they are needed, and made ready for a run together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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
from lima2py.session.system import NodePlace, System
from lima2py.transport.sockets import PrivateFolder, new_context

PREPARE_TIMEOUT = 120.0
Ready = TypeVar("Ready")


class Fleet:
    """Handles on all nodes of a system, in the order of their ranks.

    Attributes:
        acquisition: the acquisition nodes, once started; the first one keeps the books.
        processing: the processing nodes.
    """

    def __init__(self) -> None:
        self.acquisition: list[Handle] = []
        self.processing: list[Handle] = []
        self._context = new_context()
        self._folder: PrivateFolder | None = None

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
                    old = handles[rank]
                    if not isinstance(old, Child) or old.running:
                        continue
                    old.close()
                    del handles[rank]
                handle = self._reach(kind, rank, place, self._folder)
                handles.insert(rank, handle)
                if isinstance(handle, Child):
                    fresh.append(handle)
        for child in fresh:
            child.wait_ready()

    def prepare(
        self,
        run: str,
        name: str,
        graph: GraphDefinition,
        output: str,
        asked: Acquisition,
        metadata: Metadata,
        policies: Policies,
    ) -> AcquisitionReady:
        """Make all nodes, which were started, ready for a run and let them meet.

        Args:
            run: its id.
            name: what the user calls it.
            graph: what is to be done.
            output: the folder for the files.
            asked: what the detector shall do.
            metadata: what the user says of the experiment.
            policies: what to do when something goes wrong.

        Returns:
            What the acquisition node that keeps the books answered.
        """
        system = self._system
        text = GraphText(graph.text, graph.where, str(graph.base))
        readies: list[AcquisitionReady] = []
        places = system.acquisition or (None,)
        for rank, (handle, place) in enumerate(zip(self.acquisition, places, strict=True)):
            order = AcquisitionOrder(
                run=run,
                name=name,
                output=output,
                graph=text,
                detector=DetectorOrder(system.detector, system.set, str(system.base)),
                requested=asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
                memory=system.memory_of(place),
                metadata=metadata.plain(),
                policies=policies.plain(),
                nodes=len(self.processing),
                rank=rank,
                size=len(self.acquisition),
                group=readies[0].group if readies else 0,
            )
            readies.append(_prepare(handle, order, AcquisitionReady))
        lead = readies[0]
        if self.processing:
            receivers = self._prepare_processing(run, name, text, readies)
            connect = ConnectOrder(receivers, lead.addresses, lead.host)
            for handle in self.acquisition:
                handle.call("connect", run=run, order=msgspec.to_builtins(connect))
        return lead

    def give_up(self, run: str) -> None:
        """Undo what was prepared, or started, in part."""
        for handle in [*self.acquisition, *self.processing]:
            try:
                handle.call("give_up", run=run)
            except NodeError:
                continue  # it is gone, and what it held with it

    def close(self) -> None:
        """End the nodes that are ours; leave nothing behind. May be called twice."""
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

    def _prepare_processing(
        self, run: str, name: str, graph: GraphText, readies: list[AcquisitionReady]
    ) -> list[ProcessingReady]:
        def prepare(handle: Handle) -> ProcessingReady:
            memory = self._system.memory_of(self._system.processing[handle.rank])
            nodes = len(self.processing)
            order = ProcessingOrder(run, name, graph, memory, handle.rank, nodes, readies)
            return _prepare(handle, order, ProcessingReady)

        with ThreadPoolExecutor(len(self.processing)) as pool:
            return list(pool.map(prepare, self.processing))


def _prepare(handle: Handle, order: Any, ready: type[Ready]) -> Ready:
    plain = handle.call("prepare", timeout=PREPARE_TIMEOUT, order=msgspec.to_builtins(order))
    return msgspec.convert(plain, ready)
