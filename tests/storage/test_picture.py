"""Pictures show the pixels, the ROIs where they lie, and what has no number."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from matplotlib.image import imread

from lima2py.errors import BadParameter, LimaError, StorageError
from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.geometry import Affine, Roi
from lima2py.storage.reading import picture
from lima2py.storage.reading.picture import draw
from lima2py.testing.strategies import Chain, chains
from tests.storage.made_up import LOST, MadeUpRun, noise, round_robin

GREY = tuple(int(picture._NO_NUMBER[i : i + 2], 16) for i in (1, 3, 5))
CYAN = tuple(int(picture._ROI[i : i + 2], 16) for i in (1, 3, 5))


def seen(png: Path, colour: tuple[int, ...]) -> Array:
    """Which dots of a picture have a colour."""
    dots = np.round(imread(png)[..., :3] * 255).astype(int)
    close: Array = np.abs(dots - np.array(colour)) <= 2
    return np.asarray(close.all(axis=-1))


def saved(folder: Path, images: Array, to_detector: Affine | None = None) -> str:
    """A master with these images, `(frames, height, width)`, and one more that is absent."""
    n, height, width = images.shape
    spec = FrameSpec.dense(height, width, images.dtype, to_detector=to_detector)
    blocks = [
        (0, Block(spec, 0, n, images[:, None])),
        (0, Block.absent(spec, n, 1, LOST)),
    ]
    return MadeUpRun(spec, blocks, n + 1, n).write(folder / "a")


def test_pixels_without_a_number_have_a_colour_of_their_own(tmp_path: Path) -> None:
    image = np.random.default_rng(1).poisson(3, (1, 60, 80)).astype(np.int32)
    draw(saved(tmp_path, image), tmp_path / "all.png")
    image[0, :30] = -1
    (tmp_path / "dead").mkdir()
    draw(saved(tmp_path / "dead", image), tmp_path / "half.png")
    assert not seen(tmp_path / "all.png", GREY).any()
    rows, columns = np.nonzero(seen(tmp_path / "half.png", GREY))
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert width / height == pytest.approx(80 / 30, rel=0.05)
    assert len(rows) > 0.9 * height * width


def test_rois_are_drawn_where_they_lie(tmp_path: Path) -> None:
    """The ROI [10, 20, 30, 40] of a detector shown binned 2 × 4 after 6 columns were cut off."""
    image = np.zeros((1, 25, 40), np.uint16)
    image[0, 20 // 4 : 60 // 4, (10 - 6) // 2 : (40 - 6) // 2] = 65535  # what lies in the ROI
    draw(saved(tmp_path, image, Affine(2, 0, 6, 0, 4, 0)), tmp_path / "a.png")
    inside, frame = seen(tmp_path / "a.png", GREY), seen(tmp_path / "a.png", CYAN)
    rows, columns = np.nonzero(inside)
    above, left = frame[: rows.min()], frame[:, : columns.min()]
    below, right = frame[rows.max() + 1 :], frame[:, columns.max() + 1 :]
    assert above.any()
    assert below.any()
    assert left.any()
    assert right.any()
    assert not frame[rows.min() + 3 : rows.max() - 3, columns.min() + 3 : columns.max() - 3].any()
    assert not frame[: rows.min() - 30].any()
    assert not frame[rows.max() + 6 :].any()
    assert not frame[:, columns.max() + 6 :].any()


@given(chains())
def test_corners_of_rois_follow_every_chain_of_changes(chain: Chain) -> None:
    box = chain.to_detector.covered(chain.box)
    from_detector = np.linalg.inv(np.array(chain.to_detector.matrix))
    corners = picture._corners(box, from_detector)
    local = chain.to_detector.local(box)
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert np.allclose(low, (local.x, local.y))
    assert np.allclose(high, (local.x + local.width, local.y + local.height))


def test_rois_elsewhere_are_not_drawn(tmp_path: Path) -> None:
    draw(saved(tmp_path, np.ones((1, 9, 9), np.uint8), Affine.crop(Roi(500, 0, 9, 9))),
         tmp_path / "a.png")  # fmt: skip
    assert not seen(tmp_path / "a.png", CYAN).any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 5, 5), np.uint16),
        np.full((1, 5, 5), 7, np.uint16),
        np.full((1, 5, 5), 65535, np.uint16),
        np.full((1, 5, 5), -3.5, np.float32),
        np.full((1, 5, 5), np.nan, np.float32),
        np.arange(3, dtype=np.uint8).reshape(1, 1, 3),
        np.arange(2500, dtype=np.uint32).reshape(1, 1, 2500) % 7,
        np.arange(1200 * 1500, dtype=np.uint32).reshape(1, 1200, 1500) % 1000,
    ],
)
def test_any_image_can_be_drawn(tmp_path: Path, image: Array) -> None:
    path = saved(tmp_path, image)
    for total in (False, True):
        draw(path, tmp_path / "a.png", total=total)
        assert imread(tmp_path / "a.png").shape[0] > 100


def test_no_peak_is_lost_when_a_large_image_is_reduced() -> None:
    image = np.zeros((2527, 2463))
    image[1234, 567] = 9.0
    image[10:20, 10:20] = -1
    small, factor = picture._reduced(np.ma.masked_equal(image, -1))
    assert factor == 3
    assert small.shape == (843, 821)
    assert small[1234 // 3, 567 // 3] == 9.0
    assert np.isnan(small[4:6, 4:6]).all()
    assert np.nansum(small) == 9.0


@pytest.mark.parametrize(
    "spec",
    [
        FrameSpec.dense(8, 9, np.float32, bands=3),
        FrameSpec("vector", (40,), np.dtype("f4")),
        FrameSpec(
            "table",
            (12,),
            np.dtype([(name, "f8") for name in "abcdef"]),
            labels=("a$b", "_x", *(f"roi {i}" for i in range(10))),
        ),
        FrameSpec("table", (2,), np.dtype([("sum", "u4")])),
    ],
)
def test_every_kind_of_product_can_be_drawn(tmp_path: Path, spec: FrameSpec) -> None:
    path = round_robin(spec, 30, 4, 2, absent=[0, 7]).write(tmp_path / "a")
    for number, arguments in enumerate(({}, {"frame": 9}, {"total": True})):
        png = tmp_path / f"{number}.png"
        draw(path, png, **arguments)  # type: ignore[arg-type]
        assert imread(png).std() > 0.01


@pytest.mark.parametrize("names", [("index", "value"), ("x", "sum")])
def test_sparse_frames_are_drawn_as_images_or_by_how_many_rows_they_have(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    spec = FrameSpec("sparse", (1, 30, 40), np.dtype([(names[0], "u4"), (names[1], "u2")]))
    blocks = [(n % 2, Block(spec, 4 * n, 4, noise(spec, 4, n), {2: LOST})) for n in range(5)]
    path = MadeUpRun(spec, blocks, 20, 4).write(tmp_path / "a")
    for number, arguments in enumerate(({}, {"frame": 9}, {"total": True})):
        png = tmp_path / f"{number}.png"
        draw(path, png, **arguments)  # type: ignore[arg-type]
        assert imread(png).std() > 0.01


def test_the_sum_of_sparse_pixels_shows_them_where_they_are(tmp_path: Path) -> None:
    spec = FrameSpec("sparse", (1, 20, 40), np.dtype([("index", "u4"), ("value", "f4")]))
    index = np.array([5 * 40 + 10], "u4")
    data = Ragged.of(np.array([1]), {"index": index, "value": np.array([np.nan], "f4")})
    path = MadeUpRun(spec, [(0, Block(spec, 0, 1, data))], 1, 1).write(tmp_path / "a")
    draw(path, tmp_path / "a.png")
    rows, columns = np.nonzero(seen(tmp_path / "a.png", GREY))
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert 0.8 < width / height < 1.25, "one pixel, which has no number"


def test_long_curves_keep_their_extremes() -> None:
    y = np.sin(np.arange(200_001) / 3000)
    y[12_345] = 50.0
    x, thin = picture._thinned(np.arange(200_001), y)
    assert len(x) == len(thin) <= 2 * picture.MAX_POINTS
    assert thin.max() == 50.0
    assert abs(x[thin.argmax()] - 12_345) < 100


def test_a_frame_without_data_says_why(tmp_path: Path) -> None:
    path = saved(tmp_path, np.ones((2, 4, 4), np.uint16))
    with pytest.raises(
        BadParameter, match=r"frame 2 of a_master\.h5 has no data: detector_gap \(made up: lost"
    ):
        draw(path, tmp_path / "a.png", frame=2)
    with pytest.raises(BadParameter, match=r"frame 3: .* has 3 frames from 0 to 2"):
        draw(path, tmp_path / "a.png", frame=3)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("kind", ["dense", "table"])
def test_a_file_in_which_nothing_was_saved_says_so(tmp_path: Path, kind: str) -> None:
    spec = FrameSpec.dense(2, 2, np.uint16)
    if kind == "table":
        spec = FrameSpec("table", (2,), np.dtype([("sum", "f8")]))
    blocks = [(0, Block.absent(spec, 0, 3, LOST))]
    path = MadeUpRun(spec, blocks, 3, 3).write(tmp_path / "a")
    with pytest.raises(BadParameter, match="none of them with data"):
        draw(path, tmp_path / "a.png")


def test_a_picture_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    path = saved(tmp_path, np.ones((1, 4, 4), np.uint16))
    with pytest.raises(StorageError, match=r"gone/a\.png cannot be written: No such file"):
        draw(path, tmp_path / "gone" / "a.png")


def test_without_matplotlib_one_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LimaError, match=r'pip install "lima2py\[show\]"'):
        draw(tmp_path / "any.h5", tmp_path / "a.png")
