"""Corrections of single pixels against plain numpy: to the last bit, over all types of pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine
from lima2py.onepass import Member, OnePass, Pixelwise
from lima2py.storage.layout import fill_value
from lima2py.task import RunContext, Task
from lima2py.tasks.correct import Cosmic, Dark, Flat, Linear, Mask, Threshold
from lima2py.tasks.pixels import as_pixel, highest_up_to, lowest_from
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=2)
RUN = RunContext("0" * 32, "test")
TYPES = ("u2", "i4", "f4")


def made(task: Task, data: Array, spec: FrameSpec | None = None) -> Array:
    """What a task makes of frames `(frames, bands, height, width)`."""
    _, bands, height, width = data.shape
    spec = spec or FrameSpec.dense(height, width, data.dtype, bands=bands)
    promised = task.prepare(spec)
    task.start(RUN)
    found = task.process(Block(spec, 0, len(data), data)).pixels
    assert (found.dtype, found.shape[1:]) == (promised.dtype, promised.shape)
    return found


def frames_of(dtype: str) -> st.SearchStrategy[Array]:
    """Three frames of anything these pixels can be; NaN and infinity too."""
    return hnp.arrays(dtype, (3, *SPEC.shape), elements=hnp.from_dtype(np.dtype(dtype)))


def frames(dtype: str, seed: int = 0) -> Array:
    """Five frames; floats with NaN, infinity and negative numbers among them."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        data = rng.normal(10, 30, (5, *SPEC.shape)).astype(dtype)
        data[rng.random(data.shape) < 0.05] = np.nan
        data[rng.random(data.shape) < 0.02] = np.inf
        return data
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (5, *SPEC.shape), dtype, endpoint=True)


def real(dtype: str, result: str | None = None) -> np.dtype[Any]:
    """What numbers are computed in, by the rule of the documents."""
    types = [np.dtype(name) for name in (dtype, result) if name]
    narrow = all(item.itemsize <= 2 or item == np.float32 for item in types)
    return np.dtype(np.float32 if narrow else np.float64)


def rounded(values: Array, dtype: str | None) -> Array:
    """Real numbers as a type of pixels, by the rule of the documents."""
    if dtype is None or np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype or values.dtype)
    info = np.iinfo(dtype)
    clipped = np.clip(np.rint(values.astype(np.float64)), info.min, info.max)
    return np.where(np.isnan(clipped), info.max, clipped).astype(dtype)


