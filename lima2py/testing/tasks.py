"""What every task must keep to, as a test class to derive from.

    class TestThreshold(TaskTests):
        @pytest.fixture
        def task(self) -> Task:
            return Threshold.load({"above": 3}, "threshold")

Override `spec` where the task needs other frames than those given here, `frames` where their
content must be something particular, and `run` where it needs to know of a run. Files that the
task reads are given by their full path.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.geometry import Roi
from lima2py.task import RunContext, Task


class TaskTests:
    """The contract of a task; every test works on fresh copies of `task`."""

    @pytest.fixture
    def task(self) -> Task:
        """The task with its parameters."""
        raise NotImplementedError

    @pytest.fixture
    def spec(self) -> FrameSpec:
        """What comes in."""
        return FrameSpec.dense(12, 16, np.uint16, bands=2)

    @pytest.fixture
    def frames(self, spec: FrameSpec) -> Array:
        """A dozen frames: array `(12, *spec.shape)`."""
        values = np.random.default_rng(2).integers(0, 100, (12, *spec.shape))
        return values.astype(spec.dtype)

    @pytest.fixture
    def run(self) -> RunContext:
        """The run the task works for."""
        return RunContext(run="0" * 32, name="conformance", frames_per_block=64)

    def test_prepare_says_the_same_again_and_touches_nothing(
        self, task: Task, spec: FrameSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`prepare` may be called alone and repeatedly, by whoever checks a graph."""
        promised = fresh(task).prepare(spec)
        again = fresh(task)
        (here := tmp_path / "here").mkdir()
        monkeypatch.chdir(here)
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        assert again.prepare(spec) == promised
        assert again.prepare(spec) == promised
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
        assert not list(here.iterdir())

    def test_its_parameters_can_be_written_down_and_read_back(self, task: Task) -> None:
        """Files keep the parameters, and nodes get them as text."""
        again = fresh(task)
        for name in type(task).model_fields:
            assert getattr(again, name) == getattr(task, name)

    def test_what_comes_out_is_what_prepare_promised(
        self, task: Task, spec: FrameSpec, frames: Array, run: RunContext
    ) -> None:
        """The same frames, with the promised shape and type."""
        (block,) = blocks_of(spec, frames)
        (given,) = through(task, [block], run)
        assert given.spec == fresh(task).prepare(spec)
        assert given.data is not None
        assert given.data.shape == (len(frames), *given.spec.shape)
        assert given.data.dtype == given.spec.dtype
        assert (given.index, given.count) == (block.index, block.count)
        assert given.columns.keys() >= block.columns.keys()

    def test_what_came_in_is_left_alone(
        self, task: Task, spec: FrameSpec, frames: Array, run: RunContext
    ) -> None:
        """Other tasks read the same memory."""
        before = frames.copy()
        through(task, blocks_of(spec, frames), run)
        np.testing.assert_array_equal(frames, before)

    @pytest.mark.parametrize("sizes", [(1,) * 12, (5, 5, 2), (1, 8, 3)])
    def test_the_size_of_blocks_makes_no_difference(
        self, task: Task, spec: FrameSpec, frames: Array, run: RunContext, sizes: tuple[int, ...]
    ) -> None:
        """Small frames come many in a block, and how many depends on the memory there is."""
        whole = through(task, blocks_of(spec, frames), run)
        split = through(task, blocks_of(spec, frames, sizes), run)
        assert_same_frames(whole, split)

    def test_how_frames_lie_in_memory_makes_no_difference(
        self, task: Task, spec: FrameSpec, frames: Array, run: RunContext
    ) -> None:
        """What comes in may be a view: mirrored, turned, a part of something larger.

        Pixels may be added up as they lie, so the last digits of a sum may differ.
        """
        spread = np.zeros((*frames.shape[:-1], 2 * frames.shape[-1]), frames.dtype)
        spread[..., ::-2] = frames
        turned = np.moveaxis(np.moveaxis(frames, -1, 1).copy(), 1, -1)
        whole = through(task, blocks_of(spec, frames), run)
        for view in (spread[..., ::-2], turned):
            assert_same_frames(whole, through(task, blocks_of(spec, view), run), digits=4)

    def test_absent_frames_pass_with_their_cause_and_disturb_no_other(
        self, task: Task, spec: FrameSpec, frames: Array, run: RunContext
    ) -> None:
        """The memory of an absent frame holds whatever was there before."""
        (block,) = blocks_of(spec, frames)
        missing = {
            0: Absence(Fate.DETECTOR_GAP, "detector", "first"),
            7: Absence(Fate.CORRUPT, "detector"),
            11: Absence(Fate.OVERRUN, "ring"),
        }
        garbage = frames.copy()
        garbage.view(np.uint8)[list(missing)] = 0xFF
        garbage.flags.writeable = False
        holed = Block(spec, block.index, block.count, garbage, missing, block.columns)
        (whole,), (given,) = through(task, [block], run), through(task, [holed], run)
        assert {offset: given.absences.get(offset) for offset in missing} == missing
        for offset in set(range(len(frames))) - set(missing):
            np.testing.assert_equal(given.frame(offset).data, whole.frame(offset).data)

    def test_pixels_lie_where_the_matrix_says(
        self, task: Task, spec: FrameSpec, run: RunContext
    ) -> None:
        """A change of one pixel shows only where `to_detector` says this pixel comes to lie."""
        promised = fresh(task).prepare(spec)
        if spec.to_detector is None or promised.to_detector is None:
            pytest.skip("what comes out has no pixels on the detector")
        bands, height, width = spec.shape
        frames = np.ones((1 + height * width, *spec.shape), spec.dtype)
        frames[1:].reshape(-1, bands, height * width)[:] += (
            99 * np.eye(height * width, dtype=spec.dtype)[:, np.newaxis]
        )
        blocks = through(task, blocks_of(spec, frames, [64] * -(-len(frames) // 64)), run)
        found = np.concatenate([block.pixels for block in blocks])
        assert (found != found[0]).any(), "no pixel shows at all"
        for number, row, column in np.argwhere((found != found[0]).any(axis=1)):
            y, x = divmod(int(number) - 1, width)
            planted = spec.to_detector.covered(Roi(x, y, 1, 1))
            seen = promised.to_detector.covered(Roi(int(column), int(row), 1, 1))
            assert planted.inside(seen) or seen.inside(planted)


def fresh(task: Task) -> Task:
    """Another task with the same parameters, made from what a file would say."""
    return type(task).load(task.plain(), "task")


def blocks_of(spec: FrameSpec, frames: Array, sizes: Iterable[int] | None = None) -> list[Block]:
    """Frames in blocks of these sizes, beginning at a number of no particular beauty."""
    frames = frames.view()
    frames.flags.writeable = False
    first, blocks = 0, []
    for size in sizes or [len(frames)]:
        data = frames[first : first + size]
        times = 1e9 + 0.1 * np.arange(first, first + len(data))
        blocks.append(Block(spec, 997 + first, len(data), data, columns={"timestamp": times}))
        first += size
    return blocks


def through(task: Task, blocks: list[Block], run: RunContext) -> list[Block]:
    """What a fresh copy of a task gives for blocks."""
    task = fresh(task)
    task.prepare(blocks[0].spec)
    task.start(run)
    try:
        return [task.process(block) for block in blocks]
    finally:
        task.finish()


def assert_same_frames(some: list[Block], others: list[Block], digits: int = 0) -> None:
    """Fail unless both are the same frames, however they are cut into blocks.

    Args:
        some: blocks with consecutive frames.
        others: the same frames in other blocks.
        digits: how many of the last (binary) digits of floating point numbers may differ.
    """
    first = [frame for block in some for frame in block.frames()]
    second = [frame for block in others for frame in block.frames()]
    assert [frame.index for frame in first] == [frame.index for frame in second]
    for one, other in zip(first, second, strict=True):
        assert (one.absence, one.timestamp) == (other.absence, other.timestamp)
        assert (one.data is None) == (other.data is None)
        if one.data is not None and other.data is not None:
            for name in one.data.dtype.names or (...,):
                column = one.data[name]
                exact = column.dtype.kind != "f" or not digits
                rtol = 0.0 if exact else 2.0**digits * float(np.finfo(column.dtype).eps)
                np.testing.assert_allclose(other.data[name], column, rtol=rtol, atol=0)
