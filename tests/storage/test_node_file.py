"""The files of one node: frames are safe after a flush, whatever happens to the node or disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.errors import StorageError
from lima2py.frame import Block, Fate, FrameSpec
from lima2py.storage.masters.master import FrameTable, Saved, write_master
from lima2py.storage.names import master_path
from lima2py.storage.reasons import Reasons
from lima2py.storage.saving.sinks import Hdf5Sink, SaveDense
from lima2py.storage.steady import is_being_written
from lima2py.task import RunContext
from tests.storage.made_up import (
    ENDING,
    LOST,
    context_of,
    files_no_larger_than,
    noise,
    numbers,
    sink_for,
    started,
)
from tests.storage.plain import read, same_bits

SMALL = FrameSpec.dense(4, 6, np.uint16)
LARGE = FrameSpec.dense(200, 200, np.uint32)


def some(spec: FrameSpec, index: int, count: int = 1) -> Block:
    return Block(spec, index, count, numbers(spec, index, count))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_called_a_part_until_it_is_finished_and_is_locked_so_long(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    assert sink.files == [str(tmp_path / "a_0_00000.h5")]
    assert names(tmp_path) == ["a_0_00000.h5.part"]
    assert is_being_written(tmp_path / "a_0_00000.h5.part")
    sink.write(some(SMALL, 0))
    sink.finish()
    assert names(tmp_path) == ["a_0_00000.h5"]
    assert not is_being_written(sink.files[0])
    with h5py.File(sink.files[0]) as file:
        assert file.attrs["file_name"] == "a_0_00000.h5"


def test_a_file_can_be_read_by_anybody_while_it_is_written(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL, frames_per_block=4))
    for index in range(0, 12, 4):
        sink.write(some(SMALL, index, 4))
        sink.flush()
        with h5py.File(f"{sink.files[0]}.part", "r") as file:  # with HDF5's own locks
            assert file["entry_0000/measurement/index"][()].tolist() == list(range(index + 4))
            frames = file["entry_0000/measurement/data"][()]
        assert np.array_equal(frames, numbers(SMALL, 0, index + 4)[:, 0])
    sink.finish()


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    for name in ("a_0_00000.h5", "a_0_00000.h5.part"):
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be made: .*exists.*overwr"):
            started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
        assert (tmp_path / name).read_bytes() == b"precious"
        (tmp_path / name).unlink()
    assert names(tmp_path) == []


def test_a_file_that_somebody_puts_in_its_place_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    sink.write(some(SMALL, 0))
    Path(sink.files[0]).write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be closed: .*exists"):
        sink.finish()
    assert Path(sink.files[0]).read_bytes() == b"precious"
    assert np.array_equal(read(f"{sink.files[0]}.part").data["data"], numbers(SMALL, 0, 1)[:, 0])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is the disk mounted"):
        started(SaveDense(), SMALL, context_of(tmp_path / "gone" / "a", SMALL))


def test_a_file_that_never_got_a_frame_is_removed(tmp_path: Path) -> None:
    sink = started(SaveDense(), SMALL, context_of(tmp_path / "a", SMALL))
    sink.finish()
    assert sink.files == []
    assert names(tmp_path) == []
    sink.finish()


def test_a_file_that_shall_hold_ten_frames_is_followed_by_the_next(tmp_path: Path) -> None:
    sink = SaveDense.load({"frames_per_file": 10, "node_file": "{file}_{node}_{number}"}, "test")
    context = context_of(tmp_path / "a", SMALL, frames_per_block=7, node="proc_1", rank=3)
    started(sink, SMALL, context)
    rows = [sink.write(some(SMALL, index, 7)) for index in range(0, 28, 7)]
    assert rows == [0, 7, 14, 21]
    assert names(tmp_path) == [
        "a_proc-1_00000.h5", "a_proc-1_00001.h5", "a_proc-1_00002.h5.part",
    ]  # fmt: skip
    sink.finish()
    assert [Path(path).name for path in sink.files] == names(tmp_path)
    seen = [read(path) for path in sink.files]
    assert [one.frames["index"].tolist() for one in seen] == [
        list(range(10)), list(range(10, 20)), list(range(20, 28)),
    ]  # fmt: skip
    frames = np.concatenate([one.data["data"] for one in seen])
    assert np.array_equal(frames, numbers(SMALL, 0, 28)[:, 0])


def test_files_of_some_size_are_followed_by_the_next_and_hold_whole_blocks(tmp_path: Path) -> None:
    sink = SaveDense.load({"bytes_per_file": "1 MiB", "compression": "none"}, "test")
    started(sink, LARGE, context_of(tmp_path / "a", LARGE))
    for index in range(20):
        sink.write(some(LARGE, index))
    sink.finish()
    sizes = [os.path.getsize(path) for path in sink.files]
    assert len(sizes) == 3
    for size in sizes[:-1]:
        assert 2**20 <= size < 2**20 + 2 * LARGE.nbytes


COUNTERS = np.dtype([("sum", "<f8")])
SHARING: Mapping[str, FrameSpec] = {
    "raw": SMALL,
    "sums": FrameSpec.dense(4, 6, np.uint32).replace(span=5),
    "counts": FrameSpec("table", (2,), COUNTERS, labels=("one", "two")),
    "pixels": FrameSpec("sparse", (1, 4, 6), np.dtype([("index", "<u4"), ("value", "<u2")])),
}


@settings(max_examples=10)
@given(
    st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any),
    st.integers(1, 3),
    st.sampled_from([0, 6, 17]),
    st.permutations(list(SHARING)),
)
def test_sinks_that_share_their_files_have_an_entry_each(
    nb_blocks: list[int],
    nodes: int,
    limit: int,
    order: list[str],
) -> None:
    """Sinks of different kinds and spans, that get different frames at different times."""
    with tempfile.TemporaryDirectory() as folder:
        share(Path(folder) / "a", nb_blocks, nodes, limit, order)


def share(prefix: Path, nb_blocks: list[int], nodes: int, limit: int, order: list[str]) -> None:
    base = context_of(prefix, SMALL, nb_frames=60, frames_per_block=10)
    base = replace(base, paths=dict.fromkeys(order, str(prefix)))
    blocks = dict(zip(order, nb_blocks, strict=True))
    sinks: dict[int, dict[str, Hdf5Sink]] = {}
    tables: dict[str, FrameTable] = {}
    given_to: dict[str, list[Block]] = {name: [] for name in order}
    for rank in range(nodes):
        mine = replace(base, rank=rank, node=f"node{rank}", shared={})
        sinks[rank] = {
            name: started(sink_for(SHARING[name], file="x", frames_per_file=limit), SHARING[name],
                          mine.of_task(name, SHARING[name].span))
            for name in order
        }  # fmt: skip
    for name in order:
        n = 60 // SHARING[name].span
        nothing = np.full(n, -1, np.int64)
        fates = np.full(n, Fate.NOT_ACQUIRED, np.uint8)
        tables[name] = FrameTable(fates, nothing.astype(np.int16), nothing.copy(), Reasons(n))
    for number in range(6):
        for name in order:
            if number >= blocks[name]:
                continue
            spec, rank = SHARING[name], number % nodes
            size = 10 // spec.span
            block = Block(spec, number * size, size, noise(spec, size, number))
            row = sinks[rank][name].write(block)
            table, part = tables[name], slice(block.index, block.end)
            table.fate[part], table.node[part] = Fate.SAVED, rank
            table.row[part] = np.arange(row, row + size)
            given_to[name].append(block)
        if number % 2:
            for sink in sinks[0].values():
                sink.flush()
    for sharing in sinks.values():
        for sink in sharing.values():
            sink.finish()
    assert write_master(master_path(prefix), saved(order, base, tables, sinks), ENDING) == []
    left = names(prefix.parent)
    assert not [name for name in left if name.endswith(".part")]
    for place, name in enumerate(order):
        seen = read(master_path(prefix), f"entry_{place:04d}")
        assert seen.frames["fate"].tolist() == tables[name].fate.tolist()
        spec = SHARING[name]
        here = [frame for block in given_to[name] for frame in block.frames()]
        if spec.kind == "sparse":
            found = seen.rows({"index": "index", "value": "intensity"})
            for frame in here:
                assert frame.data is not None
                for column, values in found[frame.index].items():
                    assert same_bits(values, frame.data[column])
        else:
            for frame in here:
                assert frame.data is not None
                assert same_bits(seen.data["data"][frame.index], frame.data)


def saved(
    order: list[str],
    base: RunContext,
    tables: Mapping[str, FrameTable],
    sinks: Mapping[int, Mapping[str, Hdf5Sink]],
) -> list[Saved]:
    """All sinks of the master."""
    return [
        Saved(
            f"entry_{place:04d}", base.of_task(name, SHARING[name].span), SHARING[name],
            tables[name], {rank: mine[name].files for rank, mine in sinks.items()},
        )
        for place, name in enumerate(order)
    ]  # fmt: skip


def test_a_file_that_is_shared_is_finished_when_the_last_sink_is(tmp_path: Path) -> None:
    paths = dict.fromkeys(("raw", "more"), str(tmp_path / "a"))
    context = context_of(tmp_path / "a", SMALL, paths=paths)
    one = started(SaveDense(), SMALL, context)
    other = started(SaveDense(), SMALL, context.of_task("more", 1))
    one.write(some(SMALL, 0))
    one.finish()
    assert names(tmp_path) == ["a_0_00000.h5.part"]
    other.write(some(SMALL, 7))
    other.finish()
    assert names(tmp_path) == ["a_0_00000.h5"]
    assert read(tmp_path / "a_0_00000.h5").frames["index"].tolist() == [0]
    assert read(tmp_path / "a_0_00000.h5", "entry_0001").frames["index"].tolist() == [7]


WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from lima2py.frame import Block, FrameSpec
from lima2py.storage.saving.sinks import SaveDense
from tests.storage.made_up import LOST, context_of, numbers, started

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
    assert not is_being_written(tmp_path / "a_0_00000.h5.part")
    seen = read(tmp_path / "a_0_00000.h5.part")
    assert seen.frames["index"][:safe].tolist() == list(range(safe))
    spec = FrameSpec.dense(height, 60, np.uint16)
    frames = seen.data["data"][:safe]
    here = seen.frames["fate"][:safe] == Fate.SAVED
    assert 0 < (~here).sum() < 20
    assert np.array_equal(frames[here], numbers(spec, 0, safe)[:, 0][here])
    assert (frames[~here] == 65535).all()
    assert seen.absences[1] == LOST


@pytest.mark.parametrize(("side", "limits"), [(32, {}), (200, {}), (200, {"frames_per_file": 30})])
def test_what_was_acknowledged_outlives_a_disk_that_was_full(
    tmp_path: Path, side: int, limits: dict[str, Any]
) -> None:
    spec = FrameSpec.dense(side, side, np.uint16)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 65535, (250, 1, 1, side, side)).astype(np.uint16)
    sink = started(SaveDense.load(limits, "test"), spec, context_of(tmp_path / "a", spec))
    taken: dict[int, int] = {}
    safe: dict[int, int] = {}
    errors: list[str] = []

    def write(indices: range) -> None:
        rows: dict[int, int] = {}
        for index in indices:
            try:
                rows[index] = taken[index] = sink.write(Block(spec, index, 1, images[index]))
            except StorageError as error:
                errors.append(str(error))
        try:
            sink.flush()
            safe.update(rows)
        except StorageError as error:
            errors.append(str(error))

    write(range(4))
    size = os.path.getsize(f"{sink.files[0]}.part")
    with files_no_larger_than(size + 4 * spec.nbytes):
        for index in range(4, 200, 7):
            write(range(index, index + 7))
    assert errors
    for error in errors:
        assert error.startswith(str(tmp_path / "a_0_0000"))
        assert "File too large" in error
        assert "free on that disk" in error
    lost = len(errors)
    for index in range(200, 250, 5):
        write(range(index, index + 5))
    assert len(errors) == lost
    assert safe.keys() >= {0, 1, 2, 3, *range(200, 250)}
    sink.finish()
    seen = [read(path) for path in sink.files]
    indices = np.concatenate([one.frames["index"] for one in seen])
    fates = np.concatenate([one.frames["fate"] for one in seen])
    frames = np.concatenate([one.data["data"] for one in seen])
    assert len(frames) == len(indices)
    assert len(taken) > len(safe)
    for index, row in taken.items():  # those that waited for room, too
        assert indices[row] == index
        assert fates[row] == Fate.SAVED
        assert np.array_equal(frames[row], images[index, 0, 0])


def test_a_full_file_that_the_disk_does_not_take_waits_before_the_next_is_begun(
    tmp_path: Path,
) -> None:
    sink = SaveDense.load({"frames_per_file": 2, "compression": "none"}, "test")
    started(sink, LARGE, context_of(tmp_path / "a", LARGE))
    with files_no_larger_than(os.path.getsize(f"{sink.files[0]}.part") + 1000):
        assert sink.write(some(LARGE, 0, 2)) == 0
        with pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be written: File too large"):
            sink.write(some(LARGE, 2))
    assert sink.write(some(LARGE, 2)) == 2
    sink.finish()
    seen = [read(path) for path in sink.files]
    assert [one.frames["index"].tolist() for one in seen] == [[0, 1], [2]]
    frames = np.concatenate([one.data["data"] for one in seen])
    assert np.array_equal(frames, numbers(LARGE, 0, 3)[:, 0])


def open_here() -> list[str]:
    return [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]


@pytest.mark.parametrize("safe", [False, True])
def test_a_file_that_cannot_be_closed_is_told_of_and_let_go(tmp_path: Path, safe: bool) -> None:
    make = partial(SaveDense.load, {"compression": "none"}, "test")
    context = context_of(tmp_path / "a", LARGE)
    sink = started(make(), LARGE, context)
    sink.write(some(LARGE, 0))
    sink.flush()
    if not safe:
        sink.write(some(LARGE, 1))
    else:
        Path(sink.files[0]).touch()  # somebody has taken the name
    with (
        files_no_larger_than(1000),
        pytest.raises(StorageError, match=r"a_0_00000\.h5 cannot be .*: File (too large|exists)"),
    ):
        sink.finish()
    assert f"{sink.files[0]}.part" not in open_here()
    assert read(f"{sink.files[0]}.part").frames["index"].tolist() == [0]
    following = started(make(), LARGE, replace(context, paths={"raw": str(tmp_path / "b")},
                                               shared={}))  # fmt: skip
    following.write(some(LARGE, 0))
    following.finish()
    assert np.array_equal(read(following.files[0]).data["data"], numbers(LARGE, 0, 1)[:, 0])
