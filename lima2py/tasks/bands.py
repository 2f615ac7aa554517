"""Choose, stack and add bands: energy thresholds, colours, the images of several tasks.

The bands of a frame are images of the same pixels. Several inputs are frames of equal index: they
need images of one shape and type. If they lie on different parts of the detector (two crops, say),
what is made of them has no place on it, and no region can be drawn on it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.inputs import needs_images, needs_numbers
from lima2py.task import RunContext, Task
from lima2py.tasks.pixels import Number


def _each_once(bands: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(bands)) < len(bands):
        raise ValueError("should name no band twice")
    return bands


def _not_all_0(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not any(weights):
        raise ValueError("should hold a weight that is not 0")
    return weights


class SelectBands(Task):
    """Keep some of the bands, in any order. Evenly spaced ones are a view, not a copy."""

    bands: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)
    ]
    """Their numbers, from 0, in the order they shall have: `[0]`, `[2, 0]`."""

    _chosen: slice | list[int] = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Check that there are such bands."""
        needs_images(spec)
        if max(self.bands) >= spec.bands:
            raise BadParameter(
                f"bands: there is no band {max(self.bands)}; the frames have {spec.bands}"
                " (the first one is band 0)"
            )
        self._chosen = _as_slice(self.bands)
        self._spec = spec.replace(shape=(len(self.bands), *spec.image))
        return self._spec

    def process(self, block: Block) -> Block:
        """The bands chosen."""
        return block.carry(self._spec, block.pixels[:, self._chosen])


class StackBands(Task):
    """Give the images of several tasks as the bands of one frame, in the order of `from`.

    An input that has bands itself brings all of them. Shape and type of the images must be the
    same.
    """

    def prepare(self, first: FrameSpec, second: FrameSpec, *others: FrameSpec) -> FrameSpec:
        """Check that the images fit together."""
        inputs = (first, second, *others)
        spec = _together(inputs)
        self._spec = spec.replace(shape=(sum(item.bands for item in inputs), *spec.image))
        return self._spec

    def process(self, *blocks: Block) -> Block:
        """All bands."""
        bands = [block.pixels for block in blocks]
        data = np.concatenate(bands, axis=1, dtype=self._spec.dtype)  # keeps its byte order
        return blocks[0].carry(self._spec, data)


class Combine(Task):
    """Add bands, or the images of several tasks, each times a weight.

    `weights: [1, -1]` of a detector with two thresholds are the photons between them;
    `[0.299, 0.587, 0.114]` make red, green and blue grey.

    With one input its bands are added, and one band comes out. With several inputs (`from: [a, b]`)
    the inputs are, each band by itself.

    Integers with whole weights give the narrowest integers that hold every possible sum, signed if
    one can be negative: the difference of two `uint16` is `int32`. Other weights give float32 for
    pixels of at most 16 bits and float64 for wider ones. Floating point numbers keep their type; a
    NaN makes the sum NaN, whatever its weight.
    """

    weights: Annotated[tuple[Number, ...], Field(min_length=1), AfterValidator(_not_all_0)]
    """One for each band, or for each input if there are several."""
    dtype: Literal["float32", "float64"] | None = None
    """Compute in this type, and give it."""

    _weights: Array = PrivateAttr()
    _inputs: tuple[FrameSpec, ...] = PrivateAttr()

    def prepare(self, *inputs: FrameSpec) -> FrameSpec:
        """Count the weights and find a type for the sums."""
        spec = _together(inputs)
        needs_numbers(spec.dtype)
        one = len(inputs) == 1
        summands = spec.bands if one else len(inputs)
        if len(self.weights) != summands:
            what = f"{'band' if one else 'input'}{'s come' if summands > 1 else ' comes'}"
            raise BadParameter(
                f"weights: {len(self.weights)} are given and {summands} {what} in; each needs its"
                " own"
            )
        if not one and any(item.bands != spec.bands for item in inputs):
            counts = ", ".join(str(item.bands) for item in inputs)
            raise BadParameter(
                f"from: inputs have {counts} bands and are added band by band; use select_bands"
            )
        dtype = np.dtype(self.dtype) if self.dtype else _type_of_sum(spec.dtype, self.weights)
        self._weights = _held_by(dtype, self.weights)
        self._inputs = inputs
        self._spec = spec.replace(shape=(1 if one else spec.bands, *spec.image), dtype=dtype)
        return self._spec

    def start(self, run: RunContext) -> None:
        """Have ready what adds."""
        self.process(*(Block(s, 0, 0, np.empty((0, *s.shape), s.dtype)) for s in self._inputs))

    def process(self, *blocks: Block) -> Block:
        """The sums."""
        from lima2py.kernels.combine import weighted_sums

        spec, count = self._spec, blocks[0].count
        data = np.empty((count, spec.bands, spec.height * spec.width), spec.dtype)
        weighted_sums(tuple(_flat(block.pixels) for block in blocks), self._weights, data)
        return blocks[0].carry(spec, data.reshape(count, *spec.shape))


