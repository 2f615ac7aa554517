"""The same graph gives the same files wherever it runs, and commands know their place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest

from lima2py.errors import BadCommand, BadGraph, BadParameter, LimaError, StorageError
from lima2py.node.life import State
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.system.rig import assert_verifiable, check_account, detector_group

GRAPH = """
graph: test
tasks:
  small: {do: bin, from: cut, by: [2, 2]}
  cut: {do: crop, from: turned, box: [8, 4, 32, 24]}
  turned: {do: rotate, from: detector, angle: 90}
  beam: {do: roi_counters, from: detector, rois: {all: [0, 0, 64, 48], spot: [10, 12, 8, 6]}}
  live: {do: tap, from: small}
  raw: {do: save_dense, from: detector}
  binned: {do: save_dense, from: small, compression: none}
  counts: {do: save_table, from: beam}
"""
DETECTOR = {"pattern": "verifiable", "shape": [48, 64], "drop": [5, 77], "corrupt": [30]}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture
def here() -> Iterator[Session]:
    with Session.open("simulator", detector=DETECTOR) as session:
        yield session


@pytest.fixture(scope="module", params=[0, 2])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A session in one process, and one with two processing nodes, for many runs."""
    with Session.open("simulator", processing_nodes=request.param, detector=DETECTOR) as session:
        session.prepare(graph="view_only", nb_frames=1)
        session.start()
        session.wait(60)
        yield session


def acquire(session: Session, graph: Path, output: Path, **more: Any) -> Report:
    session.prepare(graph=graph, output=output, **{"nb_frames": 600, "expo_time": 1e-6, **more})
    session.start()
    return session.wait(60)


def contents(report: Report) -> dict[tuple[str, str], Any]:
    """What every master says, apart from times and places."""
    found: dict[tuple[str, str], Any] = {}
    for sink, path in report.masters.items():
        with h5py.File(path, "r") as file:
            group = detector_group(file)
            found[sink, "data"] = group["data"][()]
            for column in ("index", "fate"):
                found[sink, column] = group["frames"][column][()]
            table = group["absences"]
            columns = (
                table[name][()].tolist() for name in ("first", "last", "fate", "who", "detail")
            )
            found[sink, "absences"] = list(zip(*columns, strict=True))
    return found


def test_the_same_graph_gives_the_same_files_wherever_it_runs(graph: Path, tmp_path: Path) -> None:
    shapes = [(1, 0), (1, 1), (1, 3), (2, 2)]
    found = []
    for acquisition_nodes, processing_nodes in shapes:
        with Session.open(
            "simulator",
            acquisition_nodes=acquisition_nodes,
            processing_nodes=processing_nodes,
            detector=DETECTOR,
        ) as session:
            output = tmp_path / f"{acquisition_nodes}-{processing_nodes}"
            report = acquire(session, graph, output)
        assert report.ok, report
        assert report.asked == 600
        assert report.saved == 597
        assert report.absent == {"detector_gap": 2, "corrupt": 1}
        check_account(report.plain())
        found.append(contents(report))
    first = found[0]
    for other in found[1:]:
        assert other.keys() == first.keys()
        for key, value in first.items():
            if isinstance(value, np.ndarray):
                assert (other[key].shape, other[key].dtype) == (value.shape, value.dtype), key
                assert other[key].tobytes() == value.tobytes(), key  # nan equals nan
            else:
                assert other[key] == value, key
    np.testing.assert_array_equal(np.flatnonzero(first["raw", "fate"] != 1), [5, 30, 77])
    assert [index for index, *_ in first["raw", "absences"]] == [5, 30, 77]


