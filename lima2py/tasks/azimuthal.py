"""Integrate frames azimuthally: intensity against scattering angle, with pyFAI's geometry.

What pyFAI computes at prepare is which share of every pixel falls into which bin. The frames are
then integrated here, in one pass over memory together with what else is done to their pixels.

For every bin the *signal* is the sum of the pixels by their shares; the *normalization* that of
their weights (solid angle, polarization), also by their shares; the intensity is the one divided by
the other. So it is in pyFAI's `integrate1d_ng`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.onepass import Stripwise
from lima2py.task import InputFile, place_of
from lima2py.tasks.diffraction_geometry import (
    AzimuthRange,
    Binning,
    Diffraction,
    RadialRange,
    RadialUnit,
    ValidPixels,
    laid_table,
)
from lima2py.tasks.images import lay_under
from lima2py.tasks.kept import KeptArrays

TABLE = ("start", "bins", "shares", "weights", "totals", "radial")
LANES = 2
"""How many sums of each bin are kept side by side; see `kernels.azimuthal`."""

Bins = Annotated[int, Field(ge=1, le=2**24)]
Split = Literal["no", "bbox", "full"]


class _ByTable(ValidPixels, Stripwise):
    """What all have in common: pixels shared out among bins by a table."""

    function: ClassVar[str] = "lima2py.kernels.azimuthal:integrate"

    _kept_table: KeptArrays = PrivateAttr()
    _lanes: ClassVar[int] = LANES

    @property
    def _columns(self) -> int:
        """How many sums are kept of each bin; see `kernels.azimuthal`."""
        return 1

    @property
    def _table(self) -> Mapping[str, Array]:
        return self._kept_table.arrays

    @property
    def _nb_bins(self) -> int:
        return int(self._table["totals"].shape[1])

    @property
    def constants(self) -> tuple[Any, ...]:
        """The table, and which pixels have no valid value."""
        low, high = self._invalid
        table = [self._table[name] for name in ("start", "bins", "shares", "weights")]
        return (np.int64(self._input.height), *table, low, high)

    def buffers(self, count: int) -> tuple[Array, ...]:
        """The sums of every bin, and what is missing from it for want of valid pixels."""
        bins = self._nb_bins
        may_miss = self._input.dtype.kind == "f" or self.dummy is not None
        bands, side = self._input.bands, self._table["shares"].shape[1]
        return (
            np.zeros((count, bands, self._lanes, bins, self._columns, side)),
            np.zeros((count if may_miss else 0, bands, bins, 5)),
        )

    def _sums(self, buffers: tuple[Array, ...]) -> dict[str, NDArray[np.float64]]:
        """What was summed up, by name: arrays `(frames, bands, bins)`."""
        in_lanes, missing = buffers
        with np.errstate(over="ignore", invalid="ignore"):  # infinity speaks for itself
            apart = in_lanes.sum(axis=2)
            sums = apart[..., 0].copy()
            for offset in range(1, apart.shape[-1]):
                sums[:, :, offset:] += apart[:, :, :-offset, :, offset]
        totals = np.broadcast_to(self._table["totals"].T, (*sums.shape[:3], 5))
        if len(missing):
            totals = totals - missing
        empty = totals[..., 3] == 0
        normalization, count, squares = (
            np.where(empty, 0.0, totals[..., number]) for number in range(3)
        )
        signal = np.where(empty, 0.0, sums[..., 0])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no pixel: NaN
            intensity = signal / normalization
            made = {
                "intensity": intensity,
                "signal": signal,
                "normalization": normalization,
                "count": count,
            }
            if self._columns == 2:
                made["sigma"] = np.sqrt(sums[..., 1] + squares) / normalization
            elif self._columns == 3:
                deviations = sums[..., 1] - 2 * intensity * sums[..., 2]
                deviations += intensity**2 * totals[..., 4]
                made["sigma"] = np.sqrt(np.maximum(deviations, 0)) / normalization
        return made


class _Curve(_ByTable):
    """What the two with a curve as product have in common."""

    error_model: Literal["none", "poisson", "azimuthal"] = "none"
    """Where the column `sigma` comes from, the standard error of the intensity. `none`: there is no
    such column. `poisson`: the variance of a pixel is its value (1 at least). `azimuthal`: it is
    the squared distance of the pixel from the intensity of its bin, so that all that makes pixels
    of a ring differ counts, also where their values are no photon counts; it is good to about 1e-8
    of the intensity."""

    @property
    def _columns(self) -> int:
        return {"none": 1, "poisson": 2, "azimuthal": 3}[self.error_model]

    def _curve(self, radial: str) -> FrameSpec:
        names = [radial, "intensity", *(["sigma"] if self._columns > 1 else [])]
        dtype = np.dtype(
            [(name, np.float64) for name in (*names, "signal", "normalization", "count")]
        )
        rows = self._input.bands * self._nb_bins
        return FrameSpec("table", (rows,), dtype, span=self._input.span)

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The curve of every frame."""
        made = self._sums(buffers)
        shape = made["signal"].shape
        table = np.empty(shape, self._spec.dtype)
        for name in made:
            table[name] = made[name]
        table[table.dtype.names[0]] = self._table["radial"]
        return block.carry(self._spec, table.reshape(block.count, *self._spec.shape))


