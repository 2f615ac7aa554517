"""Rectangles of detector pixels, found in whatever a task is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import local_box
from lima2py.testing.strategies import Chain, boxes, chains


@given(chains(), st.data())
def test_it_is_found_where_it_lies(chain: Chain, data: st.DataObject) -> None:
    spec = chain.spec("u2")
    local = data.draw(boxes(spec.box))
    assert local_box(chain.to_detector.covered(local), spec, "box") == local


def test_outside_the_detector_is_told_apart_from_outside_of_what_is_left_of_it() -> None:
    spec = FrameSpec.dense(
        10, 20, "u2", to_detector=Affine.translation(5, 5), detector_shape=(100, 200)
    )
    with pytest.raises(BadParameter) as refused:
        local_box(Roi(190, 0, 11, 5), spec, "rois.beam")
    assert str(refused.value) == (
        "rois.beam: [190, 0, 11, 5] ([x, y, width, height]) reaches outside the detector, which"
        " has 200 × 100 pixels (width × height)"
    )
    with pytest.raises(BadParameter) as refused:
        local_box(Roi(4, 5, 3, 3), spec, "rois.beam")
    assert str(refused.value).startswith("rois.beam: [4, 5, 3, 3] ([x, y, width, height] in")
    assert "the part of the detector seen here, [5, 5, 20, 10]" in str(refused.value)


def test_where_the_detector_is_not_known_what_is_seen_bounds_the_box() -> None:
    spec = FrameSpec.dense(10, 20, "u2", to_detector=Affine.translation(5, 5))
    with pytest.raises(BadParameter, match=r"seen here, \[5, 5, 20, 10\]"):
        local_box(Roi(0, 0, 500, 500), spec, "box")


def test_off_the_pixels_the_nearest_box_is_offered() -> None:
    spec = FrameSpec.dense(25, 50, "u4", to_detector=Affine.bin(4, 4), detector_shape=(100, 200))
    with pytest.raises(BadParameter) as refused:
        local_box(Roi(1, 0, 8, 8), spec, "box")
    assert str(refused.value) == (
        "box: [1, 0, 8, 8] does not fall on whole pixels of the product, each of which is 16"
        " detector pixels; the nearest that does is [0, 0, 12, 8]"
    )
    assert local_box(Roi(0, 0, 12, 8), spec, "box") == Roi(0, 0, 3, 2)


@pytest.mark.parametrize(
    "spec",
    [FrameSpec("table", (3,), np.dtype("f8")), FrameSpec("vector", (3,), np.dtype("f8"))],
)
def test_a_product_without_pixels_is_refused(spec: FrameSpec) -> None:
    with pytest.raises(BadParameter, match=f"^box: a {spec.kind} product has no pixels on"):
        local_box(Roi(0, 0, 1, 1), spec, "box")


def test_images_without_a_place_on_the_detector_are_refused_with_a_way_out() -> None:
    spec = FrameSpec.dense(9, 9, "f4").replace(to_detector=None)
    with pytest.raises(BadParameter, match=r"^box: the images .* no place .* put this task before"):
        local_box(Roi(0, 0, 1, 1), spec, "box")
