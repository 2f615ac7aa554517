"""What the tasks of a graph cost on one core, against plain numpy, a kernel by hand, and memory.

Frames are those of an Eiger-1M with one photon in ten pixels, more of them than caches hold. Ours
go through a real graph (`Flow`), in blocks as a run has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

import lima2py
from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.plan import Plan
from lima2py.kernels.sparsify import SPARE, sparsify
from lima2py.ring import RingShape
from lima2py.task import RunContext

Array = NDArray[Any]
Action = Callable[[], object]
EIGER_1M = (1065, 1030)
POOL = 512 * 2**20
PHOTONS = 0.1
"""In a pixel, on the average."""
LOW = np.float32(0.5)
ROIS = {f"roi{n}": [20 + 100 * n, 50 + 90 * n, 40 + 5 * n, 30 + 5 * n] for n in range(10)}
"""Rectangles `[x, y, width, height]` down the diagonal."""
CLASSIC = """
graph: classic
tasks:
  dark:    {do: dark, from: detector, image: dark.npy}
  flat:    {do: flat, from: dark, image: flat.npy}
  masked:  {do: mask, from: flat, file: mask.npy}
  photons: {do: threshold, from: masked, low: 0.5}
  rois:    {do: roi_counters, from: photons, rois: ROIS}
  sparse:  {do: sparsify, from: photons}
