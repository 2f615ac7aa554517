"""A task that fails may pass frames on as they came; whoever reads them afterwards can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadGraph
from lima2py.frame import Array, Block, Fate, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.policies import Policies
from lima2py.session.session import Session
from lima2py.storage.reading.run_file import RunFile
from lima2py.task import RunContext

SPEC = FrameSpec.dense(2, 3, "uint16")
MINE = """
def double(frame, at):
    if int(frame[0, 0]) - 1 in at:
        raise ValueError("no beam")
    return frame * frame.dtype.type(2)

def total(frame, at):
    if int(frame[0, 0]) - 1 in at:
        raise ValueError("no sum")
    return {"sum": frame.sum()}
"""


def numbered(first: int, count: int) -> Block:
    """Every pixel is the number of the frame, from 1 on: tasks are tried on zeros."""
    data = np.zeros((count, *SPEC.shape), SPEC.dtype)
    data += np.arange(first + 1, first + 1 + count, dtype="u2").reshape(-1, 1, 1, 1)
    return Block(SPEC, first, count, data, {}, {"timestamp": np.arange(count) * 1.0})


def run(
    folder: Path, tasks: dict[str, Any], blocks: list[int], policy: str = "mark"
) -> tuple[Flow, dict[str, tuple[Array, dict[str, Array]]]]:
    """Frames through a graph with sinks: what these hold, data and records, by sink."""
    (folder / "mine.py").write_text(MINE)
    plan = Plan.make(parse_graph(json.dumps({"tasks": tasks}), "graph.yaml", folder), SPEC)
    paths = {sink: str(folder / sink) for sink in plan.sinks}
    policies = Policies.load({"task_failure": policy}, "policies")
    flow = Flow(plan, RunContext("a" * 32, "run", paths=paths, policies=policies), 2)
    for block in numbered_blocks(blocks):
        flow.process(block)
        flow.collect(idle=False)
    flow.finish()
    found = {}
    for sink in plan.sinks:
        with RunFile(f"{paths[sink]}_0_00000.h5") as file:
            found[sink] = file[:], {name: file.records[name] for name in file.records}
    return flow, found


def numbered_blocks(sizes: list[int]) -> Iterator[Block]:
    first = 0
    for size in sizes:
        yield numbered(first, size)
        first += size


def user(call: str, at: tuple[int, ...], **more: Any) -> dict[str, Any]:
    return {"do": "python", "file": "mine.py", "call": call, "with": {"at": at}, **more}


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sets(st.integers(0, 20)),
    st.sets(st.integers(0, 20)),
    st.booleans(),
)
def test_files_tell_which_frames_passed_which_task(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    at: set[int],
    other: set[int],
    by_policy: bool,
) -> None:
    """Also of a product of two frames, whichever of them it was, and however blocks are cut."""
    choice = {} if by_policy else {"if_fails": "pass"}
    tasks: dict[str, Any] = {
        "a": user("double", tuple(at), **{"from": "detector"}, **choice),
        "b-b": user("double", tuple(other), **{"from": "detector"}, **choice),
        "both": {"do": "python", "from": ["a", "b-b"], "call": "operator:add"},
        "raw": {"do": "save_dense", "from": "detector"},
        "as": {"do": "save_dense", "from": "a"},
        "boths": {"do": "save_dense", "from": "both"},
        "two": {"do": "accumulate", "from": "a", "frames": 2},
        "twos": {"do": "save_dense", "from": "two"},
    }
    folder = tmp_path_factory.mktemp("passed")
    sizes = [*sizes, 2 - sum(sizes) % 2]  # an even number
    flow, found = run(folder, tasks, sizes, "pass" if by_policy else "mark")
    count = sum(sizes)
    numbers = np.arange(count)
    a, b = (np.isin(numbers, list(one)) for one in (at, other))
    assert found["raw"][1].keys() >= {"index", "fate"}
    assert not any(name.startswith("unprocessed") for name in found["raw"][1])
    data, records = found["as"]
    assert np.array_equal(data[:, 0, 0], np.where(a, numbers + 1, 2 * numbers + 2))
    assert np.array_equal(records.get("unprocessed_a", np.zeros(count)), a)
    assert (records["fate"] == Fate.SAVED).all()
    data, records = found["boths"]
    assert np.array_equal(records.get("unprocessed_a", np.zeros(count)), a)
    assert np.array_equal(records.get("unprocessed_b_b", np.zeros(count)), b)
    data, records = found["twos"]
    twos = a.reshape(-1, 2).any(axis=1)
    assert np.array_equal(records.get("unprocessed_a", np.zeros(count // 2)), twos)
    assert flow.failures == 0
    assert len(flow.errors) == int(a.any()) + int(b.any())
    assert all("passed frames on as they came" in text for text in flow.errors)


def test_what_does_not_look_like_what_came_is_marked_whatever_the_policy(tmp_path: Path) -> None:
    tasks = {
        "sums": user("total", (3,), **{"from": "detector"}),
        "kept": {"do": "save_table", "from": "sums"},
    }
    flow, found = run(tmp_path, tasks, [2, 4], "pass")
    assert found["kept"][1]["fate"].tolist() == [1, 1, 1, Fate.TASK_FAILED, 1, 1]
    assert flow.failures == 1
    assert flow.errors == ['task "sums" failed: ValueError: no sum (mine.py:9), on frame 3']


def test_a_task_that_can_never_pass_a_frame_on_is_refused() -> None:
    for task, said in (
        ("{do: bin, from: detector, by: [2, 2], if_fails: pass}", "1 × 1  uint32"),
        ("{do: flip, from: detector, axis: x, if_fails: pass}", "lies elsewhere"),
    ):
        with pytest.raises(BadGraph, match='task "t", if_fails: pass hands a frame on') as told:
            Plan.make(parse_graph(f"tasks: {{t: {task}}}"), FrameSpec.dense(2, 2, "uint16"))
        assert said in str(told.value)
    with pytest.raises(BadGraph, match="if_fails"):
        parse_graph("tasks: {s: {do: save_dense, from: detector, if_fails: pass}}")
    with pytest.raises(BadGraph, match="if_fails"):
        parse_graph("tasks: {t: {do: tap, from: detector, if_fails: wait}}")


def test_a_policy_stops_the_run_and_a_task_may_say_otherwise(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    asked: list[str] = []
    for choice, stops in (({}, 1), ({"if_fails": "mark"}, 0)):
        task = user("double", (1,), **{"from": "detector"}, **choice)
        plan = Plan.make(parse_graph(json.dumps({"tasks": {"t": task}}), "g", tmp_path), SPEC)
        context = RunContext("a" * 32, "run", policies=Policies(task_failure="stop"))
        flow = Flow(plan, replace(context, stop=asked.append), 2)
        flow.process(numbered(0, 4))
        flow.finish()
        assert len(asked) == stops
        asked.clear()


@pytest.mark.parametrize("nodes", [0, 2])
def test_a_run_in_which_frames_passed_is_complete_and_its_master_tells(
    tmp_path: Path, nodes: int
) -> None:
    (tmp_path / "mine.py").write_text(
        "def odd(frame, index=[-1]):\n"
        "    if frame[0, 0] % 7 == 0:\n"
        "        raise ValueError('seven')\n"
        "    return frame\n"
    )
    graph = tmp_path / "graph.yaml"
    graph.write_text(
        "tasks:\n"
        "  odd: {do: python, from: detector, file: mine.py, call: odd, if_fails: pass,"
        " shape: [8, 8], dtype: uint16}\n"
        "  kept: {do: save_dense, from: odd}\n"
    )
    detector = {"pattern": "verifiable", "shape": [8, 8]}
    with Session.open("simulator", processing_nodes=nodes, detector=detector) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=100, expo_time=1e-3)
        session.start()
        report = session.wait(60)
    assert report.ok, report
    assert report.saved == 100
    assert any("passed frames on as they came" in text for text in report.errors)
    with RunFile(report.masters["kept"]) as file:
        expected = file[:][:, 0, 0] % 7 == 0
        assert expected.any()
        assert np.array_equal(file.records["unprocessed_odd"], expected)
