"""Crop, bin, flip, rotate, transpose: against numpy and scikit-image, alone and in chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import block_reduce
from skimage.transform import downscale_local_mean

from lima2py import plugins
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import RunContext, Task, local_box
from lima2py.tasks.reshape import Bin, Crop, Flip, Rotate, Transpose
from lima2py.testing.strategies import Chain, boxes, chains
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


class OnTwoSpecs(TaskTests):
    """For what does not look at the numbers."""

    @pytest.fixture(params=["whole detector", "binned part"])
    def spec(self, request: pytest.FixtureRequest) -> FrameSpec:
        return SPECS[request.param]


class TestBin(OnSeveralSpecs):
    @pytest.fixture(params=[(2, 2), (4, 3), (16, 1), (1, 1)], ids=str)
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Bin(by=request.param)


class TestBinOtherwise(OnSeveralSpecs):
    @pytest.fixture(
        params=[
            {"by": [2, 2], "how": "mean"},
            {"by": [4, 3], "how": "max"},
            {"by": [1, 4], "overflow": "saturate"},
        ],
        ids=str,
    )
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Bin.load(request.param, "bin")


class TestBinOf64BitsSaturated(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Bin(by=(2, 2), overflow="saturate")

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, np.int64)


class TestFlip(OnTwoSpecs):
    @pytest.fixture(params=["x", "y"])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Flip(axis=request.param)


class TestRotate(OnTwoSpecs):
    @pytest.fixture(params=[90, 180, 270])
    def task(self, request: pytest.FixtureRequest) -> Task:
        return Rotate(angle=request.param)


class TestTranspose(OnTwoSpecs):
    @pytest.fixture
    def task(self) -> Task:
        return Transpose()


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


@given(chains(detector=(24, 24)), st.data())
def test_a_roi_on_a_product_comes_back_from_the_detector_or_is_refused_with_a_way_out(
    chain: Chain, data: st.DataObject
) -> None:
    spec = FrameSpec.dense(*chain.detector, "f8")
    for task in built(chain):
        spec = task.prepare(spec)
    drawn = data.draw(boxes(spec.box))
    assert spec.to_detector is not None
    assert local_box(spec.to_detector.covered(drawn), spec, "roi") == drawn
    anywhere = data.draw(boxes(Roi(0, 0, 24, 24)))
    image = np.arange(24 * 24, dtype="f8").reshape(1, 1, 24, 24)
    found = found_or_refused(anywhere, spec)
    if isinstance(found, str):
        assert found.startswith(f"roi: {anywhere} ")
        assert "the nearest that does is" in found or "seen here" in found
    else:
        assert spec.to_detector.covered(found) == anywhere
        inside = chain.apply(image)[..., *found.slices]
        assert inside.sum() == image[..., *anywhere.slices].sum()


def found_or_refused(box: Roi, spec: FrameSpec) -> Roi | str:
    """Where a box lies in a product, or why it does not."""
    try:
        return local_box(box, spec, "roi")
    except BadParameter as error:
        return str(error)


@pytest.mark.parametrize(
    "task", [Crop(box=(2, 2, 5, 5)), Flip(axis="x"), Rotate(angle=90), Transpose()]
)
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


@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_sums_that_no_type_can_hold_are_refused_with_ways_out(dtype: str) -> None:
    spec = FrameSpec.dense(4, 4, dtype)
    with pytest.raises(BadParameter, match=r"^by: sums of 4 .* 64 bits; .* overflow: saturate"):
        Bin(by=(2, 2)).prepare(spec)
    assert Bin(by=(2, 2), overflow="saturate").prepare(spec).dtype == dtype


@pytest.mark.parametrize("dtype", ["?", "c8", ">u2", "f2"])
def test_pixels_that_cannot_be_added_are_refused(dtype: str) -> None:
    for how in ("sum", "mean"):
        with pytest.raises(BadParameter, match=r"^(by|from): pixels of .* cannot be (added|comp)"):
            Bin.load({"by": [2, 2], "how": how}, "bin").prepare(FrameSpec.dense(4, 4, dtype))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_what_cannot_overflow_cannot_saturate(how: str) -> None:
    task = Bin.load({"by": [2, 2], "how": how, "overflow": "saturate"}, "bin")
    with pytest.raises(BadParameter, match=f"^overflow: a {how} cannot overflow"):
        task.prepare(FrameSpec.dense(4, 4, "u2"))


def test_maxima_of_flags_are_whether_any_is_set() -> None:
    flags = np.zeros((1, 1, 4, 6), bool)
    flags[..., 3, 4] = True
    spec = FrameSpec.dense(4, 6, "?")
    found = through([Bin(by=(2, 2), how="max")], Block(spec, 0, 1, flags)).pixels
    assert found.dtype == bool
    assert np.argwhere(found).tolist() == [[0, 0, 1, 2]]


VIEWS: list[Callable[[Array], Array]] = [
    lambda array: array,
    lambda array: array[..., ::-1, ::-1],
    lambda array: array.swapaxes(2, 3),
    lambda array: np.rot90(array, axes=(2, 3)),
    lambda array: array[:, :, 2:-2, 3:-3],
    lambda array: array[::2, ::-1],
]


@st.composite
def binned(draw: st.DrawFn, dtypes: tuple[str, ...]) -> tuple[Array, int, int]:
    """Images, lying in memory in some way, with the whole range of their type; and a binning."""
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(dtypes)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), 12, 18)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values: Array
    if dtype.kind == "f":
        values = random.normal(1e3, 1e3, shape).astype(dtype)
        values[random.random(shape) < draw(st.sampled_from([0, 0.02]))] = np.nan
        values[random.random(shape) < draw(st.sampled_from([0, 0.02]))] = np.inf
    else:
        ends = np.iinfo(dtype)
        low, high = draw(st.sampled_from([(ends.min, ends.max), (0, 9), (ends.max - 9, ends.max)]))
        values = random.integers(low, high, shape, dtype, endpoint=True)
    values = draw(st.sampled_from(VIEWS))(values)
    height, width = values.shape[2:]
    x, y = (draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if not length % n]))
            for length in (width, height))  # fmt: skip
    return values, x, y


def made_by(task: Bin, values: Array) -> Array:
    _, bands, height, width = values.shape
    spec = FrameSpec.dense(height, width, values.dtype, bands=bands)
    made = through([task], Block(spec, 0, len(values), values))
    assert made.pixels.dtype == made.spec.dtype
    assert made.pixels.shape[1:] == made.spec.shape
    return made.pixels


@settings(max_examples=150)
@given(binned(("u1", "u2", "i2", "i4", "u8", "i8")))
def test_saturated_sums_are_the_true_sums_clipped(case: tuple[Array, int, int]) -> None:
    values, x, y = case
    found = made_by(Bin(by=(x, y), overflow="saturate"), values)
    true = block_reduce(values.astype(object), (1, 1, y, x), np.sum)
    ends = np.iinfo(values.dtype)
    clipped = [min(max(int(value), int(ends.min)), int(ends.max)) for value in true.flat]
    assert [int(value) for value in found.flat] == clipped


@given(binned(("u2", "i4", "f4")))
def test_sums_are_those_of_scikit_image(case: tuple[Array, int, int]) -> None:
    values, x, y = case
    wide = values.astype("f8" if values.dtype.kind == "f" else "i8")
    with np.errstate(invalid="ignore"):
        true = block_reduce(wide, (1, 1, y, x), np.sum)
    np.testing.assert_allclose(made_by(Bin(by=(x, y)), values), true, rtol=1e-5, atol=1e-2)


@given(binned(("u1", "u2", "i4", "f4", "u8")))
def test_means_are_those_of_scikit_image(case: tuple[Array, int, int]) -> None:
    values, x, y = case
    found = made_by(Bin(by=(x, y), how="mean"), values)
    assert found.dtype == ("f4" if values.dtype.name in ("uint8", "uint16", "float32") else "f8")
    with np.errstate(invalid="ignore"):
        true = downscale_local_mean(values.astype("f8"), (1, 1, y, x))
    roundings = x * y if values.dtype == "u8" else 1  # only uint64 are added up inexactly
    rtol = roundings * float(np.finfo(found.dtype).eps)
    np.testing.assert_allclose(found, true, rtol=rtol, atol=1e-4)


@given(binned(("u1", "i2", "u8", "f4", "f8")))
def test_maxima_are_those_of_numpy(case: tuple[Array, int, int]) -> None:
    values, x, y = case
    true = block_reduce(values, (1, 1, y, x), np.max)
    np.testing.assert_array_equal(made_by(Bin(by=(x, y), how="max"), values), true)


def test_frames_that_are_read_only_need_no_compiler_again(run: RunContext) -> None:
    """After `start` all is compiled: the first frame must not wait for it."""
    from lima2py.kernels import bin as kernels

    spec = FrameSpec.dense(6, 8, "u2", bands=2)
    task = Bin(by=(4, 2), how="max")
    task.prepare(spec)
    task.start(run)
    compiled = len(kernels.maxima.signatures)
    data = np.ones((3, *spec.shape), "u2")
    frozen = data.copy()
    frozen.flags.writeable = False
    for pixels in (data, frozen, data[..., ::-1], frozen[:2]):
        task.process(Block(spec, 0, len(pixels), pixels))
    assert len(kernels.maxima.signatures) == compiled


@pytest.fixture
def run() -> RunContext:
    return RunContext(run="0" * 32, name="test")


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
        (Bin(by=(1, 1)), "from"),
        (Flip(axis="x"), "from"),
        (Rotate(angle=90), "from"),
        (Transpose(), "from"),
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
        (Bin, {"by": [2, 2], "how": "median"}, "how: should be 'sum', 'mean' or 'max'"),
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


@pytest.mark.parametrize("task", [Bin(by=(2, 2)), Flip(axis="x"), Rotate(angle=90), Transpose()])
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
