"""Counters of regions: exact, and on the same photons whatever was done to the frames before."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lima2py import plugins
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.task import Task
from lima2py.tasks.rois import COUNTERS, RoiCounters, RoiProfiles
from lima2py.testing.strategies import Chain, boxes, chains
from lima2py.testing.tasks import TaskTests
from tests.tasks.strips import pixels, seen

NAMES = ("min", "max", "avg", "std", "sum")


class TestRoiCounters(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return RoiCounters(rois={"all": (0, 0, 16, 12), "pixel": (3, 4, 1, 1), "b": (2, 1, 7, 5)})


class TestRoiCountersOfArcs(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        ring = {"centre": (8, 6), "radii": (2, 5)}
        return RoiCounters.load({"rois": {"ring": ring, "box": [1, 2, 3, 4]}}, "arcs")


class TestRoiProfiles(TaskTests):
    @pytest.fixture(params=["x", "y"])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return RoiProfiles(box=(2, 1, 7, 5), axis=request.param)


class TestRoiCountersOfFloats(TestRoiCounters):
    @pytest.fixture
    def frames(self, spec: FrameSpec) -> Array:
        return np.random.default_rng(1).normal(1e6, 1, (12, *spec.shape)).astype("f4")

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "f4")


def counted(data: Array, rois: dict[str, Any], spec: FrameSpec | None = None) -> Array:
    """The table of counters of frames `(frames, bands, height, width)`."""
    table = seen(RoiCounters(rois=rois), data, spec).pixels
    assert table.dtype == COUNTERS
    return table


@settings(max_examples=30)
@given(chains(), st.sampled_from(["u1", "i2", "u4", "f4"]).map(np.dtype), st.data())
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


@settings(max_examples=40)
@given(
    st.sampled_from(["u2", "i2", "i4", "u4", "f4", "f8"]).map(np.dtype),
    st.integers(0, 2**32),
    st.data(),
)
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
    task, boxes = RoiCounters(rois={"all": (0, 0, 500, 700), "part": (9, 60, 480, 601)}), 2
    together = seen(task, frames, lines=16).pixels.reshape(3, boxes, 2)
    for number, box in enumerate((Roi(0, 0, 500, 700), Roi(9, 60, 480, 601))):
        region = frames[:, :, *box.slices].reshape(3, 2, -1)
        for name, expected in {
            "min": region.min(-1), "max": region.max(-1), "sum": region.sum(-1),
            "avg": region.mean(-1), "std": region.std(-1),
        }.items():  # fmt: skip
            np.testing.assert_allclose(together[:, number][name], expected, rtol=1e-13)
    for n in range(3):
        alone = seen(task, frames[n : n + 1], lines=16).pixels
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
    rois: dict[str, Any] = {"z": (0, 0, 1, 1), "a": (3, 2, 1, 1)}
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
        ({}, "rois: should name at least one"),
        ({" ": [0, 0, 1, 1]}, "rois: every one needs a name"),
        ({"a": [0, 0, 1]}, "rois.a: should be [x, y, width, height]"),
        ({"a": [0, 0, 0, 1]}, "rois.a: should be [x, y, width, height]"),
        ({"a": [0, 0, 1, True]}, "rois.a: should be [x, y, width, height]"),
        ({"a": {"centre": [1, 1]}}, "rois.a: cannot be: an arc, radii: is required"),
        ({"a": {"centre": [1, 1], "radii": [3, 2]}}, "rois.a: cannot be: an arc, radii: should be"),
        (
            {"a": {"centre": [1, 1], "radii": [0, 2], "angles": [90, 0]}},
            "rois.a: cannot be: an arc, angles: should be",
        ),
        ({"a": "mask.npy"}, "rois.a: should be [x, y, width, height]"),
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


@settings(max_examples=60)
@given(pixels(), st.integers(1, 5), st.data())
def test_arcs_count_the_pixels_whose_centres_are_inside(
    frames: Array, lines: int, data: st.DataObject
) -> None:
    """Against plain numpy, with the angle measured by complex numbers."""
    height, width = frames.shape[2:]
    centre = data.draw(st.tuples(st.floats(-2, 14), st.floats(-2, 14)))
    inner, wide = data.draw(st.tuples(st.integers(0, 8), st.integers(2, 9)))
    first, extent = data.draw(st.tuples(st.integers(-400, 400), st.integers(20, 360)))
    y, x = np.mgrid[:height, :width] + 0.5
    away = (x - centre[0]) + 1j * (y - centre[1])
    inside = (abs(away) >= inner) & (abs(away) < inner + wide)
    turned = np.degrees(np.angle(away * np.exp(-1j * np.radians(first + extent / 2))))
    assume((abs(abs(turned) - extent / 2) > 1e-6).all())
    assume((abs(abs(away) - inner) > 1e-9).all() and (abs(abs(away) - inner - wide) > 1e-9).all())
    inside &= abs(turned) < extent / 2
    arc = {"centre": centre, "radii": (inner, inner + wide), "angles": (first, first + extent)}
    task = RoiCounters.load({"rois": {"arc": arc}}, "test")
    if not inside.any():
        with pytest.raises(BadParameter, match=r"^rois.arc: there is no pixel whose centre"):
            task.prepare(FrameSpec.dense(height, width, frames.dtype, bands=frames.shape[1]))
        return
    table = seen(task, frames, lines=lines).pixels
    compare_to_numpy(table, frames[..., inside])


@settings(max_examples=60)
@given(pixels(("?", "i2", "u8", "f4")), st.integers(1, 5), st.data())
def test_rectangles_count_like_numpy_also_nan_and_infinity(
    frames: Array, lines: int, data: st.DataObject
) -> None:
    height, width = frames.shape[2:]
    box = data.draw(boxes(Roi(0, 0, width, height)))
    table = seen(RoiCounters(rois={"box": tuple(box)}), frames, lines=lines).pixels
    compare_to_numpy(table, frames[..., *box.slices].reshape(*frames.shape[:2], -1))


def compare_to_numpy(table: Array, inside: Array) -> None:
    """The counters of pixels `(frames, bands, pixels)`."""
    with np.errstate(invalid="ignore", over="ignore"):
        values = inside.astype("f8")
        rtol = 1e-12 if inside.dtype.kind != "f" else 1e-9
        scale = np.abs(values).max(initial=0, where=np.isfinite(values))
        for name, expected in {
            "min": values.min(-1), "max": values.max(-1), "avg": values.mean(-1),
            "std": values.std(-1), "sum": values.sum(-1),
        }.items():  # fmt: skip
            np.testing.assert_allclose(table[name], expected, rtol=rtol, atol=1e-12 * scale)


def test_an_arc_is_measured_from_x_towards_y_in_degrees() -> None:
    frames = np.arange(16, dtype="u2").reshape(1, 1, 4, 4)
    quarter = {"centre": (2, 2), "radii": (0, 3), "angles": (0, 90)}
    table = seen(RoiCounters.load({"rois": {"q": quarter}}, "test"), frames).pixels
    assert table["sum"][0, 0] == frames[0, 0, 2:, 2:].sum()  # below and right, as y points down


def test_an_arc_lies_on_the_same_photons_of_turned_and_mirrored_frames() -> None:
    raw = np.random.default_rng(5).integers(0, 100, (2, 1, 20, 26)).astype("u2")
    arc = {"centre": (11.3, 8.2), "radii": (3, 9), "angles": (20, 200)}
    task = RoiCounters.load({"rois": {"arc": arc}}, "test")
    plain = seen(task, raw).pixels
    for do, parameters in [("rotate", {"angle": 90}), ("flip", {"axis": "x"})]:
        loaded: Any = plugins.load(plugins.TASKS, do, Task, "test")
        reshape = loaded.load(parameters, do)
        spec = reshape.prepare(FrameSpec.dense(20, 26, "u2"))
        turned = reshape.process(Block(FrameSpec.dense(20, 26, "u2"), 0, 2, raw)).pixels
        np.testing.assert_allclose(
            seen(task, turned, spec).pixels.tolist(), plain.tolist(), rtol=1e-12
        )


@settings(max_examples=40)
@given(chains(), st.sampled_from(["u2", "f4"]), st.sampled_from("xy"), st.data())
def test_a_profile_goes_along_the_axis_of_the_detector(
    chain: Chain, dtype: str, axis: str, data: st.DataObject
) -> None:
    """Whatever was cropped, binned, turned and mirrored before."""
    seed = data.draw(st.integers(0, 2**32))
    raw = np.random.default_rng(seed).integers(0, 9, (2, 1, *chain.detector)).astype(dtype)
    box = chain.to_detector.covered(data.draw(boxes(chain.box)))
    how = data.draw(st.sampled_from(["sum", "mean"]))
    task = RoiProfiles.load({"box": tuple(box), "axis": axis, "how": how}, "test")
    made = seen(task, chain.apply(raw), chain.spec(dtype)).pixels
    whole = raw[:, 0, *box.slices].sum(axis=1 if axis == "x" else 2, dtype="f8")
    summed = whole.reshape(2, made.shape[1], -1).sum(axis=2)
    if how == "mean":
        length = box.height if axis == "x" else box.width
        one = chain.to_detector.covered(Roi(0, 0, 1, 1))
        summed = summed / (length / (one.height if axis == "x" else one.width))
    np.testing.assert_allclose(made, summed, rtol=1e-12)


def test_profiles_of_several_bands_follow_one_another() -> None:
    frames = np.arange(2 * 3 * 4, dtype="u2").reshape(1, 2, 3, 4)
    task = RoiProfiles(box=(1, 0, 2, 3), axis="x")
    assert seen(task, frames).pixels.tolist() == [[15, 18, 51, 54]]
