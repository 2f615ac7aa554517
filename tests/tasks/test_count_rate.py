"""Dead time against Lambert's W of scipy; protection against plain numpy, frame by frame."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import lambertw

from lima2py.acquisition import Parameters
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import RunContext, Task
from lima2py.tasks.count_rate import PROTECTION, CountRateCorrection, Protect
from lima2py.testing.strategies import Chain, chains
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=2)
HARDWARE = {"acquisition": {"expo_time": 1e-3}}
RUN = RunContext("0" * 32, "test", task="guard", parameters=Parameters({}, HARDWARE, {}))


class TestCountRateCorrection(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return CountRateCorrection(dead_time=1e-6, model="paralysable")

    @pytest.fixture
    def run(self) -> RunContext:
        return RUN


class TestProtect(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Protect(limit=50, action="stop", frames=2, expo_time=1.0)


def made(task: Task, data: Array, run: RunContext = RUN) -> Array:
    _, bands, height, width = data.shape
    spec = FrameSpec.dense(height, width, data.dtype, bands=bands)
    promised = task.prepare(spec)
    task.start(run)
    found = task.process(Block(spec, 0, len(data), data)).pixels
    assert found.dtype == promised.dtype
    return found


def true_counts(counts: Array, lost: float, model: str) -> Array:
    """What was there, by the formulas of the documents; `lost` is dead time over exposure."""
    counts = counts.astype(np.float64)
    if model == "paralysable":
        found: Array = -lambertw(-counts * lost).real / lost
        return found
    return np.divide(counts, 1 - counts * lost)


@pytest.mark.parametrize(
    ("model", "dtype", "most"),
    [
        ("non-paralysable", "u2", 65535),
        ("paralysable", "i4", 10**6),
        ("non-paralysable", "f8", 1e6),
        ("paralysable", "f8", 1e6),
    ],
)
def test_counts_are_corrected_up_to_the_highest_rate(model: str, dtype: str, most: float) -> None:
    data = np.linspace(0, most, 4000).astype(dtype).reshape(1, 1, 40, 100)
    highest = 0.6 * most  # counts of a frame
    dead_time = 1e-3 / highest if model == "non-paralysable" else 1e-3 / highest / math.e
    found = made(CountRateCorrection(dead_time=dead_time, model=model), data)
    good = data < highest * (1 - 1e-9)
    truth = true_counts(data[good], dead_time / 1e-3, model)
    # Close to the highest rate the formula itself loses half of the digits.
    calm = data[good] < 0.999 * highest
    eps = 1e-6 if found.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(found[good][calm], truth[calm], rtol=eps)
    np.testing.assert_allclose(found[good], truth, rtol=1e-5)
    assert np.isnan(found[data > highest * (1 + 1e-9)]).all()


def test_what_was_lost_is_found_again() -> None:
    """Photons as a pixel would see them, not our formula solved by somebody else."""
    rate = np.linspace(0, 9e5, 2000).reshape(1, 1, 20, 100)
    tau = 1e-6
    for model, seen in (
        ("non-paralysable", rate / (1 + rate * tau)),
        ("paralysable", rate * np.exp(-rate * tau)),
    ):
        task = CountRateCorrection(dead_time=tau, model=model, expo_time=1.0)
        np.testing.assert_allclose(made(task, seen), rate, rtol=1e-10)


def test_pixels_below_0_and_nan_stay_as_they_are() -> None:
    for model in ("non-paralysable", "paralysable"):
        task = CountRateCorrection(dead_time=1e-6, model=model, max_rate=1e5, value=-5)
        bad = np.array([-2, -1, 0, 99, 100, 2**31 - 1], np.int32).reshape(1, 1, 1, 6)
        found = made(task, bad)[0, 0, 0]
        assert found[:3].tolist() == [-2, -1, 0]
        assert found[3] > 99
        assert found[4:].tolist() == [-5, -5]
        task = CountRateCorrection(dead_time=1e-6, model=model)
        floats = np.array([np.nan, np.inf, -np.inf, -0.5], np.float32).reshape(1, 1, 1, 4)
        np.testing.assert_array_equal(made(task, floats)[0, 0, 0], [np.nan, np.nan, -np.inf, -0.5])


def test_the_exposure_is_that_of_the_run_unless_it_is_given() -> None:
    data = np.full((1, 1, 1, 4), 100, np.uint16)
    by_run = made(CountRateCorrection(dead_time=1e-6), data)
    np.testing.assert_allclose(by_run, 100 / (1 - 0.1), rtol=1e-6)
    given_here = made(CountRateCorrection(dead_time=1e-6, expo_time=1e-2), data)
    np.testing.assert_allclose(given_here, 100 / (1 - 0.01), rtol=1e-6)


def test_a_dead_time_of_seconds_is_refused_before_all_counts_are_lost() -> None:
    with pytest.raises(BadParameter, match=r"^dead_time: with one of 120 s .* 10 ms .* 120 ns"):
        made(CountRateCorrection(dead_time=120, expo_time=1e-2), np.ones((1, 1, 1, 4), np.uint16))


@pytest.mark.parametrize("task", [CountRateCorrection(dead_time=1e-6), Protect(rate=1e6)])
def test_without_an_exposure_time_the_start_is_refused(task: Task) -> None:
    task.prepare(SPEC)
    with pytest.raises(BadParameter, match=r"^(dead_time|rate): the exposure time is not known"):
        task.start(RunContext("0" * 32, "no detector"))


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (
            CountRateCorrection(dead_time=1e-6, max_rate=1.1e6),
            r"max_rate: 1.1e\+06 counts/s.*1e\+06",
        ),
        (CountRateCorrection(dead_time=1e-6, model="paralysable", max_rate=4e5), "max_rate: .*367"),
        (CountRateCorrection(dead_time=1e-6, value=-1, dtype="uint16"), "value: -1 does not fit"),
        (Protect(), "limit: give either"),
        (Protect(limit=1, rate=1), "limit: give either"),
        (Protect(limit=65535), "limit: no pixel of uint16 can be above 65535 counts"),
        (Protect(limit=1, mask="absent.npy"), "mask: absent.npy cannot be read"),
    ],
)
def test_parameters_that_cannot_work_are_refused(task: Task, complaint: str) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        task.prepare(SPEC)


def test_a_rate_that_pixels_cannot_show_is_refused_when_the_exposure_is_known() -> None:
    task = Protect(rate=1e8)
    task.prepare(SPEC)
    with pytest.raises(BadParameter, match=r"^rate: no pixel of uint16 can be above 100000 counts"):
        task.start(RUN)


@settings(max_examples=20)
@given(st.sampled_from(["u2", "i4", "f4"]), st.data())
def test_protection_counts_pixels_above_and_finds_the_brightest(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject
) -> None:
    pixels = data.draw(
        hnp.arrays(dtype, (3, *SPEC.shape), elements=hnp.from_dtype(np.dtype(dtype)))
    )
    limit = data.draw(st.one_of(st.integers(0, 300), st.floats(0, 300)))
    masked = data.draw(hnp.arrays(bool, SPEC.shape))
    path = tmp_path_factory.getbasetemp() / "protect_mask.npy"
    np.save(path, masked)
    table = made(Protect(limit=limit, mask=str(path)), pixels)
    for frame, row in zip(pixels, table[:, 0], strict=True):
        seen = np.where(masked | (frame != frame), -np.inf, frame.astype(np.float64))
        assert row["nb_above"] == (seen > limit).sum()
        if (~masked & (frame == frame)).any():
            assert row["max"] == seen.max()
            assert not masked[row["band"], row["y"], row["x"]]
            assert seen[row["band"], row["y"], row["x"]] == seen.max()
        else:
            assert np.isnan(row["max"])
            assert (row["x"], row["y"], row["band"]) == (-1, -1, -1)


@given(chains(), st.data())
def test_the_brightest_pixel_is_told_in_detector_pixels(chain: Chain, data: st.DataObject) -> None:
    spec = chain.spec("u2")
    y, x = data.draw(st.sampled_from(list(np.ndindex(*chain.image))))
    task = Protect(limit=5)
    task.prepare(spec)
    above, place, most = task.buffers(1)
    above[0], place[0], most[0] = 1, (y, x), 7  # as the compiled function would find them
    frame = Block(spec, 0, 1, np.zeros((1, *spec.shape), np.uint16))
    row = task.conclude(frame, (above, place, most)).pixels[0, 0]
    under = chain.to_detector.covered(Roi(x, y, 1, 1))
    assert (row["x"], row["y"], row["max"], row["nb_above"]) == (under.x, under.y, 7, 1)


def bright(levels: list[int]) -> Array:
    """A frame for each number of pixels that are too bright."""
    data = np.ones((len(levels), *SPEC.shape), np.uint16)
    for frame, nb_pixels in zip(data, levels, strict=True):
        frame.reshape(-1)[100 : 100 + nb_pixels] = 1000 + nb_pixels
    return data


def guarded(task: Task, blocks: list[Block]) -> list[str]:
    """What is said when the end of the acquisition is asked for."""
    said: list[str] = []
    task.prepare(SPEC)
    task.start(replace(RUN, stop=said.append))
    for block in blocks:
        assert task.process(block).data is not None
    return said


def in_blocks(levels: list[int], *sizes: int) -> list[Block]:
    data, first, blocks = bright(levels), 0, []
    for size in sizes:
        blocks.append(Block(SPEC, 40 + first, size, data[first : first + size]))
        first += size
    return blocks


def test_it_stops_once_and_says_where_and_why() -> None:
    said = guarded(Protect(limit=500, action="stop"), in_blocks([0, 0, 2, 3, 4], 2, 3))
    assert said == [
        'task "guard": frame 42 has 2 pixels above 500 counts, the brightest at x 4, y 6 with 1002;'
        " take less beam, or raise the limit"
    ]


def test_a_rate_is_told_in_both_units() -> None:
    (said,) = guarded(Protect(rate=5e5, action="stop"), in_blocks([1], 1))
    assert "frame 40 has 1 pixel above 500 counts (500000 counts/s)" in said


def test_of_several_brightest_pixels_the_first_is_told() -> None:
    pixels = np.zeros((1, 1, 4, 6), np.uint16)
    pixels[0, 0, 1:3, 2:5] = 9
    (row,) = made(Protect(limit=1), pixels)[0]
    assert (row["nb_above"], row["x"], row["y"]) == (6, 2, 1)


def test_it_only_reports_unless_told_to_stop() -> None:
    assert not guarded(Protect(limit=500), in_blocks([9] * 5, 5))


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (3, 3, 2)])
@pytest.mark.parametrize(
    ("levels", "asked"),
    [
        ([2, 2, 0, 2, 2, 0, 2, 2], None),
        ([2, 2, 1, 2, 2, 1, 2, 2], None),
        ([0, 2, 2, 2, 2, 2, 2, 2], 43),
        ([2, 2, 0, 0, 0, 3, 3, 3], 47),
    ],
)
def test_it_waits_for_enough_pixels_in_enough_frames_one_after_the_other(
    levels: list[int], asked: int | None, sizes: tuple[int, ...]
) -> None:
    task = Protect(limit=500, action="stop", pixels=1, frames=3)
    said = guarded(task, in_blocks(levels, *sizes))
    assert len(said) == (asked is not None)
    if asked is not None:
        assert f"frame {asked} has" in said[0]
        assert "the last of 3 such frames" in said[0]


def test_absent_frames_are_passed_over() -> None:
    (block,) = in_blocks([2, 2, 2, 2], 4)
    absent = {1: Absence(Fate.CORRUPT, "detector"), 3: Absence(Fate.CORRUPT, "detector")}
    (said,) = guarded(Protect(limit=500, action="stop", frames=2), [block.refuse(absent)])
    assert "frame 42 has" in said
    assert not guarded(Protect(limit=500, action="stop", frames=3), [block.refuse(absent)])


def test_a_product_without_a_place_counts_its_own_pixels() -> None:
    spec = SPEC.replace(to_detector=None, detector_shape=None)
    task = Protect(limit=500)
    assert task.prepare(spec).dtype == PROTECTION
    task.start(RUN)
    row: Any = task.process(Block(spec, 0, 1, bright([1]))).pixels[0, 0]
    assert (row["x"], row["y"], row["band"]) == (4, 6, 0)


def test_the_mask_may_be_laid_under_a_binned_product(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), bool)
    mask[0, 1] = True
    np.save(tmp_path / "mask.npy", mask)
    spec = FrameSpec.dense(12, 16, "u2", to_detector=Affine.bin(2, 2), detector_shape=(24, 32))
    data = np.zeros((1, *spec.shape), np.uint16)
    data[0, 0, 0, 0], data[0, 0, 3, 5] = 900, 800
    task = Protect(limit=500, mask=str(tmp_path / "mask.npy"))
    task.prepare(spec)
    task.start(RUN)
    row: Any = task.process(Block(spec, 0, 1, data)).pixels[0, 0]
    assert (row["nb_above"], row["max"], row["x"], row["y"]) == (1, 800, 10, 6)
