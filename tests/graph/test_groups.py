"""Frames that are accumulated: what is made of them, and when they count as done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadGraph
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import TaskDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.groups import Groups
from lima2py.graph.passed import Passed
from lima2py.graph.plan import Plan
from lima2py.node.ledger import Ledger
from lima2py.task import RunContext, Task
from lima2py.tasks.accumulate import Accumulate
from lima2py.transport.packing import check_done
from lima2py.transport.wire import DoneBlock
from tests.graph.test_flow import Keep

SPEC = FrameSpec.dense(3, 5, "uint16")


def plan_of(tasks: dict[str, tuple[str, Task]]) -> Plan:
    definition = parse_graph("tasks: {t: {do: tap, from: detector}}")
    entries = {
        name: TaskDefinition(name, "test", (source,), task)
        for name, (source, task) in tasks.items()
    }
    return Plan.make(type(definition)("g", "", entries, "", "g.yaml", definition.base), SPEC)


def accumulating(n: int, **options: object) -> dict[str, tuple[str, Task]]:
    task = Accumulate.load({"frames": n, **options}, "sum")
    return {
        "sum": ("detector", task),
        "sums": ("sum", Keep()),
        "raw": ("detector", Keep()),
    }


def blocks(sizes: Sequence[int], missing: Sequence[int] = ()) -> list[Block]:
    """Blocks of these sizes; frame i is full of i + 1."""
    made, first = [], 0
    gap = Absence(Fate.DETECTOR_GAP, "detector")
    for size in sizes:
        values = np.arange(first + 1, first + size + 1, dtype=np.uint16)
        data = np.broadcast_to(values[:, None, None, None], (size, *SPEC.shape)).copy()
        gone = {frame - first: gap for frame in missing if first <= frame < first + size}
        made.append(Block(SPEC, first, size, data if len(gone) < size else None, gone))
        first += size
    return made


def settled(plan: Plan, given: Sequence[Block], nb_frames: int) -> Ledger:
    run = RunContext("0" * 32, "g", nb_frames=nb_frames)
    flow = Flow(plan, run, 100)
    ledger = Ledger(plan.sink_spans, nb_frames)
    ledger.acquired(nb_frames)
    done: list[DoneBlock] = []
    for block in given:
        flow.process(block)
        done += flow.collect(idle=True)
    for settled in [*done, *flow.finish()]:
        ledger.settle(settled, 0)
    return ledger


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.sets(st.integers(0, 95), max_size=3),
)
def test_the_ledger_has_a_line_for_every_product_and_every_frame(
    n: int, sizes: list[int], missing: set[int]
) -> None:
    total = sum(sizes)
    missing = {frame for frame in missing if frame < total}
    plan = plan_of(accumulating(n))
    ledger = settled(plan, blocks(sizes, sorted(missing)), total)
    sums, raw = ledger.table("sums"), ledger.table("raw")
    spoiled = {frame // n for frame in missing}
    assert plan.group == n
    assert sums.fate.tolist() == [
        Fate.DETECTOR_GAP if g in spoiled else Fate.SAVED for g in range(total // n)
    ]
    assert sums.row.tolist() == list(range(total // n))
    assert raw.fate.tolist() == [
        Fate.DETECTOR_GAP if frame in missing else Fate.SAVED for frame in range(total)
    ]
    keep = plan.sinks["sums"]
    assert isinstance(keep, Keep)
    frames = [frame for block in keep._kept for frame in block.frames() if frame.data is not None]
    for frame in frames:
        expected = sum(range(frame.index * n + 1, (frame.index + 1) * n + 1))
        assert np.all(frame.data == expected)
    assert {frame.index for frame in frames} == set(range(total // n)) - spoiled


def test_a_frame_counts_as_done_only_when_its_group_is_complete() -> None:
    flow = Flow(plan_of(accumulating(6)), RunContext("0" * 32, "g", nb_frames=15), 100)
    told = []
    for block in blocks([2, 2, 2, 3, 3, 2, 1]):
        flow.process(block)
        told.append([done.index for done in flow.collect(idle=True)])
    flow.finish()
    assert told == [[], [], [0, 2, 4], [], [6, 9], [], [12, 14]]


def test_only_the_last_group_is_shorter_once_it_is_known_where_the_frames_end() -> None:
    """The rest of the others may wait elsewhere still, when the acquisition has ended."""
    flow = Flow(plan_of(accumulating(4)), RunContext("0" * 32, "g"), 100, {0: {10}})
    told = []
    for block in blocks([2, 2, 4, 2]):
        flow.process(block)
        told.append([done.index for done in flow.collect(idle=True)])
    flow.finish()
    assert told == [[], [0, 2], [4], [8]]


def test_a_group_that_was_begun_elsewhere_is_not_waited_for() -> None:
    flow = Flow(plan_of(accumulating(4)), RunContext("0" * 32, "g", nb_frames=8), 100)
    _, second, *_ = blocks([2, 1, 5])
    flow.process(second)
    assert [done.index for done in flow.collect(idle=True)] == [2]
    flow.finish()


def test_a_block_of_several_groups_waits_for_the_one_it_has_a_part_of() -> None:
    flow = Flow(plan_of(accumulating(4)), RunContext("0" * 32, "g", nb_frames=26), 100)
    told = []
    for block in blocks([6, 1, 5, 8, 5, 1]):
        flow.process(block)
        told.append([done.index for done in flow.collect(idle=True)])
    flow.finish()
    assert told == [[], [], [0, 6, 7], [12], [], [20, 25]]


def test_blocks_of_other_groups_do_not_wait_for_one_that_is_not_complete() -> None:
    """With several acquisition nodes the groups come mixed."""
    flow = Flow(plan_of(accumulating(4)), RunContext("0" * 32, "g", nb_frames=8), 100)
    first, second, third, fourth = blocks([2, 2, 2, 2])
    told = []
    for block in (first, third, fourth, second):
        flow.process(block)
        told.append([done.index for done in flow.collect(idle=True)])
    flow.finish()
    assert told == [[], [], [4, 6], [0, 2]]


def test_a_group_larger_than_what_may_wait_does_not_block_the_ring() -> None:
    flow = Flow(plan_of(accumulating(100)), RunContext("0" * 32, "g", nb_frames=100), 2)
    waiting = 0
    for block in blocks([1] * 100):
        flow.process(block)
        waiting += 1 - len(flow.collect(idle=True))
        assert waiting <= 3
    flow.finish()


def test_a_flush_that_fails_loses_products_and_frames_alike() -> None:
    tasks = accumulating(2)
    tasks["sums"] = ("sum", Keep(fail_flush=True))
    ledger = settled(plan_of(tasks), blocks([3, 3]), 6)
    assert ledger.table("sums").fate.tolist() == [Fate.NOT_SAVED] * 3
    assert ledger.table("raw").fate.tolist() == [Fate.SAVED] * 6
    assert ledger.counts() == {"not_saved": 6}


def test_a_flush_that_fails_on_absent_frames_is_reported_as_nodes_must_report() -> None:
    """Each frame once: what is said twice is refused, and the node with it."""
    tasks = accumulating(2)
    tasks["sums"], tasks["raw"] = (
        ("sum", Keep(fail_flush=True)),
        ("detector", Keep(fail_flush=True)),
    )
    plan = plan_of(tasks)
    flow = Flow(plan, RunContext("0" * 32, "g", nb_frames=6), 100)
    given = blocks([4, 2], missing=[1])
    for block in given:
        flow.process(block)
    for block, done in zip(given, flow.collect(idle=True), strict=True):
        check_done(done, block.index, block.count, list(plan.sink_spans.values()))
    flow.finish()


def test_inputs_that_stand_for_different_numbers_of_frames_are_refused() -> None:
    graph = parse_graph("""
        tasks:
          sum: {do: accumulate, from: detector, frames: 4}
          few: {do: roi_counters, from: detector, rois: {all: [0, 0, 5, 3]}}
          bad: {do: reject, from: [sum, few], channel: sum, below: 1}
    """)
    with pytest.raises(BadGraph, match=r'task "bad", from: .*\(sum: 4, few: 1\)'):
        Plan.make(graph, SPEC)


def test_every_acquisition_node_may_have_a_group_waiting() -> None:
    """Each has credits of its own: what waits of one takes no room from the others."""
    flow = Flow(plan_of(accumulating(4)), RunContext("0" * 32, "g", nb_frames=12), 4)
    told = []
    parts = [(blocks([4] * 3)[group].part(n, n + 1), group) for n in range(4) for group in range(3)]
    for block, source in parts:
        flow.process(replace(block, origin=(source, 0)))
        told.append([done.index for done in flow.collect(idle=True)])
    flow.finish()
    assert told == [[]] * 9 + [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("ends", "told"),
    [({}, [0, 3]), ({1: {8, 21}}, [0, 3, 6]), ({1: {21}}, [0, 3]), ({1: {0}}, [0, 3, 6])],
)
def test_a_group_is_complete_where_a_detector_behind_its_sender_ends(
    ends: dict[int, set[int]], told: list[int]
) -> None:
    """Of the frames 6 to 11 one sender gave two; another one begins to give them anew."""
    groups = Groups(6, 0, 10, ends)
    blocks = ((0, 3, 1), (3, 3, 1), (6, 2, 1), (6, 3, 2))
    passed = [Passed(DoneBlock(index, count, source, 0, [], []), [])
              for index, count, source in blocks]  # fmt: skip
    for one in passed:
        groups.note(one.done)
    ready, _ = groups.divide(passed)
    assert [one.done.index for one in ready] == told
