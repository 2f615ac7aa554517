"""A run that is paused takes no frame, loses none, and can be ended like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lima2py.errors import BadCommand
from lima2py.node.life import State
from lima2py.session.progress import Progress
from lima2py.session.report import Report
from lima2py.session.session import Session
from tests.system.rig import assert_verifiable, check_account, detector_group, wait_until

DETECTOR = {"pattern": "verifiable", "shape": [8, 8]}
GRAPH = """
graph: pausing
tasks:
  live: {do: tap, from: detector}
  raw: {do: save_dense, from: detector}
"""
SHAPES = [(1, 0), (1, 1), (2, 2)]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "pausing.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    acquisition, processing = request.param
    folder = tmp_path_factory.mktemp("warm")
    (folder / "pausing.yaml").write_text(GRAPH)
    with Session.open(
        "simulator",
        acquisition_nodes=acquisition,
        processing_nodes=processing,
        detector=DETECTOR,
    ) as session:
        session.prepare(graph=folder / "pausing.yaml", output=folder)  # starts the nodes
        yield session


@pytest.fixture(scope="module")
def here() -> Iterator[Session]:
    with Session.open("simulator", detector=DETECTOR) as session:
        yield session


def start(session: Session, graph: Path, output: Path, **more: Any) -> None:
    asked = {"nb_frames": 400, "expo_time": 0.002, **more}
    session.prepare(graph=graph, output=output / "out", **asked)
    session.start()


def in_state(session: Session, state: State) -> None:
    wait_until(lambda: session.state is state, state.value)


def stands_still(session: Session) -> int:
    """How many frames are done, once that is the same at three looks."""
    seen: list[Progress] = []

    def still() -> bool:
        if not seen or session.progress() is not seen[-1]:
            seen.append(session.progress())
        return len(seen) > 2 and len({progress.settled for progress in seen[-3:]}) == 1

    wait_until(still, "a pause")
    return seen[-1].settled


def timestamps(report: Report) -> np.ndarray[Any, np.dtype[np.float64]]:
    with h5py.File(report.masters["raw"], "r") as file:
        return np.asarray(detector_group(file)["frames/timestamp"][()])


def test_a_pause_loses_no_frame_and_the_timestamps_jump(
    session: Session, graph: Path, tmp_path: Path
) -> None:
    start(session, graph, tmp_path)
    wait_until(lambda: session.progress().settled > 20, "the first frames")
    session.pause()
    in_state(session, State.PAUSED)
    taken = stands_still(session)
    assert 20 < taken < 400
    with pytest.raises(TimeoutError):
        session.wait(0.2)
    assert stands_still(session) == taken
    session.resume()
    report = session.wait(60)
    assert report.ok, report
    assert report.saved == 400
    assert_verifiable(report.masters["raw"], (8, 8), "uint16")
    check_account(report.plain())
    steps = np.diff(timestamps(report))
    assert (steps > 0.2).any()
    if len(session.nodes.acquisition) == 1:  # two are held at two frames of their own
        assert (steps > 0.2).sum() == 1
        assert (steps > 0).all()


@pytest.mark.parametrize("end", ["stop", "abort"])
def test_a_paused_run_can_be_ended(session: Session, graph: Path, tmp_path: Path, end: str) -> None:
    start(session, graph, tmp_path)
    wait_until(lambda: session.progress().settled > 20, "the first frames")
    session.pause()
    getattr(session, end)()
    report = session.wait(60)
    assert report.outcome == {"stop": "stopped", "abort": "aborted"}[end]
    assert 20 < report.saved < 400
    check_account(report.plain())


def test_software_triggers_are_refused_while_a_run_is_paused(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    start(here, graph, tmp_path, nb_frames=4, nb_frames_per_trigger=2, trigger_mode="software")
    here.trigger()
    here.pause()
    with pytest.raises(BadCommand, match="cannot trigger while paused; it can: resume, stop"):
        here.trigger()
    wait_until(lambda: here.progress().settled == 2, "the frames of the first trigger")
    here.resume()
    here.trigger()
    report = here.wait(60)
    assert (report.outcome, report.saved) == ("completed", 4)


def test_a_run_whose_last_frames_come_while_it_is_paused_completes(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    start(here, graph, tmp_path, nb_frames=3, nb_frames_per_trigger=3, trigger_mode="software",
          expo_time=0.05)  # fmt: skip
    here.trigger()
    here.pause()
    report = here.wait(60)
    assert (report.outcome, report.saved) == ("completed", 3)


def test_commands_in_the_wrong_state_say_what_is_possible(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadCommand, match="cannot pause while idle; it can: prepare"):
        here.pause()
    start(here, graph, tmp_path, nb_frames=0)
    in_state(here, State.RUNNING)
    with pytest.raises(BadCommand, match="cannot resume while running; it can: pause, stop"):
        here.resume()
    here.pause()
    with pytest.raises(BadCommand, match="cannot pause while paused; it can: resume, stop"):
        here.pause()
    in_state(here, State.PAUSED)
    with pytest.raises(BadCommand, match="cannot start while paused; it can: resume, stop, abort"):
        here.start()
    here.abort()
    here.wait(60)


def test_a_signal_from_outside_cannot_be_paused(here: Session, graph: Path, tmp_path: Path) -> None:
    start(here, graph, tmp_path, nb_frames=0, trigger_mode="external")
    with pytest.raises(BadCommand, match="come with an external signal; hold that back"):
        here.pause()
    assert here.state is State.RUNNING
    here.abort()
    here.wait(60)


def test_of_two_acquisition_nodes_both_pause_or_none(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(
        "simulator", acquisition_nodes=2, processing_nodes=1, detector=DETECTOR
    ) as session:
        start(session, graph, tmp_path, nb_frames=0)
        session.nodes.acquisition[1].look("pause", run=session.run)  # it will refuse to do it again
        with pytest.raises(BadCommand, match="acq1 cannot pause while paused"):
            session.pause()
        session.nodes.acquisition[1].look("resume", run=session.run)
        in_state(session, State.RUNNING)
        before = session.progress().settled
        wait_until(lambda: session.progress().settled > before + 20, "frames of both nodes")
        session.stop()
        assert session.wait(60).outcome == "completed"


def test_when_it_was_paused_stands_in_the_master(
    here: Session, graph: Path, tmp_path: Path
) -> None:
    start(here, graph, tmp_path)
    here.pause()
    here.resume()
    report = here.wait(60)
    with h5py.File(report.masters["raw"], "r") as file:
        found: list[h5py.Group] = []
        file.visititems(
            lambda path, item: found.append(item) if path.endswith("local/state") else None
        )
        (log,) = found
        assert [word.decode() for word in log["value"][()]] == ["paused", "running"]
