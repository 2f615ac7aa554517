"""What is in a file, said to people and programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lima2py.errors import StorageError
from lima2py.frame import Absence, Block, Fate, FrameSpec
from lima2py.geometry import Affine
from lima2py.storage.layout import entry_of
from lima2py.storage.logs import Series
from lima2py.storage.masters.master import Ending, Saved, write_master
from lima2py.storage.names import master_path
from lima2py.storage.reading.describe import describe, describe_plain
from lima2py.storage.saving.sinks import SaveDense, SaveTable
from tests.storage.made_up import (
    LOST,
    MadeUpRun,
    context_of,
    noise,
    numbers,
    round_robin,
    started,
)

TURNED = FrameSpec.dense(4, 6, np.uint16, to_detector=Affine(0, 2, 10, -2, 0, 90))
PIXELS = FrameSpec("sparse", (1, 12, 16), np.dtype([("index", "u4"), ("value", "i4")]))
TABLE = FrameSpec("table", (2,), np.dtype([("min", "f8"), ("sum", "f8")]), labels=("a", "halo"))


def test_a_description_says_what_a_person_looks_for(tmp_path: Path) -> None:
    run = round_robin(TURNED, 60, 5, 2, absent=[3, 7, 8, 9, *range(20, 60, 2)])
    path = run.write(tmp_path / "a")
    text = describe(path)
    for said in (
        'a_master.h5: run "scan 42" (01234567), stopped',
        "sink          raw",
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
    assert "a_1_00000.h5 (missing)" in describe(path)
    assert "file of node node0 alone" in describe(run.node_files[0][0])


def test_a_description_lists_many_reasons_briefly(tmp_path: Path) -> None:
    spec = FrameSpec.dense(1, 2, np.uint16)
    missing = {i: Absence(Fate.OVERRUN, "ring", f"reason {i}") for i in range(20)}
    block = Block(spec, 0, 21, numbers(spec, 0, 21), missing)
    text = describe(MadeUpRun(spec, [(0, block)], 21, 21).write(tmp_path / "a"))
    assert "7 (ring: reason 7); 12 more reasons" in text


def test_a_description_for_programs_is_json(tmp_path: Path) -> None:
    run = round_robin(TURNED, 12, 5, 2, absent=[3, 4])
    plain = json.loads(json.dumps(describe_plain(run.write(tmp_path / "a"))))
    raw = plain["sinks"]["raw"]
    assert raw["fates"] == {"saved": 10, "detector_gap": 2}
    assert raw["absences"] == [[3, 4, "detector_gap", "made up", "lost on the way"]]
    assert raw["shape"] == [12, 4, 6]
    assert raw["missing"] == []
    assert raw["product"]["to_detector"] == [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]
    assert plain["outcome"] == "stopped"
    assert plain["tasks"]["raw"]["to_detector"] == [[0, 2, 10], [-2, 0, 90], [0, 0, 1]]
    assert plain["parameters"]["requested"] == {"acquisition": {"nb_frames": 7}}
    assert plain["rois"] == {"beam.direct": [10, 20, 30, 40]}


def test_a_file_without_frames_is_described(tmp_path: Path) -> None:
    assert "frames        none" in describe(MadeUpRun(TURNED, [], 0).write(tmp_path / "a"))
    with pytest.raises(StorageError, match=r"gone\.h5 cannot be read"):
        describe(tmp_path / "gone.h5")


def test_tables_are_described_by_their_rows_and_columns(tmp_path: Path) -> None:
    text = describe(round_robin(TABLE, 4, 2, 1).write(tmp_path / "a"))
    assert "rows          a, halo" in text
    assert "columns       min, sum" in text


def test_sparse_frames_are_described_by_how_many_rows_they_have(tmp_path: Path) -> None:
    block = Block(PIXELS, 0, 30, noise(PIXELS, 30, 3), {1: LOST})
    run = MadeUpRun(PIXELS, [(0, block)], 30, 30)
    count = sum(map(len, run.expected_rows()))
    assert count > 5
    text = describe(run.write(tmp_path / "a"))
    assert f"sparse rows of index, value; {count} in all, {count / 30:.3g} a frame" in text


def test_sinks_that_share_a_file_are_described_one_by_one_with_metadata_and_logs(
    tmp_path: Path,
) -> None:
    paths = {"raw": str(tmp_path / "a"), "counts": str(tmp_path / "a")}
    metadata = {
        "sample": {"name": "insulin", "temperature": {"value": 100, "units": "K"}, "mass": None}
    }
    shared: dict[str, object] = {}
    sinks = [
        started(
            sink,
            spec,
            context_of(
                tmp_path, spec, task=task, paths=paths, shared=shared, metadata=metadata,
                nb_frames=3,
            ),
        )
        for task, spec, sink in (("raw", TURNED, SaveDense()), ("counts", TABLE, SaveTable()))
    ]  # fmt: skip
    run = round_robin(TURNED, 3, 3, 1)
    run.write(tmp_path / "other")
    for sink, spec in zip(sinks, (TURNED, TABLE), strict=True):
        sink.write(Block(spec, 0, 3, numbers(spec, 0, 3)))
    for sink in sinks:
        sink.finish()
    products = [
        Saved(entry_of(sink._run), sink._run, sink.saved, run.table, {0: sink.files})
        for sink in sinks
    ]
    logs = {"ring/fill": Series([1.7e9, 1.7e9 + 1], [0.25, 0.5], "%"),
            "shutter": Series([1.7e9], ["open"])}  # fmt: skip
    path = master_path(tmp_path / "a")
    assert write_master(path, products, Ending("completed", logs=logs)) == []
    text = describe(path)
    for said in (
        "sink          raw\n  frames        3 of 3 asked",
        "sink          counts\n  frames        3 of 3 asked",
        "metadata      sample.name  insulin\n                sample.temperature  100 K",
        "logs          ring/fill  2 values, 0.25 to 0.5 %\n                shutter  1 values",
    ):
        assert said in text
    assert "mass" not in text
    plain = describe_plain(path)
    assert list(plain["sinks"]) == ["raw", "counts"]
    assert plain["logs"] == {"ring/fill": 2, "shutter": 1}
    assert plain["metadata"] == metadata
