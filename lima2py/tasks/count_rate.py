"""Count rates: correct what a detector misses when photons come fast, and protect it from too many.

A count rate is the counts of a pixel divided by the exposure time of the frame.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.onepass import Operation, Pixelwise, Stripwise
from lima2py.task import InputFile, RunContext
from lima2py.tasks.images import read_mask
from lima2py.tasks.pixels import (
    Arithmetic,
    Number,
    PixelValue,
    ResultType,
    as_pixel,
    highest_up_to,
)
from lima2py.units import Seconds, as_time

PROTECTION = np.dtype(
    [("nb_above", np.int64), ("max", np.float64), ("x", np.int32), ("y", np.int32),
     ("band", np.int32)]
)  # fmt: skip
"""The row of `protect`."""

_TERMS = 16
"""Of the polynomial in `_factor_of_paralysable`, which is then right to 12 digits."""


class CountRateCorrection(Pixelwise):
    """Correct counts for the dead time of the pixels.

    With the dead time `tau`, the true rate `n` and the measured rate `m`, a `non-paralysable` pixel
    measures `m = n / (1 + n tau)`, a `paralysable` one `m = n exp(-n tau)` (G. F. Knoll, Radiation
    Detection and Measurement, chapter 4). Solved for `n` this is `m / (1 - m tau)`, and
    `-W(-m tau) / tau` with Lambert's W: of the two rates a paralysable pixel may have had, the
    lower one.

    Pixels at the highest rate that can be corrected, or above it, become `value`. Pixels below 0
    (gaps, bad pixels of some detectors) and NaN stay as they are. Computed in float64; pixels of up
    to 16 bits and float32 give float32, wider ones float64.
    """

    dead_time: Annotated[Seconds, Field(gt=0)]
    """`tau`, in seconds; text may carry a unit: `120 ns`."""
    model: Literal["non-paralysable", "paralysable"] = "non-paralysable"
    """What a photon does that comes in the dead time of another one: nothing, or prolong it."""
    max_rate: Annotated[float, Field(gt=0)] | None = None
    """The measured rate, in counts per second, from which on pixels are not corrected. Without it,
    the highest that the model knows: `1 / tau`, or `1 / (e tau)` if it is paralysable."""
    expo_time: Annotated[Seconds, Field(gt=0)] | None = None
    """The exposure time of a frame, in seconds; that of the acquisition when not given."""
    value: PixelValue = "fill"
    """What pixels at or above the highest rate are set to. `fill` is what files show for "no
    value": NaN of floats, the largest number of integers."""
    dtype: ResultType | None = None
    """The type of the result, if another is wanted. Integers are rounded, and clipped to what the
    type holds; NaN becomes the largest number."""

    _value: float = PrivateAttr()
    _max_rate: float = PrivateAttr()

    def operation(self, spec: FrameSpec) -> Operation:
        """Find the highest rate; `start` brings the exposure time."""
        highest = 1 / self.dead_time / (math.e if self.model == "paralysable" else 1)
        self._max_rate = self.max_rate or highest
        if self._max_rate > highest:
            raise BadParameter(
                f"max_rate: {self._max_rate:g} counts/s cannot be corrected: a {self.model} pixel"
                f" with a dead time of {as_time(self.dead_time)} measures {highest:g} at most"
            )
        result = Arithmetic.of(spec.dtype, self.dtype).result
        self._value = float(as_pixel(self.value, result, "value"))
        return self._at(math.nan)

    def start(self, run: RunContext) -> None:
        """Take the exposure time of the run."""
        expo_time = _exposure(run, self.expo_time, "dead_time")
        if self._input.dtype.kind in "iu" and self._max_rate * expo_time <= 1:
            raise BadParameter(
                f"dead_time: with one of {as_time(self.dead_time)} not even a single count in"
                f" {as_time(expo_time)} can be corrected; write it with its unit, for instance"
                " 120 ns"
            )
        self._operation = self._at(expo_time)

    def _at(self, expo_time: float) -> Operation:
        """What is done to a pixel that was exposed so long."""
        numbers = {
            "value": self._value,
            "limit": self._max_rate * expo_time,
            "zero": 0.0,
            "one": 1.0,
            "lost": self.dead_time / expo_time,
        }
        corrected = "real(v) / (one - real(v) * lost)"
        if self.model == "paralysable":
            factor = _factor_of_paralysable()
            corrected = f"real(v) * {_horner('place', len(factor))}"
            place = "(math.sqrt(abs(one - real(v) * lost * e)) * two - one)"
            corrected = corrected.replace("place", place)
            numbers |= {"e": math.e, "two": 2.0}
            numbers |= {f"factor{power}": value for power, value in enumerate(factor)}
        types = Arithmetic.of(self._input.dtype, self.dtype)._replace(real=np.dtype(np.float64))
        return types.operation(
            f"value if real(v) >= limit else {corrected} if real(v) > zero else real(v)", numbers
        )


