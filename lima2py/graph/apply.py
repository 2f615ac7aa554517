"""A graph over frames in memory or in a file: for notebooks, tests, and to try a graph out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lima2py.errors import BadParameter
from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import load_graph, parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.reading.source import FileSource, frames_per_block
from lima2py.task import RunContext


def apply(
    graph: str,
    frames: ArrayLike | RunFile | FileSource,
    *,
    overrides: Mapping[str, Any] | None = None,
    base: str | Path = ".",
) -> dict[str, Block]:
    """Run frames through a graph, here and now, as a processing node would.

    Args:
        graph: the text of a graph (YAML); or its file; or the name of one that comes with lima2py.
        frames: array `(frames, height, width)` or `(frames, bands, height, width)`; or a file of
            lima2py, of any kind of product, as `lima2py.open` gives it: what is absent in it stays
            absent.
        overrides: parameters of the graph to replace: `{"view.by": [4, 4]}`.
        base: the folder that relative paths in a graph's text begin at.

    Returns:
        For every task what it made of all frames: `data` is an array with one item a frame, and
        `absences` says which frames have none, and why.

    Raises:
        BadParameter: if the graph cannot work on such frames, or has tasks that save.
    """
    if isinstance(frames, RunFile):
        frames = FileSource(frames)
    source = frames if isinstance(frames, FileSource) else _InMemory(frames)
    if not len(source):
        raise BadParameter("frames: there are none")
    told = overrides or {}
    if "\n" in graph or ":" in graph:
        definition = parse_graph(graph, "graph", base, told)
    else:
        definition = load_graph(graph, told)
    plan = Plan.make(definition, source.spec, keep_all=True)
    if plan.sinks:
        raise BadParameter(f"graph: {', '.join(plan.sinks)} would save; run it in a session")
    size = source.frames_per_block
    run = RunContext("0" * 32, "apply", nb_frames=len(source), frames_per_block=size)
    flow = Flow(plan, run, 1)
    made: dict[str, list[Block]] = {step.name: [] for step in plan.steps}
    due: int | None = None
    try:
        for block in source:
            if due is not None and block.index != due:
                raise BadParameter(
                    f"frames: {due} to {block.index - 1} are missing in this file of one node; open"
                    " the master"
                )
            due = block.end
            flow.process(block)
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


class _InMemory:
    """The frames of an array as blocks."""

    def __init__(self, frames: ArrayLike):
        data = np.asarray(frames)
        if data.ndim == 3:
            data = data[:, np.newaxis]
        if data.ndim != 4 or not len(data):
            raise BadParameter(
                "frames: should be (frames, height, width) or (frames, bands, height, width);"
                f" given: an array of shape {np.shape(frames)}"
            )
        _, bands, height, width = data.shape
        self.spec = FrameSpec.dense(height, width, data.dtype, bands=bands)
        self.frames_per_block = frames_per_block(self.spec)
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Block]:
        for first in range(0, len(self._data), self.frames_per_block):
            part = self._data[first : first + self.frames_per_block]
            yield Block(self.spec, first, len(part), part)
