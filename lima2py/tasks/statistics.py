"""Numbers about the whole frame: statistics, fill factor, centre of mass, histogram."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PrivateAttr

from lima2py.acquisition import RoiField
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine
from lima2py.onepass import Stripwise
from lima2py.task import InputFile, place_of
from lima2py.tasks.pixels import Number, limit_of
from lima2py.tasks.regions import Pieces, labels, looked_at
from lima2py.tasks.rois import COUNTERS, Counted, nothing_counted

STATISTICS = np.dtype([*COUNTERS.descr, ("nb_nan", np.int64), ("nb_zero", np.int64)])
FILL_FACTOR = np.dtype([("nb_above", np.int64), ("fraction", np.float64)])
CENTRE = np.dtype([("x", np.float64), ("y", np.float64), ("sum", np.float64)])


class _WholeFrame(Stripwise):
    """A task that looks at whole frames, or all of them that is not masked."""

    mask: InputFile | None = None
    """Pixels to leave out: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens,
    of the shape of the whole detector; where it is not 0 the pixel is masked."""

    _pieces: Pieces = PrivateAttr()

    def _rows(self, spec: FrameSpec, dtype: np.dtype[Any]) -> FrameSpec:
        """A table with a row for each band."""
        rows = labels(["frame"], spec)
        return FrameSpec("table", (len(rows),), dtype, labels=rows, span=spec.span)


class Statistics(_WholeFrame):
    """Minimum, maximum, mean, standard deviation and sum of all pixels; how many are NaN or 0.

    What comes out is a table with the row `frame`; with several bands a row for each, `frame[0]`,
    `frame[1]` ... Pixels that are NaN are left out and counted; if all are, the others are NaN and
    the sum 0. Integers are added exactly as long as the sum (of the absolute values) stays below
    2**53. `std` is that of the pixels as they are (divided by n, not n - 1).
    """

    function = "lima2py.kernels.regions:counters_and_zeros"

    def product(self, spec: FrameSpec) -> FrameSpec:
        """A row for each band."""
        self._pieces = looked_at(spec, self.mask)
        return self._rows(spec, STATISTICS)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where to look."""
        return tuple(self._pieces)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """What is known of no pixels at all."""
        bands = self._input.bands
        known = nothing_counted(count, bands, self._input.dtype)
        return (*known, np.zeros((count, bands), np.int64))

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The statistics of every frame."""
        keys, sums, zeros = buffers
        seen = Counted.of(keys, sums, self._input.dtype)
        table = np.empty(zeros.shape, STATISTICS)
        for name in COUNTERS.names or ():
            table[name] = getattr(seen, name)
        table["nb_nan"], table["nb_zero"] = seen.nans, zeros
        return block.carry(self._spec, table)


class FillFactor(_WholeFrame):
    """How many pixels are above a limit, and what fraction of all that is.

    What comes out is a table with the row `frame`; with several bands a row for each. NaN is never
    above, but is one of all.
    """

    above: Number = 0
    """Pixels count that hold more than this, exactly; it lies in the range of their type."""

    function = "lima2py.kernels.regions:above"

    _limit: np.generic = PrivateAttr()

    def product(self, spec: FrameSpec) -> FrameSpec:
        """A row for each band."""
        self._limit = limit_of(self.above, spec.dtype, "above")
        self._pieces = looked_at(spec, self.mask)
        return self._rows(spec, FILL_FACTOR)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where to look, and what to compare with."""
        return (*self._pieces, self._limit)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """No pixel is above."""
        return (np.zeros((count, self._input.bands), np.int64),)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """Number and fraction for every frame."""
        (counts,) = buffers
        table = np.empty(counts.shape, FILL_FACTOR)
        table["nb_above"], table["fraction"] = counts, counts / self._pieces.sizes
        return block.carry(self._spec, table)


class CentreOfMass(_WholeFrame):
    """Where the light is: the mean place of all pixels, weighted by what they hold, and their sum.

    What comes out is a table with the row `frame`; with several bands a row for each. `x` and `y`
    are in detector pixels, whatever was binned or turned before, and the centre of pixel (0, 0) is
    (0.5, 0.5). All is computed in float64. Where the sum is 0, or a pixel NaN, `x` and `y` are NaN.
    """

    above: Number | None = None
    """Only pixels count that hold more than this, each with all it holds. Without it all count,
    also negative ones."""
    box: RoiField | None = None
    """`[x, y, width, height]` in detector pixels: only pixels in it count."""

    function = "lima2py.kernels.regions:centre"

    _place: Affine = PrivateAttr()

    def product(self, spec: FrameSpec) -> FrameSpec:
        """A row for each band."""
        self._place = place_of(spec, "from")
        self._pieces = looked_at(spec, self.mask, self.box)
        return self._rows(spec, CENTRE)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where to look, and what to compare with."""
        return (*self._pieces, np.float64(-np.inf if self.above is None else self.above))

    def buffers(self, count: int) -> tuple[Array, ...]:
        """Sums of nothing."""
        return (np.zeros((count, self._input.bands, 3)),)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The centres of every frame."""
        total, x, y = np.moveaxis(buffers[0], -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN, as is said
            nothing = np.where(total == 0, np.nan, 0)
            x, y = x / total + nothing, y / total + nothing
        y -= np.arange(self._input.bands) * self._input.height
        table = np.empty(total.shape, CENTRE)
        table["x"], table["y"] = self._place(x, y)
        table["sum"] = total
        return block.carry(self._spec, table)


def _upwards(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[1] - limits[0] < math.inf:
        raise ValueError("should be [low, high] with low < high and high - low finite")
    return limits


class Histogram(_WholeFrame):
    """How many pixels hold what: counts in bins of equal width.

    What comes out is a vector of uint32, `bins` long; with several bands their histograms follow
    one another. A value between two bins belongs to the upper one; `high` itself belongs to the
    last bin, as in numpy. What lies outside of `range`, and NaN, is not counted. Pixels are
    compared as float64: those of 64 bits above 2**53 are rounded.
    """

    bins: Annotated[int, Field(ge=1, le=2**20)]
    """How many."""
    range: Annotated[tuple[float, float], AfterValidator(_upwards)]
    """`[low, high]`: where the first bin begins and the last one ends."""

    function = "lima2py.kernels.regions:histogram"

    _table: NDArray[np.uint32] = PrivateAttr()
    _edges: NDArray[np.float64] = PrivateAttr()

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Find the bin of every value, where there are few."""
        self._pieces = looked_at(spec, self.mask)
        self._edges = edges = np.linspace(*self.range, self.bins + 1)
        signed = np.int16 if spec.dtype.kind == "i" else np.uint16
        values = np.arange(2**16, dtype=np.uint16).view(signed).astype(np.float64)
        table = np.searchsorted(edges, values, side="right") - 1
        table[values == edges[-1]] = self.bins - 1
        table[(values < edges[0]) | (values > edges[-1])] = self.bins
        self._table = table.astype(np.uint32)
        length = spec.bands * self.bins
        return FrameSpec("vector", (length,), np.dtype(np.uint32), span=spec.span)

    @property
    def constants(self) -> tuple[Any, ...]:
        """Where to look, and the bins."""
        return (*self._pieces, self._table, self._edges)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """Nothing counted."""
        return (np.zeros((count, self._input.bands, 4, self.bins + 1), np.uint32),)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The histograms of every frame."""
        counts = buffers[0].sum(axis=2, dtype=np.uint32)[..., :-1]
        return block.carry(self._spec, counts.reshape(block.count, *self._spec.shape))
