"""What a user says of the experiment: what is taken, what follows from it, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import constants

from lima2py.errors import BadParameter
from lima2py.metadata import (
    DetectorGeometry,
    Metadata,
    merged,
    read_metadata,
    read_poni,
    wavelength_of,
)

NOTHING = Metadata()


def of_run(given: Any, always: Metadata = NOTHING) -> Metadata:
    return Metadata.of_run(always, given)


def refusal(given: Any, always: Metadata = NOTHING) -> str:
    with pytest.raises(BadParameter) as caught:
        of_run(given, always)
    return str(caught.value)


def test_quantities_carry_their_units() -> None:
    geometry = of_run(
        {
            "geometry": {
                "distance": "180 mm",
                "beam_center": [100.5, 200],
                "wavelength": "0.9763 Å",
                "sensor_thickness": "450 um",
            }
        }
    ).geometry
    assert geometry.distance == 0.18
    assert geometry.beam_center == (100.5, 200.0)
    assert geometry.wavelength == 0.9763e-10
    assert geometry.sensor_thickness == 450e-6
    assert (geometry.fast_axis, geometry.slow_axis) == ((-1, 0, 0), (0, -1, 0))


def test_an_energy_becomes_the_wavelength_of_that_particle() -> None:
    h, c, e = constants.h, constants.c, constants.e
    for probe, mass in (("x-ray", 0.0), ("electron", constants.m_e), ("neutron", constants.m_n)):
        for energy in (0.025, 12700.0, 300e3):
            total = energy * e + mass * c**2
            momentum = math.sqrt(total**2 - (mass * c**2) ** 2) / c
            if probe == "neutron" and energy < 1:  # the subtraction above cancels
                momentum = math.sqrt(2 * mass * energy * e)
            assert wavelength_of(energy, probe) == pytest.approx(h / momentum, rel=1e-6)  # type: ignore[arg-type]
    told = of_run({"geometry": {"energy": "200 keV", "probe": "electron"}})
    assert told.geometry.wavelength == pytest.approx(2.5079e-12, rel=1e-4)
    assert told.geometry.energy is None


def test_a_run_goes_over_the_beamline_key_by_key() -> None:
    always = Metadata.load(
        {
            "instrument": {"name": "ID10", "source": {"name": "ESRF", "current": 200}},
            "geometry": {"energy": 8000, "sensor_material": "Si"},
        },
        "system",
    )
    told = of_run(
        {
            "instrument": {"source": {"current": 92}},
            "geometry": {"wavelength": "1 angstrom"},
        },
        always,
    )
    assert told.instrument == {"name": "ID10", "source": {"name": "ESRF", "current": 92}}
    assert told.geometry.wavelength == 1e-10
    assert told.geometry.sensor_material == "Si"


def test_a_poni_file_of_the_run_counts_instead_of_the_geometry_of_the_beamline(
    tmp_path: Path,
) -> None:
    always = Metadata.load({"geometry": {"distance": 1, "beam_center": [0, 0]}}, "system")
    path = poni(tmp_path / "run.poni", dist=0.25)
    told = of_run({"geometry": {"poni": str(path)}}, always)
    assert told.geometry.distance == pytest.approx(0.25)
    nearer = of_run({"geometry": {"poni": str(path), "distance": 0.2}}, always)
    assert nearer.geometry.distance == 0.2


def test_what_is_stored_is_only_what_was_said_and_loads_again() -> None:
    told = of_run({"sample": {"name": "x", "k": np.float32(2)}, "notes": {"list": np.arange(3)}})
    assert told.plain() == {"sample": {"name": "x", "k": 2.0}, "notes": {"list": [0, 1, 2]}}
    whole = of_run({"geometry": {"distance": 1, "beam_center": [1, 2], "energy": 1000}})
    assert Metadata.load(whole.plain(), "again") == whole


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("sample.yaml", "metadata: should be a mapping"),
        ({"smaple": {}}, 'smaple: there is no such field (did you mean "sample"?)'),
        ({"sample": "lysozyme"}, "sample: should be a mapping"),
        ({"geometry": {"distance": -1, "beam_center": [1, 2]}}, "distance: should be greater"),
        ({"geometry": {"distance": "5 kg"}}, "geometry.distance: is not a length"),
        ({"geometry": {"distance": 1}}, "geometry.beam_center: is missing"),
        ({"geometry": {"beam_center": [1, 2]}}, "geometry.distance: is missing"),
        ({"geometry": {"beam_center": [1]}}, "geometry.beam_center.1: is required"),
        ({"geometry": {"wavelength": 0.976}}, 'write "0.976 angstrom"'),
        ({"geometry": {"wavelength": "1 nm", "energy": "8 keV"}}, "give one of them"),
        ({"geometry": {"energy": "12.7 kev"}}, "is not an energy"),
        ({"geometry": {"rotation": {"axis": [0, 0, 0], "step": 1}}}, "should be a direction"),
        (
            {"geometry": {"distance": 1, "beam_center": [0, 0], "fast_axis": [0, -1, 0]}},
            "should be perpendicular",
        ),
        (
            {"geometry": {"distance": 1, "beam_center": [0, 0], "fast_axis": [0, 0, 1]}},
            "lies along the beam",
        ),
        ({"geometry": {"poni": "/nowhere.poni"}}, "geometry.poni: /nowhere.poni is no PONI file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: Any, said: str) -> None:
    assert said in refusal(values)


def test_a_geometry_of_another_detector_is_refused() -> None:
    geometry = DetectorGeometry(distance=1.0, beam_center=(0.0, 0.0), pixel_size=(75e-6, 75e-6))
    geometry.check((75e-6, 75.1e-6))
    geometry.check(None)
    with pytest.raises(BadParameter, match=r"172 um × 172 um .*another detector"):
        geometry.check((172e-6, 172e-6))
    with pytest.raises(BadParameter, match="how large its pixels are"):
        DetectorGeometry(distance=1.0, beam_center=(0.0, 0.0)).check(None)


def poni(path: Path, orientation: int = 3, **geometry: float) -> Path:
    from pyFAI.detectors import Detector
    from pyFAI.geometry import Geometry

    detector = Detector(75e-6, 100e-6, max_shape=(300, 400), orientation=orientation)
    Geometry(detector=detector, **geometry).save(str(path))
    return path


@settings(max_examples=12)
@given(
    orientation=st.sampled_from([1, 2, 3, 4]),
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    pixel=st.tuples(st.integers(0, 299), st.integers(0, 399)),
)
def test_every_pixel_lies_where_pyfai_puts_it(
    orientation: int,
    angles: tuple[float, float, float],
    pixel: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from pyFAI.geometry import Geometry

    rot1, rot2, rot3 = angles
    path = poni(
        tmp_path_factory.mktemp("poni") / "x.poni", orientation, dist=0.2, poni1=0.01, poni2=0.03,
        rot1=rot1, rot2=rot2, rot3=rot3, wavelength=1e-10,
    )  # fmt: skip
    facts = read_poni(str(path), "poni")
    row, column = pixel
    z, y, x = Geometry.sload(str(path)).calc_pos_zyx(
        d1=np.array([float(row)]), d2=np.array([float(column)]), corners=False
    )
    told = DetectorGeometry.load(facts, "poni")
    assert told.beam_center is not None
    assert told.fast_axis is not None
    assert told.slow_axis is not None
    assert told.pixel_size is not None
    along_x = (column + 0.5 - told.beam_center[0]) * told.pixel_size[0]
    along_y = (row + 0.5 - told.beam_center[1]) * told.pixel_size[1]
    lies = (
        np.array([0, 0, told.distance])
        + along_x * np.array(told.fast_axis)
        + along_y * np.array(told.slow_axis)
    )
    np.testing.assert_allclose(lies, [-x[0], y[0], z[0]], atol=1e-9)  # x1, x2, x3 are y, -x, z
    assert told.wavelength == 1e-10


@pytest.mark.parametrize(
    ("orientation", "across", "down"), [(1, 1, -1), (2, -1, -1), (3, -1, 1), (4, 1, 1)]
)
def test_an_orientation_says_where_the_first_pixel_is_seen_from_the_sample(
    orientation: int, across: int, down: int, tmp_path: Path
) -> None:
    # 2: "Origin at the top left of the image when looking from the sample", which is the default
    # here; 1 is the same looking at the sample, and 3 and 4 are upside down.
    path = poni(tmp_path / "x.poni", orientation, dist=0.1)
    told = of_run({"geometry": {"poni": str(path)}}).geometry
    assert told.fast_axis == pytest.approx((across, 0, 0), abs=1e-9)
    assert told.slow_axis == pytest.approx((0, down, 0), abs=1e-9)


def test_the_direct_beam_is_where_fit2d_has_it(tmp_path: Path) -> None:
    from pyFAI.geometry import Geometry

    path = poni(tmp_path / "x.poni", dist=0.1, poni1=0.02, poni2=0.03, rot1=0.1, rot2=-0.2)
    facts = read_poni(str(path), "poni")
    fit2d = Geometry.sload(str(path)).getFit2D()
    assert facts["distance"] == pytest.approx(fit2d["directDist"] / 1000)
    assert facts["beam_center"] == pytest.approx((fit2d["centerX"], fit2d["centerY"]))


def test_a_detector_the_beam_never_meets_is_refused(tmp_path: Path) -> None:
    path = poni(tmp_path / "x.poni", dist=0.1, rot1=math.pi / 2)
    assert "the beam" in refusal({"geometry": {"poni": str(path)}})
    path = poni(tmp_path / "y.poni", dist=0.1, rot1=math.pi)
    assert "behind the sample" in refusal({"geometry": {"poni": str(path)}})


def test_relative_paths_begin_at_the_folder_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text("title: first\ngeometry: {poni: a/b.poni}\n")
    assert read_metadata(path) == {
        "title": "first",
        "geometry": {"poni": str(tmp_path / "a" / "b.poni")},
    }
    path.write_text("titel: first\n")
    with pytest.raises(BadParameter, match=r"sample\.yaml, titel: .*title"):
        read_metadata(path)


trees = st.recursive(
    st.integers(0, 3), lambda below: st.dictionaries(st.sampled_from("abc"), below), max_leaves=6
)


@given(
    st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees)
)
def test_what_is_above_wins_and_nothing_else_changes(below: Any, above: Any) -> None:
    found = merged(below, above)
    assert merged(found, above) == found
    assert merged(below, {}) == below
    assert found.keys() == below.keys() | above.keys()
    for name, value in above.items():
        if not isinstance(value, dict):
            assert found[name] == value
