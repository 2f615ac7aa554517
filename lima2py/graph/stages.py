"""Stages: which task runs where, and the part of a plan that the nodes of one stage run.

A stage is a pool of like nodes. Frames go through the stages in their order, and a task runs in the
first one that has what it needs; products that a later stage needs are handed on to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lima2py.errors import BadGraph
from lima2py.frame import FrameSpec
from lima2py.graph.definition import DETECTOR, GraphDefinition, TaskDefinition
from lima2py.graph.plan import Plan, Step
from lima2py.tags import Tag, in_words, lacking
from lima2py.tasks.arrival import Arrival


class Stage(NamedTuple):
    """A pool of like nodes.

    Attributes:
        name: of the stage.
        nodes: by name, what each of them has.
        reserved: whether only tasks run here that need something, and find it here.
    """

    name: str
    nodes: Mapping[str, Mapping[str, Tag]]
    reserved: bool = False

    def lacks(self, needs: Mapping[str, Tag]) -> list[str]:
        """Why a task cannot run here, node by node, in words; nothing if it can."""
        if self.reserved and not needs:
            return ["it is reserved for tasks that need what it has"]
        found = {name: lacking(needs, tags) for name, tags in self.nodes.items()}
        return [f"{name} lacks {', '.join(what)}" for name, what in found.items() if what]


def assign(graph: GraphDefinition, stages: Sequence[Stage]) -> dict[str, int]:
    """The stage of every task, by its place among all stages.

    A task runs in the first stage, not before those of its inputs, that it may use and of which
    every node has what it needs. So one that needs nothing stays where its inputs are.

    Args:
        graph: what is to be done.
        stages: there are, one at least, in the order in which frames go through them.

    Raises:
        BadGraph: with the tasks that can run nowhere, what they need, and what nodes lack.
    """
    found: dict[str, int] = {}
    problems: list[str] = []
    for name, entry in graph.tasks.items():
        first = max(found.get(source, 0) for source in entry.inputs)
        able = (place for place in range(first, len(stages))
                if not stages[place].lacks(entry.task.needs))  # fmt: skip
        place = next(able, None)
        if place is None:
            problems.append(_refusal(graph, entry, stages))
        found[name] = first if place is None else place
    if problems:
        raise BadGraph("\n".join(problems))
    return found


def _refusal(graph: GraphDefinition, entry: TaskDefinition, stages: Sequence[Stage]) -> str:
    """Why a task can run nowhere."""
    needs = entry.task.needs
    whys = []
    for stage in stages:
        why = "; ".join(stage.lacks(needs)) or "it comes before that of the task's inputs"
        whys.append(f"Stage {stage.name}: {why}")
    at = f'{graph.where}, task "{entry.name}"'
    where = ". ".join(whys)
    if not needs:
        return (
            f"{at}, needs nothing, and may run in no stage. {where}. Let a stage be open (reserved:"
            " false) in the system file"
        )
    return (
        f"{at}, needs: {in_words(needs)}, which no stage has on all of its nodes. {where}. Ask for"
        " less, or say in the system file what its nodes have (tags)"
    )


def crossing(plan: Plan, stage_of: Mapping[str, int], stage: int) -> tuple[str, ...]:
    """The products that are made in a stage or before it, and needed after it.

    Args:
        plan: of the whole graph.
        stage_of: see `assign`.
        stage: its place.

    Raises:
        BadGraph: if one of them stands for several frames.
    """
    wanted = {
        source
        for step in plan.steps
        if stage_of.get(step.name, 0) > stage
        for source in step.inputs
        if stage_of.get(source, 0) <= stage
    }
    specs = plan.specs
    names = [name for name in (DETECTOR, *specs) if name in wanted]
    for name in names:
        if name != DETECTOR and (span := specs[name].span) > plan.spec.span:
            users = [step.name for step in plan.steps
                     if name in step.inputs and stage_of.get(step.name, 0) > stage]  # fmt: skip
            raise BadGraph(
                f'{plan.definition.where}, task "{name}": what it makes of {span} frames cannot go'
                f" on to another stage, where {', '.join(users)} would run; let both run in one"
                " stage: give them the same needs"
            )
    return tuple(names)


def part_of(plan: Plan, stage_of: Mapping[str, int], stage: int) -> Plan:
    """What the nodes of one stage do of a plan.

    Products that come from the stage before stand for tasks of their names.

    Args:
        plan: of the whole graph.
        stage_of: see `assign`.
        stage: its place.
    """
    steps: list[Step] = []
    position = {DETECTOR: 0}
    if stage:
        before = _before(plan.steps)
        makers = {step.name: step.task for step in plan.steps}
        for name, spec in specs_of(plan, crossing(plan, stage_of, stage - 1)).items():
            task = Arrival.of(name, spec, before.get(name, frozenset()), makers.get(name))
            position[name] = len(steps) + 1
            steps.append(Step(name, "arrives", task, (0,), (), spec))
    for step in plan.steps:
        if stage_of.get(step.name, 0) == stage:
            sources = tuple(position[name] for name in step.inputs) or (0,)
            position[step.name] = len(steps) + 1
            steps.append(Step(step.name, step.do, step.task, sources, step.inputs, step.spec))
    leaving = crossing(plan, stage_of, stage)
    return Plan.of_steps(plan.definition, plan.spec, steps, plan.group, leaving)


def specs_of(plan: Plan, names: Iterable[str]) -> dict[str, FrameSpec]:
    """What products look like, by name."""
    return {name: plan.spec if name == DETECTOR else plan.specs[name] for name in names}


def _before(steps: Sequence[Step]) -> dict[str, frozenset[str]]:
    """For every task, itself and all those that its input comes from."""
    before: dict[str, frozenset[str]] = {}
    for step in steps:
        before[step.name] = frozenset({step.name}).union(
            *(before.get(name, frozenset()) for name in step.inputs)
        )
    return before
