"""What a run would be: all that can be settled, or refused, before any node is started."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lima2py.acquisition import Acquisition
from lima2py.detector import Detector
from lima2py.detector_file import open_detector
from lima2py.errors import BadGraph, BadParameter
from lima2py.graph.definition import GraphDefinition
from lima2py.graph.measure import Speed, measure
from lima2py.graph.plan import Plan, plan_run
from lima2py.memory_settings import MemorySettings
from lima2py.metadata import Metadata
from lima2py.ring import RingShape
from lima2py.session.session import check_name
from lima2py.session.staging import Staging
from lima2py.session.system import System
from lima2py.storage.saving.reserve import settle
from lima2py.storage.saving.space import Need, needs, shortages
from lima2py.trigger_map import Companion
from lima2py.units import as_size, as_time

DEFAULT_FRAMES = 100


@dataclass(frozen=True)
class Preview:
    """What a run would be.

    Attributes:
        plan: of the graph, for the frames of the detector.
        ring: of the first acquisition node.
        needs: of every sink, what it will write.
        shortages: warnings of disks that have too little room, seen from this host.
        nb_frames: that are asked for; 0 if nobody knows.
        asked: frames a second the detector will deliver at most; 0 if nobody knows.
        nodes: how many share the work.
        stages: what runs in which stage of nodes, as a table; empty if there is only one.
        speed: of the graph on this machine, if it was measured.
    """

    plan: Plan
    ring: RingShape
    needs: list[Need]
    shortages: list[str]
    nb_frames: int
    asked: float
    nodes: int
    stages: str
    speed: Speed | None = None

    @classmethod
    def make(
        cls,
        system: System,
        graph: GraphDefinition,
        asked: Mapping[str, Any],
        output: Path,
        name: str,
        metadata: Mapping[str, Any],
        *,
        measured: bool = False,
    ) -> Self:
        """Look ahead, as far as one can from here: no file is made, the detector not prepared.

        Args:
            system: what is to run it.
            graph: what is to be done.
            asked: the fields of the acquisition.
            output: the folder for the files.
            name: of the run.
            metadata: that are given for it.
            measured: whether to measure how fast the graph runs on this machine.

        Raises:
            BadParameter, StorageError: what cannot be.
        """
        check_name(name)
        acquisition = Acquisition.load(asked, "acquisition")
        told = Metadata.of_run(system.metadata, metadata)
        lead = system.acquisition[0] if system.acquisition else None
        memory = MemorySettings.load(system.memory_of(lead), "memory")
        staging = Staging.of(graph, system)
        with opened_detector(system) as detector:
            shares = max(1, len(staging.nodes[0])) * max(1, len(system.main))
            companions = companions_of(system, graph, acquisition)
            plan, ring = plan_run(
                detector, acquisition, graph, memory.ring_bytes, shares, companions=companions
            )
            period = detector.shortest_period(acquisition)
            told.geometry.check(detector.info.pixel_size)
        output = Path(os.path.abspath(os.path.expanduser(output)))
        try:
            paths = settle(plan.sinks, output, name, run="{run}")
        except BadParameter as error:
            raise BadGraph(f"{graph.where}, {error}") from None
        speed = None
        if measured:
            speed = measure(
                graph, plan.spec, ring.frames, output, acquisition, companions=companions
            )
        nodes = max(1, len(system.processing))
        rate = 1 / period if period else 0.0
        wanted = needs(plan.sinks, plan.specs, paths, acquisition.nb_frames, plan.shares)
        here = lead is None or lead.address is None
        short = shortages(wanted) if here else []
        return cls(
            plan, ring, wanted, short, acquisition.nb_frames, rate, nodes, staging.table, speed
        )

    @property
    def warnings(self) -> list[str]:
        """Which frames at the end belong to no product, of the tasks that make one of several."""
        found, specs = [], (self.plan.spec, *(step.spec for step in self.plan.steps))
        for step in self.plan.steps:
            span, left = step.spec.span, self.nb_frames % step.spec.span
            if left and span > specs[step.sources[0]].span:
                lost = "there will be none" if left == self.nb_frames else f"{left} are left over"
                found.append(
                    f"warning: each product of {step.name} takes {span} frames, and"
                    f" {self.nb_frames} are asked for: {lost}"
                )
        return found

    def __str__(self) -> str:
        definition, ring = self.plan.definition, self.ring
        lines = [
            ": ".join(filter(None, (definition.name, definition.about))),
            self.plan.table(),
            f"ring: {ring.slots} blocks of {ring.frames} frame{'s' * (ring.frames > 1)},"
            f" {as_size(ring.nbytes)} on each acquisition node",
        ]
        if self.plan.group > 1:
            lines.append(f"group: every {self.plan.group} frames in a row go to one node")
        lines += self.stages.splitlines()
        lines += map(str, self.needs)
        if not self.needs:
            lines.append("the graph has no sink: nothing will be written")
        if self.plan.taps:
            lines.append(f"taps: {', '.join(self.plan.taps)}")
        lines += [*self.warnings, *self.shortages]
        if self.speed is not None:
            lines += self._costs(self.speed)
        return "\n".join(lines)

    def _costs(self, speed: Speed) -> Iterator[str]:
        """What was measured, and whether it is enough."""
        cores = len(os.sched_getaffinity(0))
        rate = speed.frames_per_second
        yield (
            f"speed: about {_rate(rate)} on a node with a core of its own, measured here in blocks"
            f" of {self.ring.frames} frame{'s' * (self.ring.frames > 1)}"
        )
        width = max(map(len, speed.seconds))
        for name, seconds in sorted(speed.seconds.items(), key=lambda item: -item[1]):
            yield f"  {name.ljust(width)}  {as_time(seconds)} a frame"
        yield from (f"warning: on frames made up for this, {error}" for error in speed.errors)
        held = rate * min(self.nodes, cores)
        if self.asked > held:
            yield (
                f"warning: {_rate(self.asked)} are asked for, and {self.nodes}"
                f" node{'s' * (self.nodes > 1)} on {cores} core{'s' * (cores > 1)} can hold about"
                f" {_rate(held)}: the ring will fill, and then the detector wait or lose frames;"
                f" use {math.ceil(self.asked / rate)} processing nodes with a core each, do less,"
                " or take frames more slowly"
            )


def _rate(frames: float) -> str:
    return f"{frames:,.0f} frames/s" if frames >= 10 else f"{frames:.2g} frames/s"


def default_frames(system: System) -> int:
    """How many frames to take when nobody says: all there are, if the detector has an end."""
    with opened_detector(system) as detector:
        return 0 if detector.capabilities.ends else DEFAULT_FRAMES


@contextmanager
def opened_detector(system: System) -> Iterator[Detector]:
    """The detector of a system, in this process.

    Raises:
        BadParameter: if there is no such detector, or a parameter is wrong.
    """
    with closing(open_detector(system.detector, system.set, system.base)) as detector:
        yield detector


def companions_of(system: System, graph: GraphDefinition, run: Acquisition) -> dict[str, Companion]:
    """What is to be known of the frames of other detectors that a graph takes, by name.

    Raises:
        BadParameter: if one of them cannot do what is asked of it.
    """
    found = {}
    for name in graph.companions:
        other = system.detectors[name]
        asked = Acquisition.load(other.asked(name, run), f"detectors, {name}, acquisition")
        with closing(open_detector(other.detector, other.set, system.base)) as detector:
            detector.capabilities.check(asked, detector.info)
            found[name] = Companion(detector.describe(asked), other.trigger_map)
    return found