def exactly(found: Array, expected: Array) -> None:
    """Fail unless both are the same to the last bit; any NaN is like another."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.float64]]:
    """A dark, a flat with some unusable pixels, factors and a mask, each for both bands."""
    rng = np.random.default_rng(3)
    flat = rng.normal(1000, 300, SPEC.shape)
    flat[:, 0, :4] = [0, -1, np.nan, np.inf]
    return {
        "dark": rng.normal(20, 5, SPEC.shape),
        "flat": flat,
        "slope": rng.normal(1, 3, SPEC.shape),
        "mask": np.where(rng.random(SPEC.shape) < 0.2, rng.choice([1, 2.0**31], SPEC.shape), 0),
    }


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, NDArray[np.float64]]
) -> Path:
    """These as files."""
    folder = tmp_path_factory.mktemp("corrections")
    for name, image in images.items():
        np.save(folder / f"{name}.npy", image)
    return folder


class TestMask(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Mask(file=str(folder / "mask.npy"))


class TestMaskOfABinnedAndTurnedPart(TaskTests):
    @pytest.fixture
    def task(self, folder: Path, images: dict[str, NDArray[np.float64]], tmp_path: Path) -> Task:
        np.save(tmp_path / "one.npy", images["mask"][0])
        return Mask(file=str(tmp_path / "one.npy"), value=-1.0)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        to_detector = Affine.translation(4, 2) @ Affine.rotate(90, (8, 12)) @ Affine.bin(2, 1)
        return FrameSpec.dense(12, 4, "f4", to_detector=to_detector, detector_shape=SPEC.image)


class TestDark(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Dark(image=str(folder / "dark.npy"), scale=0.5)


class TestDarkAsIntegers(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Dark(image=20.5, dtype="uint16")

    spot = (30, 100)


class TestFlat(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Flat(image=str(folder / "flat.npy"))


class TestLinear(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Linear(slope=str(folder / "slope.npy"), offset=-3)


class TestThreshold(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Threshold(low=20, high=80.5, value=7)

    spot = (1, 50)


class TestBinaryThreshold(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Threshold(low=20, binary=True)


class TestCosmic(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Cosmic(max_count=50, value="fill")


@pytest.mark.parametrize("dtype", [*TYPES, "u1", "u8", "f8"])
@pytest.mark.parametrize("value", [0, 7, "fill"])
def test_masked_pixels_get_the_value_and_no_others(
    folder: Path, images: dict[str, NDArray[np.float64]], dtype: str, value: Any
) -> None:
    data = frames(dtype)
    filler = fill_value(np.dtype(dtype)) if value == "fill" else np.dtype(dtype).type(value)
    found = made(Mask(file=str(folder / "mask.npy"), value=value), data)
    exactly(found, np.where(images["mask"] != 0, filler, data))


def test_without_a_mask_pixel_nothing_changes(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros(SPEC.image, bool))
    data = frames("u2")
    exactly(made(Mask(file=str(tmp_path / "none.npy"), value=7), data), data)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("u1", 255), ("u2", 65535.0), ("i4", -1), ("u4", 2**32 - 1), ("u8", 2**64 - 1),
        ("f4", -1.5), ("f8", 1e300), ("f4", 2**53 + 1),
    ],
)  # fmt: skip
def test_a_value_becomes_a_pixel(dtype: str, value: float) -> None:
    pixel = as_pixel(value, np.dtype(dtype), "value")
    assert (pixel.dtype, pixel) == (np.dtype(dtype), np.dtype(dtype).type(value))


@pytest.mark.parametrize("dtype", [*TYPES, "i2", "u8", "f8"])
def test_fill_is_what_files_show_for_no_value(dtype: str) -> None:
    pixel = as_pixel("fill", np.dtype(dtype), "value")
    np.testing.assert_array_equal(pixel, fill_value(np.dtype(dtype)))


@pytest.mark.parametrize(
    ("dtype", "value", "complaint"),
    [
        ("u2", -1, "value: -1 does not fit pixels of uint16, .* from 0 to 65535"),
        ("u1", 256, "value: 256 does not fit pixels of uint8"),
        ("u8", 2**64, "value: .* does not fit pixels of uint64"),
        ("i4", 0.5, "value: 0.5 does not fit pixels of int32, which hold whole numbers"),
        ("f4", 1e39, r"value: 1e\+39 does not fit pixels of float32"),
        ("?", 2, "value: 2 does not fit pixels of bool, .* from 0 to 1"),
        ("?", "fill", "value: pixels of bool have no value left for fill"),
        ("c8", 0, "from: pixels of complex64 cannot be computed with"),
        (">u2", 1, "from: pixels of >u2 cannot be computed with"),
        ("f2", 1, "from: pixels of float16 cannot be computed with"),
    ],
)
def test_a_value_that_pixels_cannot_hold_is_refused(
    folder: Path, dtype: str, value: Any, complaint: str
) -> None:
    task = Mask(file=str(folder / "mask.npy"), value=value)
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        task.prepare(SPEC.replace(dtype=np.dtype(dtype)))


def test_pixels_that_are_true_or_false_are_masked_too(
    folder: Path, images: dict[str, NDArray[np.float64]]
) -> None:
    data = np.ones((2, *SPEC.shape), bool)
    exactly(made(Mask(file=str(folder / "mask.npy")), data), np.where(images["mask"], False, data))


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), None, [1], 10**400])
def test_a_value_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(BadParameter, match=r"^graph, value: should be a number, or fill; given: "):
        Mask.load({"file": "mask.npy", "value": value}, "graph")


@pytest.mark.parametrize("image", [True, "", " ", None, [1], float("nan")])
def test_what_is_neither_an_image_nor_a_number_is_refused_in_one_line(image: object) -> None:
    with pytest.raises(
        BadParameter,
        match=r"^graph, image: should be the path of an image, or a number; given: .*$",
    ):
        Dark.load({"image": image}, "graph")


RESULTS = [
    "u2->None",
    "u2->uint16",
    "u2->int32",
    "i4->None",
    "i4->float32",
    "f4->uint8",
    "f8->int16",
]


@pytest.fixture(params=RESULTS)
def types(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The type of the pixels that come in, and the `dtype` that is asked for."""
    dtype, _, result = request.param.partition("->")
    return dtype, None if result == "None" else result


