"""What a run would be: all that can be settled, or refused, before any node is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lima2py.acquisition import Acquisition
from lima2py.detector import Detector
from lima2py.detector_file import open_detector
from lima2py.errors import BadGraph, BadParameter
from lima2py.graph.definition import GraphDefinition
from lima2py.graph.plan import Plan
from lima2py.memory import MemorySettings, RingShape
from lima2py.node.acquisition_run import plan_run
from lima2py.session.session import check_name
from lima2py.session.system import System
from lima2py.storage.reserve import settle
from lima2py.units import as_size

DEFAULT_FRAMES = 100


@dataclass(frozen=True)
class Preview:
    """What a run would be.

    Attributes:
        plan: of the graph, for the frames of the detector.
        ring: of the first acquisition node.
        paths: by sink, the path its files begin with.
    """

    plan: Plan
    ring: RingShape
    paths: Mapping[str, Path]

    @classmethod
    def make(
        cls,
        system: System,
        graph: GraphDefinition,
        asked: Mapping[str, Any],
        output: Path,
        name: str,
    ) -> Self:
        """Look ahead, as far as one can from here: no file is made, the detector not prepared.

        Args:
            system: what is to run it.
            graph: what is to be done.
            asked: the fields of the acquisition.
            output: the folder for the files.
            name: of the run.

        Raises:
            BadParameter, StorageError: what cannot be.
        """
        check_name(name)
        acquisition = Acquisition.load(asked, "acquisition")
        lead = system.acquisition[0] if system.acquisition else None
        memory = MemorySettings.load(system.memory_of(lead), "memory")
        with opened_detector(system) as detector:
            shares = max(1, len(system.processing)) * max(1, len(system.acquisition))
            plan, ring = plan_run(detector, acquisition, graph, memory.ring, shares)
        try:
            paths = settle(plan.sinks, output, name, run="{run}")
        except BadParameter as error:
            raise BadGraph(f"{graph.where}, {error}") from None
        return cls(plan, ring, paths)

    def __str__(self) -> str:
        definition, ring = self.plan.definition, self.ring
        lines = [
            f"{definition.name}: {definition.about}",
            self.plan.table(),
            f"ring: {ring.slots} blocks of {ring.frames} frame{'s' * (ring.frames > 1)},"
            f" {as_size(ring.nbytes)} on each acquisition node",
        ]
        if self.plan.group > 1:
            lines.append(f"group: every {self.plan.group} frames in a row go to one node")
        lines += [f"{sink} writes {path}_master.h5" for sink, path in self.paths.items()]
        if not self.paths:
            lines.append("the graph has no sink: nothing will be written")
        if self.plan.taps:
            lines.append(f"taps: {', '.join(self.plan.taps)}")
        return "\n".join(lines)


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
    detector = open_detector(system.detector, system.set, system.base)
    try:
        yield detector
    finally:
        detector.close()