@pytest.mark.parametrize("shape", [(512, 512), (7, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_every_pixel_is_what_the_detector_gave(
    graph: Path, tmp_path: Path, shape: tuple[int, int], dtype: str
) -> None:
    detector = {"pattern": "verifiable", "shape": shape, "dtype": dtype}
    with Session.open("simulator", processing_nodes=2, detector=detector) as session:
        report = acquire(session, "save_raw", tmp_path, nb_frames=50)  # type: ignore[arg-type]
    assert report.saved == 50
    assert_verifiable(next(iter(report.masters.values())), shape, dtype)


def test_a_tap_gives_frames_in_order_and_ends_with_the_run(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    all_of_them = {"live.history": 40}
    here.prepare(graph=graph, output=tmp_path, nb_frames=40, expo_time=0.002, overrides=all_of_them)
    here.start()
    seen = [(frame.index, frame.absence and frame.absence.cause.word) for frame in here.tap("live")]
    assert seen[:7] == [(n, "detector_gap" if n == 5 else None) for n in range(7)]
    assert [index for index, _ in seen] == sorted({index for index, _ in seen})
    assert here.wait(10).saved == 38
    with pytest.raises(BadParameter, match=r'tap "life": the graph has no such tap \(did you'):
        here.tap("life")


def test_runs_follow_each_other(here: Session, graph: Path, tmp_path: Path) -> None:
    for number in range(6):
        report = acquire(here, graph, tmp_path, nb_frames=20, name=f"scan{number}")
        assert report.ok
        assert report.name == f"scan{number}"
    assert len(list(tmp_path.glob("*_master.h5"))) == 18


def test_commands_in_the_wrong_state_say_which_and_what_is_possible(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadCommand, match="cannot start while idle; it can: prepare"):
        here.start()
    with pytest.raises(BadCommand, match="cannot stop while idle; it can: prepare"):
        here.stop()
    with pytest.raises(BadCommand, match="cannot wait while idle"):
        here.wait()
    here.prepare(graph=graph, output=tmp_path, nb_frames=0, expo_time=0.001)
    assert here.progress().state is State.PREPARED
    with pytest.raises(BadCommand, match="cannot trigger while prepared; it can: prepare, start"):
        here.trigger()
    here.start()
    with pytest.raises(
        BadCommand, match="cannot prepare while running; it can: pause, stop, abort, trigger"
    ):
        here.prepare(graph=graph)
    with pytest.raises(BadCommand, match=r"has no software trigger|trigger_mode"):
        here.trigger()
    here.stop()
    report = here.wait(10)
    assert report.outcome == "completed"  # endless: a stop is its end
    assert here.state is State.IDLE


def test_a_prepared_run_can_be_prepared_again_and_leaves_no_file(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    here.prepare(graph=graph, output=tmp_path / "a", nb_frames=5)
    here.prepare(graph=graph, output=tmp_path / "b", nb_frames=5, expo_time=1e-6)
    assert not (tmp_path / "a").exists()
    here.start()
    assert here.wait(10).saved == 5
    here.prepare(graph=graph, output=tmp_path / "c", nb_frames=5)
    here.close()
    assert not (tmp_path / "c").exists()


def test_stop_saves_what_was_acquired_and_says_what_was_not(
    anywhere: Session, graph: Path, tmp_path: Path
) -> None:
    anywhere.prepare(graph=graph, output=tmp_path, nb_frames=100_000, expo_time=0.001)
    anywhere.start()
    for frame in anywhere.tap("live"):
        if frame.index > 20:
            anywhere.stop()
            break
    report = anywhere.wait(30)
    assert report.outcome == "stopped"
    assert report.asked == 100_000
    assert report.saved > 15
    assert report.absent["not_acquired"] + report.saved + 1 <= 100_000
    check_account(report.plain())
    with h5py.File(report.masters["raw"], "r") as file:
        fates = detector_group(file)["frames/fate"][()]
        assert fates[0] == 1
        assert fates[-1] == 40


def test_an_endless_run_asks_for_what_it_acquired(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    here.prepare(graph=graph, output=tmp_path, nb_frames=0, expo_time=1e-4)
    here.start()
    while here.progress().settled < 5000:
        time.sleep(0.01)
    here.stop()
    report = here.wait(30)
    assert report.asked >= 5000
    assert report.asked == report.saved + 3
    check_account(report.plain())


def test_abort_closes_files_that_say_so(anywhere: Session, tmp_path: Path) -> None:
    anywhere.prepare(graph="save_raw", output=tmp_path, nb_frames=100_000, expo_time=0.001)
    anywhere.start()
    while anywhere.progress().settled < 10:
        time.sleep(0.01)
    anywhere.abort()
    report = anywhere.wait(10)
    assert report.outcome == "aborted"
    assert report.absent["aborted"] > 90_000
    check_account(report.plain())


@pytest.mark.parametrize("processing_nodes", [0, 1])
def test_a_detector_that_fails_ends_the_run_with_its_words(
    graph: Path, tmp_path: Path, processing_nodes: int
) -> None:
    detector = {"fail_at": 17, "shape": [48, 64]}
    with Session.open("simulator", processing_nodes=processing_nodes, detector=detector) as session:
        report = acquire(session, graph, tmp_path, nb_frames=50)
        assert report.outcome == "failed"
        assert session.state is State.FAULT
        assert report.saved == 17
        assert report.absent == {"not_acquired": 33}
        assert any("simulator" in error and "17" in error for error in report.errors)
        check_account(report.plain())
        again = acquire(session, graph, tmp_path / "next", nb_frames=10)
        assert again.ok


def test_software_triggers_give_frames(here: Session, graph: Path, tmp_path: Path) -> None:
    here.prepare(
        graph=graph, output=tmp_path, nb_frames=6, expo_time=1e-4, trigger_mode="software",
        nb_frames_per_trigger=2,
    )  # fmt: skip
    here.start()
    for number in (2, 4, 6):
        here.trigger()
        while here.progress().settled < number:
            time.sleep(0.01)
    report = here.wait(10)
    assert report.asked == 6
    assert report.ok


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"expo_time": 1e-12}, BadParameter, "expo_time"),
        ({"expo_time": "1 parsec"}, BadParameter, "expo_time"),
        ({"nb_frames": -1}, BadParameter, "nb_frames"),
        ({"nb_frames": "010"}, BadParameter, "nb_frames"),
        ({"trigger_mode": "magic"}, BadParameter, "trigger_mode"),
        ({"exposure": 1}, BadParameter, "there is no such field"),
        ({"roi": [0, 0, 1000, 10]}, BadParameter, "roi"),
        ({"name": "../x"}, BadParameter, "name"),
        ({"graph": "nonsense"}, BadGraph, 'there is no graph "nonsense"'),
        ({"overrides": {"small.by": [7, 7]}}, BadGraph, 'task "small", by: '),
        ({"overrides": {"nothing.by": [7, 7]}}, BadGraph, "nothing"),
        (
            {"overrides": {"raw.file": "x", "binned.file": "x", "binned.frames_per_file": 9}},
            BadParameter,
            "binned.*frames_per_file",
        ),
        ({"output": "/proc/nowhere"}, StorageError, "/proc/nowhere"),
    ],
)
def test_what_cannot_be_is_refused_at_prepare_and_nothing_is_left(
    anywhere: Session,
    graph: Path,
    tmp_path: Path,
    given: dict[str, Any],
    error: type[LimaError],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        anywhere.prepare(**{"graph": graph, "output": tmp_path / "out", "nb_frames": 5, **given})
    assert anywhere.state is State.IDLE
    assert not (tmp_path / "out").exists()
    anywhere.prepare(graph=graph, output=tmp_path / "good", nb_frames=1)
    anywhere.start()
    assert anywhere.wait(30).saved == 1


def test_a_ring_too_small_for_a_frame_is_refused_with_numbers(tmp_path: Path) -> None:
    system = System.load(
        {"system": "s", "detector": "simulator", "set": {"shape": [2048, 2048]},
         "memory": {"ring": "1 MiB"}}, "test"
    )  # fmt: skip
    with (
        Session.open(system) as session,
        pytest.raises(
            LimaError, match="a ring of 1 MiB holds 0 frames of 8 MiB and needs at least"
        ),
    ):
        session.prepare(graph="save_raw", output=tmp_path)


def test_closing_in_the_middle_of_a_run_aborts_it(tmp_path: Path) -> None:
    session = Session.open("simulator", processing_nodes=1)
    session.prepare(graph="save_raw", output=tmp_path, nb_frames=0, expo_time=0.001)
    session.start()
    while session.progress().settled < 5:
        time.sleep(0.01)
    session.close()
    session.close()
    with h5py.File(next(tmp_path.glob("*_master.h5")), "r") as file:
        assert file["entry_0000/lima2py/outcome"].asstr()[()] == "aborted"
