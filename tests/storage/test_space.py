"""What a run will need on the disk is told before it begins."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from lima2py.frame import FrameSpec
from lima2py.graph.definition import parse_graph
from lima2py.graph.plan import Plan
from lima2py.session.session import Session
from lima2py.storage.saving.space import Need, needs, shortages

GRAPH = """
graph: test
tasks:
  raw: {do: save_dense, from: detector, compression: none}
  view: {do: bin, from: detector, by: [2, 2]}
  small: {do: save_dense, from: view}
  eight: {do: accumulate, from: detector, frames: 8}
  sums: {do: save_dense, from: eight, compression: gzip}
  photons: {do: sparsify, from: detector, above: 0}
  sparse: {do: save_sparse, from: photons}
  flat: {do: save_flat, from: detector}
"""


def wanted(folder: Path, nb_frames: int) -> dict[str, Need]:
    plan = Plan.make(parse_graph(GRAPH, "test", folder), FrameSpec.dense(64, 32, "u2"))
    paths = {sink: folder / "new" / f"scan_{sink}" for sink in plan.sinks}
    return {need.sink: need for need in needs(plan.sinks, plan.specs, paths, nb_frames)}


def test_a_sink_needs_its_frames_times_their_bytes(tmp_path: Path) -> None:
    found = wanted(tmp_path, 100)
    sums = Plan.make(parse_graph(GRAPH, "test", tmp_path), FrameSpec.dense(64, 32, "u2")).specs
    assert {sink: need.nbytes for sink, need in found.items()} == {
        "raw": 100 * 64 * 32 * 2,
        "small": 100 * 32 * 16 * sums["view"].dtype.itemsize,
        "sums": 12 * 64 * 32 * sums["eight"].dtype.itemsize,
        "sparse": None,
        "flat": 100 * 64 * 32 * 2,
    }
    assert str(found["flat"]) == f"flat writes {tmp_path}/new/scan_flat_*, 400 KiB"
    assert str(found["raw"]) == f"raw writes {tmp_path}/new/scan_raw_master.h5, 400 KiB"
    assert str(found["sums"]).endswith("KiB before compression")
    assert str(found["sparse"]) == f"sparse writes {tmp_path}/new/scan_sparse_master.h5"


def test_nobody_knows_what_a_run_without_end_needs(tmp_path: Path) -> None:
    endless = wanted(tmp_path, 0).values()
    assert {need.nbytes for need in endless} == {None}
    assert shortages(list(endless)) == []


def test_enough_room_is_no_warning(tmp_path: Path) -> None:
    assert shortages(list(wanted(tmp_path, 1).values())) == []
    assert shortages([]) == []


class Disk(NamedTuple):
    """What `os.statvfs` says of it."""

    f_bavail: int
    f_frsize: int = 1024


def test_sinks_on_one_disk_share_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Need(name, tmp_path / "new" / name, name, 3 * 2**20, name == "b") for name in "ab"]
    monkeypatch.setattr(os, "statvfs", lambda _path: Disk(4 * 1024))
    assert shortages(both[:1]) == []
    (said,) = shortages(both)
    assert said == (
        f"warning: 4 MiB are free on the disk of {tmp_path}, and more may be written to it: a 3 MiB"
        f" ({tmp_path}/new/a), b 3 MiB before compression ({tmp_path}/new/b); make room, choose"
        " another output folder, or save less"
    )
    monkeypatch.setattr(os, "statvfs", lambda _path: Disk(6 * 1024))
    assert shortages(both) == []


def test_every_disk_has_room_of_its_own(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    far = [
        Need("here", tmp_path / "x", "x", 2**60, False),
        Need("there", memory / "x", "x", 1, False),
    ]
    (said,) = shortages(far)
    assert "here 1.049e+06 TiB" in said
    assert "there" not in said


def test_a_session_warns_of_a_disk_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH)
    with Session.open("simulator") as lima:
        monkeypatch.setattr(os, "statvfs", lambda _path: Disk(8))
        lima.prepare(graph=graph, output=tmp_path / "out", nb_frames=100, expo_time=0.001)
        (said,) = lima.warnings
        assert re.match(
            rf"warning: 8 KiB are free on the disk of {tmp_path}/out, .*: raw .*MiB"
            rf" \({tmp_path}/out/run_raw\), small .* before compression",
            said,
        )
        monkeypatch.undo()
        lima.prepare(graph=graph, output=tmp_path / "out", nb_frames=8, expo_time=0.001)
        assert lima.warnings == []
    assert not (tmp_path / "out").exists()
