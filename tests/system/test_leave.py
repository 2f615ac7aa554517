"""A node that is told to leave (SIGTERM) takes nothing with it that others need."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

import lima2py
from lima2py.session.launch import Child
from lima2py.session.session import Session
from tests.system.rig import wait_until

GRAPH = """
tasks:
  few: {do: accumulate, from: detector, frames: 4}
  sums: {do: save_dense, from: few}
  raw: {do: save_dense, from: detector}
"""


def test_who_leaves_in_the_middle_of_a_sum_leaves_all_of_it_to_another(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH)
    with Session.open(processing_nodes=2, detector={"shape": [8, 8]}) as session:
        session.prepare(
            graph=graph, output=tmp_path, nb_frames=8, expo_time=1e-3, trigger_mode="software",
            nb_frames_per_trigger=2,
        )  # fmt: skip
        session.start()
        session.trigger()
        wait_until(lambda: first_frames(session), "two frames at a node")
        leaving = first_frames(session)[0]
        os.kill(leaving.pid, signal.SIGTERM)
        (lead,) = session.nodes.acquisition
        wait_until(
            lambda: leaving.rank not in lead.look("status", run=session.run)["in_flight"],
            "its leave",
        )
        for half in (2, 3, 4):
            session.trigger()
            wait_until(lambda n=half: session.progress().acquired == 2 * n, "frames")  # type: ignore[misc]
        report = session.wait(60)
    assert report.sinks["sums"] == {"saved": 2}, report
    with lima2py.open(report.masters["sums"]) as sums, lima2py.open(report.masters["raw"]) as raw:
        frames = np.asarray(raw[:], np.int64)
        assert np.array_equal(sums[:], frames.reshape(2, 4, *frames.shape[1:]).sum(1))


def first_frames(session: Session) -> list[Child]:
    """The nodes through which two frames have passed."""
    found = []
    for node in session.nodes.processing:
        assert isinstance(node, Child)
        if node.look("status", run=session.run)["frames"] == 2:
            found.append(node)
    return found
