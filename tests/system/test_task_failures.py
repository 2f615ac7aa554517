"""What fails in the middle of a graph, a task or the whole node, costs what it must and no more."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the filters
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frame, verifiable_frames

from lima2py.frame import Array
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage.reading.run_file import RunFile
from tests.system.rig import check_account, detector_group

SHAPE = (24, 32)
DROPPED = (5, 777)
TOPOLOGIES = [(1, 0), (1, 2), (2, 2)]
DETECTOR = {"pattern": "verifiable", "shape": SHAPE, "drop": DROPPED}

MINE = f"""
FIRST = {int(verifiable_frame(0, SHAPE)[0, 0, 0])}

def fragile(frame, at):
    if frame[0, 0] == (FIRST + at) % 65536:
        raise ValueError("no beam")
    return frame

def fragile_sum(frame, four):
    if frame[0, 0] == sum((FIRST + n) % 65536 for n in range(four * 4, four * 4 + 4)):
        raise ValueError("no sum")
    return frame
"""


def write_graph(folder: Path, tasks: Mapping[str, Any]) -> Path:
    (folder / "mine.py").write_text(MINE)
    path = folder / "graph.yaml"
    path.write_text(json.dumps({"tasks": tasks}))
    return path


@pytest.fixture(
    scope="module", params=TOPOLOGIES, ids=lambda nodes: f"{nodes[0]} to {nodes[1]} nodes"
)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """A session on so many acquisition and processing nodes, which are there already."""
    acquisition, processing = request.param
    with Session.open(
        "simulator",
        acquisition_nodes=acquisition,
        processing_nodes=processing,
        detector=DETECTOR,
    ) as opened:
        folder = tmp_path_factory.mktemp("first")
        tasks = {"raw": {"do": "save_dense", "from": "detector"}}
        assert acquire(opened, write_graph(folder, tasks), folder, 10).ok
        yield opened


def acquire(session: Session, graph: Path, output: Path, nb_frames: int) -> Report:
    session.prepare(graph=graph, output=output, nb_frames=nb_frames, expo_time=1e-4)
    session.start()
    return session.wait(60)


def test_failures_cost_the_same_on_any_number_of_nodes(session: Session, tmp_path: Path) -> None:
    """A frame, and a product of four frames: also if their blocks were cut in the middle of it."""
    graph = write_graph(
        tmp_path,
        {
            "raw": {"do": "save_dense", "from": "detector"},
            "one": {"do": "python", "from": "detector", "file": "mine.py", "call": "fragile",
                    "with": {"at": 17}},
            "ones": {"do": "save_dense", "from": "one"},
            "four": {"do": "accumulate", "from": "detector", "frames": 4},
            "sum": {"do": "python", "from": "four", "file": "mine.py", "call": "fragile_sum",
                    "with": {"four": 150}},
            "sums": {"do": "save_dense", "from": "sum"},
        },
    )  # fmt: skip
    report = acquire(session, graph, tmp_path, 1002)
    check_account_of(report)
    spoilt = {4, 6, 7, 776, 778, 779}  # with a frame that is not there
    assert report.absent == {"detector_gap": 2 + len(spoilt), "task_failed": 1 + 4}
    assert report.sinks == {
        "raw": {"saved": 1000, "detector_gap": 2},
        "ones": {"saved": 999, "detector_gap": 2, "task_failed": 1},
        "sums": {"saved": 247, "detector_gap": 2, "task_failed": 1},
    }
    assert report.outcome == "failed"
    assert len(report.errors) == 2
    assert any('task "one" failed: ValueError: no beam' in text for text in report.errors)
    assert any(
        "no sum (mine.py:11), on 4 frames, the first of them 600" in text for text in report.errors
    )
    with RunFile(report.masters["sums"]) as file:
        assert [(first, last) for first, last, said in file.absences if said.who == "sum"] == [
            (150, 150)
        ]


def check_account_of(report: Report) -> None:
    assert report.asked == report.saved + report.rejected + sum(report.absent.values())


def test_a_task_that_fails_can_stop_the_run_and_the_next_one_works(
    session: Session, tmp_path: Path
) -> None:
    tasks: dict[str, Any] = {
        "one": {"do": "python", "from": "detector", "file": "mine.py", "call": "fragile",
                "with": {"at": 17}, "if_fails": "stop"},
        "ones": {"do": "save_dense", "from": "one"},
    }  # fmt: skip
    report = acquire(session, write_graph(tmp_path, tasks), tmp_path / "first", 100_000)
    check_account(report.plain())
    assert report.outcome == "failed"
    assert report.absent["task_failed"] == 1
    assert report.absent["not_acquired"] > 10_000
    assert any('task "one" failed' in text and "no beam" in text for text in report.errors)
    pids = [child.pid for child in nodes_of(session)]
    tasks["one"]["with"] = {"at": 60_000}
    again = acquire(session, write_graph(tmp_path, tasks), tmp_path / "second", 100)
    assert again.ok, again
    assert [child.pid for child in nodes_of(session)] == pids, "a node was started anew"


def nodes_of(session: Session) -> list[Child]:
    nodes = [*session.nodes.acquisition, *session.nodes.processing]
    return [node for node in nodes if isinstance(node, Child)]


def test_a_task_that_protects_the_detector_stops_the_acquisition(
    session: Session, tmp_path: Path
) -> None:
    graph = write_graph(
        tmp_path,
        {
            "guard": {"do": "protect", "from": "detector", "limit": 60_000, "action": "stop",
                      "frames": 40},
            "raw": {"do": "save_dense", "from": "detector"},
        },
    )  # fmt: skip
    report = acquire(session, graph, tmp_path, 100_000)
    check_account(report.plain())
    assert report.outcome == "stopped"
    assert report.saved >= 40
    assert report.absent["not_acquired"] > 10_000
    assert any("guard" in text and "60000" in text for text in report.errors), report.errors


NB_FRAMES = 2003
ACCUMULATED = {
    "raw": {"do": "save_dense", "from": "detector"},
    "ten": {"do": "accumulate", "from": "detector", "frames": 10},
    "sums": {"do": "save_dense", "from": "ten"},
    "beam": {"do": "roi_counters", "from": "ten", "rois": {"all": [0, 0, 32, 24]}},
}


def test_a_killed_node_spoils_no_accumulation(tmp_path: Path) -> None:
    """At random moments; the node is started again for the next run."""
    moments = random.Random(11)
    with Session.open("simulator", processing_nodes=3, detector=DETECTOR) as session:
        graph = write_graph(tmp_path, ACCUMULATED)
        for number in range(3):
            session.prepare(
                graph=graph, output=tmp_path / str(number), nb_frames=NB_FRAMES, expo_time=2e-4
            )
            session.start()
            when, victim = moments.randrange(1, 1600), moments.randrange(3)
            take_away(session, victim, when, signal.SIGKILL)
            report = session.wait(60)
            assert any(f"proc{victim}" in text for text in report.errors), report.errors
            assert_all_is_there(session, report)


def test_a_frozen_node_spoils_no_accumulation(tmp_path: Path) -> None:
    with Session.open("simulator", processing_nodes=3, detector=DETECTOR) as session:
        graph = write_graph(tmp_path, ACCUMULATED)
        session.prepare(graph=graph, output=tmp_path, nb_frames=NB_FRAMES, expo_time=2e-4)
        session.start()
        take_away(session, 1, 300, signal.SIGSTOP)
        assert_all_is_there(session, session.wait(60))


def test_a_group_that_comes_frame_by_frame_waits_for_its_last(tmp_path: Path) -> None:
    """A group may be far more blocks than if the detector had filled them."""
    graph = write_graph(
        tmp_path,
        {
            "all": {"do": "accumulate", "from": "detector", "frames": 150},
            "sums": {"do": "save_dense", "from": "all"},
        },
    )
    with Session.open(
        "simulator", processing_nodes=2, detector={**DETECTOR, "drop": []}
    ) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=300, expo_time=2e-3)
        session.start()
        while session.progress().acquired < 80:
            time.sleep(0.002)
        take_away(session, 0, 0, signal.SIGKILL)
        report = session.wait(60)
    assert report.ok, str(report)
    sums = verifiable_frames(0, 300, SHAPE).reshape(2, 150, *SHAPE).sum(axis=1, dtype="u4")
    assert_saved(report.masters["sums"], sums, ())


def take_away(session: Session, victim: int, when: int, how: signal.Signals) -> None:
    """Send a node a signal once so many frames are done."""
    while session.progress().settled < when:
        time.sleep(0.002)
    child = session.nodes.processing[victim]
    assert isinstance(child, Child)
    os.kill(child.pid, how)


def assert_all_is_there(session: Session, report: Report) -> None:
    check_account_of(report)
    frames = verifiable_frames(0, NB_FRAMES, SHAPE)[:, 0]
    assert_saved(report.masters["raw"], frames, DROPPED)
    sums = frames[: NB_FRAMES // 10 * 10].reshape(-1, 10, *SHAPE).sum(axis=1, dtype="u4")
    assert_saved(report.masters["sums"], sums, (0, 77))
    beam = list(session.stream("beam", "sum"))  # what only the lost node held is absent
    assert [frame.index for frame in beam] == list(range(len(sums)))
    for frame in beam:
        assert (frame.data is None) == (frame.absence is not None)
        assert frame.data is None or frame.data[0] == sums[frame.index].sum()


def assert_saved(master: str, expected: Array, missing: tuple[int, ...]) -> None:
    """A master holds all frames but these."""
    with h5py.File(master, "r") as file:
        assert np.flatnonzero(detector_group(file)["frames/fate"][()] != 1).tolist() == [*missing]
        data = file["entry_0000/measurement/data"][()]
    there = np.setdiff1d(np.arange(len(expected)), missing)
    np.testing.assert_array_equal(data[there], expected[there])
