"""Where pixels lie: random chains of crop, bin, flip, rotate, transpose against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.geometry import Affine, NotOnPixels, Roi
from lima2py.testing.strategies import Chain, boxes, chains

numbers = st.integers(-50, 50)
affines = st.builds(Affine, *[numbers] * 6)
any_box = st.builds(
    Roi, st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30)
)


@given(chains(), st.integers(0, 2**32))
def test_every_pixel_is_the_sum_of_the_detector_pixels_its_matrix_claims(
    chain: Chain, seed: int
) -> None:
    detector = np.random.default_rng(seed).integers(0, 2**40, chain.detector)
    image = chain.apply(detector)
    assert image.shape == chain.image
    for y, x in np.ndindex(*chain.image):
        under = chain.to_detector.covered(Roi(x, y, 1, 1))
        assert image[y, x] == detector[under.slices].sum()


@given(chains(max_steps=8))
def test_compositions_are_exact_and_in_whole_numbers(chain: Chain) -> None:
    product = np.identity(3, dtype=object)
    for step in chain.steps:
        product = product @ np.array([[int(v) for v in row] for row in step.to_input.matrix])
    assert [[int(v) for v in row] for row in product] == [
        list(row) for row in chain.to_detector.matrix
    ]


@given(chains())
def test_the_determinant_counts_detector_pixels(chain: Chain) -> None:
    under = chain.to_detector.covered(chain.box)
    pixels = chain.box.width * chain.box.height
    assert under.width * under.height == abs(chain.to_detector.determinant) * pixels


@given(chains(), st.data())
def test_a_box_goes_to_the_detector_and_comes_back_as_it_was(
    chain: Chain, data: st.DataObject
) -> None:
    box = data.draw(boxes(chain.box))
    assert chain.to_detector.local(chain.to_detector.covered(box)) == box


@given(chains(detector=(24, 24)), st.data())
def test_a_box_off_the_pixels_is_refused_with_the_smallest_one_around_it_that_is_on_them(
    chain: Chain, data: st.DataObject
) -> None:
    to_detector = chain.to_detector
    box = data.draw(boxes(to_detector.covered(chain.box)))
    nearest = nearest_to(box, to_detector)
    local = to_detector.local(nearest)
    assert local.inside(chain.box)
    assert to_detector.covered(local) == nearest
    assert box.inside(nearest)
    for smaller in (
        Roi(local.x + 1, local.y, local.width - 1, local.height),
        Roi(local.x, local.y + 1, local.width, local.height - 1),
        Roi(local.x, local.y, local.width - 1, local.height),
        Roi(local.x, local.y, local.width, local.height - 1),
    ):
        assert not box.inside(to_detector.covered(smaller))


def nearest_to(box: Roi, to_detector: Affine) -> Roi:
    """A box of detector pixels, or the one that is offered when it is refused."""
    try:
        to_detector.local(box)
    except NotOnPixels as error:
        return error.nearest
    return box


def test_a_box_off_the_pixels_is_really_refused() -> None:
    with pytest.raises(NotOnPixels, match=r"\[4, 0, 8, 8\]"):
        (Affine.translation(4, 0) @ Affine.bin(4, 4)).local(Roi(5, 1, 6, 4))


@given(affines, affines, affines, numbers, numbers)
def test_maps_compose_as_functions_do(p: Affine, q: Affine, r: Affine, x: int, y: int) -> None:
    assert (p @ q)(x, y) == p(*q(x, y))
    assert (p @ q) @ r == p @ (q @ r)
    assert p @ Affine.identity() == p == Affine.identity() @ p


@given(st.integers(1, 40), st.integers(1, 40))
def test_flips_and_turns_come_round(height: int, width: int) -> None:
    here, turned = (height, width), (width, height)
    for axis in ("x", "y"):
        assert Affine.flip(axis, here) @ Affine.flip(axis, here) == Affine()
    quarter = Affine.rotate(90, here)
    assert quarter @ Affine.rotate(90, turned) == Affine.rotate(180, here)
    assert quarter @ Affine.rotate(270, turned) == Affine()
    assert Affine.flip("x", here) @ Affine.flip("y", here) == Affine.rotate(180, here)
    assert Affine.transpose() @ Affine.transpose() == Affine()
    assert Affine.transpose() @ Affine.flip("x", turned) == Affine.rotate(90, here)


def test_a_quarter_turn_is_clockwise() -> None:
    """The corner at the top left comes to lie at the top right."""
    assert Affine.rotate(90, (2, 5)).covered(Roi(1, 0, 1, 1)) == Roi(0, 0, 1, 1)


@given(affines)
def test_a_matrix_makes_the_same_map_again(affine: Affine) -> None:
    assert Affine.from_matrix(affine.matrix) == affine


def test_a_matrix_that_is_not_affine_is_refused() -> None:
    with pytest.raises(ValueError, match="0 0 1"):
        Affine.from_matrix([[1, 0, 0], [0, 1, 0], [0, 1, 1]])


def test_a_matrix_reads_as_rows() -> None:
    assert str(Affine.translation(10, 20) @ Affine.bin(2, 4)) == (
        "[[2, 0, 10], [0, 4, 20], [0, 0, 1]]"
    )


@given(any_box, any_box)
def test_a_box_is_inside_another_if_all_its_pixels_are(inner: Roi, outer: Roi) -> None:
    image = np.zeros((64, 64), dtype=bool)
    image[outer.slices] = True
    assert inner.inside(outer) == image[inner.slices].all()


@given(chains(kinds=("flip", "rotate", "transpose")), st.data())
def test_turning_and_mirroring_never_leave_the_pixels(chain: Chain, data: st.DataObject) -> None:
    box = data.draw(boxes(Roi(0, 0, chain.detector[1], chain.detector[0])))
    assert chain.to_detector.local(box).inside(chain.box)
