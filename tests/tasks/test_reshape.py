"""Crop, bin, flip and rotate: against plain numpy, one by one and in chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py import plugins
from lima2py.errors import BadParameter
from lima2py.frame import Block, FrameSpec
from lima2py.geometry import Affine
from lima2py.task import Task
from lima2py.tasks.reshape import Bin, Crop, Flip, Rotate
from lima2py.testing.strategies import Chain, chains
from lima2py.testing.tasks import TaskTests

PART = FrameSpec.dense(
    12, 16, np.int16, to_detector=Affine.translation(8, 4) @ Affine.bin(2, 2),
    detector_shape=(64, 64),
)  # fmt: skip
SPECS = {
    "whole detector": FrameSpec.dense(12, 16, np.uint16, bands=2),
    "binned part": PART,
    "floating point": FrameSpec.dense(12, 16, np.float32),
}


class TestCrop(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Crop(box=(3, 2, 7, 5))


class TestCropOfABinnedPart(TestCrop):
    @pytest.fixture
    def task(self) -> Task:
        return Crop(box=(10, 6, 20, 8))

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return PART


class OnSeveralSpecs(TaskTests):
    @pytest.fixture(params=SPECS)
    def spec(self, request: pytest.FixtureRequest) -> FrameSpec:
        return SPECS[request.param]


class TestBin(OnSeveralSpecs):
    @pytest.fixture(params=[(2, 2), (4, 3), (1, 2), (16, 1), (1, 1)], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Bin(by=request.param)


class TestFlip(OnSeveralSpecs):
    @pytest.fixture(params=["x", "y"])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Flip(axis=request.param)


class TestRotate(OnSeveralSpecs):
    @pytest.fixture(params=[90, 180, 270])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Rotate(angle=request.param)


def built(chain: Chain) -> list[Task]:
    """The tasks of a chain, made from what a person would write."""
    return [
        plugins.load(plugins.TASKS, step.do, Task, "chain").load(step.parameters, step.do)  # type: ignore[attr-defined]
        for step in chain.steps
    ]


def through(tasks: list[Task], block: Block) -> Block:
    """What tasks one after the other make of a block."""
    spec = block.spec
    for task in tasks:
        spec = task.prepare(spec)
        block = task.process(block)
        assert block.spec == spec
    return block


@given(chains(), st.integers(0, 2**32))
def test_a_chain_of_tasks_does_what_numpy_does_and_knows_where_it_ends(
    chain: Chain, seed: int
) -> None:
    spec = FrameSpec.dense(*chain.detector, "f8", bands=2)
    data = np.random.default_rng(seed).integers(0, 2**30, (3, *spec.shape)).astype("f8")
    block = through(built(chain), Block(spec, 5, 3, data))
    np.testing.assert_array_equal(block.pixels, chain.apply(data))
    assert block.spec.to_detector == chain.to_detector
    assert block.spec.detector_shape == chain.detector
    assert block.spec.image == chain.image


@pytest.mark.parametrize("task", [Crop(box=(2, 2, 5, 5)), Flip(axis="x"), Rotate(angle=90)])
def test_nothing_is_copied_without_need(task: Task) -> None:
    spec = FrameSpec.dense(12, 16, "u2")
    data = np.zeros((2, *spec.shape), "u2")
    assert np.shares_memory(through([task], Block(spec, 0, 2, data)).pixels, data)


@pytest.mark.parametrize(
    ("dtype", "by", "sums"),
    [
        ("u1", (1, 1), "u1"),
        ("u1", (2, 2), "u2"),
        ("u1", (16, 16), "u2"),
        ("u1", (16, 17), "u4"),
        ("u2", (2, 2), "u4"),
        ("u4", (2, 1), "u8"),
        ("u8", (1, 1), "u8"),
        ("i1", (2, 2), "i2"),
        ("i2", (2, 2), "i4"),
        ("i4", (2, 2), "i8"),
        (">u2", (2, 2), "u4"),
        (">u2", (1, 1), ">u2"),
        ("f4", (2, 2), "f4"),
        ("f8", (2, 2), "f8"),
    ],
)
def test_sums_get_the_narrowest_type_that_cannot_overflow(
    dtype: str, by: tuple[int, int], sums: str
) -> None:
    spec = Bin(by=by).prepare(FrameSpec.dense(17 * 16, 16, dtype))
    assert spec.dtype == np.dtype(sums)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4"])
@pytest.mark.parametrize("by", [(2, 1), (3, 4), (16, 8)])
def test_the_largest_and_the_smallest_pixels_add_up_exactly(
    dtype: str, by: tuple[int, int]
) -> None:
    spec = FrameSpec.dense(8 * 3, 48, dtype)
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max):
        data = np.full((1, *spec.shape), value, dtype)
        sums = through([Bin(by=by)], Block(spec, 0, 1, data)).pixels
        assert {int(one) for one in sums.flat} == {int(value) * by[0] * by[1]}


@pytest.mark.parametrize("dtype", ["u8", "i8", "?", "c8"])
def test_sums_that_no_type_can_hold_are_refused(dtype: str) -> None:
    with pytest.raises(BadParameter, match=r"^by: "):
        Bin(by=(2, 2)).prepare(FrameSpec.dense(4, 4, dtype))


def test_bins_that_do_not_divide_are_refused_with_the_sum_and_a_crop_that_helps() -> None:
    spec = FrameSpec.dense(1065, 1030, "u2")
    with pytest.raises(BadParameter) as refused:
        Bin(by=(4, 4)).prepare(spec)
    assert str(refused.value) == (
        "by: [4, 4] does not divide 1030 × 1065 pixels (width × height): 1030 = 257 × 4 + 2,"
        " 1065 = 266 × 4 + 1; crop before it, for instance with box: [0, 0, 1028, 1064]"
    )
    Bin(by=(4, 4)).prepare(Crop(box=(0, 0, 1028, 1064)).prepare(spec))


@given(chains(), st.integers(1, 9), st.integers(1, 9))
def test_the_crop_that_is_offered_does_help(chain: Chain, x: int, y: int) -> None:
    spec = chain.spec("f4")
    try:
        Bin(by=(x, y)).prepare(spec)
    except BadParameter as error:
        text = str(error)
        if "at most" in text:
            assert x > spec.width or y > spec.height
        else:
            box = [int(number) for number in text.split("[")[-1].rstrip("]").split(",")]
            Bin(by=(x, y)).prepare(Crop.load({"box": box}, "crop").prepare(spec))


def test_a_box_that_reaches_outside_is_refused() -> None:
    spec = FrameSpec.dense(10, 20, "u2")
    with pytest.raises(BadParameter, match=r"^box: \[15, 0, 6, 5\] .* has 20 × 10 pixels"):
        Crop(box=(15, 0, 6, 5)).prepare(spec)
    left = Crop(box=(5, 5, 10, 5)).prepare(spec)
    with pytest.raises(BadParameter, match=r"^box: \[0, 0, 4, 4\] .* seen here, \[5, 5, 10, 5\]"):
        Crop(box=(0, 0, 4, 4)).prepare(left)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (Crop(box=(0, 0, 1, 1)), "box"),
        (Bin(by=(1, 1)), "by"),
        (Flip(axis="x"), "axis"),
        (Rotate(angle=90), "angle"),
    ],
)
def test_what_is_no_image_is_refused(task: Task, field: str) -> None:
    with pytest.raises(BadParameter, match=f"^{field}: .*table"):
        task.prepare(FrameSpec("table", (3,), np.dtype("f8")))


@pytest.mark.parametrize(
    ("task", "parameters", "complaint"),
    [
        (Crop, {"box": [0, 0, 5]}, "box: should be [x, y, width, height]"),
        (Bin, {"by": 2}, "by: should be [x, y]"),
        (Bin, {"by": [0, 2]}, "by: should be [x, y], whole numbers of 1 or more"),
        (Bin, {}, "by: is required"),
        (Flip, {"axis": "z"}, "axis: should be 'x' or 'y'"),
        (Flip, {"axis": True}, "axis: should be 'x' or 'y'"),
        (Rotate, {"angle": 45}, "angle: should be 90, 180 or 270"),
        (Rotate, {"angle": "90"}, "angle: should be 90, 180 or 270"),
        (Rotate, {"angel": 90}, 'angel: there is no such field (did you mean "angle"?)'),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    task: type[Task], parameters: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadParameter) as refused:
        task.load(parameters, "graph.yaml, task a")
    assert f"graph.yaml, task a, {complaint}" in str(refused.value)


@pytest.mark.parametrize("task", [Bin(by=(2, 2)), Flip(axis="x"), Rotate(angle=90)])
def test_an_image_without_a_place_on_the_detector_gets_none(task: Task) -> None:
    spec = FrameSpec.dense(4, 6, "f4").replace(to_detector=None)
    assert task.prepare(spec).to_detector is None


def test_sums_beyond_all_bounds_are_infinite_without_a_warning() -> None:
    """The memory of absent frames may hold anything."""
    spec = FrameSpec.dense(4, 4, "f4")
    data = np.full((1, *spec.shape), np.float32(3e38))
    data[..., 0, 0], data[..., 1, 0] = np.inf, -np.inf
    sums = through([Bin(by=(2, 2))], Block(spec, 0, 1, data)).pixels
    assert np.isnan(sums[0, 0, 0, 0])
    assert np.isinf(sums).sum() == 3
