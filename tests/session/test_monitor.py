"""Out of looks at counters come rates, alarms, and totals that never fall."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.graph.latency import Histogram
from lima2py.node.life import State
from lima2py.session.events import Events, Kind
from lima2py.session.monitor import HIGH, NORMAL, Monitor, Rates
from lima2py.session.progress import Progress
from lima2py.session.report import Report
from lima2py.session.totals import Totals

SLOTS = 100


def source(used: int = 0, peak: int = 0, **more: Any) -> dict[str, Any]:
    """The status of an acquisition node."""
    return {
        "incarnation": "a", "rank": 0, "cpu_seconds": 1.0, "errors": [], "acquired": 0,
        "settled": 0, "slots": SLOTS, "slots_used": used, "slots_peak": max(used, peak), **more,
    }  # fmt: skip


def worker(**more: Any) -> dict[str, Any]:
    """The status of a processing node."""
    found = {"incarnation": "p", "rank": 0, "cpu_seconds": 1.0, "errors": [], "frames": 0}
    return {**found, "failures": 0, **more}


def running(**nodes: Any) -> Progress:
    return Progress(State.RUNNING, nodes=nodes)


def started() -> Monitor:
    return Monitor("run", "scan", Events(), Totals())


def kinds(monitor: Monitor) -> list[Kind]:
    """What happened, but that it was started."""
    return [event.kind for event in monitor.events.after(0)]


def test_a_ring_raises_one_alarm_at_each_mark_and_one_all_clear() -> None:
    monitor = started()
    for used in (10, 74, 75, 90, 60, 80, 100, 99, 100, 50, 49, 10, 100):
        monitor.look(running(acq0=source(used, used)))
    found = [Kind.RING_HIGH, Kind.RING_FULL, Kind.RING_NORMAL, Kind.RING_HIGH, Kind.RING_FULL]
    assert kinds(monitor) == found
    assert [event.value for event in monitor.events.after(0)] == [0.75, 1.0, 0.49, 1.0, 1.0]


@given(st.lists(st.integers(0, SLOTS), max_size=60))
def test_after_an_alarm_comes_no_other_of_its_kind_before_the_all_clear(fills: list[int]) -> None:
    monitor = started()
    for used in fills:
        monitor.look(running(acq0=source(used)))
    raised: set[Kind] = set()
    for event in monitor.events.after(0):
        assert event.node == "acq0"
        if event.kind is Kind.RING_NORMAL:
            assert raised
            assert event.value < NORMAL
            raised = set()
        else:
            assert event.kind not in raised
            assert event.kind is Kind.RING_HIGH or Kind.RING_HIGH in raised
            assert event.value >= HIGH
            raised.add(event.kind)
    if fills and fills[-1] >= 100 * HIGH:
        assert raised


def test_a_ring_that_was_full_between_two_looks_raises_an_alarm_too() -> None:
    monitor = started()
    for used, peak in ((10, 20), (30, 100), (20, 100)):
        monitor.look(running(acq0=source(used, peak)))
    assert kinds(monitor) == [Kind.RING_HIGH, Kind.RING_FULL, Kind.RING_NORMAL]


def test_two_rings_have_alarms_of_their_own() -> None:
    monitor = started()
    monitor.look(running(acq0=source(80), acq1=source(10)))
    monitor.look(running(acq0=source(80), acq1=source(80)))
    assert [event.node for event in monitor.events.after(0)] == ["acq0", "acq1"]


def test_what_a_policy_did_is_told_once() -> None:
    monitor = started()
    for dropped in (0, 3, 7):
        monitor.look(Progress(State.RUNNING, counts={"overrun": dropped}))
    monitor.look(running(acq0=source(errors=["it is hot"])))
    errors = ["it is hot", "the ring was full"]
    for _ in range(2):
        monitor.look(Progress(State.STOPPING, nodes={"acq0": source(errors=errors)}))
    told = monitor.events.after(0)
    assert [event.kind for event in told] == [Kind.OVERRUN, Kind.STOPPING]
    assert told[0].value == 3
    assert told[1].text == "stopping: the ring was full"


def test_a_disk_that_is_waited_for_and_a_pause_are_told() -> None:
    monitor = started()
    waits = ['sink "raw" has been waiting 1 s for the disk: No space left']
    for disk in ([], waits, waits, [], waits):
        monitor.look(running(proc0=worker(disk=disk)))
    assert kinds(monitor) == [Kind.DISK_WAITING, Kind.DISK_WAITING]
    monitor.look(Progress(State.PAUSED))
    monitor.look(Progress(State.RUNNING))
    assert kinds(monitor)[2:] == [Kind.PAUSED, Kind.RESUMED]


def test_a_rate_is_taken_over_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rates = Rates()
    seen = []
    for step in range(20):  # 10 frames a second for 5 s, then 30
        acquired = 5 * step if step <= 10 else 50 + 15 * (step - 10)
        nodes = {"acq0": {"acquired": acquired}, "proc0": {"frames": acquired // 5}}
        seen.append(rates.of(nodes))
        now += 0.5
    assert seen[0] == {"acq0": {"acquired": 0.0}, "proc0": {"frames": 0.0}}
    assert seen[9] == {"acq0": {"acquired": 10.0}, "proc0": {"frames": 2.0}}
    assert seen[19] == {"acq0": {"acquired": 30.0}, "proc0": {"frames": 6.0}}


def test_a_node_that_begins_again_has_no_negative_rate() -> None:
    rates = Rates()
    rates.of({"proc0": {"frames": 100}})
    assert rates.of({"proc0": {"frames": 2}, "proc1": {"frames": 5}}) == {
        "proc0": {"frames": 0.0},
        "proc1": {"frames": 0.0},
    }


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=5), max_size=8))
def test_totals_go_on_over_counts_that_begin_again(counts: list[list[int]]) -> None:
    totals = Totals()
    before = 0
    for number, values in enumerate(counts):
        for value in values:
            totals.see("frames", ("saved",), number, value)
            totals.see("times", (), number, [value, 2 * value])
            total = totals.of("frames")["saved",]
            assert total >= before
            before = total
    expected = sum(max(values) for values in counts)
    assert totals.of("frames") == ({("saved",): expected} if counts else {})
    if counts:
        np.testing.assert_array_equal(totals.of("times")[()], [expected, 2 * expected])


def test_a_node_that_was_restarted_is_counted_with_what_it_did_before() -> None:
    """The process has another incarnation; one that came back has another rank."""
    monitor = started()
    slow, quick = Histogram(), Histogram()
    slow.add(1.0, 30)
    quick.add(0.1, 70)
    first = worker(frames=30, cpu_seconds=4.0, latency={"tap": {"live": slow.plain()}})
    monitor.look(running(proc0=first))
    monitor.note(Kind.NODE_LOST, "killed", "proc0")
    monitor.note(Kind.NODE_RESTARTED, "it takes part again", "proc0")
    again: dict[str, Any] = {"incarnation": "q", "rank": 2, "cpu_seconds": 0.5, "frames": 70}
    again["latency"] = {"tap": {"live": quick.plain()}}
    seen = monitor.look(running(proc0={**first, **again}))
    assert seen.nodes["proc0"]["restarts"] == 1
    assert monitor.totals.of("node_frames") == {("proc0",): 100}
    assert monitor.totals.of("cpu_seconds") == {("proc0",): 4.5}
    assert monitor.latency()["live"] == {"p50": 0.1, "p99": 1.0, "max": 1.0}


def test_the_processor_time_of_a_node_is_counted_once_over_its_runs() -> None:
    events, totals = Events(), Totals()
    for number, used in enumerate((2.0, 3.0, 5.0)):
        monitor = Monitor(str(number), "scan", events, totals)
        monitor.look(running(proc0=worker(cpu_seconds=used, frames=10)))
    assert monitor.totals.of("cpu_seconds") == {("proc0",): 5.0}
    assert monitor.totals.of("node_frames") == {("proc0",): 30}


def test_at_the_end_the_report_counts() -> None:
    monitor = started()
    monitor.look(Progress(State.RUNNING, acquired=8, counts={"saved": 5}))
    report = Report("run", "scan", "stopped", 10, 8, 0, {"not_acquired": 2}, seconds=1.5)
    monitor.end(report)
    assert monitor.totals.of("frames") == {
        ("saved",): 8, ("rejected",): 0, ("not_acquired",): 2
    }  # fmt: skip
    assert monitor.totals.of("runs") == {("stopped",): 1}
    last = monitor.events.after()[-1]
    assert (last.kind, last.text, last.value) == (Kind.ENDED, 'run "scan": stopped', 1.5)
