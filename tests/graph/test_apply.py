"""A graph over an array gives what the same graph gives in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lima2py
from lima2py.errors import BadGraph, BadParameter
from lima2py.frame import Absence, Block, Fate, FrameSpec, Ragged
from tests.storage.made_up import LOST, MadeUpRun, round_robin

GRAPH = """
tasks:
  small: {do: bin, from: detector, by: [2, 2]}
  beam: {do: roi_counters, from: small, rois: {all: [0, 0, 8, 6]}}
  photons: {do: sparsify, from: detector, above: 40}
  four: {do: accumulate, from: detector, frames: 4}
"""
FRAMES = np.arange(10 * 6 * 8, dtype=np.uint16).reshape(10, 6, 8) % 49


def test_every_task_gives_its_product_of_all_frames() -> None:
    made = lima2py.apply(GRAPH, FRAMES)
    assert list(made) == ["small", "beam", "photons", "four"]
    np.testing.assert_array_equal(
        made["small"].pixels[:, 0], FRAMES.reshape(10, 3, 2, 4, 2).sum(axis=(2, 4))
    )
    assert made["beam"].pixels["sum"][:, 0].tolist() == FRAMES.sum(axis=(1, 2)).tolist()
    assert made["photons"].rows.counts.tolist() == (FRAMES > 40).sum(axis=(1, 2)).tolist()
    assert made["four"].count == 2, "two frames are left over"
    np.testing.assert_array_equal(
        made["four"].pixels[:, 0], FRAMES[:8].reshape(2, 4, 6, 8).sum(axis=1)
    )


def test_many_frames_are_cut_into_blocks_and_put_together_again() -> None:
    frames = np.random.default_rng(0).integers(0, 9, (1000, 3, 4), np.uint8)
    made = lima2py.apply("tasks: {turned: {do: rotate, from: detector, angle: 180}}", frames)
    np.testing.assert_array_equal(made["turned"].pixels[:, 0], frames[:, ::-1, ::-1])


def test_frames_may_have_bands() -> None:
    frames = FRAMES.reshape(5, 2, 6, 8)
    made = lima2py.apply("tasks: {one: {do: select_bands, from: detector, bands: [1]}}", frames)
    np.testing.assert_array_equal(made["one"].pixels[:, 0], frames[:, 1])


def test_frames_that_a_task_refuses_are_absent() -> None:
    made = lima2py.apply("tasks: {few: {do: every, from: detector, n: 4}}", FRAMES)["few"]
    assert {made.absences[n].cause for n in range(10) if n % 4} == {Fate.REJECTED}
    assert [n for n in range(10) if made.present[n]] == [0, 4, 8]


def test_a_graph_can_be_a_file_or_one_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(GRAPH)
    frames = np.ones((2, 512, 512), np.uint16)
    made = lima2py.apply(str(tmp_path / "g.yaml"), FRAMES, overrides={"small.by": [1, 2]})
    assert made["small"].spec.image == (3, 8)
    assert made["small"].count == 10
    assert "live" in lima2py.apply("view_only", frames)


def test_a_file_gives_what_its_frames_would(tmp_path: Path) -> None:
    spec = FrameSpec.dense(6, 8, np.uint16)
    blocks = [(n % 2, Block(spec, 2 * n, 2, FRAMES[2 * n : 2 * n + 2, None])) for n in range(5)]
    path = MadeUpRun(spec, blocks, 10, 2).write(tmp_path / "a", frames_per_file=3)
    with lima2py.open(path) as file:
        made = lima2py.apply(GRAPH, file)
        part = lima2py.apply(GRAPH, lima2py.FileSource(file, slice(4, 10), size=3))
    for name, expected in lima2py.apply(GRAPH, FRAMES).items():
        assert made[name].count == expected.count
        for found, due in zip(made[name].frames(), expected.frames(), strict=True):
            np.testing.assert_array_equal(found.data, due.data)
    assert part["small"].index == 4
    np.testing.assert_array_equal(part["small"].pixels, made["small"].pixels[4:])
    assert (part["four"].index, part["four"].count) == (1, 1)
    np.testing.assert_array_equal(part["four"].pixels[0], made["four"].pixels[1])


def test_what_is_absent_in_a_file_stays_absent_with_its_reason(tmp_path: Path) -> None:
    pixels = np.dtype([("index", "u4"), ("value", "u2")])
    spec = FrameSpec("sparse", (1, 6, 8), pixels)
    columns = {"index": np.array([9, 10, 3], "u4"), "value": np.array([5, 6, 7], "u2")}
    data = Ragged.of(np.array([2, 0, 1]), columns)
    run = MadeUpRun(spec, [(0, Block(spec, 0, 3, data, {1: LOST}))], 4, 3)
    with lima2py.open(run.write(tmp_path / "a")) as file:
        made = lima2py.apply("tasks: {peaks: {do: find_peaks, from: detector}}", file)["peaks"]
    assert made.absences == {1: LOST, 3: Absence(Fate.NOT_ACQUIRED, "")}
    assert made.rows.counts[[0, 2]].tolist() == [1, 1]


def test_the_accumulated_frames_of_a_file_count_as_one_each(tmp_path: Path) -> None:
    spec = FrameSpec.dense(6, 8, np.uint16).replace(span=5)
    run = MadeUpRun(spec, [(0, Block(spec, 0, 10, FRAMES[:, None]))], 10, 10)
    with lima2py.open(run.write(tmp_path / "a")) as file:
        made = lima2py.apply(GRAPH, file)
    np.testing.assert_array_equal(made["four"].pixels, lima2py.apply(GRAPH, FRAMES)["four"].pixels)


def test_a_file_that_lacks_frames_in_between_is_refused(tmp_path: Path) -> None:
    run = round_robin(FrameSpec.dense(6, 8, np.uint16), 10, 2, 2)
    run.write(tmp_path / "a")
    with (
        lima2py.open(run.node_files[0][0]) as file,
        pytest.raises(BadParameter, match=r"frames: 2 to 3 are missing .* open the master"),
    ):
        lima2py.apply(GRAPH, file)
    empty = MadeUpRun(FrameSpec.dense(6, 8, np.uint16), [], 0).write(tmp_path / "b")
    with lima2py.open(empty) as file, pytest.raises(BadParameter, match="frames: there are none"):
        lima2py.apply(GRAPH, file)


@pytest.mark.parametrize("frames", [np.zeros((6, 8)), np.zeros((0, 6, 8)), 3, np.zeros((1,) * 5)])
def test_what_are_no_frames_is_refused(frames: object) -> None:
    with pytest.raises(BadParameter, match=r"frames: should be \(frames, height, width\)"):
        lima2py.apply(GRAPH, frames)  # type: ignore[arg-type]


def test_a_graph_that_saves_is_refused() -> None:
    with pytest.raises(BadParameter, match="raw would save; run it in a session"):
        lima2py.apply("tasks: {raw: {do: save_dense, from: detector}}", FRAMES)


def test_a_graph_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BadGraph, match='task "small", by: '):
        lima2py.apply("tasks: {small: {do: bin, from: detector, by: [5, 5]}}", FRAMES)
