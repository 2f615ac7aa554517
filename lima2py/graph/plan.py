"""The plan: a graph made concrete for the frames it will get.

The description of the frames is handed down the graph: every task checks its input and says what
will come out, so shapes, types and places are settled, or refused, before anything starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import FrameSpec
from lima2py.geometry import Affine
from lima2py.graph.definition import GraphDefinition
from lima2py.task import Sink, Task
from lima2py.tasks.reduce import RoiCounters
from lima2py.tasks.tap import Tap
from lima2py.units import as_size


@dataclass(frozen=True, slots=True)
class Step:
    """One task of a plan.

    Attributes:
        name: of the task in the graph.
        do: what it does.
        task: the task itself, prepared.
        source: the position of its input: 0 is the detector, i + 1 the step i.
        source_name: of its input.
        spec: what comes out.
    """

    name: str
    do: str
    task: Task
    source: int
    source_name: str
    spec: FrameSpec


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks in the order they run, each with what comes out of it.

    Attributes:
        definition: the graph it was made from.
        spec: of the frames that come in.
        steps: in an order in which every input is made before it is used.
        group: consecutive frames that must meet in one node.
    """

    definition: GraphDefinition
    spec: FrameSpec
    steps: tuple[Step, ...]
    group: int

    @classmethod
    def make(cls, definition: GraphDefinition, spec: FrameSpec) -> Plan:
        """Build fresh tasks and hand the description of the frames down.

        Raises:
            BadGraph: with the text of every task that cannot work.
        """
        steps: list[Step] = []
        position = {"detector": 0}
        specs: list[FrameSpec] = [spec]
        problems: list[str] = []
        for name, entry in definition.fresh().tasks.items():
            (source_name,) = entry.inputs
            if source_name not in position:
                continue  # what it needs has been refused already
            source = position[source_name]
            try:
                out = entry.task.prepare(specs[source])
            except BadParameter as error:
                problems.append(f'{definition.where}, task "{name}", {error}')
                continue
            position[name] = len(specs)
            specs.append(out)
            steps.append(Step(name, entry.do, entry.task, source, source_name, out))
        if problems:
            raise BadGraph("\n".join(problems))
        group = math.lcm(1, *(step.task.group for step in steps))
        return cls(definition, spec, tuple(steps), group)

    @property
    def sinks(self) -> dict[str, Sink]:
        """The tasks that keep frames, by name, in the order of their tracks."""
        return {step.name: step.task for step in self.steps if isinstance(step.task, Sink)}

    @property
    def taps(self) -> dict[str, Tap]:
        """The tasks one can look through, by name."""
        return {step.name: step.task for step in self.steps if isinstance(step.task, Tap)}

    @property
    def specs(self) -> dict[str, FrameSpec]:
        """What comes out of every task, by name."""
        return {step.name: step.spec for step in self.steps}

    @property
    def rois(self) -> dict[str, tuple[int, int, int, int]]:
        """The rectangles the graph looks at, in detector pixels, by `task.roi`."""
        return {
            f"{step.name}.{roi}": box
            for step in self.steps
            if isinstance(step.task, RoiCounters)
            for roi, box in step.task.rois.items()
        }

    def plain(self) -> dict[str, Any]:
        """The pipeline's parameter set: every task with its parameters and its product."""
        return {
            "graph": self.definition.name,
            "group": self.group,
            "input": self.spec.plain(),
            "tasks": {
                step.name: {
                    "do": step.do,
                    "from": step.source_name,
                    "parameters": step.task.plain(),
                    "product": step.spec.plain(),
                }
                for step in self.steps
            },
        }

    def table(self) -> str:
        """The plan for a person: what every task gives, and where its pixels lie if elsewhere."""
        rows = [("detector", "", "", self.spec)]
        rows += [(step.name, step.do, f"from {step.source_name}", step.spec) for step in self.steps]
        cells = [
            (name, do, source, _product(spec), as_size(spec.nbytes), _place(spec))
            for name, do, source, spec in rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )


def _product(spec: FrameSpec) -> str:
    return f"{spec}: {', '.join(spec.labels)}" if 0 < len(spec.labels) <= 4 else str(spec)


def _place(spec: FrameSpec) -> str:
    own = spec.to_detector is None or spec.to_detector == Affine()
    return "" if own else f"to_detector {spec.to_detector}"
