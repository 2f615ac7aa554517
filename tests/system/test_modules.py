"""Modules that several acquisition nodes deliver are joined; none is mixed up or vanishes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.acquisition import Acquisition
from lima2py.detector_file import open_detector
from lima2py.errors import BadParameter
from lima2py.frame import Array
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.system.rig import assert_verifiable, detector_group, wait_until

SHAPE = (96, 64)
MODULES = [f"module_{row}_{column}" for row in range(3) for column in range(2)]
FILL = 65535
FRAMES = 3000


def system(nodes: Mapping[str, list[str]], processing: int = 2, **set: Any) -> System:
    """Acquisition nodes with their modules, and processing nodes."""
    values = {
        "system": "modules",
        "detector": "simulator",
        "set": {"shape": SHAPE, "modules": [3, 2], "pattern": "verifiable", **set},
        "acquisition": [{"node": name, "modules": modules} for name, modules in nodes.items()],
        "processing": [{"node": f"proc{rank}"} for rank in range(processing)],
        "memory": {"ring": "8 MiB"},
    }
    return System.load(values, "test")


THREE = {"acq0": MODULES[4:], "acq1": [MODULES[0], MODULES[3]], "acq2": MODULES[1:3]}
TWO = {"acq0": [MODULES[n] for n in (4, 0, 5, 3)], "acq1": MODULES[1:3]}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    """For the tests that lose no node."""
    with Session.open(system(THREE)) as opened:
        opened.nodes.start(opened.system)
        yield opened


@pytest.fixture
def fragile(request: pytest.FixtureRequest) -> Iterator[Session]:
    """For those that do: what a run loses is started again for the next."""
    with Session.open(system(TWO, request.param)) as opened:
        yield opened


def begin(session: Session, output: Path, name: str = "run", **more: Any) -> None:
    parameters = {"nb_frames": FRAMES, "expo_time": 300e-6, "graph": "save_raw", **more}
    session.prepare(output=output, name=name, **parameters)
    session.start()


def strike(session: Session, name: str, how: signal.Signals, after: int = 300) -> None:
    """Send a signal to a node, when so many frames are done."""
    wait_until(lambda: session.progress().settled >= after, f"{after} frames", 30)
    handles = [*session.nodes.acquisition, *session.nodes.processing]
    (found,) = [handle for handle in handles if handle.name == name]
    os.kill(int(found.pid), how)  # type: ignore[attr-defined]


def contents(report: Report, *columns: str) -> tuple[Array, ...]:
    """Frames, fates, and other columns of what was saved."""
    with h5py.File(report.masters["raw"], "r") as file:
        frames = detector_group(file)["frames"]
        found = [frames[name][()] for name in ("fate", *columns)]
        return file["entry_0000/measurement/data"][()], *found


def test_frames_are_put_together_run_after_run(tmp_path: Path, session: Session) -> None:
    for name, frames in (("one", 1), ("odd", 7), ("many", 2000)):
        begin(session, tmp_path, name, nb_frames=frames, expo_time=1e-6)
        report = session.wait(60)
        assert report.ok, report
        assert report.saved == frames
        assert_verifiable(report.masters["raw"], SHAPE)
    graph = "graph: sums\ntasks:\n"
    graph += "  sums: {do: accumulate, from: detector, frames: 7}\n"
    graph += '  saved: {do: save_dense, from: sums, file: "{name}"}\n'
    (tmp_path / "sums.yaml").write_text(graph)
    begin(session, tmp_path, "sums", graph=tmp_path / "sums.yaml", nb_frames=700, expo_time=1e-6)
    report = session.wait(60)
    assert report.ok, report
    with h5py.File(report.masters["saved"], "r") as file:
        sums = file["entry_0000/measurement/data"][()]
    expected = verifiable_frames(0, 700, SHAPE)[:, 0].astype(np.uint64)
    np.testing.assert_array_equal(sums, expected.reshape(100, 7, *SHAPE).sum(axis=1))


@pytest.mark.parametrize("fragile", [2], indirect=True)
def test_processing_nodes_that_are_lost_or_leave_lose_no_frame(
    tmp_path: Path, fragile: Session
) -> None:
    for name in ("killed", "frozen", "left"):
        begin(fragile, tmp_path, name)
        if name == "left":
            wait_until(lambda: fragile.progress().settled >= 300, "frames", 30)
            fragile.drain("proc1")
        else:
            how = signal.SIGKILL if name == "killed" else signal.SIGSTOP
            strike(fragile, "proc0", how)
        report = fragile.wait(60)
        assert report.saved == FRAMES, report
        assert_verifiable(report.masters["raw"], SHAPE)


@pytest.mark.parametrize("fragile", [1], indirect=True)
def test_frames_without_the_modules_of_a_lost_node_are_marked_or_kept(
    tmp_path: Path, fragile: Session
) -> None:
    policies = {"detector_loss": "wait", "join_timeout": 0.2}
    begin(fragile, tmp_path, "marked", policies={"missing_modules": "mark", **policies})
    strike(fragile, "acq1", signal.SIGKILL)
    report = fragile.wait(60)
    assert set(report.absent) == {"incomplete"}, report
    assert report.asked == FRAMES
    assert report.outcome == "failed", report
    assert any("acquisition node acq1 was lost" in text for text in report.errors), report
    assert any("missed modules of acquisition node acq1" in text for text in report.remarks)
    data, fates = contents(report)
    expected = verifiable_frames(0, FRAMES, SHAPE)[:, 0]
    np.testing.assert_array_equal(data[fates == 1], expected[fates == 1])

    begin(fragile, tmp_path, "kept", policies={"missing_modules": "keep", **policies})
    strike(fragile, "acq1", signal.SIGSTOP)
    report = fragile.wait(60)
    assert report.saved == report.asked == FRAMES, report
    data, _, bits = contents(report, "module_missing")
    lost = sum(1 << MODULES.index(module) for module in TWO["acq1"])
    assert set(np.unique(bits)) == {0, lost}
    expected[bits > 0, 0:32, 32:64] = FILL
    expected[bits > 0, 32:64, 0:32] = FILL
    np.testing.assert_array_equal(data, expected)


@pytest.mark.parametrize("fragile", [1], indirect=True)
def test_the_loss_of_an_acquisition_node_ends_the_run_and_the_next_one_is_whole(
    tmp_path: Path, fragile: Session
) -> None:
    begin(fragile, tmp_path, "follower", nb_frames=0)
    strike(fragile, "acq1", signal.SIGKILL)
    report = fragile.wait(30)
    assert report.outcome == "failed", report
    assert report.saved + report.absent.get("incomplete", 0) == report.asked >= 300

    begin(fragile, tmp_path, "lead")  # as the one that was lost is started again
    strike(fragile, "acq0", signal.SIGKILL)
    report = fragile.wait(60)
    assert report.outcome == "failed", report
    assert report.saved >= 300
    data, fates = contents(report)
    saved = fates == 1
    np.testing.assert_array_equal(data[saved], verifiable_frames(0, FRAMES, SHAPE)[:, 0][saved])

    begin(fragile, tmp_path, "whole", nb_frames=50)
    assert fragile.wait(30).ok


def test_a_stop_ends_all_modules_at_the_same_frame(tmp_path: Path, session: Session) -> None:
    begin(session, tmp_path, nb_frames=0, expo_time=1e-3)
    wait_until(lambda: session.progress().settled >= 200, "frames", 30)
    session.stop()
    report = session.wait(30)
    assert report.saved == report.asked >= 200, report
    assert_verifiable(report.masters["raw"], SHAPE)
    begin(session, tmp_path, "aborted", nb_frames=0, expo_time=1e-3)
    wait_until(lambda: session.progress().settled >= 200, "frames", 30)
    session.abort()
    assert session.wait(30).outcome == "aborted"
    begin(session, tmp_path, "next", nb_frames=50)
    assert session.wait(30).ok


def test_what_the_detector_says_of_modules_is_said_of_frames(tmp_path: Path) -> None:
    some = {"acq0": MODULES[1:3] + MODULES[4:], "acq1": [MODULES[0], MODULES[3]]}
    with Session.open(system(some, 1, drop=[5], incomplete=[6, 8], corrupt=[30])) as alone:
        begin(alone, tmp_path, nb_frames=40)
        report = alone.wait(30)
    assert report.absent == {"detector_gap": 1, "incomplete": 2, "corrupt": 1}, report
    words = {first: detail for first, _, _, _, detail in report.absences}
    assert words[6] == "module_0_0, module_1_1: module_0_0 is missing (simulated)"


def test_modules_that_fit_nobody_are_refused(tmp_path: Path) -> None:
    few = {"acq0": MODULES[:3], "acq1": MODULES[4:]}
    said = "module_1_1 belongs to no acquisition node"
    with Session.open(system(few, 1)) as alone, pytest.raises(BadParameter, match=said):
        begin(alone, tmp_path)
    for modules, said, more in (
        (["nose"], "modules nose: detector simulator has none", {}),
        (MODULES[:2], "gives single modules only uncompressed", {"encoding": "bslz4"}),
    ):
        parameters = {"shape": SHAPE, "modules": [3, 2], **more}
        with (
            closing(open_detector("simulator", parameters, tmp_path)) as detector,
            pytest.raises(BadParameter, match=said),
        ):
            detector.describe_modules(Acquisition(), modules)
    for nodes, said in (
        ({"acq0": MODULES, "acq1": []}, "acq1: have no modules, and others have"),
        ({"acq0": MODULES[:4], "acq1": MODULES[3:]}, "module_1_1: belong to two"),
    ):
        with pytest.raises(BadParameter, match=said):
            system(nodes)
