"""Tasks that take one pass over memory together give what each of them gives alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext
from lima2py.testing.strategies import Entry, graphs
from lima2py.testing.task_inputs import assert_same_frames

SPEC = FrameSpec.dense(8, 12, "uint16")
RUN = RunContext("0" * 32, "scan", nb_frames=0)
GAP = Absence(Fate.DETECTOR_GAP, "detector")

HALF = {"do": "linear", "slope": 0.5}
COUNT = {"do": "fill_factor", "above": 3}
ALL = {"do": "roi_counters", "rois": {"all": [0, 0, 12, 8]}}


def plan_of(tasks: Mapping[str, Mapping[str, Any]], *, keep_all: bool = False) -> Plan:
    return Plan.make(parse_graph(json.dumps({"tasks": tasks})), SPEC, keep_all=keep_all)


def passes_of(plan: Plan) -> list[list[str]]:
    return [[plan.steps[number].name for number in shared] for shared in plan.passes]


def after(source: str | list[str], entry: Mapping[str, Any]) -> Entry:
    return {**entry, "from": source}


CHAIN = {
    "a": after("detector", HALF),
    "b": after("a", {"do": "threshold", "low": 10}),
    "c": after("b", COUNT),
}


@pytest.mark.parametrize(
    ("tasks", "passes", "stored"),
    [
        pytest.param(CHAIN, [["a", "b", "c"]], ["c"], id="a chain"),
        pytest.param(
            {**CHAIN, "d": after("a", HALF), "e": after("d", ALL)},
            [["a", "b", "c", "d", "e"]],
            ["c", "e"],
            id="a branch",
        ),
        pytest.param(
            {**CHAIN, "look": after("a", {"do": "tap"})},
            [["a", "b", "c"], ["look"]],
            ["a", "c", "look"],
            id="a tap in the middle",
        ),
        pytest.param(
            {**CHAIN, "keep": after("b", {"do": "save_dense"})},
            [["a", "b", "c"], ["keep"]],
            ["b", "c", "keep"],
            id="a sink in the middle",
        ),
        pytest.param(
            {"a": after("detector", HALF), "x": after("detector", COUNT),
             "y": after("detector", HALF), "z": after("y", COUNT), "w": after("a", COUNT)},
            [["a", "x", "y", "z", "w"]],
            ["x", "z", "w"],
            id="two trees that begin at the detector, and a reducer of what is not corrected",
        ),
        pytest.param(
            {"a": after("detector", HALF), "cut": after("a", {"do": "flip", "axis": "x"}),
             "b": after("cut", HALF), "c": after("b", COUNT), "d": after("cut", COUNT)},
            [["a"], ["cut"], ["b", "c", "d"]],
            ["a", "cut", "c", "d"],
            id="what is reshaped begins another pass",
        ),
        pytest.param(
            {"a": after("detector", HALF), "b": after("detector", HALF),
             "both": after(["a", "b"], {"do": "combine", "weights": [1, 1]}),
             "c": after("both", HALF), "d": after("c", COUNT), "e": after("a", COUNT)},
            [["a", "b", "e"], ["both"], ["c", "d"]],
            ["a", "b", "both", "d", "e"],
            id="several inputs begin another pass",
        ),
        pytest.param(
            {"a": after("detector", HALF), "sum": after("a", {"do": "accumulate", "frames": 3}),
             "b": after("sum", HALF), "c": after("b", COUNT), "d": after("a", COUNT)},
            [["a", "d"], ["sum"], ["b", "c"]],
            ["a", "sum", "c", "d"],
            id="products of several frames begin another pass",
        ),
        pytest.param(
            {"a": after("detector", COUNT), "r": after(["detector", "a"], {
                "do": "reject", "channel": "fraction", "below": 0.3}),
             "b": after("r", HALF), "c": after("b", COUNT), "d": after("detector", HALF)},
            [["a", "d"], ["r"], ["b", "c"]],
            ["a", "r", "c"],
            id="a veto begins another pass",
        ),
    ],
)  # fmt: skip
def test_tasks_that_hang_together_share_a_pass(
    tasks: Mapping[str, Entry], passes: list[list[str]], stored: list[str]
) -> None:
    plan = plan_of(tasks)
    found = passes_of(plan)
    assert sorted(map(sorted, found)) == sorted(map(sorted, passes))
    assert sorted(step.name for step in plan.steps if step.wanted) == sorted(stored)
    everything = plan_of(tasks, keep_all=True)
    assert everything.passes == plan.passes
    assert all(step.wanted for step in everything.steps)
    made: set[str] = {"detector"}
    for shared in plan.passes:  # what a pass takes is made before it
        steps = [plan.steps[number] for number in shared]
        names = {step.name for step in steps}
        assert {source for step in steps for source in step.inputs} <= made | names
        made |= names


def test_the_table_says_what_shares_a_pass_and_what_is_not_stored() -> None:
    lines = plan_of({**CHAIN, "small": after("b", {"do": "bin", "by": [2, 2]})}).table().split("\n")
    (a,) = (line for line in lines if line.startswith("a "))
    (b,) = (line for line in lines if line.startswith("b "))
    assert "not stored" in a
    assert "not stored" not in b, "bin needs it"
    assert "one pass over memory: a, b, c" in lines


def blocks(sizes: Sequence[int], missing: Sequence[int] = (), turned: bool = False) -> list[Block]:
    """Frames in blocks of these sizes; maybe as a view that is not contiguous."""
    random = np.random.default_rng(3)
    count = sum(sizes)
    data = random.integers(0, 2**16, (count, *SPEC.shape)).astype(SPEC.dtype)
    if turned:
        data = np.ascontiguousarray(data[::-1].swapaxes(2, 3)).swapaxes(2, 3)[::-1]
    gone = {frame: GAP for frame in missing if frame < count}
    whole = Block(SPEC, 0, count, data, columns={"timestamp": np.arange(count) + 0.5})
    whole = whole.refuse(gone)
    ends = np.cumsum([0, *sizes]).tolist()
    return [whole.part(first, end) for first, end in pairwise(ends)]


def fused(plan: Plan, given: Sequence[Block]) -> dict[str, list[Block]]:
    """What comes out of every task whose product is wanted, block by block."""
    flow = Flow(plan, RUN, 1)
    made: dict[str, list[Block]] = {step.name: [] for step in plan.steps}
    try:
        for block in given:
            flow.process(block)
            flow.collect(idle=True)
            for step in plan.steps:
                product = flow.product(step.name)
                if step.wanted:
                    assert product is not None, step.name
                    made[step.name].append(product)
                else:
                    assert product is None or product.data is None, f"{step.name} was stored"
    finally:
        flow.finish()
    assert flow.failures == 0, flow.errors
    return made


def one_by_one(plan: Plan, given: Sequence[Block]) -> dict[str, list[Block]]:
    """The same, every task by itself."""
    made: dict[str, list[Block]] = {"detector": list(given)}
    for step in plan.steps:
        step.task.start(RUN.of_task(step.name, step.spec.span))
        made[step.name] = []
        for inputs in zip(*(made[name] for name in step.inputs), strict=True):
            first, *others = inputs
            first = first.refuse({n: a for other in others for n, a in other.absences.items()})
            if first.data is None and not step.task.takes_absent:
                made[step.name].append(first.carry(step.spec, None))
            else:
                made[step.name].append(step.task.process(first, *others))
        step.task.finish()
    return made


def assert_fusing_changes_nothing(tasks: Mapping[str, Entry], given: Sequence[Block]) -> None:
    expected = one_by_one(plan_of(tasks), given)
    for keep_all in (False, True):
        plan = plan_of(tasks, keep_all=keep_all)
        found = fused(plan, given)
        for step in plan.steps:
            if step.wanted:
                assert [b.spec for b in found[step.name]] == [step.spec] * len(given)
                assert_same_frames(found[step.name], expected[step.name])


TREE = {
    "a": after("detector", HALF),
    "b": after("a", {"do": "cosmic", "max_count": 30000, "value": "fill"}),
    "c": after("b", COUNT),
    "d": after("detector", ALL),
    "look": after("a", {"do": "tap"}),
    "e": after("a", {"do": "threshold", "low": 9000, "value": "fill"}),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (1,) * 6, (6,), (3, 1, 2)])
@pytest.mark.parametrize("missing", [(), (0, 3), range(6)], ids=str)
def test_blocks_of_any_size_with_absent_frames_give_the_same(
    sizes: Sequence[int], missing: Sequence[int], turned: bool
) -> None:
    assert_fusing_changes_nothing(TREE, blocks(sizes, missing, turned))


@pytest.mark.parametrize("sizes", [(1,) * 9, (2, 2, 2, 3), (9,), (4, 5)])
def test_a_pass_after_an_accumulation_takes_blocks_without_frames(sizes: Sequence[int]) -> None:
    tasks = {
        "sum": after("detector", {"do": "accumulate", "frames": 4}),
        "a": after("sum", HALF),
        "b": after("a", {"do": "threshold", "low": 10}),
        "c": after("b", COUNT),
        "d": after("sum", COUNT),
    }
    given = blocks(sizes, [5])
    assert any(block.count == 0 for block in one_by_one(plan_of(tasks), given)["sum"]) == (
        len(sizes) > 2
    )
    assert_fusing_changes_nothing(tasks, given)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Images that tasks need, as files."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(5)
    for name in ("mask", "dark", "flat"):
        np.save(folder / f"{name}.npy", random.integers(0, 3, SPEC.image).astype("f4"))
    return {name: str(folder / f"{name}.npy") for name in ("mask", "dark", "flat")}


@settings(max_examples=6, phases=[Phase.generate])  # a smaller graph would have to be compiled
@given(data=st.data())
def test_random_graphs_give_the_same_fused_and_one_by_one(
    images: dict[str, str], data: st.DataObject
) -> None:
    tasks = data.draw(graphs(SPEC, images, 5))
    tasks = {name: entry for name, entry in tasks.items() if not entry["do"].startswith("save_")}
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    missing = data.draw(st.sets(st.integers(0, 24), max_size=4))
    if tasks:
        assert_fusing_changes_nothing(
            tasks, blocks(sizes, sorted(missing), data.draw(st.booleans()))
        )
