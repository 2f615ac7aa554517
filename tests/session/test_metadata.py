"""What is said of a run, before it and during it, stands in the masters."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import nxmx
import pytest
from lima2py_detectors.simulator import Simulator

from lima2py.control.options import metadata_of
from lima2py.errors import BadCommand, BadParameter
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System

GRAPH = """
graph: test
tasks:
  cut: {do: crop, from: detector, box: [8, 4, 32, 24]}
  small: {do: bin, from: cut, by: [2, 2]}
  raw: {do: save_dense, from: detector, file: "{name}_raw"}
  binned: {do: save_dense, from: small, file: "{name}_binned"}
"""
DETECTOR = {"shape": [48, 64]}
GEOMETRY = {"distance": "180 mm", "beam_center": [30, 20], "energy": "12.7 keV"}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(GRAPH)
    return path


def logs_of(report: Report, sink: str = "raw") -> dict[str, h5py.Group]:
    """The series in a master, by name: times since the run was started, values, units."""
    found: dict[str, Any] = {}
    with h5py.File(report.masters[sink]) as file:

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Group) and item.attrs["NX_class"] == "NXlog":
                value = item["value"]
                values = value.asstr()[:] if value.dtype.kind == "O" else value[:]
                found[name] = item["time"][:], values, value.attrs.get("units", "")

        file["entry_0000/logs"].visititems(keep)
    return found


@pytest.mark.parametrize(("acquisition", "processing"), [(1, 0), (1, 1), (2, 2)])
def test_what_is_logged_and_what_the_nodes_say_is_in_every_master(
    acquisition: int, processing: int, graph: Path, tmp_path: Path
) -> None:
    with Session.open(
        "simulator", acquisition_nodes=acquisition, processing_nodes=processing, detector=DETECTOR
    ) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=100, expo_time=0.003)
        session.log("sample/temperature", np.float32(293.5), units="K")
        began = time.time()
        session.log("sample/state", "mounted", time=began)
        session.start()
        session.log("sample/temperature", 294)
        report = session.wait(30)
    assert not report.errors
    for sink in ("raw", "binned"):
        logs = logs_of(report, sink)
        times, values, units = logs["sample/temperature"]
        assert (values.tolist(), units) == ([293.5, 294.0], "K")
        assert -30 < times[0] < times[1] < 30
        times, values, _ = logs["sample/state"]
        assert values.tolist() == ["mounted"]
        with h5py.File(report.masters[sink]) as file:
            start = file["entry_0000/logs/sample/state/time"].attrs["start"]
        assert datetime.fromisoformat(start).timestamp() + times[0] == pytest.approx(
            began, abs=0.01
        )
        names = [f"acq{rank}" for rank in range(acquisition)] if processing else ["local"]
        for name in names:
            place = f"acquisition/{name}"
            for what, unit in (("acquired", "1/s"), ("settled", "1/s")):
                times, values, units = logs[f"{place}/frames_{what}"]
                assert units == unit
                # What is between two samples adds up to all frames of the node.
                total = np.sum(np.diff(times) * values[1:])
                expected = 100 if what == "acquired" else 100 / acquisition
                assert total == pytest.approx(expected, rel=0.2)
            _, fill, _ = logs[f"{place}/ring_fill"]
            assert len(fill) >= 2
            assert ((0 <= fill) & (fill <= 1)).all()
            below = "" if acquisition == 1 else f"/{name}"
            _, degrees, units = logs[f"detector/temperature{below}/sensor"]
            assert units == "Cel"
            assert np.isfinite(degrees).all()
        workers = [f"proc{rank}" for rank in range(processing)] or ["local"]
        for name in workers:
            _, frames, units = logs[f"processing/{name}/frames"]
            assert units == "1/s"
            assert frames.max() > 0
            place = f"processing/{name}/busy/"
            busy = {path.removeprefix(place): share
                    for path, (_, share, _) in logs.items() if path.startswith(place)}  # fmt: skip
            assert {"raw", "binned"} <= busy.keys()
            assert sum(share.max() for share in busy.values()) > 0
        if processing:
            assert f"acquisition/acq0/in_flight/{workers[-1]}" in logs


def test_all_masters_of_a_run_say_when_it_was_started_and_when_it_ended(
    graph: Path, tmp_path: Path
) -> None:
    with Session.open("simulator", detector=DETECTOR) as session:
        session.prepare(
            graph=graph,
            output=tmp_path,
            nb_frames=5,
            expo_time=0.01,
            metadata={"geometry": GEOMETRY},
        )
        time.sleep(0.1)  # whoever prepares takes his time
        before = time.time()
        session.start()
        report = session.wait(30)
        after = time.time()
    said = []
    for path in report.masters.values():
        with h5py.File(path) as file:
            names = ("start_time", "end_time_estimated", "end_time")
            texts = [file[f"entry_0000/{name}"].asstr()[()] for name in names]
        said.append([datetime.fromisoformat(text).timestamp() for text in texts])
    start, estimated, end = said[0]
    assert said == [[start, estimated, end]] * 2
    assert before - 0.001 <= start < end <= after  # written in whole milliseconds
    assert estimated == pytest.approx(start + 0.05, abs=0.002)


def test_a_value_can_be_logged_from_prepare_to_the_end_and_not_else(
    graph: Path, tmp_path: Path
) -> None:
    with Session.open("simulator", detector=DETECTOR) as session:
        with pytest.raises(BadCommand, match="cannot log while idle; it can: prepare"):
            session.log("x", 1)
        session.prepare(graph=graph, output=tmp_path, nb_frames=3, expo_time=0.001)
        with pytest.raises(BadParameter, match="log x: should be a number or text"):
            session.log("x", [1])  # type: ignore[arg-type]
        with pytest.raises(BadParameter, match="those of the run itself"):
            session.log("detector/temperature/sensor", 1)
        session.start()
        session.wait(30)
        with pytest.raises(BadCommand, match="cannot log"):
            session.log("x", 1)


def test_a_detector_that_cannot_say_its_temperatures_is_complained_of_once(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def broken(_: Simulator) -> dict[str, float]:
        asked.append(1)
        if len(asked) > 1:  # at prepare it still can
            raise OSError("no answer from the chiller")
        return {"sensor": 20.0}

    monkeypatch.setattr(Simulator, "temperatures", broken)
    monkeypatch.setattr("lima2py.node.observe.TEMPERATURES_EVERY", 0.01)
    with Session.open("simulator", detector=DETECTOR) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=50, expo_time=0.005)
        session.start()
        report = session.wait(30)
    assert len(asked) > 2
    assert report.outcome == "completed"
    assert report.errors == [
        "the temperatures of detector simulator cannot be read: OSError: no answer from the chiller"
    ]
    assert not any(name.startswith("detector") for name in logs_of(report))


def test_a_detector_that_hangs_when_asked_for_temperatures_holds_up_nothing(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    release = threading.Event()

    def hanging(_: Simulator) -> dict[str, float]:
        asked.append(1)
        if len(asked) > 1:
            release.wait(60)
        return {"sensor": 20.0}

    monkeypatch.setattr(Simulator, "temperatures", hanging)
    with Session.open("simulator", detector=DETECTOR) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=10, expo_time=0.001)
        session.start()
        report = session.wait(30)
        assert not release.is_set()
        release.set()
    assert (report.outcome, report.saved, report.errors) == ("completed", 10, [])
    assert "acquisition/local/ring_fill" in logs_of(report)


def test_dials_reader_opens_the_master_of_a_cropped_and_binned_product(
    graph: Path, tmp_path: Path
) -> None:
    metadata = {"title": "insulin 2", "geometry": GEOMETRY, "instrument": {"name": "ID30"}}
    with Session.open("simulator", detector=DETECTOR) as session:
        session.prepare(
            graph=graph, output=tmp_path, nb_frames=7, expo_time=0.001, metadata=metadata
        )
        session.start()
        report = session.wait(30)
    with h5py.File(report.masters["binned"]) as file:
        (entry,) = nxmx.NXmx(file).entries
        (instrument,) = entry.instruments
        (detector,) = instrument.detectors
        (module,) = detector.modules
        assert entry["title"].asstr()[()] == "insulin 2"
        assert instrument.name == "ID30"
        assert entry.data[0]["data"].shape == (7, 12, 16)
        assert detector.beam_center_x.magnitude == (30 - 8) / 2
        assert detector.beam_center_y.magnitude == (20 - 4) / 2
        assert detector.distance.to("mm").magnitude == 180
        wavelength = instrument.beams[0].incident_wavelength.to("angstrom").magnitude
        assert wavelength == pytest.approx(12.39841984 / 12.7)
        size = Simulator(name="x").info.pixel_size
        assert size is not None
        assert module.fast_pixel_direction[()].to("m").magnitude.item() == pytest.approx(
            2 * size[0]
        )


def test_a_beamline_says_what_is_always_so_and_a_poni_file_lies_beside_its_system_file(
    graph: Path, tmp_path: Path
) -> None:
    from pyFAI.detectors import Detector
    from pyFAI.geometry import Geometry

    size = Simulator(name="x").info.pixel_size
    assert size is not None
    place = tmp_path / "beamline"
    place.mkdir()
    shape = Detector(size[1], size[0], max_shape=(48, 64), orientation=3)
    Geometry(0.3, 0.0, 0.0, detector=shape, wavelength=1e-10).save(str(place / "id10.poni"))
    text = """
    system: id10
    detector: simulator
    set: {shape: [48, 64]}
    metadata: {instrument: {name: ID10}, sample: {name: none}, geometry: {poni: id10.poni}}
    """
    (place / "id10.yaml").write_text(text)
    with Session.open(System.read(place / "id10.yaml")) as session:
        told = {"sample": {"name": "gold"}}
        session.prepare(graph=graph, output=tmp_path, nb_frames=2, metadata=told)
        session.start()
        report = session.wait(30)
    with h5py.File(report.masters["raw"]) as file:
        (entry,) = nxmx.NXmx(file).entries
        assert (entry.instruments[0].name, entry.samples[0].name) == ("ID10", "gold")
        detector = entry.instruments[0].detectors[0]
        assert detector.distance.to("m").magnitude == pytest.approx(0.3)
        assert detector.beam_center_x.magnitude == pytest.approx(0, abs=1e-9)
    (place / "id10.yaml").write_text(text.replace("instrument", "instrumnet"))
    with pytest.raises(BadParameter, match=r"id10\.yaml, metadata\.instrumnet: there is no such"):
        System.read(place / "id10.yaml")


def test_metadata_that_cannot_be_are_refused_before_anything_starts(
    graph: Path, tmp_path: Path
) -> None:
    with Session.open("simulator", processing_nodes=1, detector=DETECTOR) as session:
        with pytest.raises(BadParameter, match=r"geometry\.distance: is not a length"):
            session.prepare(graph=graph, output=tmp_path, metadata={"geometry": {"distance": "1"}})
        assert not session.nodes.acquisition
        other = {**GEOMETRY, "pixel_size": ["172 um", "172 um"]}
        with pytest.raises(BadParameter, match="this geometry is of another detector"):
            session.prepare(graph=graph, output=tmp_path, metadata={"geometry": other})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.yaml"]


def test_the_command_line_takes_files_and_values(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text("sample: {name: insulin, mass: 3}\ngeometry: {poni: x.poni}\n")
    told = metadata_of(["title=first", str(path), "sample.name=lysozyme", "user.address.city=Rome"])
    assert told == {
        "title": "first",
        "sample": {"name": "lysozyme", "mass": 3},
        "user": {"address": {"city": "Rome"}},
        "geometry": {"poni": str(tmp_path / "x.poni")},
    }
    with pytest.raises(BadParameter, match="there is no such metadata file"):
        metadata_of(["sampl.yaml"])
