"""The audit believes nothing: whatever is made wrong on purpose, it finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lima2py.frame import Fate
from lima2py.node.ledger import Ledger
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage.saving.node_file import NodeFile
from lima2py.transport import wire
from tests.chaos.audit import TASKS, Taken, audit, of_masters
from tests.system.rig import wait_until

SHAPE = (24, 36)
FRAMES = 60
TAKEN = Taken(SHAPE, (7, 8))
GAPS = frozenset({"detector_gap"})

pytestmark = pytest.mark.usefixtures("wrong_on_purpose")


@pytest.fixture
def wrong_on_purpose(ended_runs: Any) -> Iterator[None]:
    """Accounts that are wrong here are meant to be."""
    yield
    ended_runs.take()


def run(tmp_path: Path) -> Report:
    """A run in this process, with every sink."""
    graph = tmp_path / "graph.yaml"
    graph.write_text(json.dumps({"tasks": TASKS}))
    with Session.open(
        detector={"pattern": "verifiable", "shape": SHAPE, "drop": TAKEN.dropped}
    ) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=FRAMES, expo_time=1e-6)
        session.start()
        return session.wait(60)


def audited(tmp_path: Path) -> str:
    """What the audit says of a run."""
    return "\n".join(audit(run(tmp_path), TAKEN, tmp_path, GAPS, frozenset()))


def test_a_run_that_is_right_passes(tmp_path: Path) -> None:
    assert audited(tmp_path) == ""


def test_it_finds_an_absence_that_the_ledger_forgot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Ledger.settle

    def forgetful(ledger: Ledger, done: wire.DoneBlock, *more: Any) -> None:
        settle(ledger, wire.DoneBlock(**{**_fields(done), "absences": []}), *more)

    monkeypatch.setattr(Ledger, "settle", forgetful)
    found = audited(tmp_path)
    assert "[7, 8] are saved, and were never taken" in found
    assert "wrong pixels in [7, 8]" in found


def _fields(message: Any) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


def exchanged(rows: Any) -> None:
    rows[[20, 21]] = rows[[21, 20]]


def repeated(rows: Any) -> None:
    rows[20] = rows[21]


@pytest.mark.parametrize("change", [exchanged, repeated])
def test_it_finds_rows_that_are_those_of_other_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    table = Ledger.table

    def wrong(ledger: Ledger, sink: str) -> Any:
        told = table(ledger, sink)
        if sink == "raw":
            change(told.row)
        return told

    monkeypatch.setattr(Ledger, "table", wrong)
    found = audited(tmp_path)
    assert "raw in run_raw_master.h5: wrong pixels in [20" in found


def test_it_finds_a_count_that_leaves_a_cause_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Ledger.counts
    monkeypatch.setattr(
        Ledger, "counts",
        lambda ledger: {word: n for word, n in counts(ledger).items() if "gap" not in word},
    )  # fmt: skip
    assert f"asked {FRAMES}, but saved" in audited(tmp_path)


def test_it_finds_a_cause_that_nothing_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Ledger.settle

    def loses(ledger: Ledger, done: wire.DoneBlock, *more: Any) -> None:
        why = (0, (3, 1, int(Fate.DEADLINE), "ledger", "it was so"))
        if not done.index:
            done = wire.DoneBlock(**{**_fields(done), "absences": [*done.absences, why]})
        settle(ledger, done, *more)

    monkeypatch.setattr(Ledger, "settle", loses)
    assert "nothing was done that explains {'deadline': 1}" in audited(tmp_path)


@pytest.mark.parametrize("sink", ["raw", "sums", "kept", "events", "numbers"])
def test_it_finds_a_changed_value_in_any_sink(tmp_path: Path, sink: str) -> None:
    run(tmp_path)
    (path,) = tmp_path.glob(f"run_{sink}_0_*.h5")
    with h5py.File(path, "r+") as file:
        data = file["entry_0000/measurement/data"]
        if sink == "events":
            data["intensity"][3] = 1
        elif sink == "numbers":
            row = data[5]
            row["sum"] += 1
            data[5] = row
        else:
            data[5, 3, 4] += np.array(1, data.dtype)
    (master,) = tmp_path.glob(f"run_{sink}_master.h5")
    assert f"{sink} in {master.name}: wrong pixels in [" in "\n".join(of_masters([master], TAKEN))


@pytest.mark.parametrize("fate", [Fate.NO_RECORD, Fate.SAVED])
def test_it_finds_a_fate_that_is_missing_or_not_true(tmp_path: Path, fate: Fate) -> None:
    run(tmp_path)
    (master,) = tmp_path.glob("run_raw_master.h5")
    with h5py.File(master, "r+") as file:
        group = file["entry_0000/instrument/simulator"]
        group["frames/fate"][7] = fate
    found = "\n".join(of_masters([master], TAKEN))
    assert "fates and absences differ for [7]" in found
    wanted = "no fate for [7]" if fate is Fate.NO_RECORD else "[7] are saved, and were never taken"
    assert wanted in found


def test_it_finds_a_file_that_was_left_unfinished(tmp_path: Path) -> None:
    report = run(tmp_path)
    shutil.copy(tmp_path / "run_raw_0_00000.h5", tmp_path / "run_raw_0_00007.h5.part")
    assert audit(report, TAKEN, tmp_path, GAPS, frozenset()) == [
        "left behind: run_raw_0_00007.h5.part"
    ]


EARLY = """
import sys
if "lima2py.node.serve" in sys.orig_argv and "processing" in sys.orig_argv:
    from lima2py.storage.saving.node_file import NodeFile
    NodeFile.flush = lambda self: None
"""
"""Run by every Python that starts: a node that says done, and has written nothing down."""


def test_it_finds_frames_that_were_said_to_be_done_before_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hasattr(NodeFile, "flush"), "what is changed in the nodes is not there any more"
    (tmp_path / "sitecustomize.py").write_text(EARLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    graph = tmp_path / "graph.yaml"
    graph.write_text(json.dumps({"tasks": {"raw": TASKS["raw"]}}))
    detector = {"pattern": "verifiable", "shape": SHAPE}
    with Session.open(processing_nodes=2, detector=detector) as session:
        session.prepare(graph=graph, output=tmp_path / "out", nb_frames=2000, expo_time=2e-4)
        session.start()
        wait_until(lambda: session.progress().settled > 100, "frames")
        victim = session.nodes.processing[0]
        assert isinstance(victim, Child)
        victim.kill()
        report = session.wait(60)
    assert "wrong pixels" in "\n".join(
        audit(report, Taken(SHAPE), tmp_path / "out", frozenset(), frozenset({0, 1}))
    )
