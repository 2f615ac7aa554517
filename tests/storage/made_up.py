"""Runs made up: frames written by some nodes, and the ledger's account of them."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lima2py.acquisition import Parameters
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.storage.dense import SaveDense
from lima2py.storage.layout import fill_value
from lima2py.storage.master import FrameTable, Master, write_master
from lima2py.task import RunContext

DETECTOR = {
    "info": {
        "name": "Eiger 4M / b",
        "model": "made up",
        "shape": [2162, 2068],
        "dtype": "uint16",
        "pixel_size": [75e-6, 50e-6],
        "modules": [],
    },
    "parameters": {"seed": None, "cooling": True, "threshold": [6.5, 9.0]},
}


def context_of(prefix: Path, spec: FrameSpec, **changes: object) -> RunContext:
    """What a node is told about a run with one sink, `raw`."""
    pipeline = {
        "graph": "g",
        "tasks": {"raw": {"do": "save_dense", "from": ["detector"], "product": spec.plain()}},
    }
    context = RunContext(
        run="0123456789abcdef" * 2,
        name="scan 42",
        task="raw",
        detector=DETECTOR,
        parameters=Parameters(
            {"acquisition": {"nb_frames": 7}},
            {"acquisition": {"nb_frames": 7, "expo_time": 0.25}},
            pipeline,
        ),
        graph="graph: g  # as written\n",
        started=1.7e9,
        paths={"raw": str(prefix)},
        rois={"beam.direct": (10, 20, 30, 40)},
    )
    return replace(context, **changes)  # type: ignore[arg-type]


def started(sink: SaveDense, spec: FrameSpec, context: RunContext) -> SaveDense:
    """A sink that waits for its first block."""
    sink.prepare(spec)
    sink.start(context)
    return sink


@dataclass
class MadeUpRun:
    """Blocks to write, by whom, and afterwards what should be found.

    Attributes:
        spec: of the frames.
        blocks: the rank that takes it, and the block; in the order in which they come.
        nb_frames: how many frames were asked for; those in no block were not acquired.
        frames_per_block: what the nodes are told.
    """

    spec: FrameSpec
    blocks: Sequence[tuple[int, Block]]
    nb_frames: int
    frames_per_block: int = 1
    table: FrameTable = field(init=False)
    node_files: dict[int, list[str]] = field(init=False)

    def write(self, prefix: Path, compression: str = "bslz4") -> Master:
        """Write node files and master."""
        n = self.nb_frames
        context = context_of(prefix, self.spec, nb_frames=n, frames_per_block=self.frames_per_block)
        fate = np.full(n, Fate.NOT_ACQUIRED, np.uint8)
        node, row = np.full(n, -1, np.int16), np.full(n, -1, np.int64)
        absences: dict[int, Absence] = {}
        sinks: dict[int, SaveDense] = {}
        for rank, block in self.blocks:
            if rank not in sinks:
                sink = SaveDense.load({"compression": compression}, "test")
                sinks[rank] = started(
                    sink, self.spec, replace(context, rank=rank, node=f"node{rank}")
                )
            part = slice(block.index, block.end)
            first = sinks[rank].write(block)
            row[part] = np.arange(first, first + block.count)
            node[part], fate[part] = rank, Fate.SAVED
            for offset, absence in block.absences.items():
                fate[block.index + offset] = absence.cause
                absences[block.index + offset] = absence
        for sink in sinks.values():
            sink.finish()
        self.node_files = {rank: sink.files for rank, sink in sinks.items()}
        self.table = FrameTable(fate, node, row, absences)
        return write_master(
            str(prefix), self.table, self.node_files, self.spec, context,
            outcome="stopped", errors=["it was cold"],
        )  # fmt: skip

    def expected(self) -> Array:
        """What a reader of the master should see."""
        shape = (self.nb_frames, *self.spec.saved_shape)
        frames = np.broadcast_to(fill_value(self.spec.dtype), shape).copy()
        for _, block in self.blocks:
            for frame in block.frames():
                if frame.data is not None:
                    frames[frame.index] = frame.data
        return frames


LOST = Absence(Fate.DETECTOR_GAP, "made up", "lost on the way")


def numbers(spec: FrameSpec, index: int, count: int) -> Array:
    """Data in which every element tells which frame and place it is from; no fill values."""
    size = int(np.prod(spec.shape))
    values = (np.arange(count)[:, None] + index) * 7 + np.arange(size) % 5
    return (values % 100).astype(spec.dtype).reshape(count, *spec.shape)


def round_robin(
    spec: FrameSpec, nb_frames: int, frames_per_block: int, nodes: int, absent: Sequence[int] = ()
) -> MadeUpRun:
    """A run in blocks of equal size, one node after the other."""
    blocks = []
    for number, index in enumerate(range(0, nb_frames, frames_per_block)):
        count = min(frames_per_block, nb_frames - index)
        gone = {i - index: LOST for i in absent if index <= i < index + count}
        times = 1e9 + np.arange(index, index + count) / 8
        block = Block(spec, index, count, numbers(spec, index, count), gone, {"timestamp": times})
        blocks.append((number % nodes, block))
    return MadeUpRun(spec, blocks, nb_frames, frames_per_block)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Let the system refuse to let files of this process grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
