"""Who watches a run sees what happens to its nodes, how late frames are, and what it costs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import lima2py
from lima2py.session.events import Event, Kind
from lima2py.session.session import Session

GRAPH = """
graph: watched
tasks:
  live: {do: tap, from: detector, every: 5}
  raw: {do: save_dense, from: detector}
  sums: {do: accumulate, from: detector, frames: 10}
  ten: {do: save_dense, from: sums}
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "watched.yaml"
    path.write_text(GRAPH)
    return path


def test_every_sink_and_tap_says_how_late_frames_are(graph: Path, tmp_path: Path) -> None:
    with Session.open(
        "simulator", acquisition_nodes=2, processing_nodes=2, detector={"shape": [48, 64]}
    ) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=300, expo_time=1e-3)
        session.start()
        report = session.wait(60)
        families = {
            family.name: family for family in text_string_to_metric_families(session.metrics())
        }
        nodes = session.progress().nodes
    assert report.ok, report.errors
    assert report.latency.keys() == {"live", "raw", "ten"}
    for said in report.latency.values():
        assert 0 < said["p50"] <= said["p99"] <= said["max"] < report.seconds
    assert report.plain()["latency"] == report.latency
    counts = {
        (sample.labels["where"], sample.labels["task"]): sample.value
        for sample in families["lima2py_latency_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert counts == {("sink", "raw"): 300, ("sink", "ten"): 30, ("tap", "live"): 60}
    frames = {sample.labels["cause"]: sample.value for sample in families["lima2py_frames"].samples}
    assert frames == {"saved": 300, "rejected": 0}, "two nodes have counted some frames twice"
    through = {s.labels["node"]: s.value for s in families["lima2py_node_frames"].samples}
    assert through.keys() == {"proc0", "proc1"}
    assert sum(through.values()) == 300
    assert all(status["cpu_seconds"] > 0 for status in nodes.values())
    assert all(status["memory"] > 2**20 for status in nodes.values())
    assert all(nodes[name]["lag_seconds"] == 0 for name in ("acq0", "acq1"))
    with lima2py.open(report.masters["raw"]) as file:
        logs = file.logs
    for name in ("lag", "waiting", "cpu", "memory", "latency/raw/p50", "latency/ten/p99"):
        for node in ("acq0", "acq1"):
            assert logs[f"acquisition/{node}/{name}"].values, (node, name)
    memory = logs["processing/proc1/memory"]
    assert (memory.units, min(memory.values) > 2**20) == ("B", True)  # type: ignore[operator]
    assert max(logs["processing/proc0/cpu"].values) > 0  # type: ignore[operator]


def test_a_node_that_is_killed_and_started_again_is_told_of(graph: Path, tmp_path: Path) -> None:
    with Session.open("simulator", processing_nodes=2, detector={"shape": [48, 64]}) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=0, expo_time=1e-3)
        session.start()
        next(session.tap("live", timeout=30))
        os.kill(session.nodes.processing[1].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        seen: list[Event] = []
        for event in session.events(timeout=60):
            seen.append(event)
            if event.kind is Kind.NODE_RESTARTED:
                break
        session.stop()
        report = session.wait(60)
        told = list(session.events())
        metrics = session.metrics()
        nodes = session.progress().nodes
    assert [event.kind for event in seen if event.node == "proc1"] == [
        Kind.NODE_LOST, Kind.NODE_RESTARTED
    ]  # fmt: skip
    assert "signal 9" in next(event.text for event in seen if event.kind is Kind.NODE_LOST)
    assert told[: len(seen)] == seen
    assert told[-1].kind is Kind.ENDED
    assert [event.serial for event in told] == list(range(len(told)))
    assert nodes["proc1"]["restarts"] == 1
    assert 'lima2py_node_restarts{node="proc1"} 1.0' in metrics
    assert 'lima2py_events_total{kind="node_lost",node="proc1"} 1.0' in metrics
    assert report.asked == report.saved > 0
