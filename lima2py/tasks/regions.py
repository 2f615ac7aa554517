"""Where to look: rectangles, arcs and masks of the detector, as pixels of a product.

Rectangles must lie exactly on whole pixels of the product. Of arcs and masks those pixels of the
product belong to a region whose centre (arcs), or all of whose detector pixels (masks), do; so they
can be used on products that are binned, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from lima2py.acquisition import RoiField
from lima2py.errors import BadParameter
from lima2py.frame import FrameSpec
from lima2py.geometry import Roi
from lima2py.task import InputFile, local_box, place_of
from lima2py.tasks.images import read_mask
from lima2py.units import Model

_WIDEST = 2**16
"""Pixels of a line; the kernels count on it."""


def _outwards(radii: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= radii[0] < radii[1]:
        raise ValueError("should be [inner, outer] with 0 ≤ inner < outer")
    return radii


def _onwards(angles: tuple[float, float]) -> tuple[float, float]:
    if not 0 < angles[1] - angles[0] <= 360:
        raise ValueError("should be [first, last] with first < last and at most 360 between them")
    return angles


class Arc(Model):
    """A part of a ring; a whole ring without `angles`, a disk with an inner radius of 0."""

    centre: tuple[float, float]
    """`[x, y]` in detector pixels; the centre of pixel `(x, y)` is `[x + 0.5, y + 0.5]`."""
    radii: Annotated[tuple[float, float], AfterValidator(_outwards)]
    """`[inner, outer]` in detector pixels; the outer one is no longer inside."""
    angles: Annotated[tuple[float, float], AfterValidator(_onwards)] = (0.0, 360.0)
    """`[first, last]` in degrees, from the x axis towards the y axis, as in Lima: clockwise where
    y points down. The last one is no longer inside."""

    def contains(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether points, in detector pixels, lie inside."""
        x, y = x - self.centre[0], y - self.centre[1]
        (inner, outer), (first, last) = self.radii, self.angles
        distance = x * x + y * y
        inside: NDArray[np.bool_] = (distance >= inner * inner) & (distance < outer * outer)
        if last - first < 360:
            inside &= (np.degrees(np.arctan2(y, x)) - first) % 360 < last - first
        return inside


_ROI: TypeAdapter[tuple[int, int, int, int]] = TypeAdapter(RoiField)


def _region(value: object) -> object:
    """What a person wrote as a region; the complaint is about what was probably meant."""
    if isinstance(value, Mapping):
        try:
            return Arc.load(value, "an arc")
        except BadParameter as error:
            raise ValueError(f"cannot be: {error}") from None
    if isinstance(value, Arc):
        return value
    try:
        return _ROI.validate_python(value)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


Region = Annotated[tuple[int, int, int, int] | Arc, BeforeValidator(_region)]
"""A region as people write it: `[x, y, width, height]`, or `{centre, radii, angles}`."""
RegionOrFile = Annotated[
    InputFile | tuple[int, int, int, int] | Arc,
    BeforeValidator(lambda value: value if isinstance(value, str) else _region(value)),
]
"""A region, or the path of an image that says what is inside."""


def named(regions: dict[str, Any]) -> dict[str, Any]:
    """Refuse no region at all, and one without a name."""
    if not regions:
        raise ValueError("should name at least one, for instance {direct: [0, 0, 10, 10]}")
    if not all(name.strip() for name in regions):
        raise ValueError("every one needs a name")
    return regions


