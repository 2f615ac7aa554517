"""Compressed frames are in the files byte by byte as they came, and readers see images."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, get_args

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lima2py_detectors.simulator import verifiable_frames

from lima2py.codec import Encoding, codec
from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.session.session import Session
from lima2py.storage.layout import fill_value
from lima2py.storage.saving.raw import SaveRaw
from tests.storage import plain
from tests.storage.made_up import LOST, context_of, started

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
GRAPH = """
graph: raw
tasks:
  kept: {do: save_raw, from: detector, checksum: true}
  images: {do: decode, from: detector}
  counted: {do: roi_counters, from: images, rois: {all: [0, 0, 60, 40]}}
  counts: {do: save_table, from: counted}
"""


def compressed(images: Array, encoding: Encoding) -> tuple[Block, list[bytes]]:
    """Images as a detector sends them, and their payloads; one lane is free behind the last."""
    bands, height, width = images.shape[1:]
    spec = FrameSpec.dense(height, width, images.dtype, bands=bands)
    compress = codec(encoding).encode
    payloads = [bytes(compress(image)) for image in images]
    data = np.full((len(images), max(map(len, payloads)) + 9), 0xEE, np.uint8)
    for room, payload in zip(data, payloads, strict=True):
        room[: len(payload)] = np.frombuffer(payload, np.uint8)
    encoded = FrameSpec.encoded(spec, encoding, data.shape[1])
    sizes = np.array([len(payload) for payload in payloads], np.uint64)
    return Block(encoded, 0, len(images), data, columns={SIZES: sizes}), payloads


def stored(path: str | Path) -> list[tuple[int, bytes] | None]:
    """What lies in a file, by row: filter mask and bytes; None where there is nothing."""
    with h5py.File(path, "r") as file:
        data = plain.detector_group(file)["data"]
        found: list[tuple[int, bytes] | None] = [None] * len(data)
        for number in range(data.id.get_num_chunks()):
            origin = data.id.get_chunk_info(number).chunk_offset
            mask, content = data.id.read_direct_chunk(origin)
            found[origin[0]] = mask, bytes(content)
        return found


@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(["u1", "u2", "i4", "f4"]),
    st.integers(1, 2),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sets(st.integers(0, 15)),
)
@settings(max_examples=25)
def test_bytes_and_pixels_and_absences_are_kept(
    tmp_path_factory: pytest.TempPathFactory,
    encoding: Encoding,
    dtype: str,
    bands: int,
    sizes: list[int],
    gone: set[int],
) -> None:
    images = np.random.default_rng(len(gone)).poisson(2, (sum(sizes), bands, 13, 17)).astype(dtype)
    whole, payloads = compressed(images, encoding)
    prefix = tmp_path_factory.mktemp("raw") / "raw"
    sink = started(SaveRaw(checksum=True), whole.spec, context_of(prefix, whole.spec))
    gone = {index for index in gone if index < len(images)}
    whole = whole.refuse(dict.fromkeys(gone, LOST))
    first = 0
    for size in sizes:
        assert sink.write(whole.part(first, first + size)) == first
        sink.flush()
        first += size
    sink.finish()
    (path,) = sink.files
    assert stored(path) == [
        None if index in gone else (0, payload) for index, payload in enumerate(payloads)
    ]
    found = plain.read(path)
    due = images.copy()
    due[sorted(gone)] = fill_value(images.dtype)
    np.testing.assert_array_equal(found.data["data"], due if bands > 1 else due[:, 0], strict=True)
    assert found.absences == dict.fromkeys(gone, LOST)
    np.testing.assert_array_equal(found.frames["nbytes"], whole.columns[SIZES])
    np.testing.assert_array_equal(
        found.frames["crc32"],
        [0 if at in gone else zlib.crc32(payload) for at, payload in enumerate(payloads)],
    )


def test_images_that_are_not_compressed_are_refused() -> None:
    with pytest.raises(BadParameter, match=r"^from: .*use save_dense"):
        SaveRaw().prepare(FrameSpec.dense(4, 4, "u2"))
    with pytest.raises(BadParameter, match="compression"):
        SaveRaw.load({"compression": "bslz4"}, "raw")


def acquire(output: Path, graph: str = GRAPH, nodes: int = 0, **how: Any) -> Any:
    path = output / "raw.yaml"
    path.write_text(graph)
    detector = how.pop("detector", "simulator")
    with Session.open(detector, processing_nodes=nodes, detector=how.pop("set")) as session:
        session.prepare(graph=path, output=output, name="r", expo_time=1e-6, **how)
        session.start()
        report = session.wait(60)
    assert report.ok, report
    return report


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_a_detector_that_compresses_is_saved_and_seen(tmp_path: Path, nodes: int) -> None:
    how = {"pattern": "verifiable", "shape": [40, 60], "encoding": "bslz4", "drop": [5, 71]}
    report = acquire(tmp_path, nodes=nodes, set=how, nb_frames=90)
    assert report.saved == 88
    images = verifiable_frames(0, 90, (40, 60), "uint16")[:, 0]
    found = plain.read(report.masters["kept"])
    present = np.delete(np.arange(90), [5, 71])
    np.testing.assert_array_equal(found.data["data"][present], images[present])
    assert (found.data["data"][[5, 71]] == 65535).all()
    assert sorted(found.absences) == [5, 71]
    counts = plain.read(report.masters["counts"]).data["data"]
    np.testing.assert_array_equal(
        counts["sum"][present, 0], images[present].sum(axis=(1, 2), dtype=float)
    )
    many = [stored(path) for path in sorted(tmp_path.glob("r_kept_?_00000.h5"))]
    assert len(many) == max(1, nodes)
    compress = codec("bslz4").encode
    assert {item for rows in many for item in rows if item} == {
        (0, bytes(compress(images[index : index + 1]))) for index in present
    }


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_recorded_file_is_copied_chunk_by_chunk(tmp_path: Path, nodes: int) -> None:
    images = np.random.default_rng(5).poisson(3, (40, 64, 48)).astype(np.uint32)
    recorded = tmp_path / "recorded.h5"
    with h5py.File(recorded, "w") as file:
        file.create_dataset("data", data=images, chunks=(1, 64, 48), **hdf5plugin.Bitshuffle())
        chunks = [file["data"].id.read_direct_chunk((at, 0, 0))[1] for at in range(40)]
    report = acquire(
        tmp_path,
        "graph: copy\ntasks: {kept: {do: save_raw, from: detector}}",
        nodes,
        detector="replay",
        set={"files": str(recorded), "encoded": True, "pace": "flat_out"},
        nb_frames=40,
    )
    assert report.saved == 40
    found = plain.read(report.masters["kept"])
    np.testing.assert_array_equal(found.data["data"], images, strict=True)
    files = sorted(tmp_path.glob("r_kept_?_00000.h5"))
    assert len(files) == nodes
    for path in files:
        rows = stored(path)
        index = plain.read(path).frames["index"]
        assert rows == [(0, bytes(chunks[number])) for number in index]


def test_a_damaged_frame_is_kept_as_it_came_and_corrupt_where_it_is_decoded(
    tmp_path: Path,
) -> None:
    images = np.random.default_rng(5).poisson(3, (9, 64, 48)).astype(np.uint16)
    recorded = tmp_path / "recorded.h5"
    with h5py.File(recorded, "w") as file:
        data = file.create_dataset(
            "data", data=images, chunks=(1, 64, 48), **hdf5plugin.Bitshuffle()
        )
        damaged = bytearray(data.id.read_direct_chunk((4, 0, 0))[1])
        damaged[12:16] = b"\xff" * 4
        data.id.write_direct_chunk((4, 0, 0), bytes(damaged), 0)
    report = acquire(
        tmp_path,
        GRAPH.replace("60, 40", "48, 64"),
        detector="replay",
        set={"files": str(recorded), "encoded": True, "pace": "flat_out"},
        nb_frames=0,
    )
    assert report.absent == {"corrupt": 1}
    (path,) = tmp_path.glob("r_kept_0_00000.h5")
    assert stored(path)[4] == (0, bytes(damaged))
    with h5py.File(report.masters["kept"]) as file:
        data = plain.detector_group(file)["data"]
        for at in (0, 3, 5, 8):
            np.testing.assert_array_equal(data[at], images[at])
        with pytest.raises(OSError, match="filter returned failure"):
            data[4]
    counted = plain.read(report.masters["counts"])
    assert set(counted.absences) == {4}
    said = counted.absences[4]
    assert said == Absence(Fate.CORRUPT, "images", said.detail)
    assert said.detail.startswith("bslz4: ")


def test_a_graph_that_saves_compressed_frames_as_images_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadGraph, match=r"put decode before it \(save_raw saves them as they are"):
        acquire(tmp_path, GRAPH.replace("save_raw", "save_dense"), set={"encoding": "bslz4"})
