"""What a kill leaves: the files of nodes at work, copied, so that nobody holds a lock on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.storage.saving.sinks import Hdf5Sink
from tests.storage.made_up import context_of, numbers, sink_for

IMAGES = FrameSpec.dense(6, 8, np.uint16)
PIXELS = FrameSpec("sparse", (1, 6, 8), np.dtype([("index", "u4"), ("value", "u2")]))
TABLE = FrameSpec("table", (2,), np.dtype([("sum", "f8"), ("nb", "u4")]))


class AtWork:
    """Nodes that write.

    Args:
        folder: where they write, at the prefix `scan`.
        specs: of the frames of each sink, by name; they share their files.
        nb_frames: how many were asked for.
        fields: of the sinks.
    """

    def __init__(
        self, folder: Path, specs: Mapping[str, FrameSpec], nb_frames: int, **fields: object
    ):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._specs = specs
        self._fields = fields
        self._context = context_of(
            folder / "scan",
            next(iter(specs.values())),
            nb_frames=nb_frames,
            paths=dict.fromkeys(specs, str(folder / "scan")),
        )
        self._nodes: dict[int, dict[str, Hdf5Sink]] = {}

    def node(self, rank: int) -> dict[str, Hdf5Sink]:
        """The sinks of a node, by name; started if it is new."""
        if rank not in self._nodes:
            told = replace(self._context, rank=rank, node=f"node{rank}", shared={})
            sinks = {name: sink_for(spec, **self._fields) for name, spec in self._specs.items()}
            for name, sink in sinks.items():
                sink.prepare(self._specs[name])
                sink.start(replace(told, task=name))
            self._nodes[rank] = sinks
        return self._nodes[rank]

    def write(self, rank: int, index: int, count: int, **fields: object) -> None:
        """A node writes frames, and flushes."""
        for name, sink in self.node(rank).items():
            sink.write(block_of(self._specs[name], index, count, **fields))
        self.flush(rank)

    def flush(self, rank: int) -> None:
        """What a node has written is safe."""
        for sink in self.node(rank).values():
            sink.flush()

    def killed(self, folder: Path) -> Path:
        """What would lie there if all of them were killed now; returns the folder."""
        shutil.copytree(self.folder, folder)
        return folder

    def finish(self) -> None:
        """Let them come to their end."""
        for sinks in self._nodes.values():
            for sink in sinks.values():
                sink.finish()
        self._nodes.clear()


@contextmanager
def at_work(
    folder: Path,
    specs: Mapping[str, FrameSpec] | None = None,
    nb_frames: int = 30,
    **fields: object,
) -> Iterator[AtWork]:
    """Nodes that write, until the end of the block."""
    nodes = AtWork(folder, {"raw": IMAGES} if specs is None else specs, nb_frames, **fields)
    try:
        yield nodes
    finally:
        nodes.finish()


def block_of(spec: FrameSpec, index: int, count: int, **fields: object) -> Block:
    """Frames that tell which they are."""
    data = pixels(index, count) if spec.kind == "sparse" else numbers(spec, index, count)
    return Block(spec, index, count, data, **fields)  # type: ignore[arg-type]


def pixels(index: int, count: int) -> Ragged:
    """Sparse frames: frame n has n % 4 pixels, of value n."""
    frames = np.arange(index, index + count)
    counts = frames % 4
    places = np.concatenate([np.arange(0), *(np.arange(number) for number in counts)])
    columns = {"index": np.asarray(places, "u4"), "value": np.repeat(frames, counts).astype("u2")}
    return Ragged.of(counts, columns)


def due(spec: FrameSpec, frame: int) -> Array:
    """What a frame should be read as; of sparse ones the columns, one after the other."""
    if spec.kind != "sparse":
        found: Array = numbers(spec, frame, 1).reshape(spec.saved_shape)
        return found
    return np.concatenate([values.astype("u4") for values in pixels(frame, 1).columns.values()])
