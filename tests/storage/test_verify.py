"""What is wrong with files is found, and what is right is not blamed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.control import cli
from lima2py.errors import StorageError
from lima2py.frame import Fate, FrameSpec
from lima2py.session.session import Session
from lima2py.storage.care.verify import Verdict, in_words, verify
from tests.storage.left_behind import IMAGES, PIXELS, TABLE, at_work, block_of
from tests.storage.made_up import GROUP, LOST, MadeUpRun

KINDS = {
    "dense": IMAGES,
    "bands": FrameSpec.dense(5, 4, np.float32, bands=2),
    "vector": FrameSpec("vector", (7,), np.dtype("f4")),
    "table": TABLE,
    "sparse": PIXELS,
}

ALONE = FrameSpec.dense(200, 100, np.uint16)
"""Each has a chunk of its own."""


def run_of(spec: FrameSpec, count: int = 24) -> MadeUpRun:
    """Frames of two nodes; one is absent."""
    blocks = []
    for number, index in enumerate(range(0, count, 2)):
        block = block_of(spec, index, 2, absences={1: LOST} if index == 6 else {})
        blocks.append((number % 2, block))
    return MadeUpRun(spec, blocks, count, 2)


def written(folder: Path, spec: FrameSpec = IMAGES, **fields: object) -> Path:
    """The master of such a run."""
    folder.mkdir(exist_ok=True)
    return Path(run_of(spec).write(folder / "scan", **{"checksum": True, **fields}))


def problems(path: Path) -> str:
    """What is wrong, which must be something."""
    found = verify(path, pixels=True).problems
    assert found
    return "\n".join(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"checksum": False, "frames_per_file": 5}])
def test_a_good_run_is_good(tmp_path: Path, kind: str, fields: dict[str, object]) -> None:
    master = written(tmp_path, KINDS[kind], **fields)
    verdict = verify(master, pixels=True)
    assert verdict.problems == []
    assert verdict.kind == "master"
    assert verdict.frames == {"raw": {"saved": 23, "detector_gap": 1}}
    assert verdict.read == 23
    assert verdict.compared == (23 if not fields else 0)
    nodes = sorted(tmp_path.glob("scan_[01]_*.h5"))
    assert verdict.files == len(nodes)
    for node in nodes:
        assert verify(node, pixels=True).problems == []


@pytest.mark.parametrize("many", [300, 2400])
def test_long_runs_shuffled_between_nodes_are_good(tmp_path: Path, many: int) -> None:
    """One mapping a frame, and one for series of them; sparse columns that are copied."""
    order = np.random.default_rng(many).integers(0, 3, many).tolist()
    for number, spec in enumerate((FrameSpec.dense(1, 2, np.uint8), PIXELS)):
        (folder := tmp_path / f"{number}").mkdir()
        blocks = [(rank, block_of(spec, index, 1)) for index, rank in enumerate(order)]
        master = Path(MadeUpRun(spec, blocks, many).write(folder / "scan"))
        assert verify(master, pixels=True).problems == []


def test_a_change_in_a_column_that_is_copied_is_found(tmp_path: Path) -> None:
    order = np.random.default_rng(1).integers(0, 3, 5000).tolist()
    blocks = [(rank, block_of(PIXELS, index, 1)) for index, rank in enumerate(order)]
    master = Path(MadeUpRun(PIXELS, blocks, 5000).write(tmp_path / "scan"))
    with h5py.File(master, "a") as file:
        data = file[f"entry_0000/{GROUP}/data"]
        assert not data["intensity"].is_virtual
        data["intensity"][data["frame_ptr"][31]] = 1
    assert problems(master) == "raw: the dataset does not show what the records say for frame 31"


def in_chunk_of(path: Path, row: int) -> int:
    """A place in the file that belongs to a row."""
    with h5py.File(path) as file:
        data = file[f"entry_0000/{GROUP}/data"]
        if isinstance(data, h5py.Group):  # all pixels lie in one chunk, uncompressed
            at = int(data["frame_ptr"][row]) * 2  # bytes of an intensity
            begin: int = data["intensity"].id.get_chunk_info(0).byte_offset
            return begin + at
        chunk = data.id.get_chunk_info_by_coord((row, 0, 0))
        middle: int = chunk.byte_offset + chunk.size // 2
        return middle


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("compression", ["none", "bslz4", "bszstd", "gzip", "blosc2"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_flipped_byte_is_found(tmp_path: Path, kind: str, compression: str) -> None:
    spec = ALONE if kind == "dense" else PIXELS
    master = written(tmp_path, spec, compression=compression)
    node = tmp_path / "scan_1_00000.h5"
    flip(node, in_chunk_of(node, 4))
    assert verify(master).problems == []  # nobody has read the frames
    for path in (master, node):
        assert "scan_1_00000.h5 " in problems(path)
        assert verify(path, pixels=True).read
    assert verify(tmp_path / "scan_0_00000.h5", pixels=True).problems == []


def test_frames_as_the_detector_compressed_them_and_accumulations_are_checked(
    tmp_path: Path,
) -> None:
    (tmp_path / "graph.yaml").write_text(
        "tasks:\n  kept: {do: save_raw, from: detector, checksum: true, frames_per_file: 20}\n"
        "  images: {do: decode, from: detector}\n"
        "  sums: {do: accumulate, from: images, frames: 4}\n"
        "  added: {do: save_dense, from: sums, checksum: true}\n"
    )
    detector = {"encoding": "bslz4", "shape": [48, 64], "drop": [5]}
    with Session.open("simulator", detector=detector) as session:
        session.prepare(
            graph=tmp_path / "graph.yaml", output=tmp_path, nb_frames=48, expo_time=1e-6
        )
        session.start()
        masters = session.wait(30).masters
    for sink, count in (("kept", 47), ("added", 11)):
        verdict = verify(Path(masters[sink]), pixels=True)
        assert verdict.problems == []
        assert verdict.read == verdict.compared == count
    node = tmp_path / "run_kept_0_00001.h5"
    with h5py.File(node) as file:
        data = file["entry_0000/measurement/data"]
        chunk = data.id.get_chunk_info_by_coord((3, 0, 0))
    flip(node, chunk.byte_offset + chunk.size - 3)
    assert problems(Path(masters["kept"])).endswith(" frame 23")


def test_the_frames_that_have_changed_are_named(tmp_path: Path) -> None:
    master = written(tmp_path, ALONE, compression="none")
    node = tmp_path / "scan_1_00000.h5"
    for row in (2, 5):  # of this node: frames 2, 3, 6, 7, 10, 11 ...
        flip(node, in_chunk_of(node, row))
    assert problems(master) == (
        "raw: scan_1_00000.h5 has changed since it was written, in frames 6, 11"
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def test_a_node_file_that_is_cut_off_is_found(tmp_path: Path) -> None:
    master = written(tmp_path)
    cut(tmp_path / "scan_0_00000.h5")
    assert "scan_0_00000.h5 cannot be read: it is cut off" in problems(master)
    assert "no file of a node holds frames 0-1, 4-5, 8-9" in problems(master)
    with pytest.raises(StorageError, match="cut off"):
        verify(tmp_path / "scan_0_00000.h5")


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_node_file_that_is_not_there_is_found(tmp_path: Path, kind: str) -> None:
    master = written(tmp_path, KINDS[kind])
    (tmp_path / "scan_1_00000.h5").unlink()
    assert problems(master) == (
        "raw: scan_1_00000.h5 is not there\n"
        "raw: no file of a node holds frames 2-3, 6, 10-11, 14-15, 18-19, 22-23"
    )


def test_a_node_file_of_another_run_is_found(tmp_path: Path) -> None:
    master = written(tmp_path / "one")
    with at_work(tmp_path / "two") as nodes:
        for index in range(2, 24, 4):
            nodes.write(1, index, 2)
        nodes.finish()
    other = tmp_path / "two" / "scan_1_00000.h5"
    with h5py.File(other, "a") as file:
        about = file["entry_0000/lima2py"]
        text = about["run"].asstr()[()].replace("0123456789abcdef" * 2, "f" * 32)
        del about["run"]
        about["run"] = text
    shutil.copy(other, tmp_path / "one" / "scan_1_00000.h5")
    assert "scan_1_00000.h5 is of another run, ffffffff, not 01234567" in problems(master)


def test_a_file_in_place_of_that_of_another_node_is_found(tmp_path: Path) -> None:
    master = written(tmp_path)
    shutil.copy(tmp_path / "scan_0_00000.h5", tmp_path / "scan_1_00000.h5")
    assert "scan_1_00000.h5 is not of node 1" in problems(master)


Change = Callable[[h5py.Group], None]


def put(path: str, row: int, value: Any) -> Change:
    def change(entry: h5py.Group) -> None:
        entry[path][row] = value

    return change


def shorter(path: str) -> Change:
    def change(entry: h5py.Group) -> None:
        values = entry[path][:-1]
        del entry[path]
        entry[path] = values

    return change


def instead(path: str, values: Any) -> Change:
    def change(entry: h5py.Group) -> None:
        del entry[path]
        entry[path] = values

    return change


def hashes(entry: h5py.Group) -> None:
    entry["lima2py/parameters/hardware"].attrs["sha256"] = "0" * 64


def without_reasons(entry: h5py.Group) -> None:
    for name in ("first", "last", "fate", "who", "detail"):
        entry[f"{GROUP}/absences/{name}"].resize((0,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(f"{GROUP}/frames/index", 3, 4), "the indices are not 0, 1, 2"),
        (put(f"{GROUP}/frames/fate", 3, 0), "no record of frame 3"),
        (put(f"{GROUP}/frames/fate", 3, Fate.REJECTED), "gives reasons for: frame 3"),
        (put(f"{GROUP}/frames/fate", 7, Fate.SAVED), "does not hold what .* frame 7"),
        (put(f"{GROUP}/frames/row", 3, 0), "two frames lie in one row"),
        (put(f"{GROUP}/frames/row", 3, 900), "no file of a node holds frame 3"),
        (put(f"{GROUP}/frames/node", 3, 0), r"frame 3\b"),
        (put(f"{GROUP}/frames/timestamp", 3, 1.0), "frames/timestamp is not what scan_1_00000.h5"),
        (put(f"{GROUP}/frames/crc32", 3, 1), "frames/crc32 is not what scan_1_00000.h5"),
        (put(f"{GROUP}/absences/fate", 0, 41), "gives reasons for: frame 7"),
        (shorter(f"{GROUP}/frames/row"), "the records are not of one length"),
        (without_reasons, "gives reasons for: frame 7"),
        (instead("lima2py/frames_by_fate/saved", 24), "frames_by_fate says"),
        (hashes, "the hardware parameters are not those of their hash"),
    ],
)
def test_a_master_that_says_something_else_is_found(
    tmp_path: Path, change: Change, said: str
) -> None:
    master = written(tmp_path)
    with h5py.File(master, "a") as file:
        change(file["entry_0000"])
    found = problems(master)
    assert any(re.search(said, line) for line in found.splitlines()), found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(f"{GROUP}/frames/index", 3, 90), "does not hold what the master says it holds: frame"),
        (put(f"{GROUP}/frames/fate", 2, 31), "does not hold what the master says it holds: frame"),
        (put(f"{GROUP}/frames/crc32", 3, 90), "frames/crc32 is not what"),
    ],
)
def test_a_node_file_that_says_something_else_is_found(
    tmp_path: Path, change: Change, said: str
) -> None:
    master = written(tmp_path)
    with h5py.File(tmp_path / "scan_1_00000.h5", "a") as file:
        change(file["entry_0000"])
    assert said in problems(master)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [*product(("dense", "sparse"), ("lost", "shifted")), ("dense", "absent frame 7 filled")],
)
def test_a_dataset_that_shows_other_frames_than_the_records_say_is_found(
    tmp_path: Path, kind: str, fault: str
) -> None:
    master = written(tmp_path, KINDS[kind])
    with h5py.File(master, "a") as file:
        name = "data" if kind == "dense" else "data/intensity"
        group = file[f"entry_0000/{GROUP}"]
        data = group[name]
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        for number, piece in enumerate(data.virtual_sources()):
            (first, *_), (last, *_) = piece.vspace.get_select_bounds()
            (row, *_), (end, *_) = piece.src_space.get_select_bounds()
            if piece.file_name == "." or (fault == "lost" and number == 5):
                continue
            wrong = row > 0 if fault == "shifted" else "7" in fault and first == 7
            shift = int(wrong)
            whole = piece.src_space.shape
            source = h5py.VirtualSource(piece.file_name, piece.dset_name, whole, data.dtype)
            layout[first : last + 1] = source[row - shift : end + 1 - shift]
        del group[name]
        group.create_virtual_dataset(name, layout)
    assert "the dataset does not show what the records say for" in problems(master)


def test_files_that_are_not_finished_say_so(tmp_path: Path) -> None:
    with at_work(tmp_path / "live") as nodes:
        nodes.write(0, 0, 6)
        part = nodes.folder / "scan_0_00000.h5.part"
        assert problems(part) == "it is not finished: it is being written"
        left = nodes.killed(tmp_path / "left")
    assert "lima2py recover" in problems(left / part.name)
    master = written(tmp_path / "done")
    (tmp_path / "done" / "scan_0_00000.h5").rename(tmp_path / "done" / "scan_0_00000.h5.part")
    run = run_of(IMAGES)
    run.write(tmp_path / "done" / "other")
    assert "scan_0_00000.h5 is not there" in problems(master)


@pytest.mark.parametrize("content", [b"text", None])
def test_what_is_not_ours_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.h5"
    if content is None:
        with h5py.File(path, "w"):
            pass
    else:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=r"not an HDF5 file|not a file of lima2py"):
        verify(path)


@given(st.sets(st.integers(0, 60), min_size=1))
@settings(max_examples=30)
def test_frames_are_named_in_stretches(frames: set[int]) -> None:
    said = in_words(sorted(frames))
    _, _, listed = said.partition(" ")
    shown = {
        frame
        for part in listed.partition(" and ")[0].split(", ")
        for frame in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    }
    assert shown <= frames
    assert shown == frames or said.endswith("more stretches")


@pytest.mark.parametrize(("state", "status"), [("good", 0), ("changed", 1), ("foreign", 2)])
def test_the_exit_status_says_what_was_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    status: int,
) -> None:
    master = written(tmp_path)
    if state == "changed":
        (tmp_path / "scan_1_00000.h5").unlink()
    if state == "foreign":
        master.write_bytes(b"text")
    monkeypatch.setattr(sys, "argv", ["lima2py", "verify", str(master), "--pixels", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == status
    if status < 2:
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (status == 0)
        assert told["frames"] == {"raw": {"saved": 23, "detector_gap": 1}}


def test_the_verdict_is_short_for_people() -> None:
    verdict = Verdict(Path("a.h5"), "master", {"raw": {"saved": 3}}, 2, 3, 0, ["raw: it is cold"])
    assert str(verdict) == (
        "a.h5: NOT good\n  raw: it is cold\n  raw: 3 saved\n"
        "  frames read: 3, compared with checksums: 0"
    )
