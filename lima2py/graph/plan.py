"""The plan: a graph made concrete for the frames it will get.

The description of the frames is handed down the graph: every task checks its input and says what
will come out, so shapes, types and places are settled, or refused, before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from lima2py.acquisition import Acquisition
from lima2py.detector import Detector
from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import FrameSpec
from lima2py.geometry import Affine
from lima2py.graph.definition import DETECTOR, GraphDefinition
from lima2py.onepass import Pixelwise, Stripwise
from lima2py.ring import BLOCK_BYTES, RingShape
from lima2py.tags import in_words
from lima2py.task import Sink, Task
from lima2py.tasks.companion import TakeCompanion
from lima2py.tasks.rois import RoiCounters
from lima2py.tasks.tap import Tap
from lima2py.trigger_map import Companion
from lima2py.units import as_size


@dataclass(frozen=True, slots=True)
class Step:
    """One task of a plan.

    Attributes:
        name: of the task in the graph.
        do: what it does.
        task: the task itself, prepared.
        sources: the positions of its inputs: 0 is the detector, i + 1 the step i.
        inputs: their names.
        spec: what comes out.
        wanted: whether another pass needs what comes out, so that it must be stored.
    """

    name: str
    do: str
    task: Task
    sources: tuple[int, ...]
    inputs: tuple[str, ...]
    spec: FrameSpec
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks in the order they run, each with what comes out of it.

    Attributes:
        definition: the graph it was made from.
        spec: of the frames that come in.
        steps: in an order in which every input is made before it is used.
        passes: the steps by number, those together that take one pass over memory.
        group: consecutive frames that must meet in one node.
    """

    definition: GraphDefinition
    spec: FrameSpec
    steps: tuple[Step, ...]
    passes: tuple[tuple[int, ...], ...]
    group: int

    @classmethod
    def make(
        cls,
        definition: GraphDefinition,
        spec: FrameSpec,
        companions: Mapping[str, Companion] = MappingProxyType({}),
        *,
        keep_all: bool = False,
    ) -> Plan:
        """Build fresh tasks and hand the description of the frames down.

        Args:
            definition: the graph.
            spec: of the frames that will come in.
            companions: the frames of other detectors, by name.
            keep_all: whether everything that comes out of any task is wanted.

        Raises:
            BadGraph: with the text of every task that cannot work.
        """
        steps: list[Step] = []
        position = {DETECTOR: 0}
        specs: list[FrameSpec] = [spec]
        problems: list[str] = []
        for name in definition.companions:
            if name not in companions:
                problems.append(f"{definition.where}: there are no frames of detector {name} here")
                continue
            task = TakeCompanion.of(name, companions[name])
            position[name] = len(specs)
            specs.append(task.prepare(spec))
            steps.append(Step(name, DETECTOR, task, (0,), (), specs[-1]))
        for name, entry in definition.fresh().tasks.items():
            if not all(source in position for source in entry.inputs):
                continue  # what it needs has been refused already
            sources = tuple(position[source] for source in entry.inputs)
            try:
                given = [specs[source] for source in sources]
                _check_spans(entry.inputs, given)
                _check_encoded(entry.task, entry.inputs, given)
                entry.task.know_inputs(entry.inputs)
                out = entry.task.prepare(*given)
                _check_passing(entry.task, given[0], out)
            except BadParameter as error:
                problems.append(f'{definition.where}, task "{name}", {error}')
                continue
            position[name] = len(specs)
            specs.append(out)
            steps.append(Step(name, entry.do, entry.task, sources, entry.inputs, out))
        if problems:
            raise BadGraph("\n".join(problems))
        group = math.lcm(1, *(step.task.group for step in steps))
        everything = [step.name for step in steps]
        return cls.of_steps(definition, spec, steps, group, everything if keep_all else ())

    @classmethod
    def of_steps(
        cls,
        definition: GraphDefinition,
        spec: FrameSpec,
        steps: Sequence[Step],
        group: int,
        keep: Collection[str],
    ) -> Plan:
        """Put steps together that can share a pass over memory.

        Args:
            definition: the graph they are of.
            spec: of the frames that will come in.
            steps: in an order in which every input is made before it is used.
            group: consecutive frames that must meet in one node.
            keep: the steps of which what comes out is wanted, whoever else uses it.
        """
        passes = _passes(steps)
        steps = _without_unwanted(steps, passes, keep)
        return cls(definition, spec, tuple(steps), passes, group)

    @property
    def sinks(self) -> dict[str, Sink]:
        """The tasks that keep frames, by name, in the order of their tracks."""
        return {step.name: step.task for step in self.steps if isinstance(step.task, Sink)}

    @property
    def sink_spans(self) -> dict[str, int]:
        """How many frames of the detector each row of a sink stands for, by sink."""
        return {step.name: step.spec.span for step in self.steps if isinstance(step.task, Sink)}

    @property
    def taps(self) -> dict[str, Tap]:
        """The tasks one can look through, by name."""
        return {step.name: step.task for step in self.steps if isinstance(step.task, Tap)}

    @property
    def specs(self) -> dict[str, FrameSpec]:
        """What comes out of every task, by name."""
        return {step.name: step.spec for step in self.steps}

    @property
    def only_of(self) -> dict[str, str]:
        """The tasks that see frames of one other detector only, and which that is."""
        found: dict[str, str] = {}
        for step in self.steps:
            seen = {found.get(name, DETECTOR) for name in step.inputs}
            if isinstance(step.task, TakeCompanion):
                seen = {step.name}
            if len(seen) == 1 and seen != {DETECTOR}:
                found[step.name] = seen.pop()
        return found

    @property
    def shares(self) -> dict[str, float]:
        """For every task the part of all events for which it may give something."""
        found: dict[str, float] = {}
        for step in self.steps:
            found[step.name] = min((found.get(name, 1.0) for name in step.inputs), default=1.0)
            if isinstance(step.task, TakeCompanion):
                found[step.name] = step.task.share
        return found

    @property
    def rois(self) -> dict[str, tuple[int, int, int, int]]:
        """The rectangles the graph looks at, in detector pixels, by `task.roi`."""
        return {
            f"{step.name}.{roi}": box
            for step in self.steps
            if isinstance(step.task, RoiCounters)
            for roi, box in step.task.rectangles.items()
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
                    "from": list(step.inputs),
                    "parameters": step.task.plain(),
                    "product": step.spec.plain(),
                }
                for step in self.steps
            },
        }

    def table(self) -> str:
        """The plan for a person: what every task gives, and where its pixels lie if elsewhere."""
        cells = [("detector", "", "", str(self.spec), as_size(self.spec.nbytes), _place(self.spec))]
        for step in self.steps:
            memory = as_size(step.spec.nbytes) if step.wanted else "not stored"
            cells.append(
                (
                    step.name,
                    step.do,
                    f"from {', '.join(step.inputs)}" if step.inputs else "",
                    _product(step.spec),
                    "" if step.spec.kind == "sparse" else memory,
                    _place(step.spec),
                )
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        lines += [
            f"one pass over memory: {', '.join(self.steps[number].name for number in shared)}"
            for shared in self.passes
            if len(shared) > 1
        ]
        lines += [
            f"{step.name} needs nodes with {in_words(step.task.needs)}"
            for step in self.steps
            if step.task.needs
        ]
        return "\n".join(lines)


def plan_run(
    detector: Detector,
    asked: Acquisition,
    graph: GraphDefinition,
    ring_bytes: int,
    shares: int,
    modules: Sequence[str] = (),
    companions: Mapping[str, Companion] = MappingProxyType({}),
) -> tuple[Plan, RingShape]:
    """The plan and the ring for what is asked of a detector; touches nothing.

    Args:
        detector: not prepared yet.
        asked: what it shall do.
        graph: what is to be done with its frames.
        ring_bytes: the memory to use for the ring.
        shares: in how many parts the frames are shared out among nodes.
        modules: those of which the frames lie in the ring; without any, whole frames.
        companions: the frames of other detectors, by name.

    Raises:
        BadParameter: what cannot be.
        LimaError: if the ring is too small.
    """
    detector.capabilities.check(asked, detector.info)
    plan = Plan.make(graph, detector.describe(asked), companions)
    shape = RingShape.plan(
        detector.describe_modules(asked, modules) if modules else plan.spec,
        ring_bytes,
        most=BLOCK_BYTES // plan.spec.nbytes,
        group=plan.group,
        nb_frames=asked.nb_frames,
        period=detector.shortest_period(asked),
        nodes=shares,
    )
    return plan, shape


def _product(spec: FrameSpec) -> str:
    text = f"{spec}: {', '.join(spec.labels)}" if 0 < len(spec.labels) <= 4 else str(spec)
    return text if spec.span == 1 else f"{text}, one for {spec.span} frames"


def _place(spec: FrameSpec) -> str:
    own = spec.to_detector is None or spec.to_detector == Affine()
    return "" if own else f"to_detector {spec.to_detector}"


def _check_spans(names: Sequence[str], specs: Sequence[FrameSpec]) -> None:
    """Frames of several inputs must be of the same detector frames."""
    spans = {spec.span for spec in specs}
    if len(spans) > 1:
        said = ", ".join(f"{name}: {spec.span}" for name, spec in zip(names, specs, strict=True))
        raise BadParameter(
            f"from: the inputs must stand for equally many frames of the detector each ({said});"
            " accumulate both alike, or use one of them only"
        )


def _check_encoded(task: Task, names: Sequence[str], specs: Sequence[FrameSpec]) -> None:
    """Most tasks need to see pixels."""
    for name, spec in zip(names, specs, strict=True):
        if spec.decoded is not None and not task.takes_encoded:
            raise BadParameter(
                f"from: the frames of {name} come compressed ({spec.decoded.encoding}), and this"
                " needs pixels; put decode before it (save_raw saves them as they are)"
            )


def _check_passing(task: Task, given: FrameSpec, out: FrameSpec) -> None:
    """Refuse to pass on as they came frames that nobody could take for what should come out."""
    if task.if_fails == "pass" and out != given:
        raise BadParameter(
            f"if_fails: pass hands a frame on as it came, and what comes out here, {out}, is not"
            f" like what comes in, {given}, or lies elsewhere on the detector; use mark, or stop"
        )


def _passes(steps: Sequence[Step]) -> tuple[tuple[int, ...], ...]:
    """Put tasks together that can share a pass: they hang together and begin at one product."""
    passes: list[list[int]] = []
    member_of: dict[int, list[int]] = {}
    begins_at: dict[int, list[int]] = {}
    for number, step in enumerate(steps):
        if not isinstance(step.task, (Pixelwise, Stripwise)):
            passes.append([number])
            continue
        (source,) = step.sources
        shared = member_of.get(source - 1) or begins_at.get(source)
        if shared is None:
            shared = begins_at[source] = []
            passes.append(shared)
        shared.append(number)
        if isinstance(step.task, Pixelwise):
            member_of[number] = shared
    return tuple(tuple(shared) for shared in passes)


def _without_unwanted(
    steps: Sequence[Step], passes: Sequence[Sequence[int]], keep: Collection[str]
) -> list[Step]:
    """Say of which pixels only other tasks of the same pass make use."""
    pass_of = {number: place for place, shared in enumerate(passes) for number in shared}
    wanted = {
        source - 1
        for number, step in enumerate(steps)
        for source in step.sources
        if source and pass_of[source - 1] != pass_of[number]
    }
    wanted |= {number for number, step in enumerate(steps) if step.name in keep}
    return [
        replace(step, wanted=number in wanted or not isinstance(step.task, Pixelwise))
        for number, step in enumerate(steps)
    ]
