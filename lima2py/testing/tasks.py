"""What every task must keep to, as a test class to derive from.

    class TestThreshold(TaskTests):
        @pytest.fixture
        def task(self) -> Task:
            return Threshold.load({"above": 3}, "threshold")

Override `spec` where the task needs other frames than those given here, `frames` where their
content must be something particular, `specs` where it takes several inputs (and `inputs` where
their content matters), and `run` where it needs to know of a run. Inputs are called `input0`,
`input1` and so on. Files that the task reads are given by their
full path.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.geometry import Roi
from lima2py.task import RunContext, Task
from lima2py.testing.task_inputs import (
    FIRST,
    arrays_of,
    assert_promised,
    assert_same_frames,
    blocks_of,
    fresh,
    made_up,
    picked,
    prepared,
    started,
    step,
    through,
)

MISSING = {
    0: Absence(Fate.DETECTOR_GAP, "detector", "first"),
    7: Absence(Fate.CORRUPT, "detector"),
    11: Absence(Fate.OVERRUN, "ring"),
}


class TaskTests:
    """The contract of a task; every test works on fresh copies of `task`."""

    spot: tuple[float, float] = (1, 100)
    """Of frames in which one pixel is unlike the others: the others, and that pixel."""

    @pytest.fixture
    def task(self) -> Task:
        """The task with its parameters."""
        raise NotImplementedError

    @pytest.fixture
    def spec(self) -> FrameSpec:
        """What comes in."""
        return FrameSpec.dense(12, 16, np.uint16, bands=2)

    @pytest.fixture
    def specs(self, spec: FrameSpec) -> Sequence[FrameSpec]:
        """What comes in, for each input."""
        return [spec]

    @pytest.fixture
    def frames(self, specs: Sequence[FrameSpec]) -> Array | Ragged:
        """A dozen frames of the first input: array `(12, *spec.shape)`, or rows."""
        return made_up(specs[0])

    @pytest.fixture
    def inputs(
        self, frames: Array | Ragged, specs: Sequence[FrameSpec]
    ) -> Sequence[Array | Ragged]:
        """A dozen frames of each input."""
        return [frames, *(made_up(spec, seed=n) for n, spec in enumerate(specs[1:], 3))]

    @pytest.fixture
    def run(self) -> RunContext:
        """The run the task works for."""
        return RunContext(run="0" * 32, name="conformance", task="tested", frames_per_block=64)

    def test_prepare_says_the_same_again_and_touches_nothing(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """`prepare` may be called alone and repeatedly, by whoever checks a graph."""
        promised = prepared(fresh(task), specs)
        again = fresh(task)
        (here := tmp_path / "here").mkdir()
        monkeypatch.chdir(here)
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        assert prepared(again, specs) == promised
        assert prepared(again, specs) == promised
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
        assert not list(here.iterdir())

    def test_its_parameters_can_be_written_down_and_read_back(self, task: Task) -> None:
        """Files keep the parameters, and nodes get them as text."""
        again = fresh(task)
        for name in type(task).model_fields:
            assert getattr(again, name) == getattr(task, name)

    @pytest.mark.parametrize("sizes", [(12,), (1, 0, 8, 3)])
    def test_what_comes_out_is_what_prepare_promised(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
        sizes: tuple[int, ...],
    ) -> None:
        """The same frames, or those products that are complete, with the promised shape and type.

        A block without frames, as one after an accumulation may be, gives one without frames.
        """
        with started(task, specs, run) as (ready, promised):
            for blocks in blocks_of(specs, inputs, sizes):
                assert_promised(step(ready, promised, blocks), promised, blocks[0])

    def test_what_came_in_is_left_alone(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """Other tasks read the same memory."""
        arrays = [array for data in inputs for array in arrays_of(data)]
        before = [array.copy() for array in arrays]
        through(task, blocks_of(specs, inputs), run)
        for array, copy in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, copy)

    @pytest.mark.parametrize("sizes", [(1,) * 12, (5, 5, 2), (1, 0, 8, 3)])
    def test_the_size_of_blocks_makes_no_difference(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
        sizes: tuple[int, ...],
    ) -> None:
        """Small frames come many in a block, and how many depends on the memory there is."""
        whole = through(task, blocks_of(specs, inputs), run)
        split = through(task, blocks_of(specs, inputs, sizes), run)
        assert_same_frames(whole, split)

    def test_two_nodes_together_give_what_one_gives(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """Frames of a group meet in one node; the groups are dealt out among the nodes."""
        probe = fresh(task)
        promised = prepared(probe, specs)
        group = max(1, probe.group // specs[0].span)
        if probe.remembers and probe.group == 1 and promised.span == specs[0].span:
            pytest.skip("what comes out depends on the frames before, in whatever node they were")
        count = len(inputs[0])
        assert FIRST % group == 0
        assert count >= 2 * group, f"`inputs` should hold more than {count} frames: two groups"
        ends = [*range(0, count, group), count]
        groups = blocks_of(specs, inputs, np.diff(ends).tolist())
        nodes = [(0, 1, 1, 0, 1)[number % 5] for number in range(len(groups))]
        made: list[Block] = []
        for rank in range(2):
            mine = [
                tuple(block.part(*part) for block in blocks)
                for node, blocks in zip(nodes, groups, strict=True)
                if node == rank
                for part in [(0, 1), (1, blocks[0].count)]
            ]
            told = replace(run, node=f"proc{rank}", rank=rank, nodes=2)
            made += through(task, mine, told)
        whole = through(task, blocks_of(specs, inputs), run)
        assert_same_frames(whole, sorted(made, key=lambda block: block.index))

    def test_how_frames_lie_in_memory_makes_no_difference(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """What comes in may be a view: mirrored, turned, a part of something larger.

        Pixels may be added up as they lie, so the last digits of a sum may differ.
        """
        whole = through(task, blocks_of(specs, inputs), run)
        for view in (_spread, _turned):
            lie = [view(data) if isinstance(data, np.ndarray) else data for data in inputs]
            assert_same_frames(whole, through(task, blocks_of(specs, lie), run), digits=4)

    def test_absent_frames_pass_with_their_cause_and_disturb_no_other(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """The memory of an absent frame holds whatever was there before."""
        damaged = [_garbled(data, number, len(inputs)) for number, data in enumerate(inputs)]
        (blocks,) = blocks_of(specs, damaged, missing=MISSING)
        with started(task, specs, run) as (ready, promised):
            given = step(ready, promised, blocks)
        assert_promised(given, promised, blocks[0])
        many = promised.span // specs[0].span
        if many == 1:
            assert {offset: given.absences.get(offset) for offset in MISSING} == MISSING
        if many == 1 and task.remembers:
            return
        (whole,) = through(task, blocks_of(specs, inputs), run)
        for offset in set(range(given.count)) - {missing // many for missing in MISSING}:
            some, others = (block.part(offset, offset + 1) for block in (whole, given))
            assert_same_frames([some], [others])

    def test_from_frames_that_are_all_absent_comes_nothing(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """Whole blocks may be absent: a node was lost, a module fell silent."""
        count = len(inputs[0])
        every = dict.fromkeys(range(count), Absence(Fate.NODE_LOST, "ledger"))
        (blocks,) = blocks_of(specs, inputs, missing=every)
        with started(task, specs, run) as (ready, promised):
            given = step(ready, promised, blocks)
        assert_promised(given, promised, blocks[0])
        assert set(given.absences) == set(range(given.count))
        if promised.span == specs[0].span:
            assert given.absences == every

    def test_it_may_work_in_another_thread_than_the_one_that_prepared_it(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """A node prepares a run in one thread, and frames flow in another."""
        expected = through(task, blocks_of(specs, inputs), run)
        made: list[Block | BaseException] = []
        ready = fresh(task)
        promised = prepared(ready, specs)
        ready.start(run)

        def work() -> None:
            try:
                made.extend(step(ready, promised, some) for some in blocks_of(specs, inputs))
            except BaseException as error:  # shown below, by the thread that tests
                made.append(error)
            finally:
                ready.finish()

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        for item in made:
            if isinstance(item, BaseException):
                raise item
        assert_same_frames(expected, [item for item in made if isinstance(item, Block)])

    def test_two_of_them_at_a_time_do_not_disturb_each_other(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """A graph may hold the same task twice, and a node several runs."""
        count = len(inputs[0])
        others = [picked(data, range(count - 1, -1, -1)) for data in inputs]
        sizes = [1, count // 2, count - count // 2 - 1]
        both = [blocks_of(specs, inputs, sizes), blocks_of(specs, others, sizes)]
        expected = [through(task, blocks, run) for blocks in both]
        made: list[list[Block]] = [[], []]
        with started(task, specs, run) as one, started(task, specs, run) as other:
            for pair in zip(*both, strict=True):
                for got, (ready, promised), blocks in zip(made, (one, other), pair, strict=True):
                    got.append(step(ready, promised, blocks))
        for alone, together in zip(expected, made, strict=True):
            assert_same_frames(alone, together)

    def test_pixels_lie_where_the_matrix_says(
        self,
        task: Task,
        specs: Sequence[FrameSpec],
        inputs: Sequence[Array | Ragged],
        run: RunContext,
    ) -> None:
        """A change of one pixel shows only where `to_detector` says this pixel comes to lie."""
        spec, promised = specs[0], prepared(fresh(task), specs)
        if (
            not spec.kind == promised.kind == "dense"
            or spec.to_detector is None
            or promised.to_detector is None
        ):
            pytest.skip("what comes out has no pixels on the detector")
        many = promised.span // spec.span
        if task.remembers and many == 1:
            pytest.skip("what comes out also shows the frames before")
        height, width = spec.image
        dark, bright = self.spot
        plain = np.full((height * width * many, *spec.shape), dark, spec.dtype)
        planted = plain.copy().reshape(height * width, many * spec.bands, height * width)
        planted[range(height * width), :, range(height * width)] = bright
        others = [picked(data, [0] * len(plain)) for data in inputs[1:]]
        sizes = [min(64, len(plain) - first) for first in range(0, len(plain), 64)]
        found, before = (
            through(task, blocks_of(specs, [frames, *others], sizes), run)
            for frames in (planted.reshape(plain.shape), plain)
        )
        shown = 0
        for one, other in zip(found, before, strict=True):
            for offset in np.flatnonzero(one.present & other.present):
                changed = _differ(one.pixels[offset], other.pixels[offset]).any(axis=0)
                y, x = divmod(one.index - FIRST // many + int(offset), width)
                at = spec.to_detector.covered(Roi(x, y, 1, 1))
                for row, column in np.argwhere(changed):
                    seen = promised.to_detector.covered(Roi(int(column), int(row), 1, 1))
                    assert at.inside(seen) or seen.inside(at)
                shown += int(changed.sum())
        assert shown, "no pixel shows at all"


def _spread(data: Array) -> Array:
    """The same values as every other, backwards, of a larger array."""
    larger = np.zeros((*data.shape[:-1], 2 * data.shape[-1]), data.dtype)
    larger[..., ::-2] = data
    return larger[..., ::-2]


def _turned(data: Array) -> Array:
    """The same values with the columns of a frame one after the other in memory."""
    return np.moveaxis(np.moveaxis(data, -1, 1).copy(), 1, -1)


def _differ(some: Array, others: Array) -> Array:
    """Where two arrays differ; NaN equals NaN."""
    different: Array = (some != others) & ((some == some) | (others == others))
    return different


def _garbled(data: Array | Ragged, number: int, nb_inputs: int) -> Array | Ragged:
    """The frames of an input with its share of the missing ones overwritten."""
    missing = list(MISSING)[number::nb_inputs]
    if isinstance(data, np.ndarray):
        garbage = np.ascontiguousarray(data).copy()
        garbage.view(np.uint8)[missing] = 0xFF
        return garbage
    columns = {name: values.copy() for name, values in data.columns.items()}
    for offset in missing:
        for values in columns.values():
            values[data.offsets[offset] : data.offsets[offset + 1]] = 0
    return Ragged(data.offsets, columns)