class AzimuthalIntegrate(Diffraction, _Curve):
    """Intensity against the scattering angle: a powder pattern of every frame, as pyFAI makes it.

    What comes out is a table with a row for every bin, of float64: the radius of its centre, in a
    column that is called by its unit (`q_nm^-1`); `intensity`, the mean of its pixels, corrected
    for solid angle and polarization, NaN if it has none; `sigma`, its standard error, if an error
    model was chosen; `signal` and `normalization`, whose quotient is the intensity (add these up to
    join frames); and `count`, the number of pixels in it, by their shares. With several bands the
    bins of the second one follow those of the first. Without `radial_range` the bins reach from the
    smallest to the largest radius of the whole detector, also where frames are cropped.

    Sums are made in float64. Pixels of 0 cost next to nothing. The results are those of pyFAI's
    `integrate1d_ng` with the same splitting, with two exceptions: a bin without pixels has 0 there,
    and NaN here; and with the error model `azimuthal` pyFAI adds up deviations from a mean that is
    not complete yet, which makes its `sigma` a few percent another one in bins of few pixels that
    are shared out.

    The first prepare with a geometry takes seconds for a large detector. What it computed is kept
    in the cache folder, about 24 bytes a pixel, and the next takes milliseconds.
    """

    bins: Bins = 1000
    """Number of bins along the radius."""
    unit: RadialUnit = "q_nm^-1"
    """What the radius is: the scattering vector q in 1/nm or 1/Å, the scattering angle 2θ in
    degrees or radians, or the distance from the beam centre in mm."""
    radial_range: RadialRange | None = None
    """`[from, to]` in this unit; pixels outside are left out. That of the whole detector if not
    given."""
    azimuth_range: AzimuthRange | None = None
    """`[from, to]` in degrees from -180 to 180, to integrate a cake only. The azimuth is pyFAI's
    chi: 0 along x, and growing towards y."""
    split: Split = "full"
    """How a pixel on the border of two bins is shared out. `full`: by its area in each, the
    smoothest curve; `bbox`: by that of its bounding box; `no`: it goes where its centre lies, the
    noise of neighbouring bins is independent, and it is the fastest."""

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Have the table of shares computed, unless it has been before."""
        self._look(spec)
        binning = Binning(
            (self.bins,), self.unit, self.split, self.radial_range, self.azimuth_range
        )
        self._kept_table = self._kept("table", TABLE, binning)
        return self._curve(self.unit)

    @property
    def _nb_bins(self) -> int:
        return self.bins


class AzimuthalIntegrateLut(_Curve):
    """Intensity in bins of any kind, by a table that says which share of a pixel falls into which.

    The table is a sparse matrix of bins × pixels in CSR form, as pyFAI's engines have it (`lut`):
    arrays `data` (the shares), `indices` (the pixels, counted row by row over the whole detector)
    and `indptr` (where the pixels of a bin begin). What comes out is a table as that of
    `azimuthal_integrate`, but all pixels weigh the same, and the first column is called `position`:
    what `bin_centers` holds, if the file has such an array, else the number of the bin.
    """

    lut: InputFile
    """`.npz`, or HDF5 (`path` or `path::/group`), with the arrays `data`, `indices`, `indptr`, and
    `bin_centers` if wanted."""

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Read the table and lay it under the pixels here."""
        place_of(spec, "lut")
        if spec.detector_shape is None:
            raise BadParameter("lut: the shape of the detector is not known")
        height, width = spec.detector_shape
        pixels = np.arange(height * width).reshape(height, width)
        under = lay_under(pixels, spec, "lut").ravel()
        arrays = self._read()
        shares, indices, indptr = (arrays[name].ravel() for name in ("data", "indices", "indptr"))
        nb_bins = len(indptr) - 1
        centres = arrays.get("bin_centers", np.arange(nb_bins))
        if (
            nb_bins < 1
            or len(shares) != len(indices)
            or (indptr[0], indptr[-1]) != (0, len(indices))
            or (np.diff(indptr.astype(np.int64)) < 0).any()
            or (len(indices) and not 0 <= indices.min() <= indices.max() < height * width)
            or centres.shape != (nb_bins,)
        ):
            raise BadParameter(
                f"lut: {self.lut} is no table for a detector of {height} × {width} pixels (height ×"
                " width): data and indices must be equally long, indptr rise from 0 to their"
                " length, indices be below the number of pixels, and bin_centers as many as bins"
            )
        order = np.argsort(indices, kind="stable")
        bins = np.repeat(np.arange(nb_bins), np.diff(indptr))[order]
        start = np.zeros(height * width + 1, np.int64)
        np.cumsum(np.bincount(indices, minlength=height * width), out=start[1:])
        weights = np.ones(height * width, np.float32)
        radial = centres.astype(np.float64)
        self._laid = laid_table(under, start, bins, shares[order], weights, radial, nb_bins)
        return self._curve("position")

    _laid: Mapping[str, Array] = PrivateAttr()

    @property
    def _table(self) -> Mapping[str, Array]:
        return self._laid

    def _read(self) -> dict[str, Array]:
        path, _, group = self.lut.partition("::")
        names = ("data", "indices", "indptr", "bin_centers")
        try:
            Path(path).open("rb").close()
            if h5py.is_hdf5(path):
                with h5py.File(path, "r") as opened:
                    held = opened[group] if group else opened
                    found = {name: np.asarray(held[name]) for name in names if name in held}
            else:
                with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as held:
                    found = {name: held[name] for name in names if name in held}
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            why = (isinstance(error, OSError) and error.strerror) or error
            raise BadParameter(f"lut: {self.lut} cannot be read: {why}") from error
        if missing := [name for name in names[:3] if name not in found]:
            raise BadParameter(
                f"lut: {self.lut} has no {', '.join(missing)}; it should hold the three arrays of a"
                " sparse matrix in CSR form: data, indices, indptr"
            )
        return found


