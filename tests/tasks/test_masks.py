"""Virtual detectors: sums under masks, against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.geometry import Affine
from lima2py.task import Task
from lima2py.tasks.virtual_detectors import MaskProducts
from lima2py.testing.tasks import TaskTests
from tests.tasks.strips import pixels, seen


class TestMaskProducts(TaskTests):
    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        np.save(tmp_path / "weights.npy", np.random.default_rng(1).random((12, 16)))
        masks: dict[str, Any] = {
            "ring": {"centre": [8, 6], "radii": [2, 5]},
            "weights": str(tmp_path / "weights.npy"),
            "pixel": [3, 4, 1, 1],
        }
        return MaskProducts.load({"masks": masks}, "masks")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pixels(("i2", "u8", "f4")), st.integers(1, 5), st.integers(0, 9))
def test_sums_are_those_of_numpy(tmp_path: Path, frames: Array, lines: int, seed: int) -> None:
    """Weights that are mostly 0, dense ones, 0 and 1, and one image for each band."""
    rng = np.random.default_rng(seed)
    bands, height, width = frames.shape[1:]
    if frames.dtype.kind == "f":
        frames = np.where(np.isfinite(frames), frames, 7).astype(frames.dtype)
    images = {
        "sparse": rng.random((height, width)) * (rng.random((height, width)) < 0.3),
        "dense": rng.normal(size=(height, width)).astype("f4"),
        "ones": rng.random((height, width)) < 0.5,
        "bands": rng.integers(-3, 4, (bands, height, width))
        if bands > 1
        else np.eye(height, width),
    }
    masks = {}
    for name, image in images.items():
        masks[name] = str(tmp_path / f"{name}.npy")
        np.save(masks[name], image)
    task = MaskProducts.load({"masks": masks}, "test")
    made = seen(task, frames, lines=lines).pixels["sum"].reshape(len(frames), 4, bands)
    for number, image in enumerate(images.values()):
        products = frames.astype("f8") * image
        scale = np.abs(products).sum()
        np.testing.assert_allclose(
            made[:, number], products.sum(axis=(2, 3)), rtol=1e-12, atol=1e-12 * scale
        )


def test_rows_stand_in_the_order_given(tmp_path: Path) -> None:
    np.save(tmp_path / "half.npy", np.full((3, 4), 0.5))
    masks: dict[str, Any] = {
        "half": str(tmp_path / "half.npy"), "pixel": (1, 0, 1, 1), "all": (0, 0, 4, 3),
    }  # fmt: skip
    frames = np.arange(2 * 3 * 4, dtype="u2").reshape(1, 2, 3, 4)
    made = seen(MaskProducts(masks=masks), frames)
    assert made.spec.labels == ("half[0]", "half[1]", "pixel[0]", "pixel[1]", "all[0]", "all[1]")
    assert made.pixels["sum"].tolist() == [[33, 105, 1, 13, 66, 210]]


def test_a_nan_outside_of_a_mask_changes_nothing() -> None:
    frames = np.ones((1, 1, 4, 4), "f4")
    frames[0, 0, 0, 0] = np.nan
    masks = {"with": (0, 0, 2, 2), "without": (2, 2, 2, 2)}
    with_, without = seen(MaskProducts(masks=masks), frames).pixels["sum"][0]
    assert np.isnan(with_)
    assert without == 4


def test_weights_of_a_binned_product_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "weights.npy", np.full((8, 8), 0.5))
    spec = FrameSpec.dense(4, 4, "u2", to_detector=Affine.bin(2, 2), detector_shape=(8, 8))
    with pytest.raises(BadParameter, match=r"^masks.w: .* put this task before the bin"):
        MaskProducts(masks={"w": str(tmp_path / "weights.npy")}).prepare(spec)


@pytest.mark.parametrize(
    ("masks", "complaint"),
    [
        ({}, "masks: should name at least one"),
        ({"a": [1, 2]}, "masks.a: should be [x, y, width, height]"),
        ({"a": {"radii": [1, 2]}}, "masks.a: cannot be: an arc, centre: is required"),
        ({"a": " "}, "masks.a"),
    ],
)
def test_masks_that_cannot_be_are_refused(masks: Any, complaint: str) -> None:
    with pytest.raises(BadParameter) as refused:
        MaskProducts.load({"masks": masks}, "graph.yaml")
    assert f"graph.yaml, {complaint}" in str(refused.value)
