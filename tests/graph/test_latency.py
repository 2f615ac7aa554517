"""Times are counted in buckets, and what is said of them is never too short, nor much too long."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import Block, FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.flow import Flow
from lima2py.graph.latency import EDGES, PER_DECADE, Histogram
from lima2py.graph.plan import Plan
from lima2py.task import RunContext

TIMES = st.floats(1e-6, 999.0)


def of(times: list[float]) -> Histogram:
    made = Histogram()
    for seconds in times:
        made.add(seconds)
    return made


@given(st.lists(TIMES, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_share_of_the_frames_took_no_longer_than_said_and_hardly_less(
    times: list[float], share: float
) -> None:
    said = of(times).within(share)
    true = sorted(times)[math.ceil(share * len(times)) - 1]
    assert true <= said <= true * 10 ** (1 / PER_DECADE) * (1 + 1e-9)
    assert said <= max(times)


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, max_size=50))
def test_two_histograms_together_are_that_of_all_times(
    some: list[float], others: list[float]
) -> None:
    both, merged = of(some + others), of(some)
    merged.merge(Histogram.of(of(others).plain()))
    assert merged.counts == both.counts
    assert merged.longest == both.longest
    assert merged.total == pytest.approx(both.total)
    assert merged.frames == len(some) + len(others)


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, min_size=1, max_size=50))
def test_what_was_counted_since_is_told_apart(earlier: list[float], later: list[float]) -> None:
    histogram = of(earlier)
    before = histogram.plain()["counts"]
    for seconds in later:
        histogram.add(seconds)
    true = sorted(later)[math.ceil(0.5 * len(later)) - 1]
    assert true <= histogram.within(0.5, before) <= true * 10 ** (1 / PER_DECADE) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-0.5, 0), (0.0, 0), (1e-6, 0), (1.1e-6, 1), (1.0, 48), (1000.0, 72), (1e9, 73)],
)
def test_every_time_has_a_bucket(seconds: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.add(seconds, 3)
    assert histogram.counts[bucket] == histogram.frames == 3
    assert histogram.total == 3 * max(seconds, 0.0)
    assert EDGES[48] == 1.0


def test_what_is_not_known_is_not_counted() -> None:
    histogram = Histogram()
    for seconds in (math.nan, math.inf, -math.inf):
        histogram.add(seconds, 3)
    histogram.add(1.0, 0)
    assert histogram.frames == 0
    assert histogram.summary() == {"p50": 0.0, "p99": 0.0, "max": 0.0}


@pytest.mark.parametrize("age", [0.5, math.nan])
def test_a_tap_counts_the_frames_it_shows(age: float) -> None:
    """One in three, however they come in blocks; those of unknown age are not counted."""
    graph = parse_graph("tasks: {live: {do: tap, from: detector, every: 3}}", "test.yaml", Path())
    spec = FrameSpec.dense(2, 2, "u1")
    flow = Flow(Plan.make(graph, spec), RunContext(run="f" * 32, name="scan"), 1)
    for index, count in ((0, 4), (4, 2), (6, 1), (7, 5)):
        data = np.zeros((count, *spec.shape), "u1")
        flow.process(Block(spec, index, count, data, acquired_at=time.time() - age))
    flow.finish()
    told = flow.latency["live"]
    assert told.frames == (4 if age == 0.5 else 0)
    assert told.longest == 0.0 or told.longest >= 0.5
