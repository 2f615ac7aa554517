"""Frames that bring nodes down are put aside, and `lima2py isolate` names the task at fault."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.acquisition import Parameters
from lima2py.control import cli
from lima2py.control import isolate as control
from lima2py.frame import Absence, Block, Fate, FrameSpec, Ragged
from lima2py.graph.definition import parse_graph
from lima2py.graph.plan import Plan
from lima2py.session.session import Session
from lima2py.storage.care.verify import verify
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.saving.quarantine import put_aside
from lima2py.task import RunContext

MINE = """
import ctypes, os, time

def fragile(frame, at, how):
    if int(frame.max()) in at:
        print("this is", int(frame.max()), flush=True)
        if how == "crash":
            ctypes.string_at(0)
        if how == "kill":
            os.kill(os.getpid(), 9)
        if how == "hang":
            time.sleep(600)
        if how == "leave":
            os._exit(3)
        if how == "raise":
            raise ValueError("no beam")
    return frame

def fragile_block(frames, how):
    if len(frames) > 1:
        fragile(frames[0], [int(frames[0].max())], how)
    return frames
"""
SPEC = FrameSpec.dense(4, 6, "uint16")
TASKS: dict[str, Any] = {
    "flat": {"do": "threshold", "from": "detector", "low": 1},
    "fit": {"do": "python", "from": "flat", "file": "mine.py", "call": "fragile"},
    "kept": {"do": "save_dense", "from": "fit"},
    "sum": {"do": "accumulate", "from": "detector", "frames": 2},
}


def numbered(first: int, count: int, spec: FrameSpec = SPEC) -> Block:
    """Frames in which every pixel is the number of the frame."""
    data = np.empty((count, *spec.shape), spec.dtype)
    data[:] = np.arange(first, first + count).reshape(-1, *[1] * len(spec.shape))
    return Block(spec, first, count, data, {}, {"timestamp": np.arange(count) + 0.5})


def context(folder: Path, tasks: dict[str, Any]) -> RunContext:
    """That of a run that was asked to run these tasks."""
    (folder / "mine.py").write_text(MINE)
    text = json.dumps({"tasks": tasks})
    plan = Plan.make(parse_graph(text, "graph.yaml", folder), SPEC)
    graph = {"text": text, "file": "graph.yaml", "folder": str(folder), "detectors": []}
    asked = {"graph": graph}
    return RunContext(
        "ab" * 16,
        "night",
        graph=text,
        nb_frames=100,
        parameters=Parameters(asked, {}, plan.plain()),
    )


def poison(folder: Path, how: str, at: tuple[int, ...] = (12,), count: int = 4) -> Path:
    """Frames from 10 on that were put aside, and a graph that cannot stand some of them."""
    tasks = {**TASKS, "fit": {**TASKS["fit"], "with": {"at": at, "how": how}}}
    told = put_aside(folder, numbered(10, count), context(folder, tasks), "proc1 was lost")
    return Path(shlex.split(told)[-1])


Isolate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def isolate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Isolate:
    """Give the command; its status, output and complaints."""

    def give(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lima2py", "isolate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return give


@pytest.mark.parametrize("how", ["crash", "raise"])
def test_the_task_and_the_frame_at_fault_are_named(
    tmp_path: Path, isolate: Isolate, how: str
) -> None:
    path = poison(tmp_path, how, count=3)
    before = sorted(os.listdir(tmp_path))
    status, out, err = isolate(path)
    assert (status, err) == (0, "")
    assert out.startswith('frames 10 to 12 of run "night" (abababab), put aside: proc1 was lost\n')
    said = {"crash": "dies of signal 11, SIGSEGV", "raise": "ValueError: no beam (mine.py:16)"}[how]
    assert f'task "fit", frame 12: {said}' in out
    assert "the whole graph, frames 10 to 12: " in out
    assert "in fragile\n" in out  # where it was
    assert ("    this is 12\n" in out) == (how == "crash")  # what it printed
    assert "frame 11" not in out
    assert sorted(os.listdir(tmp_path)) == before, "it left something beside the file"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "dies of signal 9, SIGKILL (Killed); it used "),
        ("hang", "hangs: it took more than 5 s"),
        ("leave", "ends the process, with status 3"),
    ],
)
def test_however_a_task_ends_its_process_it_is_told(
    tmp_path: Path, isolate: Isolate, how: str, said: str
) -> None:
    path = poison(tmp_path, how)
    status, out, _ = isolate(path, "--task", "fit", "--frame", 12, "--deadline", "5 s")
    assert status == 0
    assert f'task "fit", frame 12: {said}' in out
    assert "    this is 12\n" in out
    assert ("in fragile\n" in out) == (how == "hang")


def test_every_frame_that_kills_is_found_and_then_enough_is_enough(
    tmp_path: Path, isolate: Isolate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MOST_DEATHS", 2)
    at = (11, 15, 16)
    status, out, _ = isolate(poison(tmp_path, "leave", at, 20), "--task", "fit")
    assert status == 0
    found = [line for line in out.splitlines() if line.startswith('task "fit", frame')]
    assert [int(line.split()[3].rstrip(":")) for line in found] == [11, 15]
    assert "14 frames after it were not tried" in out


def test_frames_that_pass_are_said_to_pass(tmp_path: Path, isolate: Isolate) -> None:
    path = poison(tmp_path, "crash", at=(50,))
    assert isolate(path)[:2] == (
        1,
        'frames 10 to 13 of run "night" (abababab), put aside: proc1 was lost\n'
        "the whole graph: nothing happens\n",
    )


def test_a_task_that_has_nothing_to_do_with_it_is_tried_without_it(
    tmp_path: Path, isolate: Isolate
) -> None:
    status, out, _ = isolate(poison(tmp_path, "leave"), "--task", "sum")
    assert status == 1
    assert 'task "sum": nothing happens' in out


def test_a_task_that_dies_of_several_frames_together_is_found(
    tmp_path: Path, isolate: Isolate
) -> None:
    tasks: dict[str, Any] = {
        "fit": {"do": "python", "from": "detector", "file": "mine.py", "call": "fragile_block",
                "each": "block", "with": {"how": "leave"}, "shape": [4, 6], "dtype": "uint16"},
    }  # fmt: skip
    put_aside(tmp_path, numbered(20, 3), context(tmp_path, tasks), "it was lost")
    (path,) = tmp_path.glob("*_poison_20.h5")
    status, out, err = isolate(path)
    assert status == 0, err
    assert 'task "fit", frames 20 to 22: ends the process, with status 3' in out


def test_a_frame_of_any_run_that_kept_its_frames_can_be_tried(
    tmp_path: Path, isolate: Isolate
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    fit = {**TASKS["fit"], "with": {"at": [10_000_000], "how": "leave"}}
    tasks = {"raw": {"do": "save_dense", "from": "detector"}, "flat": TASKS["flat"], "fit": fit,
             "bright": {"do": "save_dense", "from": "flat"}}  # fmt: skip
    graph = tmp_path / "graph.yaml"
    graph.write_text(json.dumps({"tasks": tasks}))
    with Session.open("simulator", processing_nodes=0, detector={"shape": [24, 32]}) as session:
        session.prepare(graph=graph, output=tmp_path, nb_frames=5, expo_time=1e-3)
        session.start()
        masters = session.wait(60).masters
    assert isolate(masters["raw"], "--frame", 3)[0] == 1
    for words, said in (
        ((masters["raw"],), "say which frame: --frame N"),
        ((masters["raw"], "--frame", 7), "frame 7: "),
        ((masters["raw"], "--frame", 3, "--task", "fitt"), 'no task "fitt" (did you mean "fit"?)'),
        ((masters["raw"], "--frame", 3, "--deadline", "soon"), "given: soon"),
        ((masters["bright"], "--frame", 3), "no frames as they came from the detector"),
        ((tmp_path / "graph.yaml",), "it is not an HDF5 file"),
    ):
        status, out, err = isolate(*words)
        assert status == 2, out
        assert said in err


shapes = st.sampled_from(
    [
        SPEC,
        FrameSpec.dense(3, 2, "float32", bands=2),
        FrameSpec("vector", (7,), np.dtype("f8")),
        FrameSpec.encoded(SPEC, "bslz4", 60),
    ]
)


@given(shapes, st.integers(1, 5), st.sets(st.integers(0, 4)), st.text(max_size=20))
def test_what_is_put_aside_is_what_came(
    tmp_path_factory: pytest.TempPathFactory,
    spec: FrameSpec,
    count: int,
    gone: set[int],
    why: str,
) -> None:
    folder = tmp_path_factory.mktemp("aside")
    came = numbered(7, count, spec)
    columns = {**came.columns, "nbytes": np.arange(count, dtype="u8") + 3}
    said = {at: Absence(Fate.CORRUPT, "det", "torn") for at in gone if at < count}
    data = came.data if len(said) < count else None
    block = Block(spec, 7, count, data, said, columns)
    told = put_aside(folder, block, context(folder, TASKS_OF_NONE), why)
    with RunFile(shlex.split(told)[-1]) as file:
        found = file.block(0, len(file))
        assert file.spec == spec
        assert file.put_aside == why.replace("\0", "\ufffd")
        assert file.facts.parameters.requested["graph"]["folder"] == str(folder)
    assert (found.index, found.count, found.absences) == (7, count, said)
    for name, values in columns.items():
        assert np.array_equal(found.columns[name], values)
    if data is not None:
        assert np.array_equal(found.pixels[found.present], block.pixels[block.present])
    assert verify(Path(shlex.split(told)[-1])).problems == []


TASKS_OF_NONE: dict[str, Any] = {"look": {"do": "tap", "from": "detector"}}


def test_sparse_frames_are_put_aside_too(tmp_path: Path) -> None:
    spec = FrameSpec("sparse", (1, 4, 6), np.dtype([("index", "u4"), ("value", "u2")]))
    columns = {"index": np.arange(5, dtype="u4"), "value": np.arange(5, dtype="u2")}
    rows = Ragged.of(np.array([2, 0, 3]), columns)
    told = put_aside(tmp_path, Block(spec, 0, 3, rows), context(tmp_path, TASKS_OF_NONE), "why")
    with RunFile(shlex.split(told)[-1]) as file:
        assert np.array_equal(file.block(0, 3).rows.offsets, rows.offsets)
        assert np.array_equal(file.block(0, 3).rows.columns["value"], columns["value"])


def test_what_cannot_be_put_aside_is_told_and_replaces_nothing(tmp_path: Path) -> None:
    run = context(tmp_path, TASKS_OF_NONE)
    path = Path(shlex.split(put_aside(tmp_path, numbered(10, 1), run, "a"))[-1])
    before = path.read_bytes()
    assert "frame 10 was not put aside: " in put_aside(tmp_path, numbered(10, 1), run, "b")
    assert path.read_bytes() == before
    assert "is the disk mounted?" in put_aside(tmp_path / "gone", numbered(3, 2), run, "c")
    assert not list(tmp_path.glob("*.part"))
