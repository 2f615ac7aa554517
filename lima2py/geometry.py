"""Where pixels lie: the matrix between the pixels of any product and those of the detector.

Conventions that bind everywhere:

* arrays are `(height, width)`, geometry is `(x, y)`;
* pixel `(x, y)` covers the square from `(x, y)` to `(x + 1, y + 1)`: corners are integers, so
  binning is a pure scale, cropping a pure shift, flipping `x ↦ width - x`, and any chain of them
  is exact;
* `Affine` maps pixels *here* to pixels of the *detector* when it is called `to_detector`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Self

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


class Roi(NamedTuple):
    """A rectangle of whole pixels: its corner `x, y` and its `width, height`."""

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"[{self.x}, {self.y}, {self.width}, {self.height}]"

    def inside(self, outer: Roi) -> bool:
        """Whether no pixel of this rectangle lies outside the other one."""
        return (
            outer.x <= self.x
            and outer.y <= self.y
            and self.x + self.width <= outer.x + outer.width
            and self.y + self.height <= outer.y + outer.height
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rectangle as an index into `(height, width)`."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


class NotOnPixels(ValueError):
    """A rectangle not on whole pixels; `nearest` is the smallest one around it that is."""

    def __init__(self, nearest: Roi):
        super().__init__(f"the nearest that does is {nearest}")
        self.nearest = nearest


@dataclass(frozen=True, slots=True)
class Affine:
    """A plane map `(x, y) ↦ (a x + b y + c, d x + e y + f)`.

    `p @ q` maps by `q` first, then by `p`. Entries are kept as given: integers for every chain of
    crop, bin, flip, rotate and transpose, so comparison is exact.
    """

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def identity(cls) -> Self:
        """The map that moves nothing."""
        return cls()

    @classmethod
    def translation(cls, x: float, y: float) -> Self:
        """A pure shift, in pixels."""
        return cls(c=x, f=y)

    @classmethod
    def scale(cls, x: float, y: float) -> Self:
        """A pure scale about the corner of pixel (0, 0)."""
        return cls(a=x, e=y)

    @classmethod
    def crop(cls, box: Roi) -> Self:
        """From the pixels of a crop to those of the image it was cut from."""
        return cls.translation(box.x, box.y)

    @classmethod
    def bin(cls, x: int, y: int) -> Self:
        """From binned pixels to those of the image that was binned."""
        return cls.scale(x, y)

    @classmethod
    def flip(cls, axis: str, shape: tuple[int, int]) -> Self:
        """From a flipped image to the one it was made of; `shape` is `(height, width)`."""
        height, width = shape
        return cls(a=-1.0, c=width) if axis == "x" else cls(e=-1.0, f=height)

    @classmethod
    def rotate(cls, angle: int, shape: tuple[int, int]) -> Self:
        """From an image turned clockwise (y pointing down) to the one it was made of.

        Args:
            angle: 0, 90, 180 or 270 degrees.
            shape: `(height, width)` before the turn.
        """
        height, width = shape
        if angle == 90:
            return cls(a=0.0, b=1.0, c=0.0, d=-1.0, e=0.0, f=height)
        if angle == 180:
            return cls(a=-1.0, c=width, e=-1.0, f=height)
        if angle == 270:
            return cls(a=0.0, b=-1.0, c=width, d=1.0, e=0.0, f=0.0)
        return cls()

    @classmethod
    def transpose(cls) -> Self:
        """From an image with x and y exchanged to the one it was made of."""
        return cls(a=0.0, b=1.0, c=0.0, d=1.0, e=0.0, f=0.0)

    @classmethod
    def from_matrix(cls, matrix: Iterable[Iterable[float]]) -> Self:
        """From three rows of three; the last row must be `0 0 1`."""
        first, second, third = (tuple(float(value) for value in row) for row in matrix)
        if third != (0.0, 0.0, 1.0):
            raise ValueError(f"the last row of an affine matrix is 0 0 1, not {third}")
        return cls(*first, *second)

    @property
    def matrix(self) -> Matrix:
        """The 3×3 matrix, by rows."""
        return (
            (float(self.a), float(self.b), float(self.c)),
            (float(self.d), float(self.e), float(self.f)),
            (0.0, 0.0, 1.0),
        )

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        """Where the point `(x, y)` comes to lie."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def __matmul__(self, first: Affine) -> Affine:
        """The map that applies `first`, then this one."""
        return Affine(
            self.a * first.a + self.b * first.d,
            self.a * first.b + self.b * first.e,
            self.a * first.c + self.b * first.f + self.c,
            self.d * first.a + self.e * first.d,
            self.d * first.b + self.e * first.e,
            self.d * first.c + self.e * first.f + self.f,
        )

    @property
    def determinant(self) -> float:
        """Detector pixels per pixel here; negative when the image is mirrored."""
        return self.a * self.e - self.b * self.d

    def covered(self, box: Roi) -> Roi:
        """The rectangle of detector pixels under one of pixels here (axis-parallel maps only)."""
        x0, y0 = self(box.x, box.y)
        x1, y1 = self(box.x + box.width, box.y + box.height)
        x, y = min(x0, x1), min(y0, y1)
        return Roi(round(x), round(y), round(abs(x1 - x0)), round(abs(y1 - y0)))

    def local(self, box: Roi) -> Roi:
        """The rectangle of pixels here that lies exactly on a rectangle of detector pixels.

        Raises:
            NotOnPixels: if the rectangle's edges do not fall between pixels here; it carries the
                smallest rectangle of detector pixels around the given one whose edges do.
        """
        corners = [
            self.inverse(box.x, box.y),
            self.inverse(box.x + box.width, box.y + box.height),
        ]
        left, right = sorted(x for x, _ in corners)
        top, bottom = sorted(y for _, y in corners)
        if any(edge.denominator != 1 for edge in (left, right, top, bottom)):
            x, y = left.__floor__(), top.__floor__()
            wider = Roi(x, y, right.__ceil__() - x, bottom.__ceil__() - y)
            raise NotOnPixels(self.covered(wider))
        return Roi(int(left), int(top), int(right - left), int(bottom - top))

    def inverse(self, x: float, y: float) -> tuple[Fraction, Fraction]:
        """The exact point here that lies on the detector point `(x, y)`."""
        a, b, c, d, e, f = (
            Fraction(value) for value in (self.a, self.b, self.c, self.d, self.e, self.f)
        )
        determinant = a * e - b * d
        dx, dy = Fraction(x) - c, Fraction(y) - f
        return (e * dx - b * dy) / determinant, (a * dy - d * dx) / determinant

    def __str__(self) -> str:
        return "[" + ", ".join(
            "[" + ", ".join(f"{value:g}" for value in row) + "]" for row in self.matrix
        ) + "]"  # fmt: skip
