"""What the user says of an experiment: sample, instrument, people, and where the detector stands.

    title: insulin, second crystal
    sample: {name: insulin, temperature: {value: 100, units: K}}
    instrument: {name: ID30, source: {name: ESRF, current: {value: 198.4, units: mA}}}
    user: {name: Ada, affiliation: ESRF}
    geometry:
      distance: 180 mm
      beam_center: [1034.2, 1081.7]
      energy: 12.7 keV

A beamline says in its system file what is always so; what is said for a run goes over it, key by
key. All of it is saved with the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, JsonValue

from lima2py.documents import read_yaml
from lima2py.errors import BadParameter
from lima2py.units import ElectronVolts, Metres, Model

Vector = tuple[float, float, float]
Probe = Literal["x-ray", "electron", "neutron"]

HC = 1.239841984332e-6
"""Planck's constant times the speed of light, in eV m (CODATA 2018, exact)."""
REST_ENERGY: Mapping[Probe, float] = {"x-ray": 0.0, "electron": 510998.95, "neutron": 939565420.52}
"""Of one particle, in eV (CODATA 2018)."""
FAST: Vector = (-1.0, 0.0, 0.0)
SLOW: Vector = (0.0, -1.0, 0.0)
"""The axes of an image that is upright, seen from the sample."""
_FROM_PONI = (
    "distance", "beam_center", "fast_axis", "slow_axis", "pixel_size", "wavelength", "energy"
)  # fmt: skip


def _unit(vector: Vector) -> Vector:
    length = math.hypot(*vector)
    if not length:
        raise ValueError("should be a direction [x, y, z], not all of them 0")
    x, y, z = (value / length for value in vector)
    return x, y, z


def _short_wave(wavelength: float) -> float:
    if wavelength >= 1e-6:
        raise ValueError(
            f"{wavelength:g} m is no wavelength of x-rays, electrons or neutrons; a plain number"
            ' is in metres: write "0.976 angstrom"'
        )
    return wavelength


Direction = Annotated[Vector, AfterValidator(_unit)]
"""A direction in the laboratory; made one long."""
Length = Annotated[Metres, Field(gt=0)]


class Rotation(Model):
    """How the sample turns while frames are taken."""

    axis: Direction
    """`x, y, z` of the axis; angles grow right-handed about it."""
    start: float = 0.0
    """The angle at the begin of frame 0, in degrees."""
    step: float
    """Degrees from the begin of one frame to the begin of the next."""


