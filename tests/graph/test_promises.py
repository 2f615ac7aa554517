"""A task that does not do what it promised harms its own frames, and nobody else."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import PrivateAttr

from lima2py.frame import Array, Block, Fate, FrameSpec
from lima2py.graph.definition import GraphDefinition, TaskDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext, Task
from lima2py.tasks.statistics import Statistics
from lima2py.tasks.tap import Tap

SPEC = FrameSpec.dense(4, 6, "uint16")
CONTEXT = RunContext("f" * 32, "scan")


class Does(Task):
    """Does what the test says."""

    span: int = 1
    _does: Callable[[Block], Any] = PrivateAttr()

    @classmethod
    def what(cls, does: Callable[[Block], Any], **fields: Any) -> Does:
        made = cls(**fields)
        made._does = does
        return made

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec.replace(span=self.span)

    def process(self, block: Block) -> Any:
        return self._does(block)


class Raises(Statistics):
    """Fails when a pass is over."""

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        raise ValueError("cannot conclude")


class RaisesOn3(Statistics):
    """Fails on frame 3."""

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        if block.index <= 3 < block.end:
            raise ValueError("three")
        return super().conclude(block, buffers)


class Exits(Statistics):
    """As a program does that finds its options wrong."""

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        sys.exit("bye")


def plan_of(task: Task) -> Plan:
    entries = {
        "test": TaskDefinition("test", "test", ("detector",), task),
        "live": TaskDefinition("live", "tap", ("test",), Tap()),
    }
    base = parse_graph("tasks: {t: {do: tap, from: detector}}").base
    return Plan.make(Fixed("g", "", entries, "", "g.yaml", base), SPEC)


class Fixed(GraphDefinition):
    """A definition whose tasks are taken as they are."""

    def fresh(self) -> GraphDefinition:
        return self


def block(index: int, count: int) -> Block:
    return Block(SPEC, index, count, np.full((count, *SPEC.shape), index, np.uint16))


def failing_on_3(given: Block) -> Block:
    if given.index <= 3 < given.end:
        raise ValueError("three")
    return replace(given, columns={"more": np.zeros(given.count)})


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda given: None, "gave NoneType, should be a Block"),
        (lambda given: given.pixels, "gave ndarray, should be a Block"),
        (lambda given: given.part(1, given.count), "gave frames 9 to 11 instead of 8 to 11"),
        (lambda given: replace(given, index=0), "gave frames 0 to 3 instead of 8 to 11"),
        (lambda given: replace(given, data=None), "gave no data, and not for every frame a reason"),
        (lambda given: given.carry(SPEC, given.pixels[:, :, 1:]), r"gave uint16 \(1, 3, 6\)"),
    ],
)
def test_what_is_no_product_of_the_frames_given_is_told_as_such(
    does: Callable[[Block], Any], said: str
) -> None:
    flow = Flow(plan_of(Does.what(does)), CONTEXT, 4)
    flow.process(block(8, 4))
    flow.finish()
    (error,) = flow.errors
    assert error.startswith('task "test" failed: ')
    assert "on 4 frames, the first of them 8" in error
    assert re.search(said, error)


def test_products_of_several_frames_are_checked_too() -> None:
    first = Does.what(lambda given: given.carry(given.spec, given.pixels), span=2)
    flow = Flow(plan_of(first), CONTEXT, 4)
    flow.process(block(0, 4))
    (done,) = flow.finish()
    assert flow.errors == [
        'task "test" failed: gave frames 0 to 3 instead of 0 to 1, on 4 frames, the first of them 0'
    ]
    assert [part[2] for _, part in done.absences] == [Fate.TASK_FAILED]


def test_frames_that_fail_need_not_have_the_columns_of_the_others() -> None:
    flow = Flow(plan_of(Does.what(failing_on_3)), CONTEXT, 4)
    flow.process(block(2, 4))
    (done,) = flow.finish()
    assert done.absences == [(0, (1, 1, Fate.TASK_FAILED, "test", "ValueError: three"))]


def test_a_task_that_fails_in_a_pass_costs_the_frame_at_fault_only() -> None:
    flow = Flow(plan_of(RaisesOn3()), CONTEXT, 4)
    flow.process(block(2, 4))
    made = flow.product("test")
    assert made is not None
    assert made.absences.keys() == {1}
    assert made.pixels["max"][[0, 2, 3]].tolist() == [[2]] * 3
    (done,) = flow.finish()
    assert done.absences == [(0, (1, 1, Fate.TASK_FAILED, "test", "ValueError: three"))]
    assert flow.errors == ['task "test" failed: ValueError: three, on frame 3']


@pytest.mark.parametrize("where", ["alone", "in a pass"])
def test_no_task_ends_a_node(where: str) -> None:
    task = Does.what(lambda given: sys.exit("bye")) if where == "alone" else Exits()
    flow = Flow(plan_of(task), CONTEXT, 4)
    flow.process(block(0, 4))
    flow.finish()
    assert flow.errors == ['task "test" failed: SystemExit: bye, on 4 frames, the first of them 0']


def test_the_end_is_asked_for_once_by_each_task() -> None:
    asked: list[str] = []
    task = Does.what(lambda given: None, if_fails="stop")
    flow = Flow(plan_of(task), replace(CONTEXT, stop=asked.append), 4)
    for index in range(0, 12, 4):
        flow.process(block(index, 4))
    flow.finish()
    assert len(asked) == 1
    assert "on 4 frames, the first of them 0" in asked[0]


def test_frames_that_failed_in_a_pass_are_let_go_of() -> None:
    """They lie in the ring, or in what the network brought."""
    flow = Flow(plan_of(Raises()), CONTEXT, 4)
    given = block(0, 4)
    data = weakref.ref(given.pixels)
    gc.disable()
    try:
        flow.process(given)
        flow.collect(idle=True)
        del given
        flow.process(block(4, 4))
        assert data() is None
    finally:
        gc.enable()
        flow.finish()
    assert "cannot conclude" in flow.errors[0]
