"""Regions of interest: counters and profiles of rectangles and arcs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, PrivateAttr

from lima2py.acquisition import RoiField
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.onepass import Stripwise
from lima2py.task import local_box, place_of
from lima2py.tasks.regions import Arc, Pieces, Region, inside, labels, named

COUNTERS = np.dtype([(name, np.float64) for name in ("min", "max", "avg", "std", "sum")])
"""One row of a table of counters."""


class RoiCounters(Stripwise):
    """Minimum, maximum, mean, standard deviation and sum of the pixels of rectangles and arcs.

    What comes out is a table with a row for every ROI, in the order given; with several bands a
    row for every band of every ROI, called `name[0]`, `name[1]` ... All columns are float64.
    Integers are counted exactly as long as the sum (of the absolute values) stays below 2**53.
    `std` is that of the pixels as they are (divided by n, not n - 1). A NaN among the pixels makes
    the numbers of its row NaN, since leaving it out would change what is counted: mask such pixels
    before.
    """

    rois: Annotated[dict[str, Region], AfterValidator(named)]
    """By name: `[x, y, width, height]`, or an arc `{centre: [x, y], radii: [inner, outer], angles:
    [first, last]}`, in detector pixels, whatever was binned or turned before. Angles are in degrees
    from the x axis towards the y axis, as in Lima (clockwise where y points down); without
    them it is a whole ring. A pixel belongs to an arc if its centre does: inner and first are
    inside, outer and last are not."""

    function = "lima2py.kernels.regions:counters"

    _pieces: Pieces = PrivateAttr()

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Find every ROI in the pixels here."""
        regions = [inside(roi, spec, f"rois.{name}") for name, roi in self.rois.items()]
        self._pieces = Pieces.of(regions, spec)
        rows = labels(self.rois, spec)
        return FrameSpec("table", (len(rows),), COUNTERS, labels=rows, span=spec.span)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where the ROIs are."""
        return tuple(self._pieces)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """What is known of no pixels at all."""
        return nothing_counted(count, len(self._pieces.starts) - 1, self._input.dtype)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The counters of every frame."""
        seen = Counted.of(buffers[0], buffers[1], self._input.dtype)
        table = np.empty(seen.n.shape, COUNTERS)
        for name in COUNTERS.names or ():
            table[name] = np.where(seen.nans > 0, np.nan, getattr(seen, name))
        return block.carry(self._spec, table)

    @property
    def rectangles(self) -> dict[str, tuple[int, int, int, int]]:
        """The ROIs that are no arcs, in detector pixels."""
        return {name: roi for name, roi in self.rois.items() if not isinstance(roi, Arc)}


class RoiProfiles(Stripwise):
    """The pixels of a rectangle added up along one axis: a profile along the other one.

    What comes out is a vector of float64, exact for integers as long as sums stay below 2**53.
    Axes are those of the detector, also where frames were turned or mirrored before; of binned
    frames it has one value for each binned pixel. With several bands their profiles follow one
    another. A NaN makes the sum it belongs to NaN.
    """

    box: RoiField
    """`[x, y, width, height]` in detector pixels, whatever was binned or turned before."""
    axis: Literal["x", "y"]
    """Along what the profile goes: `x` adds up every column of the box and gives one number for
    each x, `y` adds up every row."""
    how: Literal["sum", "mean"] = "sum"
    """`sum`, or `mean` (of the pixels that were added)."""

    function = "lima2py.kernels.regions:profile"

    _pieces: Pieces = PrivateAttr()
    _columns: np.bool_ = PrivateAttr()
    _backwards: bool = PrivateAttr()
    _added: int = PrivateAttr()

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Find the box in the pixels here, and how its axes lie."""
        local = local_box(Roi(*self.box), spec, "box")
        self._pieces = Pieces.of([local], spec)
        place = place_of(spec, "box")
        along_x, along_y = (place.a, place.b) if self.axis == "x" else (place.d, place.e)
        self._columns = np.bool_(along_x != 0)
        self._backwards = along_x + along_y < 0
        length, self._added = (
            (local.width, local.height) if self._columns else (local.height, local.width)
        )
        return FrameSpec("vector", (spec.bands * length,), np.dtype(np.float64), span=spec.span)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where the box is, and which way to add."""
        return (*self._pieces, self._columns)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """A profile for each band."""
        bands = self._input.bands
        return (np.zeros((count, bands, self._spec.shape[0] // bands)),)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The profiles in the order of the detector's axis."""
        (profiles,) = buffers
        if self.how == "mean":
            profiles /= self._added
        data = profiles[..., ::-1] if self._backwards else profiles
        return block.carry(
            self._spec, np.ascontiguousarray(data.reshape(block.count, *self._spec.shape))
        )


class Counted(NamedTuple):
    """What is known of regions; arrays `(frames, regions)`, without the pixels that are NaN."""

    n: NDArray[np.float64]
    min: Array
    max: Array
    avg: NDArray[np.float64]
    std: NDArray[np.float64]
    sum: NDArray[np.float64]
    nans: NDArray[np.float64]

    @classmethod
    def of(cls, keys: Array, sums: NDArray[np.float64], dtype: np.dtype[Any]) -> Counted:
        """From what `lima2py.kernels.regions.counters` gives for pixels of a type."""
        n, total, spread, nans = np.moveaxis(sums, -1, 0)
        if dtype.kind == "f":
            bits = np.dtype(f"i{dtype.itemsize}")
            keys = keys.astype(bits)
            keys ^= (keys >> (8 * dtype.itemsize - 1)) & np.iinfo(bits).max
            keys = keys.view(dtype)
        with np.errstate(divide="ignore", invalid="ignore"):  # where there is no pixel: NaN
            mean, std = total / n, np.sqrt(spread / n)
        low, high = (np.where(n > 0, keys[..., end], np.nan) for end in (0, 1))
        return cls(n, low, high, mean, std, total, nans)


def nothing_counted(
    count: int, regions: int, dtype: np.dtype[Any]
) -> tuple[Array, NDArray[np.float64]]:
    """The buffers of `lima2py.kernels.regions.counters`, before anything was counted."""
    keys = np.empty((count, regions, 2), np.uint64 if dtype == np.uint64 else np.int64)
    keys[..., 0], keys[..., 1] = np.iinfo(keys.dtype).max, np.iinfo(keys.dtype).min
    return keys, np.zeros((count, regions, 4))
