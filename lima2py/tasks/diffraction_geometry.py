"""Where the pixels of a detector lie in reciprocal space: read from a PONI file, by pyFAI.

pyFAI is asked at prepare only: for the radius of every pixel, for the share of every pixel in
every bin, and for what the solid angle and the polarization do to it. All is computed for the
whole detector and then laid under the pixels of the product, so that the bins are the same
whatever was cropped, flipped or turned before. It is kept on disk (`tasks.kept`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.geometry import Roi
from lima2py.inputs import needs_images, needs_numbers
from lima2py.task import InputFile, place_of
from lima2py.tasks.images import lay_under, read_images
from lima2py.tasks.kept import KeptArrays
from lima2py.units import Model

FORMAT = 4
"""Of what is kept; raised when it changes."""
CACHED = 2**14
"""The sums of so many bins, four of each, stay in the cache of a core."""

RadialUnit = Literal["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"]
RADIAL_UNITS = ("q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm")


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("should be [from, to], with the smaller one first")
    return interval


def _azimuths(interval: tuple[float, float]) -> tuple[float, float]:
    if not -180 <= interval[0] < interval[1] <= 180:
        raise ValueError("should be [from, to] in degrees, from -180 to 180, the smaller one first")
    return interval


RadialRange = Annotated[tuple[float, float], AfterValidator(_ascending)]
AzimuthRange = Annotated[tuple[float, float], AfterValidator(_azimuths)]


class Binning(NamedTuple):
    """How pixels are put into bins.

    Attributes:
        bins: along the radius; and along the azimuth, if there are two.
        unit: of the radius.
        split: how a pixel on the border of two bins is shared out: `no`, `bbox` or `full`.
        radial_range: in this unit; None for that of the whole detector.
        azimuth_range: in degrees; None for all.
    """

    bins: tuple[int, ...]
    unit: str
    split: str
    radial_range: tuple[float, float] | None
    azimuth_range: tuple[float, float] | None


class ValidPixels(Model):
    """Which values of pixels are none."""

    dummy: float | None = None
    """A pixel of this value has none (dead, overloaded, between modules) and is left out. Pixels
    that are NaN or infinite always are."""
    delta_dummy: Annotated[float, Field(ge=0)] = 0.0
    """How far from `dummy` such values may lie."""

    @property
    def _invalid(self) -> tuple[np.float64, np.float64]:
        """From where to where values are none; an empty range if there are no such values."""
        if self.dummy is None:
            return np.float64(np.inf), np.float64(-np.inf)
        return np.float64(self.dummy - self.delta_dummy), np.float64(self.dummy + self.delta_dummy)


class Diffraction(Model):
    """What a task knows of the geometry of the experiment."""

    poni: InputFile
    """The PONI file: distance, beam centre, tilts, wavelength and detector, as pyFAI's calibration
    writes it. It describes the whole detector, whatever is cropped, flipped or turned here. Gaps
    that pyFAI knows this detector to have are left out."""
    mask: InputFile | None = None
    """Pixels to leave out: `.npy`, HDF5 (`path` or `path::/dataset`) or any image that fabio opens,
    of the shape of the whole detector; where it is not 0 the pixel is masked."""
    solid_angle: bool = True
    """Whether pixels count by the solid angle they cover: far from the beam centre a pixel catches
    fewer of as many photons."""
    polarization: Annotated[float, Field(ge=-1, le=1)] | None = None
    """The degree of polarization of the beam to correct for: about 0.99 at a synchrotron (1 is
    horizontal, -1 vertical, 0 unpolarized). Left out, nothing is corrected."""

    _text: bytes = PrivateAttr()
    _masked: NDArray[np.bool_] | None = PrivateAttr()
    _seen: FrameSpec = PrivateAttr()

    def _look(self, spec: FrameSpec) -> None:
        """Read what is in the files, for frames of this spec; pyFAI is not needed yet."""
        needs_images(spec)
        place_of(spec, "poni")
        needs_numbers(spec.dtype)
        lay_under(np.empty((0, 0)), spec, "poni")  # refuses what is binned
        try:
            self._text = Path(self.poni).read_bytes()
        except OSError as error:
            raise BadParameter(
                f"poni: {self.poni} cannot be read: {error.strerror}; it should be a PONI file"
            ) from error
        self._masked = None
        if self.mask is not None:
            self._masked = read_images(self.mask, spec, "mask") != 0
            if self._masked.ndim != 2:
                raise BadParameter(f"mask: {self.mask} should be one image, the same for all bands")
        self._seen = spec

    def _kept(self, what: str, names: tuple[str, ...], binning: Binning) -> KeptArrays:
        """Arrays that `_made_{what}` computes, kept by all that decides about them."""
        spec = self._seen
        masked = self._masked
        decides = {
            "format": FORMAT,
            "pyFAI": _version(),
            "poni": hashlib.sha256(self._text).hexdigest(),
            "detector": _files_named_in(self._text),
            "mask": None if masked is None else hashlib.sha256(masked.tobytes()).hexdigest(),
            "solid_angle": self.solid_angle,
            "polarization": self.polarization,
            "to_detector": str(spec.to_detector),
            "image": spec.image,
            "detector_shape": spec.detector_shape,
            "binning": binning,
        }
        make = {
            "table": self._made_table, "rings": self._made_rings, "radius": self._made_radius
        }[what]  # fmt: skip
        return KeptArrays(what, decides, names, lambda: make(binning))

    def _made_table(self, binning: Binning) -> Mapping[str, Array]:
        """The bins of every pixel; see `kernels.azimuthal`.

        Returns:
            `start`, `bins`, `shares`, `weights` of the pixels here; `totals` float64
            `(5, bins)`: for every bin the sums of weights, shares and squared shares, the number of
            entries, and the sum of the squared weights by squared shares; `radial` float64: the
            centres of the bins.
        """
        geometry, shape = self._geometry()
        unit = _units().to_unit(binning.unit)
        radial_range, azimuth_range = binning.radial_range, binning.azimuth_range
        engine = geometry.setup_sparse_integrator(
            shape,
            binning.bins if len(binning.bins) == 2 else binning.bins[0],
            mask=self._all_masked(geometry),
            pos0_range=radial_range and tuple(end / unit.scale for end in radial_range),
            pos1_range=azimuth_range and tuple(np.deg2rad(azimuth_range).tolist()),
            unit=unit if len(binning.bins) == 1 else (unit, "chi_deg"),
            split=binning.split,
            algo="CSC",
            scale=False,
        )
        shares, bins, start = engine.lut
        if not len(bins):
            radius = geometry.array_from_unit(shape, "center", unit)
            raise BadParameter(
                f"poni: no pixel of the detector falls into any bin: they lie from"
                f" {radius.min():.4g} to {radius.max():.4g} {binning.unit}; check radial_range"
                f"{_given(radial_range)}, azimuth_range{_given(azimuth_range)} and mask"
            )
        centres = engine.bin_centers if len(binning.bins) == 1 else engine.bin_centers0
        return laid_table(
            self._under(shape), start, bins, shares, self._weights(geometry, shape),
            np.asarray(centres, np.float64) * unit.scale, int(np.prod(binning.bins)),
        )  # fmt: skip

    def _made_rings(self, binning: Binning) -> Mapping[str, Array]:
        """The pixels of every bin, without splitting; see `kernels.radial`.

        Returns:
            `pixels` uint32, bin after bin; `first` int64 `(bins + 1)`, where those of a bin begin;
            `weights` float32, of every one of `pixels`; `radial` float64, the centres of the bins.
        """
        table = self._made_table(binning)
        entries, bins = np.diff(table["start"]), table["bins"]  # of one bin each, without splitting
        pixels = np.repeat(np.arange(len(entries), dtype=np.uint32), entries)
        pixels = pixels[np.argsort(bins, kind="stable")]
        first = np.zeros(binning.bins[0] + 1, np.int64)
        np.cumsum(np.bincount(bins, minlength=binning.bins[0]), out=first[1:])
        weights = table["weights"][pixels]
        return {"pixels": pixels, "first": first, "weights": weights, "radial": table["radial"]}

    def _made_radius(self, binning: Binning) -> Mapping[str, Array]:
        """The radius of every pixel in the unit, NaN where masked, and its weight; float32."""
        geometry, shape = self._geometry()
        unit = _units().to_unit(binning.unit)
        radius = geometry.array_from_unit(shape, "center", unit).astype(np.float32)
        masked = self._all_masked(geometry)
        if masked is not None:
            radius[masked != 0] = np.nan
        under = self._under(shape)
        weights = self._weights(geometry, shape)
        return {"radius": radius.ravel()[under], "weights": weights[under]}

    def _geometry(self) -> tuple[Any, tuple[int, int]]:
        """What pyFAI makes of the file, and the shape of the detector."""
        try:
            from pyFAI.integrator.azimuthal import AzimuthalIntegrator  # takes over a second
        except ImportError as error:
            raise BadParameter(
                f"poni: pyFAI {_version()} cannot be used ({error}); install a newer one:"
                ' pip install --upgrade "lima2py[azimuthal]"'
            ) from error
        try:
            geometry = AzimuthalIntegrator.sload(self.poni)
        except Exception as error:  # pyFAI raises whatever a damaged file makes it
            raise BadParameter(
                f"poni: {self.poni} is no PONI file that pyFAI understands:"
                f" {type(error).__name__}: {error}"
            ) from error
        if geometry.detector.pixel1 is None or not geometry.dist:
            raise BadParameter(
                f"poni: {self.poni} says neither how far nor how large the pixels are: it is no"
                " PONI file"
            )
        own = geometry.detector.shape
        shape = self._seen.detector_shape or (own and (int(own[0]), int(own[1])))
        if shape is None:
            raise BadParameter(
                f"poni: the shape of the detector is not known, and {self.poni} does not say it"
            )
        if own is not None and tuple(own) != shape:
            raise BadParameter(
                f"poni: {self.poni} is for a detector of {own[0]} × {own[1]} pixels"
                f" (height × width) and this one has {shape[0]} × {shape[1]}; calibrate with frames"
                " of the whole detector, not cropped or binned"
            )
        seen = place_of(self._seen, "poni").covered(self._seen.box)
        if not seen.inside(Roi(0, 0, shape[1], shape[0])):
            raise BadParameter(
                f"poni: {self.poni} is for a detector of {shape[0]} × {shape[1]} pixels"
                f" (height × width), which does not have all those seen here, {seen}"
            )
        return geometry, shape

    def _all_masked(self, geometry: Any) -> NDArray[np.int8] | None:
        """What the file masks and what pyFAI knows to be masked, 1 where masked."""
        known = geometry.detector.mask
        if known is None:
            return None if self._masked is None else self._masked.astype(np.int8)
        masked = known != 0
        both: NDArray[np.int8] = (masked if self._masked is None else masked | self._masked).astype(
            np.int8
        )
        return both

    def _weights(self, geometry: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
        """By what every pixel of the detector is divided, flattened."""
        weights = np.ones(shape, np.float32)
        if self.solid_angle:
            weights *= geometry.solidAngleArray(shape, True)
        if self.polarization is not None:
            weights *= geometry.polarization(shape, self.polarization)
        return weights.ravel()

    def _under(self, shape: tuple[int, int]) -> NDArray[np.int64]:
        """The pixel of the detector under every pixel here, both flattened."""
        pixels = np.arange(shape[0] * shape[1]).reshape(shape)
        return lay_under(pixels, self._seen, "poni").ravel()


def laid_table(
    under: NDArray[np.int64],
    start: Array,
    bins: Array,
    shares: Array,
    weights: NDArray[np.float32],
    radial: NDArray[np.float64],
    nb_bins: int,
) -> dict[str, Array]:
    """The table of the pixels of a product, made from that of the detector.

    Args:
        under: the pixel of the detector under every pixel of the product.
        start: of the detector: where the entries of a pixel begin, one longer than there are.
        bins: of every entry.
        shares: of every entry.
        weights: of every pixel of the detector.
        radial: the centres of the bins.
        nb_bins: in all.
    """
    counts = np.diff(start)[under]
    begins = np.cumsum(counts) - counts
    if not counts.sum():
        raise BadParameter(
            "from: no pixel seen here falls into any bin; crop less, or check the ranges and the"
            " mask"
        )
    entries = np.arange(counts.sum()) + np.repeat(start[:-1][under] - begins, counts)
    pixels = np.repeat(np.arange(len(under)), counts)
    bins, shares = bins[entries].astype(np.int64), shares[entries].astype(np.float32)
    real = np.isfinite(shares) & (shares != 0)  # pyFAI's full splitting gives NaN for some slivers
    pixels, bins, shares = pixels[real], bins[real], shares[real]
    weights = weights[under]
    weighted = shares * weights.astype(np.float64)[pixels]
    totals = np.empty((5, nb_bins))
    totals[0] = np.bincount(bins, weighted, nb_bins)
    totals[1] = np.bincount(bins, shares, nb_bins)
    totals[2] = np.bincount(bins, np.square(shares, dtype=np.float64), nb_bins)
    totals[3] = np.bincount(bins, minlength=nb_bins)
    totals[4] = np.bincount(bins, weighted**2, nb_bins)
    return {
        **_quickest(pixels, bins, shares, len(under), nb_bins),
        "weights": weights,
        "totals": totals,
        "radial": radial,
    }


def _quickest(
    pixels: Array, bins: Array, shares: Array, nb_pixels: int, nb_bins: int
) -> dict[str, Array]:
    """`start`, `bins` and `shares` as `kernels.azimuthal` has them, for one bin or for four.

    Four at once cost as much as one, and as much memory as four.
    """
    from lima2py.kernels.azimuthal import FOUR  # takes half a second, for numba

    order = np.lexsort((bins, pixels))
    pixels, bins, shares = pixels[order], bins[order], shares[order]
    if nb_bins <= CACHED:
        fours = _entries(pixels, bins, shares, nb_pixels, FOUR)
        if 2 * len(fours["bins"]) <= len(bins):
            return fours
    return _entries(pixels, bins, shares, nb_pixels, 1)


def _entries(
    pixels: Array, bins: Array, shares: Array, nb_pixels: int, side: int
) -> dict[str, Array]:
    offset = (bins - bins[np.searchsorted(pixels, pixels)]) % side
    firsts = bins - offset
    begins = np.ones(len(pixels), np.bool_)  # also where a pixel falls into a bin once more
    begins[1:] = (np.diff(pixels) != 0) | (np.diff(firsts) != 0) | (np.diff(bins) == 0)
    laid = np.zeros((np.count_nonzero(begins), side), np.float32)
    laid[np.cumsum(begins) - 1, offset] = shares
    start = np.zeros(nb_pixels + 1, np.uint32)
    np.cumsum(np.bincount(pixels[begins], minlength=nb_pixels), out=start[1:])
    return {"start": start, "bins": firsts[begins].astype(np.uint32), "shares": laid}


def _given(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" (given: {list(interval)})"


def _units() -> Any:
    import pyFAI.units

    return pyFAI.units


def _version() -> str:
    try:
        return importlib.metadata.version("pyFAI")
    except importlib.metadata.PackageNotFoundError:
        raise BadParameter(
            'poni: reading a PONI file needs pyFAI: pip install "lima2py[azimuthal]"'
        ) from None


def _files_named_in(text: bytes) -> list[list[Any]]:
    """The files a PONI file refers to (a detector's measured distortion); when they changed."""
    found = re.search(rb"^Detector_config:\s*(\{.*\})\s*$", text, re.MULTILINE)
    try:
        config = json.loads(found[1]) if found else {}
    except ValueError:
        return []  # pyFAI will complain better
    named = [Path(value) for value in config.values() if isinstance(value, str) and value]
    return [
        [str(path), path.stat().st_mtime_ns, path.stat().st_size]
        for path in named
        if path.is_file()
    ]
