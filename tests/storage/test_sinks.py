"""What each sink takes, what it refuses and with which words, and how it lays frames out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import BadParameter
from lima2py.frame import Array, Block, FrameSpec, Ragged
from lima2py.storage.entry import ragged_columns
from lima2py.storage.saving.rows import (
    ALONE,
    IMAGES_PER_CHUNK,
    ROWS_PER_CHUNK,
    frames_per_chunk,
    without_gaps,
)
from lima2py.storage.saving.sinks import Hdf5Sink, SaveDense, SaveSparse, SaveTable, SaveVector
from tests.storage.made_up import LOST, context_of, numbers, sink_for, started
from tests.storage.plain import detector_group, read

SMALL = FrameSpec.dense(4, 6, np.uint16)
LARGE = FrameSpec.dense(200, 200, np.uint32)
VECTOR = FrameSpec("vector", (500,), np.dtype("f4"))
TABLE = FrameSpec("table", (3,), np.dtype([("sum", "f8"), ("n", "u4")]))
PIXELS = FrameSpec("sparse", (1, 40, 60), np.dtype([("index", "u4"), ("value", "u2")]))
PEAKS = FrameSpec("sparse", (1, 40, 60), np.dtype([("x", "f4"), ("y", "f4")]))
ENCODED = FrameSpec.encoded(SMALL, "bslz4", 99)
BACKGROUND = FrameSpec("table", (4,), np.dtype([("avg", "f4"), ("std", "f4")]))


@pytest.mark.parametrize(
    ("sink", "spec", "fit"),
    [
        (SaveDense, VECTOR, "use save_vector"),
        (SaveDense, TABLE, "use save_table"),
        (SaveDense, PIXELS, "use save_sparse"),
        (SaveDense, ENCODED, "use save_raw, or put decode before"),
        (SaveVector, SMALL, "use save_dense"),
        (SaveTable, SMALL, "use save_dense"),
        (SaveSparse, TABLE, "use save_table"),
        (SaveSparse, PEAKS, "use save_table"),
        (SaveSparse, PIXELS.replace(shape=(2, 40, 60)), "put select_bands before"),
        (SaveVector, FrameSpec("vector", (3,), np.dtype(object)), "only numbers can"),
        (SaveVector, FrameSpec("vector", (3,), np.dtype("U4")), "only numbers can"),
        (SaveVector, FrameSpec("vector", (0,), np.dtype("f4")), "frames that hold nothing"),
    ],
    ids=str,
)
def test_what_a_sink_cannot_save_is_refused_at_prepare_with_one_that_can(
    sink: type[Hdf5Sink], spec: FrameSpec, fit: str
) -> None:
    with pytest.raises(BadParameter, match=f"^from: .*{fit}"):
        sink().prepare(spec)


def test_a_second_input_that_is_no_background_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"^from: the second input .*radial_sigma_clip"):
        SaveSparse().prepare(PIXELS, TABLE)
    assert SaveSparse().prepare(PIXELS, BACKGROUND) == PIXELS


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"file": "{nmae}"}, r'^file: .*\{nmae\}.*did you mean "name"'),
        ({"node_file": "{file}_{rank}"}, r"^node_file: .*\{number\}"),
    ],
)
def test_templates_that_cannot_be_are_refused_at_prepare(
    fields: dict[str, object], text: str
) -> None:
    with pytest.raises(BadParameter, match=text):
        SaveDense.load(fields, "test").prepare(SMALL)


@given(
    st.builds(FrameSpec.dense, st.integers(1, 40), st.integers(1, 900), st.just("u2")),
    st.integers(1, 1024),
    st.one_of(st.just(0), st.integers(1, 5000)),
)
def test_small_images_share_chunks_that_fit_blocks(
    spec: FrameSpec, block: int, nb_frames: int
) -> None:
    frames = frames_per_chunk(spec, block, nb_frames)
    assert frames == 1 or frames * spec.nbytes <= IMAGES_PER_CHUNK
    assert frames % block == 0 or block % frames == 0
    assert frames <= (nb_frames or frames)
    if spec.nbytes >= ALONE:
        assert frames == 1


def test_chunks_of_small_rows_stay_small() -> None:
    for spec in (VECTOR, TABLE):
        frames = frames_per_chunk(spec, 1, 0)
        assert frames > 1
        assert frames * spec.nbytes <= ROWS_PER_CHUNK
        assert frames_per_chunk(spec, 1, 5) == 5


def test_nothing_is_written_for_an_absent_frame(tmp_path: Path) -> None:
    sink = started(SaveDense(), LARGE, context_of(tmp_path / "a", LARGE))
    for index in range(4):
        sink.write(Block(LARGE, index, 1, numbers(LARGE, index, 1), {0: LOST} if index % 2 else {}))
    sink.finish()
    with h5py.File(sink.files[0]) as file:
        assert file["entry_0000/measurement/data"].id.get_num_chunks() == 2


def test_images_cut_out_of_larger_ones_are_saved_too(tmp_path: Path) -> None:
    whole = np.arange(3 * 10 * 12, dtype=np.uint16).reshape(3, 1, 10, 12)
    cut = whole[:, :, 2:6, ::-2]
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=3))
    sink.write(Block(SMALL, 0, 3, cut))
    sink.finish()
    assert np.array_equal(read(sink.files[0]).data["data"], cut[:, 0])


@pytest.mark.parametrize("spec", [SMALL, VECTOR, TABLE, PIXELS, PEAKS], ids=str)
@pytest.mark.parametrize("compression", ["none", "bslz4", "bszstd", "gzip", "blosc2"])
def test_the_data_in_a_file_are_compressed_as_was_asked_for(
    tmp_path: Path, spec: FrameSpec, compression: str
) -> None:
    numbers_of = {"none": [], "gzip": [1], "bslz4": [32008], "bszstd": [32008], "blosc2": [32026]}
    sink = sink_for(spec, compression=compression)
    started(sink, spec, context_of(tmp_path / "a", spec))
    columns = {name: np.zeros(1, spec.dtype[name]) for name in spec.dtype.names or ()}
    data = Ragged.of(np.ones(1, int), columns) if spec.kind == "sparse" else numbers(spec, 0, 1)
    sink.write(Block(spec, 0, 1, data))
    sink.finish()
    with h5py.File(sink.files[0]) as file:
        group = detector_group(file)["data"]
        for name in ragged_columns(spec) if spec.kind == "sparse" else ["."]:
            made = (group if name == "." else group[name]).id.get_create_plist()
            filters = [made.get_filter(number)[0] for number in range(made.get_nfilters())]
            assert filters == numbers_of[compression]


def bright(index: int, share: float) -> Block:
    """A frame of which a share of the pixels was kept."""
    rng = np.random.default_rng(index)
    places = np.sort(rng.choice(2400, int(share * 2400), replace=False)).astype("u4")
    values = rng.integers(1, 60000, len(places)).astype("u2")
    return Block(PIXELS, index, 1, Ragged.of(np.array([len(places)]),
                                             {"index": places, "value": values}))  # fmt: skip


@pytest.mark.parametrize(("share", "remarks"), [(0.01, 0), (0.9, 1)])
def test_a_sink_says_when_images_would_have_taken_less_room_than_their_pixels(
    tmp_path: Path, share: float, remarks: int
) -> None:
    fields = {"compression": "none"}
    sink = started(SaveSparse.load(fields, "test"), PIXELS, context_of(tmp_path / "a", PIXELS))
    for index in range(20):
        sink.write(bright(index, share))
    sink.finish()
    assert len(sink.remarks) == remarks
    for text in sink.remarks:  # 2160 pixels of 6 bytes; 2400 of 2
        assert "about 12.66 KiB, and as an image it would take 4.688 KiB: use save_dense" in text


def test_what_readers_need_of_the_task_before_is_saved_with_the_pixels(tmp_path: Path) -> None:
    radius = np.hypot(*np.mgrid[:40, :60]).astype("f4")
    maps: dict[str, Array] = {"mask": np.eye(40, 60), "radius": radius, "dummy": np.array(7.0)}
    context = replace(context_of(tmp_path / "a", PIXELS), maps=maps)
    sink = started(SaveSparse(), PIXELS, context)
    sink.write(bright(0, 0.1))
    sink.finish()
    found = read(sink.files[0]).data
    for name, values in maps.items():
        assert np.array_equal(found[name], values)
        assert found[name].dtype == np.float32
    with h5py.File(sink.files[0]) as file:
        assert detector_group(file)["data"].attrs["dataformat"] == "sparsify-Bragg"


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([np.nan, 2, np.nan, 4, np.inf], [2, 2, 3, 4, 4]),
        ([np.nan] * 3, [0, 0, 0]),
        ([1, 2, 3], [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_background_has_no_gaps(levels: list[float], expected: list[float], dtype: str) -> None:
    given_levels = np.array([levels], dtype)
    before = given_levels.copy()
    assert without_gaps(given_levels).tolist() == [expected]
    assert np.array_equal(given_levels, before, equal_nan=True), "what is given is left as it is"
