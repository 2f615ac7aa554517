"""Reading our files again: what was put in comes out, and what is not there is said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import lima2py
from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.geometry import Affine
from lima2py.storage.masters.of_run import write_preview
from lima2py.storage.names import NODE_FILE
from lima2py.storage.reading import opened
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.saving.reserve import reserve
from lima2py.storage.saving.sinks import SaveDense, SaveTable
from tests.storage.made_up import LOST, MadeUpRun, context_of, noise, numbers, round_robin, started

TURNED = FrameSpec.dense(4, 6, np.uint16, to_detector=Affine(0, 2, 10, -2, 0, 90))
PIXELS = FrameSpec("sparse", (1, 12, 16), np.dtype([("index", "u4"), ("value", "i4")]))
PEAKS = FrameSpec("sparse", (1, 12, 16), np.dtype([("x", "f4"), ("y", "f4"), ("sum", "i8")]))
TABLE = FrameSpec("table", (2,), np.dtype([("min", "f8"), ("sum", "f8")]), labels=("a", "b"))


def same(found: object, expected: Array) -> bool:
    """Whether arrays are the same bit by bit, whatever their types of dimension."""
    made = np.asarray(found)
    return made.dtype == expected.dtype and made.tobytes() == expected.tobytes()


# Frames


@pytest.mark.parametrize(
    "spec",
    [
        TURNED,
        FrameSpec.dense(3, 5, np.float32, bands=2),
        FrameSpec("vector", (7,), np.dtype("f4")),
        TABLE,
    ],
)
def test_a_file_is_a_sequence_of_frames(tmp_path: Path, spec: FrameSpec) -> None:
    run = round_robin(spec, 20, 3, 2, absent=[0, 4, 19])
    expected = run.expected()
    with lima2py.open(run.write(tmp_path / "a", frames_per_file=4)) as file:
        assert len(file) == 20
        assert file.shape == expected.shape
        assert file.dtype == expected.dtype
        assert same(file[:], expected)
        assert same(file[3:17:4], expected[3:17:4])
        assert same(file[12:900], expected[12:])
        assert same(file[7:7], expected[7:7])
        assert same(list(file), expected)
        assert same(file[-2], expected[-2])
        assert same(file[2:9, ..., 1:], expected[2:9, ..., 1:])
        for row in (20, -21):
            with pytest.raises(IndexError, match=r"a_master\.h5 has 20 frames"):
                file[row]
        with pytest.raises(IndexError, match=rf"a_master\.h5 have {expected.ndim - 1} axes"):
            file[(0, ..., *(0,) * expected.ndim)]
        with pytest.raises(BadParameter, match="read forwards only"):
            file[::-1]


@pytest.mark.parametrize("spec", [PIXELS, PEAKS])
def test_sparse_frames_are_ragged(tmp_path: Path, spec: FrameSpec) -> None:
    blocks = [(n % 2, Block(spec, 3 * n, 3, noise(spec, 3, n))) for n in range(6)]
    blocks[2] = (0, Block(spec, 6, 3, noise(spec, 3, 2), {0: LOST, 2: LOST}))
    run = MadeUpRun(spec, blocks, 20, 3)
    rows = run.expected_rows()
    assert sum(map(len, rows)) > 10
    with RunFile(run.write(tmp_path / "a", frames_per_file=5)) as file:
        assert (len(file), file.nb_rows) == (20, sum(map(len, rows)))
        for index, expected in enumerate(rows):
            assert same(file[index], expected)
        part = file[4:16]
        assert isinstance(part, Ragged)
        for offset, expected in enumerate(rows[4:16]):
            assert same(part.rows(offset), expected)
        with pytest.raises(BadParameter, match="forwards only"):
            file[::2]
        with pytest.raises(IndexError, match=r"a_master\.h5 have 0 axes"):
            file[4:16, 1:]


def test_a_frame_is_found_by_its_number_in_both_kinds_of_file(tmp_path: Path) -> None:
    run = round_robin(TURNED, 20, 3, 2, absent=[4])
    path = run.write(tmp_path / "a")
    with RunFile(path) as master, RunFile(run.node_files[1][0]) as node:
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
        path = MadeUpRun(spec, blocks, 3, 2).write(tmp_path / spec.dtype.name)
        with RunFile(path) as file:
            total = file.total()
        assert total.mask.tolist() == [[False, False, True], [False, False, False]]
        assert total[~total.mask].tolist() == [11, 22, 33, 40, 55]


def test_the_sum_of_sparse_pixels_is_that_of_their_images(tmp_path: Path) -> None:
    blocks = [(0, Block(PIXELS, 4 * n, 4, noise(PIXELS, 4, n), {1: LOST})) for n in range(8)]
    with RunFile(MadeUpRun(PIXELS, blocks, 32, 4).write(tmp_path / "a")) as file:
        expected = np.zeros(PIXELS.image, np.int64)
        for rows in MadeUpRun(PIXELS, blocks, 32, 4).expected_rows():
            np.add.at(expected.reshape(-1), rows["index"], rows["value"])
        assert file.total().tolist() == expected.tolist()


def test_a_sum_of_many_frames_does_not_overflow(tmp_path: Path) -> None:
    spec = FrameSpec.dense(1, 2, np.uint8)
    block = Block(spec, 0, 500, np.full((500, 1, 1, 2), 254, np.uint8))
    with RunFile(MadeUpRun(spec, [(0, block)], 500, 500).write(tmp_path / "a")) as file:
        assert file.total().tolist() == [[127_000, 127_000]]


# Records


def test_records_are_read_by_name(tmp_path: Path) -> None:
    run = round_robin(TURNED, 12, 2, 2, absent=[4])
    for _, block in run.blocks:
        object.__setattr__(block, "columns", {**block.columns, "hits": np.arange(2) + block.index})
    path = run.write(tmp_path / "a", frames_per_file=3)
    with RunFile(path) as file:
        assert set(file.records) == {"index", "fate", "timestamp", "hits", "node", "row"}
        assert file.records["hits"].tolist() == list(range(12))
        assert file.records["node"].tolist() == run.table.node.tolist()
        assert file.records["row"].tolist() == run.table.row.tolist()
        assert file.counts == {"saved": 11, "detector_gap": 1}
        assert file.absences == [(4, 4, LOST)]
        assert [path.name for *_, path in file.files] == [
            "a_0_00000.h5", "a_0_00001.h5", "a_1_00000.h5", "a_1_00001.h5"
        ]  # fmt: skip
        lies_in = [file.files[number].path.name for number in file.lies_in]
        assert lies_in[:6] == ["a_0_00000.h5"] * 2 + ["a_1_00000.h5"] * 2 + [
            "a_0_00000.h5", "a_0_00001.h5"
        ]  # fmt: skip
        with pytest.raises(KeyError):
            file.records["no"]
    with RunFile(run.node_files[1][1]) as node:
        assert node.records["node"].tolist() == [1] * len(node)
        assert node.records["row"].tolist() == [3, 4, 5]


def test_what_is_known_of_the_run_is_there(tmp_path: Path) -> None:
    run = round_robin(TURNED, 4, 1, 1)
    with RunFile(run.write(tmp_path / "a")) as file:
        assert (file.sink, file.sinks) == ("raw", ("raw",))
        assert file.facts.name == "scan 42"
        assert file.outcome == "stopped"
        assert file.errors == ["it was cold"]
        assert file.rois == {"beam.direct": (10, 20, 30, 40)}
        assert file.matrix is not None
        assert file.matrix.tolist() == [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]
        assert file.parameters["hardware"]["acquisition"]["expo_time"] == 0.25
        assert file.logs == {}


def test_the_sink_is_chosen_where_several_share_a_file(tmp_path: Path) -> None:
    paths = {"raw": str(tmp_path / "a"), "counts": str(tmp_path / "a")}
    shared: dict[str, object] = {}
    sinks = [
        started(sink, spec, context_of(tmp_path, spec, task=task, paths=paths, shared=shared))
        for task, spec, sink in (("raw", TURNED, SaveDense()), ("counts", TABLE, SaveTable()))
    ]
    for sink, spec in zip(sinks, (TURNED, TABLE), strict=True):
        sink.write(Block(spec, 0, 3, numbers(spec, 0, 3)))
    for sink in sinks:
        sink.finish()
    (path,) = sinks[0].files
    with lima2py.open(path) as raw, lima2py.open(path, "counts") as counts:
        assert raw.sinks == counts.sinks == ("raw", "counts")
        assert same(raw[:], numbers(TURNED, 0, 3)[:, 0])
        assert same(counts[:], numbers(TABLE, 0, 3))
    with pytest.raises(BadParameter, match=r"sink: .* 'count' .*did you mean \"counts\""):
        lima2py.open(path, "count")


# Blocks


def test_blocks_are_as_they_were_recorded(tmp_path: Path) -> None:
    run = round_robin(FrameSpec.dense(3, 5, np.uint8, bands=2), 20, 3, 2, absent=[3, 6, 7, 8])
    with RunFile(run.write(tmp_path / "a", frames_per_file=4)) as file:
        blocks = list(file.blocks(2, 19, size=4))
        assert [(block.index, block.count) for block in blocks] == [
            (2, 4), (6, 4), (10, 4), (14, 4), (18, 1)
        ]  # fmt: skip
        assert blocks[0].absences == {1: LOST}
        assert blocks[1].absences == {0: LOST, 1: LOST, 2: LOST}
        for block in blocks:
            assert block.spec == run.spec
            assert block.columns["timestamp"].tolist() == [
                1e9 + index / 8 for index in range(block.index, block.end)
            ]
            data = run.expected()[block.index : block.end]
            assert same(block.pixels[block.present], data[block.present])
    with RunFile(run.node_files[1][0]) as node:
        gone = list(node.blocks())
        assert [(block.index, block.count) for block in gone] == [(3, 3), (9, 1)]


def test_a_block_without_any_data_has_none(tmp_path: Path) -> None:
    absent = Absence(Fate.OVERRUN, "ring", "full")
    blocks = [
        (0, Block(PIXELS, 0, 2, noise(PIXELS, 2, 0))),
        (0, Block.absent(PIXELS, 2, 3, absent)),
    ]
    with RunFile(MadeUpRun(PIXELS, blocks, 6, 3).write(tmp_path / "a")) as file:
        block = file.block(2, 6)
        assert block.data is None
        assert block.absences == {
            0: absent, 1: absent, 2: absent, 3: Absence(Fate.NOT_ACQUIRED, "")
        }  # fmt: skip


# What is not there, or not ours


def test_missing_files_are_named_and_never_read_as_fill_values(tmp_path: Path) -> None:
    run = round_robin(TURNED, 24, 2, 2)
    path = run.write(tmp_path / "a", frames_per_file=4)
    gone = Path(run.node_files[1][1])
    gone.unlink()
    with RunFile(path) as file:
        assert same(file[:10], run.expected()[:10])
        for read in (
            lambda: file[10],
            lambda: file[:],
            lambda: file.frame(10),
            lambda: file.total(),
        ):
            with pytest.raises(StorageError, match=f"not there: {gone}; keep all files"):
                read()
    run.write_master(tmp_path / "a")  # now nobody knows of that file any more
    assert run.problems
    with RunFile(path) as file:
        assert same(file[:10], run.expected()[:10])
        with pytest.raises(StorageError, match=r"frame 10 was saved by node 1, in a file that"):
            file[8:12]


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
    (tmp_path / "b.h5.part").touch()
    reserved = reserve({"raw": SaveDense()}, tmp_path, "c", "1234")
    for path, said in (
        (tmp_path / "gone.h5", "cannot be read: No such file"),
        (tmp_path, "cannot be read: it is a folder; give a file in it"),
        (text, "cannot be read: it is not an HDF5 file"),
        (cut, "cannot be read: it is cut off"),
        (foreign, "not a file of lima2py: it is made by another program"),
        (nameless, "not a file of lima2py: it is without the name of its maker"),
        (tmp_path / "c_raw_master.h5.part", "shows no frames yet: its run has just been prepared"),
        (tmp_path / "b.h5", r"is not finished: what there is of it is b\.h5\.part"),
    ):
        with pytest.raises(StorageError, match=said) as caught:
            RunFile(path)
        assert str(caught.value).startswith(str(path))
    reserved.release()


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    file = RunFile(round_robin(TURNED, 4, 1, 1).write(tmp_path / "a"))
    file.close()
    file.close()
    with pytest.raises(StorageError, match="has been closed: open it again"):
        file[0]


def test_a_file_without_frames_says_so(tmp_path: Path) -> None:
    with RunFile(MadeUpRun(TURNED, [], 0).write(tmp_path / "a")) as file:
        assert len(file) == 0
        assert file[:].shape == (0, 4, 6)
        with pytest.raises(BadParameter, match=r"a_master\.h5 has no frames"):
            file.first()
        with pytest.raises(BadParameter, match=r"frame 0: .*a_master\.h5 has no frames"):
            file.frame(0)


@pytest.mark.parametrize("how", [{}, {"locking": False}])
def test_others_in_the_same_process_may_have_it_open(tmp_path: Path, how: dict[str, bool]) -> None:
    run = round_robin(TURNED, 6, 1, 2)
    path = run.write(tmp_path / "a")
    for other in (path, run.node_files[0][0]):
        with h5py.File(other, "r", **how):
            with RunFile(path) as file:
                assert same(file[:], run.expected())
            run.write_master(tmp_path / "b")
            assert run.problems == []
    with RunFile(path), h5py.File(path, "r") as plain:
        assert same(plain["entry_0000/measurement/data"][:], run.expected())


# While it is written


def writing(folder: Path) -> tuple[SaveDense, Callable[[int], None]]:
    """A sink at work, and what gives it so many frames, flushes, and writes the preview."""
    sink = started(SaveDense(frames_per_file=8), TURNED, context_of(folder / "a", TURNED))
    written = 0

    def write(count: int) -> None:
        nonlocal written
        sink.write(Block(TURNED, written, count, numbers(TURNED, written, count)))
        sink.flush()
        written += count
        write_preview(str(folder / "a"), NODE_FILE, {})

    return sink, write


def test_what_is_being_written_is_seen_as_it_was_when_it_was_opened(tmp_path: Path) -> None:
    sink, write = writing(tmp_path)
    write(5)
    with (
        RunFile(tmp_path / "a_master.h5.part") as preview,
        RunFile(tmp_path / "a_0_00000.h5.part") as node,
    ):
        assert preview.outcome == "running"
        write(10)  # the first file is finished by this
        sink.finish()
        for file in (preview, node):
            assert len(file) == 5
            assert same(file[:], numbers(TURNED, 0, 5)[:, 0])
    with RunFile(tmp_path / "a_0_00000.h5.part") as node:  # by its former name
        assert len(node) == 8
        assert node.path.name == "a_0_00000.h5"


def test_a_file_that_is_half_updated_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, write = writing(tmp_path)
    write(5)
    part = tmp_path / "a_0_00000.h5.part"
    content = part.read_bytes()
    torn = tmp_path / "torn.h5.part"
    torn.write_bytes(content[:3000])
    monkeypatch.setattr(opened, "PATIENCE", 60.0)
    healing = threading.Timer(0.2, torn.write_bytes, [content])
    healing.start()
    with RunFile(torn) as file:
        assert same(file[:], numbers(TURNED, 0, 5)[:, 0])
    healing.join()
    torn.write_bytes(content[:3000])
    monkeypatch.setattr(opened, "PATIENCE", 0.2)
    with pytest.raises(StorageError, match=r"torn\.h5\.part cannot be read: it is cut off"):
        RunFile(torn)
    sink.finish()
