"""A system that is to be planned, as a person describes it.

setup: eiger-4m
detector: {frame: 9 MB, rate: 500, frames: 20000}
acquisition: {nodes: 1, hosts: 1, cores: 32, ring: 8 GiB}
processing: {nodes: 24, hosts: 1, cores: 32}
network: {host: 12.5 GB}
disk: {node: 1 GB, all: 5 GB}
policies: {overload: drop}
faults: [{at: 10 s, what: kill, node: 0}]
costs: eiger.costs.yaml                  # from lima2py measure
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from lima2py.documents import read_yaml
from lima2py.frame import FrameSpec
from lima2py.model.costs import Costs, Rate
from lima2py.policies import Policies
from lima2py.ring import RingShape
from lima2py.units import Bytes, Model, Seconds

Several = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[Seconds, Field(gt=0)]
Time = Annotated[Seconds, Field(ge=0)]


class Bursts(Model):
    """Frames that come in bursts."""

    frames: Annotated[int, Field(ge=1)]
    """Of one burst, at the detector's rate."""
    pause: Time
    """After each, in seconds."""


class DetectorLoad(Model):
    """What a detector delivers."""

    frame: Annotated[Bytes, Field(ge=1)]
    """Bytes of a frame in the ring."""
    rate: Annotated[float, Field(gt=0)]
    """Frames a second."""
    frames: Annotated[int, Field(ge=1)] = 10_000
    """How many frames the run has."""
    bursts: Bursts | None = None
    """When frames do not come all the time."""
    buffer: Annotated[int, Field(ge=1)] | None = None
    """Frames that the detector keeps until they are read; older ones are lost (`overrun`). It keeps
    all when not given."""


class AcquisitionHosts(Model):
    """The acquisition nodes and their hosts."""

    nodes: Several = 1
    """That share the frames of the detector."""
    hosts: Several = 1
    """On which they are, evenly."""
    cores: Annotated[float, Field(gt=0)] = 16
    """Of each host; a part of one is what others leave of it."""
    ring: Annotated[Bytes, Field(ge=2**16)] = 256 * 2**20
    """Of each node, in bytes."""


class ProcessingHosts(Model):
    """The processing nodes and their hosts."""

    nodes: Several = 1
    """That run the graph."""
    hosts: Annotated[int, Field(ge=0, le=10_000)] = 0
    """On which they are, evenly; 0: on those of the acquisition nodes, whose memory they share."""
    cores: Annotated[float, Field(gt=0)] = 16
    """Of each of these hosts."""
    variation: Annotated[float, Field(ge=0, le=3)] = 0.0
    """By how much the time over blocks varies: standard deviation over mean, drawn from a gamma
    distribution."""


class Network(Model):
    """What connects the hosts."""

    host: Rate | None = None
    """Bytes a second in and out of each host, each way; no limit when not given."""
    switch: Rate | None = None
    """Bytes a second between all hosts together; no limit when not given."""
    latency: Time = 50e-6
    """From host to host, in seconds."""


class Disk(Model):
    """Where files go."""

    node: Rate | None = None
    """Bytes a second that one processing node can write; no limit when not given."""
    all: Rate | None = None
    """Bytes a second that all can write together; no limit when not given."""


class Fault(Model):
    """Something that happens to a processing node."""

    at: Time
    """Seconds after the start of the run."""
    what: Literal["kill", "freeze", "slow"]
    """`kill`: it dies; `freeze`: it stands still, as when its host is cut off; `slow`: everything
    takes it longer."""
    node: Annotated[int, Field(ge=0)]
    """Which, counted from 0."""
    factor: Annotated[float, Field(ge=1)] = 2.0
    """How much longer everything takes a slow one."""
    lasts: Positive | None = None
    """After which a slow one is as before, in seconds; never when not given."""


class Setup(Model):
    """A detector, nodes, hosts, what connects them, and what happens."""

    setup: str
    """What it is called."""
    detector: DetectorLoad
    """What it delivers."""
    acquisition: AcquisitionHosts = Field(default_factory=AcquisitionHosts)
    """The acquisition nodes."""
    processing: ProcessingHosts = Field(default_factory=ProcessingHosts)
    """The processing nodes."""
    network: Network = Field(default_factory=Network)
    """Between hosts; on one host frames stay where they are."""
    disk: Disk = Field(default_factory=Disk)
    """For the files of the processing nodes."""
    policies: Policies = Field(default_factory=Policies)
    """As in a system file."""
    faults: tuple[Fault, ...] = ()
    """What goes wrong, and when."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the random numbers; the same one gives the same result."""
    costs: Costs = Field(default_factory=Costs)
    """A file that `lima2py measure` wrote, or its fields."""

    @field_validator("faults", mode="after")
    @classmethod
    def _check_faults(cls, faults: tuple[Fault, ...], info: ValidationInfo) -> tuple[Fault, ...]:
        processing: ProcessingHosts | None = info.data.get("processing")
        for fault in faults:
            if processing is not None and fault.node >= processing.nodes:
                raise ValueError(
                    f"node {fault.node}: there are {processing.nodes} processing nodes, from 0 to"
                    f" {processing.nodes - 1}"
                )
        return faults

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a description.

        Raises:
            BadParameter: naming every field that is wrong, what was given and what is allowed.
        """
        values = read_yaml(path, "setup")
        if isinstance(costs := values.get("costs"), str):
            values["costs"] = read_yaml(path.parent / costs, "file of costs")
        return cls.load(values, str(path))

    @property
    def shape(self) -> RingShape:
        """How each ring is cut; the same as it would be in a run.

        Raises:
            LimaError: if not even three frames fit.
        """
        detector = self.detector
        return RingShape.plan(
            FrameSpec.dense(1, detector.frame, "uint8"),
            self.acquisition.ring,
            nb_frames=detector.frames,
            period=1 / detector.rate,
            nodes=self.acquisition.nodes * self.processing.nodes,
        )
