"""Images from any kind of file, laid under whatever is left of the detector."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Array, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.tasks.images import lay_under, read_images, read_mask
from lima2py.testing.strategies import Chain, chains

SPEC = FrameSpec.dense(12, 16, np.uint16, bands=2)


@pytest.fixture(scope="module")
def image() -> Array:
    """Numbers that every kind of file can hold."""
    return np.random.default_rng(5).integers(0, 2**15, SPEC.image).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Array) -> Path:
    """The same image in every kind of file."""
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "image.npy", image)
    np.save(folder / "swapped.npy", image.astype(">i4"))
    with h5py.File(folder / "one.h5", "w") as file:
        file["entry/image"] = image
        file["entry/note"] = "made by hand"
        file["entry/profile"] = np.arange(5)
    with h5py.File(folder / "many.nxs", "w") as file:
        file["entry/flat"] = np.ones(SPEC.image)
        file.create_dataset("entry/pixel_mask", data=image, **hdf5plugin.Bitshuffle())
    fabio.edfimage.EdfImage(data=image).write(str(folder / "image.edf"))
    fabio.tifimage.TifImage(data=image).write(str(folder / "image.tif"))
    fabio.cbfimage.CbfImage(data=image).write(str(folder / "image.cbf"))
    return folder


FILES = [
    "image.npy", "swapped.npy", "one.h5", "one.h5::/entry/image", "one.h5::entry/image",
    "many.nxs::/entry/pixel_mask", "image.edf", "image.tif", "image.cbf",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_read_from_any_kind_of_file(folder: Path, image: Array, name: str) -> None:
    found = read_images(str(folder / name), SPEC, "file")
    np.testing.assert_array_equal(found, image)
    assert found.dtype.isnative


@pytest.mark.parametrize("kind", ["npy", "h5"])
@pytest.mark.parametrize(
    ("shape", "stack"), [((2, 12, 16), 0), ((3, 12, 16), 3), ((3, 2, 12, 16), 3)]
)
def test_bands_and_stacks_are_read_from_npy_and_hdf5(
    tmp_path: Path, kind: str, shape: tuple[int, ...], stack: int
) -> None:
    images = np.random.default_rng(1).normal(size=shape)
    path = tmp_path / f"stack.{kind}"
    if kind == "npy":
        np.save(path, images)
    else:
        with h5py.File(path, "w") as file:
            file["calibration/images"] = images
    np.testing.assert_array_equal(read_images(str(path), SPEC, "file", stack), images)


def test_a_file_of_frames_and_one_image_needs_no_name_of_a_dataset(
    tmp_path: Path, image: Array
) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["frames"] = np.zeros((5, *SPEC.image))
        file["mask"] = image
    spec = SPEC.replace(shape=(1, *SPEC.image))
    np.testing.assert_array_equal(read_images(str(tmp_path / "data.h5"), spec, "file"), image)


TURNS = ("crop", "flip", "rotate", "transpose")


@given(chains(kinds=TURNS), st.booleans())
def test_an_image_lies_under_a_product_as_if_it_were_a_frame(chain: Chain, bands: bool) -> None:
    images = np.arange(2 * np.prod(chain.detector)).reshape(2, *chain.detector)
    images = images if bands else images[0]
    np.testing.assert_array_equal(lay_under(images, chain.spec("u2"), "image"), chain.apply(images))


@pytest.mark.parametrize(
    "place",
    [Affine.bin(2, 1), Affine.bin(2, 2), Affine(a=0.5, e=2.0), Affine(0.6, -0.8, 9, 0.8, 0.6, 0)],
)
def test_pixels_that_are_not_those_of_the_detector_are_refused(place: Affine) -> None:
    spec = FrameSpec.dense(4, 4, "u2", to_detector=place, detector_shape=(12, 16))
    with pytest.raises(BadParameter, match=r"^image: .* put this task before the bin"):
        lay_under(np.zeros((12, 16)), spec, "image")


def test_the_refusal_says_how_many_detector_pixels_one_here_covers() -> None:
    spec = FrameSpec.dense(6, 4, "u2", to_detector=Affine.bin(4, 2), detector_shape=(12, 16))
    with pytest.raises(BadParameter, match="each covers 8 of them"):
        lay_under(np.zeros((12, 16)), spec, "image")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "mask.npy"


@given(chains(), st.floats(0, 1), st.integers(0, 2**32), st.booleans())
def test_a_pixel_is_masked_if_any_detector_pixel_under_it_is(
    scratch: Path, chain: Chain, density: float, seed: int, bands: bool
) -> None:
    masks = np.random.default_rng(seed).random((2, *chain.detector)) < density
    np.save(scratch, masks if bands else masks[0])
    spec = chain.spec("u1").replace(shape=(2, *chain.image))
    found = np.broadcast_to(read_mask(str(scratch), spec, "file"), spec.shape)
    for band, y, x in np.ndindex(*spec.shape):
        under = chain.to_detector.covered(Roi(x, y, 1, 1))
        assert found[band, y, x] == masks[band if bands else 0][under.slices].any()


@pytest.mark.parametrize("shape", [(12, 16), (2, 12, 16)])
def test_a_product_without_a_place_takes_images_of_its_own_shape(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    images = np.arange(np.prod(shape)).reshape(shape)
    np.save(tmp_path / "own.npy", images)
    spec = SPEC.replace(to_detector=None, detector_shape=None)
    found = read_images(str(tmp_path / "own.npy"), spec, "file")
    np.testing.assert_array_equal(lay_under(found, spec, "file"), images)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "own.npy"), spec, "file"), images != 0)
    with pytest.raises(BadParameter, match=r"is 12 × 16 and the frames here 16 × 12 pixels"):
        read_images(str(tmp_path / "own.npy"), spec.replace(shape=(2, 16, 12)), "file")


def test_an_image_of_another_shape_is_refused_with_both(folder: Path) -> None:
    whole = FrameSpec.dense(1065, 1030, "u2")
    part = whole.replace(shape=(1, 12, 16))  # what is left here has the image's shape by chance
    for spec in (whole, part):
        with pytest.raises(BadParameter) as refused:
            read_images(str(folder / "image.npy"), spec, "file")
        assert str(refused.value).startswith(
            f"file: {folder}/image.npy is 12 × 16 and the detector 1065 × 1030 pixels"
            " (height × width)"
        )


def test_an_image_that_does_not_cover_what_is_seen_is_refused_where_no_detector_is_known(
    folder: Path,
) -> None:
    spec = FrameSpec.dense(12, 16, "u2", to_detector=Affine.translation(1, 0))
    with pytest.raises(BadParameter, match=r"12 × 16 .* pixels seen here, \[1, 0, 16, 12\]"):
        read_images(str(folder / "image.npy"), spec, "file")


def test_what_has_no_pixels_is_refused(folder: Path) -> None:
    table = FrameSpec("table", (3,), np.dtype("f8"))
    with pytest.raises(BadParameter, match=r"^file: a table product has no pixels"):
        read_images(str(folder / "image.npy"), table, "file")


def broken(folder: Path, name: str) -> Path:
    """A file that holds no image of the detector."""
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
        case "nothing.npy":
            path.touch()
        case "several.npy":
            with path.open("wb") as file:
                np.savez(file, np.zeros((12, 16)))
        case "null.h5":
            with h5py.File(path, "w") as file:
                file["a"] = h5py.Empty("f4")
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


WANTED = "it should be one image of numbers, height × width or 2 bands × height × width"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent.npy", "No such file"),
        ("absent.h5::/entry/mask", "No such file"),
        ("absent.edf", "No such file"),
        ("folder.npy", "Is a directory"),
        ("short.npy", "cannot be read"),
        ("nothing.npy", "cannot be read"),
        ("several.npy", "cannot be read: the magic string is not correct"),
        ("null.h5::/a", "cannot be read: the dataset /a is empty"),
        ("objects.npy", "cannot be read"),
        ("text.npy", "cannot be read"),
        ("text.edf", "cannot be read"),
        ("text.xyz", "cannot be read"),
        ("cube.npy", f"holds 3 × 12 × 16 of float64; {WANTED}"),
        ("number.npy", f"holds one of float64; {WANTED}"),
        ("words.npy", WANTED),
        ("empty.h5", "which dataset is meant.*no image at all"),
        ("two.h5", r"which dataset is meant.*two.h5::DATASET with one of /a, /group/b"),
        ("two.h5::/c", "there is no dataset /c.* one of /a, /group/b"),
        ("two.h5::/group", "there is no dataset /group"),
        ("short.h5", "cannot be read"),
    ],
)
def test_a_file_without_such_an_image_is_refused_by_name_with_the_reason(
    tmp_path: Path, name: str, complaint: str
) -> None:
    file = broken(tmp_path, name)
    with pytest.raises(BadParameter, match=complaint) as refused:
        read_images(str(file), SPEC, "pedestal")
    assert str(refused.value).startswith(f"pedestal: {file}")


@pytest.mark.parametrize("dataset", ["", "::/entry/dta"])
def test_a_file_of_something_else_is_refused_with_what_it_holds(
    tmp_path: Path, dataset: str
) -> None:
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["entry/data"] = np.zeros((7, 2, 1, 12, 16))
    with pytest.raises(BadParameter, match=r"it holds no image, only /entry/data \(7 × 2 × 1 ×"):
        read_images(f"{tmp_path}/scan.h5{dataset}", SPEC, "mask")


@pytest.mark.parametrize("shape", [(12, 16), (2, 12, 16), (2, 2, 12, 16), (3, 3, 12, 16)])
def test_a_stack_of_another_number_of_images_is_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "stack.npy", np.zeros(shape))
    with pytest.raises(
        BadParameter,
        match="a stack of 3 images of numbers, 3 × height × width or 3 × 2 bands × height × width",
    ):
        read_images(str(tmp_path / "stack.npy"), SPEC, "gain", 3)


def test_a_file_with_several_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series.edf"
    series = fabio.edfimage.EdfImage(data=np.zeros((12, 16), np.int32))
    series.append_frame(data=np.zeros((12, 16), np.int32))
    series.write(str(path))
    with pytest.raises(BadParameter, match="holds 2 images; stacks are read from"):
        read_images(str(path), SPEC, "file")


def test_without_fabio_the_message_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent: Any = None
    monkeypatch.setitem(sys.modules, "fabio", absent)
    with pytest.raises(BadParameter, match=r'needs fabio: pip install "lima2py\[replay\]"'):
        read_images(str(folder / "image.edf"), SPEC, "file")
    read_images(str(folder / "image.npy"), SPEC, "file")
