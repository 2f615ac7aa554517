"""Graphs that span stages of nodes give the same files as one process, and lose no frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lima2py.errors import BadGraph, BadParameter
from lima2py.session.events import Kind
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from tests.chaos.audit import TASKS, Taken, audit
from tests.system.rig import wait_until

SHAPE = (128, 128)
LATE = ("live", "numbers", "events", "few", "sums", "kept")
"""What runs in the second stage: products of every kind, and frames as they come, cross."""
EVERYBODY = frozenset(range(1000))


def system(*nodes: str, acquisition: int = 1, **values: Any) -> System:
    """Processing nodes by name, of the stage `late` if it begins with `late`."""
    places = [
        {"node": node, "stage": "late", "tags": {"disk": "fast"}} if node.startswith("late")
        else {"node": node}
        for node in nodes
    ]  # fmt: skip
    return System.load(
        {
            "system": "staged",
            "detector": "simulator",
            "set": {"pattern": "verifiable", "shape": SHAPE},
            "acquisition": [{"node": f"acq{rank}"} for rank in range(acquisition)],
            "processing": places,
            **values,
        },
        "system",
    )


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> str:
    tasks = {
        name: {**task, "needs": {"disk": "fast"}} if name in LATE else task
        for name, task in TASKS.items()
    }
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    path.write_text(json.dumps({"tasks": tasks}))
    return str(path)


def child(session: Session, name: str) -> Child:
    (found,) = (node for node in session.nodes.processing if node.name == name)
    assert isinstance(found, Child)
    return found


def whole(report: Report, folder: Path, frames: int) -> list[str]:
    """What is wrong with a run that should have lost nothing."""
    complete = report.outcome == "completed" and report.saved + report.rejected == frames
    problems = [] if complete else [f"{report} {report.errors}"]
    return problems + audit(report, Taken(SHAPE), folder, frozenset(), EVERYBODY)


def test_no_frame_is_lost_with_nodes_of_any_stage(tmp_path: Path, graph: str) -> None:
    """Each run of one session loses other nodes, and has those that came again."""
    noticed: set[str] = set()
    with Session(system("a0", "a1", "late0", "late1")) as session:
        for lost in (["late1"], ["a0"], ["a1", "late0"]):
            folder = tmp_path / "".join(lost)
            session.prepare(
                graph=graph, output=folder, nb_frames=2000, expo_time=1e-4,
                policies={"node_patience": 60, "restarts": 20},
            )  # fmt: skip
            run = session.start()
            wait_until(lambda: session.progress().settled > 100, "frames")
            for name in lost:
                child(session, name).kill()
            report = session.wait(60)
            assert whole(report, folder, 2000) == [], lost
            noticed |= {event.node for event in run.events() if event.kind is Kind.NODE_LOST}
            if lost == ["late1"]:
                assert [frame.index for frame in run.stream("spot")] == list(range(2000))
    assert noticed & {"a0", "a1"}
    assert noticed & {"late0", "late1"}


@pytest.fixture(scope="module")
def redistributing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Two acquisition nodes, one node that only hands frames on, and two that work."""
    reserved = system(
        "a0", "late0", "late1", acquisition=2, memory={"ring": 2**21},
        stages={"processing": {"reserved": True}},
    )  # fmt: skip
    with Session(reserved) as session:
        session.nodes.start(session.system)
        yield session


def test_a_stop_ends_sums_where_the_frames_of_each_detector_end(
    tmp_path: Path, graph: str, redistributing: Session
) -> None:
    """One of the nodes that work leaves before, and no frame with it."""
    session = redistributing
    session.prepare(graph=graph, output=tmp_path, nb_frames=0, expo_time=1e-4)
    assert "stage processing (a0): nothing but handing frames on" in session.plan
    run = session.start()
    wait_until(lambda: session.progress().settled > 300, "frames")
    session.drain("late1")
    wait_until(lambda: session.progress().nodes["late1"]["state"] == "idle", "the end of late1")
    done = session.progress().settled
    wait_until(lambda: session.progress().settled > done + 100, "frames of the other one")
    assert next(session.tap("live", timeout=30)).data is not None
    session.stop()
    report = session.wait(60)
    assert report.outcome == "completed", report
    assert report.saved + report.rejected + report.absent.get("not_acquired", 0) == report.asked
    assert audit(report, Taken(SHAPE), tmp_path, frozenset({"not_acquired"}), frozenset()) == []
    assert next(run.stream("spot")).index == 0


def test_an_abort_ends_all_stages_and_what_was_done_is_there(
    tmp_path: Path, graph: str, redistributing: Session
) -> None:
    session = redistributing
    session.prepare(graph=graph, output=tmp_path, nb_frames=3000, expo_time=1e-3)
    session.start()
    wait_until(lambda: session.progress().settled > 300, "frames")
    session.abort()
    report = session.wait(60)
    assert report.outcome == "aborted"
    assert report.saved > 100
    assert set(report.absent) == {"aborted"}
    assert audit(report, Taken(SHAPE), tmp_path, frozenset({"aborted"}), EVERYBODY) == []


def test_a_slow_second_stage_fills_the_rings_and_the_policy_holds_at_the_detector(
    tmp_path: Path, redistributing: Session
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef slow(frame):\n    time.sleep(0.002)\n    return frame\n"
    )
    tasks = {
        "raw": TASKS["raw"],
        "slowly": {"do": "python", "from": "detector", "file": "slow.py", "call": "slow"},
        "live": {"do": "tap", "from": "slowly"},
    }
    path = tmp_path / "slow.yaml"
    path.write_text(json.dumps({"tasks": tasks}))
    session = redistributing
    session.prepare(
        graph=path, output=tmp_path / "out", nb_frames=2000, expo_time=1e-4,
        policies={"overload": "drop"},
    )  # fmt: skip
    run = session.start()
    report = session.wait(60)
    assert set(report.absent) == {"overrun"}, report
    assert report.saved > 100
    full = {event.node for event in run.events() if event.kind is Kind.RING_FULL}
    assert full & {"acq0", "acq1"}
    assert audit(report, Taken(SHAPE), tmp_path / "out", frozenset({"overrun"}), frozenset()) == []


def test_what_no_node_has_is_refused_and_nothing_is_made(
    tmp_path: Path, graph: str, redistributing: Session
) -> None:
    overrides = {"raw.needs": {"gpu": 1}}
    with pytest.raises(BadGraph, match=r'task "raw", needs: gpu 1, which no stage has .* a0 lacks'):
        redistributing.prepare(graph=graph, output=tmp_path, nb_frames=5, overrides=overrides)
    assert not list(tmp_path.iterdir())
    alone = Session.open(detector={"shape": SHAPE})
    with alone, pytest.raises(BadGraph, match="this process lacks disk fast"):
        alone.prepare(graph=graph, output=tmp_path, nb_frames=5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stages": {"lat": {}}}, "no processing node is of stage lat.*late"),
        ({"tags": {"gpu": 1}}, "are of the one process"),
        ({"acquisition": [{"node": "acq0", "stage": "late"}]}, "acq0: stage and tags are of proc"),
    ],
)
def test_stages_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        System.load(system("a0", "late0").model_dump(mode="json") | values, "system")
