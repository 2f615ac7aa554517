"""Change the shape of frames: crop, bin, flip, rotate.

All of them keep `to_detector` exact. Crop, flip and rotate copy nothing: what they give is a view
of what they got, and need not be contiguous in memory. Bin adds pixels up.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from lima2py.acquisition import BinningField, RoiField
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import Task, local_box


class Crop(Task):
    """Keep a rectangle of the detector. A view, not a copy."""

    box: RoiField
    """`[x, y, width, height]` in detector pixels, whatever was binned or turned before."""

    _local: Roi

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Find the box in the pixels here."""
        self._local = local = local_box(Roi(*self.box), spec, "box")
        self._spec = _reshaped(spec, (local.height, local.width), Affine.crop(local))
        return self._spec

    def process(self, block: Block) -> Block:
        """The pixels inside the box."""
        return block.carry(self._spec, block.pixels[:, :, *self._local.slices])


class Bin(Task):
    """Add up the pixels of rectangles.

    Sums of integers get the narrowest type of the same kind (signed or not) that cannot overflow:
    `uint8` by `[2, 2]` gives `uint16`, `uint16` by `[2, 2]` gives `uint32`. Floating point numbers
    keep their type.
    """

    by: BinningField
    """`[x, y]`: how many pixels of the input are added, along x and along y."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Check that the bins fill the image and choose a type for the sums."""
        _needs_images(spec, "by")
        x, y = self.by
        if spec.width % x or spec.height % y:
            raise BadParameter(f"by: {self._remainder(spec)}")
        dtype = _sum_type(spec.dtype, x * y)
        shape = (spec.height // y, spec.width // x)
        self._spec = _reshaped(spec, shape, Affine.bin(x, y)).replace(dtype=dtype)
        return self._spec

    def process(self, block: Block) -> Block:
        """The sums."""
        (x, y), dtype = self.by, self._spec.dtype
        with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN speak for themselves
            # Rows first: adding whole rows is quick, and leaves less to add along them.
            rows = _add_neighbours(block.pixels, 2, y, dtype)
            return block.carry(self._spec, _add_neighbours(rows, 3, x, dtype))

    def _remainder(self, spec: FrameSpec) -> str:
        """Why the bins do not fill the image, and the largest crop that they would."""
        x, y = self.by
        text = f"[{x}, {y}] does not divide {spec.width} × {spec.height} pixels (width × height):"
        text += ",".join(
            f" {length} = {length // n} × {n} + {length % n}"
            for length, n in ((spec.width, x), (spec.height, y))
            if length % n
        )
        width, height = spec.width // x * x, spec.height // y * y
        if not width or not height:
            return f"{text}; at most [{spec.width}, {spec.height}] is possible"
        box = Roi(0, 0, width, height)
        if spec.to_detector is not None:
            box = spec.to_detector.covered(box)
        return f"{text}; crop before it, for instance with box: {box}"


class Flip(Task):
    """Mirror the image. A view, not a copy."""

    axis: Literal["x", "y"]
    """`x` exchanges left and right, `y` top and bottom."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Only the map to the detector changes."""
        _needs_images(spec, "axis")
        self._spec = _reshaped(spec, spec.image, Affine.flip(self.axis, spec.image))
        return self._spec

    def process(self, block: Block) -> Block:
        """The mirrored images."""
        data = block.pixels
        return block.carry(self._spec, data[..., ::-1] if self.axis == "x" else data[..., ::-1, :])


class Rotate(Task):
    """Turn the image clockwise, as it is seen with y pointing down. A view, not a copy."""

    angle: Literal[90, 180, 270]
    """In degrees."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """A quarter turn exchanges width and height."""
        _needs_images(spec, "angle")
        shape = spec.image if self.angle == 180 else (spec.width, spec.height)
        self._spec = _reshaped(spec, shape, Affine.rotate(self.angle, spec.image))
        return self._spec

    def process(self, block: Block) -> Block:
        """The turned images."""
        return block.carry(self._spec, np.rot90(block.pixels, -self.angle // 90, axes=(2, 3)))


def _needs_images(spec: FrameSpec, field_name: str) -> None:
    if spec.kind != "dense":
        raise BadParameter(f"{field_name}: this is done to images, and a {spec.kind} comes in")


def _reshaped(spec: FrameSpec, image: tuple[int, int], to_input: Affine) -> FrameSpec:
    """Images of another height and width, with the map from their pixels to those of the input."""
    to_detector = None if spec.to_detector is None else spec.to_detector @ to_input
    return spec.replace(shape=(spec.bands, *image), to_detector=to_detector)


def _sum_type(dtype: np.dtype[Any], n: int) -> np.dtype[Any]:
    """The type for sums of n pixels."""
    if dtype.kind == "f" or n == 1:
        return dtype
    if dtype.kind not in "iu":
        raise BadParameter(f"by: pixels of {dtype} cannot be added")
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for size in (1, 2, 4, 8):
        wide = np.dtype(f"{dtype.kind}{size}")
        if np.iinfo(wide).min <= n * low and n * high <= np.iinfo(wide).max:
            return wide
    raise BadParameter(
        f"by: sums of {n} pixels of {dtype} may need more than 64 bits; bin once instead of twice,"
        " or before what makes the pixels so wide"
    )


def _add_neighbours(data: Array, axis: int, n: int, dtype: np.dtype[Any]) -> Array:
    """Sums of n neighbours each along an axis."""
    if n == 1:
        return data
    before = (slice(None),) * axis
    parts = [data[(*before, slice(start, None, n))] for start in range(n)]
    total: Array = np.add(parts[0], parts[1], dtype=dtype)
    for part in parts[2:]:
        np.add(total, part, out=total)
    return total
