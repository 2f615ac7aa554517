"""A graph over frames that lie in memory: for notebooks, tests, and to try a graph out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lima2py.errors import BadParameter
from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import load_graph, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.memory import BLOCK_BYTES, MAX_FRAMES_PER_BLOCK
from lima2py.task import RunContext


def apply(
    graph: str,
    frames: ArrayLike,
    *,
    overrides: Mapping[str, Any] | None = None,
    base: str | Path = ".",
) -> dict[str, Block]:
    """Run frames through a graph, here and now, as a processing node would.

    Args:
        graph: the text of a graph (YAML); or its file; or the name of one that comes with lima2py.
        frames: array `(frames, height, width)` or `(frames, bands, height, width)`.
        overrides: parameters of the graph to replace: `{"view.by": [4, 4]}`.
        base: the folder that relative paths in a graph's text begin at.

    Returns:
        For every task what it made of all frames: `data` is an array with one item a frame, and
        `absences` says which frames have none, and why.

    Raises:
        BadParameter: if the graph cannot work on such frames, or has tasks that save.
    """
    data = np.asarray(frames)
    if data.ndim == 3:
        data = data[:, np.newaxis]
    if data.ndim != 4 or not len(data):
        raise BadParameter(
            "frames: should be (frames, height, width) or (frames, bands, height, width);"
            f" given: an array of shape {np.shape(frames)}"
        )
    told = overrides or {}
    if "\n" in graph or ":" in graph:
        definition = parse_graph(graph, "graph", base, told)
    else:
        definition = load_graph(graph, told)
    _, bands, height, width = data.shape
    spec = FrameSpec.dense(height, width, data.dtype, bands=bands)
    plan = Plan.make(definition, spec, keep_all=True)
    if plan.sinks:
        raise BadParameter(f"graph: {', '.join(plan.sinks)} would save; run it in a session")
    size = max(1, min(MAX_FRAMES_PER_BLOCK, BLOCK_BYTES // max(1, spec.nbytes)))
    run = RunContext("0" * 32, "apply", nb_frames=len(data), frames_per_block=size)
    flow = Flow(plan, run, 1)
    made: dict[str, list[Block]] = {step.name: [] for step in plan.steps}
    try:
        for first in range(0, len(data), size):
            part = data[first : first + size]
            flow.process(Block(spec, first, len(part), part))
            for name, blocks in made.items():
                product = flow.product(name)
                if product is not None and product.count:
                    blocks.append(product)
    finally:
        flow.finish()
    specs = plan.specs
    return {
        name: Block.join(blocks) if blocks else Block(specs[name], 0, 0, None)
        for name, blocks in made.items()
    }
