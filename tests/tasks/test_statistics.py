"""Numbers about whole frames, against numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.geometry import Affine
from lima2py.task import Task
from lima2py.tasks.statistics import CentreOfMass, FillFactor, Statistics
from lima2py.testing.tasks import TaskTests
from tests.tasks.strips import pixels, seen


class TestStatistics(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Statistics()


class TestFillFactor(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return FillFactor(above=50)


class TestCentreOfMass(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return CentreOfMass(box=(2, 1, 7, 5), above=20)


@pytest.fixture
def mask(tmp_path: Path) -> str:
    masked = np.random.default_rng(4).random((30, 20)) < 0.3
    np.save(tmp_path / "mask.npy", masked)
    return str(tmp_path / "mask.npy")


@settings(max_examples=60)
@given(pixels(("i2", "f4")), st.integers(1, 5))
def test_statistics_leave_nan_out_and_count_them(frames: Array, lines: int) -> None:
    table = seen(Statistics(), frames, lines=lines).pixels
    for row, image in zip(table.ravel(), frames.reshape(-1, *frames.shape[2:]), strict=True):
        good = image[image == image].astype("f8")
        assert row["nb_nan"] == image.size - good.size
        assert row["nb_zero"] == (good == 0).sum()
        if not good.size:
            assert np.isnan([row[name] for name in ("min", "max", "avg", "std")]).all()
            assert row["sum"] == 0
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            expected = good.min(), good.max(), good.mean(), good.std(), good.sum()
        scale = np.abs(good).max(initial=0, where=np.isfinite(good))
        made = [row[name] for name in ("min", "max", "avg", "std", "sum")]
        np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_masked_pixels_are_left_out(mask: str, dtype: str) -> None:
    free = ~np.load(mask)
    frames = np.random.default_rng(1).poisson(0.7, (2, 2, 30, 20)).astype(dtype)
    inside = frames[..., free]
    (sums,) = [seen(Statistics(mask=mask), frames).pixels[name] for name in ("sum",)]
    np.testing.assert_array_equal(sums, inside.sum(-1))
    above = seen(FillFactor(mask=mask), frames).pixels
    np.testing.assert_array_equal(above["nb_above"], (inside > 0).sum(-1))
    np.testing.assert_array_equal(above["fraction"], (inside > 0).mean(-1))
    centres = seen(CentreOfMass(mask=mask), frames).pixels
    for row, image in zip(centres.ravel(), frames.reshape(-1, 30, 20), strict=True):
        y, x = ndimage.center_of_mass(image * free)
        np.testing.assert_allclose([row["x"], row["y"]], [x + 0.5, y + 0.5], rtol=1e-12)


def test_a_mask_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", np.ones((3, 4)))
    with pytest.raises(BadParameter, match=r"^mask: .* masks every pixel"):
        Statistics(mask=str(tmp_path / "all.npy")).prepare(FrameSpec.dense(3, 4, "u2"))


@settings(max_examples=60)
@given(pixels(("?", "i2", "f4")), st.integers(1, 5), st.floats(0, 30))
def test_the_fill_factor_counts_what_is_above(frames: Array, lines: int, above: float) -> None:
    above = 0 if frames.dtype.kind == "b" else above
    table = seen(FillFactor(above=above), frames, lines=lines).pixels
    expected = (frames.astype("f8") > above).sum(axis=(2, 3))
    np.testing.assert_array_equal(table["nb_above"], expected)
    np.testing.assert_allclose(table["fraction"], expected / frames[0, 0].size)


@pytest.mark.parametrize(
    ("dtype", "above", "complaint"),
    [
        ("u2", -1, "outside .* 0 to 65535"),
        ("u1", 256, "outside .* 0 to 255"),
        ("u8", 2**64, "outside"),
        ("f4", 1e39, "outside"),
        ("?", 2, "outside .* 0 to 1"),
    ],
)
def test_a_limit_that_pixels_cannot_hold_is_refused(
    dtype: str, above: float, complaint: str
) -> None:
    with pytest.raises(BadParameter, match=rf"^above: .*{complaint}"):
        FillFactor(above=above).prepare(FrameSpec.dense(3, 4, dtype))


@pytest.mark.parametrize(
    ("dtype", "above"),
    [("u8", 2**64 - 2), ("i8", 2**63 - 2), ("i8", -(2**63)), ("f4", 0.1), ("f8", 0.1)],
)
def test_a_limit_of_many_digits_is_compared_exactly(dtype: str, above: float) -> None:
    task = FillFactor.load({"above": above}, "graph")
    task.prepare(FrameSpec.dense(3, 4, dtype))
    (*_, limit) = task.constants
    assert limit.dtype == np.dtype(dtype)
    assert limit.item() <= above
    after = (
        limit.item() + 1
        if limit.dtype.kind in "iu"
        else np.nextafter(limit, limit.dtype.type(math.inf)).item()
    )
    assert after > above


@settings(max_examples=60)
@given(pixels(("i2", "f4")), st.integers(1, 5), st.none() | st.floats(-9, 9))
def test_the_centre_of_mass_is_that_of_scipy(
    frames: Array, lines: int, above: float | None
) -> None:
    table = seen(CentreOfMass(above=above), frames, lines=lines).pixels
    for row, image in zip(table.ravel(), frames.reshape(-1, *frames.shape[2:]), strict=True):
        values = image.astype("f8")
        if above is not None:
            values[values <= above] = 0
        if not np.isfinite(values).all() or np.abs(values).max() > 1e20:
            continue  # no number to compare with, or one that says nothing
        assert row["sum"] == pytest.approx(values.sum(), rel=1e-9, abs=1e-9)
        if abs(values.sum()) < 1e-3 * np.abs(values).sum():
            continue
        if not values.any():
            assert np.isnan(row["x"])
            assert np.isnan(row["y"])
            continue
        y, x = ndimage.center_of_mass(values)
        np.testing.assert_allclose([row["x"], row["y"]], [x + 0.5, y + 0.5], rtol=1e-9, atol=1e-9)


def test_a_centre_is_nan_where_there_is_no_light_or_a_nan() -> None:
    frames = np.zeros((2, 1, 4, 4), "f4")
    frames[1, 0, 2, 2] = np.nan
    table = seen(CentreOfMass(), frames).pixels
    assert np.isnan(table["x"]).all()
    assert np.isnan(table["y"]).all()
    assert table["sum"][0, 0] == 0
    assert np.isnan(table["sum"][1, 0])


def test_centres_are_places_on_the_detector() -> None:
    frames = np.zeros((1, 1, 5, 7), "u2")
    frames[0, 0, 1, 2] = 9
    place = Affine(a=0, b=2, c=10, d=-2, e=0, f=40)  # binned by 2, turned, cropped
    spec = FrameSpec.dense(5, 7, "u2", to_detector=place, detector_shape=(64, 64))
    (row,) = seen(CentreOfMass(), frames, spec).pixels[0]
    assert (row["x"], row["y"]) == place(2.5, 1.5)


def test_a_centre_without_a_place_is_refused() -> None:
    spec = FrameSpec("dense", (1, 4, 4), np.dtype("u2"))
    with pytest.raises(BadParameter, match=r"^from: .* no place on the detector .* before"):
        CentreOfMass().prepare(spec)


def test_rows_are_named_after_bands() -> None:
    for bands, names in [(1, ("frame",)), (2, ("frame[0]", "frame[1]"))]:
        tasks: list[Any] = [Statistics(), FillFactor(), CentreOfMass()]
        for task in tasks:
            assert task.prepare(FrameSpec.dense(3, 4, "u2", bands=bands)).labels == names
