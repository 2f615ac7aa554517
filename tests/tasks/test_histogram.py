"""Histograms, bin by bin those of numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Array
from lima2py.task import Task
from lima2py.tasks.statistics import Histogram
from lima2py.testing.tasks import TaskTests
from tests.tasks.strips import pixels, seen


class TestHistogram(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Histogram(bins=10, range=(0, 80))


@settings(max_examples=80)
@given(
    pixels(),
    st.integers(1, 5),
    st.integers(1, 40),
    st.one_of(
        st.tuples(st.integers(-9, 9), st.integers(1, 90)),
        st.tuples(st.floats(-9, 9), st.floats(0.1, 90)),
    ),
)
def test_bins_are_those_of_numpy(
    frames: Array, lines: int, bins: int, range_: tuple[float, float]
) -> None:
    low, high = range_[0], range_[0] + range_[1]
    made = seen(Histogram(bins=bins, range=(low, high)), frames, lines=lines).pixels
    images = frames.reshape(-1, *frames.shape[2:]).astype("f8")
    edges = np.linspace(low, high, bins + 1)
    for own, image in zip(made.reshape(-1, bins), images, strict=True):
        np.testing.assert_array_equal(own, np.histogram(image[image == image], edges)[0])


@pytest.mark.parametrize("dtype", ["u2", "f8"])
def test_values_on_the_edges_of_bins_go_up_and_the_last_one_stays(dtype: str) -> None:
    frames = np.array([0, 1, 2, 3, 4, 5], dtype).reshape(1, 1, 2, 3)
    made = seen(Histogram(bins=2, range=(0, 4)), frames).pixels
    assert made.tolist() == [[2, 3]]


def test_histograms_of_several_frames_can_be_added_up() -> None:
    graph = """
      tasks:
        each: {do: histogram, from: detector, bins: 3, range: [0, 3]}
        both: {do: accumulate, from: each, frames: 2}
    """
    frames = np.random.default_rng(0).integers(0, 3, (4, 5, 6), np.uint8)
    made = lima2py.apply(graph, frames)["both"].pixels
    assert made.tolist() == [np.bincount(pair.ravel(), minlength=3).tolist()
                             for pair in frames.reshape(2, -1)]  # fmt: skip


def test_edges_that_are_no_round_numbers_are_met_exactly() -> None:
    edges = np.linspace(0.1, 0.7, 4)
    frames = np.concatenate([edges, np.nextafter(edges, -1)]).reshape(1, 1, 2, 4)
    made = seen(Histogram(bins=3, range=(0.1, 0.7)), frames).pixels
    assert made[0].tolist() == np.histogram(frames, edges)[0].tolist()


def test_masked_pixels_are_not_counted(tmp_path: Path) -> None:
    masked = np.eye(5, 8)
    np.save(tmp_path / "mask.npy", masked)
    frames = np.arange(40, dtype="u1").reshape(1, 1, 5, 8)
    task = Histogram(bins=40, range=(0, 40), mask=str(tmp_path / "mask.npy"))
    np.testing.assert_array_equal(seen(task, frames).pixels[0], masked.ravel() == 0)


def test_long_lines_of_any_numbers_are_counted_as_by_numpy() -> None:
    rng = np.random.default_rng(3)
    frames = rng.normal(5, 3, (2, 1, 3, 5001)).astype("f4")
    frames[0, 0, 0, ::7] = np.nan
    frames[0, 0, 1, ::5] = np.inf
    frames[1, 0, 2, ::3] = -np.inf
    edges = np.linspace(0.1, 9.3, 38)
    made = seen(Histogram(bins=37, range=(0.1, 9.3)), frames).pixels
    for own, image in zip(made, frames.astype("f8"), strict=True):
        np.testing.assert_array_equal(own, np.histogram(image[np.isfinite(image)], edges)[0])


@pytest.mark.parametrize("range_", [[1, 1], [2, 1], [-1.7e308, 1.7e308]])
def test_a_range_that_is_none_is_refused(range_: list[float]) -> None:
    with pytest.raises(BadParameter, match=r"range: should be \[low, high\] with low < high"):
        Histogram.load({"bins": 3, "range": range_}, "graph.yaml, task levels")
