"""Every sink, several in one file, on any nodes: what masters and previews show is exact."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from lima2py_detectors.simulator import verifiable_frames
from scipy import ndimage

from lima2py.frame import Array, Fate
from lima2py.session.launch import Child
from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.storage.care.verify import verify
from lima2py.storage.masters import of_run as masters
from tests.storage import plain
from tests.system.rig import check_account, wait_until

SHAPE = (24, 36)
DETECTOR = {"pattern": "verifiable", "shape": SHAPE}
MISSING = {"drop": [5, 77], "corrupt": [30], "incomplete": [101]}
SHARED = {"file": "{name}_all", "frames_per_file": 70}
GRAPH: dict[str, dict[str, Any]] = {
    "raw": {"do": "save_dense", "from": "detector", "checksum": True, **SHARED},
    "small": {"do": "bin", "from": "detector", "by": [2, 2]},
    "binned": {"do": "save_dense", "from": "small", "compression": "blosc2", **SHARED},
    "ten": {"do": "accumulate", "from": "detector", "frames": 10},
    "sums": {"do": "save_dense", "from": "ten", "compression": "bszstd", **SHARED},
    "regions": {"do": "roi_counters", "from": "detector", "rois": {"all": [0, 0, 36, 24]}},
    "counts": {"do": "save_table", "from": "regions", "compression": "none", **SHARED},
    "bright": {"do": "sparsify", "from": "detector", "above": 65000},
    "pixels": {"do": "save_sparse", "from": "bright", **SHARED},
    "columns": {"do": "roi_profiles", "from": "detector", "box": [0, 0, 36, 24], "axis": "x"},
    "curves": {"do": "save_vector", "from": "columns", "compression": "gzip",
               "bytes_per_file": "100 KiB"},
    "spots": {"do": "find_peaks", "from": "bright"},
    "peaks": {"do": "save_table", "from": "spots", "node_file": "{file}_{node}_{number}"},
}  # fmt: skip
SINKS = [name for name, entry in GRAPH.items() if entry["do"].startswith("save_")]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    path.write_text(json.dumps({"tasks": GRAPH}))
    return path


@pytest.fixture(scope="module", params=[(1, 0), (1, 1), (1, 2), (2, 2)], ids=str)
def session(
    request: pytest.FixtureRequest, graph: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """On so many acquisition and processing nodes, which are there already."""
    acquisition, processing = request.param
    with Session.open(
        "simulator", acquisition_nodes=acquisition, processing_nodes=processing,
        detector={**DETECTOR, **MISSING},
    ) as opened:  # fmt: skip
        run_of(opened, graph, tmp_path_factory.mktemp("first"), 10, 1e-5)
        opened.wait(60)
        yield opened


@dataclass
class Expected:
    """What numpy and scipy make of the frames a detector gives.

    Attributes:
        frames: array `(frames, height, width)`.
    """

    frames: Array

    @classmethod
    def of(cls, count: int) -> Expected:
        return cls(verifiable_frames(0, count, SHAPE, "uint16")[:, 0])

    def check(self, sink: str, seen: plain.Plain, rows: Array, indices: Array) -> None:
        """Fail unless these rows of an entry are these frames, or groups of ten of them."""
        if sink == "sums":
            tens = self.frames[: len(self.frames) // 10 * 10].reshape(-1, 10, *SHAPE)
            np.testing.assert_array_equal(seen.data["data"][rows], tens[indices].sum(1, np.uint32))
            return
        wanted = self.frames[indices]
        if sink == "raw":
            np.testing.assert_array_equal(seen.data["data"][rows], wanted)
        elif sink == "binned":
            parts = wanted.reshape(-1, 12, 2, 18, 2)
            np.testing.assert_array_equal(seen.data["data"][rows], parts.sum((2, 4), np.uint32))
        elif sink == "counts":
            found = seen.data["data"][rows][:, 0]
            np.testing.assert_array_equal(found["sum"], wanted.sum((1, 2), np.int64))
            np.testing.assert_array_equal(found["max"], wanted.max((1, 2)))
        elif sink == "curves":
            np.testing.assert_allclose(seen.data["data"][rows], wanted.sum(1, np.int64))
        elif sink == "pixels":
            sparse = seen.rows({"index": "index", "value": "intensity"})
            for row, frame in zip(rows.tolist(), wanted, strict=True):
                places = np.flatnonzero(frame > 65000)
                np.testing.assert_array_equal(sparse[row]["index"], places)
                np.testing.assert_array_equal(sparse[row]["value"], frame.ravel()[places])
        else:
            ragged = seen.rows({"intensity": "intensity", "x": "x", "nb_pixels": "nb_pixels"})
            for row, frame in zip(rows.tolist(), wanted, strict=True):
                labels, count = ndimage.label(frame > 65000, np.ones((3, 3)))
                every = np.arange(1, count + 1)
                weights = ndimage.sum(frame.astype("f8"), labels, every)
                centres = ndimage.center_of_mass(frame.astype("f8"), labels, every)
                np.testing.assert_array_equal(ragged[row]["intensity"], weights)
                np.testing.assert_array_equal(
                    ragged[row]["nb_pixels"], np.bincount(labels.ravel())[1:]
                )
                np.testing.assert_allclose(ragged[row]["x"], [x + 0.5 for _, x in centres])


def entry_of(sink: str) -> str:
    """Sinks that share a file have an entry each, in the order of the graph."""
    shared = [name for name in SINKS if GRAPH[name].get("file")]
    return f"entry_{shared.index(sink) if sink in shared else 0:04d}"


def check_masters(report: Report) -> dict[str, int]:
    """All masters, as they are now; gives how many frames each sink saved."""
    expected = Expected.of(report.asked)
    counts = {}
    assert sorted(report.masters) == sorted(SINKS)
    check_account({**report.plain(), "masters": {"raw": report.masters["raw"]}})
    for sink, path in report.masters.items():
        seen = plain.read(path, entry_of(sink))
        fates = seen.frames["fate"]
        assert len(fates) == (report.asked // 10 if sink == "sums" else report.asked)
        assert seen.frames["index"].tolist() == list(range(len(fates)))
        assert sorted(seen.absences) == np.flatnonzero(fates != Fate.SAVED).tolist()
        words, numbers = np.unique(fates, return_counts=True)
        told = dict(zip((Fate(word).word for word in words), numbers.tolist(), strict=True))
        assert told == report.sinks[sink]
        rows = np.flatnonzero(fates == Fate.SAVED)
        expected.check(sink, seen, rows, rows)
        counts[sink] = len(rows)
    return counts


def parts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.part"))


def run_of(
    session: Session, graph: Path, output: Path, nb_frames: int, expo_time: float, **overrides: Any
) -> None:
    session.prepare(
        graph=graph, output=output, nb_frames=nb_frames, expo_time=expo_time, overrides=overrides
    )
    session.start()


def test_every_sink_saves_every_frame_on_any_nodes(
    session: Session, graph: Path, tmp_path: Path
) -> None:
    run_of(session, graph, tmp_path, 605, 1e-5)
    report = session.wait(60)
    counts = check_masters(report)
    assert report.ok, report
    assert report.errors == []
    assert report.saved == 605 - 40, "a frame that is absent costs the ten of its sum"
    assert counts == {**dict.fromkeys(SINKS, 601), "sums": 60 - 4}
    assert parts_in(tmp_path) == []
    files = [path.name for path in tmp_path.iterdir()]
    assert sum(name.endswith("_master.h5") for name in files) == 3
    assert sum("_all_" in name for name in files) >= 1 + 605 // 70
    assert len([name for name in files if "_curves_" in name]) > 2


@pytest.mark.parametrize("outcome", ["stopped", "aborted"])
def test_a_run_that_is_stopped_or_aborted_has_masters_that_hold_what_it_says(
    session: Session, graph: Path, tmp_path: Path, outcome: str
) -> None:
    run_of(session, graph, tmp_path, 20_000, 1e-3)
    wait_until(lambda: session.progress().settled > 150, "frames")
    (session.stop if outcome == "stopped" else session.abort)()
    report = session.wait(60)
    counts = check_masters(report)
    assert report.outcome == outcome
    assert 100 < counts["raw"] < 20_000
    assert parts_in(tmp_path) == []


def test_a_node_that_is_killed_leaves_its_files_and_all_their_frames_are_shown(
    graph: Path, tmp_path: Path
) -> None:
    with Session.open("simulator", processing_nodes=2, detector=DETECTOR) as session:
        output = tmp_path / "out"
        run_of(session, graph, output, 3000, 3e-4)
        wait_until(lambda: session.progress().settled > 600, "frames")
        victim = session.nodes.processing[1]
        assert isinstance(victim, Child)
        os.kill(victim.pid, signal.SIGKILL)
        report = session.wait(60)
        counts = check_masters(report)
    assert any("proc1" in text for text in report.errors), report.errors
    assert report.saved == 3000
    assert counts == {**dict.fromkeys(SINKS, 3000), "sums": 300}
    left = parts_in(output)
    assert left, "the files the node had open are not finished"
    assert all("_1_" in name or "_proc1_" in name for name in left)
    (told,) = (text for text in report.remarks if "lost nodes left" in text)
    assert f"lima2py recover {output} finishes such files" in told
    assert sum(name in told for name in left) == min(3, len(left))
    verdict = verify(Path(report.masters["raw"]))
    assert not verdict.problems
    with h5py.File(report.masters["raw"], "r") as file:
        named = file["entry_0000/lima2py/files/name"].asstr()[()].tolist()
    unfinished = {name for name in named if name.endswith(".part")}
    assert unfinished <= set(left)
    assert ("was left by a lost node; lima2py recover" in str(verdict)) == bool(unfinished)
    assert report.outcome == "completed", "each frame was given to another node, or is safe"


def follow(path: Path, sink: str, entry: str, expected: Expected) -> int:
    """Look at a file that is written just now; gives how many frames it shows."""
    try:
        with h5py.File(path, "r") as file:  # with the locks of HDF5, as any reader opens it
            if entry not in file:
                return 0  # the name is taken, and nothing is there yet
        seen = plain.read(path, entry)
    except (OSError, KeyError, RuntimeError, ValueError):
        return 0  # it is half updated at this moment, or has just been finished
    rows = np.flatnonzero(seen.frames["fate"] == Fate.SAVED)
    expected.check(sink, seen, rows, seen.frames["index"][rows].astype(int))
    return len(rows)


def looked_at_with_fabio(path: Path, expected: Expected) -> int:
    """The same for the first and the last frame, as fabio shows them."""
    if not follow(path, "raw", "entry_0000", expected):
        return 0  # fabio takes no file without a frame
    try:
        with fabio.open(path) as opened:
            index = opened.h5["entry_0000/measurement/index"][()]
            fate = opened.h5["entry_0000/measurement/fate"][: len(index)]
            saved = np.flatnonzero(fate == Fate.SAVED)[[0, -1]].tolist()
            shown = {number: opened.getframe(number).data for number in saved}
    except (OSError, KeyError, RuntimeError, ValueError):
        return 0
    for number, data in shown.items():
        np.testing.assert_array_equal(data, expected.frames[index[number]])
    return len(index)


@pytest.mark.parametrize(
    ("processing", "graph_of"), [(0, ["raw", "ten", "sums", "bright", "pixels"]), (2, ["raw"])]
)
def test_whoever_follows_a_run_sees_it_grow_and_never_a_wrong_pixel(
    tmp_path: Path, processing: int, graph_of: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on until everybody has seen something, and it has grown."""
    monkeypatch.setattr(masters, "PREVIEW_SHARE", 0.5)  # of this process; others take their time
    tasks = {name: GRAPH[name] for name in graph_of}
    (tmp_path / "graph.yaml").write_text(json.dumps({"tasks": tasks}))
    expected = Expected.of(30_000)
    sinks = [name for name in graph_of if name in SINKS]
    entries = {sink: f"entry_{place:04d}" for place, sink in enumerate(sinks)}
    readers: dict[tuple[str, str], Callable[[Path], int]] = {}
    for pattern in ("*_master.h5.part", "*_0_*.h5.part"):
        for sink, entry in entries.items():
            readers[pattern, sink] = partial(follow, sink=sink, entry=entry, expected=expected)
        readers[pattern, "fabio"] = partial(looked_at_with_fabio, expected=expected)
    seen: dict[tuple[str, str], list[int]] = {reader: [0] for reader in readers}

    def all_have_seen() -> bool:
        for (pattern, name), read in readers.items():
            seen[pattern, name] += [read(path) for path in tmp_path.glob(pattern)]
        return all(len(set(counts)) > 2 for counts in seen.values())

    with Session.open("simulator", processing_nodes=processing, detector=DETECTOR) as session:
        larger = {f"{sink}.frames_per_file": 900 for sink in entries}
        run_of(session, tmp_path / "graph.yaml", tmp_path, 0, 2e-3, **larger)
        wait_until(all_have_seen, "a preview that grows", 50)
        session.stop()
        report = session.wait(60)
    assert report.outcome == "completed"
    assert parts_in(tmp_path) == []
    for (pattern, name), counts in seen.items():
        shown = [count for count in counts if count]
        assert "master" not in pattern or shown == sorted(shown), f"{name} saw frames go away"
    for sink, entry in entries.items():
        path = Path(report.masters[sink])
        last = follow(path, sink, entry, expected)
        assert last == report.sinks[sink]["saved"] >= max(seen["*_master.h5.part", sink])
