"""Correct frames pixel by pixel: mask, dark, flat field, linear, threshold, cosmic rays.

All of them work on every band, and share one pass over memory with their neighbours. How numbers
become pixels is told in `lima2py.tasks.pixels`, how images lie under them in
`lima2py.tasks.images`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.onepass import Operation, Pixelwise
from lima2py.task import InputFile
from lima2py.tasks.images import by_pieces, lay_under, read_images, read_mask
from lima2py.tasks.pixels import (
    Arithmetic,
    ImageOrNumber,
    Number,
    PixelValue,
    ResultType,
    as_pixel,
    highest_up_to,
    lowest_from,
)


class Mask(Pixelwise):
    """Give the pixels of a mask a fixed value.

    The type of the pixels stays as it is. A pixel is masked if any of the detector pixels under it
    is, whatever was cropped, binned or turned before.
    """

    file: InputFile
    """The mask: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens. It has
    the shape of the whole detector; where it is not 0 the pixel is masked, as in NeXus. One for all
    bands, or `(bands, height, width)`."""
    value: PixelValue = 0
    """What masked pixels are set to; the type of the pixels must be able to hold it. `fill` is what
    files show for "no value": the largest number of integers, NaN of floats."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Read the mask and find the pixels that lie under it."""
        value = as_pixel(self.value, spec.dtype, "value")
        masked = read_mask(self.file, spec, "file")
        return Operation("value if masked else v", spec.dtype, {"masked": masked}, {"value": value})


class Dark(Pixelwise):
    """Subtract a dark image (background): `pixel - scale × dark`.

    Pixels of up to 16 bits and float32 give float32, wider ones float64. NaN in the dark image
    gives NaN. Negative results are kept, unless `dtype` cannot hold them.
    """

    image: ImageOrNumber
    """The dark image: a file as for a mask, or one number for all pixels. It cannot be laid under
    binned pixels: subtract it before the bin."""
    scale: Number = 1
    """What the dark image is multiplied with first: the ratio of the exposures, if they differ."""
    dtype: ResultType | None = None
    """The type of the result, if another is wanted. Integers are rounded, and clipped to what the
    type holds: `uint16` makes negative results 0; NaN becomes the largest number."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Read the dark image and find its pixels."""
        types = Arithmetic.of(spec.dtype, self.dtype)
        dark = _image_or_number(self.image, spec, "image", types, scale=float(self.scale))
        return types.operation("real(v) - dark", {"dark": dark})


class Flat(Pixelwise):
    """Divide by a flat field image: `pixel × mean / flat`.

    Pixels whose flat is not above 0, or not finite, cannot be corrected and become `value`.
    `mean / flat` is computed once, in float64. Pixels of up to 16 bits and float32 give float32,
    wider ones float64. NaN stays NaN.
    """

    image: InputFile
    """The flat field: a file as for a mask, dark already subtracted. It cannot be laid under binned
    pixels: divide before the bin."""
    normalise: bool = True
    """Whether `mean` is the mean of the flat field over all its usable pixels (of the whole
    detector, for each band by itself), so that the mean level of frames stays; else it is 1."""
    value: PixelValue = "fill"
    """What pixels without a usable flat are set to. `fill` is what files show for "no value": NaN
    of floats, the largest number of integers."""
    dtype: ResultType | None = None
    """The type of the result, if another is wanted. Integers are rounded, and clipped to what the
    type holds; NaN becomes the largest number."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Read the flat field, turn it into factors and find their pixels."""
        types = Arithmetic.of(spec.dtype, self.dtype)
        value = as_pixel(self.value, types.result, "value")
        flat = read_images(self.image, spec, "image")
        mean = self._mean(flat)

        def factors(rows: Array) -> Array:
            made = np.full_like(rows, np.nan)
            return np.divide(mean, rows, out=made, where=_usable(rows))

        factor = by_pieces(factors, lay_under(flat, spec, "image"), types.real)
        return types.operation(
            "real(v) * factor if factor == factor else value",
            {"factor": factor, "value": float(value)},
        )

    def _mean(self, flat: Array) -> Array | float:
        """The mean of all usable pixels, of each band by itself, or 1; broadcasts against flats."""
        usable = _usable(flat)
        if not usable.any(axis=(-2, -1)).all():
            raise BadParameter(
                f"image: {self.image} has no pixel above 0, or a band without one: it is no flat"
                " field"
            )
        if not self.normalise:
            return 1.0
        mean: Array = flat.mean(axis=(-2, -1), dtype=np.float64, keepdims=True, where=usable)
        return mean


