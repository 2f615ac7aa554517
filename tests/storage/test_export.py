"""Exported frames, read by the programs they are for, are those of the file bit by bit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import fabio
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2py.errors import BadParameter, LimaError, StorageError
from lima2py.frame import Block, FrameSpec, Ragged, dtype_of
from lima2py.storage.reading.export import _IMAGES, export
from tests.storage.made_up import LOST, MadeUpRun, noise, round_robin

PIXELS = FrameSpec("sparse", (1, 12, 16), np.dtype([("index", "u4"), ("value", "u2")]))
CODES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "?"]


def images(dtype: str, frames: int = 9, bands: int = 1) -> MadeUpRun:
    """Frames of any bits: fill values, largest and smallest numbers, nan; frame 4 is absent."""
    spec = FrameSpec.dense(14, 17, dtype, bands=bands)
    blocks = []
    for index in range(0, frames, 3):
        data = noise(spec, 3, index)
        assert isinstance(data, np.ndarray)
        gone = {1: LOST} if index == 3 else {}
        times = {"timestamp": 1.6e9 + np.arange(index, index + 3) / 8}
        blocks.append((index // 3 % 2, Block(spec, index, 3, data, gone, times)))
    return MadeUpRun(spec, blocks, frames, 3)


def sparse(frames: int = 12) -> tuple[MadeUpRun, NDArray[np.uint16]]:
    """Sparse pixels, and the images they are of; frame 4 is absent."""
    rng = np.random.default_rng(1)
    found = rng.poisson(0.1, (frames, *PIXELS.image)).astype(np.uint16)
    found[4] = 0
    blocks = []
    for index in range(0, frames, 3):
        part = found[index : index + 3].reshape(3, -1)
        columns = {"index": part.nonzero()[1].astype("u4"), "value": part[part != 0]}
        data = Ragged.of((part != 0).sum(axis=1), columns)
        gone = {1: LOST} if index == 3 else {}
        blocks.append((index // 3 % 2, Block(PIXELS, index, 3, data, gone)))
    return MadeUpRun(PIXELS, blocks, frames, 3), found


@pytest.mark.parametrize("to", list(_IMAGES))
@pytest.mark.parametrize("dtype", CODES)
def test_fabio_reads_images_back_bit_by_bit_or_they_are_refused(
    tmp_path: Path, to: str, dtype: str
) -> None:
    run = images(dtype)
    path = run.write(tmp_path / "a.b")
    if dtype not in _IMAGES[to][1].split():
        with pytest.raises(BadParameter, match=rf"to: {to} holds .*; choose .*raw$"):
            export(path, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    made = export(path, to, tmp_path / "out" / "in", frames=(2, 8))
    assert [file.name for file in made.files] == [f"a.b_00000{n}.{to}" for n in (2, 3, 5, 6, 7)]
    assert made.absent == [(4, 4, LOST)]
    assert made.frames == 5
    for file in made.files:
        with fabio.open(str(file)) as image:
            expected = run.expected()[int(file.stem[-6:])]
            assert image.data.dtype == expected.dtype
            assert image.data.tobytes() == expected.tobytes()
    assert sorted(made.files) == sorted((tmp_path / "out" / "in").iterdir())


def test_an_image_says_which_frame_it_is_and_when_it_was_taken(tmp_path: Path) -> None:
    path = images("u2").write(tmp_path / "a")
    for to in _IMAGES:
        made = export(path, to, tmp_path, frames=(7, 8))
        with fabio.open(str(made.files[0])) as image:
            header = dict(image.header)
        taken = 1.6e9 + 7 / 8
        if to == "cbf":
            text = header["_array_data.header_contents"]
            assert "Frame_index 7" in text
            assert "Exposure_time 0.25 s" in text
            found = re.search(r"\d{4}-\S+", text)
            assert found
            assert datetime.fromisoformat(found[0]).timestamp() == taken
            continue
        if to == "tif":
            header = dict(
                line.split("=", 1) for line in header["imageDescription"].splitlines() if line
            )
        assert header["acq_frame_nb"] == "7"
        assert float(header["time_of_day"]) == taken
        assert header["acq_expo_time"] == "0.25"


def test_every_band_has_an_image_of_its_own(tmp_path: Path) -> None:
    run = images("i4", bands=2)
    made = export(run.write(tmp_path / "a"), "edf", tmp_path, frames=(None, 2))
    assert [file.name for file in made.files] == [
        f"a_00000{n}_band{band}.edf" for n in range(2) for band in range(2)
    ]
    for file, expected in zip(made.files, run.expected()[:2].reshape(4, 14, 17), strict=True):
        with fabio.open(str(file)) as image:
            assert image.data.tobytes() == expected.tobytes()


def test_sparse_pixels_become_images(tmp_path: Path) -> None:
    run, expected = sparse()
    made = export(run.write(tmp_path / "a"), "tif", tmp_path / "out")
    assert made.absent == [(4, 4, LOST)]
    for file in made.files:
        with fabio.open(str(file)) as image:
            assert image.data.tobytes() == expected[int(file.stem[-6:])].tobytes()


LIBERTEM = """
import sys
import numpy as np
from libertem.api import Context
from libertem.executor.inline import InlineJobExecutor
from libertem.udf.sum import SumUDF
from libertem.udf.sumsigudf import SumSigUDF

