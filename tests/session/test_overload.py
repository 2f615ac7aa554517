"""When the ring is full or the detector lost, what was chosen happens, and frames say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.node.life import State
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.system.rig import check_account, detector_group, wait_until

GRAPH = """
graph: slow
tasks:
  slowly:
    do: python
    from: detector
    file: slow.py
    call: slow
    with: {seconds: 0.0024}
    shape: [128, 128]
    dtype: uint16
  mean: {do: accumulate, from: detector, frames: 4}
  live: {do: tap, from: slowly}
  raw: {do: save_dense, from: slowly}
  means: {do: save_dense, from: mean}
"""
SLOW = """
import time

def slow(frame, seconds):
    time.sleep(seconds)
    return frame
"""
RING = "4 MiB"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW)
    path = tmp_path / "slow.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """One processing node behind a small ring; the parameter is those of the detector."""
    told = {
        "system": "small",
        "detector": "simulator",
        "set": {"shape": [128, 128], "pattern": "verifiable", **getattr(request, "param", {})},
        "memory": {"ring": RING},
        "acquisition": [{"node": "acq0"}],
        "processing": [{"node": "proc0"}],
    }
    with Session.open(System.load(told, "test")) as session:
        yield session


def start(session: Session, graph: Path, policies: dict[str, Any], **asked: Any) -> None:
    session.prepare(
        graph=graph,
        output=graph.parent / "out",
        policies=policies,
        **{"nb_frames": 1000, "expo_time": 0.002, **asked},
    )
    session.start()


def assert_saved_is_true(report: Report) -> None:
    """Every frame that is called saved has its pixels, and as many are as the report says."""
    with h5py.File(report.masters["raw"], "r") as file:
        saved = np.flatnonzero(detector_group(file)["frames/fate"][()] == 1)
        data = file["entry_0000/measurement/data"][()]
    assert len(saved) == report.sinks["raw"]["saved"]
    expected = verifiable_frames(0, len(data), (128, 128))[:, 0]
    np.testing.assert_array_equal(data[saved], expected[saved])


def causes(report: Report) -> set[tuple[str, str]]:
    return {(cause, who) for _, _, cause, who, _ in report.absences}


def test_processing_that_is_too_slow_for_ever_loses_frames_to_the_ring_alone(
    session: Session, graph: Path
) -> None:
    start(session, graph, {"overload": "drop"}, nb_frames=0)
    memory: list[int] = []

    def look() -> int:
        nodes = session.progress().nodes
        memory.append(nodes["acq0"]["memory"] if "acq0" in nodes else 0)
        return session.progress().counts.get("overrun", 0)

    wait_until(lambda: look() >= 200, "frames without room", 60)
    early = max(memory)
    wait_until(lambda: look() >= 600, "more frames without room", 60)
    assert max(memory) < early + 8e6  # 400 frames of 32 KiB more, none of which is kept
    session.stop()
    report = session.wait(60)
    assert report.outcome == "failed"
    assert causes(report) == {("overrun", "ring")}
    assert report.saved > 600  # the ring was never empty
    assert any(" was full: no room for " in text for text in report.errors)
    assert_saved_is_true(report)
    check_account(report.plain() | {"masters": {"raw": report.masters["raw"]}})
    means = report.sinks["means"]
    assert means["saved"] > 0
    assert sum(means.values()) == report.asked // 4


def test_a_run_that_shall_stop_when_the_ring_is_full_fails_and_says_why(
    session: Session, graph: Path
) -> None:
    start(session, graph, {"overload": "stop"}, nb_frames=1500)
    report = session.wait(60)
    assert report.outcome == "failed"
    assert set(report.absent) == {"overrun", "not_acquired"}
    assert any("the readout ended at frame" in text and text.endswith("the ring was full")
               for text in report.errors)  # fmt: skip
    assert any("make the ring larger" in text for text in report.errors)
    assert_saved_is_true(report)


@pytest.mark.parametrize("session", [{"buffer": 20}], indirect=True)
def test_who_waits_for_room_is_told_what_the_detector_lost_meanwhile(
    session: Session, graph: Path
) -> None:
    start(session, graph, {"overload": "wait"})
    report = session.wait(60)
    assert report.outcome == "failed"
    assert causes(report) == {("overrun", "simulator")}
    assert report.saved + report.absent["overrun"] == 1000
    assert_saved_is_true(report)


@pytest.mark.parametrize("session", [{"fail_at": 57}], indirect=True)
def test_what_a_detector_gave_before_it_failed_is_saved(session: Session, graph: Path) -> None:
    start(session, graph, {"detector_loss": "wait"})
    report = session.wait(60)
    assert report.outcome == "failed"
    assert (report.saved, report.absent) == (57, {"not_acquired": 943})
    assert any("failed at frame 57, as asked" in text for text in report.errors)
    assert_saved_is_true(report)


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_full_ring_holds_up_neither_stop_nor_abort(
    session: Session, graph: Path, end: str
) -> None:
    start(session, graph, {"overload": "wait"}, nb_frames=0, expo_time=1e-6)
    wait_until(lambda: session.progress().ring == 1, "a full ring")
    getattr(session, end)()
    getattr(session, end)()  # once more makes no difference
    report = session.wait(60)
    assert report.outcome == {"stop": "completed", "abort": "aborted"}[end]
    assert set(report.absent) <= {"aborted"}
    assert session.state is State.IDLE
    if end == "stop":
        assert report.saved == report.asked
        assert np.isfinite(report.seconds)
