"""Every task runs in the first stage that has what it needs; what none has is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import FrameSpec
from lima2py.graph.definition import DETECTOR, GraphDefinition, TaskDefinition, parse_graph
from lima2py.graph.plan import Plan
from lima2py.graph.stages import Stage, assign, crossing, part_of
from lima2py.tags import Tag, lacking
from lima2py.tasks.tap import Tap

TAGS: st.SearchStrategy[dict[str, Tag]] = st.dictionaries(
    st.sampled_from(["gpu", "memory", "host"]),
    st.sampled_from([True, 1.0, 2.0, "fast", "slow"]),
    max_size=2,
)


@st.composite
def graphs(draw: st.DrawFn) -> GraphDefinition:
    tasks: dict[str, TaskDefinition] = {}
    for number in range(draw(st.integers(1, 6))):
        inputs = draw(st.lists(st.sampled_from([DETECTOR, *tasks]), min_size=1, max_size=2))
        needs = draw(st.one_of(st.just({}), TAGS))
        tap = Tap.load({"needs": needs}, "tap")
        tasks[f"t{number}"] = TaskDefinition(f"t{number}", "tap", tuple(inputs), tap)
    return GraphDefinition("g", "", tasks, "", "g.yaml", Path())


@st.composite
def chains(draw: st.DrawFn) -> list[Stage]:
    nodes: st.SearchStrategy[dict[str, dict[str, Tag]]] = st.dictionaries(
        st.sampled_from(["n0", "n1", "n2"]), TAGS, min_size=1, max_size=2
    )
    return [
        Stage(f"s{place}", {**draw(nodes)}, draw(st.booleans()))
        for place in range(draw(st.integers(1, 4)))
    ]


def may_run(task: Tap, stage: Stage) -> bool:
    return (bool(task.needs) or not stage.reserved) and not any(
        lacking(task.needs, tags) for tags in stage.nodes.values()
    )


@given(graphs(), chains())
def test_a_task_runs_in_the_first_stage_after_its_inputs_that_has_what_it_needs(
    graph: GraphDefinition, stages: list[Stage]
) -> None:
    wanted: dict[str, int] = {}
    impossible: list[str] = []
    for name, entry in graph.tasks.items():
        assert isinstance(entry.task, Tap)
        first = max(wanted.get(source, 0) for source in entry.inputs)
        able = [at for at in range(first, len(stages)) if may_run(entry.task, stages[at])]
        wanted[name] = able[0] if able else first
        impossible += [] if able else [name]
    if impossible:
        with pytest.raises(BadGraph) as error:
            assign(graph, stages)
        lines = str(error.value).splitlines()
        assert [line.split('"')[1] for line in lines] == impossible
        assert all(stage.name in line for line in lines for stage in stages)
    else:
        assert assign(graph, stages) == wanted


def test_a_node_has_a_number_if_it_is_large_enough_a_word_if_it_is_the_same() -> None:
    tags: dict[str, Tag] = {"gpu": 2.0, "host": "fast", "fpga": True, "none": 0.0}
    assert lacking({"gpu": 2.0, "host": "fast", "fpga": True}, tags) == []
    assert lacking({"gpu": True}, tags) == []
    assert lacking({"gpu": 3.0, "host": "slow", "none": True, "disk": True, "fpga": 1.0}, tags) == [
        "gpu 3 (it has gpu 2)",
        "host slow (it has host fast)",
        "none (it has none 0)",
        "disk (it has nothing of that name)",
        "fpga 1 (it has fpga)",
    ]


def test_what_no_stage_has_is_refused_with_what_each_node_lacks() -> None:
    graph = parse_graph(
        "tasks:\n  fit: {do: tap, from: detector, needs: {gpu: 2}}\n", where="fit.yaml"
    )
    stages = [
        Stage("processing", {"proc0": {}, "proc1": {"gpu": 4.0}}),
        Stage("gpus", {"g0": {"gpu": 1.0}}),
    ]
    with pytest.raises(BadGraph) as error:
        assign(graph, stages)
    assert str(error.value) == (
        'fit.yaml, task "fit", needs: gpu 2, which no stage has on all of its nodes. Stage'
        " processing: proc0 lacks gpu 2 (it has nothing of that name). Stage gpus: g0 lacks gpu 2"
        " (it has gpu 1). Ask for less, or say in the system file what its nodes have (tags)"
    )


def test_a_task_that_needs_nothing_is_not_put_into_a_reserved_stage() -> None:
    graph = parse_graph("tasks:\n  live: {do: tap, from: detector}\n", where="g.yaml")
    with pytest.raises(BadGraph) as error:
        assign(graph, [Stage("join", {"n0": {}}, reserved=True)])
    assert str(error.value) == (
        'g.yaml, task "live", needs nothing, and may run in no stage. Stage join: it is reserved'
        " for tasks that need what it has. Let a stage be open (reserved: false) in the system file"
    )


@pytest.mark.parametrize("needs", ["{gpu: false}", "{gpu: -1}", "{gpu: [1]}", "{1x: 2}", "gpu"])
def test_what_is_no_need_is_refused(needs: str) -> None:
    with pytest.raises(BadParameter, match="needs"):
        parse_graph(f"tasks:\n  live: {{do: tap, from: detector, needs: {needs}}}\n")


def test_a_product_of_several_frames_stays_in_its_stage() -> None:
    graph = parse_graph(
        "tasks:\n  few: {do: accumulate, from: detector, frames: 4}\n"
        "  live: {do: tap, from: few}\n  view: {do: tap, from: detector}\n",
        where="g.yaml",
    )
    plan = Plan.make(graph, FrameSpec.dense(4, 6, "uint16"))
    together = {"few": 1, "live": 1, "view": 0}
    assert crossing(plan, together, 0) == (DETECTOR,)
    late = part_of(plan, together, 1)
    assert [(step.name, step.inputs) for step in late.steps] == [
        (DETECTOR, ()), ("few", (DETECTOR,)), ("live", ("few",)),
    ]  # fmt: skip
    with pytest.raises(BadGraph, match=r'task "few": what it makes of 4 frames .* live would run'):
        crossing(plan, {"few": 0, "live": 1, "view": 0}, 0)
