"""The ready graphs in graphs/: each opens, fits the simulator, and is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import known_graphs, load_graph
from lima2py.graph.plan import Plan
from lima2py.graph.schema import graph_schema

ROOT = Path(__file__).parents[2]
GRAPHS = sorted((ROOT / "graphs").glob("*.yaml"))
SCHEMA = "docs/reference/graph.schema.json"
SIMULATOR = FrameSpec.dense(512, 512, "uint16")
each_graph = pytest.mark.parametrize("path", GRAPHS, ids=[path.stem for path in GRAPHS])


def test_every_ready_graph_is_known_by_its_name() -> None:
    assert list(known_graphs()) == [path.stem for path in GRAPHS]
    assert {"counters", "first_light", "save_raw", "view_only"} <= set(known_graphs())


@each_graph
def test_a_ready_graph_says_what_it_is(path: Path) -> None:
    graph = load_graph(path.stem)
    assert graph.name == path.stem
    assert graph.about.endswith(".")
    assert known_graphs()[path.stem] == graph.about
    assert path.read_text().startswith(f"# yaml-language-server: $schema=../{SCHEMA}\n")


@each_graph
def test_a_ready_graph_fits_the_simulator_and_lets_a_block_pass(path: Path) -> None:
    plan = Plan.make(load_graph(path.stem), SIMULATOR)
    block = Block(SIMULATOR, 0, 2, np.zeros((2, *SIMULATOR.shape), "uint16"))
    blocks = [block]
    for step in plan.steps:
        given = blocks[step.source]
        blocks.append(given if step.name in plan.sinks else step.task.process(given))
        assert blocks[-1].spec == step.spec
    assert len(blocks) == len(load_graph(path.stem).tasks) + 1


def test_the_schema_in_the_reference_is_that_of_the_tasks() -> None:
    written = json.loads((ROOT / SCHEMA).read_text())
    assert written == graph_schema(), (
        f"{SCHEMA} is stale; write it again:  python -m lima2py.graph.schema > {SCHEMA}"
    )
