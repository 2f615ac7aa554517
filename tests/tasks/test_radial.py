"""The background of rings by sigma clipping, what stands out from it, and the peaks it makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fabio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from scipy import ndimage

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.kernels import radial
from lima2py.task import RunContext, Task
from lima2py.tasks.peaks import PEAKS, FindPeaks
from lima2py.tasks.radial import RadialSigmaClip, SparsifyRadial
from lima2py.tasks.reshape import Bin, Crop, Flip, Rotate
from lima2py.testing.tasks import TaskTests
from tests.tasks.diffraction import tables, write_poni

__all__ = ["tables"]  # a fixture

SHAPE = (41, 37)
RUN = RunContext(run="0" * 32, name="test")
UNIT = "q_nm^-1"
PIXELS = np.dtype([("index", "u4"), ("value", "u2")])


class TestRadialSigmaClip(TaskTests):
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "u2")

    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        poni = write_poni(tmp_path, (12, 16), (7.3, 5.1))
        return RadialSigmaClip(poni=poni, bins=8, cutoff=1.5)


class TestRadialSigmaClipOfFloats(TestRadialSigmaClip):
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "f4")


class TestSparsifyRadial(TaskTests):
    @pytest.fixture
    def specs(self, poni: str) -> Sequence[FrameSpec]:
        image = FrameSpec.dense(12, 16, "u2")
        return [image, RadialSigmaClip(poni=poni, bins=8).prepare(image)]

    @pytest.fixture
    def inputs(self, specs: Sequence[FrameSpec], frames: Array) -> Sequence[Array]:
        table = np.zeros((12, 8), specs[1].dtype)
        table[UNIT] = np.linspace(1, 15, 8)
        table["avg"] = np.random.default_rng(1).integers(20, 60, (12, 8))
        table["std"] = 5
        return [frames, table]

    @pytest.fixture
    def poni(self, tmp_path: Path) -> str:
        return write_poni(tmp_path, (12, 16), (7.3, 5.1))

    @pytest.fixture
    def task(self, poni: str) -> Task:
        return SparsifyRadial(poni=poni, cutoff=1)


class TestFindPeaks(TaskTests):
    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "u2").replace(kind="sparse", dtype=PIXELS)

    @pytest.fixture
    def task(self) -> Task:
        return FindPeaks()


def rings(shape: tuple[int, int], dtype: str, seed: int) -> Array:
    """A frame of smooth background with a few bright spots and, if possible, invalid pixels."""
    random = np.random.default_rng(seed)
    y, x = np.indices(shape)
    level = 20 * np.exp(-np.hypot(x - 15, y - 20) / 20) * random.choice([0.1, 1, 10])
    image: Array = random.poisson(level).astype(dtype)
    image[tuple(random.integers(0, shape, (9, 2)).T)] += 100
    if np.dtype(dtype).kind == "f":
        image[random.random(shape) < 0.05] = np.nan
    if np.dtype(dtype).kind == "i":
        image[random.random(shape) < 0.05] = -2
    return image


def ready(task: Task, *specs: FrameSpec) -> Task:
    """A task that frames can be given to."""
    task.prepare(*specs)
    task.start(RUN)
    return task


def clipped(task: Task, image: Array) -> Array:
    """The background of one frame."""
    height, width = image.shape
    spec = FrameSpec.dense(height, width, image.dtype)
    rows: Array = ready(task, spec).process(Block(spec, 0, 1, image[None, None])).pixels[0]
    return rows


@settings(max_examples=25)
@given(
    st.sampled_from(["i4", "f4"]), st.sampled_from(["azimuthal", "poisson"]),
    st.integers(0, 2**32), st.sampled_from([2, 10, 25]), st.sampled_from([1.3, 3.0, 5.0]),
    st.integers(0, 5), st.booleans(),
)  # fmt: skip
def test_the_background_is_that_of_pyfai(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str, error_model: Any, seed: int, bins: int, cutoff: float, max_iter: int,
    corrected: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("one")
    # Far away, all weights are nearly 1: where they vary much, pyFAI's variance is a rough one.
    poni = write_poni(folder, SHAPE, (15.2, 20.4), distance=2, tilt=0)
    image = rings(SHAPE, dtype, seed)
    mask = np.random.default_rng(seed).random(SHAPE) < 0.1
    np.save(folder / "mask.npy", mask)
    polarization, dummy = (0.99 if corrected else None), (-2.0 if dtype == "i4" else None)
    rows = clipped(
        RadialSigmaClip(
            poni=poni, mask=str(folder / "mask.npy"), bins=bins, error_model=error_model,
            cutoff=cutoff, max_iter=max_iter, solid_angle=corrected, polarization=polarization,
            dummy=dummy,
        ),
        image,
    )  # fmt: skip
    expected = AzimuthalIntegrator.sload(poni).sigma_clip(
        image, bins, mask=mask, unit=UNIT, error_model=error_model, thres=cutoff, max_iter=max_iter,
        correctSolidAngle=corrected, polarization_factor=polarization, dummy=dummy,
        method=("no", "csr", "python"),  # the compiled ones have a rough variance
    )  # fmt: skip
    np.testing.assert_allclose(rows[UNIT], expected.radial, rtol=1e-12)
    np.testing.assert_array_equal(rows["count"], expected.count)
    there = expected.count > 0
    np.testing.assert_allclose(rows["avg"][there], expected.intensity[there], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows["std"][there], expected.std[there], rtol=1e-4, atol=1e-3)
    assert np.isnan(rows["avg"][~there]).all()
    assert np.isnan(rows["std"][~there]).all()


@pytest.mark.parametrize("error_model", ["azimuthal", "poisson"])
def test_weights_that_vary_much_count_as_in_the_two_pass_formula(
    tmp_path: Path, error_model: Any
) -> None:
    """The engine of pyFAI that is written in Python computes mean and variance one by one."""
    poni = write_poni(tmp_path, SHAPE, (15.2, 20.4), tilt=0.4)
    image = rings(SHAPE, "i4", 3)
    rows = clipped(
        RadialSigmaClip(poni=poni, bins=6, polarization=0.9, cutoff=3, error_model=error_model),
        image,
    )
    expected = AzimuthalIntegrator.sload(poni).sigma_clip(
        image, 6, unit=UNIT, error_model=error_model, thres=3, max_iter=5, polarization_factor=0.9,
        method=("no", "csr", "python"),
    )  # fmt: skip
    np.testing.assert_array_equal(rows["count"], expected.count)
    np.testing.assert_allclose(rows["avg"], expected.intensity, rtol=1e-5)
    np.testing.assert_allclose(rows["std"], expected.std, rtol=1e-5)


def standing_out(
    image: Array, radius: Array, weights: Array, rows: Array, cutoff: float, noise: float
) -> tuple[Array, Array]:
    """Which pixels stand out, and the background under all, by plain numpy."""
    centres = rows[UNIT]
    with np.errstate(invalid="ignore"):
        at = (radius - centres[0]) / ((centres[-1] - centres[0]) / (len(centres) - 1))
    inside = (at >= -0.5) & (at <= len(centres) - 0.5)
    at = np.where(inside, at, 0).clip(0, len(centres) - 1)
    levels = []
    for name in ("avg", "std"):
        below, above = rows[name][np.floor(at).astype(int)], rows[name][np.ceil(at).astype(int)]
        share = at - np.floor(at)
        near = rows[name][np.floor(at + 0.5).astype(int)]
        mixed = below + share * (above - below)
        levels.append(np.where(np.isnan(mixed), near, mixed))
    with np.errstate(invalid="ignore"):
        excess = image / weights - levels[0]
        high = excess > np.maximum(noise, cutoff * np.hypot(levels[1], noise))
    return inside & high & np.isfinite(image), levels[0] * weights


@settings(max_examples=20)
@given(
    st.sampled_from(["u2", "f4"]), st.integers(0, 2**32), st.sampled_from([2, 10]),
    st.floats(0, 6), st.sampled_from([0.0, 1.0, 4.0]), st.sampled_from([None, (3.0, 12.0)]),
)  # fmt: skip
def test_what_stands_out_is_what_a_formula_says(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str, seed: int, bins: int, cutoff: float, noise: float, radial_range: Any,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("one")
    poni = write_poni(folder, SHAPE, (15.2, 20.4))
    images = np.stack([rings(SHAPE, dtype, seed + n) for n in range(3)])[:, None]
    mask = np.random.default_rng(seed).random(SHAPE) < 0.1
    np.save(folder / "mask.npy", mask)
    geometry: dict[str, Any] = {"poni": poni, "mask": str(folder / "mask.npy"), "polarization": 0.9}
    spec = FrameSpec.dense(*SHAPE, dtype)
    block = Block(spec, 0, 3, images).refuse({1: Absence(Fate.CORRUPT, "detector")})
    clip = RadialSigmaClip(**geometry, bins=bins, radial_range=radial_range)
    background = ready(clip, spec).process(block)
    rows = background.pixels.copy()
    rows["avg"][0, -1] = rows["std"][0, -1] = np.nan  # a bin without pixels
    background = background.carry(background.spec, rows)
    task = SparsifyRadial(**geometry, cutoff=cutoff, noise=noise)
    promised = task.prepare(spec, background.spec)
    task.start(RUN)
    made = task.process(block, background)
    assert promised.dtype.names == ("index", "value", "background")
    assert made.rows.counts[1] == 0
    oracle = AzimuthalIntegrator.sload(poni)
    radius = oracle.array_from_unit(SHAPE, "center", UNIT).astype("f4").astype("f8")
    radius[mask] = np.nan
    weights = oracle.solidAngleArray(SHAPE, True) * oracle.polarization(SHAPE, 0.9)
    for frame in (0, 2):
        high, under = standing_out(
            images[frame, 0].astype("f8"), radius, weights.astype("f4"), rows[frame], cutoff, noise
        )
        found = made.rows.rows(frame)
        np.testing.assert_array_equal(found["index"], np.flatnonzero(high))
        np.testing.assert_array_equal(found["value"], images[frame, 0][high])
        np.testing.assert_allclose(found["background"], under[high], rtol=1e-5)


def test_there_is_room_for_every_pixel(tmp_path: Path) -> None:
    poni = write_poni(tmp_path, (50, 60), (30, 25))
    spec = FrameSpec.dense(50, 60, "u2")
    table = ready(RadialSigmaClip(poni=poni, bins=5), spec)
    dark, bright = (Block(spec, 0, 1, np.full((1, 1, 50, 60), n, "u2")) for n in (0, 100))
    background = table.process(dark)
    task = ready(SparsifyRadial(poni=poni), spec, background.spec)
    (count,) = task.process(bright, background).rows.counts
    assert count == 3000


def test_one_function_is_compiled_wherever_pixels_lie(tmp_path: Path) -> None:
    """A ring is mapped read-only: the first frame from it must not wait for the compiler."""
    poni = write_poni(tmp_path, (50, 60), (30, 25))
    spec = FrameSpec.dense(50, 60, "u2")
    table = ready(RadialSigmaClip(poni=poni, bins=5), spec)
    background = RadialSigmaClip(poni=poni, bins=5).prepare(spec)
    task = ready(SparsifyRadial(poni=poni), spec, background)
    for writeable in (True, False):
        data = np.ones((1, 1, 50, 60), "u2")
        data.flags.writeable = writeable
        image = Block(spec, 0, 1, data)
        task.process(image, table.process(image))
        assert data.flags.writeable is writeable
    for function in (radial.sigma_clip, radial.intense):
        assert not any(image.mutable for image, *_ in function.signatures)


def pixels_of(images: Array, spec: FrameSpec | None = None) -> Block:
    """The pixels above 0 of images `(count, height, width)`."""
    count, height, width = images.shape
    spec = spec or FrameSpec.dense(height, width, images.dtype)
    dtype = np.dtype([("index", "u4"), ("value", images.dtype)])
    flat = images.reshape(count, -1)
    frame, index = np.nonzero(flat)
    columns = {"index": index.astype("u4"), "value": flat[frame, index]}
    rows = Ragged.of(np.bincount(frame, minlength=count), columns)
    return Block(spec.replace(kind="sparse", dtype=dtype), 0, count, rows)


def peaks_in(block: Block, **parameters: Any) -> list[Array]:
    """The peaks of every frame."""
    made = ready(FindPeaks(**parameters), block.spec).process(block)
    assert made.rows.dtype == PEAKS
    return [made.rows.rows(frame) for frame in range(block.count)]


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)), st.floats(0, 1), st.integers(1, 4),
    st.sampled_from(["u2", "f4"]), st.integers(0, 2**32),
)  # fmt: skip
def test_peaks_are_the_groups_that_scipy_labels(
    shape: tuple[int, int], density: float, min_pixels: int, dtype: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(1, 1000, (2, *shape)).astype(dtype)
    images[random.random(images.shape) > density] = 0
    for image, found in zip(
        images, peaks_in(pixels_of(images), min_pixels=min_pixels), strict=True
    ):
        labels, count = ndimage.label(image, np.ones((3, 3)))
        numbers = np.arange(1, count + 1)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        numbers = numbers[sizes >= min_pixels]
        centres = np.array(ndimage.center_of_mass(image, labels, numbers)).reshape(-1, 2)
        np.testing.assert_array_equal(found["nb_pixels"], sizes[sizes >= min_pixels])
        np.testing.assert_allclose(found["intensity"], ndimage.sum(image, labels, numbers))
        np.testing.assert_allclose(found["x"], centres[:, 1] + 0.5)
        np.testing.assert_allclose(found["y"], centres[:, 0] + 0.5)


@pytest.mark.parametrize(
    "tasks",
    [
        [Crop(box=(2, 4, 12, 8))],
        [Flip(axis="x"), Rotate(angle=90)],
        [Bin(by=(2, 2)), Rotate(angle=270), Crop(box=(2, 4, 12, 8))],
    ],
    ids=lambda tasks: "+".join(type(task).__name__ for task in tasks),
)
def test_peaks_are_told_in_detector_pixels(tasks: list[Task]) -> None:
    spec = FrameSpec.dense(16, 20, "u2")
    image = np.zeros((1, 1, 16, 20), "u2")
    image[0, 0, 6:8, 8:10] = 7
    image[0, 0, 11, 12:14] = 5  # above no edge of a bin along y, so at its centre
    block = Block(spec, 0, 1, image)
    for task in tasks:
        spec = task.prepare(spec)
        block = task.process(block)
    (found,) = peaks_in(pixels_of(block.pixels[:, 0], spec))
    second = 11 if isinstance(tasks[0], Bin) else 11.5
    assert sorted(zip(found["x"], found["y"], found["intensity"], strict=True)) == [
        (9, 7, 28), (13, second, 10),
    ]  # fmt: skip


def test_the_background_is_taken_off_the_peaks() -> None:
    spec = FrameSpec.dense(4, 5, "u2")
    dtype = np.dtype([("index", "u4"), ("value", "u2"), ("background", "f4")])
    columns = {
        "index": np.array([6, 7], "u4"),
        "value": np.array([13, 11], "u2"),
        "background": np.array([10, 10], "f4"),
    }
    rows = Ragged.of(np.array([2]), columns)
    (found,) = peaks_in(Block(spec.replace(kind="sparse", dtype=dtype), 0, 1, rows))
    assert found.tolist() == [(0.75 * 1.5 + 0.25 * 2.5, 1.5, 4, 2)]


def test_pixels_without_weight_still_have_a_centre() -> None:
    columns = {"index": np.array([0, 1], "u4"), "value": np.array([0, 0], "u2")}
    block = Block(
        pixels_of(np.zeros((1, 3, 4), "u2")).spec, 0, 1, Ragged.of(np.array([2]), columns)
    )
    assert peaks_in(block)[0].tolist() == [(1, 0.5, 0, 2)]


def test_pixels_out_of_order_are_refused_and_not_grouped_wrongly() -> None:
    columns = {"index": np.array([7, 6], "u4"), "value": np.array([1, 1], "u2")}
    block = Block(
        pixels_of(np.zeros((1, 3, 4), "u2")).spec, 0, 1, Ragged.of(np.array([2]), columns)
    )
    with pytest.raises(ValueError, match="not in ascending order"):
        peaks_in(block)


def test_planted_peaks_are_found_above_their_background(tmp_path: Path) -> None:
    """A whole graph: background, what stands out from it, peaks."""
    random = np.random.default_rng(7)
    shape = (200, 220)
    poni = write_poni(tmp_path, shape, (110, 100), tilt=0)
    y, x = np.indices(shape)
    image = random.poisson(30 * np.exp(-np.hypot(x - 110, y - 100) / 40) + 1, (2, *shape))
    places = [(20, 30), (60, 160), (99, 40), (140, 200), (180, 90)]
    for row, column in places:
        image[0, row : row + 2, column : column + 2] += 60
    graph = f"""
        tasks:
          background: {{do: radial_sigma_clip, from: detector, poni: {poni}, bins: 50}}
          spots: {{do: sparsify_radial, from: [detector, background], poni: {poni}}}
          peaks: {{do: find_peaks, from: spots, min_pixels: 3}}
    """
    peaks = lima2py.apply(graph, image.astype("u2"))["peaks"].rows
    assert peaks.counts.tolist() == [5, 0]
    for peak, (row, column) in zip(peaks.rows(0), places, strict=True):
        assert abs(peak["x"] - (column + 1)) < 0.2
        assert abs(peak["y"] - (row + 1)) < 0.2
        assert 180 < peak["intensity"] < 300


IMAGE = FrameSpec.dense(*SHAPE, "u2")
TABLE = FrameSpec("table", (9,), np.dtype([(UNIT, "f8"), ("avg", "f8"), ("std", "f8")]))


@pytest.mark.parametrize(
    ("image", "background", "told"),
    [
        (IMAGE, IMAGE, "from: the second input should be what radial_sigma_clip gives"),
        (IMAGE, TABLE.replace(dtype=np.dtype([("avg", "f8")])), "from: the second input"),
        (IMAGE, TABLE.replace(shape=(1,)), "from: the second input"),
        (FrameSpec.dense(*SHAPE, "u2", bands=2), TABLE, "from: .*one band, and 2 come in"),
        (Bin(by=(37, 41)).prepare(IMAGE), TABLE, "poni: .*before the bin"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, image: FrameSpec, background: FrameSpec, told: str
) -> None:
    task = SparsifyRadial(poni=write_poni(tmp_path, SHAPE, (15, 20)))
    with pytest.raises(BadParameter, match=f"^{told}"):
        task.prepare(image, background)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (IMAGE, "from: sparse pixels should come in, and it is 41 × 37"),
        (IMAGE.replace(kind="sparse", dtype=PEAKS), "from: sparse pixels"),
        (FrameSpec.dense(*SHAPE, "u2", bands=3).replace(kind="sparse", dtype=PIXELS), "from: .*3"),
    ],
)
def test_what_are_no_pixels_has_no_peaks(spec: FrameSpec, told: str) -> None:
    with pytest.raises(BadParameter, match=f"^{told}"):
        FindPeaks().prepare(spec)


def test_recorded_frames_give_the_background_of_pyfai(shared_data: Path, tmp_path: Path) -> None:
    """PILATUS3 6M, thaumatin: a frame with the crystal in the beam."""
    path = sorted((shared_data / "dials_thaumatin_grid").glob("*.cbf.bz2"))[9]
    image = fabio.open(path).data
    poni = write_poni(
        tmp_path, image.shape, (1261.61, 1306.96), pixel=172e-6, distance=0.351, tilt=0,
        wavelength=0.96859e-10,
    )  # fmt: skip
    np.save(tmp_path / "mask.npy", mask := image < 0)
    rows = clipped(RadialSigmaClip(poni=poni, mask=str(tmp_path / "mask.npy")), image)
    expected = AzimuthalIntegrator.sload(poni).sigma_clip(
        image, 800, mask=mask, unit=UNIT, error_model="azimuthal", thres=5, max_iter=5
    )
    np.testing.assert_array_equal(rows["count"], expected.count)
    np.testing.assert_allclose(rows["avg"], expected.intensity, rtol=1e-5)
    np.testing.assert_allclose(rows["std"], expected.std, rtol=1e-4)
