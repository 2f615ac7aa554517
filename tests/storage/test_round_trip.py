"""What goes into any sink comes out of the master bit by bit, however it was cut and dealt out."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.storage.masters import ragged, virtual
from lima2py.testing.strategies import absences
from tests.storage.made_up import LOST, MadeUpRun, noise, reasons_of
from tests.storage.plain import Plain, read, same_bits

COMPRESSIONS = ("none", "bslz4", "bszstd", "gzip", "blosc2")
NUMBERS = ("b1", "u1", "i1", "u2", ">u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", ">f4", "f8")
COUNTERS = np.dtype([("min", "<u4"), ("sum", "<f8"), ("avg", "<f4")])
PEAKS = np.dtype([("x", "<f4"), ("y", "<f8"), ("nb_pixels", "<u2")])
PIXELS = np.dtype([("index", "<u4"), ("value", "<u2")])

specs = st.one_of(
    st.builds(
        lambda shape, dtype, bands: FrameSpec.dense(shape[0], shape[1], dtype, bands=bands),
        st.sampled_from([(1, 1), (3, 5), (17, 8), (150, 140)]),
        st.sampled_from(NUMBERS),
        st.integers(1, 3),
    ),
    st.builds(
        lambda length, dtype: FrameSpec("vector", (length,), np.dtype(dtype)),
        st.sampled_from([1, 7, 5000]),
        st.sampled_from([*NUMBERS, "c8", "c16"]),
    ),
    st.builds(
        lambda rows: FrameSpec("table", (rows,), COUNTERS, labels=("a b", "a_b")[:rows]),
        st.integers(1, 3),
    ),
    st.just(FrameSpec("sparse", (1, 20, 30), PEAKS)),
    st.builds(
        lambda value: FrameSpec(
            "sparse", (1, 20, 30), np.dtype([("index", "<u4"), ("value", value)])
        ),
        st.sampled_from(["u1", "<u2", "<i4", "<f4", "<f8"]),
    ),
)


@st.composite
def gone(draw: st.DrawFn, count: int) -> dict[int, Absence]:
    """Which frames of a block are absent: none, the first, the last, all, or any."""
    chosen = draw(st.sampled_from(["none", "none", "first", "last", "all", "any"]))
    if chosen == "any":
        return draw(absences(count))
    places = {"none": [], "first": [0], "last": [count - 1], "all": range(count)}
    return dict.fromkeys(places[chosen], LOST)


@st.composite
def runs(draw: st.DrawFn, specs: st.SearchStrategy[FrameSpec] = specs) -> MadeUpRun:
    """Blocks of all sizes in any order, given to any node, some of them again to another one."""
    spec = draw(specs)
    sizes = [1, 2, 5, 16, 200]
    most = draw(st.sampled_from([size for size in sizes if size == 1 or size * spec.nbytes < 2e5]))
    counts = draw(st.lists(st.integers(1, most), max_size=9))
    everything = draw(st.sampled_from([False, False, False, True]))
    blocks, index = [], draw(st.sampled_from([0, 0, 2]))
    for number, count in enumerate(counts):
        missing = dict.fromkeys(range(count), LOST) if everything else draw(gone(count))
        blocks.append(_block(draw, spec, index, count, missing, number))
        index += count + draw(st.sampled_from([0, 0, 0, 3]))
    for place in draw(st.lists(st.integers(0, 8), max_size=3)):  # its first node was lost, say
        if place < len(blocks):
            first = blocks[place]
            missing = draw(gone(first.count))
            blocks.append(_block(draw, spec, first.index, first.count, missing, 100 + len(blocks)))
    if draw(st.booleans()):
        blocks = draw(st.permutations(blocks))
    nodes = draw(st.integers(1, 3))
    ranks = [draw(st.integers(0, nodes - 1)) for _ in blocks]
    return MadeUpRun(
        spec, list(zip(ranks, blocks, strict=True)), index + draw(st.sampled_from([0, 2])), most,
        flush_after=draw(st.frozensets(st.integers(0, 11))),
    )  # fmt: skip


def _block(
    draw: st.DrawFn, spec: FrameSpec, index: int, count: int, missing: dict[int, Absence], seed: int
) -> Block:
    data = None if len(missing) == count else noise(spec, count, seed)
    columns: dict[str, Array] = {"timestamp": np.arange(index, index + count) * 0.5 + seed}
    if draw(st.booleans()):
        columns["temperature"] = np.arange(count, dtype="f4") + seed
    return Block(spec, index, count, data, missing, columns)


@st.composite
def runs_and_sinks(
    draw: st.DrawFn, specs: st.SearchStrategy[FrameSpec] = specs
) -> tuple[MadeUpRun, dict[str, Any]]:
    """A run, and the parameters of its sink."""
    run = draw(runs(specs))
    most = run.frames_per_block
    limits = [0, 0, most // 3 + 1, 3 * most]
    return run, {
        "compression": draw(st.sampled_from(COMPRESSIONS)),
        "frames_per_file": draw(st.sampled_from(limits)),
        "bytes_per_file": draw(st.sampled_from([0, 0, 1, 30_000])),
        "checksum": draw(st.booleans()),
    }


@settings(max_examples=70)
@given(runs_and_sinks(), st.sampled_from([0, virtual.MAX_MAPPINGS]))
def test_every_frame_comes_back_through_the_master_as_it_was_given(
    given_to: tuple[MadeUpRun, dict[str, Any]], most: int
) -> None:
    run, fields = given_to
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual, "MAX_MAPPINGS", most)
        patch.setattr(ragged, "MAX_MAPPINGS", most)
        path = run.write(Path(folder) / "a", **fields)
        assert run.problems == []
        seen = read(path)
        assert_data(run, seen)
        assert_records(run, seen, checksum=bool(fields["checksum"]))
        assert_files(run, fields)


def assert_data(run: MadeUpRun, seen: Plain) -> None:
    """Every frame, bit by bit, and the fill value where there is none."""
    if run.spec.kind != "sparse":
        assert same_bits(seen.data["data"], run.expected())
        return
    names = run.spec.dtype.names or ()
    columns = {name: {"value": "intensity"}.get(name, name) for name in names}
    if "index" not in names:
        columns = {name: name for name in names}
    rows = seen.rows(columns)
    expected = run.expected_rows()
    assert len(rows) == len(expected) == run.nb_frames
    assert seen.data["nnz"].tolist() == [len(frame) for frame in expected]
    assert int(seen.data["frame_ptr"][-1]) == sum(map(len, expected))
    for found, frame in zip(rows, expected, strict=True):
        for name in names:
            assert same_bits(found[name], frame[name])


def assert_records(run: MadeUpRun, seen: Plain, *, checksum: bool) -> None:
    """What is said of every frame, and of every frame that has no data."""
    frames, table = seen.frames, run.table
    assert frames["index"].tolist() == list(range(run.nb_frames))
    assert frames["fate"].tolist() == table.fate.tolist()
    assert frames["node"].tolist() == table.node.tolist()
    assert frames["row"].tolist() == table.row.tolist()
    times = run.expected_records("timestamp", np.nan)
    assert np.array_equal(frames["timestamp"], times, equal_nan=True)
    if "temperature" in frames:
        warm = run.expected_records("temperature", np.nan)
        assert np.array_equal(frames["temperature"], warm, equal_nan=True)
    else:
        assert not any("temperature" in block.columns for _, block in run.blocks)
    assert seen.absences == {
        frame: said._replace(detail=said.detail.replace("\0", "\ufffd"))
        for frame, said in reasons_of(table).items()
    }
    assert ("crc32" in frames) == (checksum and bool(run.blocks))
    if "crc32" in frames:
        assert frames["crc32"].tolist() == expected_checksums(run)


def expected_checksums(run: MadeUpRun) -> list[int]:
    """By `zlib` of the bytes in C order, of sparse frames column after column; 0 if absent."""
    found = [0] * run.nb_frames
    for _, block in run.blocks:
        for frame in block.frames():
            parts: list[Array] = []
            if frame.data is not None:
                names = frame.data.dtype.names if run.spec.kind == "sparse" else None
                parts = [frame.data[name] for name in names] if names else [frame.data]
            found[frame.index] = zlib.crc32(b"".join(part.tobytes() for part in parts))
    return found


def assert_files(run: MadeUpRun, fields: dict[str, Any]) -> None:
    """As many files as the limits say; each frame a node had lies in one, and none is left open."""
    limit = fields["frames_per_file"]
    for rank, files in run.node_files.items():
        rows = []
        for path in files:
            with h5py.File(path, "r") as file:
                rows.append(len(file["entry_0000/measurement/index"]))
                assert file["entry_0000/lima2py"].attrs["first_row"] == sum(rows[:-1])
        assert sum(rows) == sum(block.count for node, block in run.blocks if node == rank)
        if limit:
            assert max(rows) <= limit
        if limit and not fields["bytes_per_file"]:
            assert rows[:-1] == [limit] * (len(rows) - 1)
        if not limit and not fields["bytes_per_file"]:
            assert len(rows) == 1
    folders = {Path(path).parent for files in run.node_files.values() for path in files}
    left = {path for folder in folders for path in folder.iterdir() if path.suffix != ".h5"}
    assert not left


def pixels_in_turn(nb_frames: int) -> MadeUpRun:
    """Pixels, dealt out one frame after the other, so that no two of a node follow each other."""
    spec = FrameSpec("sparse", (1, 20, 30), PIXELS)
    blocks = []
    for index in range(nb_frames):
        data = Ragged.of(np.array([1 + index % 3]), {
            "index": np.arange(1 + index % 3, dtype="u4"),
            "value": np.full(1 + index % 3, index, "u2"),
        })  # fmt: skip
        blocks.append((index % 2, Block(spec, index, 1, data)))
    return MadeUpRun(spec, blocks, nb_frames)


def layouts(path: str) -> Iterator[int]:
    with h5py.File(path) as file:
        for name in ("index", "intensity"):
            column = file[f"entry_0000/instrument/Eiger_4M_b/data/{name}"]
            yield column.id.get_create_plist().get_layout()


def test_pixels_that_are_copied_into_the_master_are_those_that_it_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pixels_in_turn(60)
    shown = read(path := run.write(tmp_path / "a"))
    assert set(layouts(path)) == {h5py.h5d.VIRTUAL}
    monkeypatch.setattr(ragged, "MAX_MAPPINGS", 59)
    monkeypatch.setattr(ragged, "CHUNK", 8)  # frames reach over the edges of chunks
    monkeypatch.setattr(ragged, "AT_ONCE", 12)
    copied = read(path := run.write_master(tmp_path / "a"))
    assert set(layouts(path)) == {h5py.h5d.CHUNKED}
    assert_data(run, copied)
    assert copied.data.keys() == shown.data.keys()
    for name, values in shown.data.items():
        assert same_bits(values, copied.data[name]), name


def test_pixels_of_more_stretches_than_hdf5_looks_through_quickly_are_copied(
    tmp_path: Path,
) -> None:
    run = pixels_in_turn(virtual.MAX_MAPPINGS + 1)
    path = run.write(tmp_path / "a")
    assert set(layouts(path)) == {h5py.h5d.CHUNKED}
    assert_data(run, read(path))


BACKGROUND = FrameSpec("table", (9,), np.dtype([("radius", "f4"), ("avg", "f4"), ("std", "f4")]))


def background_of(block: Block) -> Block:
    """A level for each frame; the first bin of every other one has none."""
    levels = np.zeros((block.count, 9), BACKGROUND.dtype)
    levels["avg"] = (np.arange(block.index, block.end)[:, None] * 10 + np.arange(9)).astype("f4")
    levels["std"] = levels["avg"] / 4
    levels["avg"][np.arange(block.index, block.end) % 2 == 1, 0] = np.nan
    data = None if block.data is None else levels
    return Block(BACKGROUND, block.index, block.count, data, block.absences)


@settings(max_examples=30)
@given(runs_and_sinks(st.just(FrameSpec("sparse", (1, 20, 30), PIXELS))))
def test_the_background_of_pixels_comes_back_with_them(
    given_to: tuple[MadeUpRun, dict[str, Any]],
) -> None:
    run, fields = given_to
    run.background = background_of
    with tempfile.TemporaryDirectory() as folder:
        seen = read(run.write(Path(folder) / "a", **fields))
    assert run.problems == []
    assert_data(run, seen)
    if not run.blocks:
        return
    level = np.zeros((run.nb_frames, 9), "f4")
    saved = run.table.fate == Fate.SAVED
    level[saved] = np.flatnonzero(saved)[:, None] * 10 + np.arange(9)
    odd = saved & (np.arange(run.nb_frames) % 2 == 1)
    std = level / 4
    level[odd, 0] = level[odd, 1]  # filled from the nearest bin that has one
    assert same_bits(seen.data["background_avg"], level)
    assert same_bits(seen.data["background_std"], std)
