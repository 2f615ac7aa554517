"""Masters are made from whatever nodes left, and previews hold while files are being renamed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Event

import h5py
import numpy as np
import pytest

from lima2py.frame import Block, Fate, FrameSpec, Ragged
from lima2py.storage.masters import of_run
from lima2py.storage.masters.master import Ending, FrameTable
from lima2py.storage.masters.of_run import all_files, write_masters, write_preview
from lima2py.storage.masters.rebuild import gather
from lima2py.storage.names import NODE_FILE, master_path
from lima2py.storage.reasons import Reasons
from lima2py.storage.saving.flat import SaveFlat
from lima2py.storage.saving.sinks import Hdf5Sink
from lima2py.task import Sink
from tests.storage.made_up import context_of, numbers, sink_for, started
from tests.storage.plain import Plain, read

SMALL = FrameSpec.dense(4, 6, np.uint16)
PIXELS = FrameSpec("sparse", (1, 4, 6), np.dtype([("index", "<u4"), ("value", "<u2")]))


def some(spec: FrameSpec, index: int) -> Block:
    """Two frames."""
    if spec.kind != "sparse":
        return Block(spec, index, 2, numbers(spec, index, 2))
    columns = {"index": np.array([1, 2, 3], "u4"), "value": np.array([index, 7, index + 1], "u2")}
    return Block(spec, index, 2, Ragged.of(np.array([1, 2]), columns))


def nodes(folder: Path, spec: FrameSpec, count: int, frames_per_file: int) -> list[Hdf5Sink]:
    """A sink on each of some nodes."""
    base = context_of(folder / "a", spec, nb_frames=12, frames_per_block=2)
    return [
        started(
            sink_for(spec, frames_per_file=frames_per_file), spec,
            replace(base, rank=rank, node=f"node{rank}", shared={}),
        )
        for rank in range(count)
    ]  # fmt: skip


def assert_shows(seen: Plain, spec: FrameSpec, count: int) -> None:
    """The first frames are there, dealt out in twos."""
    assert seen.frames["fate"].tolist() == [Fate.SAVED] * count
    if spec.kind != "sparse":
        assert np.array_equal(seen.data["data"], numbers(spec, 0, count)[:, 0])
        return
    for index, rows in enumerate(seen.rows({"index": "index", "value": "intensity"})):
        first = some(spec, index // 2 * 2).rows
        assert rows["value"].tolist() == first.rows(index % 2)["value"].tolist()
        assert rows["index"].tolist() == first.rows(index % 2)["index"].tolist()


@pytest.mark.parametrize("spec", [SMALL, PIXELS], ids=str)
def test_a_preview_shows_what_is_safe_also_when_files_are_finished_after_it(
    tmp_path: Path, spec: FrameSpec
) -> None:
    sinks = nodes(tmp_path, spec, 2, 0)
    preview = f"{master_path(tmp_path / 'a')}.part"
    for index in range(0, 12, 2):
        sinks[index // 2 % 2].write(some(spec, index))
        for sink in sinks:
            sink.flush()
        write_preview(str(tmp_path / "a"), NODE_FILE, {})
        assert_shows(read(preview), spec, index + 2)
    sinks[0].write(some(spec, 100))  # not flushed: nobody has promised it
    write_preview(str(tmp_path / "a"), NODE_FILE, {})
    before = read(preview)
    assert_shows(before, spec, 12)
    for sink in sinks:
        sink.finish()
        assert_shows(read(preview), spec, 12)  # while one, or both, have their names
    with h5py.File(preview) as file:
        assert file["entry_0000/lima2py/outcome"].asstr()[()] == "running"
        assert file.attrs["file_name"] == "a_master.h5"


def test_a_file_that_is_only_begun_keeps_no_preview_from_being_written(tmp_path: Path) -> None:
    (sink,) = nodes(tmp_path, SMALL, 1, 0)
    sink.write(some(SMALL, 0))
    sink.flush()
    (tmp_path / "a_1_00000.h5.part").write_bytes(b"")
    write_preview(str(tmp_path / "a"), NODE_FILE, {})
    assert_shows(read(f"{master_path(tmp_path / 'a')}.part"), SMALL, 2)
    sink.finish()


def test_a_file_that_was_finished_since_it_was_listed_is_found(tmp_path: Path) -> None:
    (sink,) = nodes(tmp_path, SMALL, 1, 0)
    sink.write(some(SMALL, 0))
    sink.finish()
    (saved,) = gather([Path(f"{sink.files[0]}.part")], whole=False)
    assert saved.table.fate.tolist() == [Fate.SAVED] * 2
    assert saved.node_files == {0: sink.files}


def test_frames_do_not_wait_for_a_preview_but_the_end_of_the_run_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    began, go = Event(), Event()
    made: list[str] = []

    def slow(prefix: str, *_: object) -> None:
        began.set()
        go.wait(2)
        made.append(prefix)

    monkeypatch.setattr(of_run, "write_preview", slow)
    monkeypatch.setattr(of_run, "PREVIEW_EVERY", 0.0)
    prefix = str(tmp_path / "a")
    previews = of_run.Previews({"raw": sink_for(SMALL)}, {"raw": prefix}, dict)
    previews.refresh()
    assert began.wait(10)
    previews.refresh()
    assert made == []
    go.set()
    previews.finish()
    assert made == [prefix]
    previews.refresh()
    assert made == [prefix]


def written(folder: Path, sinks: list[Hdf5Sink], told: dict[int, list[str]]) -> list[str]:
    """Write the master of twelve frames dealt out in twos; gives the problems."""
    frames = np.arange(12)
    node = (frames // 2 % len(sinks)).astype(np.int16)
    row = frames // (2 * len(sinks)) * 2 + frames % 2
    table = FrameTable(np.full(12, Fate.SAVED, np.uint8), node, row, Reasons(12))
    masters, _, problems = write_masters(
        {"raw": sinks[0]}, context_of(folder / "a", SMALL, nb_frames=12), {"raw": table},
        {rank: {"raw": files} for rank, files in told.items()}, Ending("completed"),
    )  # fmt: skip
    assert masters == {"raw": master_path(folder / "a")}
    return problems


def test_files_a_lost_node_had_no_time_to_tell_of_are_found(tmp_path: Path) -> None:
    sinks = nodes(tmp_path, SMALL, 2, 2)
    first = {rank: sink.files for rank, sink in enumerate(sinks)}
    for index in range(0, 12, 2):
        sinks[index // 2 % 2].write(some(SMALL, index))
    sinks[0].finish()
    sinks[1].flush()  # and then it is killed
    assert written(tmp_path, sinks, first) == []
    assert_shows(read(master_path(tmp_path / "a")), SMALL, 12)
    with h5py.File(master_path(tmp_path / "a")) as file:
        named = file["entry_0000/lima2py/files/name"].asstr()[()].tolist()
    assert named[-1] == "a_1_00002.h5.part"
    os.rename(f"{sinks[1].files[-1]}.part", tmp_path / "a_1_00002.h5")  # as `recover` does
    assert_shows(read(master_path(tmp_path / "a")), SMALL, 12)
    (tmp_path / "a_1_00002.h5").rename(tmp_path / "a_1_00002.h5.part")
    sinks[1].finish()


@pytest.mark.parametrize("flat", [False, True])
def test_frames_whose_acquisition_node_is_lost_are_shown_if_they_lie_in_the_files(
    tmp_path: Path, flat: bool
) -> None:
    context = context_of(tmp_path / "a", SMALL, nb_frames=12, frames_per_block=2)
    sink: Sink = SaveFlat() if flat else sink_for(SMALL)
    sink.prepare(SMALL)
    sink.start(context)
    for index in range(0, 12, 2):
        sink.write(some(SMALL, index))
    sink.finish()
    fate = np.repeat([Fate.SAVED, Fate.NODE_LOST, Fate.NOT_SAVED], [4, 6, 2]).astype("u1")
    row = np.where(fate == Fate.SAVED, np.arange(12), -1)
    table = FrameTable(fate, np.where(row < 0, -1, 0).astype("i2"), row, Reasons(12))
    masters, _, problems = write_masters(
        {"raw": sink}, context, {"raw": table}, {0: {"raw": sink.files}}, Ending("failed")
    )
    assert problems == []
    if flat:
        frames = json.loads(Path(masters["raw"]).read_text())["frames"]
        assert frames["row"] == [*range(10), -1, -1]
    else:
        seen = read(masters["raw"])
        frames = seen.frames
        assert np.array_equal(seen.data["data"][:10], numbers(SMALL, 0, 10)[:, 0])
    assert list(frames["fate"]) == [Fate.SAVED] * 10 + [Fate.NOT_SAVED] * 2


def test_a_file_a_node_had_only_begun_when_it_was_lost_is_no_problem(tmp_path: Path) -> None:
    sinks = nodes(tmp_path, SMALL, 1, 0)
    for index in range(0, 12, 2):
        sinks[0].write(some(SMALL, index))
    sinks[0].finish()
    (tmp_path / "a_0_00001.h5.part").write_bytes(b"")
    assert written(tmp_path, sinks, {0: sinks[0].files}) == []
    assert_shows(read(master_path(tmp_path / "a")), SMALL, 12)


def test_only_the_files_of_this_node_and_prefix_are_its_own(tmp_path: Path) -> None:
    for name in ("a_0_00000.h5", "a_0_00001.h5.part", "a_1_00000.h5", "a_0_00002.json",
                 "ab_0_00000.h5", "a_b_0_00000.h5", "a_master.h5"):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    told = [str(tmp_path / "a_0_00000.h5")]
    assert all_files(str(tmp_path / "a"), NODE_FILE, told) == [
        *told, str(tmp_path / "a_0_00001.h5"),
    ]  # fmt: skip
    assert all_files(str(tmp_path / "a"), NODE_FILE, []) == []
    gone = ["/nowhere/a_0_00000.h5"]
    assert all_files("/nowhere/a", NODE_FILE, gone) == gone
