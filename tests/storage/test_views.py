"""Saved frames as dask, xarray and scipy have them are those that h5py reads."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

import lima2py
from lima2py.errors import BadParameter, LimaError, StorageError
from lima2py.frame import Block, FrameSpec
from lima2py.geometry import Affine, Roi
from lima2py.storage.reading import views
from lima2py.storage.reading.run_file import RunFile
from tests.storage.made_up import LOST, MadeUpRun, noise, round_robin

PIXELS = FrameSpec("sparse", (1, 12, 16), np.dtype([("index", "u4"), ("value", "i4")]))
PEAKS = FrameSpec("sparse", (1, 12, 16), np.dtype([("x", "f4"), ("sum", "i8")]))
VECTOR = FrameSpec("vector", (7,), np.dtype("f4"))


def computed(lazy: Any) -> Any:
    """What dask makes of it; in this thread, since its threads stay."""
    return lazy.compute(scheduler="sync")


def sparse_run(spec: FrameSpec) -> MadeUpRun:
    blocks = [(n % 2, Block(spec, 3 * n, 3, noise(spec, 3, n))) for n in range(6)]
    blocks[2] = (0, Block(spec, 6, 3, noise(spec, 3, 2), {0: LOST, 2: LOST}))
    return MadeUpRun(spec, blocks, 18, 3)


@pytest.mark.parametrize(
    "spec", [FrameSpec.dense(3, 5, np.uint16), FrameSpec.dense(3, 5, np.float32, bands=2), VECTOR]
)
def test_dask_gives_what_is_in_the_file(tmp_path: Path, spec: FrameSpec) -> None:
    run = round_robin(spec, 20, 3, 2, absent=[0, 4, 19])
    expected = run.expected()
    with lima2py.open(run.write(tmp_path / "a", frames_per_file=4)) as file:
        made = file.dask()
    assert isinstance(made, dask.array.Array)
    assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
    assert computed(made).tobytes() == expected.tobytes()
    part = computed(made[3:17:2, ..., 1:-1])
    assert part.tobytes() == expected[3:17:2, ..., 1:-1].tobytes()
    one = computed(made[7])
    assert one.tobytes() == expected[7].tobytes()


def test_a_piece_can_be_read_in_another_process_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = round_robin(VECTOR, 6, 3, 2)
    monkeypatch.chdir(tmp_path)
    run.write(Path("a"))
    with lima2py.open("a_master.h5") as file:
        sent = pickle.dumps(views._Rows(file))
    monkeypatch.chdir("/")
    assert pickle.loads(sent)[1:4].tobytes() == run.expected()[1:4].tobytes()


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(0, 20), st.integers(1, 40),
    st.integers(0, 60), st.integers(1, 12),
)  # fmt: skip
@settings(max_examples=40)
def test_pieces_are_whole_and_end_where_files_end(
    nodes: int, block: int, per_file: int, frames: int, absent: int, most: int
) -> None:
    """Of stretches long enough; no piece is longer than asked for, and none is without a frame."""

    class Told:
        """As much of a file as the cutting asks for."""

        spec = FrameSpec.dense(1, 1, np.uint8)
        lies_in = np.array(
            [
                -1 if index == absent else (index // block % nodes) * 1000
                + (index // (nodes * block) * block + index % block) // (per_file or 10**6)
                for index in range(frames)
            ]
        )  # fmt: skip

        def __len__(self) -> int:
            return frames

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "PIECE_BYTES", most)
        patch.setattr(views, "_chunk", lambda file: 1)
        borders = views._pieces(Told())  # type: ignore[arg-type]
    lengths = np.diff(borders)
    assert (borders[0], borders[-1]) == (0, frames)
    assert lengths.min() > 0
    assert lengths.max() <= most
    there = Told.lies_in[Told.lies_in >= 0]
    for end in np.flatnonzero(Told.lies_in >= 0)[1:][np.diff(there) != 0].tolist():
        begin = max(border for border in borders if border <= end)
        assert begin == end or end - begin <= max(1, most // 2), "a piece goes on into a file"


def test_pieces_hold_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FrameSpec.dense(64, 64, np.uint16)  # 8 KiB: 32 frames share a chunk
    run = round_robin(spec, 200, 100, 2)
    path = run.write(tmp_path / "a")
    monkeypatch.setattr(views, "PIECE_BYTES", 50 * spec.nbytes)
    with lima2py.open(path) as file:
        made = file.dask()
        assert isinstance(made, dask.array.Array)
        chunk = views._chunk(file)
        assert 1 < chunk <= 50
        inside = [length for length in made.chunks[0] if length != made.chunks[0][-1]]
        assert np.cumsum(made.chunks[0]).tolist().count(100) == 1, "a piece ends with the file"
        assert all(length % chunk == 0 or length == 100 % chunk for length in inside)
        assert computed(made).tobytes() == run.expected().tobytes()


@pytest.mark.parametrize("spec", [PIXELS, PEAKS])
def test_dask_gives_sparse_frames_in_parts(
    tmp_path: Path, spec: FrameSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sparse_run(spec)
    rows = run.expected_rows()
    path = run.write(tmp_path / "a")
    size = sum(len(row) for row in rows) * spec.dtype.itemsize // 18
    monkeypatch.setattr(views, "PIECE_BYTES", 6 * size)
    with lima2py.open(path) as file:
        parts = file.dask()
    assert isinstance(parts, list)
    assert len(parts) > 1
    read = [computed(part) for part in parts]
    found = [part.rows(offset) for part in read for offset in range(len(part))]
    assert [row.tobytes() for row in found] == [row.tobytes() for row in rows]


def test_csr_is_the_matrix_of_frames_and_pixels(tmp_path: Path) -> None:
    run = sparse_run(PIXELS)
    with lima2py.open(run.write(tmp_path / "a")) as file:
        matrix = file.csr(slice(2, 16))
    matrix.sum_duplicates()
    dense = np.zeros((14, 12 * 16), np.int32)
    for row, rows in zip(dense, run.expected_rows()[2:16], strict=True):
        np.add.at(row, rows["index"], rows["value"])
    assert matrix.shape == (14, 192)
    assert matrix.toarray().tolist() == dense.tolist()


def test_xarray_names_axes_and_places_pixels(tmp_path: Path) -> None:
    place = Affine.crop(Roi(100, 40, 60, 60)) @ Affine.bin(4, 2)
    spec = FrameSpec.dense(3, 5, np.uint16, bands=2, to_detector=place)
    run = round_robin(spec, 12, 3, 2, absent=[4])
    with lima2py.open(run.write(tmp_path / "a")) as file:
        found = file.xarray()
    assert isinstance(found, xarray.DataArray)
    assert found.dims == ("frame", "band", "y", "x")
    assert found.name == "raw"
    assert found.attrs["run"] == "0123456789abcdef" * 2
    assert found.x.values.tolist() == [102, 106, 110, 114, 118]
    assert found.y.values.tolist() == [41, 43, 45]
    assert found.fate.values.tolist() == ["saved"] * 4 + ["detector_gap"] + ["saved"] * 7
    assert found.timestamp.values.tolist() == [1e9 + n / 8 for n in range(12)]
    # what the coordinates choose is what lies in the rectangle of detector pixels
    box = place.local(Roi(104, 42, 8, 4))
    chosen = computed(found.sel(x=slice(104, 112), y=slice(42, 46), frame=7))
    expected = run.expected()[7][:, box.slices[0], box.slices[1]]
    assert chosen.values.tolist() == expected.tolist()
    saved = computed(found[found.fate == "saved"])
    assert saved.frame.values.tolist() == [n for n in range(12) if n != 4]


def test_xarray_has_no_places_where_pixels_lie_across_or_nowhere(tmp_path: Path) -> None:
    turned = FrameSpec.dense(4, 6, np.uint16, to_detector=Affine(0, 2, 10, -2, 0, 90))
    for name, spec in (("turned", turned), ("vector", VECTOR)):
        with lima2py.open(round_robin(spec, 4, 1, 1).write(tmp_path / name)) as file:
            assert set(file.xarray().coords) == {"frame", "timestamp", "fate"}


def test_tables_are_data_sets_with_a_variable_for_each_column(tmp_path: Path) -> None:
    dtype = np.dtype([("min", "f8"), ("centre", "f4", (2,))])
    run = round_robin(FrameSpec("table", (2,), dtype, labels=("direct", "halo")), 9, 2, 2)
    with lima2py.open(run.write(tmp_path / "a")) as file:
        found = file.xarray()
    assert isinstance(found, xarray.Dataset)
    assert found["min"].dims == ("frame", "row")
    assert found["centre"].dims == ("frame", "row", "centre_0")
    halo = computed(found["min"].sel(row="halo"))
    assert halo.values.tolist() == run.expected()["min"][:, 1].tolist()
    centre = computed(found["centre"])
    assert centre.values.tolist() == run.expected()["centre"].tolist()


def test_what_cannot_be_viewed_so_is_refused_with_a_way_out(tmp_path: Path) -> None:
    peaks = sparse_run(PEAKS).write(tmp_path / "peaks")
    with RunFile(peaks) as file:
        with pytest.raises(BadParameter, match=r"xarray could name; use csr\(\), dense\(i\)"):
            file.xarray()
        with pytest.raises(BadParameter, match="and no sparse pixels"):
            file.csr()
        with pytest.raises(BadParameter, match="and no images"):
            file.dense(0)


@pytest.mark.parametrize(
    ("module", "view"), [("dask.array", "dask"), ("xarray", "xarray"), ("scipy.sparse", "csr")]
)
def test_what_is_missing_is_named_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, view: str
) -> None:
    spec = PIXELS if view == "csr" else VECTOR
    run = sparse_run(PIXELS) if view == "csr" else round_robin(spec, 4, 1, 1)
    with lima2py.open(run.write(tmp_path / "a")) as file:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(LimaError, match=r'pip install "lima2py\[analysis\]"'):
            getattr(file, view)()


def test_a_missing_file_is_an_error_of_the_worker_that_wants_it(tmp_path: Path) -> None:
    run = round_robin(VECTOR, 8, 2, 2)
    path = run.write(tmp_path / "a")
    with lima2py.open(path) as file:
        made = file.dask()
    Path(run.node_files[1][0]).unlink()
    with pytest.raises(StorageError, match="are not there"):
        computed(made)