""".replace("ROIS", str(ROIS).replace("'", ""))


class Pipeline:
    """A graph that frames go through, block by block.

    Args:
        graph: its text.
        frames: array `(frames, height, width)`.
        base: the folder that its paths begin at.
    """

    def __init__(self, graph: str, frames: Array, base: Path = Path()):
        _, height, width = frames.shape
        spec = FrameSpec.dense(height, width, frames.dtype)
        definition = parse_graph(graph, "benchmark", base)
        size = RingShape.plan(spec, 2**30).frames
        run = RunContext("0" * 32, "benchmark", nb_frames=0, frames_per_block=size)
        self._flow = Flow(Plan.make(definition, spec), run, 8)
        self._spec = spec
        self.parts = [
            frames[first : first + size, np.newaxis] for first in range(0, len(frames), size)
        ]
        self._next = 0

    def __call__(self) -> None:
        """All frames, once."""
        for part in self.parts:
            self._process(part)
        assert not self._flow.failures, self._flow.errors

    def _process(self, part: Array) -> None:
        self._flow.process(Block(self._spec, self._next, len(part), part))
        self._flow.collect(idle=False)
        self._next += len(part)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def times_as_fast(ours: Action, other: Action) -> Callable[[], float]:
    """How many times as fast as the other ours is, on one core, both warm; the other around ours.

    Returns:
        Measures once.
    """

    def measure() -> float:
        with one_core():
            before, own, after = seconds(other), seconds(ours), seconds(other)
        return (before + after) / 2 / own

    with one_core():
        other()
        ours()
    return measure


def seconds(action: Action) -> float:
    """The processor time that something takes: what else runs on the machine counts little."""
    began = time.process_time()
    action()
    return time.process_time() - began


def photon_frames(
    shape: tuple[int, int] = EIGER_1M, count: int = 0, photons: float = PHOTONS
) -> Array:
    """Frames of uint16 with photons at random places, no two alike; more than caches hold."""
    height, width = shape
    rng = np.random.default_rng(0)
    counts = rng.poisson(photons, height * width).astype(np.uint16)
    frames = np.empty((count or POOL // counts.nbytes, height, width), np.uint16)
    for number, frame in enumerate(frames):
        np.copyto(frame.reshape(-1), np.roll(counts, 7919 * number))
    return frames


def reading(frames: Array) -> Action:
    """Read all bytes of the frames, as fast as memory gives them."""
    words = frames.reshape(-1).view(np.uint64)
    some = words[:8]

    @njit(nogil=True, fastmath={"reassoc"})  # type: ignore[untyped-decorator]
    def read(words: Any) -> Any:
        total = np.uint64(0)
        for place in range(len(words)):
            total += words[place]
        return total

    read(some)
    return lambda: read(words)


# One task alone


def sparsify_against_reading() -> Callable[[], float]:
    """Sparsify against the read limit."""
    frames = photon_frames()
    graph = "graph: g\ntasks: {sparse: {do: sparsify, from: detector}}"
    return times_as_fast(Pipeline(graph, frames), reading(frames))


def bin_against_reading() -> Callable[[], float]:
    """2 × 2 bin against the read limit, of frames of an even number of rows."""
    frames = photon_frames((1064, 1030))
    graph = "graph: g\ntasks: {small: {do: bin, from: detector, by: [2, 2]}}"
    return times_as_fast(Pipeline(graph, frames), reading(frames))


# The classic chain


class Classic:
    """Dark, flat, mask, threshold, ten ROIs, sparsify: by a graph, by numpy, by hand.

    Args:
        folder: for the files that the graph reads.
        count: of frames; as many as fill `POOL` if 0.
    """

    def __init__(self, folder: Path, count: int = 0):
        rng = np.random.default_rng(1)
        self._folder = folder
        self.frames = photon_frames(count=count)
        shape = self.frames.shape[1:]
        flat = rng.uniform(0.9, 1.1, shape)
        self._dark = rng.random(shape, np.float32) * np.float32(0.1)
        self._factor = (flat.mean() / flat).astype(np.float32)
        self._mask = rng.random(shape) < 0.01
        for name, image in (("dark", self._dark), ("flat", flat), ("mask", self._mask)):
            np.save(folder / f"{name}.npy", image)
        self._boxes = np.array(list(ROIS.values()))
        self._graph = Pipeline(CLASSIC, self.frames, folder)
        self._size = len(self._graph.parts[0])
        room = self._size * (shape[0] * shape[1] + SPARE)
        self._room = np.empty(room, np.uint32), np.empty(room, np.float32)
        self._check()

    def against_numpy(self) -> Callable[[], float]:
        """The graph against plain numpy."""
        return times_as_fast(self._graph, self._by_numpy)

    def against_hand(self) -> Callable[[], float]:
        """The graph against one kernel, written by hand, that does all of it."""
        return times_as_fast(self._graph, self._by_hand)

    def _by_numpy(self) -> None:
        for frame in self.frames:
            self.numpy_steps(frame)

    def numpy_steps(self, frame: Array) -> tuple[list[list[float]], Array, Array]:
        """ROIs (min, max, avg, std, sum), index and value of one frame."""
        image = frame.astype(np.float32)
        image -= self._dark
        image *= self._factor
        image[self._mask] = 0
        image[image < LOW] = 0
        rois = []
        for x, y, width, height in self._boxes:
            part = image[y : y + height, x : x + width]
            total = part.sum(dtype=np.float64)
            rois.append([part.min(), part.max(), total / part.size, part.std(), total])
        flat = image.ravel()
        index = np.flatnonzero(flat)
        return rois, index.astype(np.uint32), flat[index]

    def _by_hand(self) -> None:
        for first in range(0, len(self.frames), self._size):
            self.hand_written(self.frames[first : first + self._size])

    def hand_written(self, frames: Array) -> tuple[Array, Array, Array, Array]:
        """ROIs, how many pixels are above in each frame, and their index and value, of a block."""
        count = len(frames)
        rois = np.empty((count, len(self._boxes), 5))
        rois[:] = np.inf, -np.inf, 0, 0, 0
        places, state = np.zeros((count, 2), np.int64), np.zeros(2, np.int64)
        _everything(
            frames, self._dark, self._factor, self._mask, LOW, self._boxes, rois,
            places, state, *self._room,
        )  # fmt: skip
        pixels = self._boxes[:, 2] * self._boxes[:, 3]
        rois[..., 2] = rois[..., 4] / pixels
        rois[..., 3] = np.sqrt(np.maximum(rois[..., 3] / pixels - rois[..., 2] ** 2, 0))
        index, value = (
            np.concatenate([room[begin:end] for begin, end in places]) for room in self._room
        )
        return rois, places[:, 1] - places[:, 0], index, value

    def _check(self) -> None:
        """All three give the same."""
        first = self._graph.parts[0]
        made = lima2py.apply(CLASSIC, first, base=self._folder)
        table, rows = made["rois"].pixels, made["sparse"].rows
        rois, above, index, value = self.hand_written(first[:, 0])
        np.testing.assert_array_equal(above, rows.counts)
        np.testing.assert_array_equal(index, rows.columns["index"])
        np.testing.assert_allclose(value, rows.columns["value"], rtol=1e-6)
        for place, frame in enumerate(first[:, 0]):
            plain, where, what = self.numpy_steps(frame)
            own = rows.rows(place)
            np.testing.assert_array_equal(where, own["index"])
            np.testing.assert_allclose(what, own["value"], rtol=1e-6)
            for given in (np.array(table[place].tolist()), rois[place]):
                np.testing.assert_allclose(given, plain, rtol=1e-4)


@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})  # type: ignore[untyped-decorator]
def _everything(
    frames: Any, dark: Any, factor: Any, mask: Any, low: Any, boxes: Any,
    rois: Any, places: Any, state: Any, index: Any, value: Any,
) -> None:  # fmt: skip
    """A block of frames in one pass over memory, line by line.

    For the last step nothing quicker than our own kernel is known.
    """
    count, height, width = frames.shape
    line = np.empty(width, np.float32)
    zero = np.float32(0)
    for y in range(height):
        dark_line, factor_line, mask_line = dark[y], factor[y], mask[y]
        for n in range(count):
            raw = frames[n, y]
            for x in range(width):
                pixel = (np.float32(raw[x]) - dark_line[x]) * factor_line[x]
                pixel = zero if mask_line[x] else pixel
                line[x] = pixel if pixel >= low else zero
            for roi in range(len(boxes)):
                box = boxes[roi]
                if box[1] <= y < box[1] + box[3]:
                    part = line[box[0] : box[0] + box[2]]
                    least = most = part[0]
                    total = squares = 0.0
                    for x in range(len(part)):
                        least = min(least, part[x])
                        most = max(most, part[x])
                        total += np.float64(part[x])
                        squares += np.float64(part[x]) * np.float64(part[x])
                    own = rois[n, roi]
                    own[0] = min(own[0], least)
                    own[1] = max(own[1], most)
                    own[3] += squares
                    own[4] += total
            sparsify(line.reshape(1, width), y, n, zero, height, places, state, index, value)