def test_the_dark_is_subtracted_in_the_promised_precision(
    folder: Path, images: dict[str, NDArray[np.float64]], types: tuple[str, Any]
) -> None:
    dtype, result = types
    data, number = frames(dtype), real(*types).type
    found = made(Dark(image=str(folder / "dark.npy"), scale=2.5, dtype=result), data)
    expected = data.astype(number) - (images["dark"] * 2.5).astype(number)
    exactly(found, rounded(expected, result))


def test_the_flat_divides_in_the_promised_precision(
    folder: Path, images: dict[str, NDArray[np.float64]], types: tuple[str, Any]
) -> None:
    dtype, result = types
    data, number = frames(dtype), real(*types).type
    flat = images["flat"]
    good = (flat > 0) & np.isfinite(flat)
    mean = [band[ok].mean() for band, ok in zip(flat, good, strict=True)]
    with np.errstate(all="ignore"):
        factor = np.reshape(mean, (2, 1, 1)) / flat
        expected = data.astype(number) * factor.astype(number)
    expected = np.where(good, expected, number(5))
    found = made(Flat(image=str(folder / "flat.npy"), value=5, dtype=result), data)
    np.testing.assert_allclose(
        found[..., ~good], rounded(expected, result)[..., ~good], rtol=0, atol=0
    )
    step = 1 if found.dtype.kind in "iu" else 0  # the last bit of a mean may turn a half
    rtol = 4 * float(np.finfo(number).eps)
    np.testing.assert_allclose(found, rounded(expected, result), rtol=rtol, atol=step)


def test_an_unusable_flat_is_no_value_unless_told_otherwise(
    folder: Path, images: dict[str, NDArray[np.float64]]
) -> None:
    bad = ~((images["flat"] > 0) & np.isfinite(images["flat"]))
    data = np.ones((1, *SPEC.shape), np.uint16)
    path = str(folder / "flat.npy")
    np.testing.assert_array_equal(np.isnan(made(Flat(image=path), data)[0]), bad)
    whole = made(Flat(image=path, normalise=False, dtype="uint16"), 100 * data)
    np.testing.assert_array_equal(whole[0] == 65535, bad)


def test_a_flat_that_is_not_normalised_divides_by_what_it_says(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.full(SPEC.image, 4.0))
    data = frames("u2")
    task = Flat(image=str(tmp_path / "flat.npy"), normalise=False)
    exactly(made(task, data), data.astype("f4") / 4)


@pytest.mark.parametrize("task", [Mask, Dark, Flat, Linear], ids=["mask", "dark", "flat", "linear"])
def test_a_file_that_is_changed_during_a_run_changes_nothing(
    tmp_path: Path, task: type[Task]
) -> None:
    """What is kept of a file is a copy."""
    path = tmp_path / "image.npy"
    np.save(path, np.ones(SPEC.image, np.float32))
    field = {Mask: "file", Linear: "slope"}.get(task, "image")
    ready = task.load({field: str(path)}, "task")
    data = frames("u2")
    before = made(ready, data)
    with path.open("r+b") as file:
        file.truncate(100)
    exactly(ready.process(Block(SPEC, 0, len(data), data)).pixels, before)


def test_a_crop_before_the_flat_changes_no_pixel(
    folder: Path, images: dict[str, NDArray[np.float64]]
) -> None:
    """The mean is that of the whole detector, whatever of it is seen."""
    data = frames("u2")
    part = SPEC.replace(shape=(2, 5, 6), to_detector=Affine.translation(3, 4))
    cut = made(Flat(image=str(folder / "flat.npy")), data[:, :, 4:9, 3:9], part)
    exactly(cut, made(Flat(image=str(folder / "flat.npy")), data)[:, :, 4:9, 3:9])


def test_a_flat_without_a_usable_pixel_in_some_band_is_refused(
    tmp_path: Path, images: dict[str, NDArray[np.float64]]
) -> None:
    flat = images["flat"].copy()
    flat[1] = 0
    np.save(tmp_path / "flat.npy", flat)
    with pytest.raises(BadParameter, match=r"^image: .*flat.npy has no pixel above 0, or a band"):
        Flat(image=str(tmp_path / "flat.npy")).prepare(SPEC)


