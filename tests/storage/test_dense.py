"""save_dense on one node: every frame comes back, whatever happens to the node or its disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.storage.dense import SaveDense
from lima2py.storage.layout import fill_value
from lima2py.storage.read import RunFile
from lima2py.storage.writer import ALONE, IMAGES_PER_CHUNK, ROWS_PER_CHUNK, frames_per_chunk
from lima2py.testing.strategies import absences
from tests.storage.made_up import LOST, context_of, files_no_larger_than, numbers, started

COUNTERS = np.dtype([("min", "u4"), ("sum", "f8")])
SMALL = FrameSpec.dense(4, 6, np.uint16)
LARGE = FrameSpec.dense(200, 200, np.uint32)

specs = st.one_of(
    st.builds(
        lambda height, width, dtype, bands: FrameSpec.dense(height, width, dtype, bands=bands),
        st.sampled_from([1, 7, 150]),
        st.sampled_from([3, 150]),
        st.sampled_from(["u1", "i1", ">u2", "i4", "u8", "f4", "f8"]),
        st.integers(1, 2),
    ),
    st.builds(
        lambda length, dtype: FrameSpec("vector", (length,), np.dtype(dtype)),
        st.sampled_from([1, 900]),
        st.sampled_from(["f4", "u4"]),
    ),
    st.just(FrameSpec("table", (2,), COUNTERS, labels=("direct beam", "halo"))),
)


def read(path: str) -> tuple[Array, Array, Array, Array]:
    """Data, index, fate and timestamp."""
    with RunFile(path) as file:
        data = file._data[:]
        return data, file.index, file.fate, file.column("timestamp")


@settings(max_examples=40)
@given(st.data(), specs, st.sampled_from(["none", "bslz4", "gzip"]), st.integers(1, 40))
def test_every_frame_comes_back_as_it_was_given(
    data: st.DataObject, spec: FrameSpec, compression: str, frames_per_block: int
) -> None:
    counts = data.draw(st.lists(st.integers(1, frames_per_block), min_size=1, max_size=8))
    flushes = data.draw(st.sets(st.integers(0, len(counts))))
    saved, fates, index = [], [], 5
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(Path(folder) / "a", spec, frames_per_block=frames_per_block)
        sink = started(SaveDense.load({"compression": compression}, "test"), spec, context)
        for number, count in enumerate(counts):
            missing = data.draw(absences(count))
            pixels = None if len(missing) == count else numbers(spec, index, count)
            columns = {"timestamp": np.arange(index, index + count) * 0.25}
            block = Block(spec, index, count, pixels, missing, columns)
            assert sink.write(block) == sum(counts[:number])
            for frame in block.frames():
                filled = np.broadcast_to(fill_value(spec.dtype), spec.saved_shape)
                saved.append(filled if frame.data is None else frame.data)
                fates.append(frame.absence.cause if frame.absence else Fate.SAVED)
            index += count
            if number in flushes:
                sink.flush()
        sink.finish()
        frames, indices, kept, times = read(sink.files[0])
        with RunFile(sink.files[0]) as file:
            told = {
                (number, reason.cause)
                for first, last, reason in file.absences
                for number in range(first, last + 1)
            }
    assert frames.dtype == spec.dtype
    assert frames.tobytes() == np.stack(saved).astype(spec.dtype).tobytes()
    assert kept.tolist() == fates
    assert indices.tolist() == list(range(5, index))
    assert np.array_equal(times, np.arange(5, index) * 0.25)
    assert told == {
        (number, fate) for number, fate in enumerate(fates, 5) if fate is not Fate.SAVED
    }


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
    for spec in (FrameSpec("vector", (500,), np.dtype("f4")), FrameSpec("table", (3,), COUNTERS)):
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


def test_frames_made_safe_are_not_moved_by_those_that_follow(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=8))
    places = set()
    for index in range(8):
        sink.write(Block(SMALL, index, 1, numbers(SMALL, index, 1)))
        sink.flush()
        with h5py.File(sink.files[0], "r", locking=False) as file:
            chunk = file["entry_0000/measurement/data"].id.get_chunk_info(0)
            places.add((chunk.byte_offset, chunk.size))
    sink.finish()
    assert len(places) == 1
    assert np.array_equal(read(sink.files[0])[0], numbers(SMALL, 0, 8)[:, 0])


def test_a_file_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=4))
    for index in range(0, 12, 4):
        sink.write(Block(SMALL, index, 4, numbers(SMALL, index, 4)))
        sink.flush()
        frames, indices, *_ = read(sink.files[0])
        assert indices.tolist() == list(range(index + 4))
        assert np.array_equal(frames, numbers(SMALL, 0, index + 4)[:, 0])
    sink.finish()


def test_values_a_detector_adds_to_each_frame_are_kept_from_when_they_come(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    given: list[dict[str, Array]] = [
        {},
        {"temperature": np.array([20.5], "f4"), "index": np.array([77])},
        {"temperature": np.array([21.5], "f4"), "hits/total": np.array([3], "u2")},
        {},
    ]
    for index, columns in enumerate(given):
        sink.write(Block(SMALL, index, 1, numbers(SMALL, index, 1), columns=columns))
        sink.flush()
    sink.finish()
    with RunFile(sink.files[0]) as file:
        assert file.index.tolist() == [0, 1, 2, 3]
        assert file.column("hits_total").tolist() == [0, 0, 3, 0]
        assert file.column("detector_index").tolist() == [0, 77, 0, 0]
        assert np.array_equal(
            file.column("temperature"), [np.nan, 20.5, 21.5, np.nan], equal_nan=True
        )


def test_images_cut_out_of_larger_ones_are_saved_too(tmp_path: Path) -> None:
    whole = np.arange(3 * 10 * 12, dtype=np.uint16).reshape(3, 1, 10, 12)
    cut = whole[:, :, 2:6, ::-2]
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=3))
    sink.write(Block(SMALL, 0, 3, cut))
    sink.finish()
    assert np.array_equal(read(sink.files[0])[0], cut[:, 0])


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    path = tmp_path / "a_0_00000.h5"
    path.write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be made: .*exists.*overwrite"):
        started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    assert path.read_bytes() == b"precious"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is the disk mounted"):
        started(SaveDense(), SMALL, context_of(tmp_path / "gone" / "a", SMALL))


def test_a_file_that_never_got_a_frame_is_removed(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    assert sink.files == [str(tmp_path / "a_0_00000.h5")]
    sink.finish()
    assert sink.files == []
    assert list(tmp_path.iterdir()) == []
    sink.finish()


def test_finishing_what_was_never_started_does_nothing() -> None:
    sink = SaveDense()
    sink.prepare(SMALL)
    sink.finish()
    assert sink.files == []
    with pytest.raises(StorageError, match="not started"):
        sink.write(Block(SMALL, 0, 1, numbers(SMALL, 0, 1)))


@pytest.mark.parametrize(
    "spec",
    [
        FrameSpec("sparse", (3, 4), np.dtype("u2")),
        FrameSpec("vector", (3,), np.dtype(object)),
        FrameSpec("vector", (3,), np.dtype("U4")),
    ],
)
def test_what_cannot_be_saved_is_refused_at_prepare(spec: FrameSpec) -> None:
    with pytest.raises(BadParameter, match=r"^from: .*cannot (be saved|save.*Session.stream)"):
        SaveDense().prepare(spec)


def test_a_template_with_an_unknown_place_is_refused_at_prepare() -> None:
    with pytest.raises(BadParameter, match=r"^file: .*\{nmae\}.*did you mean \"name\""):
        SaveDense.load({"file": "{nmae}"}, "test").prepare(SMALL)


WRITER = """
import os, sys
import numpy as np
from pathlib import Path
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.storage.dense import SaveDense
from tests.storage.made_up import LOST, context_of, files_no_larger_than, numbers, started