def _usable(flat: Array) -> NDArray[np.bool_]:
    """Pixels that can be divided by."""
    return np.isfinite(flat) & (flat > 0)


class Linear(Pixelwise):
    """Convert pixels: `pixel × slope + offset`, for units or the gain of a CCD.

    Pixels of up to 16 bits and float32 give float32, wider ones float64. NaN in a pixel or in an
    image gives NaN.
    """

    slope: ImageOrNumber = 1.0
    """An image (a file as for a mask) or one number for all pixels. Images cannot be laid under
    binned pixels: convert before the bin."""
    offset: ImageOrNumber = 0.0
    """An image or one number, as for `slope`."""
    dtype: ResultType | None = None
    """The type of the result, if another is wanted. Integers are rounded, and clipped to what the
    type holds; NaN becomes the largest number."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Read the images and find their pixels."""
        types = Arithmetic.of(spec.dtype, self.dtype)
        numbers = {
            "slope": _image_or_number(self.slope, spec, "slope", types),
            "offset": _image_or_number(self.offset, spec, "offset", types),
        }
        return types.operation("real(v) * slope + offset", numbers)


class Threshold(Pixelwise):
    """Keep the pixels in a range and give all others a fixed value.

    The type of the pixels stays as it is. Limits are compared exactly, also where the type of the
    pixels cannot hold them. NaN is never in the range.
    """

    low: Number | None = None
    """Pixels below it are out of the range; without it there is no lower limit."""
    high: Number | None = None
    """Pixels above it are out of the range; without it there is no upper limit."""
    value: PixelValue = 0
    """What pixels out of the range are set to; the type of the pixels must be able to hold it.
    `fill` is what files show for "no value": the largest number of integers, NaN of floats."""
    binary: bool = False
    """Give 1 (uint8) for pixels in the range and 0 for others instead."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Find the first and the last pixel value in the range."""
        if self.low is None and self.high is None:
            raise BadParameter("low: without low and high every pixel is in the range; give one")
        if self.binary and self.value != 0:
            raise BadParameter("value: binary gives 1 and 0; leave out one of both")
        value = as_pixel(0 if self.binary else self.value, spec.dtype, "value")
        values = {"value": value}
        conditions = []
        if self.low is not None:
            values["low"] = lowest_from(self.low, spec.dtype)
            conditions.append("v >= low")
            if values["low"].item() < self.low:
                self._refuse_empty(spec)
        if self.high is not None:
            values["high"] = highest_up_to(self.high, spec.dtype)
            conditions.append("v <= high")
            if values["high"].item() > self.high:
                self._refuse_empty(spec)
        if len(conditions) == 2 and values["low"].item() > values["high"].item():
            self._refuse_empty(spec)
        kept = " and ".join(conditions)
        if self.binary:
            del values["value"]
            return Operation(f"uint8({kept})", np.dtype(np.uint8), {}, values)
        return Operation(f"v if {kept} else value", spec.dtype, {}, values)

    def _refuse_empty(self, spec: FrameSpec) -> None:
        limits = [
            f"{name} {limit}"
            for name, limit in (("from", self.low), ("to", self.high))
            if limit is not None
        ]
        raise BadParameter(
            f"{'low' if self.low is not None else 'high'}: no pixel of {spec.dtype} lies"
            f" {' '.join(limits)}"
        )


class Cosmic(Pixelwise):
    """Give pixels above a count a fixed value: the cosmic ray filter for single-photon frames.

    Where a pixel counts some photons at most, a cosmic ray shows as a far larger number. The type
    of the pixels stays as it is, and so does NaN.
    """

    max_count: Annotated[Number, Field(ge=0)]
    """The largest count that photons can give; pixels above it are set to `value`."""
    value: PixelValue = 0
    """What they are set to; the type of the pixels must be able to hold it. `fill` is what files
    show for "no value": the largest number of integers, NaN of floats."""

    def operation(self, spec: FrameSpec) -> Operation:
        """Find the last pixel value that stays."""
        values = {
            "value": as_pixel(self.value, spec.dtype, "value"),
            "most": highest_up_to(self.max_count, spec.dtype),
        }
        return Operation("value if v > most else v", spec.dtype, {}, values)


def _image_or_number(
    given: str | float, spec: FrameSpec, field_name: str, types: Arithmetic, scale: float = 1.0
) -> Array | float:
    """What stands in a field, scaled: the image under the pixels of a product, or the number."""
    if isinstance(given, str):
        image = lay_under(read_images(given, spec, field_name), spec, field_name)
        return by_pieces(lambda rows: rows * scale, image, types.real)
    return given * scale