def test_linear_multiplies_and_adds_without_a_fused_step(
    folder: Path, images: dict[str, NDArray[np.float64]], types: tuple[str, Any]
) -> None:
    dtype, result = types
    data, number = frames(dtype), real(*types).type
    task = Linear(slope=str(folder / "slope.npy"), offset=0.1, dtype=result)
    with np.errstate(invalid="ignore"):
        expected = data.astype(number) * images["slope"].astype(number) + number(0.1)
    exactly(made(task, data), rounded(expected, result))


@settings(max_examples=12)
@given(st.sampled_from(TYPES), st.data())
def test_pixels_in_the_range_stay(dtype: str, data: st.DataObject) -> None:
    pixels = data.draw(frames_of(dtype))
    numbers = st.one_of(st.integers(-300, 70000), st.floats(-300, 300))
    low, high = sorted((data.draw(numbers), data.draw(numbers)))
    inside = np.reshape(
        [low <= value <= high for value in pixels.ravel().tolist()], pixels.shape
    )  # Python compares exactly
    info = np.iinfo(dtype) if dtype != "f4" else None
    if info and max(math.ceil(low), info.min) > min(math.floor(high), info.max):
        with pytest.raises(BadParameter, match="no pixel of"):
            Threshold(low=low, high=high).prepare(SPEC.replace(dtype=np.dtype(dtype)))
        return
    found = made(Threshold(low=low, high=high, value=3), pixels)
    binary = made(Threshold(low=low, high=high, binary=True), pixels)
    exactly(found, np.where(inside, pixels, np.dtype(dtype).type(3)))
    exactly(binary, inside.astype(np.uint8))


@pytest.mark.parametrize(
    ("limits", "kept"),
    [({"low": 3.5}, [4, 5, 65535]), ({"high": 3.5}, [0, 3]), ({"low": 3, "high": 4}, [3, 4]),
     ({"high": 1e9}, [0, 3, 4, 5, 65535])],
)  # fmt: skip
def test_either_limit_may_be_left_out(limits: dict[str, float], kept: list[int]) -> None:
    data = np.array([0, 3, 4, 5, 65535], np.uint16).reshape(1, 1, 1, 5)
    found = made(Threshold(**limits, binary=True), data)
    assert data[found != 0].tolist() == kept


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, "low: without low and high every pixel is in the range"),
        ({"low": 5, "high": 4}, "low: no pixel of uint16 lies from 5 to 4"),
        ({"low": 3.2, "high": 3.8}, "low: no pixel of uint16 lies from 3.2 to 3.8"),
        ({"low": 65536}, "low: no pixel of uint16 lies from 65536"),
        ({"high": -1}, "high: no pixel of uint16 lies to -1"),
        ({"low": 1, "value": -1}, "value: -1 does not fit"),
        ({"low": 1, "value": 2, "binary": True}, "value: binary gives 1 and 0"),
    ],
)
def test_a_range_without_sense_is_refused(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        Threshold(**parameters).prepare(SPEC)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize(
    "limit", [0, 1, 0.1, 16777217, 2**53 + 1, 2**63 - 1, 2**64 - 1, 3e38, 3.4028235e38]
)
def test_limits_become_the_nearest_pixels_inside(dtype: str, limit: float) -> None:
    """Of all pixels of a type, exactly those not above the limit are not above the pixel."""
    high, low = highest_up_to(limit, np.dtype(dtype)), lowest_from(limit, np.dtype(dtype))
    assert high.dtype == low.dtype == np.dtype(dtype)
    assert high.item() <= limit
    if np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            assert np.nextafter(high, high.dtype.type(math.inf)).item() > limit
        assert low.item() >= limit > np.nextafter(low, low.dtype.type(-math.inf)).item()
    else:
        info = np.iinfo(dtype)
        assert high.item() == min(math.floor(limit), info.max)
        assert low.item() == min(math.ceil(limit), info.max)


@settings(max_examples=10)
@given(st.sampled_from(TYPES), st.data())
def test_cosmic_rays_become_the_value(dtype: str, data: st.DataObject) -> None:
    pixels = data.draw(frames_of(dtype))
    limit = data.draw(st.one_of(st.integers(0, 300), st.floats(0, 300)))
    above = np.reshape([value > limit for value in pixels.ravel().tolist()], pixels.shape)
    exactly(made(Cosmic(max_count=limit), pixels), np.where(above, np.dtype(dtype).type(0), pixels))


def test_a_pixel_at_max_count_stays() -> None:
    pixels = np.full((1, *SPEC.shape), 5, "u2")
    exactly(made(Cosmic(max_count=5), pixels), pixels)
    exactly(made(Cosmic(max_count=4), pixels), 0 * pixels)


def test_max_count_below_0_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"^graph, max_count: should be greater than or equal"):
        Cosmic.load({"max_count": -1}, "graph")


