"""What nodes are told and what they answer when a run is prepared.

session ── AcquisitionOrder ──► acquisition node ── AcquisitionReady ──► session
session ── ProcessingOrder ───► processing node  ── ProcessingReady ───► session
session ── ConnectOrder ──────► acquisition node
"""

from __future__ import annotations

from typing import Any

import msgspec

from lima2py.acquisition import Parameters
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.memory import Handle
from lima2py.policies import Policies
from lima2py.ring import RingShape
from lima2py.task import RunContext


class GraphText(msgspec.Struct, frozen=True):
    """A graph as text, enough to build it again in another process."""

    text: str
    where: str
    base: str


class DetectorOrder(msgspec.Struct, frozen=True):
    """Which detector to open: what `open_detector` takes."""

    name: str
    overrides: dict[str, Any]
    base: str


class AcquisitionOrder(msgspec.Struct, frozen=True):
    """What an acquisition node needs to know of a run.

    `nodes` is the number of processing nodes; with 0 the graph runs in the acquisition node itself.
    `processing` says when frames are processed: `at_once`, `when_acquired`, `when_told`.
    Node `rank` of `size` delivers every `size`-th group of `group` frames. The one of rank 0 keeps
    the books, and chooses the group, which is 0 in its own order.
    """

    run: str
    name: str
    output: str
    graph: GraphText
    detector: DetectorOrder
    requested: dict[str, Any]
    memory: dict[str, Any]
    metadata: dict[str, Any]
    policies: dict[str, Any]
    processing: str
    nodes: int
    rank: int = 0
    size: int = 1
    group: int = 0

    @property
    def plain_requests(self) -> dict[str, Any]:
        """All that was asked for, as plain values, for files."""
        return {
            "acquisition": self.requested,
            "detector": {"name": self.detector.name, **self.detector.overrides},
            "graph": {
                "file": self.graph.where,
                "folder": self.graph.base,
                "text": self.graph.text,
            },
            "policies": self.policies,
        }


class AcquisitionReady(msgspec.Struct, frozen=True):
    """What the processing nodes need to know of an acquisition node."""

    rank: int
    host: str
    hostname: str
    addresses: list[str]
    spec: dict[str, Any]
    group: int
    ring: RingShape
    handle: Handle | None
    paths: dict[str, str]
    parameters: Parameters
    policies: dict[str, Any]
    detector: dict[str, Any]
    metadata: dict[str, Any]
    rois: dict[str, tuple[int, int, int, int]]
    plan: str
    taps: list[str]
    started: float
    warnings: list[str]


class ProcessingOrder(msgspec.Struct, frozen=True):
    """What a processing node needs to know of a run."""

    run: str
    name: str
    graph: GraphText
    memory: dict[str, Any]
    rank: int
    nodes: int
    senders: list[AcquisitionReady]


class ProcessingReady(msgspec.Struct, frozen=True):
    """What acquisition nodes need to know of a processing node; it maps the rings of `shared`."""

    rank: int
    name: str
    host: str
    incarnation: str
    addresses: list[str]
    credits: int
    shared: list[int]
    board: Handle
    files: dict[str, list[str]]


class ConnectOrder(msgspec.Struct, frozen=True):
    """Whom an acquisition node feeds, and what it cannot know.

    `books` is where the first one takes the accounts of the others; `paths`, what the files of each
    sink begin with.
    """

    receivers: list[ProcessingReady]
    books: list[str]
    books_host: str
    paths: dict[str, str]


def context_of(
    lead: AcquisitionReady, order: ProcessingOrder | AcquisitionOrder, node: str
) -> RunContext:
    """What the tasks of one node are told about the run.

    Args:
        lead: what the acquisition node of rank 0 answered.
        order: what the node was told.
        node: its name.
    """
    here = isinstance(order, AcquisitionOrder)
    return RunContext(
        run=order.run,
        name=order.name,
        node=node,
        rank=0 if here else order.rank,
        nodes=1 if here else order.nodes,
        nb_frames=lead.parameters.hardware["acquisition"]["nb_frames"],
        detector=lead.detector,
        parameters=lead.parameters,
        graph=order.graph.text,
        metadata=lead.metadata,
        host=lead.hostname,
        started=lead.started,
        paths=lead.paths,
        frames_per_block=lead.ring.frames,
        rois=lead.rois,
        policies=Policies.load(lead.policies, "policies"),
    )


def pick_address(addresses: list[str], same_host: bool) -> str:
    """The address to use among those a peer listens at: the local one where it can be reached."""
    wanted = "ipc:" if same_host else "tcp:"
    return next((address for address in addresses if address.startswith(wanted)), addresses[0])


def read_graph(graph: GraphText) -> GraphDefinition:
    """The definition of a graph that came as text."""
    return parse_graph(graph.text, graph.where, graph.base)
