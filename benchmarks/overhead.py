"""What a graph costs by itself."""

from __future__ import annotations

import time

import numpy as np

from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import GraphDefinition, TaskDefinition, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.task import RunContext, Task


class NoOp(Task):
    """Hand the block on."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Nothing changes."""
        return spec

    def process(self, block: Block) -> Block:
        """Nothing changes."""
        return block


def no_op_graph(blocks: int = 20_000) -> float:
    """Microseconds a block spends in a graph of one task that does nothing."""
    spec = FrameSpec.dense(64, 64, "uint16")
    some = parse_graph("graph: g\ntasks: {t: {do: tap, from: detector}}")
    entry = TaskDefinition("nothing", "no_op", ("detector",), NoOp())
    definition = GraphDefinition("g", "", {"nothing": entry}, some.text, "benchmark", some.base)
    flow = Flow(Plan.make(definition, spec), RunContext(run="0" * 32, name="benchmark"), 64)
    data = np.zeros((4, 1, 64, 64), np.uint16)
    given = [Block(spec, index * 4, 4, data) for index in range(blocks)]
    began = time.perf_counter()
    for block in given:
        flow.process(block)
        flow.collect(idle=False)
    spent = time.perf_counter() - began
    flow.finish()
    return spent / blocks * 1e6
