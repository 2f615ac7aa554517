"""The master shows every frame of all nodes, in order, and says what became of each."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import StorageError
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.geometry import Affine
from lima2py.storage import virtual
from lima2py.storage.master import FrameTable, write_master
from lima2py.storage.read import RunFile
from lima2py.testing.strategies import absences
from tests.storage.made_up import (
    LOST,
    MadeUpRun,
    context_of,
    files_no_larger_than,
    numbers,
    round_robin,
)

DATA = "entry_0000/instrument/Eiger_4M_b/data"
SMALL = FrameSpec.dense(4, 6, np.uint16)
SPECS = [
    SMALL,
    FrameSpec.dense(2, 3, np.float32, bands=3),
    FrameSpec.dense(130, 130, np.int32),
    FrameSpec("vector", (5,), np.dtype("f8")),
    FrameSpec("table", (2,), np.dtype([("sum", "f8"), ("n", "u4")]), labels=("a b", "a_b")),
]


@st.composite
def runs(draw: st.DrawFn) -> MadeUpRun:
    """Any order in which blocks may reach any node, some frames absent, some never acquired."""
    spec = draw(st.sampled_from(SPECS))
    nodes = draw(st.integers(1, 4))
    blocks, index = [], 0
    for count in draw(st.lists(st.integers(1, 9), max_size=12)):
        missing = draw(st.one_of(st.just({}), absences(count)))
        pixels = None if len(missing) == count else numbers(spec, index, count)
        times = {"timestamp": np.arange(index, index + count) * 0.5}
        blocks.append(Block(spec, index, count, pixels, missing, times))
        index += count + draw(st.sampled_from([0, 0, 0, 3]))
    if draw(st.booleans()):
        blocks = draw(st.permutations(blocks))
    ranks = [draw(st.integers(0, nodes - 1)) for _ in blocks]
    return MadeUpRun(
        spec, list(zip(ranks, blocks, strict=True)), index + 2, draw(st.sampled_from([1, 4, 16]))
    )


@settings(max_examples=60)
@given(runs(), st.sampled_from([0, virtual.MAX_MAPPINGS]))
def test_a_reader_sees_every_frame_in_its_place(run: MadeUpRun, most: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual, "MAX_MAPPINGS", most)
        made = run.write(Path(folder) / "a")
        assert made.problems == []
        with h5py.File(made.path) as file:
            assert file[DATA][:].tobytes() == run.expected().tobytes()
            assert file[DATA].id.get_create_plist().get_layout() == h5py.h5d.VIRTUAL
        with RunFile(made.path) as opened:
            assert opened.index.tolist() == list(range(run.nb_frames))
            assert opened.fate.tolist() == run.table.fate.tolist()
            assert opened.column("node").tolist() == run.table.node.tolist()
            assert opened.column("row").tolist() == run.table.row.tolist()
            had = run.table.row >= 0
            times = opened.column("timestamp")
            assert np.array_equal(times[had], np.arange(run.nb_frames)[had] * 0.5)
            assert np.isnan(times[~had]).all()
            told = {
                number: reason
                for first, last, reason in opened.absences
                for number in range(first, last + 1)
            }
            assert sorted(told) == np.flatnonzero(run.table.fate != Fate.SAVED).tolist()
            for number, reason in told.items():
                assert reason.cause == run.table.fate[number]
                if number in run.table.absences:
                    who = run.table.absences[number].who
                    assert reason.who == who
            assert sum(opened.counts.values()) == run.nb_frames


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=60),
    st.booleans(),
)
def test_stretches_and_series_cover_the_same_frames(
    pieces: list[tuple[int, int]], rows_jump: bool
) -> None:
    frames: list[int] = []
    rows: list[int] = []
    frame = row = 0
    for length, gap in pieces:
        frames += range(frame, frame + length)
        rows += range(row, row + length)
        frame += length + gap
        row += length + (gap if rows_jump else 0)
    given_pairs = list(zip(frames, rows, strict=True))
    cut = virtual.stretches(np.array(frames, np.int64), np.array(rows, np.int64))
    for found in (cut, list(virtual.series(cut))):
        pairs = [
            (part.frame + part.step * time + i, part.row + part.length * time + i)
            for part in found
            for time in range(part.times)
            for i in range(part.length)
        ]
        assert pairs == given_pairs
    assert len(list(virtual.series(cut))) <= len(cut)


def test_up_to_ten_thousand_frames_have_a_mapping_each(tmp_path: Path) -> None:
    made = round_robin(SMALL, 100, 8, 2, absent=[3, 99]).write(tmp_path / "a")
    with h5py.File(made.path) as file:
        assert len(file[DATA].virtual_sources()) == 100


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_two_hundred_thousand_frames_need_few_mappings(tmp_path: Path, nodes: int) -> None:
    spec = FrameSpec.dense(1, 2, np.uint16)
    run = round_robin(spec, 200_000, 256, nodes, absent=range(700, 199_999, 9973))
    made = run.write(tmp_path / "a", compression="none")
    with h5py.File(made.path) as file:
        assert len(file[DATA].virtual_sources()) <= 1000
        assert np.array_equal(file[DATA][:], run.expected())


def test_frames_dealt_out_one_by_one_become_series(tmp_path: Path) -> None:
    n = 30_001
    spec = FrameSpec.dense(1, 2, np.uint16)
    frames = np.arange(n)
    parts = [
        virtual.Part(tmp_path / f"{rank}.h5", "data", n, frames[rank::2], frames[rank::2] // 2)
        for rank in range(2)
    ]
    for rank in range(2):
        with h5py.File(tmp_path / f"{rank}.h5", "w") as file:
            file["data"] = (np.arange(n) * 2 + rank)[:, None, None] * np.ones((1, 1, 2))
    with h5py.File(tmp_path / "all.h5", "w", libver="v110") as file:
        made = virtual.create(file, "data", n, spec, parts)
        assert len(made.virtual_sources()) <= 4
        assert np.array_equal(made[:, 0, 0], frames % 2**16)


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    run = round_robin(SMALL, 20, 3, 2, absent=[5])
    (tmp_path / "before").mkdir()
    run.write(tmp_path / "before" / "100%b %s")
    shutil.move(tmp_path / "before", tmp_path / "after")
    with h5py.File(tmp_path / "after" / "100%b %s_master.h5") as file:
        assert np.array_equal(file[DATA][:], run.expected())


def test_frames_of_a_missing_file_read_as_the_fill_value_until_it_comes_back(
    tmp_path: Path,
) -> None:
    run = round_robin(SMALL, 20, 5, 2)
    run.write(tmp_path / "a")
    away = tmp_path / "away.h5"
    lost = Path(run.node_files[1][0])
    lost.rename(away)
    made = write_master(
        str(tmp_path / "a"), run.table, run.node_files, SMALL, context_of(tmp_path / "a", SMALL),
        outcome="failed",
    )  # fmt: skip
    assert made.problems == [f"{lost} cannot be found; 10 frames lie in it"]
    with RunFile(made.path) as opened:
        assert opened.errors == made.problems
        assert np.isnan(opened.column("timestamp")).sum() == 10
        seen = opened.frame(4).data
        assert seen is not None
        assert np.array_equal(seen, run.expected()[4])
        with pytest.raises(StorageError, match=r"the file of node 1 is not there, .*a_1_00000\.h5"):
            opened.frame(5)
        with pytest.raises(StorageError, match="keep all files of a run in one folder"):
            opened.total()
    with h5py.File(made.path) as file:
        expected = run.expected()
        expected[run.table.node == 1] = 65535
        assert np.array_equal(file[DATA][:], expected)
    away.rename(lost)
    with h5py.File(made.path) as file:
        assert np.array_equal(file[DATA][:], run.expected())


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 1000])
def test_a_damaged_file_does_not_spoil_the_frames_of_the_others(
    tmp_path: Path, damage: bytes
) -> None:
    run = round_robin(SMALL, 20, 5, 2)
    run.write(tmp_path / "a")
    Path(run.node_files[0][0]).write_bytes(damage)
    made = write_master(
        str(tmp_path / "a"), run.table, run.node_files, SMALL, context_of(tmp_path / "a", SMALL),
        outcome="failed",
    )  # fmt: skip
    (problem,) = made.problems
    assert problem.startswith(f"{run.node_files[0][0]} cannot be read: ")
    assert problem.endswith("; 10 frames lie in it")
    expected = run.expected()
    expected[run.table.node == 0] = 65535
    with h5py.File(made.path) as file:
        assert np.array_equal(file[DATA][:], expected)


def test_rows_that_hold_another_frame_are_not_shown(tmp_path: Path) -> None:
    run = round_robin(SMALL, 20, 5, 1)
    run.write(tmp_path / "a")
    rows = run.table.row.copy()
    rows[7], rows[9] = 8, 500
    wrong = FrameTable(run.table.fate, run.table.node, rows, {})
    made = write_master(
        str(tmp_path / "a"), wrong, run.node_files, SMALL, context_of(tmp_path / "a", SMALL),
        outcome="completed",
    )  # fmt: skip
    assert made.problems == [f"{run.node_files[0][0]} does not hold 2 frames it should"]
    expected = run.expected()
    expected[[7, 9]] = 65535
    with h5py.File(made.path) as file:
        assert np.array_equal(file[DATA][:], expected)


def test_a_node_without_a_file_is_told_of(tmp_path: Path) -> None:
    run = round_robin(SMALL, 4, 1, 1)
    run.write(tmp_path / "a")
    made = write_master(
        str(tmp_path / "a"), run.table, {}, SMALL, context_of(tmp_path / "a", SMALL),
        outcome="failed",
    )  # fmt: skip
    assert made.problems == ["node 0 names no file, though it had 4 frames"]


def test_a_run_without_frames_has_a_master_too(tmp_path: Path) -> None:
    made = MadeUpRun(SMALL, [], 0).write(tmp_path / "a")
    with RunFile(made.path) as opened:
        assert len(opened) == 0
        assert opened.outcome == "stopped"
        assert opened.counts == {}


def test_frames_that_were_never_acquired_are_one_absence(tmp_path: Path) -> None:
    table = FrameTable(
        np.full(100_000, Fate.ABORTED, np.uint8), np.full(100_000, -1, np.int16),
        np.full(100_000, -1, np.int64),
    )  # fmt: skip
    made = write_master(
        str(tmp_path / "a"), table, {}, SMALL, context_of(tmp_path / "a", SMALL), outcome="aborted"
    )
    with RunFile(made.path) as opened:
        assert opened.absences == [(0, 99_999, Absence(Fate.ABORTED, ""))]
        assert opened.counts == {"aborted": 100_000}


def test_everything_about_the_run_is_in_both_kinds_of_file(tmp_path: Path) -> None:
    matrix = Affine(2, 0, 5, 0, 4, 7)
    spec = FrameSpec.dense(4, 6, np.uint16, to_detector=matrix)
    run = round_robin(spec, 9, 2, 2, absent=[4])
    made = run.write(tmp_path / "a")
    context = context_of(tmp_path / "a", spec)
    for path in (made.path, run.node_files[1][0]):
        with RunFile(path) as opened:
            assert opened.spec == spec
            assert opened.parameters == context.parameters._asdict()
            assert opened.digests == context.parameters.digests()
            assert opened.graph == context.graph
            assert opened.detector == context.detector
            assert opened.rois == context.rois
            assert (opened.name, opened.sink, opened.run) == ("scan 42", "raw", context.run)
        with h5py.File(path) as file:
            detector = file["entry_0000/instrument/Eiger_4M_b"]
            assert detector["to_detector"][:].tolist() == [list(row) for row in matrix.matrix]
            assert detector["x_pixel_size"][()] == pytest.approx(150e-6)
            assert detector["y_pixel_size"][()] == pytest.approx(200e-6)
            assert detector["count_time"][()] == 0.25
            tree = detector["detector_information"]
            assert tree["info/shape"][:].tolist() == [2162, 2068]
            assert tree["parameters/threshold"][:].tolist() == [6.5, 9.0]
            assert "seed" not in tree["parameters"]
            said = file["entry_0000/lima2py/parameters/requested"]
            plain = json.loads(said.asstr()[()])
            text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
            assert said.attrs["sha256"] == hashlib.sha256(text.encode()).hexdigest()
            named = h5py.check_enum_dtype(detector["frames/fate"].dtype)
            assert named["detector_gap"] == 10
    with RunFile(made.path) as opened:
        assert (opened.outcome, opened.errors, opened.node) == ("stopped", ["it was cold"], None)
        assert [file.name for file in opened.files.values()] == ["a_0_00000.h5", "a_1_00000.h5"]
    with RunFile(run.node_files[1][0]) as opened:
        assert (opened.outcome, opened.errors, opened.node) == (None, [], "node1")


def test_a_master_replaces_the_one_before_in_one_step(tmp_path: Path) -> None:
    run = round_robin(SMALL, 6, 2, 1)
    first = run.write(tmp_path / "a")
    before = Path(first.path).read_bytes()
    context = context_of(tmp_path / "a", SMALL)
    with (
        files_no_larger_than(2000),
        pytest.raises(StorageError, match=r"a_master\.h5 cannot be written: File too large"),
    ):
        write_master(
            str(tmp_path / "a"), run.table, run.node_files, SMALL, context, outcome="failed"
        )
    assert Path(first.path).read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_0_00000.h5", "a_master.h5"]


def test_a_lost_frame_keeps_its_time_and_place(tmp_path: Path) -> None:
    made = round_robin(SMALL, 6, 2, 2, absent=[3]).write(tmp_path / "a")
    with RunFile(made.path) as opened:
        frame = opened.frame(3)
        assert frame.data is None
        assert frame.absence == LOST
        assert frame.timestamp == 1e9 + 3 / 8
