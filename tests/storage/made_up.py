"""Runs made up: frames written by some nodes, and the ledger's account of them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lima2py.acquisition import Parameters
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.storage.layout import entry_of, fill_value
from lima2py.storage.masters.master import Ending, FrameTable, Saved, write_master
from lima2py.storage.names import master_path
from lima2py.storage.reasons import Reasons
from lima2py.storage.saving.sinks import Hdf5Sink, SaveDense, SaveSparse, SaveTable, SaveVector
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
GROUP = "instrument/Eiger_4M_b"
"""Of this detector, in an entry."""
ENDING = Ending("stopped", ["it was cold"])


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


AnySink = TypeVar("AnySink", bound=Hdf5Sink)


def started(sink: AnySink, spec: FrameSpec, context: RunContext) -> AnySink:
    """A sink that waits for its first block."""
    sink.prepare(spec)
    sink.start(context)
    return sink


def sink_for(spec: FrameSpec, **fields: object) -> Hdf5Sink:
    """The sink that saves such frames."""
    kinds: dict[str, type[Hdf5Sink]] = {
        "dense": SaveDense, "vector": SaveVector, "table": SaveTable, "sparse": SaveTable,
    }  # fmt: skip
    if spec.kind == "sparse" and {"index", "value"} <= set(spec.dtype.names or ()):
        return SaveSparse.load(fields, "test")
    return kinds[spec.kind].load(fields, "test")


@dataclass
class MadeUpRun:
    """Blocks to write, by whom, and afterwards what should be found.

    Attributes:
        spec: of the frames.
        blocks: the rank that takes it, and the block; in the order in which they come. Where a
            frame comes again, what came last counts.
        nb_frames: how many frames were asked for; those in no block were not acquired.
        frames_per_block: what the nodes are told.
        background: of the frames of a block, if the sink is to save that too.
        maps: images that belong to sparse pixels, as tasks give them.
        flush_after: numbers of the blocks after which their node flushes.
    """

    spec: FrameSpec
    blocks: Sequence[tuple[int, Block]]
    nb_frames: int
    frames_per_block: int = 1
    background: Callable[[Block], Block] | None = None
    maps: Mapping[str, Array] = field(default_factory=dict)
    flush_after: frozenset[int] = frozenset()
    table: FrameTable = field(init=False)
    node_files: dict[int, list[str]] = field(init=False)
    problems: list[str] = field(init=False)

    def __repr__(self) -> str:
        blocks = ", ".join(
            f"{block.index}..{block.end - 1} to {rank}"
            f"{f' without {sorted(block.absences)}' if block.absences else ''}"
            for rank, block in self.blocks
        )
        return f"{self.nb_frames} frames of {self.spec}: {blocks}"

    def write(self, prefix: Path, **fields: object) -> str:
        """Write node files and master; returns its path.

        Args:
            prefix: what their paths begin with.
            fields: of the sink.
        """
        n = self.nb_frames
        fate = np.full(n, Fate.NOT_ACQUIRED, np.uint8)
        node, row = np.full(n, -1, np.int16), np.full(n, -1, np.int64)
        reasons = Reasons(n)
        sinks: dict[int, Hdf5Sink] = {}
        for number, (rank, block) in enumerate(self.blocks):
            if rank not in sinks:
                sinks[rank] = self._started(sink_for(self.spec, **fields), prefix, rank)
            part = slice(block.index, block.end)
            others = [] if self.background is None else [self.background(block)]
            first = sinks[rank].write(block, *others)
            row[part] = np.arange(first, first + block.count)
            node[part], fate[part] = rank, Fate.SAVED
            for offset, absence in block.absences.items():
                fate[block.index + offset] = absence.cause
                reasons.note(slice(block.index + offset, block.index + offset + 1), absence)
            if number in self.flush_after:
                sinks[rank].flush()
        for sink in sinks.values():
            sink.finish()
        self.node_files = {rank: sink.files for rank, sink in sinks.items()}
        self.table = FrameTable(fate, node, row, reasons)
        return self.write_master(prefix)

    def _started(self, sink: Hdf5Sink, prefix: Path, rank: int) -> Hdf5Sink:
        if self.background is None:
            sink.prepare(self.spec)
        else:
            assert isinstance(sink, SaveSparse)
            sink.prepare(self.spec, self.background(Block(self.spec, 0, 0, None)).spec)
        context = replace(self.context(prefix), maps=self.maps, shared={})
        sink.start(replace(context, rank=rank, node=f"node{rank}"))
        return sink

    def context(self, prefix: Path) -> RunContext:
        """What the nodes are told, and the master is written with."""
        n = self.nb_frames
        return context_of(prefix, self.spec, nb_frames=n, frames_per_block=self.frames_per_block)

    def write_master(self, prefix: Path) -> str:
        """Write it, perhaps again, by what `table` and `node_files` say; returns its path."""
        context = self.context(prefix)
        saved = Saved(entry_of(context), context, self.spec, self.table, self.node_files)
        self.problems = write_master(master_path(prefix), [saved], ENDING)
        return master_path(prefix)

    def expected(self) -> Array:
        """What a reader of the master should see; not of sparse frames."""
        fill = fill_value(self.spec.dtype)
        frames = np.empty((self.nb_frames, *self.spec.saved_shape), self.spec.dtype)
        frames[:] = fill
        for _, block in self.blocks:
            for frame in block.frames():
                frames[frame.index] = fill if frame.data is None else frame.data
        return frames

    def expected_rows(self) -> list[Array]:
        """The rows of each frame that a reader of a sparse master should see."""
        found: list[Array] = [np.empty(0, self.spec.dtype)] * self.nb_frames
        for _, block in self.blocks:
            for frame in block.frames():
                nothing = np.empty(0, self.spec.dtype)
                found[frame.index] = nothing if frame.data is None else frame.data
        return found

    def expected_records(self, name: str, unknown: float) -> Array:
        """What a reader of the master should see of a per-frame value of the detector."""
        values = np.full(self.nb_frames, unknown)
        for _, block in self.blocks:
            values[block.index : block.end] = block.columns.get(name, unknown)
        return values


LOST = Absence(Fate.DETECTOR_GAP, "made up", "lost on the way")


def numbers(spec: FrameSpec, index: int, count: int) -> Array:
    """Data in which every element tells which frame and place it is from; no fill values."""
    size = int(np.prod(spec.shape))
    values = (np.arange(count)[:, None] + index) * 7 + np.arange(size) % 5
    return (values % 100).astype(spec.dtype).reshape(count, *spec.shape)


def noise(spec: FrameSpec, count: int, seed: int) -> Array | Ragged:
    """Data of random bits, not-a-numbers and fill values among them; pixels lie in the image."""
    rng = np.random.default_rng(seed)
    if spec.kind == "sparse":
        counts = rng.integers(0, 6, count) * rng.integers(0, 2, count)
        names = spec.dtype.names or ()
        columns = {name: _bits(rng, int(counts.sum()), spec.dtype[name]) for name in names}
        if "index" in columns:
            columns["index"] = columns["index"] % np.uint32(np.prod(spec.shape))
        return Ragged.of(counts, columns)
    return _bits(rng, count * int(np.prod(spec.shape)), spec.dtype).reshape(count, *spec.shape)


def _bits(rng: np.random.Generator, count: int, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(bool)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)


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


def reasons_of(table: FrameTable) -> dict[int, Absence]:
    """Why lines of a table are absent, line by line."""
    return {
        line: said
        for first, last, said in table.reasons.ranges(table.fate)
        for line in range(first, last + 1)
    }
