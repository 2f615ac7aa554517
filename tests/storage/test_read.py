"""Reading our files again, and saying what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.geometry import Affine
from lima2py.storage.describe import describe, describe_plain
from lima2py.storage.read import RunFile
from tests.storage.made_up import LOST, MadeUpRun, numbers, round_robin

TURNED = FrameSpec.dense(4, 6, np.uint16, to_detector=Affine(0, 2, 10, -2, 0, 90))


def test_a_frame_is_found_by_its_number_in_both_kinds_of_file(tmp_path: Path) -> None:
    run = round_robin(TURNED, 20, 3, 2, absent=[4])
    made = run.write(tmp_path / "a")
    with RunFile(made.path) as master, RunFile(run.node_files[1][0]) as node:
        assert (len(master), len(node)) == (20, 9)
        assert node.index.tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
        assert (master.first(), node.first()) == (0, 3)
        for file, index in ((master, 7), (master, 10), (node, 10)):
            frame = file.frame(index)
            assert frame.data is not None
            assert np.array_equal(frame.data, run.expected()[index])
            assert frame.timestamp == 1e9 + index / 8
        assert node.frame(4).absence == LOST
        with pytest.raises(BadParameter, match=r"frame 8: .* has 9 frames from 3 to 17"):
            node.frame(8)
        with pytest.raises(BadParameter, match=r"frame -1: .* has 20 frames from 0 to 19"):
            master.frame(-1)


def test_the_sum_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    for dtype, none in ((np.uint16, 65535), (np.int32, 2**31 - 1), (np.float32, np.nan)):
        spec = FrameSpec.dense(2, 3, dtype)
        data = np.array([[[1, 2, none], [3, none, 5]], [[10, 20, none], [30, 40, 50]]], dtype)
        blocks = [
            (0, Block(spec, 0, 2, data[:, None])),
            (0, Block(spec, 2, 1, np.full((1, *spec.shape), 7, dtype), {0: LOST})),
        ]
        made = MadeUpRun(spec, blocks, 3, 2).write(tmp_path / spec.dtype.name)
        with RunFile(made.path) as file:
            total = file.total()
        assert total.mask.tolist() == [[False, False, True], [False, False, False]]
        assert total[~total.mask].tolist() == [11, 22, 33, 40, 55]


def test_a_sum_of_many_frames_does_not_overflow(tmp_path: Path) -> None:
    spec = FrameSpec.dense(1, 2, np.uint8)
    block = Block(spec, 0, 500, np.full((500, 1, 1, 2), 254, np.uint8))
    made = MadeUpRun(spec, [(0, block)], 500, 500).write(tmp_path / "a")
    with RunFile(made.path) as file:
        assert file.total().tolist() == [[127_000, 127_000]]


def test_what_is_not_ours_is_told_apart(tmp_path: Path) -> None:
    foreign, text, cut = (tmp_path / name for name in ("foreign.h5", "text.h5", "cut.h5"))
    with h5py.File(foreign, "w") as file:
        file.attrs["creator"] = "another program"
    text.write_text("no HDF5 at all" * 100)
    run = round_robin(TURNED, 4, 1, 1)
    run.write(tmp_path / "a")
    cut.write_bytes(Path(run.node_files[0][0]).read_bytes()[:2500])
    nameless = tmp_path / "nameless.h5"
    h5py.File(nameless, "w").close()
    for path, said in (
        (tmp_path / "gone.h5", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (text, "cannot be read: it is not an HDF5 file"),
        (cut, "cannot be read: it is cut off"),
        (foreign, "not a file of lima2py: it is made by another program"),
        (nameless, "not a file of lima2py: it is without the name of its maker"),
    ):
        with pytest.raises(StorageError, match=said) as caught:
            RunFile(path)
        assert str(caught.value).startswith(str(path))
        with pytest.raises(StorageError, match=said):
            describe(path)


def test_a_file_without_frames_says_so(tmp_path: Path) -> None:
    made = MadeUpRun(TURNED, [], 0).write(tmp_path / "a")
    with RunFile(made.path) as file:
        with pytest.raises(BadParameter, match=r"a_master\.h5 has no frames"):
            file.first()
        with pytest.raises(BadParameter, match=r"frame 0: .*a_master\.h5 has no frames"):
            file.frame(0)
    assert "frames        none" in describe(made.path)


def test_a_description_says_what_a_person_looks_for(tmp_path: Path) -> None:
    run = round_robin(TURNED, 60, 5, 2, absent=[3, 7, 8, 9, *range(20, 60, 2)])
    made = run.write(tmp_path / "a")
    text = describe(made.path)
    for said in (
        'a_master.h5: run "scan 42" (01234567), stopped',
        "frames        60 of 60 asked",
        "saved         36",
        "detector_gap  24: 3, 7-9, 20, 22, 24, 26, 28, 30, … (made up: lost on the way)",
        "each          4 × 6  uint16, 48 B",
        "to_detector   [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]",
        "detector      Eiger 4M / b (made up), 2162 × 2068 uint16",
        "acquisition   nb_frames 7, expo_time 250 ms",
        "raw  save_dense  from detector  4 × 6  uint16  to_detector [[0, 2, 10], [-2, 0, 90], [0,",
        "beam.direct  [10, 20, 30, 40]",
        "files         a_0_00000.h5, ",
        "errors        it was cold",
        "sha256",
    ):
        assert said in text
    Path(run.node_files[1][0]).unlink()
    assert "a_1_00000.h5 (missing)" in describe(made.path)
    assert "file of node node0 alone" in describe(run.node_files[0][0])


def test_a_description_lists_many_reasons_briefly(tmp_path: Path) -> None:
    spec = FrameSpec.dense(1, 2, np.uint16)
    missing = {i: Absence(Fate.OVERRUN, "ring", f"reason {i}") for i in range(20)}
    block = Block(spec, 0, 21, numbers(spec, 0, 21), missing)
    made = MadeUpRun(spec, [(0, block)], 21, 21).write(tmp_path / "a")
    text = describe(made.path)
    assert "7 (ring: reason 7); 12 more reasons" in text


def test_a_description_for_programs_is_json(tmp_path: Path) -> None:
    run = round_robin(TURNED, 12, 5, 2, absent=[3, 4])
    made = run.write(tmp_path / "a")
    plain = json.loads(json.dumps(describe_plain(made.path)))
    assert plain["fates"] == {"saved": 10, "detector_gap": 2}
    assert plain["absences"] == [[3, 4, "detector_gap", "made up", "lost on the way"]]
    assert plain["shape"] == [12, 4, 6]
    assert plain["outcome"] == "stopped"
    assert plain["product"]["to_detector"] == [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]
    assert plain["tasks"]["raw"]["to_detector"] == [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]
    assert plain["parameters"]["requested"] == {"acquisition": {"nb_frames": 7}}
    assert plain["rois"] == {"beam.direct": [10, 20, 30, 40]}
    assert plain["missing"] == []


def test_tables_are_described_by_their_rows_and_columns(tmp_path: Path) -> None:
    dtype = np.dtype([("min", "f8"), ("sum", "f8")])
    spec = FrameSpec("table", (2,), dtype, labels=("direct", "halo"))
    made = round_robin(spec, 4, 2, 1).write(tmp_path / "a")
    text = describe(made.path)
    assert "rows          direct, halo" in text
    assert "columns       min, sum" in text
