"""What is known of the experiment, as NeXus has it; NXmx where the geometry is known.

    entry
      definition                      "NXmx", for images of one band whose wavelength and geometry
                                      are known
      title, end_time_estimated
      sample/                         NXsample: what the user says
        depends_on                    → transformations/omega, or "." for stills
        transformations/omega         degrees, one for each frame
      instrument/
        beam/incident_wavelength      angstrom
        source/                       also entry/source
        <detector>/
          distance, beam_center_x, beam_center_y, x_pixel_size, y_pixel_size
          count_time, frame_time, sensor_material, sensor_thickness, saturation_value
          depends_on                  → transformations/det_z
          transformations/det_z       to where the beam meets the plane of the detector
          module/                     NXdetector_module: all of this product
            module_offset             from there to the corner of the first pixel
            fast_pixel_direction, slow_pixel_direction
      user/                           NXuser
      notes/                          NXcollection
      data/data                       the frames, where NXmx readers look

Everything is said of the pixels of this product: the metadata speak of the whole detector, and the
product may be a cropped, binned or turned part of it. Directions are those of NeXus (McStas): z
along the beam, y up. DIALS takes the corner of the first pixel from what `fast_pixel_direction`
depends on, and knows nothing of its offset: hence `module_offset`.

Source: https://manual.nexusformat.org/classes/applications/NXmx.html, and the reader of DIALS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lima2py.frame import FrameSpec
from lima2py.geometry import Affine
from lima2py.metadata import FAST, SLOW, DetectorGeometry, Metadata, Rotation
from lima2py.storage.layout import iso_time, leaf, new_group, safe_text
from lima2py.task import RunContext

Vector = NDArray[np.float64]

_CLASSES = {
    "aperture": "NXaperture",
    "attenuator": "NXattenuator",
    "beam": "NXbeam",
    "collimator": "NXcollimator",
    "filter": "NXfilter",
    "mirror": "NXmirror",
    "monochromator": "NXmonochromator",
    "slit": "NXslit",
    "source": "NXsource",
}
"""Trees of the user that have a class of their own in NeXus."""
_NO_CLASSES: Mapping[str, str] = {}


def write_experiment(
    entry: h5py.Group, detector: h5py.Group, spec: FrameSpec, run: RunContext
) -> None:
    """Write what is known of the experiment, once the data are there.

    Args:
        entry: the NXentry, with its instrument.
        detector: the group of the detector below it, with its records and data.
        spec: of the frames.
        run: the run, as the sink is told.
    """
    told = Metadata.load(run.metadata, "metadata")
    if told.title is not None:
        del entry["title"]
        entry["title"] = safe_text(told.title)
    sample = new_group(entry, "sample", "NXsample")
    instrument = entry["instrument"]
    _describe_detector(detector, spec, run, told.geometry)
    _write_beam(instrument, told.geometry)
    _write_rotation(sample, told.geometry.rotation, len(detector["frames/index"]), spec.span)
    geometry, place, size = told.geometry, spec.to_detector, _pixel_size(run, told.geometry)
    if place is not None and size is not None:
        corner, fast, slow = _laid(geometry, place, size)
        _put(detector, "x_pixel_size", math.hypot(*fast), "m")
        _put(detector, "y_pixel_size", math.hypot(*slow), "m")
        if geometry.distance is not None and geometry.beam_center is not None:
            _put(detector, "distance", geometry.distance, "m")
            for axis, centre in zip("xy", place.inverse(*geometry.beam_center), strict=True):
                _put(detector, f"beam_center_{axis}", float(centre), "pixel")
            _place(detector, spec, geometry.distance, corner, fast, slow)
            if spec.kind == "dense" and spec.bands == 1 and geometry.wavelength is not None:
                _follow_nxmx(entry, detector, spec, run)
    _write_tree(sample, told.sample)
    _write_tree(instrument, told.instrument, _CLASSES)
    if "source" in instrument:
        entry["source"] = instrument["source"]
    for name, tree, nx_class in (
        ("user", told.user, "NXuser"),
        ("notes", told.notes, "NXcollection"),
    ):
        if tree:
            _write_tree(new_group(entry, name, nx_class), tree)


def _describe_detector(
    detector: h5py.Group, spec: FrameSpec, run: RunContext, geometry: DetectorGeometry
) -> None:
    """What holds wherever the detector stands."""
    info = run.detector.get("info", {})
    for name, key in (("description", "model"), ("serial_number", "serial")):
        if info.get(key):
            detector[name] = safe_text(str(info[key]))
    count_time, frame_time = _times(spec, run)
    if frame_time:
        _put(detector, "count_time", count_time, "s")
        _put(detector, "frame_time", frame_time, "s")
    if geometry.sensor_material is not None:
        detector["sensor_material"] = safe_text(geometry.sensor_material)
    if geometry.sensor_thickness is not None:
        _put(detector, "sensor_thickness", geometry.sensor_thickness, "m")
    if geometry.saturation_value is not None:
        detector["saturation_value"] = geometry.saturation_value


def _times(spec: FrameSpec, run: RunContext) -> tuple[float, float]:
    """Seconds of exposure in each frame of the product, and from one to the next; 0 if unknown."""
    acquisition = run.parameters.hardware.get("acquisition", {})
    exposure = float(acquisition.get("expo_time", 0.0))
    period = exposure + float(acquisition.get("latency_time", 0.0))
    return exposure * spec.span, period * spec.span


def _pixel_size(run: RunContext, geometry: DetectorGeometry) -> Sequence[float] | None:
    """`x, y` of a pixel of the detector, in metres."""
    told: Sequence[float] | None = run.detector.get("info", {}).get("pixel_size")
    return geometry.pixel_size or told


def _laid(
    geometry: DetectorGeometry, place: Affine, size: Sequence[float]
) -> tuple[Vector, Vector, Vector]:
    """Where the pixels of a product lie on the plane of the detector.

    Args:
        geometry: of the whole detector.
        place: `to_detector` of the product.
        size: of a pixel of the detector, in metres.

    Returns:
        In metres, in the directions of the laboratory: the corner of the first pixel, seen from
        where the beam meets the plane; one pixel in the direction of x, and one in that of y.
    """
    x, y = np.array(geometry.fast_axis or FAST), np.array(geometry.slow_axis or SLOW)
    x, y = x * size[0], y * size[1]
    centre_x, centre_y = geometry.beam_center or (0.0, 0.0)
    corner = (place.c - centre_x) * x + (place.f - centre_y) * y
    return corner, place.a * x + place.d * y, place.b * x + place.e * y


def _place(
    detector: h5py.Group, spec: FrameSpec, distance: float, corner: Vector, fast: Vector,
    slow: Vector,
) -> None:  # fmt: skip
    """The chain of transformations from the sample to the pixels."""
    chain = new_group(detector, "transformations", "NXtransformations")
    det_z = _axis(chain, "det_z", distance, (0.0, 0.0, 1.0), ".")
    detector["depends_on"] = det_z
    module = new_group(detector, "module", "NXdetector_module")
    module["data_origin"] = np.zeros(2, np.int64)
    module["data_size"] = np.array(spec.shape[-2:], np.int64)
    offset = _axis(module, "module_offset", *_length_and_direction(corner), det_z)
    for name, pixel in (("fast_pixel_direction", fast), ("slow_pixel_direction", slow)):
        _axis(module, name, *_length_and_direction(pixel), offset)


def _length_and_direction(vector: Vector) -> tuple[float, Vector]:
    length = float(np.linalg.norm(vector))
    return length, vector / length if length else np.array([0.0, 0.0, 1.0])


def _axis(
    group: h5py.Group,
    name: str,
    value: Any,
    vector: Sequence[float] | Vector,
    depends_on: str,
    kind: str = "translation",
) -> str:
    """One transformation; returns its path, for those that depend on it."""
    group[name] = value
    group[name].attrs.update(
        units="m" if kind == "translation" else "deg",
        transformation_type=kind,
        vector=np.array(vector, np.float64),
        offset=np.zeros(3),
        offset_units="m",
        depends_on=depends_on,
    )
    return str(group[name].name)


def _write_beam(instrument: h5py.Group, geometry: DetectorGeometry) -> None:
    if geometry.wavelength is None:
        return
    beam = new_group(instrument, "beam", "NXbeam")
    _put(beam, "incident_wavelength", geometry.wavelength * 1e10, "angstrom")
    new_group(instrument, "source", "NXsource")["probe"] = geometry.probe


def _write_rotation(sample: h5py.Group, rotation: Rotation | None, frames: int, span: int) -> None:
    """How the sample turns: a product of several frames begins with the first of them."""
    if rotation is None:
        sample["depends_on"] = "."
        return
    chain = new_group(sample, "transformations", "NXtransformations")
    step = rotation.step * span
    omega = rotation.start + step * np.arange(frames)
    sample["depends_on"] = _axis(chain, "omega", omega, rotation.axis, ".", "rotation")
    _put(chain, "omega_end", omega + step, "deg")
    _put(chain, "omega_increment_set", step, "deg")


def _follow_nxmx(entry: h5py.Group, detector: h5py.Group, spec: FrameSpec, run: RunContext) -> None:
    """What makes the entry one of NXmx, besides the geometry."""
    entry["definition"] = "NXmx"
    _, frame_time = _times(spec, run)
    if run.nb_frames:
        entry["end_time_estimated"] = iso_time(run.started + run.nb_frames * frame_time)
    data = new_group(entry, "data", "NXdata")
    data.attrs["signal"] = "data"
    data["data"] = detector["data"]


def _put(group: h5py.Group, name: str, value: Any, units: str) -> None:
    group[name] = value
    group[name].attrs["units"] = safe_text(units)


def _write_tree(
    group: h5py.Group, values: Mapping[str, Any], classes: Mapping[str, str] = _NO_CLASSES
) -> None:
    """What the user says, beside what we say ourselves."""
    for key, value in values.items():
        name = safe_text(key).replace("/", "_")
        name = name if name.strip(".") else "_"
        if isinstance(value, Mapping) and value.keys() == {"value", "units"}:
            _put(group, _free(group, name), leaf(value["value"]), str(value["units"]))
        elif isinstance(value, Mapping):
            nx_class = classes.get(key, "NXcollection")
            if not _is_group(group, name, nx_class):
                name = _free(group, name)
            _write_tree(new_group(group, name, nx_class), value)
        elif value is not None:
            group[_free(group, name)] = leaf(value)


def _is_group(group: h5py.Group, name: str, nx_class: str) -> bool:
    """Whether there is such a group, of this class, that the user may add to."""
    found = group.get(name)
    return isinstance(found, h5py.Group) and found.attrs["NX_class"] == nx_class


def _free(group: h5py.Group, name: str) -> str:
    """The name, or one like it: what we say ourselves stays as it is."""
    while name in group:
        name += "_"
    return name
