"""Azimuthal integration: the numbers of pyFAI, whatever the frames are and wherever they lie."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from scipy.sparse import csr_matrix

import lima2py
from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.task import Task
from lima2py.tasks import kept
from lima2py.tasks.azimuthal import (
    AzimuthalIntegrate,
    AzimuthalIntegrate2d,
    AzimuthalIntegrateLut,
)
from lima2py.tasks.diffraction_geometry import laid_table
from lima2py.tasks.reshape import Bin, Crop, Flip, Rotate
from lima2py.testing.tasks import TaskTests
from tests.tasks.diffraction import tables, write_poni

__all__ = ["tables"]  # a fixture

SHAPE = (23, 31)
SPLITS = ("no", "bbox", "full")


class TestAzimuthalIntegrate(TaskTests):
    parameters: Mapping[str, Any] = MappingProxyType({"error_model": "poisson"})

    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        return AzimuthalIntegrate(
            poni=write_poni(tmp_path, (12, 16), (7.3, 5.1)), bins=20, **self.parameters
        )


class TestAzimuthalIntegrateOfFloats(TestAzimuthalIntegrate):
    parameters = MappingProxyType({"dummy": 7, "split": "no"})

    @pytest.fixture
    def spec(self) -> FrameSpec:
        return FrameSpec.dense(12, 16, "f4")


class TestAzimuthalIntegrate2d(TaskTests):
    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        poni = write_poni(tmp_path, (12, 16), (7.3, 5.1))
        return AzimuthalIntegrate2d(poni=poni, bins=(8, 6), radial_range=(1, 15))


class TestAzimuthalIntegrateLut(TaskTests):
    @pytest.fixture
    def task(self, tmp_path: Path) -> Task:
        table = csr_matrix(np.random.default_rng(0).random((5, 12 * 16)) > 0.8)
        path = tmp_path / "table.npz"
        np.savez(path, data=table.data, indices=table.indices, indptr=table.indptr)
        return AzimuthalIntegrateLut(lut=str(path))


def frames_of(shape: tuple[int, int], dtype: str, seed: int, bands: int = 1) -> Array:
    """Two frames with zeros, and with invalid values if their type has such."""
    random = np.random.default_rng(seed)
    data = random.poisson(random.choice([0.1, 3, 1000]), (2, bands, *shape)).astype(dtype)
    if np.dtype(dtype).kind == "i":
        data[random.random(data.shape) < 0.1] = -1
    if np.dtype(dtype).kind == "f":
        data *= 1.37
        data[random.random(data.shape) < 0.1] = np.nan
        data[random.random(data.shape) < 0.02] = np.inf
    return data


def processed(task: Task, data: Array, spec: FrameSpec | None = None) -> Array:
    """What a task makes of frames `(count, bands, height, width)`."""
    spec = spec or FrameSpec.dense(data.shape[2], data.shape[3], data.dtype, bands=data.shape[1])
    promised = task.prepare(spec)
    made = task.process(Block(spec, 0, len(data), data)).pixels
    assert (made.shape[1:], made.dtype) == (promised.shape, promised.dtype)
    return made


@settings(max_examples=15)
@given(
    st.sampled_from(["u2", "i4", "f4"]),
    st.sampled_from(SPLITS),
    st.sampled_from(["none", "poisson"]),
    st.sampled_from(["q_nm^-1", "q_A^-1", "2th_deg", "2th_rad", "r_mm"]),
    st.integers(1, 2),
    st.data(),
)
def test_curves_are_those_of_pyfai(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str, split: Any, error_model: Any, unit: Any, bands: int, data: st.DataObject,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("one")
    shape = data.draw(st.tuples(st.integers(8, 30), st.integers(8, 30)))
    centre = data.draw(st.tuples(st.floats(-5, 35), st.floats(-5, 35)))
    seed = data.draw(st.integers(0, 2**32))
    bins = data.draw(st.sampled_from([1, 7, 40]))
    solid_angle, polarization = data.draw(st.booleans()), data.draw(st.sampled_from([None, 0.95]))
    azimuth_range = data.draw(st.sampled_from([None, (-120.0, 150.0)]))
    poni = write_poni(folder, shape, centre)
    frames = frames_of(shape, dtype, seed, bands)
    mask = np.random.default_rng(seed).random(shape) < 0.1
    np.save(folder / "mask.npy", mask)
    dummy = -1.0 if dtype == "i4" else None
    made = processed(
        AzimuthalIntegrate(
            poni=poni, mask=str(folder / "mask.npy"), bins=bins, unit=unit, split=split,
            error_model=error_model, solid_angle=solid_angle, polarization=polarization,
            azimuth_range=azimuth_range, dummy=dummy,
        ),
        frames,
    )  # fmt: skip
    oracle = AzimuthalIntegrator.sload(poni)
    for frame in range(2):
        for band in range(bands):
            expected = oracle.integrate1d_ng(
                frames[frame, band], bins, unit=unit, mask=mask, method=(split, "csr", "cython"),
                error_model=None if error_model == "none" else error_model,
                correctSolidAngle=solid_angle, polarization_factor=polarization,
                azimuth_range=azimuth_range, dummy=dummy,
            )  # fmt: skip
            rows = made[frame, band * bins : (band + 1) * bins]
            there = expected.count > 0
            close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
            np.testing.assert_allclose(rows[unit], expected.radial, rtol=1e-12)
            np.testing.assert_allclose(rows["count"], expected.count, **close)
            np.testing.assert_allclose(rows["signal"], expected.sum_signal, **close)
            np.testing.assert_allclose(rows["normalization"], expected.sum_normalization, **close)
            np.testing.assert_allclose(rows["intensity"][there], expected.intensity[there], **close)
            assert np.isnan(rows["intensity"][~there]).all()
            if error_model == "poisson":
                np.testing.assert_allclose(rows["sigma"][there], expected.sigma[there], **close)


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_the_spread_of_the_pixels_of_a_ring_is_that_of_pyfai(tmp_path: Path, dtype: str) -> None:
    """pyFAI computes it exactly only without splitting, and in its Python engine."""
    poni = write_poni(tmp_path, SHAPE, (10.2, 9.1))
    frames = frames_of(SHAPE, dtype, 5)
    dummy = -1.0 if dtype == "i4" else None
    made = processed(
        AzimuthalIntegrate(
            poni=poni, bins=12, split="no", error_model="azimuthal", polarization=0.9, dummy=dummy
        ),
        frames,
    )
    oracle = AzimuthalIntegrator.sload(poni)
    for rows, (frame,) in zip(made, frames, strict=True):
        expected = oracle.integrate1d_ng(
            frame, 12, unit="q_nm^-1", method=("no", "csr", "python"), error_model="azimuthal",
            polarization_factor=0.9, dummy=dummy,
        )  # fmt: skip
        there = expected.count > 0
        assert there.sum() > 9
        np.testing.assert_allclose(rows["sigma"][there], expected.sigma[there], rtol=2e-5)


@settings(max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.7]), st.booleans())
def test_the_spread_of_the_pixels_of_a_bin_is_weighted_by_their_shares(
    tmp_path_factory: pytest.TempPathFactory, seed: int, filled: float, runs: bool
) -> None:
    """Σ share² (pixel - mean)², its root divided by Σ share; for tables of any kind."""
    folder = tmp_path_factory.mktemp("one")
    random = np.random.default_rng(seed)
    nb_bins, pixels = 6, SHAPE[0] * SHAPE[1]
    shares = random.random((nb_bins, pixels)) * (random.random((nb_bins, pixels)) < filled)
    if runs:  # every pixel in bins that follow one another
        first, last = np.sort(random.integers(0, nb_bins + 1, (2, pixels)), axis=0)
        bins = np.arange(nb_bins)[:, np.newaxis]
        shares = random.random((nb_bins, pixels)) * ((first <= bins) & (bins < last))
    matrix = csr_matrix(shares.astype("f4"))
    np.savez(folder / "table.npz", data=matrix.data, indices=matrix.indices, indptr=matrix.indptr)
    frames = random.poisson(9, (2, 1, *SHAPE)).astype("u2")
    frames[random.random(frames.shape) < 0.3] = 65535
    task = AzimuthalIntegrateLut(
        lut=str(folder / "table.npz"), error_model="azimuthal", dummy=65535
    )
    for rows, frame in zip(processed(task, frames), frames, strict=True):
        values = frame.ravel().astype("f8")
        valid = values != 65535
        for row, own in zip(rows, matrix.toarray().astype("f8")[:, valid], strict=True):
            mean = own @ values[valid] / own.sum()
            spread = np.sqrt((own**2) @ (values[valid] - mean) ** 2) / own.sum()
            np.testing.assert_allclose(row["intensity"], mean, rtol=1e-12)
            np.testing.assert_allclose(row["sigma"], spread, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("split", ["no", "full"])
@pytest.mark.parametrize("error_model", ["poisson", "azimuthal"])
def test_a_pixel_whose_square_is_infinite_spoils_no_bin_but_its_own(
    tmp_path: Path, error_model: Any, split: Any
) -> None:
    poni = write_poni(tmp_path, SHAPE, (12, 8))
    frames = np.random.default_rng(2).poisson(5, (2, 1, *SHAPE)).astype("f8")
    frames[1] = frames[0]
    frames[1, 0, 12, 20] = 1e200
    task = AzimuthalIntegrate(poni=poni, bins=40, error_model=error_model, split=split)
    usual, strange = processed(task, frames)
    own = strange["intensity"] > 1e190
    assert own.any()
    assert own.sum() < 10
    for name in usual.dtype.names or ():
        np.testing.assert_array_equal(strange[name][~own], usual[name][~own])


@pytest.mark.parametrize("dummy", [0.0, 3.0])
def test_pixels_near_the_dummy_are_left_out_also_if_it_is_zero(
    tmp_path: Path, dummy: float
) -> None:
    poni = write_poni(tmp_path, SHAPE, (10, 10))
    frames = np.random.default_rng(1).integers(0, 9, (1, 1, *SHAPE)).astype("u2")
    task = AzimuthalIntegrate(poni=poni, bins=9, dummy=dummy, delta_dummy=1, error_model="poisson")
    (rows,) = processed(task, frames)
    expected = AzimuthalIntegrator.sload(poni).integrate1d_ng(
        frames[0, 0], 9, unit="q_nm^-1", method=("full", "csr", "cython"), error_model="poisson",
        dummy=dummy, delta_dummy=1,
    )  # fmt: skip
    np.testing.assert_allclose(rows["intensity"], expected.intensity, rtol=1e-5)
    np.testing.assert_allclose(rows["sigma"], expected.sigma, rtol=1e-5)


def test_a_bin_whose_pixels_are_all_invalid_is_nan_and_not_what_rounding_left(
    tmp_path: Path,
) -> None:
    task = AzimuthalIntegrate(
        poni=write_poni(tmp_path, SHAPE, (10, 10)), bins=30, error_model="poisson"
    )
    (rows,) = processed(task, np.full((1, 1, *SHAPE), np.nan, "f4"))
    assert np.isnan(rows["intensity"]).all()
    assert np.isnan(rows["sigma"]).all()
    for name in ("signal", "normalization", "count"):
        assert (rows[name] == 0).all()


@pytest.mark.parametrize("split", SPLITS)
def test_unrolled_images_are_those_of_pyfai(tmp_path: Path, split: Any) -> None:
    poni = write_poni(tmp_path, SHAPE, (14, 9))
    frames = frames_of(SHAPE, "f4", 3)
    made = processed(
        AzimuthalIntegrate2d(
            poni=poni, bins=(12, 9), unit="2th_deg", radial_range=(1, 14), split=split,
            azimuth_range=(-180, 100),
        ),
        frames,
    )  # fmt: skip
    oracle = AzimuthalIntegrator.sload(poni)
    for frame, image in zip(frames, made, strict=True):
        expected = oracle.integrate2d_ng(
            frame[0], 12, 9, unit="2th_deg", radial_range=(1, 14), azimuth_range=(-180, 100),
            method=(split, "csr", "cython"),
        )  # fmt: skip
        there = expected.count > 0
        np.testing.assert_allclose(image[0][there], expected.intensity[there], rtol=1e-5)
        assert np.isnan(image[0][expected.count == 0]).all()
        assert there.sum() > 40


def test_a_share_that_is_no_number_counts_for_nothing() -> None:
    """A sliver of a pixel, for which pyFAI finds no area, must not spoil its whole bin."""
    shares, bins = np.array([1, np.nan, 0.5, 0.5], "f4"), np.array([0, 0, 0, 1])
    start, ones = np.array([0, 1, 2, 4]), np.ones(3, "f4")
    table = laid_table(np.arange(3), start, bins, shares, ones, np.arange(2.0), 2)
    np.testing.assert_array_equal(table["totals"][1], [1.5, 0.5])
    np.testing.assert_array_equal(table["totals"][3], [2, 1])
    assert np.isfinite(table["shares"]).all()


def test_what_an_unrolled_image_cannot_hold_is_infinite(tmp_path: Path) -> None:
    """No weight is above 1, so that the mean of such pixels is beyond float32."""
    most = np.full((1, 1, *SHAPE), np.finfo(np.float32).max)
    poni = write_poni(tmp_path, SHAPE, (12, 8))
    (image,) = processed(AzimuthalIntegrate2d(poni=poni, bins=(3, 2), radial_range=(0, 9)), most)
    assert np.isinf(image).any()
    assert not (np.isfinite(image) & (image < 1e38)).any()


@pytest.mark.parametrize(
    "turn", [Flip(axis="x"), Flip(axis="y"), Rotate(angle=90), Rotate(angle=270)], ids=str
)
def test_turned_frames_give_the_same_curve(tmp_path: Path, turn: Task) -> None:
    poni = write_poni(tmp_path, SHAPE, (12, 8))
    frames = frames_of(SHAPE, "f4", 5)
    spec = FrameSpec.dense(*SHAPE, "f4")
    turned_spec = turn.prepare(spec)
    turned = turn.process(Block(spec, 0, 2, frames)).pixels
    one = processed(AzimuthalIntegrate(poni=poni, bins=15), frames)
    other = processed(AzimuthalIntegrate(poni=poni, bins=15), turned, turned_spec)
    for name in one.dtype.names or ():
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9)


def test_cropped_frames_have_the_bins_of_the_whole_detector(tmp_path: Path) -> None:
    poni = write_poni(tmp_path, SHAPE, (12, 8))
    spec = FrameSpec.dense(*SHAPE, "f4")
    frames = frames_of(SHAPE, "f4", 6)
    crop = Crop(box=(4, 2, 20, 15))
    cropped_spec = crop.prepare(spec)
    cropped = crop.process(Block(spec, 0, 2, frames)).pixels
    rest = np.full_like(frames, np.nan)
    rest[:, :, 2:17, 4:24] = cropped
    one = processed(AzimuthalIntegrate(poni=poni, bins=15), rest)
    other = processed(AzimuthalIntegrate(poni=poni, bins=15), cropped, cropped_spec)
    for name in one.dtype.names or ():
        np.testing.assert_allclose(other[name], one[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".h5::/engine"])
@pytest.mark.parametrize("centres", [False, True])
def test_a_table_from_a_file_is_multiplied_with_the_frames(
    tmp_path: Path, suffix: str, centres: bool
) -> None:
    random = np.random.default_rng(4)
    shares = random.random((6, SHAPE[0] * SHAPE[1])) * (
        random.random((6, SHAPE[0] * SHAPE[1])) > 0.7
    )
    matrix = csr_matrix(shares.astype("f4"))
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    if centres:
        arrays["bin_centers"] = np.linspace(0.5, 3, 6)
    path = tmp_path / f"table{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(str(path).partition("::")[0], "w") as file:
            for name, values in arrays.items():
                file.create_dataset(f"engine/{name}" if "::" in suffix else name, data=values)
    frames = frames_of(SHAPE, "u2", 8)
    made = processed(AzimuthalIntegrateLut(lut=str(path)), frames)
    expected = matrix.astype("f8") @ frames[:, 0].reshape(2, -1).T
    np.testing.assert_allclose(made["signal"], expected.T, rtol=1e-12)
    total = np.asarray(matrix.astype("f8").sum(axis=1)).ravel()
    np.testing.assert_allclose(made["intensity"], expected.T / total, rtol=1e-12)
    np.testing.assert_array_equal(
        made["position"][1], np.linspace(0.5, 3, 6) if centres else range(6)
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"indices": np.array([0, 713])}, "is no table for a detector of 23 × 31 pixels"),
        ({"indptr": np.array([0, 2, 1])}, "is no table"),
        ({"indptr": np.array([0, 1])}, "is no table"),
        ({"data": np.ones(3)}, "is no table"),
        ({"bin_centers": np.ones(3)}, "is no table"),
        ({"indptr": None}, "has no indptr"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    arrays = {"data": np.ones(2), "indices": np.array([0, 712]), "indptr": np.array([0, 1, 2])}
    arrays = {name: value for name, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "table.npz", **arrays)  # type: ignore[arg-type]
    task = AzimuthalIntegrateLut(lut=str(tmp_path / "table.npz"))
    with pytest.raises(BadParameter, match=f"^lut: .*{told}"):
        task.prepare(FrameSpec.dense(*SHAPE, "u2"))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip", b"\x89HDF\r\n\x1a\n"])
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "table.npz").write_bytes(content)
    task = AzimuthalIntegrateLut(lut=str(tmp_path / "table.npz"))
    with pytest.raises(BadParameter, match=r"^lut: .*table.npz cannot be read: ."):
        task.prepare(FrameSpec.dense(*SHAPE, "u2"))


def test_a_curve_comes_out_of_one_pass_with_what_is_done_before(tmp_path: Path) -> None:
    poni = write_poni(tmp_path, SHAPE, (12, 8))
    np.save(tmp_path / "mask.npy", mask := np.random.default_rng(1).random(SHAPE) < 0.3)
    frames = frames_of(SHAPE, "u2", 9)
    graph = f"""
        tasks:
          masked: {{do: mask, from: detector, file: {tmp_path}/mask.npy, value: 0}}
          curve: {{do: azimuthal_integrate, from: masked, poni: {poni}, bins: 11}}
    """
    made = lima2py.apply(graph, frames)["curve"].pixels
    expected = processed(AzimuthalIntegrate(poni=poni, bins=11), np.where(mask, 0, frames))
    np.testing.assert_allclose(made["intensity"], expected["intensity"], rtol=1e-12)


class TestWhatIsKept:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "kept")
        return tmp_path / "kept"

    @pytest.fixture
    def poni(self, tmp_path: Path) -> str:
        return write_poni(tmp_path, SHAPE, (12, 8))

    def test_the_second_prepare_does_not_ask_pyfai(
        self, folder: Path, poni: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames = frames_of(SHAPE, "u2", 1)
        first = processed(AzimuthalIntegrate(poni=poni, bins=11), frames)
        monkeypatch.setattr(AzimuthalIntegrate, "_geometry", None)
        second = processed(AzimuthalIntegrate(poni=poni, bins=11), frames)
        np.testing.assert_array_equal(first, second)
        assert len(list(folder.iterdir())) == 1

    def test_another_geometry_mask_or_binning_is_computed_anew(
        self, folder: Path, poni: str, tmp_path: Path
    ) -> None:
        mask = np.zeros(SHAPE, bool)
        np.save(tmp_path / "mask.npy", mask)
        common: dict[str, Any] = {"poni": poni, "mask": str(tmp_path / "mask.npy"), "bins": 11}
        spec = FrameSpec.dense(*SHAPE, "u2")
        AzimuthalIntegrate(**common).prepare(spec)
        changes: list[dict[str, Any]] = [
            {"bins": 12},
            {"split": "no"},
            {"unit": "r_mm"},
            {"polarization": 0.5},
            {"solid_angle": False},
            {"radial_range": (1, 9)},
        ]
        for number, change in enumerate(changes, 2):
            AzimuthalIntegrate(**(common | change)).prepare(spec)
            assert len(list(folder.iterdir())) == number
        mask[3, 3] = True
        np.save(tmp_path / "mask.npy", mask)
        AzimuthalIntegrate(**common).prepare(spec)
        assert len(list(folder.iterdir())) == 8
        Path(poni).write_text(Path(poni).read_text().replace("0.05", "0.06"))
        AzimuthalIntegrate(**common).prepare(spec)
        AzimuthalIntegrate(**common).prepare(Flip(axis="x").prepare(spec))
        assert len(list(folder.iterdir())) == 10

    def test_it_may_be_deleted_at_any_time(self, folder: Path, poni: str) -> None:
        frames = frames_of(SHAPE, "u2", 1)
        spec = FrameSpec.dense(*SHAPE, "u2")
        expected = processed(AzimuthalIntegrate(poni=poni, bins=11), frames)
        task = AzimuthalIntegrate(poni=poni, bins=11)
        task.prepare(spec)
        shutil.rmtree(folder)
        made = task.process(Block(spec, 0, 2, frames)).pixels
        np.testing.assert_array_equal(made, expected)

    def test_without_a_folder_to_keep_it_in_it_works_and_says_so(
        self, folder: Path, poni: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder.write_text("no folder")
        with caplog.at_level(logging.WARNING):
            processed(AzimuthalIntegrate(poni=poni, bins=11), frames_of(SHAPE, "u2", 1))
        assert "set LIMA2PY_CACHE" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"poni": "nowhere.poni"}, "poni: nowhere.poni cannot be read: No such file"),
        (
            {"radial_range": (900, 901)},
            r"any bin: they lie from .* q_nm\^-1; check radial_range \(given: \[900.0, 901.0\]\)",
        ),
        ({"radial_range": (3, 3)}, "radial_range: should be .from, to."),
        ({"azimuth_range": (100, 200)}, "azimuth_range: should be .from, to. in degrees"),
        ({"polarization": 2}, "polarization: should be less than or equal to 1"),
        ({"unit": "q"}, "unit: should be 'q_nm"),
        ({"mask": "nowhere.npy"}, "mask: nowhere.npy cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    given = {"poni": write_poni(tmp_path, SHAPE, (12, 8)), **change}
    with pytest.raises(BadParameter, match=told):
        AzimuthalIntegrate.load(given, "task").prepare(FrameSpec.dense(*SHAPE, "u2"))


def test_a_file_that_is_no_poni_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.poni").write_text("Distance: far\n")
    task = AzimuthalIntegrate(poni=str(tmp_path / "x.poni"))
    with pytest.raises(BadParameter, match=r"^poni: .*x.poni is no PONI file that pyFAI"):
        task.prepare(FrameSpec.dense(*SHAPE, "u2"))


def test_a_file_that_says_nothing_of_a_detector_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.poni").write_text("a: 1\n")
    task = AzimuthalIntegrate(poni=str(tmp_path / "x.poni"))
    with pytest.raises(BadParameter, match=r"^poni: .*x.poni says neither how far nor how large"):
        task.prepare(FrameSpec.dense(*SHAPE, "u2"))


def test_a_geometry_for_another_detector_is_refused_with_both_shapes(tmp_path: Path) -> None:
    task = AzimuthalIntegrate(poni=write_poni(tmp_path, SHAPE, (12, 8)))
    with pytest.raises(BadParameter, match=r"^poni: .* of 23 × 31 pixels .* has 24 × 31"):
        task.prepare(FrameSpec.dense(24, 31, "u2"))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (Bin(by=(2, 2)).prepare(FrameSpec.dense(24, 32, "u2")), "poni: .*before the bin"),
        (FrameSpec("table", (3,), np.dtype("f8")), "from: .*a table product"),
        (FrameSpec.dense(*SHAPE, "u2").replace(to_detector=None), "poni: .*place on the detector"),
        (FrameSpec.dense(*SHAPE, "c8"), "from: pixels of complex64"),
        (Crop(box=(0, 0, 2, 2)).prepare(FrameSpec.dense(*SHAPE, "u2")), "from: no pixel seen here"),
    ],
)
def test_frames_that_cannot_be_integrated_are_refused(
    tmp_path: Path, spec: FrameSpec, told: str
) -> None:
    poni = write_poni(tmp_path, SHAPE, (20, 15))
    with pytest.raises(BadParameter, match=f"^{told}"):
        AzimuthalIntegrate(poni=poni, radial_range=(0.1, 2)).prepare(spec)


def test_without_pyfai_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    task = AzimuthalIntegrate(poni=write_poni(tmp_path, SHAPE, (12, 8)))
    with pytest.raises(BadParameter, match=r"pip install \"lima2py\[azimuthal\]\""):
        task.prepare(FrameSpec.dense(*SHAPE, "u2"))


def test_recorded_frames_give_the_curve_of_pyfai(shared_data: Path, tmp_path: Path) -> None:
    """PILATUS3 6M at 0.351 m, thaumatin; within 1e-5 of pyFAI's CSR engine."""
    paths = sorted((shared_data / "dials_thaumatin_grid").glob("*.cbf.bz2"))[7:9]
    frames = np.stack([fabio.open(path).data for path in paths])[:, None]
    shape = frames.shape[2:]
    poni = write_poni(
        tmp_path, shape, (1261.61, 1306.96), pixel=172e-6, distance=0.351, tilt=0,
        wavelength=0.96859e-10,
    )  # fmt: skip
    mask = frames[0, 0] < 0
    np.save(tmp_path / "mask.npy", mask)
    task = AzimuthalIntegrate(poni=poni, mask=str(tmp_path / "mask.npy"), error_model="poisson")
    made = processed(task, frames)
    oracle = AzimuthalIntegrator.sload(poni)
    for frame, rows in zip(frames, made, strict=True):
        expected = oracle.integrate1d_ng(
            frame[0], 1000, unit="q_nm^-1", mask=mask, method=("full", "csr", "cython"),
            error_model="poisson",
        )  # fmt: skip
        np.testing.assert_allclose(rows["intensity"], expected.intensity, rtol=1e-5)
        np.testing.assert_allclose(rows["sigma"], expected.sigma, rtol=1e-5)
