"""Every frame that enters a graph comes out with one fate on every track."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PrivateAttr

from lima2py.errors import BadGraph, StorageError
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import GraphDefinition, TaskDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext, Sink, Task
from lima2py.transport.packing import unpack_absences
from lima2py.transport.wire import DoneBlock

SPEC = FrameSpec.dense(4, 6, "uint16")
CONTEXT = RunContext(run="f" * 32, name="scan")


class Keep(Sink):
    """A sink in memory; fails on request, as a disk would."""

    file: str = "x"
    fail_write: tuple[int, ...] = ()
    fail_flush: bool = False

    _kept: list[Block] = PrivateAttr(default_factory=list)
    _flushed: int = 0
    _rows: int = 0

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    @property
    def files(self) -> list[str]:
        return ["memory"]

    def write(self, block: Block, *others: Block) -> int:
        if block.index in self.fail_write:
            raise StorageError("disk: full")
        self._kept.append(block)
        self._rows += block.count
        return self._rows - block.count

    def flush(self) -> None:
        if self.fail_flush:
            raise StorageError("disk: gone")
        self._flushed = len(self._kept)


class Double(Task):
    """Doubles; raises, lies, or refuses on request."""

    raise_at: tuple[int, ...] = ()
    lie_at: tuple[int, ...] = ()
    reject_odd: bool = False

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    def process(self, block: Block) -> Block:
        if block.index in self.raise_at:
            raise ValueError("cannot double")
        if block.index in self.lie_at:
            return block.carry(block.spec, block.pixels[..., :-1])
        made = block.carry(block.spec, block.pixels * np.uint16(2))
        if self.reject_odd:
            odd = [n for n in range(block.count) if (block.index + n) % 2]
            made = made.refuse(dict.fromkeys(odd, Absence(Fate.REJECTED, "double", "odd")))
        return made


def make_plan(**tasks: tuple[str, Task]) -> Plan:
    """A plan from `name=(from, task)`, in the order given."""
    entries = {
        name: TaskDefinition(name, "test", (src,), task) for name, (src, task) in tasks.items()
    }
    empty = parse_graph("graph: g\ntasks: {t: {do: tap, from: detector}}")
    definition = GraphDefinition("g", "", entries, "", "g.yaml", empty.base)
    return Plan.make(definition, SPEC)


def blocks(count: int, size: int = 2) -> Iterator[Block]:
    for index in range(0, count, size):
        yield Block(SPEC, index, size, np.full((size, 1, 4, 6), index, np.uint16), origin=(0, 3))


def fates(done: list[DoneBlock], track: int) -> dict[int, Fate]:
    found: dict[int, Fate] = {}
    for block in done:
        assert (block.source, block.epoch) == (0, 3)
        found.update(dict.fromkeys(range(block.index, block.index + block.count), Fate.SAVED))
        for number, part in block.absences:
            if number == track:
                for offset, said in unpack_absences([part], block.count).items():
                    found[block.index + offset] = said.cause
    return found


def run(plan: Plan, source: Iterator[Block], credits: int = 6) -> tuple[Flow, list[DoneBlock]]:
    flow = Flow(plan, CONTEXT, credits)
    done: list[DoneBlock] = []
    for block in source:
        flow.process(block)
        done += flow.collect(idle=False)
    done += flow.finish()
    return flow, done


def test_all_frames_go_through_and_rows_follow() -> None:
    plan = make_plan(double=("detector", Double()), keep=("double", Keep()))
    _, done = run(plan, blocks(20))
    assert fates(done, 0) == fates(done, 1) == dict.fromkeys(range(20), Fate.SAVED)
    assert [block.rows for block in done] == [[row] for row in range(0, 20, 2)]


def test_frames_are_reported_done_only_after_a_flush() -> None:
    plan = make_plan(keep=("detector", Keep()))
    keep = plan.sinks["keep"]
    assert isinstance(keep, Keep)
    flow = Flow(plan, CONTEXT, credits=8)
    reported = 0
    for block in blocks(40):
        flow.process(block)
        reported += len(flow.collect(idle=False))
        assert reported <= keep._flushed
    assert len(flow.collect(idle=True)) + reported == 20
    flow.finish()


def test_a_task_that_raises_makes_its_frames_absent_and_the_next_go_on() -> None:
    plan = make_plan(
        double=("detector", Double(raise_at=(4,), lie_at=(8,))),
        keep=("double", Keep()),
        raw=("detector", Keep()),
    )
    flow, done = run(plan, blocks(12))
    lost = dict.fromkeys((4, 8, 9), Fate.TASK_FAILED)
    expected = dict.fromkeys(range(12), Fate.SAVED) | lost
    assert fates(done, 0) == fates(done, 1) == expected
    assert fates(done, 2) == dict.fromkeys(range(12), Fate.SAVED)
    assert flow.failures == 2
    assert flow.errors == [
        'task "double" failed: ValueError: cannot double, on frame 4',
        'task "double" failed: gave uint16 (1, 4, 5) a frame, promised uint16 (1, 4, 6),'
        " on 2 frames, the first of them 8",
    ]


def test_a_sink_that_cannot_write_harms_no_other() -> None:
    plan = make_plan(bad=("detector", Keep(fail_write=(2,))), good=("detector", Keep()))
    flow, done = run(plan, blocks(6))
    lost = dict.fromkeys((2, 3), Fate.NOT_SAVED)
    assert fates(done, 1) == fates(done, 0) == dict.fromkeys(range(6), Fate.SAVED) | lost
    assert fates(done, 2) == dict.fromkeys(range(6), Fate.SAVED)
    assert done[1].rows == [-1, 2]
    assert flow.errors == ['sink "bad": disk: full, on 2 frames, the first of them 2']


def test_a_flush_that_fails_loses_what_was_not_safe() -> None:
    plan = make_plan(bad=("detector", Keep(fail_flush=True)), good=("detector", Keep()))
    _, done = run(plan, blocks(6))
    assert fates(done, 1) == fates(done, 0) == dict.fromkeys(range(6), Fate.NOT_SAVED)
    assert fates(done, 2) == dict.fromkeys(range(6), Fate.SAVED)


def test_a_veto_is_no_failure() -> None:
    plan = make_plan(double=("detector", Double(reject_odd=True)), keep=("double", Keep()))
    flow, done = run(plan, blocks(6))
    expected = {n: Fate.REJECTED if n % 2 else Fate.SAVED for n in range(6)}
    assert fates(done, 0) == fates(done, 1) == expected
    assert flow.failures == 0


@given(st.lists(st.sets(st.integers(0, 1)), min_size=1, max_size=10))
def test_absent_frames_pass_with_their_cause(gone: list[set[int]]) -> None:
    gap = Absence(Fate.DETECTOR_GAP, "detector")
    plan = make_plan(double=("detector", Double()), keep=("double", Keep()))

    def source() -> Iterator[Block]:
        for number, offsets in enumerate(gone):
            data = None if len(offsets) == 2 else np.zeros((2, 1, 4, 6), np.uint16)
            yield Block(SPEC, 2 * number, 2, data, dict.fromkeys(offsets, gap), {}, (0, 3))

    flow, done = run(plan, source())
    expected = {
        2 * n + k: Fate.DETECTOR_GAP if k in offsets else Fate.SAVED
        for n, offsets in enumerate(gone)
        for k in range(2)
    }
    assert fates(done, 0) == fates(done, 1) == expected
    assert flow.failures == 0


def test_a_task_that_cannot_start_undoes_those_that_did() -> None:
    ended: list[str] = []

    class First(Double):
        def finish(self) -> None:
            ended.append("first")

    class Second(Double):
        def start(self, run: RunContext) -> None:
            raise StorageError("no disk")

    plan = make_plan(first=("detector", First()), second=("first", Second()))
    with pytest.raises(StorageError, match='task "second": no disk'):
        Flow(plan, CONTEXT, 1)
    assert ended == ["first"]


def plan_of(text: str, **spec: Any) -> Plan:
    return Plan.make(parse_graph(text), FrameSpec.dense(64, 48, "uint16", **spec))


def test_every_task_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(BadGraph) as caught:
        plan_of("""
            graph: g
            tasks:
              bad: {do: bin, from: detector, by: [5, 1]}
              below: {do: tap, from: bad}
              worse: {do: crop, from: detector, box: [40, 0, 20, 20]}
        """)
    text = str(caught.value)
    assert text.count("\n") == 1
    assert 'graph, task "bad", by: ' in text
    assert 'graph, task "worse", box: ' in text


def test_the_plan_says_what_comes_out_of_every_task() -> None:
    plan = plan_of("""
        graph: g
        tasks:
          counts: {do: roi_counters, from: small, rois: {all: [0, 0, 48, 64]}}
          small: {do: bin, from: detector, by: [2, 4]}
          raw: {do: save_dense, from: detector}
    """)
    assert plan.specs["small"].image == (16, 24)
    assert [step.name for step in plan.steps].index("small") < 2
    assert list(plan.sinks) == ["raw"]
    assert plan.rois == {"counts.all": (0, 0, 48, 64)}
    assert "16 × 24  uint32" in plan.table()
    assert "to_detector [[2, 0, 0], [0, 4, 0], [0, 0, 1]]" in plan.table()
    assert plan.plain()["tasks"]["small"]["product"]["shape"] == [1, 16, 24]