class Protect(Stripwise):
    """Watch for pixels that get too much, and stop the acquisition if asked to.

    What comes out is a table with one row: `nb_above`, how many pixels are above the limit; `max`,
    the brightest pixel, and where it is, or the first of several: `x`, `y` in detector pixels (the
    corner of what a binned pixel covers) and its `band`. NaN and masked pixels are not looked at;
    where nothing else is left, `max` is NaN and `x`, `y`, `band` are -1.

    Each processing node sees its own frames only, and asks for the end at most once.
    """

    function: ClassVar[str] = "lima2py.kernels.protect:watch"

    limit: Annotated[Number, Field(ge=0)] | None = None
    """A pixel is above the limit if it has more counts than this. Give either this or `rate`."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """The same in counts per second: the limit is `rate × expo_time`."""
    expo_time: Annotated[Seconds, Field(gt=0)] | None = None
    """The exposure time of a frame for `rate`, in seconds; that of the acquisition when not
    given."""
    mask: InputFile | None = None
    """Pixels to leave out: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens,
    of the shape of the whole detector; where it is not 0 the pixel is masked."""
    action: Literal["report", "stop"] = "report"
    """`report` only gives the table; `stop` also stops the acquisition."""
    pixels: Annotated[int, Field(ge=0)] = 0
    """How many pixels of a frame may be above the limit before it counts as too bright."""
    frames: Annotated[int, Field(ge=1)] = 1
    """Stop after so many too bright frames, one after the other as they come to the node; absent
    frames are passed over."""

    _masked: NDArray[np.bool_] = PrivateAttr()
    """All bands below one another, as strips are counted."""
    _limit: np.generic | None = PrivateAttr(default=None)
    _bright: int = 0
    """How many of the latest frames were too bright."""
    _run: RunContext | None = PrivateAttr(default=None)
    _asked: bool = False

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Check the limit and read the mask."""
        if (self.limit is None) == (self.rate is None):
            raise BadParameter("limit: give either limit, in counts, or rate, in counts/s")
        if self.limit is not None:
            self._limit = self._reachable(self.limit, "limit")
        masked: Array = np.zeros(spec.image, bool)
        if self.mask is not None:
            masked = read_mask(self.mask, spec, "mask")
        self._masked = np.broadcast_to(masked, spec.shape).reshape(-1, spec.width).copy()
        return FrameSpec("table", (1,), PROTECTION, span=spec.span)

    def start(self, run: RunContext) -> None:
        """Find out what the rate is in counts."""
        self._run = run
        if self.rate is not None:
            expo_time = _exposure(run, self.expo_time, "rate")
            self._limit = self._reachable(self.rate * expo_time, "rate")

    @property
    def constants(self) -> tuple[Any, ...]:
        """The limit and the mask."""
        return self._limit, self._masked

    def buffers(self, count: int) -> tuple[Array, ...]:
        """For each frame: how many are above, where the brightest is, what it is."""
        return (
            np.zeros(count, np.int64),
            np.full((count, 2), -1, np.int64),
            np.zeros(count, self._input.dtype),
        )

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The table; and the end of the acquisition, if it is time."""
        above, place, most = buffers
        table = np.empty((block.count, 1), PROTECTION)
        seen = place[:, 0] >= 0
        row, column = place.T
        table["nb_above"][:, 0] = above
        table["max"][:, 0] = np.where(seen, most, np.nan)
        table["band"][:, 0] = np.where(seen, row // self._input.height, -1)
        x, y = _corner(self._input, column, row % self._input.height)
        table["x"][:, 0] = np.where(seen, x, -1)
        table["y"][:, 0] = np.where(seen, y, -1)
        if self.action == "stop" and not self._asked:
            self._judge(block, above, table)
        return block.carry(self._spec, table)

    def _reachable(self, limit: float, field_name: str) -> np.generic:
        """The limit as a pixel; refused where no pixel could ever be above it."""
        dtype = self._input.dtype
        if dtype.kind == "b":
            raise BadParameter(f"{field_name}: pixels of {dtype} have no counts to watch")
        if dtype.kind in "iu" and limit >= np.iinfo(dtype).max:
            raise BadParameter(
                f"{field_name}: no pixel of {dtype} can be above {limit:g} counts, it ends at"
                f" {np.iinfo(dtype).max}; set a lower one, or expose for a shorter time"
            )
        return highest_up_to(limit, dtype)

    def _judge(self, block: Block, above: NDArray[np.int64], table: Array) -> None:
        bright = above > self.pixels
        if not bright.any() and block.present.any():
            self._bright = 0
            return
        for offset in np.flatnonzero(block.present):
            self._bright = self._bright + 1 if bright[offset] else 0
            if self._bright == self.frames:
                self._ask(block.index + int(offset), table[offset, 0])
                return

    def _ask(self, frame: int, row: Any) -> None:
        """Ask for the end of the acquisition."""
        assert self._run is not None  # noqa: S101 - for the type checker; start was called
        self._asked = True
        limit = f"{self._limit:g} counts"
        if self.rate is not None:
            limit += f" ({self.rate:g} counts/s)"
        pixels = "1 pixel" if row["nb_above"] == 1 else f"{row['nb_above']} pixels"
        more = f", the last of {self.frames} such frames" if self.frames > 1 else ""
        self._run.stop(
            f'task "{self._run.task}": frame {frame} has {pixels} above {limit}, the brightest at'
            f" x {row['x']}, y {row['y']} with {row['max']:g}{more};"
            " take less beam, or raise the limit"
        )


def _exposure(run: RunContext, given: float | None, field_name: str) -> float:
    """The exposure time of a frame, in seconds."""
    expo_time = given or run.parameters.hardware.get("acquisition", {}).get("expo_time")
    if expo_time is None:
        raise BadParameter(
            f"{field_name}: the exposure time is not known here; give it as expo_time"
        )
    return float(expo_time)


def _corner(spec: FrameSpec, column: Array, row: Array) -> tuple[Array, Array]:
    """The detector pixel under pixels of a product, the one of smallest x and y."""
    place = spec.to_detector or Affine()
    pixel = place.covered(Roi(0, 0, 1, 1))
    return (
        pixel.x + round(place.a) * column + round(place.b) * row,
        pixel.y + round(place.d) * column + round(place.e) * row,
    )


def _horner(name: str, terms: int) -> str:
    """The polynomial with the coefficients factor0, factor1 ... as an expression."""
    text = f"factor{terms - 1}"
    for power in range(terms - 2, -1, -1):
        text = f"(factor{power} + {name} * {text})"
    return text


def _factor_of_paralysable() -> list[float]:
    """What a measured rate m is multiplied with, as a polynomial in `2 sqrt(1 - e m tau) - 1`.

    It is `exp(u)`, where `u exp(-u) = m tau`. In this variable, which goes from -1 at the highest
    rate to 1 at none, it is smooth, so few terms are enough.
    """

    def factor(root: Array) -> Array:
        # Halving finds d = 1 - u, from log(1 - d) + d = log(e m tau) = log(1 - root²).
        low, high = np.zeros_like(root), np.ones_like(root)
        for _ in range(60):
            middle = (low + high) / 2
            beyond = np.log1p(-middle) + middle < np.log1p(-(root**2))
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        found: Array = np.exp(1 - low)
        return found

    fitted = Chebyshev.interpolate(factor, _TERMS - 1, domain=[0, 1])
    coefficients = fitted.convert(kind=Polynomial, domain=[0, 1], window=[-1, 1]).coef
    return [float(value) for value in coefficients]
