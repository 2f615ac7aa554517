"""Counters of regions: exact, and on the same photons whatever was done to the frames before."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lima2py import plugins
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.task import Task
from lima2py.tasks.reduce import COUNTERS, RoiCounters
from lima2py.testing.strategies import Chain, boxes, chains, pixel_types
from lima2py.testing.tasks import TaskTests

NAMES = ("min", "max", "avg", "std", "sum")


class TestRoiCounters(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return RoiCounters(rois={"all": (0, 0, 16, 12), "pixel": (3, 4, 1, 1), "b": (2, 1, 7, 5)})


class TestRoiCountersOfFloats(TestRoiCounters):
    @pytest.fixture
    def frames(self, spec: FrameSpec) -> Array:
        return np.random.default_rng(1).normal(1e6, 1, (12, *spec.shape)).astype("f4")

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "f4")


def counted(data: Array, rois: dict[str, Any], spec: FrameSpec | None = None) -> Array:
    """The table of counters of frames `(frames, bands, height, width)`."""
    frames, bands, height, width = data.shape
    spec = spec or FrameSpec.dense(height, width, data.dtype, bands=bands)
    task = RoiCounters(rois=rois)
    promised = task.prepare(spec)
    table = task.process(Block(spec, 0, frames, data)).pixels
    assert (table.shape[1:], table.dtype) == (promised.shape, COUNTERS)
    return table


@given(chains(), pixel_types(), st.data())
def test_a_roi_counts_the_same_photons_whatever_was_done_to_the_frames_before(
    chain: Chain, dtype: np.dtype[Any], data: st.DataObject
) -> None:
    """Crop, bin, flip and rotate in any order: the sum is that of the raw frame."""
    seed = data.draw(st.integers(0, 2**32))
    raw = np.random.default_rng(seed).integers(0, 100, (2, 1, *chain.detector)).astype(dtype)
    spec = FrameSpec.dense(*chain.detector, dtype)
    block = Block(spec, 0, 2, raw)
    for step in chain.steps:
        loaded = plugins.load(plugins.TASKS, step.do, Task, "chain")
        task: Task = loaded.load(step.parameters, step.do)  # type: ignore[attr-defined]
        try:
            spec = task.prepare(spec)
        except BadParameter as error:
            assume("64 bits" not in str(error))  # binned again and again: refused, not wrong
            raise
        block = task.process(block)
    rois = {
        f"roi{n}": chain.to_detector.covered(box)
        for n, box in enumerate(data.draw(st.lists(boxes(chain.box), min_size=1, max_size=3)))
    }
    after = counted(block.pixels, {name: tuple(roi) for name, roi in rois.items()}, spec)
    before = counted(raw, {name: tuple(roi) for name, roi in rois.items()})
    np.testing.assert_array_equal(after["sum"], before["sum"])
    for column, roi in enumerate(rois.values()):
        photons = raw[:, 0, *roi.slices].sum(axis=(1, 2), dtype="f8")
        np.testing.assert_array_equal(after["sum"][:, column], photons)
    if all(step.do != "bin" for step in chain.steps):
        for name in ("min", "max", "avg"):
            np.testing.assert_array_equal(after[name], before[name])
        np.testing.assert_allclose(after["std"], before["std"], rtol=1e-12)


@given(pixel_types(), st.integers(0, 2**32), st.data())
def test_the_numbers_are_those_of_the_textbook(
    dtype: np.dtype[Any], seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        frames = rng.normal(100, 30, (2, 2, 7, 9)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        frames = rng.integers(limits.min, limits.max, (2, 2, 7, 9), dtype, endpoint=True)
    box = data.draw(boxes(Roi(0, 0, 9, 7)))
    table = counted(frames, {"r": tuple(box)})
    for frame in range(2):
        for band in range(2):
            pixels = [value.item() for value in frames[frame, band][box.slices].flat]
            row = table[frame, band]
            assert (row["min"], row["max"]) == (min(pixels), max(pixels))
            assert row["sum"] == pytest.approx(math.fsum(pixels), rel=1e-14)
            assert row["avg"] == pytest.approx(math.fsum(pixels) / len(pixels), rel=1e-14)
            assert row["std"] == pytest.approx(statistics.pstdev(pixels), rel=1e-12)
            if dtype.kind != "f":
                assert row["sum"] == sum(pixels)


def test_large_frames_are_counted_in_parts_that_fit_together_again() -> None:
    frames = np.random.default_rng(3).normal(50, 9, (3, 2, 700, 500))
    frames[..., 350:, :] += 1e4
    spec = FrameSpec.dense(700, 500, "f8", bands=2)
    task, boxes = RoiCounters(rois={"all": (0, 0, 500, 700), "part": (9, 60, 480, 601)}), 2
    task.prepare(spec)
    together = task.process(Block(spec, 0, 3, frames)).pixels.reshape(3, boxes, 2)
    for number, box in enumerate((Roi(0, 0, 500, 700), Roi(9, 60, 480, 601))):
        region = frames[:, :, *box.slices].reshape(3, 2, -1)
        for name, expected in {
            "min": region.min(-1), "max": region.max(-1), "sum": region.sum(-1),
            "avg": region.mean(-1), "std": region.std(-1),
        }.items():  # fmt: skip
            np.testing.assert_allclose(together[:, number][name], expected, rtol=1e-13)
    for n in range(3):
        alone = task.process(Block(spec, n, 1, frames[n : n + 1])).pixels
        np.testing.assert_array_equal(alone.reshape(1, boxes, 2), together[n : n + 1])


def test_sums_of_whole_numbers_are_exact_to_the_last_one() -> None:
    frames = np.full((1, 1, 1024, 1024), 2**32 - 1, "u4")
    frames[0, 0, 5, 7] -= 1
    row = counted(frames, {"all": (0, 0, 1024, 1024)})[0, 0]
    assert int(row["sum"]) == 2**20 * (2**32 - 1) - 1
    assert row["std"] == pytest.approx(2**-10, rel=1e-6)


@pytest.mark.parametrize("offset", [0, 10**6, 2**31])
def test_a_small_spread_on_a_large_number_is_not_lost(offset: int) -> None:
    frames = np.full((1, 1, 600, 600), offset, "u4")
    frames[..., ::2] += 2
    row = counted(frames, {"all": (0, 0, 600, 600)})[0, 0]
    assert (row["avg"], row["std"]) == (offset + 1, 1.0)


def test_frames_of_one_value_have_no_spread() -> None:
    frames = np.full((1, 1, 500, 500), 60001, "u2")
    assert counted(frames, {"all": (0, 0, 500, 500)})["std"] == 0


def test_nan_makes_the_numbers_of_its_row_nan_and_of_no_other() -> None:
    frames = np.ones((2, 1, 4, 4), "f4")
    frames[1, 0, 0, 0] = np.nan
    table = counted(frames, {"with": (0, 0, 2, 2), "without": (2, 2, 2, 2)})
    assert all(np.isnan(table[1, 0][name]) for name in NAMES)
    for row in (table[0, 0], table[0, 1], table[1, 1]):
        assert row.tolist() == (1, 1, 1, 0, 4)


def test_infinite_pixels_give_no_warning() -> None:
    frames = np.ones((1, 1, 4, 4), "f8")
    frames[0, 0, 0, 0] = np.inf
    row = counted(frames, {"all": (0, 0, 4, 4)})[0, 0]
    assert (row["max"], row["sum"]) == (np.inf, np.inf)
    assert np.isnan(row["std"])


def test_rows_are_rois_in_the_order_given_then_bands() -> None:
    frames = np.arange(2 * 3 * 4, dtype="u2").reshape(1, 2, 3, 4)
    rois = {"z": (0, 0, 1, 1), "a": (3, 2, 1, 1)}
    spec = FrameSpec.dense(3, 4, "u2", bands=2)
    task = RoiCounters(rois=rois)
    assert task.prepare(spec).labels == ("z[0]", "z[1]", "a[0]", "a[1]")
    assert counted(frames, rois)["sum"].tolist() == [[0, 12, 11, 23]]
    single = RoiCounters(rois=rois).prepare(FrameSpec.dense(3, 4, "u2"))
    assert single.labels == ("z", "a")
    assert (single.kind, single.shape, single.to_detector) == ("table", (2,), None)
    assert single.dtype.names == NAMES


@pytest.mark.parametrize(
    ("rois", "complaint"),
    [
        ({}, "rois: should name at least one ROI"),
        ({" ": [0, 0, 1, 1]}, "rois: every ROI needs a name"),
        ({"a": [0, 0, 1]}, "rois.a: should be [x, y, width, height]"),
        ({"a": [0, 0, 0, 1]}, "rois.a: should be [x, y, width, height]"),
        ({"a": [0, 0, 1, True]}, "rois.a: should be [x, y, width, height]"),
        ([0, 0, 1, 1], "rois: "),
        (None, "rois: "),
    ],
)
def test_rois_that_cannot_be_are_refused(rois: object, complaint: str) -> None:
    with pytest.raises(BadParameter) as refused:
        RoiCounters.load({"rois": rois}, "graph.yaml, task beam")
    assert str(refused.value).startswith(f"graph.yaml, task beam, {complaint}")


def test_a_roi_outside_is_refused_by_its_name() -> None:
    task = RoiCounters(rois={"inside": (0, 0, 4, 4), "beam": (10, 0, 11, 4)})
    with pytest.raises(BadParameter, match=r"^rois.beam: \[10, 0, 11, 4\] .* has 20 × 10 pixels"):
        task.prepare(FrameSpec.dense(10, 20, "u2"))
