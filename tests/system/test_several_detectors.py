"""Frames of several detectors come together by event, with the rates that trigger maps say."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.control.isolate import Frames, Isolation
from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import Fate
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.storage.reading.run_file import RunFile
from lima2py.trigger_map import TriggerMap
from tests.chaos.trial import TRIP
from tests.system.rig import wait_until

SHAPE, SMALL = (48, 64), (48, 32)
GAP = 5
"""The frame that `slow` skips."""
MAPS: dict[str, list[int | None]] = {
    "fourth": [0, None, None, None],
    "slow": [None, None, None, 0, None, None, None],
    "long": [0, 0, 0],
}
SYSTEM: dict[str, Any] = {
    "system": "several",
    "detector": "simulator",
    "set": {"shape": SHAPE, "pattern": "verifiable"},
    "detectors": {
        name: {
            "detector": "simulator",
            "set": {"name": name, "shape": SMALL, "pattern": "verifiable",
                    "drop": [GAP] if name == "slow" else []},
            "events": pattern,
        }
        for name, pattern in MAPS.items()
    },
    "acquisition": [
        {"node": "acq0"},
        *({"node": f"of_{name}", "detector": name} for name in MAPS),
    ],
    "processing": [{"node": "proc0"}, {"node": "proc1"}],
    "memory": {"ring": "8 MiB"},
}  # fmt: skip
EVERYTHING = {
    "raw": {"do": "save_dense", "from": "detector", "file": "{name}_raw"},
    **{
        f"save_{name}": {"do": "save_dense", "from": name, "file": f"{{name}}_{name}"}
        for name in MAPS
    },
    "left": {"do": "crop", "from": "detector", "box": [0, 0, 32, 48]},
    "both": {"do": "stack_bands", "from": ["left", "fourth"]},
    "save_both": {"do": "save_dense", "from": "both", "file": "{name}_both"},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """For the tests that lose no node; it has all its sockets."""
    with Session.open(System.load(SYSTEM, "test")) as opened:
        begin(opened, tmp_path_factory.mktemp("first"), "first", nb_frames=20)
        assert opened.wait(60).ok
        yield opened


@pytest.fixture
def fragile() -> Iterator[Session]:
    """For those that do; the main detector comes in two modules, from two nodes."""
    values = {
        **SYSTEM,
        "set": {**SYSTEM["set"], "modules": [2, 1]},
        "detectors": {"fourth": SYSTEM["detectors"]["fourth"]},
        "acquisition": [
            {"node": "acq0", "modules": ["module_1_0"]},
            {"node": "of_fourth", "detector": "fourth"},
            {"node": "acq1", "modules": ["module_0_0"]},
        ],
    }
    with Session.open(System.load(values, "test")) as opened:
        yield opened


def graph(folder: Path, *names: str) -> Path:
    """A graph of some of the tasks."""
    path = folder / "graph.yaml"
    path.write_text(json.dumps({"tasks": {name: EVERYTHING[name] for name in names or EVERYTHING}}))
    return path


def begin(session: Session, folder: Path, name: str, *tasks: str, **more: Any) -> None:
    parameters = {"nb_frames": 1000, "expo_time": 300e-6, **more}
    session.prepare(graph=graph(folder, *tasks), output=folder, name=name, **parameters)
    session.start()


def strike(session: Session, name: str, how: signal.Signals = signal.SIGKILL) -> int:
    """Kill a node, when some frames are done; returns the id of its process."""
    wait_until(lambda: session.progress().settled >= 200, "frames", 30)
    handles = [*session.nodes.acquisition, *session.nodes.processing]
    (found,) = [handle for handle in handles if handle.name == name]
    os.kill(pid := int(found.pid), how)  # type: ignore[attr-defined]
    return pid


def check(report: Report, name: str, cause: Fate | None = None) -> int:
    """Every event of a detector has the pixels that its map says, or the reason why not.

    Args:
        report: of the run.
        name: of the detector.
        cause: why frames are missing, if some are.

    Returns:
        How many events have a frame.
    """
    numbers = TriggerMap(MAPS[name]).numbers(0, report.asked)
    with h5py.File(report.masters[f"save_{name}"], "r") as file:
        group = file[f"entry_0000/instrument/{name}"]
        fates, data = group["frames/fate"][()], group["data"][()]
    expected = np.full(len(numbers), int(Fate.SAVED), np.uint8)
    expected[numbers < 0] = Fate.NOT_TRIGGERED
    if name == "slow":
        expected[numbers == GAP] = Fate.DETECTOR_GAP
    if cause is not None:
        assert cause in fates
        expected[fates == cause] = cause
        assert (numbers[fates == cause] >= 0).all()
    np.testing.assert_array_equal(fates, expected)
    saved = fates == Fate.SAVED
    frames = verifiable_frames(0, int(numbers.max()) + 1, SMALL)[:, 0]
    np.testing.assert_array_equal(data[saved], frames[numbers[saved]])
    return int(saved.sum())


def check_main(report: Report, *gone: int) -> None:
    with h5py.File(report.masters["raw"], "r") as file:
        fates = file["entry_0000/instrument/simulator/frames/fate"][()]
        data = file["entry_0000/measurement/data"][()]
    assert np.flatnonzero(fates != Fate.SAVED).tolist() == [*gone]
    expected = verifiable_frames(0, report.asked, SHAPE)[:, 0]
    saved = fates == Fate.SAVED
    np.testing.assert_array_equal(data[saved], expected[saved])


def test_every_event_has_the_frames_that_the_maps_say(tmp_path: Path, session: Session) -> None:
    begin(session, tmp_path, "run")
    report = session.wait(60)
    assert report.outcome == "completed", report
    gone = np.flatnonzero(TriggerMap(MAPS["slow"]).numbers(0, 1000) == GAP).tolist()
    assert report.absent == {"detector_gap": 1}, "events without a frame are as good as any"
    assert [(first, count) for first, count, *_ in report.absences] == [(gone[0], 1)]
    assert session.progress().done_to >= 1000, "by events, for all detectors"
    check_main(report)
    assert check(report, "fourth") == 250
    assert check(report, "slow") == len(range(3, 1000, 7)) - 1
    assert check(report, "long") == 1000
    with h5py.File(report.masters["save_both"], "r") as file:
        pairs = file["entry_0000/instrument/simulator/data"][()]
    events = np.arange(0, 1000, 4)
    np.testing.assert_array_equal(
        pairs[events, 0], verifiable_frames(0, 1000, SHAPE)[events, 0, :, :32]
    )
    np.testing.assert_array_equal(pairs[events, 1], verifiable_frames(0, 250, SMALL)[:, 0])
    assert report.sinks["save_both"] == {"saved": 250, "not_triggered": 750}
    with h5py.File(report.masters["save_fourth"], "r") as file:
        group = file["entry_0000/instrument/fourth"]
        assert group["detector_information/info/name"].asstr()[()] == "fourth"
        assert group["params/acquisition/nb_frames"][()] == 250
        assert group["params/acquisition/latency_time"][()] == pytest.approx(900e-6)


def test_a_run_that_is_stopped_has_all_that_belongs_to_its_frames(
    tmp_path: Path, session: Session
) -> None:
    for name, asked in (("endless", 0), ("short", 100_000)):
        begin(session, tmp_path, name, "raw", "save_fourth", "save_slow", nb_frames=asked)
        wait_until(lambda: session.progress().settled >= 300, "frames", 30)
        session.stop()
        report = session.wait(60)
        assert report.outcome == ("stopped" if asked else "completed"), report
        done = report.saved + 1
        left = {"not_acquired": asked - done} if asked else {}
        assert report.absent == {"detector_gap": 1, **left}, report
        if not asked:
            check_main(report)
            check(report, "fourth")
            check(report, "slow")


def test_a_frame_of_another_detector_that_kills_is_put_aside_with_all_that_belongs_to_it(
    tmp_path: Path, fragile: Session
) -> None:
    """It kills two nodes; the one that comes then has all modules, and keeps them from tasks."""
    (tmp_path / "trip.py").write_text(TRIP)
    first = verifiable_frames(200, 1, SMALL)[0, 0, 0, :16].tolist()
    trip = {"do": "python", "from": "fourth", "file": str(tmp_path / "trip.py"), "call": "Trip",
            "with": {"how": "die", "first": first}}  # fmt: skip
    tasks = {"trip": trip, **{name: EVERYTHING[name] for name in ("raw", "save_fourth")}}
    path = tmp_path / "graph.yaml"
    path.write_text(json.dumps({"tasks": tasks}))
    fragile.prepare(graph=path, output=tmp_path, nb_frames=2000, expo_time=300e-6)
    fragile.start()
    report = fragile.wait(60)
    assert [(first, count, cause) for first, count, cause, *_ in report.absences] == [
        (800, 1, "poison")
    ], report
    check_main(report, 800)
    assert check(report, "fourth", Fate.POISON) == 499
    (aside,) = tmp_path.glob("*_poison_800.h5")
    assert any(str(aside) in text for text in report.remarks)
    with RunFile(aside) as file:
        np.testing.assert_array_equal(file[0], verifiable_frames(800, 1, SHAPE)[0, 0])
    with RunFile(aside, "fourth") as file:
        np.testing.assert_array_equal(file[0], verifiable_frames(200, 1, SMALL)[0, 0])
    said: list[str] = []
    assert Isolation(Frames.find(aside, None), "", 30.0, said.append).run()
    assert any(text.startswith('task "trip", frame 800: dies of signal 9') for text in said), said


def test_a_detector_that_is_lost_costs_its_own_frames(tmp_path: Path, fragile: Session) -> None:
    sinks = ("raw", "save_fourth")
    policies = {"detector_loss": "wait", "join_timeout": 1.0}
    for name, how in (("lost", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
        begin(fragile, tmp_path, name, *sinks, nb_frames=3000, policies=policies)
        pid = strike(fragile, "of_fourth", how)
        if name == "frozen":  # and comes back when it is missed
            wait_until(lambda: fragile.progress().settled >= 2800, "what others do", 30)
            os.kill(pid, signal.SIGCONT)
        report = fragile.wait(60)
        assert report.asked == 3000
        assert set(report.absent) == {"incomplete"}, report
        if name == "lost":
            assert any("of_fourth was lost" in text for text in report.errors), report
        assert report.outcome == "failed", report
        check_main(report)
        assert check(report, "fourth", Fate.INCOMPLETE) >= 50

    begin(fragile, tmp_path, "ended", *sinks, nb_frames=100_000)
    strike(fragile, "of_fourth")
    report = fragile.wait(60)
    assert report.outcome == "failed", report
    assert set(report.absent) <= {"incomplete", "not_acquired"}, "by default a loss ends the run"
    assert report.absent["not_acquired"] > 50_000


def test_a_graph_that_takes_no_frames_of_others_needs_none_of_them(
    tmp_path: Path, session: Session
) -> None:
    handles = {handle.name: handle for handle in session.nodes.acquisition}
    handle = handles["of_slow"]
    begin(session, tmp_path, "alone", "raw", nb_frames=50)
    report = session.wait(60)
    assert report.outcome == "completed", report
    assert report.run not in [told["run"] for told in handle.look("runs")]
    begin(session, tmp_path, "with", "save_slow", nb_frames=50)
    report = session.wait(60)
    assert report.run in [told["run"] for told in handle.look("runs")]


def test_what_cannot_be_is_refused(tmp_path: Path, session: Session) -> None:
    with pytest.raises(BadParameter, match="slow has no frame for so few"):
        session.prepare(graph=graph(tmp_path, "save_slow"), output=tmp_path, nb_frames=3)
    with pytest.raises(BadParameter, match="software triggers are for the main detector"):
        session.prepare(graph=graph(tmp_path, "save_slow"), output=tmp_path, nb_frames=30,
                        trigger_mode="software")  # fmt: skip
    (tmp_path / "no.yaml").write_text("tasks: {live: {do: tap, from: fast}}")
    with pytest.raises(BadGraph, match="other detectors: fourth, slow, long"):
        session.prepare(graph=tmp_path / "no.yaml", output=tmp_path)
    with Session.open() as alone, pytest.raises(BadGraph, match='no task "slow"'):
        alone.prepare(graph=graph(tmp_path, "save_slow"), output=tmp_path)