def _together(inputs: tuple[FrameSpec, ...]) -> FrameSpec:
    """What images of the same pixels have in common; no place if they lie at different ones."""
    needs_images(*inputs)
    first = inputs[0]
    for number, spec in enumerate(inputs):
        if (spec.image, spec.dtype) != (first.image, first.dtype):
            raise BadParameter(
                f"from: input {number} is {spec} and input 0 is {first}; images that are"
                " put together have the same height, width and type"
            )
    if any(
        (spec.to_detector, spec.detector_shape) != (first.to_detector, first.detector_shape)
        for spec in inputs
    ):
        return first.replace(to_detector=None, detector_shape=None)
    return first


def _as_slice(numbers: tuple[int, ...]) -> slice | list[int]:
    """The same choice as a slice, if numbers are evenly spaced."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    end = numbers[-1] + (1 if step > 0 else -1)
    if list(range(numbers[0], end, step)) != list(numbers):
        return list(numbers)
    return slice(numbers[0], end if end >= 0 else None, step)


def _type_of_sum(dtype: np.dtype[Any], weights: tuple[float, ...]) -> np.dtype[Any]:
    """The type that holds every weighted sum of such pixels."""
    if dtype.kind == "b":
        raise BadParameter("dtype: pixels of bool need one to be added in; set dtype: float32")
    if dtype.kind == "f":
        return dtype
    if any(weight != int(weight) for weight in weights):
        return np.dtype("f4" if dtype.itemsize <= 2 else "f8")
    ends = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    low, high = (
        sum(choice(int(w) * end for end in ends) for w in weights) for choice in (min, max)
    )
    for size in (1, 2, 4, 8):
        made = np.dtype(f"{'i' if low < 0 else 'u'}{size}")
        if np.iinfo(made).min <= low and high <= np.iinfo(made).max:
            return made
    raise BadParameter(
        f"weights: sums of {dtype} with these weights lie between {low} and {high}, which no"
        " integer type holds; set dtype: float64 to compute with 53 bits"
    )


def _held_by(dtype: np.dtype[Any], weights: tuple[float, ...]) -> Array:
    """Weights as numbers of a type."""
    with np.errstate(over="ignore", under="ignore"):
        held = np.array(weights).astype(dtype)
    for weight, number in zip(weights, held, strict=True):
        if not np.isfinite(number) or bool(number) != bool(weight):
            raise BadParameter(f"weights: {dtype} cannot hold {weight}; set dtype: float64")
    return held


def _flat(pixels: Array) -> Array:
    """Images as `(frames, bands, pixels)`, read-only: one function is compiled for all."""
    flat = np.ascontiguousarray(pixels).reshape(
        *pixels.shape[:2], pixels.shape[2] * pixels.shape[3]
    )
    flat = flat.view()
    flat.flags.writeable = False
    return flat
