"""Change the shape of frames: crop, bin, flip, rotate, transpose.

All of them keep `to_detector` exact. Only bin computes. The others copy nothing: what they give is
a view of what they got, and need not be contiguous in memory.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import PrivateAttr

from lima2py.acquisition import BinningField, RoiField
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.inputs import needs_images, needs_numbers
from lima2py.task import RunContext, Task, local_box


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
    """Combine the pixels of rectangles: their sum, mean or maximum.

    Sums of integers get the narrowest type of the same kind (signed or not) that cannot overflow:
    `uint8` by `[2, 2]` gives `uint16`, `uint16` by `[2, 2]` gives `uint32`. With `overflow:
    saturate` they keep their type, and what is too large or too small for it becomes its largest or
    smallest number. Sums of floating point numbers keep their type.

    Means are float32 of pixels of at most 16 bits and of float32, float64 of wider ones. Maxima
    keep the type. A NaN among the pixels makes their sum, mean or maximum NaN.
    """

    by: BinningField
    """`[x, y]`: how many pixels of the input are combined, along x and along y."""
    how: Literal["sum", "mean", "max"] = "sum"
    """What becomes of them."""
    overflow: Literal["widen", "saturate"] = "widen"
    """For sums of integers: `widen` the type, or keep it and `saturate`."""

    _input: FrameSpec = PrivateAttr()
    _added: np.dtype[Any] | None = PrivateAttr()
    """The type that is added in; None if none is wide enough."""
    _fours: bool = PrivateAttr()
    """Whether four integers become one that is twice as wide: for that there is a quicker way."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Check that the bins fill the image and choose a type for what comes out."""
        needs_images(spec)
        x, y = self.by
        if spec.width % x or spec.height % y:
            raise BadParameter(f"by: {self._remainder(spec)}")
        if self.overflow == "saturate" and self.how != "sum":
            raise BadParameter(f"overflow: a {self.how} cannot overflow; only sums can")
        self._input = spec
        dtype = self._types(spec.dtype)
        self._fours = (
            self.how == "sum" and x == y == 2 and dtype.kind in "iu"
            and dtype.itemsize == 2 * spec.dtype.itemsize
        )  # fmt: skip
        shape = (spec.height // y, spec.width // x)
        self._spec = _reshaped(spec, shape, Affine.bin(x, y)).replace(dtype=dtype)
        return self._spec

    def start(self, run: RunContext) -> None:
        """Have ready what combines."""
        spec = self._input
        self.process(Block(spec, 0, 0, np.empty((0, *spec.shape), spec.dtype)))

    def process(self, block: Block) -> Block:
        """The binned images."""
        pixels, (x, y) = block.pixels, self.by
        if pixels.flags.c_contiguous:
            return block.carry(self._spec, self._combined(pixels, x, y))
        # Pixels are combined in the order they lie in memory, and the result is turned instead.
        turned = abs(pixels.strides[2]) < abs(pixels.strides[3])
        mirrored = tuple(slice(None, None, -1 if step < 0 else 1) for step in pixels.strides)
        pixels = pixels[mirrored]
        if turned:
            data = self._combined(np.ascontiguousarray(pixels.swapaxes(2, 3)), y, x)
            data = data.swapaxes(2, 3)
        else:
            data = self._combined(np.ascontiguousarray(pixels), x, y)
        return block.carry(self._spec, data[mirrored])

    def _types(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The type of what comes out; chooses the one that is added in."""
        needs_numbers(dtype)
        if self.how == "max":
            self._added = dtype
            return dtype
        if dtype.kind == "b":
            raise BadParameter("by: pixels of bool cannot be added; only how: max is possible")
        n = self.by[0] * self.by[1]
        if self.how == "sum":
            self._added = _sum_type(dtype, n)
            if self.overflow == "saturate":
                return dtype
            if self._added is None:
                raise BadParameter(
                    f"by: sums of {n} pixels of {dtype} may need more than 64 bits; bin once"
                    " instead of twice, or before what makes the pixels so wide, or set overflow:"
                    " saturate"
                )
            return self._added
        self._added = (_sum_type(dtype, n) if dtype.kind in "iu" else None) or np.dtype("f8")
        return np.dtype("f4" if dtype.itemsize <= 2 or dtype == np.float32 else "f8")

    def _combined(self, pixels: Array, x: int, y: int) -> Array:
        """Images, contiguous, whose pixels are combined."""
        from lima2py.kernels import bin as kernels

        frames, bands, height, width = pixels.shape
        data = np.empty((frames, bands, height // y, width // x), self._spec.dtype)
        rows, out = pixels.reshape(-1, width), data.reshape(-1, width // x)
        rows.flags.writeable = False  # one function is compiled, wherever pixels come from
        if self._fours:
            kernels.sums_of_four(rows, out)
        else:
            self._combine(rows, x, y, out)
        return data

    def _combine(self, rows: Array, x: int, y: int, out: Array) -> None:
        """Combine rows of pixels `(rows, width)` into `out`, `(rows / y, width / x)`."""
        from lima2py.kernels import bin as kernels

        dtype, width = self._spec.dtype, rows.shape[1]
        if self._added is None:
            limits = np.iinfo(dtype)
            ends = np.array([limits.min >> 32, limits.max >> 32], np.int64)
            values = np.array([limits.min, limits.max], dtype).view(np.int64)
            kernels.clipped_long_sums(
                rows.view(np.int64), x, y, np.empty((2, width), np.int64),
                np.empty((2, width // x), np.int64), -1 if limits.min else 2**32 - 1,
                np.concatenate([ends, values]), out.view(np.int64),
            )  # fmt: skip
            return
        line = np.empty(width, self._added)
        if self.how == "max":
            kernels.maxima(rows, x, y, line, out)
        elif self.how == "mean":
            kernels.means(rows, x, y, line, np.empty(width // x, self._added), out)
        elif dtype == self._added:
            kernels.sums(rows, x, y, line, out)
        else:
            low, high = (
                self._added.type(end) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max)
            )
            total = np.empty(width // x, self._added)
            kernels.clipped_sums(rows, x, y, line, total, low, high, out)

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
        needs_images(spec)
        self._spec = _reshaped(spec, spec.image, Affine.flip(self.axis, spec.image))
        return self._spec

    def process(self, block: Block) -> Block:
        """The mirrored images."""
        data = block.pixels
        return block.carry(self._spec, data[..., ::-1] if self.axis == "x" else data[..., ::-1, :])


class Transpose(Task):
    """Exchange x and y: mirror the image at its diagonal. A view, not a copy."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Width and height change places."""
        needs_images(spec)
        self._spec = _reshaped(spec, (spec.width, spec.height), Affine.transpose())
        return self._spec

    def process(self, block: Block) -> Block:
        """The mirrored images."""
        return block.carry(self._spec, block.pixels.swapaxes(2, 3))


class Rotate(Task):
    """Turn the image clockwise, as it is seen with y pointing down. A view, not a copy."""

    angle: Literal[90, 180, 270]
    """In degrees."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """A quarter turn exchanges width and height."""
        needs_images(spec)
        shape = spec.image if self.angle == 180 else (spec.width, spec.height)
        self._spec = _reshaped(spec, shape, Affine.rotate(self.angle, spec.image))
        return self._spec

    def process(self, block: Block) -> Block:
        """The turned images."""
        return block.carry(self._spec, np.rot90(block.pixels, -self.angle // 90, axes=(2, 3)))


def _reshaped(spec: FrameSpec, image: tuple[int, int], to_input: Affine) -> FrameSpec:
    """Images of another height and width, with the map from their pixels to those of the input."""
    to_detector = None if spec.to_detector is None else spec.to_detector @ to_input
    return spec.replace(shape=(spec.bands, *image), to_detector=to_detector)


def _sum_type(dtype: np.dtype[Any], n: int) -> np.dtype[Any] | None:
    """The narrowest type for sums of n pixels; None if none is wide enough."""
    if dtype.kind == "f" or n == 1:
        return dtype
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for size in (1, 2, 4, 8):
        wide = np.dtype(f"{dtype.kind}{size}")
        if np.iinfo(wide).min <= n * low and n * high <= np.iinfo(wide).max:
            return wide
    return None
