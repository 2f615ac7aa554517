"""Several acquisition nodes share one acquisition out among them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import lima2py
from lima2py.session.launch import Child
from lima2py.session.session import Session
from lima2py.session.system import System

GRAPH = """
tasks:
  sums: {do: accumulate, from: detector, frames: 7}
  beam: {do: roi_counters, from: sums, rois: {all: [0, 0, 64, 48]}}
  keep: {do: save_dense, from: sums}
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(GRAPH)
    return path


def test_an_endless_run_may_end_at_another_frame_on_each_node(graph: Path, tmp_path: Path) -> None:
    with Session.open(
        "simulator", acquisition_nodes=3, processing_nodes=2, detector={"shape": [48, 64]}
    ) as session:
        session.prepare(graph=graph, nb_frames=0, expo_time=1e-4, output=tmp_path)
        session.start()
        _until(session, 200)
        for handle in session.nodes.acquisition[:2]:
            handle.look("stop", run=session.run)
        _until(session, session.progress().acquired + 200)
        session.stop()
        report = session.wait(30)
        assert report.outcome == "completed"
        assert not report.errors
        assert set(report.absent) == {"not_acquired"}
        assert report.asked == report.saved + report.absent["not_acquired"]
        assert report.absent["not_acquired"] >= 100
        found = list(session.stream("beam"))
    assert [frame.index for frame in found] == list(range(report.asked // 7))
    causes = {frame.absence.cause.word for frame in found if frame.absence}
    assert causes == {"not_acquired"}
    assert report.sinks["keep"]["saved"] == sum(frame.absence is None for frame in found)


def test_nodes_with_rings_of_different_sizes_agree_who_has_which_frame(graph: Path) -> None:
    graph.write_text("tasks: {live: {do: tap, from: detector}}")
    system = System.load(
        {
            "system": "test",
            "detector": "simulator",
            "set": {"shape": [512, 512]},
            "acquisition": [
                {"node": "acq0", "memory": {"ring": "16 MiB"}},
                {"node": "acq1", "memory": {"ring": "64 MiB"}},
            ],
            "processing": [{"node": "proc0"}],
        },
        "test",
    )
    with Session.open(system) as session:
        session.prepare(graph=graph, nb_frames=200, expo_time=1e-6)
        session.start()
        report = session.wait(60)
    assert (report.outcome, report.saved) == ("completed", 200)


def _until(session: Session, frames: int) -> None:
    deadline = time.monotonic() + 30
    while session.progress().acquired < frames:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_acquisition_node_that_is_told_to_end_takes_only_its_own_frames(
    rank: int, graph: Path, tmp_path: Path
) -> None:
    """That of rank 0 keeps the books: the session makes them from the journals, then."""
    graph.write_text("tasks: {keep: {do: save_dense, from: detector}}")
    with Session.open(
        acquisition_nodes=2, processing_nodes=1, detector={"shape": [16, 16]}
    ) as session:
        session.prepare(graph=graph, nb_frames=1000, expo_time=1e-3, output=tmp_path, name="a")
        session.start()
        _until(session, 200)
        leaving = session.nodes.acquisition[rank]
        assert isinstance(leaving, Child)
        os.kill(leaving.pid, signal.SIGTERM)
        report = session.wait(30)
    group = max(count for _, count, *_ in report.absences)
    assert {first // group % 2 for first, *_ in report.absences} == {rank}, report
    assert report.absent.keys() == {"aborted"}
    assert f"node acq{rank} (process {leaving.pid}) exited with status 0" in report.errors
    with lima2py.open(report.masters["keep"]) as kept:
        assert kept.counts == {"saved": report.saved, **report.absent}
