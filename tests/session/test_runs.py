"""The next run acquires while others are processed; each keeps its frames, files and report."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lima2py import Session
from lima2py.errors import BadCommand, BadParameter, LimaError, NodeError
from lima2py.node.life import State
from lima2py.session.launch import Child
from lima2py.session.run import SessionRun
from tests.system.rig import assert_verifiable, check_account

SLOW = """
graph: slow
about: Every frame takes its time.
tasks:
  slow: {do: python, from: detector, file: slow.py, call: slow}
  raw:  {do: save_dense, from: slow, file: "{name}"}
  live: {do: tap, from: slow}
"""
SHAPE = {"shape": [32, 32], "pattern": "verifiable"}


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text("import time\n\n\ndef slow(image):\n    time.sleep(0.005)\n")
    (tmp_path / "slow.yaml").write_text(SLOW)
    return tmp_path / "slow.yaml"


@pytest.fixture
def lima() -> Iterator[Session]:
    with Session.open("simulator", processing_nodes=2, detector=SHAPE) as session:
        yield session


def begin(lima: Session, graph: Path, name: str, frames: int = 100, **more: object) -> SessionRun:
    lima.prepare(
        nb_frames=frames, expo_time=2e-5, graph=graph, output=graph.parent, name=name,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return lima.start()


def check(run: SessionRun, frames: int = 100) -> None:
    report = run.wait(60)
    assert report.outcome == "completed", str(report)
    assert (report.asked, report.saved) == (frames, frames)
    assert report.run == run.id
    check_account(report.plain())
    assert_verifiable(report.masters["raw"], (32, 32))


def test_ten_runs_in_a_row_are_acquired_before_the_first_is_processed(
    lima: Session, slow: Path
) -> None:
    runs = []
    for number in range(10):
        runs.append(begin(lima, slow, f"batch{number}"))
        lima.wait_acquired(30)
    assert sum(run.going for run in runs) >= 2, "the first ones may be done on a busy host"
    assert list(lima.runs.values()) == runs
    for run in runs:
        check(run)
    assert [run.report.name for run in runs if run.report] == [f"batch{n}" for n in range(10)]
    assert lima.state is State.IDLE


def test_a_run_that_has_its_frames_leaves_the_detector_to_the_next_one(
    lima: Session, slow: Path
) -> None:
    before = begin(lima, slow, "before", processing="when_told")
    lima.wait_acquired(10)
    now = begin(lima, slow, "now", frames=2, trigger_mode="software")
    for command in (before.pause, before.trigger):
        with pytest.raises(BadCommand, match=r"cannot \w+ for this run"):
            command()
    assert now.progress().acquired == 0
    now.pause()
    with pytest.raises(BadCommand, match="cannot trigger while paused"):
        now.trigger()
    now.resume()
    now.trigger()
    now.trigger()
    check(now, 2)
    before.process()
    check(before)


def test_a_node_that_is_lost_before_the_start_leaves_nothing_in_the_way(
    lima: Session, slow: Path
) -> None:
    lima.prepare(nb_frames=20, expo_time=1e-4, graph=slow, output=slow.parent, name="same")
    victim = lima.nodes.processing[0]
    assert isinstance(victim, Child)
    victim.kill()
    with pytest.raises(NodeError, match=r"proc0 .* signal 9.*; the run is given up: prepare it"):
        lima.start()
    assert not list(slow.parent.glob("*.h5*"))
    check(begin(lima, slow, "same", 20), 20)


def test_a_node_that_froze_between_two_runs_is_started_again_for_the_next(
    lima: Session, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lima2py.session.nodes.SILENCE", 0.5)
    check(begin(lima, slow, "first", 20), 20)
    victim = lima.nodes.processing[0]
    assert isinstance(victim, Child)
    os.kill(victim.pid, signal.SIGSTOP)
    check(begin(lima, slow, "second", 20), 20)
    assert lima.nodes.processing[0] is not victim


@pytest.mark.parametrize("processing_nodes", [0, 1])
def test_a_run_is_remembered_until_its_report_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processing_nodes: int
) -> None:
    """Whoever waits for the detector sees the end of a run long before its watch does."""
    monkeypatch.setattr("lima2py.session.watch.WATCH_EVERY", 2.0)
    graph = tmp_path / "plain.yaml"
    graph.write_text(
        'graph: plain\ntasks:\n  raw: {do: save_dense, from: detector, file: "{name}"}\n'
    )
    with Session.open("simulator", processing_nodes=processing_nodes, detector=SHAPE) as session:
        runs = []
        for number in range(6):
            runs.append(begin(session, graph, f"short{number}", 5))
            session.wait_acquired(30)
        for run in runs:
            check(run, 5)


def test_while_the_detector_is_busy_nothing_is_prepared(lima: Session, slow: Path) -> None:
    run = begin(lima, slow, "busy", frames=0)
    with pytest.raises(BadCommand, match="cannot prepare while running; it can: pause, stop"):
        begin(lima, slow, "next")
    run.stop()
    run.wait_acquired(10)
    following = begin(lima, slow, "next")
    assert run.wait(60).outcome == "completed"
    check(following)


def test_a_stop_of_the_run_before_does_not_stop_the_detector(lima: Session, slow: Path) -> None:
    first = begin(lima, slow, "first", frames=300)
    first.wait_acquired(30)
    second = begin(lima, slow, "second", frames=300)
    first.stop()
    check(second, 300)
    check(first, 300)  # all of its frames were there when it was stopped


def test_abort_of_one_leaves_the_others_alone(lima: Session, slow: Path) -> None:
    runs = []
    for number in range(3):
        runs.append(begin(lima, slow, f"run{number}", frames=200))
        lima.wait_acquired(30)
    lima.cancel(runs[1].id)
    report = runs[1].wait(60)
    assert report.outcome == "aborted"
    check_account(report.plain())
    check(runs[0], 200)
    check(runs[2], 200)


def test_a_prepared_run_is_cancelled_and_leaves_nothing(lima: Session, slow: Path) -> None:
    lima.prepare(nb_frames=5, graph=slow, output=slow.parent, name="never")
    run = lima.runs[lima.run]
    before = sorted(slow.parent.iterdir())
    lima.cancel(run.id)
    assert run.state is State.IDLE
    assert run.report is None
    assert len(before) > len(sorted(slow.parent.iterdir()))  # its reservation is gone
    with pytest.raises(BadCommand, match="cannot start while idle; it can: prepare"):
        lima.start()
    lima.cancel(run.id)
    with pytest.raises(BadParameter, match="this session has none of this id"):
        lima.cancel("nobody")


def test_processing_waits_until_all_is_acquired(lima: Session, slow: Path) -> None:
    run = begin(lima, slow, "later", processing="when_acquired")
    check(run)


def test_processing_waits_until_it_is_told(lima: Session, slow: Path) -> None:
    waiting = begin(lima, slow, "waiting", processing="when_told")
    waiting.wait_acquired(30)
    check(begin(lima, slow, "before"))
    assert waiting.going
    assert waiting.progress().settled == 0
    waiting.process()
    check(waiting)


def test_a_run_that_waits_to_be_told_can_be_aborted(lima: Session, slow: Path) -> None:
    run = begin(lima, slow, "waiting", processing="when_told")
    run.wait_acquired(30)
    run.abort()
    report = run.wait(30)
    assert report.absent == {"aborted": 100}


@pytest.mark.parametrize(
    ("frames", "said"),
    [(0, "endless frames would wait in the ring"), (10**6, "1000000 frames would wait")],
)
def test_processing_is_not_put_off_where_the_ring_cannot_hold_all(
    lima: Session, slow: Path, frames: int, said: str
) -> None:
    with pytest.raises(BadParameter, match=f"processing when_told: {said}.*ring larger"):
        begin(lima, slow, "large", frames, processing="when_told")
    check(begin(lima, slow, "next"))


def test_in_one_process_processing_is_not_put_off(slow: Path) -> None:
    with (
        Session.open("simulator", detector=SHAPE) as session,
        pytest.raises(BadParameter, match="in one process every frame is processed at once"),
    ):
        begin(session, slow, "here", processing="when_acquired")


def test_runs_share_one_ring_and_what_does_not_fit_is_refused_with_numbers(slow: Path) -> None:
    text = "\n".join([
        "system: small", "detector: simulator", "set: {shape: [32, 32], pattern: verifiable}",
        "acquisition: [{node: acq0}]", "processing: [{node: proc0}]", "memory: {ring: 512 KiB}",
    ])  # fmt: skip
    (slow.parent / "small.yaml").write_text(text)
    with Session.open(slow.parent / "small.yaml") as lima:
        waiting: list[SessionRun] = []

        def until_it_is_full() -> None:
            for number in range(50):
                run = begin(lima, slow, f"w{number}", 20, processing="when_told")
                run.wait_acquired(30)
                waiting.append(run)

        with pytest.raises(LimaError, match=r"are held by runs that are|would wait in the ring"):
            until_it_is_full()
        assert len(waiting) > 1
        for run in waiting:
            run.process()
        for run in waiting:
            check(run, 20)
        check(begin(lima, slow, "next", 500), 500)


def test_a_killed_node_costs_no_run_a_frame(lima: Session, slow: Path) -> None:
    runs = []
    for number in range(3):
        runs.append(begin(lima, slow, f"run{number}", frames=200))
        lima.wait_acquired(30)
    victim = lima.nodes.processing[0]
    victim.kill()  # type: ignore[attr-defined]
    for run in runs:
        check(run, 200)


def test_what_passes_a_tap_of_an_earlier_run_is_still_seen(lima: Session, slow: Path) -> None:
    first = begin(lima, slow, "first", frames=200)
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(f.index for f in first.tap("live")))
    reader.start()
    first.wait_acquired(30)
    second = begin(lima, slow, "second")
    check(first, 200)
    check(second)
    reader.join(30)
    assert seen
    assert max(seen) >= 190
