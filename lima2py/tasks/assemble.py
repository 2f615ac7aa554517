"""Put the modules of a detector together into one image.

A module's *place* says how its image comes into the detector's: mirrored if need be, then turned
clockwise, then laid with its corner at `x, y`. From here on "detector pixels" are those of the
assembled image: regions and masks of later tasks are given in them.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from lima2py.documents import read_yaml
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.inputs import needs_images
from lima2py.task import InputFile, RunContext, Task
from lima2py.tasks.pixels import PixelValue, as_pixel
from lima2py.units import Model


class Place(Model):
    """Where a module lies in the detector: mirrored, then turned, then shifted."""

    x: Annotated[int, Field(ge=0)]
    """Left edge of the module in the assembled image, in pixels."""
    y: Annotated[int, Field(ge=0)]
    """Its top edge."""
    angle: Literal[0, 90, 180, 270] = 0
    """By how much it is turned clockwise, as it is seen with y pointing down; in degrees."""
    flip: Literal["x", "y"] | None = None
    """Mirror it before it is turned: `x` exchanges left and right, `y` top and bottom."""

    def box(self, image: tuple[int, int]) -> Roi:
        """What a module of `(height, width)` covers."""
        height, width = image if self.angle in (0, 180) else image[::-1]
        return Roi(self.x, self.y, width, height)

    def to_detector(self, image: tuple[int, int]) -> Affine:
        """From the pixels of a module of `(height, width)` to those of the detector."""
        box = self.box(image)
        turned = Affine.rotate(-self.angle % 360, (box.height, box.width))
        mirrored = Affine.flip(self.flip, image) if self.flip else Affine()
        return Affine.translation(self.x, self.y) @ turned @ mirrored


class ModulePixel(NamedTuple):
    """A pixel of a module: the module's number, from 0, and the pixel's `x, y` in its image."""

    module: int
    x: int
    y: int


class _Places(Model):
    """What stands in a file of places."""

    places: tuple[Place, ...]


class Assemble(Task):
    """Put modules together into one image of the detector.

    With one input, every band of it is a module. With several inputs (`from: [m0, m1]`) each is
    one, in the order of `from`; they may differ in shape, and if they have bands, so has the
    product. The frames of a module that is absent are absent. Modules must not overlap.

    The assembled image is the detector for all that follows: its `to_detector` is the identity,
    its shape that of the whole detector. The type of the pixels stays.
    """

    places: tuple[Place, ...] | None = None
    """For each module, in order: `{x, y, angle, flip}`. `x, y` is its top left corner in the
    assembled image. It is mirrored first (`flip: x` left and right, `flip: y` top and bottom; not
    at all if not given), then turned clockwise by `angle` (0, 90, 180, 270; 0 if not given)."""
    file: InputFile | None = None
    """Instead of `places`: a YAML file that holds them, under the key `places`."""
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """`[width, height]` of the assembled image; just large enough for all modules if not given."""
    value: PixelValue = 0
    """What pixels that no module covers are set to; the type of the pixels must be able to hold it.
    `fill` is what files show for "no value": the largest number of integers, NaN of floats."""

    _places: tuple[Place, ...] = PrivateAttr()
    _images: tuple[tuple[int, int], ...] = PrivateAttr()
    """`(height, width)` of every module, as it comes."""
    _filler: np.generic = PrivateAttr()
    _gaps: tuple[Roi, ...] = PrivateAttr()
    _inputs: tuple[FrameSpec, ...] = PrivateAttr()

    def prepare(self, *inputs: FrameSpec) -> FrameSpec:
        """Lay the modules out and see that they fit."""
        self._inputs = inputs
        self._images = _modules(inputs)
        self._places = self._read()
        if len(self._places) != len(self._images):
            many = len(self._images)
            raise BadParameter(
                f"{self._field}: {len(self._places)} are given and {many}"
                f" module{'s come' if many > 1 else ' comes'} in; each needs its own"
            )
        boxes = [place.box(image) for place, image in zip(self._places, self._images, strict=True)]
        width, height = self._size(boxes)
        covered = np.zeros((height, width), bool)
        for box in boxes:
            covered[box.slices] = True
        if np.count_nonzero(covered) != sum(box.width * box.height for box in boxes):
            raise BadParameter(f"{self._field}: {_overlapping(boxes)}")
        self._gaps = tuple(_rectangles(~covered))
        spec = inputs[0]
        self._filler = as_pixel(self.value, spec.dtype, "value")
        self._spec = spec.replace(
            shape=(1 if len(inputs) == 1 else spec.bands, height, width),
            to_detector=Affine(),
            detector_shape=(height, width),
        )
        return self._spec

    def start(self, run: RunContext) -> None:
        """Have ready what copies turned modules."""
        self.process(*(Block(s, 0, 0, np.empty((0, *s.shape), s.dtype)) for s in self._inputs))

    def process(self, *blocks: Block) -> Block:
        """The assembled images."""
        first = blocks[0]
        data = np.empty((first.count, *self._spec.shape), self._spec.dtype)
        for gap in self._gaps:
            data[:, :, *gap.slices] = self._filler
        for number, (place, image) in enumerate(zip(self._places, self._images, strict=True)):
            pixels = first.pixels if len(blocks) == 1 else blocks[number].pixels
            for band in range(self._spec.bands):
                of_module = number if len(blocks) == 1 else band
                _lay(pixels, of_module, place, data, band, place.box(image))
        return first.carry(self._spec, data)

    def module_pixel(self, x: int, y: int) -> ModulePixel | None:
        """Which pixel of which module a pixel of the detector is; None in a gap.

        To be called after `prepare`.

        Raises:
            ValueError: if the detector has no such pixel.
        """
        if not Roi(x, y, 1, 1).inside(self._spec.box):
            raise ValueError(
                f"pixel ({x}, {y}) is outside the detector, which has {self._spec.width} ×"
                f" {self._spec.height} pixels (width × height)"
            )
        for number, (place, image) in enumerate(zip(self._places, self._images, strict=True)):
            if Roi(x, y, 1, 1).inside(place.box(image)):
                found = place.to_detector(image).local(Roi(x, y, 1, 1))
                return ModulePixel(number, found.x, found.y)
        return None

    @property
    def _field(self) -> str:
        return "places" if self.places is not None else "file"

    def _read(self) -> tuple[Place, ...]:
        """The places, from wherever they stand."""
        if (self.places is None) == (self.file is None):
            raise BadParameter(
                "places: give either `places`, a list with {x: 0, y: 0} for each module, or `file`,"
                " a YAML file that holds it; "
                + ("neither is given" if self.places is None else "both are given")
            )
        if self.places is not None:
            return self.places
        assert self.file is not None  # noqa: S101 - for the type checker
        try:
            return _Places.load(read_yaml(Path(self.file), "file of places"), self.file).places
        except BadParameter as error:
            raise BadParameter(f"file: {error}") from None

    def _size(self, boxes: list[Roi]) -> tuple[int, int]:
        """`(width, height)` of the detector."""
        width = max(box.x + box.width for box in boxes)
        height = max(box.y + box.height for box in boxes)
        if self.shape is None:
            return width, height
        whole = Roi(0, 0, *self.shape)
        for number, box in enumerate(boxes):
            if not box.inside(whole):
                raise BadParameter(
                    f"shape: module {number} covers {box} ([x, y, width, height]), which reaches"
                    f" outside of {whole.width} × {whole.height} pixels (width × height);"
                    f" all modules need [{width}, {height}]"
                )
        return self.shape


def _modules(inputs: tuple[FrameSpec, ...]) -> tuple[tuple[int, int], ...]:
    """`(height, width)` of every module that comes in."""
    first = inputs[0]
    needs_images(*inputs)
    for number, spec in enumerate(inputs):
        if (spec.dtype, spec.bands) != (first.dtype, first.bands):
            raise BadParameter(
                f"from: input {number} has {spec.bands} bands of {spec.dtype} and input 0"
                f" {first.bands} of {first.dtype}; the modules of a detector have the same"
            )
    if len(inputs) == 1:
        return (first.image,) * first.bands
    return tuple(spec.image for spec in inputs)


def _overlapping(boxes: list[Roi]) -> str:
    """Which two of some boxes overlap."""
    first, second = next(
        (one, other)
        for one, other in combinations(range(len(boxes)), 2)
        if _overlap(boxes[one], boxes[other])
    )
    return (
        f"module {first}, on {boxes[first]} ([x, y, width, height]), and module {second}, on"
        f" {boxes[second]}, overlap; every pixel belongs to one module"
    )


def _overlap(one: Roi, other: Roi) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def _rectangles(where: NDArray[np.bool_]) -> list[Roi]:
    """The pixels of a mask as rectangles, few if it is made of few: equal rows go together."""
    found: list[Roi] = []
    changes = np.flatnonzero((where[1:] != where[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(where)]
    for top, bottom in pairwise(edges):
        padded = np.concatenate([[False], where[top], [False]])
        runs = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).tolist()
        found += [Roi(left, top, right - left, bottom - top) for left, right in runs]
    return found


def _lay(pixels: Array, of: int, place: Place, data: Array, to: int, box: Roi) -> None:
    """Copy one band of a module's images `(frames, bands, height, width)` to where it belongs."""
    bottom_first = (place.angle in (90, 180)) != (place.flip == "y")
    right_first = (place.angle in (180, 270)) != (place.flip == "x")
    if place.angle in (0, 180) and not right_first:
        there = data[:, to, *box.slices]
        there[...] = pixels[:, of, ::-1] if bottom_first else pixels[:, of]
        return
    from lima2py.kernels.turn import exchange, mirror

    plain = f"u{data.itemsize}"  # what the pixels mean does not matter
    images = np.ascontiguousarray(pixels).view(plain)
    images.flags.writeable = False  # one function is compiled, wherever pixels come from
    if place.angle in (0, 180):
        mirror(images, of, data.view(plain), to, box.x, box.y, bottom_first)
    else:
        exchange(images, of, data.view(plain), to, box.x, box.y, bottom_first, right_first)