class DetectorGeometry(Model):
    """Where the detector stands, and what hits it.

    Directions are given in the laboratory as NeXus has it (McStas): z along the beam, y up, x to
    the left as the beam sees it. Pixels are those of the whole detector, whatever is cropped,
    binned or turned: the corner of the first pixel is [0, 0], its centre [0.5, 0.5].
    """

    poni: str | None = None
    """A PONI file of pyFAI, which says distance, beam_center, axes, pixel_size and wavelength; what
    is said here besides counts instead of it. Mind its `orientation`: 3, or none, says that the
    first row of the image is at the bottom, 2 that it is at the top, seen from the sample."""
    distance: Length | None = None
    """From the sample to where the direct beam meets the plane of the detector."""
    beam_center: tuple[float, float] | None = None
    """`x, y` of where it meets that plane, in pixels; may lie outside the detector."""
    fast_axis: Direction | None = None
    """The direction in which x of the image grows; [-1, 0, 0] (to the right, seen from the sample)
    when not given."""
    slow_axis: Direction | None = None
    """The direction in which y of the image grows; [0, -1, 0] (down) when not given."""
    pixel_size: tuple[Length, Length] | None = None
    """`x, y` of a pixel; only needed when the detector does not say it."""
    probe: Probe = "x-ray"
    """What hits the detector."""
    wavelength: Annotated[Length, AfterValidator(_short_wave)] | None = None
    """Of the beam; or give the energy."""
    energy: Annotated[ElectronVolts, Field(gt=0)] | None = None
    """Of one photon, electron or neutron (its kinetic energy)."""
    rotation: Rotation | None = None
    """How the sample turns; a still or a powder when not given."""
    sensor_material: str | None = None
    """What absorbs the photons: `Si`, `CdTe`; DIALS needs it."""
    sensor_thickness: Length | None = None
    """Of that layer; DIALS needs it."""
    saturation_value: float | None = None
    """The largest value of a pixel that can be trusted."""

    def completed(self, where: str) -> Self:
        """With all that follows from what was said: of the PONI file, axes, wavelength.

        Raises:
            BadParameter: what is missing, or contradicts itself.
        """
        told = self.model_dump(mode="json", exclude_none=True)
        if "wavelength" in told and "energy" in told:
            raise BadParameter(f"{where}: wavelength and energy: give one of them")
        facts = read_poni(self.poni, f"{where}.poni") if self.poni is not None else {}
        facts |= told
        if "energy" in told:
            facts["wavelength"] = wavelength_of(facts.pop("energy"), self.probe)
        if ("distance" in facts) != ("beam_center" in facts):
            (missing,) = {"distance", "beam_center"} - facts.keys()
            raise BadParameter(
                f"{where}.{missing}: is missing; distance and beam_center belong together, or name"
                " a poni file"
            )
        if "distance" in facts:
            facts = {"fast_axis": FAST, "slow_axis": SLOW, **facts}
            fast, slow = facts["fast_axis"], facts["slow_axis"]
            if abs(sum(f * s for f, s in zip(fast, slow, strict=True))) > 1e-3:
                raise BadParameter(
                    f"{where}: fast_axis and slow_axis should be perpendicular to each other;"
                    f" given: {list(fast)} and {list(slow)}"
                )
            if abs(fast[0] * slow[1] - fast[1] * slow[0]) < 1e-6:
                raise BadParameter(
                    f"{where}: a detector with the axes {list(fast)} and {list(slow)} lies along"
                    " the beam, which never meets it; distance and beam_center cannot describe it"
                )
        return self.load(facts, where)

    def check(self, pixel_size: tuple[float, float] | None) -> None:
        """Refuse what contradicts what the detector says of itself.

        Args:
            pixel_size: `x, y` in metres; None if it does not say.

        Raises:
            BadParameter: if the size of a pixel is another one, or nobody says it.
        """
        if self.distance is not None and self.pixel_size is None and pixel_size is None:
            raise BadParameter(
                "metadata, geometry.pixel_size: is required, since the detector does not say how"
                " large its pixels are"
            )
        if self.pixel_size is None or pixel_size is None:
            return
        if not all(map(_alike, self.pixel_size, pixel_size)):
            told = f"the PONI file {self.poni}" if self.poni else "it"
            raise BadParameter(
                f"metadata, geometry.pixel_size: {told} says {_microns(self.pixel_size)}, and the"
                f" detector has {_microns(pixel_size)} (x × y): this geometry is of another"
                " detector"
            )


