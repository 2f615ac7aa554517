"""The master shows every frame of all nodes, in order, and says what became of each."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import StorageError
from lima2py.frame import Absence, Fate, FrameSpec
from lima2py.geometry import Affine
from lima2py.storage.care.verify import verify
from lima2py.storage.entry import run_of, spec_of
from lima2py.storage.masters import virtual
from lima2py.storage.masters.master import FrameTable
from lima2py.storage.reasons import Reasons
from tests.storage.made_up import (
    GROUP,
    LOST,
    MadeUpRun,
    files_no_larger_than,
    round_robin,
)
from tests.storage.plain import read

OURS = "entry_0000/lima2py"
DATA = f"entry_0000/{GROUP}/data"
SMALL = FrameSpec.dense(4, 6, np.uint16)


def errors_in(path: str) -> list[str]:
    """What a master says went wrong."""
    with h5py.File(path) as file:
        return list(file[f"{OURS}/errors"].asstr()[()])


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
    one_by_one = [virtual.Series(frame, row, n, n, 1) for frame, row, n in cut.tolist()]
    for found in (one_by_one, virtual.series(cut)):
        pairs = [
            (part.frame + part.step * time + i, part.row + part.length * time + i)
            for part in found
            for time in range(part.times)
            for i in range(part.length)
        ]
        assert pairs == given_pairs
    assert len(virtual.series(cut)) <= len(cut)


def test_frames_have_a_mapping_each_as_long_as_they_are_few(tmp_path: Path) -> None:
    made = round_robin(SMALL, 100, 8, 2, absent=[3, 99]).write(tmp_path / "a")
    with h5py.File(made) as file:
        assert len(file[DATA].virtual_sources()) == 100


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_two_hundred_thousand_frames_need_few_mappings(tmp_path: Path, nodes: int) -> None:
    spec = FrameSpec.dense(1, 2, np.uint16)
    run = round_robin(spec, 200_000, 256, nodes, absent=range(700, 199_999, 9973))
    made = run.write(tmp_path / "a", compression="none")
    with h5py.File(made) as file:
        assert len(file[DATA].virtual_sources()) <= 1000
        assert np.array_equal(file[DATA][:], run.expected())


def test_a_veto_of_every_other_frame_needs_no_more_mappings(tmp_path: Path) -> None:
    spec = FrameSpec.dense(1, 2, np.uint16)
    run = round_robin(spec, 20_000, 256, 2, absent=range(1, 20_000, 2))
    made = run.write(tmp_path / "a", compression="none")
    with h5py.File(made) as file:
        assert len(file[DATA].virtual_sources()) <= 100
        assert np.array_equal(file[DATA][:], run.expected())
    assert verify(Path(made)).problems == []


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
    made = run.write_master(tmp_path / "a")
    assert run.problems == [
        f"{lost} cannot be found",
        f"node 1 had 10 frames that none of its files holds: {lost}",
    ]
    assert errors_in(made) == ["it was cold", *run.problems]
    seen = read(made)
    assert np.isnan(seen.frames["timestamp"]).sum() == 10
    expected = run.expected()
    expected[run.table.node == 1] = 65535
    assert np.array_equal(seen.data["data"], expected)
    away.rename(lost)
    made = run.write_master(tmp_path / "a")
    assert run.problems == []
    lost.rename(away)
    assert np.array_equal(read(made).data["data"], expected)
    away.rename(lost)
    assert np.array_equal(read(made).data["data"], run.expected())


def test_files_that_were_never_finished_are_found_under_the_name_they_have(tmp_path: Path) -> None:
    run = round_robin(SMALL, 20, 5, 2)
    run.write(tmp_path / "a")
    Path(run.node_files[1][0]).rename(f"{run.node_files[1][0]}.part")
    made = run.write_master(tmp_path / "a")
    assert run.problems == []
    assert np.array_equal(read(made).data["data"], run.expected())
    with h5py.File(made) as file:
        named = file[f"{OURS}/files/name"].asstr()[()].tolist()
    assert named == ["a_0_00000.h5", "a_1_00000.h5.part"]


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 1000])
def test_a_damaged_file_does_not_spoil_the_frames_of_the_others(
    tmp_path: Path, damage: bytes
) -> None:
    run = round_robin(SMALL, 20, 5, 2)
    run.write(tmp_path / "a")
    path = run.node_files[0][0]
    Path(path).write_bytes(damage)
    made = run.write_master(tmp_path / "a")
    first, second = run.problems
    assert first.startswith(f"{path} cannot be read: ")
    assert second == f"node 0 had 10 frames that none of its files holds: {path}"
    expected = run.expected()
    expected[run.table.node == 0] = 65535
    assert np.array_equal(read(made).data["data"], expected)


def test_one_of_several_files_of_a_node_that_is_gone_costs_its_frames_alone(tmp_path: Path) -> None:
    run = round_robin(SMALL, 20, 5, 1)
    run.write(tmp_path / "a", frames_per_file=7)
    Path(run.node_files[0][1]).unlink()
    made = run.write_master(tmp_path / "a")
    files = ", ".join(run.node_files[0])
    assert run.problems == [
        f"{run.node_files[0][1]} cannot be found",
        f"node 0 had 7 frames that none of its files holds: {files}",
    ]
    expected = run.expected()
    expected[7:14] = 65535
    assert np.array_equal(read(made).data["data"], expected)


def test_rows_that_hold_another_frame_are_not_shown(tmp_path: Path) -> None:
    run = round_robin(SMALL, 20, 5, 1, absent=[12])
    run.write(tmp_path / "a")
    rows, fate = run.table.row.copy(), run.table.fate.copy()
    rows[7], rows[9] = 8, 500
    fate[12] = Fate.SAVED  # the file says it is absent
    run.table = FrameTable(fate, run.table.node, rows, Reasons(len(fate)))
    made = run.write_master(tmp_path / "a")
    assert run.problems == [
        f"node 0 had 3 frames that none of its files holds: {run.node_files[0][0]}"
    ]
    expected = run.expected()
    expected[[7, 9, 12]] = 65535
    assert np.array_equal(read(made).data["data"], expected)


def test_a_node_without_a_file_is_told_of(tmp_path: Path) -> None:
    run = round_robin(SMALL, 4, 1, 1)
    run.write(tmp_path / "a")
    run.node_files = {}
    run.write_master(tmp_path / "a")
    assert run.problems == ["node 0 had 4 frames that none of its files holds: it names no file"]


@pytest.mark.parametrize(
    "spec", [SMALL, FrameSpec("sparse", (1, 4, 6), np.dtype([("index", "u4"), ("value", "u2")]))],
    ids=str,
)  # fmt: skip
def test_a_run_without_frames_has_a_master_too(tmp_path: Path, spec: FrameSpec) -> None:
    made = MadeUpRun(spec, [], 0).write(tmp_path / "a")
    seen = read(made)
    assert len(seen.frames["index"]) == 0
    assert seen.absences == {}
    with h5py.File(made) as file:
        assert file[f"{OURS}/outcome"].asstr()[()] == "stopped"
        assert len(file[f"{OURS}/frames_by_fate"]) == 0


def test_frames_that_were_never_acquired_are_one_absence(tmp_path: Path) -> None:
    run = MadeUpRun(SMALL, [], 100_000)
    made = run.write(tmp_path / "a")
    with h5py.File(made) as file:
        table = file[f"entry_0000/{GROUP}/absences"]
        assert table["first"][()].tolist() == [0]
        assert table["last"][()].tolist() == [99_999]
        assert file[f"{OURS}/frames_by_fate/not_acquired"][()] == 100_000
    assert read(made).absences[77] == Absence(Fate.NOT_ACQUIRED, "")


def test_everything_about_the_run_is_in_both_kinds_of_file(tmp_path: Path) -> None:
    matrix = Affine(2, 0, 5, 0, 4, 7)
    spec = FrameSpec.dense(4, 6, np.uint16, to_detector=matrix)
    run = round_robin(spec, 9, 2, 2, absent=[4])
    made = run.write(tmp_path / "a")
    context = run.context(tmp_path / "a")
    for path in (made, run.node_files[1][0]):
        with h5py.File(path) as file:
            entry = file["entry_0000"]
            assert spec_of(entry) == spec
            said = run_of(entry)
            assert said.parameters == context.parameters
            assert (said.graph, said.detector, said.rois) == (
                context.graph, context.detector, context.rois,
            )  # fmt: skip
            assert (said.name, said.task, said.run) == ("scan 42", "raw", context.run)
            assert entry["title"].asstr()[()] == "scan 42"
            assert entry["lima2py/sink"].asstr()[()] == "raw"
            detector = file[f"entry_0000/{GROUP}"]
            assert detector["to_detector"][:].tolist() == [list(row) for row in matrix.matrix]
            named = h5py.check_enum_dtype(detector["frames/fate"].dtype)
            assert named["detector_gap"] == 10
    with h5py.File(run.node_files[1][0]) as file:
        assert file[OURS].attrs["node"] == "node1"
        assert file[OURS].attrs["rank"] == 1
    with h5py.File(made) as file:
        tree = file[f"entry_0000/{GROUP}/detector_information"]
        assert tree["info/shape"][:].tolist() == [2162, 2068]
        assert tree["parameters/threshold"][:].tolist() == [6.5, 9.0]
        assert "seed" not in tree["parameters"]
        said = file[f"{OURS}/parameters/requested"]
        plain = json.loads(said.asstr()[()])
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        assert said.attrs["sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert file[f"{OURS}/outcome"].asstr()[()] == "stopped"
        assert file[f"{OURS}/frames_by_fate/saved"][()] == 8
        names = file[f"{OURS}/files/name"].asstr()[()].tolist()
        assert names == ["a_0_00000.h5", "a_1_00000.h5"]
    assert errors_in(made) == ["it was cold"]


def test_a_master_replaces_the_one_before_in_one_step(tmp_path: Path) -> None:
    run = round_robin(SMALL, 6, 2, 1)
    first = Path(run.write(tmp_path / "a"))
    before = first.read_bytes()
    with (
        files_no_larger_than(2000),
        pytest.raises(StorageError, match=r"a_master\.h5 cannot be written: File too large"),
    ):
        run.write_master(tmp_path / "a")
    assert first.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_0_00000.h5", "a_master.h5"]


def test_a_lost_frame_keeps_its_time_and_place(tmp_path: Path) -> None:
    seen = read(round_robin(SMALL, 6, 2, 2, absent=[3]).write(tmp_path / "a"))
    assert seen.absences == {3: LOST}
    assert seen.frames["timestamp"][3] == 1e9 + 3 / 8
    assert (seen.data["data"][3] == 65535).all()
