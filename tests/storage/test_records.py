"""What is kept of every frame besides its data, block by block."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.storage.saving.records import Records, checksums
from tests.storage.made_up import LOST, MadeUpRun, context_of, numbers, sink_for, started
from tests.storage.plain import Plain, detector_group, read

SMALL = FrameSpec.dense(4, 6, np.uint16)
COUNTERS = np.dtype([("min", "u4"), ("sum", "f8")])


def written(path: Path, *blocks: Block, spec: FrameSpec = SMALL) -> str:
    """The file of a node that was given these blocks, and made safe after each."""
    sink = started(sink_for(spec), spec, context_of(path / "a", spec, frames_per_block=4))
    for block in blocks:
        sink.write(block)
        sink.flush()
    sink.finish()
    (file,) = sink.files
    return file


def block(index: int, count: int = 1, **changes: object) -> Block:
    return Block(SMALL, index, count, numbers(SMALL, index, count), **changes)  # type: ignore[arg-type]


def test_values_a_detector_adds_to_each_frame_are_kept_from_when_they_come(tmp_path: Path) -> None:
    given: list[dict[str, Array]] = [
        {},
        {"temperature": np.array([20.5], "f4"), "index": np.array([77])},
        {"temperature": np.array([21.5], "f4"), "hits/total": np.array([3], "u2")},
        {},
    ]
    blocks = [block(index, columns=columns) for index, columns in enumerate(given)]
    frames = read(written(tmp_path, *blocks)).frames
    assert frames["index"].tolist() == [0, 1, 2, 3]
    assert frames["hits_total"].tolist() == [0, 0, 3, 0]
    assert frames["detector_index"].tolist() == [0, 77, 0, 0]
    assert np.array_equal(frames["temperature"], [np.nan, 20.5, 21.5, np.nan], equal_nan=True)
    assert np.isnan(frames["timestamp"]).all()


def test_reasons_of_any_text_are_kept(tmp_path: Path) -> None:
    reasons = [
        Absence(Fate.OVERRUN, "ring", "né\0\ud800"),
        Absence(Fate.OVERRUN, "ring", "né\0\ud800"),
        Absence(Fate.REJECTED, "veto", ""),
    ]
    seen = read(written(tmp_path, block(0, 4, absences=dict(enumerate(reasons)))))
    assert seen.absences == {
        0: Absence(Fate.OVERRUN, "ring", "né\ufffd?"),
        1: Absence(Fate.OVERRUN, "ring", "né\ufffd?"),
        2: Absence(Fate.REJECTED, "veto", ""),
    }


@given(st.lists(st.lists(st.sampled_from([None, LOST, Absence(Fate.REJECTED, "veto")]),
                         min_size=1, max_size=4), max_size=6))  # fmt: skip
def test_every_absent_frame_is_told_of_once_in_the_order_in_which_they_came(
    given_blocks: list[list[Absence | None]],
) -> None:
    with h5py.File("a.h5", "w", driver="core", backing_store=False) as file:
        records = Records(file.create_group("d"), SMALL, checksum=False)
        expected, index = {}, 0
        for said in given_blocks:
            absences = {offset: why for offset, why in enumerate(said) if why is not None}
            expected.update({index + offset: why for offset, why in absences.items()})
            records.note(block(index, len(said), absences=absences))
            records.write_words()
            records.write_words()  # a disk that was full may ask for it again
            records.write()
            index += len(said)
        table = file["d/absences"]
        found = {}
        for first, last, fate, who in zip(
            *(table[name][()].tolist() for name in ("first", "last", "fate")),
            table["who"].asstr()[()], strict=True,
        ):  # fmt: skip
            for frame in range(first, last + 1):
                found[frame] = (fate, who)
        assert found == {frame: (why.cause, why.who) for frame, why in expected.items()}
        assert list(found) == sorted(found)
        fates = file["d/frames/fate"][()]
        assert np.flatnonzero(fates != Fate.SAVED).tolist() == sorted(expected)


def test_frames_that_follow_each_other_for_one_reason_are_one_row(tmp_path: Path) -> None:
    other = Absence(Fate.OVERRUN, "ring")
    said = {0: LOST, 1: LOST, 2: other, 3: LOST}
    with h5py.File(written(tmp_path, block(10, 4, absences=said))) as file:
        table = detector_group(file)["absences"]
        assert table["first"][()].tolist() == [10, 12, 13]
        assert table["last"][()].tolist() == [11, 12, 13]


def test_the_curves_of_a_table_follow_its_rows(tmp_path: Path) -> None:
    spec = FrameSpec("table", (2,), COUNTERS, labels=("direct beam", "halo"))
    rows = np.zeros((3, 2), COUNTERS)
    rows["sum"] = [[1, 2], [3, 4], [5, 6]]
    first = Block(spec, 0, 3, rows, {1: LOST})
    path = written(tmp_path, first, Block.absent(spec, 3, 2, LOST), spec=spec)
    with h5py.File(path) as file:
        plot = detector_group(file)["plot"]
        assert plot.attrs["signal"] == "direct_beam_sum"
        assert list(plot.attrs["auxiliary_signals"]) == ["halo_sum"]
        nan = np.nan
        assert np.array_equal(plot["direct_beam_sum"], [1, nan, 5, nan, nan], equal_nan=True)
        assert np.array_equal(plot["halo_sum"], [2, nan, 6, nan, nan], equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "sparse", "encoded"])
def test_the_checksum_of_a_frame_is_that_of_the_bytes_in_it(kind: str) -> None:
    if kind == "dense":
        whole = np.arange(2 * 10 * 12, dtype="u2").reshape(2, 1, 10, 12)
        given = Block(SMALL, 0, 2, whole[:, :, 2:6, ::-2])
        parts = [frame.tobytes() for frame in given.pixels]
    elif kind == "sparse":
        columns = {"index": np.array([5, 7, 9], "u4"), "value": np.array([1, 2, 3], "u2")}
        rows = Ragged.of(np.array([1, 2]), columns)
        given = Block(FrameSpec("sparse", (1, 4, 6), rows.dtype), 0, 2, rows)
        parts = [
            np.array([5], "u4").tobytes() + np.array([1], "u2").tobytes(),
            np.array([7, 9], "u4").tobytes() + np.array([2, 3], "u2").tobytes(),
        ]
    else:
        spec = FrameSpec.encoded(SMALL, "bslz4", 9)
        sizes = {SIZES: np.array([4, 9], "u8")}
        given = Block(spec, 0, 2, np.arange(18, dtype="u1").reshape(2, 9), columns=sizes)
        parts = [bytes([0, 1, 2, 3]), bytes(range(9, 18))]
    assert checksums(given).tolist() == [zlib.crc32(part) for part in parts]
    refused = given.refuse({1: LOST})
    assert checksums(refused).tolist() == [zlib.crc32(parts[0]), 0]


def test_a_record_that_came_late_reads_as_unknown_before_in_the_master_too() -> None:
    late = {"pulse": np.array([4, 5, 6, 7], "u8")}
    run = MadeUpRun(SMALL, [(0, block(0, 4)), (1, block(4, 4, columns=late))], 9)
    with tempfile.TemporaryDirectory() as folder:
        seen: Plain = read(run.write(Path(folder) / "a"))
    assert seen.frames["pulse"].tolist() == [0, 0, 0, 0, 4, 5, 6, 7, 0]