class Pieces(NamedTuple):
    """Regions as the kernels take them (`lima2py.kernels.regions`): rectangles of pixels.

    Attributes:
        starts: int64 `(regions + 1,)`: region r has the rows `starts[r] .. starts[r + 1] - 1`.
        pieces: int64 `(pieces, 4)`: top, bottom, left, right; bands lie below one another.
    """

    starts: NDArray[np.int64]
    pieces: NDArray[np.int64]

    @classmethod
    def of(cls, regions: Sequence[NDArray[np.bool_] | Roi], spec: FrameSpec) -> Pieces:
        """Regions of images; for every band of each region one.

        Args:
            regions: rectangles of pixels here; or images of what is inside, `(height, width)` or
                `(bands, height, width)`.
            spec: of the product.

        Raises:
            BadParameter: if images are too wide.
        """
        if spec.width > _WIDEST:
            raise BadParameter(
                f"from: images {spec.width} pixels wide come in, and {_WIDEST} is the most; crop"
                " them before"
            )
        rows = [np.empty((0, 4), np.int64)]
        for region in regions:
            for band in range(spec.bands):
                if isinstance(region, Roi):
                    x, y, width, height = region
                    own = np.array([[y, y + height, x, x + width]])
                else:
                    own = _runs(region if region.ndim == 2 else region[band])
                rows.append(own + np.array([1, 1, 0, 0]) * band * spec.height)
        starts = np.cumsum([*map(len, rows)], dtype=np.int64)  # the first one is empty
        return cls(starts, np.ascontiguousarray(np.concatenate(rows), np.int64))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many pixels each region has."""
        top, bottom, left, right = self.pieces.T
        before = np.cumsum([0, *((bottom - top) * (right - left))])
        sizes: NDArray[np.int64] = np.diff(before[self.starts])
        return sizes


def inside(region: tuple[int, int, int, int] | Arc, spec: FrameSpec, field_name: str) -> (
    NDArray[np.bool_] | Roi
):  # fmt: skip
    """A region of the detector in the pixels of a product, for `Pieces.of`.

    Raises:
        BadParameter: if it has no place there, or no pixels.
    """
    if not isinstance(region, Arc):
        return local_box(Roi(*region), spec, field_name)
    m = place_of(spec, field_name)
    rows, columns = np.ogrid[0.5 : spec.height, 0.5 : spec.width]
    found = region.contains(m.a * columns + m.b * rows + m.c, m.d * columns + m.e * rows + m.f)
    if not found.any():
        seen = m.covered(spec.box)
        raise BadParameter(
            f"{field_name}: there is no pixel whose centre lies in the arc; the part of the"
            f" detector seen here is {seen} ([x, y, width, height])"
        )
    return found


def looked_at(
    spec: FrameSpec, mask: str | None, box: tuple[int, int, int, int] | None = None
) -> Pieces:
    """All of an image, or what is in a box and not masked: one region for each band.

    Raises:
        BadParameter: beginning with `mask` or `box`.
    """
    roi = spec.box if box is None else local_box(Roi(*box), spec, "box")
    if mask is None:
        return Pieces.of([roi], spec)
    free = np.zeros(spec.shape, bool)
    free[:, *roi.slices] = ~np.broadcast_to(read_mask(mask, spec, "mask"), spec.shape)[
        :, *roi.slices
    ]
    pieces = Pieces.of([free], spec)
    if not pieces.sizes.all():
        raise BadParameter(f"mask: {mask} masks every pixel; where it is not 0 pixels are masked")
    return pieces


def labels(names: Iterable[str], spec: FrameSpec) -> tuple[str, ...]:
    """Names of rows: a row for each region, or with several bands for each band of each region."""
    if spec.bands == 1:
        return tuple(names)
    return tuple(f"{name}[{band}]" for name in names for band in range(spec.bands))


def _runs(image: NDArray[np.bool_]) -> NDArray[np.int64]:
    """What is inside as rectangles: the runs of every row, equal rows below one another as one."""
    changes = np.flatnonzero((image[1:] != image[:-1]).any(axis=1)) + 1
    tops = np.concatenate([[0], changes])
    bottoms = np.concatenate([changes, [len(image)]])
    steps = np.diff(np.pad(image[tops], ((0, 0), (1, 1))).astype(np.int8), axis=1)
    group, left = np.nonzero(steps == 1)
    _, right = np.nonzero(steps == -1)
    return np.stack([tops[group], bottoms[group], left, right], axis=1)
