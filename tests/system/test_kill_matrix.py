"""kill -9 of any node at any moment of a run that saves: what was reported done is in the files.

If the node that keeps the books is killed the session writes the masters; if that is killed too,
`recover` does; and what they say is what the journal, or the report, says.

A few moments for each kind of node; `LIMA2PY_KILL_MOMENTS=17` tries as many as the release needs
(17 × 3 > 50).
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.errors import LimaError
from lima2py.frame import Fate
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage.care.journal_content import read_journal, tracks_of
from lima2py.storage.care.recover import recover
from lima2py.storage.care.verify import verify
from tests.storage import plain
from tests.system.rig import Command, frames_saved, socket_folders, wait_until

MOMENTS = int(os.environ.get("LIMA2PY_KILL_MOMENTS", "2"))
FRAMES, PERIOD, SHAPE, ABOVE = 400, 1e-3, (32, 48), 60_000
GRAPH = f"""
tasks:
  raw: {{do: save_dense, from: detector, frames_per_file: 37, checksum: true}}
  bright: {{do: sparsify, from: detector, above: {ABOVE}}}
  events: {{do: save_sparse, from: bright, frames_per_file: 61, checksum: true}}
  numbers: {{do: statistics, from: detector}}
  table: {{do: save_table, from: numbers, compression: gzip}}
  beside: {{do: save_table, from: numbers, file: "{{name}}_raw", frames_per_file: 37}}
"""
MASTERS = {"raw": "raw", "events": "events", "table": "table", "beside": "raw"}


@pytest.mark.timeout(60 + 30 * MOMENTS)
@pytest.mark.parametrize("victim", ["processing", "acquisition", "everything"])
def test_whatever_is_killed_what_was_done_is_in_the_files(tmp_path: Path, victim: str) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    chance = random.Random(victim)
    with Session.open(
        "simulator", processing_nodes=2, detector={"pattern": "verifiable", "shape": [*SHAPE]}
    ) as session:
        for number in range(MOMENTS):
            moment = (number + chance.random()) / MOMENTS * FRAMES * PERIOD * 1.1
            folder = tmp_path / f"{number}"
            session.prepare(
                graph=tmp_path / "graph.yaml",
                output=folder,
                policies={"restarts": 0},  # who came back late would write files still
                nb_frames=FRAMES,
                expo_time=PERIOD,
            )
            try:
                done = kill(session, victim, moment)
                report = session.wait(60)
                check(folder, FRAMES if victim == "processing" else done)
                check_report(report, folder)
                if victim == "processing":
                    assert report.saved == FRAMES
            except BaseException as error:
                error.add_note(f"killed {victim} after {moment:.4f} s")
                raise


def kill(session: Session, victim: str, moment: float) -> int:
    """Start the run, kill after so many seconds; up to where all frames were reported done."""
    nodes = session.nodes
    victims = {
        "processing": nodes.processing[1:],
        "acquisition": nodes.acquisition,
        "everything": [*nodes.acquisition, *nodes.processing],
    }[victim]
    done = 0
    session.start()
    end = time.monotonic() + moment
    while time.monotonic() < end:
        try:
            done = nodes.acquisition[0].look("status", run=session.run)["done_to"]
        except LimaError:
            break
    for handle in victims:
        assert isinstance(handle, Child)
        handle.kill()
    return int(done)


@pytest.mark.parametrize("until", [20, 150])
def test_when_everything_is_killed_and_the_session_too_recover_says_what_the_journal_says(
    tmp_path: Path, command: Callable[..., Command], until: int
) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    run = command(
        "run", "graph.yaml", "--set", "detector.pattern=verifiable",
        "--set", f"detector.shape=[{SHAPE[0]},{SHAPE[1]}]", "--nb-frames", FRAMES,
        "--expo-time", "5 ms", "--output", "out", "--processing-nodes", 2,
    )  # fmt: skip
    nodes, folder = run.nodes(count=3), tmp_path / "out"
    wait_until(lambda: frames_saved(folder) >= until, "frames")
    run.process.kill()
    for node in nodes:
        node.kill()
    run.process.wait()
    psutil.wait_procs(nodes, 20)
    for sockets in socket_folders():  # nobody is left to do it
        shutil.rmtree(sockets)
    journal = folder / "run_raw_journal_0.part"
    told = read_journal(journal)
    assert told is not None
    saved = [frame for line in told.lines for frame in range(line.index, line.index + line.count)]
    assert len(saved) == len(set(saved))
    check(folder, min(set(range(FRAMES + 1)).difference(saved)))
    assert not journal.exists()
    for (sink, prefix), track in zip(MASTERS.items(), tracks_of([told])[1:], strict=True):
        entry = "entry_0001" if sink == "beside" else "entry_0000"
        shown = plain.read(folder / f"run_{prefix}_master.h5", entry).frames
        for name in ("fate", "node", "row", "attempts"):
            assert np.array_equal(shown[name][saved], getattr(track, name)[saved])


def check_report(report: Report, folder: Path) -> None:
    """The report says what the masters say."""
    assert report.asked == FRAMES
    masters = list(folder.glob("*_master.h5"))
    assert report.masters.keys() == (MASTERS.keys() if masters else set())
    for sink, path in report.masters.items():
        told = plain.read(path, "entry_0001" if sink == "beside" else "entry_0000")
        fates, numbers = np.unique(told.frames["fate"], return_counts=True)
        counts = zip(fates.tolist(), numbers.tolist(), strict=True)
        assert report.sinks[sink] == {Fate(fate).word: number for fate, number in counts}
    if masters:
        assert report.saved == min(counts["saved"] for counts in report.sinks.values())


def check(folder: Path, done: int) -> None:
    """After recovery all frames below `done`, and all that look saved, are what was taken."""
    found, _ = recover(folder, force=True)
    for one in found:
        assert not one.refused
        assert not one.problems
    assert not list(folder.glob("*_journal_*"))
    if not list(folder.glob("*_master.h5")):
        assert done == 0
        return
    assert not list(folder.glob("*_master.h5.part"))
    frames = verifiable_frames(0, FRAMES, SHAPE, "uint16").reshape(FRAMES, *SHAPE)
    for sink, prefix in MASTERS.items():
        master = folder / f"run_{prefix}_master.h5"
        assert verify(master, pixels=True).problems == []
        told = plain.read(master, "entry_0001" if sink == "beside" else "entry_0000")
        saved = np.flatnonzero(told.frames["fate"] == Fate.SAVED)
        assert len(told.frames["fate"]) == FRAMES
        assert set(range(done)) <= set(saved.tolist())
        if sink == "raw":
            assert np.array_equal(told.data["data"][saved], frames[saved])
        elif sink == "events":
            rows = told.rows({"index": "index", "value": "intensity"})
            for frame in saved.tolist():
                flat = frames[frame].reshape(-1)
                assert np.array_equal(rows[frame]["index"], np.flatnonzero(flat > ABOVE))
                assert np.array_equal(rows[frame]["value"], flat[flat > ABOVE])
        else:
            sums = frames[saved].sum(axis=(1, 2), dtype="f8")
            assert np.array_equal(told.data["data"]["sum"][saved, 0], sums)
    assert recover(folder, force=True)[0] == []
