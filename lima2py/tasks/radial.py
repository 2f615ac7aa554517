"""The smooth background of a diffraction image, and the pixels that stand out from it.

Background scatters alike all around the beam; Bragg peaks do not. So the background is what is left
of every ring when the pixels far from its mean are taken out, again and again (sigma clipping).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.inputs import needs_one_band
from lima2py.task import RunContext, Task
from lima2py.tasks.diffraction_geometry import (
    RADIAL_UNITS,
    AzimuthRange,
    Binning,
    Diffraction,
    RadialRange,
    RadialUnit,
    ValidPixels,
)
from lima2py.tasks.kept import KeptArrays


class RadialSigmaClip(Diffraction, ValidPixels, Task):
    """The background of every frame against the scattering angle, without Bragg peaks.

    The pixels of every bin are averaged; those further from the mean than `cutoff` standard
    deviations are taken out, and so on, until there are no more. In bins of many pixels the limit
    is that of Chauvenet's criterion, if it is wider: √(2 ln(n / √(2π))) standard deviations for n
    pixels. This is the algorithm of pyFAI's `sigma_clip_ng`, without splitting of pixels. (Where
    weights vary much within a bin, pyFAI's compiled engines have a rough `std`; this one is that of
    its engine in Python.)

    What comes out is a table with a row for every bin: the radius of its centre, in a column that
    is called by its unit (`q_nm^-1`); `avg`, the mean of the pixels that are left, corrected for
    solid angle and polarization; `std`, their standard deviation (not that of the mean), in which
    pixels count by the square of their weight; both float64, NaN where no pixel is left; and
    `count`, how many they are (uint32). One band only.
    """

    bins: Annotated[int, Field(ge=2, le=2**24)] = 800
    """Number of bins along the radius."""
    unit: RadialUnit = "q_nm^-1"
    """What the radius is, as in `azimuthal_integrate`."""
    radial_range: RadialRange | None = None
    """`[from, to]` in this unit; that of the whole detector if not given."""
    azimuth_range: AzimuthRange | None = None
    """`[from, to]` in degrees from -180 to 180, to use a cake only."""
    cutoff: Annotated[float, Field(gt=0)] = 5.0
    """Pixels further from the mean than so many standard deviations are taken out."""
    max_iter: Annotated[int, Field(ge=0)] = 5
    """How often at most."""
    error_model: Literal["azimuthal", "poisson"] = "azimuthal"
    """What the standard deviation is: `azimuthal`, that of the pixels of the bin as they are;
    `poisson`, what follows from counting statistics (the variance of a pixel is its value, 1 at
    least)."""

    _kept_rings: KeptArrays = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """Have the pixels sorted into bins, unless it has been done before."""
        self._look(spec)
        needs_one_band(spec)
        binning = Binning((self.bins,), self.unit, "no", self.radial_range, self.azimuth_range)
        self._kept_rings = self._kept("rings", ("pixels", "first", "weights", "radial"), binning)
        dtype = [(self.unit, "f8"), ("avg", "f8"), ("std", "f8"), ("count", "u4")]
        self._spec = FrameSpec("table", (self.bins,), np.dtype(dtype), span=spec.span)
        return self._spec

    @property
    def maps(self) -> Mapping[str, Array]:
        """The radii of the bins."""
        return {"radius": self._kept_rings.arrays["radial"]}

    def start(self, run: RunContext) -> None:
        """Compile, so that the first frame does not wait."""
        none: dict[str, Array] = {"pixels": np.empty(0, np.uint32), "first": np.zeros(2, np.int64),
                "weights": np.empty(0, np.float32)}  # fmt: skip
        self._clip(np.empty(0, self._seen.dtype), none)

    def process(self, block: Block) -> Block:
        """The background of every frame."""
        rings = self._kept_rings.arrays
        table = np.empty((block.count, self.bins), self._spec.dtype)
        table[self.unit] = rings["radial"]
        for frame in np.flatnonzero(block.present):
            image = np.ascontiguousarray(block.pixels[frame]).reshape(-1)
            row = table[frame]
            row["avg"], row["std"], row["count"] = self._clip(image, rings)
        return block.carry(self._spec, table)

    def _clip(self, image: Array, rings: Mapping[str, Array]) -> tuple[Array, Array, Array]:
        from lima2py.kernels.radial import sigma_clip

        image.flags.writeable = False  # one function is compiled, wherever pixels come from
        bins = len(rings["first"]) - 1
        made = np.empty(bins), np.empty(bins), np.empty(bins, np.uint32)
        sigma_clip(
            image, rings["pixels"], rings["first"], rings["weights"], *self._invalid, self.cutoff,
            self.max_iter, self.error_model == "poisson", *made,
        )  # fmt: skip
        return made


class SparsifyRadial(Diffraction, ValidPixels, Task):
    """Keep only the pixels that stand out from the background at their radius: Bragg peaks.

    It takes two inputs, `from: [image, background]`, where the background comes from
    `radial_sigma_clip` with the same geometry and corrections. A pixel is kept if, after
    corrections, it exceeds the background by more than `cutoff` times √(std² + noise²), and by more
    than `noise`. Background and `std` are interpolated linearly between the centres of the bins,
    as in pyFAI's `sparsify-Bragg`; next to a bin that has none, those of the nearer bin count.
    Pixels outside the bins are not kept.

    What comes out is sparse: for every pixel kept, in their order, `index`, its number in the image
    (row by row, uint32), `value`, as it came in, and `background`, the background under it in the
    same units (float32). One band only.
    """

    cutoff: Annotated[float, Field(ge=0)] = 5.0
    """By how many standard deviations a pixel must exceed the background."""
    noise: Annotated[float, Field(ge=0)] = 1.0
    """The noise of a pixel without any background, in its (corrected) units."""

    _kept_radius: KeptArrays = PrivateAttr()
    _room: dict[str, Array] = PrivateAttr()
    """What is found in a frame is written here first; made larger when it is full."""

    def prepare(self, image: FrameSpec, background: FrameSpec) -> FrameSpec:
        """Have the radius of every pixel computed, unless it has been before."""
        self._look(image)
        needs_one_band(image)
        names = background.dtype.names or ()
        if (
            background.kind != "table"
            or not names
            or names[0] not in RADIAL_UNITS
            or not {"avg", "std"} <= set(names)
            or background.shape[0] < 2
        ):
            raise BadParameter(
                f"from: the second input should be what radial_sigma_clip gives, and it is"
                f" {background}; write from: [image, background]"
            )
        binning = Binning((), names[0], "no", None, None)
        self._kept_radius = self._kept("radius", ("radius", "weights"), binning)
        dtype = [("index", np.uint32), ("value", image.dtype), ("background", np.float32)]
        self._spec = image.replace(kind="sparse", dtype=np.dtype(dtype))
        return self._spec

    @property
    def maps(self) -> Mapping[str, Array]:
        """As pyFAI has them: the radius of every pixel, NaN where masked, and its weight."""
        kept, shape = self._kept_radius.arrays, self._seen.image
        return {
            "mask": kept["radius"].reshape(shape),
            "normalization": kept["weights"].reshape(shape),
        }

    def start(self, run: RunContext) -> None:
        """Get room for what may be found; compile, so that the first frame does not wait."""
        self._make_room(1024)
        none: dict[str, Array] = {name: np.empty(0, np.float32) for name in ("radius", "weights")}
        self._find(np.empty(0, self._seen.dtype), none, [np.zeros(2)] * 3)

    def process(self, image: Block, background: Block) -> Block:
        """The pixels of every frame that stand out."""
        kept = self._kept_radius.arrays
        counts = np.zeros(image.count, np.int64)
        found: dict[str, list[Array]] = {name: [room[:0]] for name, room in self._room.items()}
        rows = background.pixels
        radial, *_ = background.spec.dtype.names or ()
        for frame in np.flatnonzero(image.present):
            pixels = np.ascontiguousarray(image.pixels[frame]).reshape(-1)
            levels = [np.ascontiguousarray(rows[frame][name]) for name in (radial, "avg", "std")]
            while (n := self._find(pixels, kept, levels)) > len(self._room["index"]):
                self._make_room(2 * n)
            counts[frame] = n
            for name, room in self._room.items():
                found[name].append(room[:n].copy())
        columns = {name: np.concatenate(parts) for name, parts in found.items()}
        return image.carry(self._spec, Ragged.of(counts, columns))

    def _make_room(self, rows: int) -> None:
        dtype = self._spec.dtype
        self._room = {name: np.empty(rows, dtype[name]) for name in dtype.names or ()}

    def _find(self, pixels: Array, kept: Mapping[str, Array], levels: list[Array]) -> int:
        from lima2py.kernels.radial import intense

        pixels.flags.writeable = False  # one function is compiled, wherever pixels come from
        return int(
            intense(
                pixels, kept["radius"], kept["weights"], *levels, self.cutoff, self.noise,
                *self._invalid, *self._room.values(),
            )
        )  # fmt: skip