spec = FrameSpec.dense(int(sys.argv[2]), 60, np.uint16)
context = context_of(Path(sys.argv[1]), spec, frames_per_block=16)
sink = started(SaveDense(), spec, context)
index = 0
while True:
    for _ in range(3):
        gone = {1: LOST} if index % 9 == 0 else {}
        sink.write(Block(spec, index, 5, numbers(spec, index, 5), gone))
        index += 5
    sink.flush()
    os.write(1, b"%d\\n" % index)
    sink.write(Block(spec, index, 1, numbers(spec, index, 1)))
    index += 1
"""


@pytest.mark.parametrize("height", [20, 300])
def test_flushed_frames_survive_a_killed_writer(tmp_path: Path, height: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a"), str(height)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert writer.stdout is not None
    for _ in range(20):
        line = writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    lines = [line, *writer.stdout.read().splitlines()]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    safe = int(lines[-1])
    assert safe >= 300
    frames, indices, fates, _ = read(str(tmp_path / "a_0_00000.h5"))
    assert indices[:safe].tolist() == list(range(safe))
    spec = FrameSpec.dense(height, 60, np.uint16)
    here = fates[:safe] == Fate.SAVED
    assert 0 < (~here).sum() < 20
    assert np.array_equal(frames[:safe][here], numbers(spec, 0, safe)[:, 0][here])
    assert (frames[:safe][~here] == 65535).all()


@pytest.mark.parametrize("side", [32, 200])
def test_what_was_acknowledged_outlives_a_disk_that_was_full(tmp_path: Path, side: int) -> None:
    spec = FrameSpec.dense(side, side, np.uint16)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 65535, (250, 1, 1, side, side)).astype(np.uint16)
    sink = started(SaveDense(), spec, context_of(tmp_path / "a", spec))
    safe: dict[int, int] = {}
    errors: list[str] = []

    def write(indices: range) -> None:
        rows: dict[int, int] = {}
        for index in indices:
            try:
                rows[index] = sink.write(Block(spec, index, 1, images[index]))
            except StorageError as error:
                errors.append(str(error))
        try:
            sink.flush()
            safe.update(rows)
        except StorageError as error:
            errors.append(str(error))

    write(range(4))
    size = os.path.getsize(sink.files[0])
    with files_no_larger_than(size + 4 * spec.nbytes):
        for index in range(4, 200, 7):
            write(range(index, index + 7))
    assert errors
    for error in errors:
        assert error.startswith(sink.files[0])
        assert "File too large" in error
        assert "free on that disk" in error
    lost = len(errors)
    for index in range(200, 250, 5):
        write(range(index, index + 5))
    assert len(errors) == lost
    assert safe.keys() >= {0, 1, 2, 3, *range(200, 250)}
    sink.finish()
    frames, indices, fates, _ = read(sink.files[0])
    assert len(frames) == len(indices)
    for index, row in safe.items():
        assert indices[row] == index
        assert fates[row] == Fate.SAVED
        assert np.array_equal(frames[row], images[index, 0, 0])


def test_a_file_that_cannot_be_closed_is_told_of_and_let_go(tmp_path: Path) -> None:
    context = context_of(tmp_path / "a", LARGE)
    sink = started(SaveDense.load({"compression": "none"}, "test"), LARGE, context)
    sink.write(Block(LARGE, 0, 1, numbers(LARGE, 0, 1)))
    with (
        files_no_larger_than(1000),
        pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be .*: File too large"),
    ):
        sink.finish()
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert sink.files[0] not in opened
    following = started(SaveDense(), LARGE, replace(context, paths={"raw": str(tmp_path / "b")}))
    following.write(Block(LARGE, 0, 1, numbers(LARGE, 0, 1)))
    following.finish()
    assert np.array_equal(read(following.files[0])[0], numbers(LARGE, 0, 1)[:, 0])


def test_reasons_of_any_text_are_kept(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=4))
    reasons = [
        Absence(Fate.OVERRUN, "ring", "né\0\ud800"),
        Absence(Fate.OVERRUN, "ring", "né\0\ud800"),
        Absence(Fate.REJECTED, "veto", ""),
    ]
    sink.write(Block(SMALL, 0, 4, numbers(SMALL, 0, 4), dict(enumerate(reasons))))
    sink.finish()
    with RunFile(sink.files[0]) as file:
        assert file.absences == [
            (0, 1, Absence(Fate.OVERRUN, "ring", "né\ufffd?")),
            (2, 2, Absence(Fate.REJECTED, "veto", "")),
        ]
        assert all(a[1] < b[0] for a, b in pairwise(file.absences))
