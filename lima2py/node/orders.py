"""What nodes are told and what they answer when a run is prepared.

session ── AcquisitionOrder ──► acquisition node ── AcquisitionReady ──► session
session ── ProcessingOrder ───► processing node  ── ProcessingReady ───► session
session ── ConnectOrder ──────► acquisition node
session ── [ProcessingReady] ─► processing node: those of the next stage
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lima2py.acquisition import Parameters
from lima2py.detector import Share
from lima2py.frame import FrameSpec
from lima2py.graph.definition import GraphDefinition, parse_graph
from lima2py.graph.plan import Plan
from lima2py.memory import Handle
from lima2py.policies import Policies
from lima2py.ring import RingShape
from lima2py.task import OtherDetector, RunContext
from lima2py.transport.bundle import Bundle
from lima2py.transport.line import Receiver
from lima2py.transport.pull import Sender
from lima2py.trigger_map import Companion, TriggerMap


class GraphText(msgspec.Struct, frozen=True):
    """A graph as text, enough to build it again in another process."""

    text: str
    where: str
    base: str
    detectors: tuple[str, ...] = ()


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
    the books, and chooses the group, which is 0 in its own order. With `modules`, by rank, each
    delivers these modules of all frames, and the one of rank 0 leads: it says who is given what.
    `ring` is how many bytes frames may take for now; 0 if the settings say. With `other`, the name
    of another detector than the main one, it delivers that one's frames as `events`, a trigger map,
    says, and follows as well; the others are told of it by `companions`.
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
    modules: list[list[str]] = []
    ring: int = 0
    other: str = ""
    events: tuple[int | None, ...] = (0,)
    companions: list[AcquisitionReady] = []

    @property
    def share(self) -> Share:
        """What it delivers, but for the group."""
        if self.other:
            return Share()
        if self.modules:
            return Share(self.rank, modules=tuple(self.modules[self.rank]))
        return Share() if self.companions else Share(self.rank, self.size)

    @property
    def leads(self) -> bool:
        """Whether others deliver more of the frames that it delivers."""
        return self.rank == 0 and bool(self.modules or self.companions)

    @property
    def follows(self) -> bool:
        """Whether another acquisition node says who is given what."""
        return self.rank > 0 and bool(self.modules or self.other)

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
                "detectors": self.graph.detectors,
            },
            "policies": self.policies,
        }


class AcquisitionReady(msgspec.Struct, frozen=True):
    """What the other nodes need to know of an acquisition node.

    `spec` is of whole frames; what it delivers is these, or some `modules` of them. They are those
    of an `other` detector, perhaps, and belong to the main one's as `events` says.
    """

    rank: int
    name: str
    host: str
    hostname: str
    addresses: list[str]
    spec: dict[str, Any]
    modules: list[str]
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
    output: str
    warnings: list[str]
    other: str = ""
    events: tuple[int | None, ...] = (0,)
    where: dict[str, list[str]] = {}
    """By task, the nodes that run it, if there are several stages; the session says it."""

    @property
    def companion(self) -> Companion:
        """What is to be known of its frames, if it has another detector."""
        return Companion(FrameSpec.from_plain(self.spec), TriggerMap(self.events))


class Feeder(msgspec.Struct, frozen=True):
    """A processing node, as those of the next stage must know it."""

    rank: int
    host: str
    addresses: list[str]
    ring: RingShape
    handle: Handle | None

    def sender(self, bundle: Bundle, host: str) -> Sender:
        """What it gives to a node on a host."""
        address = pick_address(self.addresses, self.host == host)
        return Sender(self.rank, address, self.ring, bundle.spec, self.handle)


class ProcessingOrder(msgspec.Struct, frozen=True):
    """What a processing node needs to know of a run.

    It is one of the `nodes` of a `stage`, and runs the tasks of which `stages` says so (all, if it
    says nothing). Its blocks come from the acquisition nodes, or if there are any from the
    `feeders`, which are the nodes of the stage before; `behind` it are so many nodes, and what it
    hands on to them has `ring` bytes (0: as its settings say).
    """

    run: str
    name: str
    graph: GraphText
    memory: dict[str, Any]
    rank: int
    nodes: int
    senders: list[AcquisitionReady]
    stage: int = 0
    stages: dict[str, int] = {}
    feeders: list[Feeder] = []
    behind: int = 0
    ring: int = 0


class ProcessingReady(msgspec.Struct, frozen=True):
    """What others need to know of a processing node; it maps the rings of `shared`.

    With a `feeder`, it hands products on to another stage.
    """

    rank: int
    name: str
    host: str
    incarnation: str
    addresses: list[str]
    credits: int
    shared: list[int]
    board: Handle
    files: dict[str, list[str]]
    feeder: Feeder | None = None

    def receiver(self, source: int, host: str) -> Receiver:
        """Where it takes blocks of the sender of a rank, on a host."""
        address = pick_address(self.addresses, self.host == host)
        return Receiver(
            self.rank, self.name, self.incarnation, address, self.credits, source in self.shared,
            self.board,
        )  # fmt: skip


class Peer(msgspec.Struct, frozen=True):
    """An acquisition node, as the others must know it."""

    rank: int
    name: str
    host: str
    addresses: list[str]

    def receiver(self, host: str) -> Receiver:
        """Where it takes messages of a node on a host."""
        address = pick_address(self.addresses, self.host == host)
        return Receiver(self.rank, self.name, "", address, 0, False)


class ConnectOrder(msgspec.Struct, frozen=True):
    """Whom an acquisition node feeds, and what it cannot know.

    The first of the `sources`, which are all acquisition nodes, takes the accounts of the others;
    `paths` is what the files of each sink begin with. `others` are the processing nodes of later
    stages.
    """

    receivers: list[ProcessingReady]
    sources: list[Peer]
    paths: dict[str, str]
    others: list[ProcessingReady] = []


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


def seen_from_others(plan: Plan, readies: Sequence[AcquisitionReady]) -> dict[str, OtherDetector]:
    """How the run looks for tasks that see frames of one other detector only; by task.

    Args:
        plan: of the graph.
        readies: what acquisition nodes answered.
    """
    others = {
        ready.other: OtherDetector(ready.detector, ready.parameters.hardware)
        for ready in readies
        if ready.other
    }
    return {task: others[name] for task, name in plan.only_of.items()}


def pick_address(addresses: list[str], same_host: bool) -> str:
    """The address to use among those a peer listens at: the local one where it can be reached."""
    wanted = "ipc:" if same_host else "tcp:"
    return next((address for address in addresses if address.startswith(wanted)), addresses[0])


def read_graph(graph: GraphText) -> GraphDefinition:
    """The definition of a graph that came as text."""
    return parse_graph(graph.text, graph.where, graph.base, detectors=graph.detectors)