@pytest.mark.parametrize(
    "task",
    [
        lambda path: Dark(image=path), lambda path: Flat(image=path),
        lambda path: Linear(slope=path), lambda path: Linear(offset=path),
    ],
)  # fmt: skip
def test_images_are_not_laid_under_binned_pixels(folder: Path, task: Any) -> None:
    binned = FrameSpec.dense(6, 8, "u2", to_detector=Affine.bin(2, 2), detector_shape=(12, 16))
    binned = binned.replace(shape=(2, 6, 8))
    with pytest.raises(BadParameter, match=r"^\w+: .* put this task before the bin"):
        task(str(folder / "slope.npy")).prepare(binned)
    made(Dark(image=3), np.ones((1, 2, 6, 8), "u2"), binned)


def test_the_image_follows_a_turned_product(
    folder: Path, images: dict[str, NDArray[np.float64]]
) -> None:
    data = frames("u2")
    place = Affine.rotate(90, SPEC.image)
    turned = SPEC.replace(shape=(2, 16, 12), to_detector=place)
    found = made(Dark(image=str(folder / "dark.npy")), np.rot90(data, -1, axes=(2, 3)), turned)
    straight = made(Dark(image=str(folder / "dark.npy")), data)
    exactly(found, np.rot90(straight, -1, axes=(2, 3)))


def test_one_image_serves_all_bands(tmp_path: Path, images: dict[str, NDArray[np.float64]]) -> None:
    np.save(tmp_path / "dark.npy", images["dark"][0])
    data = frames("u2")
    found = made(Dark(image=str(tmp_path / "dark.npy")), data)
    exactly(found, data.astype("f4") - images["dark"][0].astype("f4"))


CLASSIC = st.permutations(["dark", "flat", "mask", "threshold", "linear", "cosmic"])


@settings(max_examples=3)
@given(CLASSIC, st.sampled_from(["u2", "f4"]), st.sets(st.integers(0, 5)))
def test_a_chain_in_one_pass_is_the_chain_of_its_tasks_to_the_last_bit(
    folder: Path, order: list[str], dtype: str, wanted: set[int]
) -> None:
    def fresh() -> dict[str, Pixelwise]:
        return {
            "dark": Dark(image=str(folder / "dark.npy")),
            "flat": Flat(image=str(folder / "flat.npy")),
            "mask": Mask(file=str(folder / "mask.npy"), value="fill"),
            "threshold": Threshold(low=-5, high=300, value=1),
            "linear": Linear(slope=1.7, offset=0.3),
            "cosmic": Cosmic(max_count=200),
        }

    data = frames(dtype)
    data = data // 200 if dtype == "u2" else data
    spec = given_spec = SPEC.replace(dtype=np.dtype(dtype))
    block = Block(spec, 0, len(data), data)
    alone, fused = fresh(), fresh()
    expected, members = [], []
    for number, name in enumerate(order):
        alone[name].prepare(spec)
        spec = fused[name].prepare(spec)
        block = alone[name].process(block)
        expected.append(block.pixels)
        members.append(Member(fused[name], number - 1, number in wanted or number == 5))
    made_at_once = OnePass(given_spec, members)(Block(given_spec, 0, len(data), data))
    for number, found in enumerate(made_at_once):
        if members[number].wanted:
            assert isinstance(found, Block)
            np.testing.assert_array_equal(
                found.pixels.view(np.uint8), expected[number].view(np.uint8)
            )
        else:
            assert found is None
