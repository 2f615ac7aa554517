"""kill -9 of any node at any moment of a run that saves: what was reported done is in the files.

A few moments for each kind of node; `LIMA2PY_KILL_MOMENTS=17` tries as many as the release needs
(17 × 3 > 50).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames

from lima2py.errors import LimaError
from lima2py.frame import Fate
from lima2py.session.launch import Child
from lima2py.session.session import Session
from lima2py.storage.care.recover import recover
from lima2py.storage.care.verify import verify
from tests.storage import plain

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


@pytest.mark.parametrize("victim", ["processing", "acquisition", "everything"])
@pytest.mark.parametrize("half", [0, 1])
def test_whatever_is_killed_what_was_done_is_in_the_files(
    tmp_path: Path, victim: str, half: int
) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    chance = random.Random(f"{victim} {half}")
    moments = (MOMENTS + 1 - half) // 2
    with Session.open(
        "simulator", processing_nodes=2, detector={"pattern": "verifiable", "shape": [*SHAPE]}
    ) as session:
        for number in range(moments):
            moment = (number + chance.random()) / moments * FRAMES * PERIOD * 1.1
            folder = tmp_path / f"{number}"
            session.prepare(
                graph=tmp_path / "graph.yaml", output=folder, nb_frames=FRAMES, expo_time=PERIOD
            )
            try:
                done = kill(session, victim, moment)
                saved = session.wait(60).saved
                check(folder, FRAMES if victim == "processing" else done)
                if victim == "processing":
                    assert saved == FRAMES
            except BaseException as error:
                error.add_note(f"killed {victim} of {half} after {moment:.4f} s")
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


def check(folder: Path, done: int) -> None:
    """After recovery all frames below `done`, and all that look saved, are what was taken."""
    found, _ = recover(folder, force=True)
    for one in found:
        assert not one.refused
        assert not one.problems
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