class Metadata(Model):
    """What the user says of an experiment.

    The trees (sample, instrument, user, notes) may hold anything: text, numbers, lists, further
    trees. A number with a unit is written `{value: 100, units: K}`.
    """

    title: str | None = None
    """Of the measurement; the name of the run when not given."""
    sample: dict[str, JsonValue] = Field(default_factory=dict)
    """NXsample: name, description, temperature, ..."""
    instrument: dict[str, JsonValue] = Field(default_factory=dict)
    """NXinstrument: name, and trees for source, beam, monochromator, attenuator, ..."""
    user: dict[str, JsonValue] = Field(default_factory=dict)
    """NXuser: name, affiliation, email, ..."""
    notes: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else shall stand in the files."""
    geometry: DetectorGeometry = Field(default_factory=DetectorGeometry)
    """Where the detector stands, and what hits it."""

    def plain(self) -> dict[str, Any]:
        """What was said, as JSON can say it; nothing of what was not."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)

    @classmethod
    def of_run(cls, always: Metadata, given: Mapping[str, Any]) -> Self:
        """What is so for a run: what was said for it over what is always so.

        Args:
            always: of the beamline.
            given: plain values of the run.

        Raises:
            BadParameter: naming every field that cannot be.
        """
        if not isinstance(given, Mapping):
            raise BadParameter(
                f"metadata: should be a mapping, like {{title: ...}}; given: {given!r}"
            )
        cls.load(given, "metadata")
        below = always.plain()
        if isinstance(geometry := given.get("geometry"), Mapping):
            # What the run says in another way must not meet what the beamline said.
            other = _FROM_PONI if "poni" in geometry else ("wavelength", "energy")
            if geometry.keys() & {"poni", "wavelength", "energy"}:
                for name in other:
                    below.get("geometry", {}).pop(name, None)
        told = cls.load(merged(below, given), "metadata")
        completed = told.geometry.completed("metadata, geometry")
        return told.model_copy(update={"geometry": completed})


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one: where both have a value, that of the one above."""
    found = dict(below)
    for name, value in above.items():
        under = found.get(name)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = merged(under, value)
        found[name] = value
    return found


def read_metadata(path: Path) -> dict[str, Any]:
    """What a YAML file says, as plain values; its relative paths begin at its folder.

    Raises:
        BadParameter: naming every field that is wrong, what was given and what is allowed.
    """
    values = anchored(read_yaml(path, "metadata file"), path.parent.absolute())
    Metadata.load(values, str(path))
    return values


def anchored(values: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The same, with the paths of files made absolute."""
    geometry = values.get("geometry")
    if isinstance(geometry, Mapping) and isinstance(poni := geometry.get("poni"), str):
        return {**values, "geometry": {**geometry, "poni": str(base / poni)}}
    return dict(values)


def wavelength_of(energy: float, probe: Probe) -> float:
    """The wavelength, in metres, of a particle of some kinetic energy, in eV."""
    return HC / math.sqrt(energy * (energy + 2 * REST_ENERGY[probe]))


def read_poni(path: str, where: str) -> dict[str, Any]:
    """The geometry in a PONI file, as pyFAI reads it.

    Returns:
        Fields of `DetectorGeometry`.

    Raises:
        BadParameter: if it cannot be read, or the beam does not meet the detector's plane.
    """
    try:
        from pyFAI.geometry import Geometry  # takes over a second
    except ImportError as error:
        raise BadParameter(
            f'{where}: reading a PONI file needs pyFAI: pip install "lima2py[azimuthal]" ({error})'
        ) from None
    try:
        geometry = Geometry.sload(path)
        # The centres of the first pixel, of its neighbour in the row, of that in the column.
        rows, columns = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        z, y, x = geometry.calc_pos_zyx(d1=rows, d2=columns, corners=False)
    except Exception as error:  # pyFAI raises whatever a damaged file makes it
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise BadParameter(
            f"{where}: {path} is no PONI file that pyFAI understands: {said}"
        ) from None
    # In pyFAI x grows to the right, seen from the sample; in NeXus to the left.
    first, right, below = np.array([-x, y, z]).T
    fast, slow = (right - first).tolist(), (below - first).tolist()
    width, height = math.hypot(*fast), math.hypot(*slow)
    determinant = fast[0] * slow[1] - fast[1] * slow[0]
    if abs(determinant) < 1e-6 * width * height:
        raise BadParameter(
            f"{where}: in {path} the detector lies along the beam, which never meets it"
        )
    # The point of the plane on the beam: first + u fast + v slow with x = y = 0.
    u = (first[1] * slow[0] - first[0] * slow[1]) / determinant
    v = (first[0] * fast[1] - first[1] * fast[0]) / determinant
    distance = float(first[2] + u * fast[2] + v * slow[2])
    if not distance > 0:
        raise BadParameter(
            f"{where}: in {path} the beam meets the plane of the detector {distance:g} m behind the"
            " sample, which should be more than 0"
        )
    found = {
        "distance": distance,
        "beam_center": (float(u) + 0.5, float(v) + 0.5),
        "fast_axis": _unit(fast),
        "slow_axis": _unit(slow),
        "pixel_size": (width, height),
    }
    return found | ({"wavelength": geometry.wavelength} if geometry.wavelength else {})


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0.01)


def _microns(size: tuple[float, float]) -> str:
    return " × ".join(f"{value * 1e6:.4g} um" for value in size)
