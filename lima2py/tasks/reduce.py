"""Reduce frames to a few numbers: counters of regions of interest."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, PrivateAttr

from lima2py.acquisition import RoiField
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.task import Task, local_box

COUNTERS = np.dtype([(name, np.float64) for name in ("min", "max", "avg", "std", "sum")])
"""One row of a table of counters."""

_TILE = 2**16
"""About how many pixels are looked at together, so that they stay in the processor's cache."""


def _named(rois: dict[str, RoiField]) -> dict[str, RoiField]:
    if not rois:
        raise ValueError("should name at least one ROI, for instance {direct: [0, 0, 10, 10]}")
    if not all(name.strip() for name in rois):
        raise ValueError("every ROI needs a name")
    return rois


class RoiCounters(Task):
    """Minimum, maximum, mean, standard deviation and sum of the pixels of rectangles.

    What comes out is a table with a row for every ROI, in the order given; with several bands a
    row for every band of every ROI, called `name[0]`, `name[1]` ... Integers are counted exactly as
    long as the sum stays below 2**53. `std` is that of the pixels as they are (divided by n, not
    n - 1). A NaN among the pixels makes the numbers of its row NaN, since leaving it out would
    change what is counted: mask such pixels before.
    """

    rois: Annotated[dict[str, RoiField], AfterValidator(_named)]
    """By name: `[x, y, width, height]` in detector pixels, whatever was binned or turned before."""

    _local: tuple[Roi, ...] = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Find every ROI in the pixels here."""
        self._local = tuple(
            local_box(Roi(*box), spec, f"rois.{name}") for name, box in self.rois.items()
        )
        labels = [
            name if spec.bands == 1 else f"{name}[{band}]"
            for name in self.rois
            for band in range(spec.bands)
        ]
        self._spec = FrameSpec("table", (len(labels),), COUNTERS, labels=tuple(labels))
        return self._spec

    def process(self, block: Block) -> Block:
        """The counters of every frame."""
        pixels = block.pixels
        table = np.empty((block.count, *self._spec.shape), COUNTERS)
        rows = table.reshape(block.count, len(self._local), -1)
        for number, box in enumerate(self._local):
            _count(pixels[:, :, *box.slices], rows[:, number])
        return block.carry(self._spec, table)


class _Part(NamedTuple):
    """What is known of `n` pixels of a ROI; arrays `(frames, bands)`.

    `squares` is the sum of squared distances from their own mean, which loses no digits however
    large the mean is.
    """

    n: int
    low: Array
    high: Array
    total: Array
    mean: Array
    squares: Array

    @classmethod
    def of(cls, pixels: Array) -> _Part:
        pixels = np.ascontiguousarray(pixels)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        values = pixels.astype(np.float64)
        n, total = pixels.shape[-1], values.sum(axis=-1)
        values -= (mean := total / n)[..., np.newaxis]
        squares = np.square(values, out=values).sum(axis=-1)
        return cls(n, pixels.min(axis=-1), pixels.max(axis=-1), total, mean, squares)


def _count(region: Array, rows: Array) -> None:
    """Count pixels `(frames, bands, height, width)` into rows `(frames, bands)`."""
    if abs(region.strides[2]) < abs(region.strides[3]):
        region = region.swapaxes(2, 3)  # their order does not matter: take them as they lie
    frames, bands, height, width = region.shape
    n = height * width
    step = max(1, _TILE // (bands * n))
    lines = max(1, _TILE // (bands * width))
    for first in range(0, frames, step):
        some, row = region[first : first + step], rows[first : first + step]
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN speak for themselves
            parts = [_Part.of(some[:, :, line : line + lines]) for line in range(0, height, lines)]
            row["min"] = reduce(np.minimum, (part.low for part in parts))
            row["max"] = reduce(np.maximum, (part.high for part in parts))
            row["sum"] = sum(part.total for part in parts)
            row["avg"] = row["sum"] / n
            squares = sum(part.squares + part.n * (part.mean - row["avg"]) ** 2 for part in parts)
            row["std"] = np.sqrt(squares / n)
