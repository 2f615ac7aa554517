"""The mask: from any kind of file, onto whatever is left of the detector."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.task import Task
from lima2py.tasks.correct import Mask
from lima2py.testing.strategies import Chain, chains
from lima2py.testing.tasks import TaskTests

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=2)


@pytest.fixture(scope="module")
def image() -> Array:
    """A mask as detectors have them: bit fields, mostly 0."""
    rng = np.random.default_rng(5)
    codes = rng.choice(np.array([1, 2, 2**31], np.uint32), SPEC.image)
    return np.where(rng.random(SPEC.image) < 0.2, codes, np.uint32(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Array) -> Path:
    """The same mask in every kind of file."""
    folder = tmp_path_factory.mktemp("masks")
    np.save(folder / "mask.npy", image)
    with h5py.File(folder / "one.h5", "w") as file:
        file["entry/mask"] = image
        file["entry/note"] = "made by hand"
    with h5py.File(folder / "many.nxs", "w") as file:
        file["entry/flat"] = np.ones(SPEC.image)
        file.create_dataset("entry/pixel_mask", data=image, **hdf5plugin.Bitshuffle())
    flags = (image != 0).astype(np.int32)
    fabio.edfimage.EdfImage(data=flags).write(str(folder / "mask.edf"))
    fabio.tifimage.TifImage(data=flags).write(str(folder / "mask.tif"))
    fabio.cbfimage.CbfImage(data=flags).write(str(folder / "mask.cbf"))
    return folder


FILES = [
    "mask.npy", "one.h5", "one.h5::/entry/mask", "one.h5::entry/mask",
    "many.nxs::/entry/pixel_mask", "mask.edf", "mask.tif", "mask.cbf",
]  # fmt: skip


class TestMask(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Mask(file=str(folder / "mask.npy"))


class TestMaskOfABinnedAndTurnedPart(TaskTests):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return Mask(file=str(folder / "one.h5"), value=-1.0)

    @pytest.fixture
    def spec(self) -> FrameSpec:
        to_detector = Affine.translation(4, 2) @ Affine.rotate(90, (8, 12)) @ Affine.bin(2, 1)
        return FrameSpec.dense(12, 4, "f4", to_detector=to_detector, detector_shape=SPEC.image)


def masked(file: Path | str, spec: FrameSpec, data: Array, value: float = 0) -> Array:
    """What a mask makes of frames."""
    task = Mask(file=str(file), value=value)
    assert task.prepare(spec) == spec
    return task.process(Block(spec, 0, len(data), data)).pixels


@pytest.mark.parametrize("name", FILES)
def test_every_pixel_that_is_not_0_in_the_file_is_masked_and_no_other(
    folder: Path, image: Array, name: str
) -> None:
    data = np.arange(1, 1 + 3 * 2 * image.size, dtype=np.uint16).reshape(3, *SPEC.shape)
    found = masked(folder / name, SPEC, data, 65535)
    np.testing.assert_array_equal(found, np.where(image != 0, np.uint16(65535), data))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "mask.npy"


@given(chains(), st.floats(0, 1), st.integers(0, 2**32))
def test_a_pixel_is_masked_if_any_detector_pixel_under_it_is(
    scratch: Path, chain: Chain, density: float, seed: int
) -> None:
    mask = np.random.default_rng(seed).random(chain.detector) < density
    np.save(scratch, mask)
    spec = chain.spec("u1")
    found = masked(scratch, spec, np.ones((1, *spec.shape), "u1"))[0, 0] == 0
    for y, x in np.ndindex(*spec.image):
        under = chain.to_detector.covered(Roi(x, y, 1, 1))
        assert found[y, x] == mask[under.slices].any()


def test_without_a_mask_pixel_nothing_changes(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros(SPEC.image, bool))
    data = np.arange(2 * 12 * 16, dtype=np.uint16).reshape(1, *SPEC.shape)
    np.testing.assert_array_equal(masked(tmp_path / "none.npy", SPEC, data, 7), data)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("u1", 255), ("u2", 65535.0), ("i4", -1), ("u4", 2**32 - 1), ("u8", 2**64 - 1),
        (">u2", 513), ("f4", -1.5), ("f8", 1e300), ("f4", 2**53 + 1),
    ],
)  # fmt: skip
def test_masked_pixels_get_the_value(folder: Path, dtype: str, value: float) -> None:
    spec = SPEC.replace(dtype=np.dtype(dtype))
    found = masked(folder / "mask.npy", spec, np.zeros((1, *spec.shape), dtype), value)
    assert found.dtype == spec.dtype
    assert set(np.unique(found)) == {0, np.dtype(dtype).type(value)}


@pytest.mark.parametrize(
    ("dtype", "value", "complaint"),
    [
        ("u2", -1, "value: -1 does not fit pixels of uint16, .* from 0 to 65535"),
        ("u1", 256, "value: 256 does not fit pixels of uint8"),
        ("u8", 2**64, "value: .* does not fit pixels of uint64"),
        ("i4", 0.5, "value: 0.5 does not fit pixels of int32, which hold whole numbers"),
        ("f4", 1e39, r"value: 1e\+39 does not fit pixels of float32"),
        ("f8", 10**400, "value: .* does not fit pixels of float64"),
        ("?", 1, "value: pixels of bool"),
    ],
)
def test_a_value_that_pixels_cannot_hold_is_refused(
    folder: Path, dtype: str, value: float, complaint: str
) -> None:
    with pytest.raises(BadParameter, match=f"^{complaint}"):
        Mask(file=str(folder / "mask.npy"), value=value).prepare(
            SPEC.replace(dtype=np.dtype(dtype))
        )


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), None, [1]])
def test_a_value_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(BadParameter, match=r"^graph, value: should be a number; given: "):
        Mask.load({"file": "mask.npy", "value": value}, "graph")


def test_a_mask_of_another_shape_is_refused_with_both(folder: Path) -> None:
    whole = FrameSpec.dense(1065, 1030, "u2")
    part = whole.replace(shape=(1, 12, 16))  # what is left here has the mask's shape by chance
    for spec in (whole, part):
        with pytest.raises(BadParameter) as refused:
            Mask(file=str(folder / "mask.npy")).prepare(spec)
        assert str(refused.value).startswith(
            f"file: {folder}/mask.npy is 12 × 16 and the detector 1065 × 1030 pixels"
            " (height × width)"
        )


def test_a_mask_that_does_not_cover_what_is_seen_is_refused_where_no_detector_is_known(
    folder: Path,
) -> None:
    spec = FrameSpec.dense(12, 16, "u2", to_detector=Affine.translation(1, 0))
    with pytest.raises(BadParameter, match=r"12 × 16 .* pixels seen here, \[1, 0, 16, 12\]"):
        Mask(file=str(folder / "mask.npy")).prepare(spec)


@pytest.mark.parametrize(
    "spec",
    [FrameSpec("table", (3,), np.dtype("f8")), SPEC.replace(to_detector=None)],
)
def test_what_has_no_place_on_the_detector_is_refused(folder: Path, spec: FrameSpec) -> None:
    with pytest.raises(BadParameter, match=r"^file: .* has no pixels on the detector"):
        Mask(file=str(folder / "mask.npy")).prepare(spec)


def broken(folder: Path, name: str) -> Path:
    """A file that is no mask."""
    path = folder / name.partition("::")[0]
    match path.name:
        case "folder.npy":
            path.mkdir()
        case "short.npy":
            np.save(path, np.zeros((2000, 2000)))
            os.truncate(path, 5000)
        case "objects.npy":
            np.save(path, np.array([[{}, None]]), allow_pickle=True)
        case "cube.npy":
            np.save(path, np.zeros((3, 12, 16)))
        case "number.npy":
            np.save(path, np.float64(3))
        case "words.npy":
            np.save(path, np.full((12, 16), "good"))
        case "text.npy" | "text.edf" | "text.xyz":
            path.write_text("12 16\n")
        case "empty.h5":
            h5py.File(path, "w").close()
        case "two.h5":
            with h5py.File(path, "w") as file:
                file["a"] = file["group/b"] = np.zeros((12, 16))
        case "short.h5":
            with h5py.File(path, "w") as file:
                file["a"] = np.zeros((1000, 1000))
            os.truncate(path, 5000)
    return folder / name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent.npy", "No such file"),
        ("absent.h5::/entry/mask", "No such file"),
        ("absent.edf", "No such file"),
        ("folder.npy", "Is a directory"),
        ("short.npy", "cannot be read"),
        ("objects.npy", "cannot be read"),
        ("text.npy", "cannot be read"),
        ("text.edf", "cannot be read"),
        ("text.xyz", "cannot be read"),
        ("cube.npy", "holds 3 × 12 × 16 of float64; a mask is one image of numbers"),
        ("number.npy", "a mask is one image of numbers"),
        ("words.npy", "a mask is one image of numbers"),
        ("empty.h5", "which dataset is the mask.*no image at all"),
        ("two.h5", r"which dataset is the mask.*two.h5::DATASET with one of /a, /group/b"),
        ("two.h5::/c", "there is no dataset /c.* one of /a, /group/b"),
        ("two.h5::/group", "there is no dataset /group"),
        ("short.h5", "cannot be read"),
    ],
)
def test_a_file_that_is_no_mask_is_refused_by_name_with_the_reason(
    tmp_path: Path, name: str, complaint: str
) -> None:
    file = broken(tmp_path, name)
    with pytest.raises(BadParameter, match=complaint) as refused:
        Mask(file=str(file)).prepare(SPEC)
    assert str(refused.value).startswith(f"file: {file}")


def test_a_file_with_several_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.edf"
    series = fabio.edfimage.EdfImage(data=np.zeros((12, 16), np.int32))
    series.append_frame(data=np.zeros((12, 16), np.int32))
    series.write(str(path))
    with pytest.raises(BadParameter, match="holds 2 images; a mask is one"):
        Mask(file=str(path)).prepare(SPEC)


def test_without_fabio_the_message_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fabio", None)
    with pytest.raises(BadParameter, match=r'needs fabio: pip install "lima2py\[replay\]"'):
        Mask(file=str(folder / "mask.edf")).prepare(SPEC)
    Mask(file=str(folder / "mask.npy")).prepare(SPEC)
