"""Frames that a task failed on and passed on as they came: noted in whatever is saved of them.

Files have a value for each frame, `unprocessed_` and the name of the task: 1 where the frame, or
one of those that a product stands for, passed that task as it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from lima2py.frame import Block
from lima2py.graph.plan import Plan, Step
from lima2py.tasks.arrival import Arrival

_BEGINNING = "unprocessed_"
COLUMN = _BEGINNING + "{}"
_KEPT = 100_000
"""Frames noted for a task: many more than any product stands for."""


class Unprocessed:
    """Which frames passed which tasks as they came.

    Args:
        plan: of the tasks.
        policy: what a task does that does not say (`Policies.task_failure`).
    """

    def __init__(self, plan: Plan, policy: str):
        self._frames: dict[str, dict[int, None]] = {}
        self._may_pass = {
            plan.steps[number].name
            for shared in plan.passes
            for number in shared
            if _can_pass(plan, plan.steps[number], plan.steps[shared[0]])
            and (plan.steps[number].task.if_fails or policy) == "pass"
        }
        self._before = _before(plan)

    def may_pass(self, task: str) -> bool:
        """Whether a task hands on the frames that it fails on."""
        return task in self._may_pass

    def add(self, task: str, frames: Iterable[int]) -> None:
        """Note frames of the detector that passed a task."""
        noted = self._frames.setdefault(task, {})
        noted.update(dict.fromkeys(frames))
        while len(noted) > _KEPT:
            del noted[next(iter(noted))]

    def learn(self, block: Block) -> Block:
        """Take over the notes that came with a product from the stage before."""
        columns = dict(block.columns)
        for name in [name for name in columns if name.startswith(_BEGINNING)]:
            places = np.flatnonzero(columns.pop(name)) + block.index
            self.add(name.removeprefix(_BEGINNING), places.tolist())
        return replace(block, columns=columns) if len(columns) < len(block.columns) else block

    def noted(self, block: Block, name: str) -> Block:
        """What a task makes, or a sink is given, with the notes on its frames."""
        columns = {}
        span = block.spec.span
        before = self._before.get(name, {name})
        for task in self._frames.keys() & before if self._frames else ():
            places = np.array([*self._frames[task]]) // span - block.index
            places = places[(places >= 0) & (places < block.count)]
            if len(places):
                values = columns[COLUMN.format(task)] = np.zeros(block.count, np.uint8)
                values[places] = 1
        return replace(block, columns={**block.columns, **columns}) if columns else block


def _can_pass(plan: Plan, step: Step, first: Step) -> bool:
    """Whether what comes in could be taken for what should come out, and is at hand.

    Between two tasks of a pass over memory nothing is stored.
    """
    source = step.sources[0]
    given = plan.steps[source - 1].spec if source else plan.spec
    return step.spec == given and source == first.sources[0]


def _before(plan: Plan) -> dict[str, set[str]]:
    """For every task, itself and all those that its input comes from, in earlier stages too."""
    before: dict[str, set[str]] = {}
    for step in plan.steps:
        names = [plan.steps[source - 1].name for source in step.sources if source]
        earlier = step.task.before if isinstance(step.task, Arrival) else ()
        before[step.name] = {step.name, *earlier}.union(*(before[name] for name in names))
    return before
