"""save_flat: plain binary files that numpy reads by what the JSON beside them says."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import BadParameter, StorageError
from lima2py.frame import Array, Block, Fate, FrameSpec
from lima2py.storage.care.recover import recover
from lima2py.storage.layout import fill_value
from lima2py.storage.masters.master import Ending
from lima2py.storage.masters.rebuild import saved_in
from lima2py.storage.names import PART
from lima2py.storage.saving.flat import SaveFlat, read_flat, write_flat_master
from lima2py.testing.strategies import absences
from tests.storage.made_up import LOST, context_of, files_no_larger_than, numbers

SMALL = FrameSpec.dense(4, 6, np.uint16)
SPECS = (
    SMALL,
    FrameSpec.dense(3, 5, ">f4", bands=2),
    FrameSpec("vector", (7,), np.dtype("f8")),
    FrameSpec("table", (2,), np.dtype([("sum", "f8"), ("n", "u4", (2,))])),
)


def started(spec: FrameSpec, prefix: Path, rank: int = 0, **fields: Any) -> SaveFlat:
    sink = SaveFlat(**fields)
    sink.prepare(spec)
    sink.start(replace(context_of(prefix, spec), rank=rank, node=f"node{rank}"))
    return sink


def seen(master: Path) -> tuple[Array, dict[str, Any]]:
    """All frames as a stranger reads them who knows numpy and JSON; absent ones are zeros."""
    about = json.loads(master.read_text())
    kind = about["dtype"]
    if isinstance(kind, list):
        kind = [(name, code, *map(tuple, more)) for name, code, *more in kind]
    dtype = np.dtype(kind)
    frames = np.zeros((len(about["frames"]["fate"]), *about["shape"]), dtype)
    saved = about["fates"]["saved"]
    for file in about["files"]:
        rows = np.fromfile(master.parent / file["name"], dtype).reshape(-1, *about["shape"])
        for index, (fate, node, row) in enumerate(zip(*about["frames"].values(), strict=True)):
            if fate == saved and node == file["node"]:
                at = row - file["first_row"]
                if 0 <= at < len(rows):
                    frames[index] = rows[at]
    return frames, about


@settings(max_examples=30)
@given(st.data(), st.sampled_from(SPECS), st.integers(0, 5))
def test_every_frame_comes_back_by_what_the_json_says(
    data: st.DataObject, spec: FrameSpec, per_file: int
) -> None:
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    gone = [data.draw(absences(count)) for count in counts]
    with tempfile.TemporaryDirectory() as folder:
        sinks = [started(spec, Path(folder) / "a", n, frames_per_file=per_file) for n in range(2)]
        wanted, fates, index = [], [], 0
        for number, (count, missing) in enumerate(zip(counts, gone, strict=True)):
            pixels = None if len(missing) == count else numbers(spec, index, count)
            block = Block(spec, index, count, pixels, missing, {"timestamp": np.arange(count) / 8})
            sinks[number % 2].write(block)
            for frame in block.frames():
                nothing = np.zeros(spec.saved_shape, spec.dtype)
                wanted.append(nothing if frame.data is None else frame.data)
                fates.append(frame.absence.cause if frame.absence else Fate.SAVED)
            index += count
        for sink in sinks:
            sink.flush()
            sink.finish()
        entries = [read_flat(path)[0] for sink in sinks for path in sink.files]
        said = {frame: why for entry in entries for frame, _, why in entry.absences}
        master = Path(read_flat(sinks[0].files[0])[1])
        product = saved_in(entries, whole=False)
        assert not write_flat_master(str(master), [product], Ending("completed"))
        frames, about = seen(master)
        if per_file:
            sizes = [Path(path).stat().st_size for sink in sinks for path in sink.files]
            assert max(sizes) <= per_file * spec.nbytes
    assert frames.tobytes() == np.stack(wanted).astype(spec.dtype).tobytes()
    assert about["frames"]["fate"] == fates
    assert {frame: why.cause for frame, why in said.items()} == {
        frame: fate for frame, fate in enumerate(fates) if fate is not Fate.SAVED
    }


def test_absent_frames_hold_the_fill_value(tmp_path: Path) -> None:
    sink = started(SMALL, tmp_path / "a")
    sink.write(Block(SMALL, 0, 3, numbers(SMALL, 0, 3), {1: LOST}))
    sink.finish()
    rows = np.fromfile(sink.files[0], SMALL.dtype).reshape(3, 4, 6)
    assert (rows[1] == fill_value(SMALL.dtype)).all()
    assert np.array_equal(rows[2], numbers(SMALL, 2, 1)[0, 0])


def test_what_was_flushed_is_recovered_and_nothing_is_shown_that_was_torn(tmp_path: Path) -> None:
    sink = started(SMALL, tmp_path / "a", frames_per_file=4)
    for index in range(0, 6, 2):
        sink.write(Block(SMALL, index, 2, numbers(SMALL, index, 2), {0: LOST} if index else {}))
        sink.flush()
    assert [one.refused[:27] for one in recover(tmp_path, force=True)[0]] == [
        "a_0_00001.raw.part is still"
    ]
    file = sink._file
    assert file is not None
    file._data.close()  # its process is killed
    file._records.close()
    with (tmp_path / "a_0_00001.jsonl.part").open("a") as torn:
        torn.write('{"row": 2, "index": 6, "cou')
    (found,), _ = recover(tmp_path, force=True)
    assert not found.problems
    assert "finished a_0_00001.raw, 2 frames" in found.done
    frames, about = seen(tmp_path / "a_master.json")
    assert about["frames"]["fate"] == [1, 1, 10, 1, 10, 1]
    assert np.array_equal(frames[[0, 1, 3, 5]], numbers(SMALL, 0, 6)[[0, 1, 3, 5], 0])
    assert about["outcome"] == "failed"
    assert recover(tmp_path, force=True) == ([], 1)


def test_a_full_disk_costs_the_frames_that_came_then_and_no_others(tmp_path: Path) -> None:
    large = FrameSpec.dense(100, 100, np.uint16)
    sink = started(large, tmp_path / "a")
    sink.write(Block(large, 0, 1, numbers(large, 0, 1)))
    sink.flush()
    with files_no_larger_than(30_000), pytest.raises(StorageError, match=r"a_0_00000\.raw cannot"):
        sink.write(Block(large, 1, 1, numbers(large, 1, 1)))
    assert sink.write(Block(large, 2, 1, numbers(large, 2, 1))) == 1
    sink.finish()
    rows = np.fromfile(sink.files[0], large.dtype).reshape(-1, 100, 100)
    assert np.array_equal(rows, numbers(large, 0, 3)[[0, 2], 0])
    assert read_flat(sink.files[0])[0].index.tolist() == [0, 2]


def test_a_full_file_stays_open_while_the_disk_does_not_take_its_records(tmp_path: Path) -> None:
    large = FrameSpec.dense(100, 100, np.uint16)
    sink = started(large, tmp_path / "a", frames_per_file=1)
    sink.write(Block(large, 0, 1, numbers(large, 0, 1)))
    with files_no_larger_than(100), pytest.raises(StorageError, match=r"\.jsonl cannot"):
        sink.write(Block(large, 1, 1, numbers(large, 1, 1)))
    assert sink.write(Block(large, 2, 1, numbers(large, 2, 1))) == 1
    sink.flush()
    sink.finish()
    assert [read_flat(path)[0].index.tolist() for path in sink.files] == [[0], [2]]


def test_one_flat_file_stands_for_all_that_share_its_master(tmp_path: Path) -> None:
    for rank in range(2):
        sink = started(SMALL, tmp_path / "a", rank, frames_per_file=2)
        sink.write(Block(SMALL, 4 * rank, 4, numbers(SMALL, 4 * rank, 4)))
        sink.finish()
    (found,), _ = recover(tmp_path / "a_0_00001.raw", force=True)
    assert found.done == ("raw: 8 saved",)


def test_a_writer_that_dies_between_two_names_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = started(SMALL, tmp_path / "a")
    sink.write(Block(SMALL, 0, 2, numbers(SMALL, 0, 2)))
    rename = os.rename
    called: list[str] = []

    def once(old: str, new: str) -> None:
        if called:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        called.append(old)
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", once)
        with pytest.raises(StorageError, match=r"a_0_00000\.raw cannot be closed.*mounted"):
            sink.finish()
    (found,), _ = recover(tmp_path, force=True)
    assert found.done[-1] == "raw: 2 saved"
    assert not list(tmp_path.glob(f"*{PART}"))


def test_what_has_no_fixed_size_is_refused() -> None:
    pixels = FrameSpec("sparse", (1, 4, 6), np.dtype([("index", "u4"), ("value", "u2")]))
    with pytest.raises(BadParameter, match=r"^from: frames of one size are needed.*save_sparse"):
        SaveFlat().prepare(pixels)


def test_nothing_that_exists_is_written_over(tmp_path: Path) -> None:
    for name in ("a_0_00000.jsonl", "b_0_00000.jsonl.part"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(StorageError, match=r"cannot be made.*exists"):
            started(SMALL, tmp_path / name[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a_0_00000.jsonl", "b_0_00000.jsonl.part",
    ]  # fmt: skip


def test_a_sink_that_got_nothing_leaves_nothing(tmp_path: Path) -> None:
    sink = started(SMALL, tmp_path / "a")
    sink.finish()
    assert sink.files == []
    assert list(tmp_path.iterdir()) == []
