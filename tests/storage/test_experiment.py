"""NXmx and the logs, as readers that nobody here wrote find them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import nxmx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nexusformat.nexus import NXlog, nxload

from lima2py.acquisition import Parameters
from lima2py.frame import FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.metadata import Metadata
from lima2py.storage.layout import new_entry, new_file, new_group
from lima2py.storage.logs import Series, write_logs
from lima2py.storage.masters.experiment import write_experiment
from lima2py.task import RunContext

SHAPE = (48, 64)
PIXEL = (75e-6, 100e-6)
PRODUCTS = {
    "all": (Affine(), SHAPE),
    "cropped": (Affine.crop(Roi(8, 4, 32, 24)), (24, 32)),
    "binned": (Affine.bin(2, 2), (24, 32)),
    "flipped": (Affine.flip("x", SHAPE), SHAPE),
    "turned": (Affine.rotate(90, SHAPE), (64, 48)),
    "transposed": (Affine.transpose(), (64, 48)),
    "cropped, binned, flipped": (
        Affine.crop(Roi(8, 4, 32, 24)) @ Affine.bin(4, 2) @ Affine.flip("y", (12, 8)),
        (12, 8),
    ),
}
GEOMETRY = {
    "distance": 0.18,
    "beam_center": [30.25, -7.5],
    "wavelength": "0.9763 angstrom",
    "sensor_material": "Si",
    "sensor_thickness": "450 um",
    "saturation_value": 65000,
}


def run_of(metadata: dict[str, Any], pixel_size: Any = PIXEL, **acquisition: float) -> RunContext:
    told = Metadata.of_run(Metadata(), metadata)
    hardware = {"acquisition": {"expo_time": 0.01, "latency_time": 0.002, **acquisition}}
    info = {"name": "eiger", "model": "Eiger2 4M", "pixel_size": pixel_size, "serial": "E-1"}
    return RunContext(
        "0" * 32, "scan", "raw", nb_frames=5, started=1.7e9, metadata=told.plain(),
        detector={"info": info}, parameters=Parameters({}, hardware, {}),
    )  # fmt: skip


def spec_of(product: str, span: int = 1) -> FrameSpec:
    place, (height, width) = PRODUCTS[product]
    spec = FrameSpec.dense(height, width, "u2", to_detector=place, detector_shape=SHAPE)
    return spec.replace(span=span)


@contextmanager
def written(spec: FrameSpec, run: RunContext) -> Iterator[h5py.File]:
    with h5py.File.in_memory() as file:
        new_file(file, run)
        detector = new_entry(file, "entry_0000", spec, run)
        detector["frames/index"] = np.arange(5, dtype="u8")
        detector["data"] = np.zeros((5, *spec.saved_shape), spec.dtype)
        write_experiment(file["entry_0000"], detector, spec, run)
        yield file


def lies(product: str, geometry: dict[str, Any], x: float, y: float) -> np.ndarray[Any, Any]:
    """Where a corner of a pixel of a product is in the laboratory, in millimetres."""
    place, _ = PRODUCTS[product]
    on_detector = np.array(place.matrix) @ [x, y, 1]
    steps = (on_detector[:2] - geometry["beam_center"]) * PIXEL
    axes = np.array([geometry.get("fast_axis", [-1, 0, 0]), geometry.get("slow_axis", [0, -1, 0])])
    axes = axes / np.linalg.norm(axes, axis=1)[:, None]
    found: np.ndarray[Any, Any] = 1000 * (steps @ axes + [0, 0, geometry["distance"]])
    return found


@pytest.mark.parametrize("product", PRODUCTS)
def test_dials_reader_finds_every_pixel_of_every_product(product: str) -> None:
    spec = spec_of(product)
    with written(spec, run_of({"geometry": GEOMETRY})) as file:
        (entry,) = nxmx.NXmx(file).entries
        (instrument,) = entry.instruments
        (detector,) = instrument.detectors
        (module,) = detector.modules
        (beam,) = instrument.beams
        assert beam.incident_wavelength.to("angstrom").magnitude == pytest.approx(0.9763)
        assert detector.distance.to("mm").magnitude == pytest.approx(180)
        assert detector.sensor_material == "Si"
        assert detector.sensor_thickness.to("um").magnitude == pytest.approx(450)
        assert detector.saturation_value == 65000
        assert detector.count_time.to("s").magnitude == pytest.approx(0.01)
        assert detector.frame_time.to("s").magnitude == pytest.approx(0.012)
        assert detector.description == "Eiger2 4M"
        assert detector.serial_number == "E-1"
        assert entry.end_time_estimated.timestamp() == pytest.approx(1.7e9 + 0.06)
        (data,) = entry.data
        assert data["data"].shape == (5, *spec.image)
        assert tuple(module.data_size) == spec.image
        assert tuple(module.data_origin) == (0, 0)
        # As DIALS does it: the origin comes from what the pixel directions depend on.
        chain = nxmx.get_dependency_chain(module.fast_pixel_direction.depends_on)
        origin = nxmx.get_cumulative_transformation(chain)[0, :3, 3]
        sizes = [
            axis[()].to("mm").magnitude.item() * axis.vector
            for axis in (module.fast_pixel_direction, module.slow_pixel_direction)
        ]
        for x, y in ((0, 0), (1, 0), (0, 1), (spec.width, spec.height), (3, 7)):
            found = origin + x * sizes[0] + y * sizes[1]
            np.testing.assert_allclose(found, lies(product, GEOMETRY, x, y), atol=1e-9)
        # The beam meets the product at its beam centre, in front of the sample.
        centre = [getattr(detector, f"beam_center_{axis}").magnitude for axis in "xy"]
        np.testing.assert_allclose(
            origin + centre[0] * sizes[0] + centre[1] * sizes[1], [0, 0, 180], atol=1e-9
        )
        own = [detector[f"{axis}_pixel_size"][()] * 1000 for axis in "xy"]
        np.testing.assert_allclose(own, [np.linalg.norm(size) for size in sizes])
        assert file[detector["depends_on"].asstr()[()]].name.endswith("transformations/det_z")


@settings(max_examples=25)
@given(
    angles=st.tuples(*[st.floats(-1, 1)] * 3),
    product=st.sampled_from(sorted(PRODUCTS)),
    at=st.tuples(*[st.integers(0, 40)] * 2),
)
def test_a_tilted_detector_lies_where_its_axes_say(
    angles: tuple[float, float, float], product: str, at: tuple[int, int]
) -> None:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", angles).as_matrix()
    axes = {"fast_axis": list(turn @ [-1, 0, 0]), "slow_axis": list(turn @ [0, -1, 0])}
    geometry = {**GEOMETRY, **axes}
    with written(spec_of(product), run_of({"geometry": geometry})) as file:
        module = nxmx.NXmx(file).entries[0].instruments[0].detectors[0].modules[0]
        chain = nxmx.get_dependency_chain(module.fast_pixel_direction.depends_on)
        found = nxmx.get_cumulative_transformation(chain)[0, :3, 3]
        for axis, steps in zip(
            (module.fast_pixel_direction, module.slow_pixel_direction), at, strict=True
        ):
            found = found + steps * axis[()].to("mm").magnitude.item() * axis.vector
        np.testing.assert_allclose(found, lies(product, geometry, *at), atol=1e-9)


def test_a_sample_that_turns_has_an_angle_for_every_frame() -> None:
    rotation = {"axis": [0, 2, 0], "start": 10, "step": 0.5}
    run = run_of({"geometry": {**GEOMETRY, "rotation": rotation}})
    with written(spec_of("all", span=4), run) as file:
        (sample,) = nxmx.NXmx(file).entries[0].samples
        omega = sample.depends_on
        assert omega is not None
        np.testing.assert_allclose(omega[()].to("deg").magnitude, 10 + 2.0 * np.arange(5))
        np.testing.assert_allclose(omega.end[()].to("deg").magnitude, 12 + 2.0 * np.arange(5))
        assert omega.increment_set.to("deg").magnitude == 2
        axes = nxmx.get_rotation_axes(nxmx.get_dependency_chain(omega))
        assert axes.names.tolist() == ["omega"]
        assert axes.is_scan_axis.tolist() == [True]
        np.testing.assert_allclose(axes.axes, [[0, 1, 0]])


def test_a_still_turns_about_nothing() -> None:
    with written(spec_of("all"), run_of({"geometry": GEOMETRY})) as file:
        assert nxmx.NXmx(file).entries[0].samples[0].depends_on is None


def test_without_a_geometry_only_what_is_known_is_said() -> None:
    with written(spec_of("binned"), run_of({"sample": {"name": "x"}})) as file:
        entry = file["entry_0000"]
        detector = entry["instrument/eiger"]
        assert not nxmx.NXmx(file).entries
        assert detector["x_pixel_size"][()] == pytest.approx(150e-6)
        assert detector["count_time"][()] == 0.01
        for name in ("distance", "module", "transformations", "depends_on", "beam_center_x"):
            assert name not in detector
        for name in ("definition", "data", "user", "notes", "instrument/beam"):
            assert name not in entry
    with written(spec_of("all"), run_of({}, pixel_size=None)) as file:
        assert "x_pixel_size" not in file["entry_0000/instrument/eiger"]


def test_images_of_several_bands_are_not_called_nxmx() -> None:
    for bands in (1, 2):
        spec = spec_of("all").replace(shape=(bands, *SHAPE))
        with written(spec, run_of({"geometry": GEOMETRY})) as file:
            assert ("definition" in file["entry_0000"]) == (bands == 1)
            assert "module" in file["entry_0000/instrument/eiger"]


def test_a_product_without_a_place_has_no_geometry() -> None:
    spec = FrameSpec("vector", (7,), np.dtype("f4"), span=2)
    with written(spec, run_of({"geometry": GEOMETRY})) as file:
        detector = file["entry_0000/instrument/eiger"]
        assert "distance" not in detector
        assert detector["frame_time"][()] == pytest.approx(0.024)
        assert file["entry_0000/instrument/beam/incident_wavelength"][()] == pytest.approx(0.9763)


def test_what_the_user_says_stands_where_nexus_has_it() -> None:
    metadata = {
        "title": "second crystal",
        "sample": {"name": "insulin", "temperature": {"value": 100, "units": "K"}},
        "instrument": {
            "name": "ID30", "source": {"name": "ESRF", "current": {"value": 198.4, "units": "mA"}},
            "attenuator": {"attenuator_transmission": 0.5}, "hutch": {"door": "shut"},
        },
        "user": {"name": "Ada"},
        "notes": {"weather": {"sky": "blue"}},
        "geometry": GEOMETRY,
    }  # fmt: skip
    with written(spec_of("all"), run_of(metadata)) as file:
        (entry,) = nxmx.NXmx(file).entries
        assert entry["title"].asstr()[()] == "second crystal"
        assert entry.source.name == "ESRF"
        assert entry.instruments[0].name == "ID30"
        assert entry.samples[0].name == "insulin"
        assert entry.samples[0].temperature == 100 * nxmx.ureg.kelvin
        classes = {name: group.attrs["NX_class"] for name, group in entry["instrument"].items()
                   if isinstance(group, h5py.Group)}  # fmt: skip
        assert classes == {
            "eiger": "NXdetector", "beam": "NXbeam", "source": "NXsource",
            "attenuator": "NXattenuator", "hutch": "NXcollection",
        }  # fmt: skip
        assert entry["instrument/source/probe"].asstr()[()] == "x-ray"
        assert entry["user"].attrs["NX_class"] == "NXuser"
        assert entry["notes/weather/sky"].asstr()[()] == "blue"


keys = st.one_of(
    st.text(max_size=4),
    st.sampled_from([
        "name", ".", "..", "a/b", "depends_on", "transformations", "eiger", "beam", "source",
        "data", "incident_wavelength", "probe", "units", "value",
    ]),
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=4),
    max_leaves=12,
)
free = st.dictionaries(keys, values, max_size=5)


@settings(max_examples=60)
@given(sample=free, instrument=free, user=free, notes=free)
def test_no_value_of_a_user_is_refused_or_spoils_what_is_ours(**trees: Any) -> None:
    run = run_of({"geometry": GEOMETRY})
    run = RunContext(**{**_fields(run), "metadata": {**run.metadata, **trees}})
    with written(spec_of("all"), run) as file:
        (entry,) = nxmx.NXmx(file).entries
        (detector,) = entry.instruments[0].detectors
        assert detector["data"].shape == (5, *SHAPE)
        assert detector.distance.to("mm").magnitude == pytest.approx(180)
        wavelength = entry.instruments[0].beams[0].incident_wavelength
        assert wavelength.to("angstrom").magnitude == pytest.approx(0.9763)
        assert entry.samples[0].depends_on is None
        file.visititems(lambda _name, item: item[()] if isinstance(item, h5py.Dataset) else None)


def _fields(run: RunContext) -> dict[str, Any]:
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


def test_logs_are_read_by_nexusformat(tmp_path: Path) -> None:
    path = tmp_path / "logs.h5"
    series = {
        "sample/temperature": Series([1.7e9 + 1, 1.7e9 + 2.5], [293.1, 294.0], "K"),
        "sample/state": Series([1.7e9], ["mounted"]),
        "current": Series([], [], "mA"),
        "odd/nämes": Series([1.7e9], [1.0]),
        "odd/n?mes": Series([1.7e9], [2.0]),
    }
    with h5py.File(path, "w") as file:
        new_group(file, "entry", "NXentry")
        write_logs(file["entry"], series, 1.7e9)
    entry = nxload(str(path))["entry"]
    log = entry["logs/sample/temperature"]
    assert isinstance(log, NXlog)
    np.testing.assert_allclose(log["time"].nxvalue, [1, 2.5])
    assert log["value"].nxvalue.tolist() == [293.1, 294.0]
    assert (log["value"].attrs["units"], log["time"].attrs["units"]) == ("K", "s")
    with h5py.File(path) as file:
        logs = file["entry/logs"]
        assert logs["sample/state/value"].asstr()[:].tolist() == ["mounted"]
        assert logs["current/value"].shape == (0,)
        assert sorted(logs["odd"]) == ["n_mes", "n_mes_"]
        start = datetime.fromisoformat(logs["sample/temperature/time"].attrs["start"])
        assert start.timestamp() == 1.7e9
