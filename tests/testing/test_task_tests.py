"""The suite for tasks passes good ones, and each way to break the contract fails it."""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import Field, PrivateAttr

from lima2py.errors import BadParameter
from lima2py.frame import Absence, Array, Block, Fate, FrameSpec, Ragged
from lima2py.geometry import Affine
from lima2py.onepass import Operation, Pixelwise
from lima2py.task import RunContext, Task
from lima2py.testing.task_inputs import made_up, picked
from lima2py.testing.tasks import TaskTests

IMAGE = FrameSpec.dense(6, 8, np.uint16)
SPARSE = FrameSpec("sparse", (1, 6, 8), np.dtype([("index", "u4"), ("value", "u2")]))


class Twice(Task):
    """Each pixel, doubled."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        self._spec = spec
        return spec

    def process(self, block: Block) -> Block:
        return block.carry(self._spec, block.pixels * 2)


class Inverse(Pixelwise):
    """A compiled one."""

    def operation(self, spec: FrameSpec) -> Operation:
        return Operation("1 / v", np.dtype("f4"))


class Difference(Task):
    """Of two inputs."""

    def prepare(self, spec: FrameSpec, other: FrameSpec) -> FrameSpec:
        self._spec = spec.replace(dtype=np.dtype("i4"))
        return self._spec

    def process(self, block: Block, other: Block) -> Block:
        return block.carry(self._spec, block.pixels.astype("i4") - other.pixels)


class Weighted(Task):
    """Rows of sparse frames, times the highest pixel of an image."""

    def prepare(self, spec: FrameSpec, image: FrameSpec) -> FrameSpec:
        self._spec = spec
        return spec

    def process(self, block: Block, image: Block) -> Block:
        rows = block.rows
        weights = np.repeat(image.pixels.max(axis=(1, 2, 3)), rows.counts)
        values = (rows.columns["value"] * weights).astype("u2")
        data = Ragged(rows.offsets, {**rows.columns, "value": values})
        return block.carry(self._spec, data)


class SumOf3(Task):
    """Of three frames; absent, if one of them is."""

    takes_absent: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    _total: Any = PrivateAttr(default=0)
    _absence: Absence | None = PrivateAttr(default=None)

    @property
    def group(self) -> int:
        return self._spec.span

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        self._spec = spec.replace(dtype=np.dtype("u8"), span=3 * spec.span)
        return self._spec

    def process(self, block: Block) -> Block:
        first, end = block.index // 3, block.end // 3
        data = np.zeros((end - first, *self._spec.shape), "u8")
        absences = {}
        for frame in block.frames():
            if frame.index % 3 == 0:
                self._total, self._absence = 0, None
            self._absence = self._absence or frame.absence
            if frame.data is not None:
                self._total = self._total + frame.data.astype("u8")
            if frame.index % 3 == 2:
                data[frame.index // 3 - first] = self._total
                if self._absence:
                    absences[frame.index // 3 - first] = self._absence
        times = {name: np.zeros(end - first) for name in block.columns}
        made = data if len(absences) < end - first else None
        return Block(self._spec, first, end - first, made, absences, times)


class EverySecond(Task):
    """Refuses the others."""

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        return spec

    def process(self, block: Block) -> Block:
        odd = [n for n in range(block.count) if (block.index + n) % 2]
        return block.refuse(dict.fromkeys(odd, Absence(Fate.REJECTED, "tested")))


GOOD: dict[str, tuple[Task, list[FrameSpec]]] = {
    "one input": (Twice(), [IMAGE]),
    "compiled": (Inverse(), [FrameSpec.dense(6, 8, "f4", bands=2)]),
    "two inputs": (Difference(), [IMAGE, IMAGE]),
    "sparse": (Weighted(), [SPARSE, IMAGE]),
    "several frames": (SumOf3(), [IMAGE]),
    "several of several": (SumOf3(), [IMAGE.replace(span=4)]),
    "refuses": (EverySecond(), [IMAGE]),
}


class WrongShape(Twice):
    def process(self, block: Block) -> Block:
        return block.carry(self._spec, block.pixels[..., :-1])


class WrongType(Twice):
    def process(self, block: Block) -> Block:
        return block.carry(self._spec, block.pixels.astype("f8"))


class WrongSpec(Twice):
    def process(self, block: Block) -> Block:
        return block.carry(self._spec.replace(to_detector=None), block.pixels)


class WrongColumns(Twice):
    def process(self, block: Block) -> Block:
        return replace(block, columns={})


class WritesToItsInput(Twice):
    def process(self, block: Block) -> Block:
        source = block.pixels
        while isinstance(source.base, np.ndarray):
            source = source.base
        source += 1
        return block


class AddsTheBlocksBefore(Twice):
    _total: int = 0

    def process(self, block: Block) -> Block:
        self._total += 1
        return block.carry(self._spec, block.pixels + np.uint16(self._total))


class AddsTheFramesBefore(Twice):
    """Whatever the blocks are, but not if another node had some of them."""

    _before: Array = PrivateAttr()

    def start(self, run: RunContext) -> None:
        self._before = np.zeros(self._spec.shape, "u2")

    def process(self, block: Block) -> Block:
        total = self._before + np.cumsum(block.pixels, axis=0, dtype="u2")
        self._before = total[-1]
        return block.carry(self._spec, total)


class UsesOneBuffer(Twice):
    _buffer: Array = PrivateAttr()

    def start(self, run: RunContext) -> None:
        self._buffer = np.empty((64, *self._spec.shape), "u2")

    def process(self, block: Block) -> Block:
        self._buffer[: block.count] = block.pixels
        return block.carry(self._spec, self._buffer[: block.count])


class ForgetsAbsences(Twice):
    def process(self, block: Block) -> Block:
        return Block(self._spec, block.index, block.count, block.pixels, columns=block.columns)


class LooksAtAbsentFrames(Twice):
    """As if every frame had data; but a frame is not disturbed by those of other blocks."""

    def process(self, block: Block) -> Block:
        highest = np.uint16(block.pixels.max() > 1000)
        return block.carry(self._spec, block.pixels + highest)


class NeedsOrder(Twice):
    def process(self, block: Block) -> Block:
        straight = np.empty((block.count, *self._spec.shape), "u2").strides
        data = block.pixels if block.pixels.strides == straight else block.pixels * 3
        return block.carry(self._spec, data)


class MirrorsInSecret(Twice):
    def process(self, block: Block) -> Block:
        return block.carry(self._spec, block.pixels[..., ::-1])


class SaysItMirrors(Twice):
    def prepare(self, spec: FrameSpec) -> FrameSpec:
        assert spec.to_detector is not None
        self._spec = spec.replace(to_detector=spec.to_detector @ Affine.flip("y", spec.image))
        return self._spec


class ShowsNothing(Twice):
    def process(self, block: Block) -> Block:
        return block.carry(self._spec, block.pixels * np.uint16(0))


class SharesItsState(Twice):
    shared: ClassVar[dict[str, Any]] = {}

    def start(self, run: RunContext) -> None:
        self.shared["first"] = None

    def process(self, block: Block) -> Block:
        if self.shared["first"] is None:
            self.shared["first"] = block.pixels[0].copy()
        return block.carry(self._spec, block.pixels - self.shared["first"])


class StaysInItsThread(Twice):
    _thread: int = PrivateAttr(default_factory=threading.get_ident)

    def process(self, block: Block) -> Block:
        assert threading.get_ident() == self._thread
        return block


class LosesAParameter(Twice):
    by: int = Field(default=1, exclude=True)


class LeavesAFile(Twice):
    def prepare(self, spec: FrameSpec) -> FrameSpec:
        Path("left.txt").write_text("here")
        return super().prepare(spec)


class ChangesItsMind(Twice):
    _times: int = 0

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        self._times += 1
        self._spec = spec.replace(labels=(str(self._times),))
        return self._spec


class SumWithoutGroup(SumOf3):
    @property
    def group(self) -> int:
        return 1


class SumThatIsNotToldOfAbsentFrames(SumOf3):
    takes_absent: ClassVar[bool] = False


class SumOfTheWrongFrames(SumOf3):
    def process(self, block: Block) -> Block:
        return replace(super().process(block), index=block.index)


class SumThatForgetsAbsences(SumOf3):
    def process(self, block: Block) -> Block:
        made = super().process(block)
        data = np.zeros((made.count, *self._spec.shape), "u8") if made.data is None else made.data
        return replace(made, data=data, absences={})


class DifferenceOfAbsentFrames(Difference):
    """Carries the second block, which does not have the absences of the first."""

    def process(self, block: Block, other: Block) -> Block:
        return other.carry(self._spec, super().process(block, other).data)


class WrongRows(Weighted):
    def process(self, block: Block, image: Block) -> Block:
        rows = block.rows
        counts = np.full(block.count, 2)
        columns = {name: np.zeros(2 * block.count, v.dtype) for name, v in rows.columns.items()}
        return block.carry(self._spec, Ragged.of(counts[:-1], columns))


class WrongRowType(Weighted):
    def process(self, block: Block, image: Block) -> Block:
        columns = {name: values.astype("f8") for name, values in block.rows.columns.items()}
        return block.carry(self._spec, Ragged(block.rows.offsets, columns))


PROMISE = "test_what_comes_out_is_what_prepare_promised"
SIZE = "test_the_size_of_blocks_makes_no_difference"
NODES = "test_two_nodes_together_give_what_one_gives"
ABSENT = "test_absent_frames_pass_with_their_cause_and_disturb_no_other"
ALL_ABSENT = "test_from_frames_that_are_all_absent_comes_nothing"
PLACE = "test_pixels_lie_where_the_matrix_says"
PREPARE = "test_prepare_says_the_same_again_and_touches_nothing"

BROKEN: list[tuple[type[Task], list[FrameSpec], str]] = [
    (WrongShape, [IMAGE], PROMISE),
    (WrongType, [IMAGE], PROMISE),
    (WrongSpec, [IMAGE], PROMISE),
    (WrongColumns, [IMAGE], PROMISE),
    (WrongRows, [SPARSE, IMAGE], PROMISE),
    (WrongRowType, [SPARSE, IMAGE], PROMISE),
    (SumOfTheWrongFrames, [IMAGE], PROMISE),
    (WritesToItsInput, [IMAGE], "test_what_came_in_is_left_alone"),
    (AddsTheBlocksBefore, [IMAGE], SIZE),
    (UsesOneBuffer, [IMAGE], SIZE),
    (AddsTheFramesBefore, [IMAGE], NODES),
    (SumWithoutGroup, [IMAGE], NODES),
    (ForgetsAbsences, [IMAGE], ABSENT),
    (LooksAtAbsentFrames, [IMAGE], ABSENT),
    (DifferenceOfAbsentFrames, [IMAGE, IMAGE], ABSENT),
    (SumThatIsNotToldOfAbsentFrames, [IMAGE], ALL_ABSENT),
    (SumThatForgetsAbsences, [IMAGE], ALL_ABSENT),
    (NeedsOrder, [IMAGE], "test_how_frames_lie_in_memory_makes_no_difference"),
    (MirrorsInSecret, [IMAGE], PLACE),
    (SaysItMirrors, [IMAGE], PLACE),
    (ShowsNothing, [IMAGE], PLACE),
    (SharesItsState, [IMAGE], "test_two_of_them_at_a_time_do_not_disturb_each_other"),
    (StaysInItsThread, [IMAGE], "test_it_may_work_in_another_thread_than_the_one_that_prepared_it"),
    (LeavesAFile, [IMAGE], PREPARE),
    (ChangesItsMind, [IMAGE], PREPARE),
]


def cases() -> Iterator[tuple[str, Callable[..., None], dict[str, Any]]]:
    """Every test of the suite, with the parameters it is run for."""
    for name, test in inspect.getmembers(TaskTests, inspect.isfunction):
        if name.startswith("test_"):
            marks = [mark.args for mark in getattr(test, "pytestmark", [])]
            for values in itertools.product(*(values for _, values in marks)):
                yield name, test, dict(zip([field for field, _ in marks], values, strict=True))


@pytest.fixture
def outcomes(tmp_path: Path) -> Callable[[Task, Sequence[FrameSpec]], dict[str, Exception]]:
    """Put a task through the suite: what failed, by test."""

    def outcomes(task: Task, specs: Sequence[FrameSpec]) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        for number, (name, test, more) in enumerate(cases()):
            (folder := tmp_path / str(number)).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)  # some leave files behind
                known = {
                    "task": task,
                    "specs": specs,
                    "inputs": [made_up(spec, seed=n) for n, spec in enumerate(specs)],
                    "run": RunContext("0" * 32, "suite", task="tested", frames_per_block=64),
                    "tmp_path": folder,
                    "monkeypatch": patch,
                    **more,
                }
                wanted = list(inspect.signature(test).parameters)[1:]
                try:
                    test(TaskTests(), **{field: known[field] for field in wanted})
                except pytest.skip.Exception:
                    continue
                except Exception as error:
                    failed[name] = error
        return failed

    return outcomes


@pytest.mark.parametrize(("task", "specs"), GOOD.values(), ids=GOOD)
def test_a_good_task_passes(
    task: Task, specs: list[FrameSpec], outcomes: Callable[..., dict[str, Exception]]
) -> None:
    for name, error in outcomes(task, specs).items():
        raise AssertionError(name) from error


@pytest.mark.parametrize(
    ("kind", "specs", "test"), BROKEN, ids=[kind.__name__ for kind, *_ in BROKEN]
)
def test_a_broken_task_fails_where_it_is_broken(
    kind: type[Task],
    specs: list[FrameSpec],
    test: str,
    outcomes: Callable[..., dict[str, Exception]],
) -> None:
    error = outcomes(kind.load({}, "broken"), specs).get(test)
    assert isinstance(error, AssertionError), error


def test_what_a_parameter_loses_on_its_way_through_a_file_is_noticed(
    outcomes: Callable[..., dict[str, Exception]],
) -> None:
    failed = outcomes(LosesAParameter(by=3), [IMAGE])
    assert list(failed) == ["test_its_parameters_can_be_written_down_and_read_back"]


def test_a_task_that_refuses_the_frames_of_the_suite_says_so(
    outcomes: Callable[..., dict[str, Exception]],
) -> None:
    class Refuses(Twice):
        def prepare(self, spec: FrameSpec) -> FrameSpec:
            raise BadParameter("by: no")

    assert isinstance(outcomes(Refuses(), [IMAGE])[PROMISE], BadParameter)


def test_made_up_sparse_frames_hold_every_pixel_once() -> None:
    data = made_up(SPARSE, 40)
    assert isinstance(data, Ragged)
    assert data.dtype == SPARSE.dtype
    assert len(set(data.counts.tolist())) > 3
    for frame in range(len(data)):
        pixels = data.rows(frame)["index"].astype(int)
        assert (np.diff(pixels) > 0).all()
        assert ((0 <= pixels) & (pixels < 48)).all()


def test_frames_can_be_picked_in_any_order() -> None:
    for spec in (IMAGE, SPARSE):
        data = made_up(spec)
        got = picked(data, [3, 3, 0])
        blocks = [Block(spec, 0, len(items), items) for items in (data, got)]
        for offset, source in enumerate([3, 3, 0]):
            found, expected = blocks[1].frame(offset).data, blocks[0].frame(source).data
            np.testing.assert_array_equal(found, expected)