class AzimuthalIntegrate2d(Diffraction, _ByTable):
    """Intensity against scattering angle and azimuth: an unrolled image ("cake") of every frame.

    What comes out are images of float32: along x the radius, from left to right, along y the
    azimuth, from -180 degrees (or the beginning of `azimuth_range`) at the top. Bins are equally
    wide. A bin without pixels is NaN. All else is as in `azimuthal_integrate`.
    """

    radial_range: RadialRange
    """`[from, to]` in the unit; pixels outside are left out."""
    bins: tuple[Bins, Bins] = (500, 360)
    """Number of bins `[along the radius, along the azimuth]`."""
    unit: RadialUnit = "q_nm^-1"
    """What the radius is, as in `azimuthal_integrate`."""
    azimuth_range: AzimuthRange = (-180.0, 180.0)
    """`[from, to]` in degrees from -180 to 180."""
    split: Split = "full"
    """How a pixel on the border of bins is shared out, as in `azimuthal_integrate`."""

    _lanes: ClassVar[int] = 1

    def product(self, spec: FrameSpec) -> FrameSpec:
        """Have the table of shares computed, unless it has been before."""
        self._look(spec)
        binning = Binning(self.bins, self.unit, self.split, self.radial_range, self.azimuth_range)
        self._kept_table = self._kept("table", TABLE, binning)
        shape = (spec.bands, self.bins[1], self.bins[0])
        return FrameSpec("dense", shape, np.dtype(np.float32), span=spec.span)

    @property
    def _nb_bins(self) -> int:
        return self.bins[0] * self.bins[1]

    def conclude(self, block: Block, buffers: tuple[Array, ...]) -> Block:
        """The unrolled image of every frame."""
        intensity = self._sums(buffers)["intensity"]
        images = intensity.reshape(*intensity.shape[:2], *self.bins).swapaxes(2, 3)
        with np.errstate(over="ignore"):  # what does not fit float32 is infinite there
            return block.carry(self._spec, images.astype(np.float32))
