"""What Prometheus reads is what happened."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from lima2py.errors import LimaError
from lima2py.graph.latency import EDGES, Histogram
from lima2py.node.life import State
from lima2py.session.metrics import METRICS, View, exposition
from lima2py.session.progress import Progress
from lima2py.session.session import Session
from lima2py.session.totals import Totals

SUFFIX = {"info": "_info", "counter": "_total"}


def read(text: str) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(families: dict[str, Family], name: str) -> dict[tuple[str, ...], float]:
    """The samples of a metric, by their labels in the order of the table."""
    metric = next(metric for metric in METRICS if metric.name == name)
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for sample in families[name].samples
        if sample.name == name + SUFFIX.get(metric.kind, "")
    }


def test_before_the_first_run_there_is_something_to_read_already() -> None:
    families = read(exposition(View("", "", Progress(State.IDLE), Totals())))
    assert families.keys() == {
        metric.name + ("_info" if metric.kind == "info" else "") for metric in METRICS
    }
    assert values(families, "lima2py_state") == {
        (state.value,): float(state is State.IDLE) for state in State
    }


def test_every_metric_has_a_name_and_a_word_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("lima2py_")
        assert not metric.name.endswith(("_total", "_info"))
        assert metric.about.endswith((".", "endless."))


def test_a_histogram_is_cumulative_and_that_of_all_nodes() -> None:
    totals = Totals()
    for node, times in (("acq0", [1e-4, 2e-4, 5.0]), ("acq1", [2e-4, 5000.0])):
        histogram = Histogram()
        for seconds in times:
            histogram.add(seconds)
        plain = histogram.plain()
        seen = [*plain["counts"], plain["total"]]
        totals.see("latency", ("sink", "raw", node), 1, seen)
    families = read(exposition(View("r", "scan", Progress(State.RUNNING), totals)))
    samples = families["lima2py_latency_seconds"].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    bounds = [float(bound) for bound in buckets]
    assert bounds == sorted(bounds)
    assert bounds[:-1] == pytest.approx(EDGES[::4], rel=1e-5)
    assert list(buckets.values()) == sorted(buckets.values())
    found = [buckets[bound] for bound in ("3.16228e-05", "0.0001", "1", "10", "1000", "+Inf")]
    assert found == [0, 1, 3, 4, 4, 5]
    others = {s.name.rpartition("_")[2]: s.value for s in samples if "le" not in s.labels}
    assert others == {"count": 5, "sum": pytest.approx(5005.0005)}


def test_odd_names_are_escaped() -> None:
    name = 'quote " backslash \\ newline \n end'
    families = read(exposition(View("r", name, Progress(State.RUNNING), Totals())))
    assert families["lima2py_run_info"].samples[0].labels == {"run": "r", "name": name}


def test_counters_go_on_over_the_runs_of_a_session(tmp_path: Path) -> None:
    with Session.open("simulator", detector={"shape": [48, 64], "drop": [3]}) as session:
        for number in (1, 2):
            session.prepare(
                graph="save_raw", output=tmp_path, name=f"r{number}", nb_frames=20, expo_time=1e-3
            )
            prepared = read(session.metrics())
            assert values(prepared, "lima2py_state")["prepared",] == 1
            session.start()
            assert session.wait(20).ok
            families = read(session.metrics())
            assert values(families, "lima2py_frames") == {
                ("saved",): 19 * number, ("rejected",): 0, ("detector_gap",): number
            }  # fmt: skip
            assert values(families, "lima2py_frames_acquired") == {(): 20 * number}
            assert values(families, "lima2py_runs") == {("completed",): number}
            assert values(families, "lima2py_sink_rows")["raw", "saved"] == 19 * number
            assert values(families, "lima2py_events")["ended", ""] == number
            info = families["lima2py_run_info"].samples[0].labels
            assert info == {"run": session.run, "name": f"r{number}"}
            counts = {
                (s.labels["where"], s.labels["task"]): s.value
                for s in families["lima2py_latency_seconds"].samples
                if s.name.endswith("_count")
            }
            assert counts["sink", "raw"] >= 19 * number
            assert counts["tap", "live"] > 0


def test_without_the_prometheus_client_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LimaError, match=r'pip install "lima2py\[metrics\]"'):
        exposition(View("", "", Progress(State.IDLE), Totals()))