with Context(executor=InlineJobExecutor()) as context:
    data = context.load("auto", path=sys.argv[1])
    image, curve = context.run_udf(data, [SumUDF(), SumSigUDF()])
    np.savez(sys.argv[2], image=image["intensity"].data, curve=curve["intensity"].data)
"""


def test_libertem_loads_the_pixels(tmp_path: Path) -> None:
    """In a process of its own, since it leaves threads."""
    run, expected = sparse()
    made = export(run.write(tmp_path / "a"), "csr", tmp_path / "out", frames=(1, 12))
    toml = made.files[0]
    assert toml.name == "a.toml"
    sums_path = str(tmp_path / "sum.npz")
    command = [sys.executable, "-W", "ignore", "-c", LIBERTEM, str(toml), sums_path]
    subprocess.run(command, check=True, timeout=100)
    with np.load(sums_path) as sums:
        assert sums["image"].tolist() == expected[1:].sum(axis=0).tolist()
        assert sums["curve"].tolist() == expected[1:].sum(axis=(1, 2)).tolist()
    assert made.absent == [(4, 4, LOST)]


@pytest.mark.parametrize(
    "spec",
    [
        FrameSpec.dense(3, 5, np.float32, bands=2),
        FrameSpec("vector", (7,), np.dtype(">f8")),
        FrameSpec("table", (2,), np.dtype([("min", "f4"), ("sum", "u8")]), labels=("a", "b")),
    ],
)
def test_raw_is_what_numpy_maps_by_the_words_beside_it(tmp_path: Path, spec: FrameSpec) -> None:
    run = round_robin(spec, 10, 3, 2, absent=[0, 4])
    made = export(run.write(tmp_path / "a"), "raw", tmp_path / "out")
    about = json.loads(made.files[1].read_text())
    shape = (about["frames"], *about["shape"])
    found = np.fromfile(made.files[0], dtype_of(about["dtype"])).reshape(shape)
    assert made.files[0].name == about["file"] == "a.raw"
    assert found.tobytes() == run.expected().tobytes()
    assert about["bytes_per_frame"] * 10 == made.files[0].stat().st_size
    assert about["index"] == list(range(10))
    assert [n for n, fate in enumerate(about["fate"]) if fate != "saved"] == [0, 4]
    assert about["timestamp"][3] == 1e9 + 3 / 8
    assert about["run"]["name"] == "scan 42"


def test_of_a_node_that_had_a_frame_twice_the_last_counts(tmp_path: Path) -> None:
    spec = FrameSpec.dense(2, 3, np.uint8)
    blocks = [
        (0, Block(spec, index, 2, np.full((2, *spec.shape), 10 * number, np.uint8)))
        for number, index in enumerate((4, 0, 4))
    ]
    run = MadeUpRun(spec, blocks, 6, 2)
    run.write(tmp_path / "a")
    made = export(run.node_files[0][0], "edf", tmp_path / "out")
    assert [file.name[-5:] for file in made.files] == ["0.edf", "1.edf", "4.edf", "5.edf"]
    for file, value in zip(made.files, (10, 10, 20, 20), strict=True):
        with fabio.open(str(file)) as image:
            assert (image.data == value).all()


def test_nothing_is_replaced_unless_it_is_wanted(tmp_path: Path) -> None:
    path = images("u2").write(tmp_path / "a")
    for to in ("tif", "raw"):
        first = export(path, to, tmp_path / "out", frames=(2, 4)).files
        before = {file: file.read_bytes() for file in first}
        said = rf"{first[0]}( and 1 more exist| exists) already.*--overwrite"
        with pytest.raises(StorageError, match=said):
            export(path, to, tmp_path / "out", frames=(0, 4))
        assert {file: file.read_bytes() for file in (tmp_path / "out").glob(f"*{to}")} == {
            file: content for file, content in before.items() if file.suffix == f".{to}"
        }
        again = export(path, to, tmp_path / "out", frames=(0, 4), overwrite=True)
        assert set(first) <= set(again.files)


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    dense = images("u2").write(tmp_path / "dense")
    peaks_spec = FrameSpec("sparse", (1, 12, 16), np.dtype([("x", "f4"), ("sum", "i8")]))
    peaks_block = Block(peaks_spec, 0, 3, noise(peaks_spec, 3, 0))
    peaks = MadeUpRun(peaks_spec, [(0, peaks_block)], 3, 3).write(tmp_path / "peaks")
    vector = round_robin(FrameSpec("vector", (7,), np.dtype("f4")), 4, 1, 1)
    curves = vector.write(tmp_path / "vector")
    pixels = sparse()[0].write(tmp_path / "pixels")
    for path, to, said in (
        (dense, "png", "to: png: should be one of cbf, tif, edf, csr, raw"),
        (dense, "csr", "to: csr holds sparse pixels, and these are 14 × 17  uint16; choose raw"),
        (curves, "cbf", "to: cbf holds images, and these are vector of 7; choose raw"),
        (peaks, "tif", r"to: tif holds images, .*; read them by lima2py\.open"),
        (peaks, "csr", r"to: csr holds sparse pixels.*; read them by lima2py\.open"),
        (peaks, "raw", r"to: raw holds frames of one size.*; read them by lima2py\.open"),
        (pixels, "raw", r"to: raw holds frames of one size.*; choose csr"),
    ):
        with pytest.raises(BadParameter, match=said):
            export(path, to, tmp_path / "out")
    with pytest.raises(BadParameter, match=r"frames: none from 9 to before 12: .* has 9 frames"):
        export(dense, "tif", tmp_path / "out", frames=(9, 12))
    with pytest.raises(BadParameter, match=r"frames: none from 9 on: .* has 9 frames"):
        export(dense, "tif", tmp_path / "out", frames=(9, None))
    with pytest.raises(BadParameter, match="sink: none that is called 'no'"):
        export(dense, "tif", tmp_path / "out", sink="no")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(BadParameter, match=r"folder: .*file is a file; say where"):
        export(dense, "tif", tmp_path / "file")


def test_a_missing_fabio_is_named_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images("u2").write(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "fabio", None)
    with pytest.raises(LimaError, match=r'cbf is written by fabio.*pip install "lima2py\[replay'):
        export(path, "cbf", tmp_path / "out")


def test_an_export_that_fails_leaves_no_half_file(tmp_path: Path) -> None:
    run = images("u2")
    path = run.write(tmp_path / "a")
    Path(run.node_files[1][0]).unlink()
    for to in ("edf", "raw"):
        with pytest.raises(StorageError, match="are not there"):
            export(path, to, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"a_00000{n}.edf" for n in range(3)
    }
