"""Frames for the tests of a task, given to it as a flow would, and a comparison of what it gives.

The numbers of frames begin at `FIRST`, where a group of any size up to 16 frames begins too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lima2py.frame import SIZES, Absence, Array, Block, FrameSpec, Ragged
from lima2py.task import RunContext, Task

FIRST = 720_720
"""The number of the first frame: the least common multiple of 1 to 16."""

Blocks = tuple[Block, ...]
"""A block for each input, of the same frames."""


def made_up(spec: FrameSpec, count: int = 12, seed: int = 2) -> Array | Ragged:
    """Frames of small numbers: an array `(count, *spec.shape)`, or rows if they are sparse.

    A column of sparse rows called `index` holds pixels of the image, each at most once, ascending.
    """
    random = np.random.default_rng(seed)
    if spec.kind != "sparse":
        values: Array = random.integers(0, 100, (count, *spec.shape)).astype(spec.dtype)
        return values
    pixels = spec.shape[-2] * spec.shape[-1]
    counts = random.integers(0, min(10, pixels), count)
    columns = {
        name: np.concatenate(
            [
                np.sort(random.choice(pixels, n, replace=False))
                if name == "index"
                else random.integers(0, 100, n)
                for n in counts
            ]
        ).astype(spec.dtype[name])
        for name in spec.dtype.names or ()
    }
    return Ragged.of(counts, columns)


def picked(data: Array | Ragged, order: Sequence[int]) -> Array | Ragged:
    """Some of the frames, in any order, a copy."""
    if isinstance(data, np.ndarray):
        return data[list(order)]
    parts = [data[number : number + 1] for number in order]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts]) for name in data.columns
    }
    return Ragged.of(data.counts[list(order)], columns)


def arrays_of(data: Array | Ragged) -> list[Array]:
    """The arrays that frames consist of."""
    return [data] if isinstance(data, np.ndarray) else [data.offsets, *data.columns.values()]


def read_only(data: Array | Ragged) -> Array | Ragged:
    """The same frames, seen through views that cannot be written to."""
    views = [array.view() for array in arrays_of(data)]
    for view in views:
        view.flags.writeable = False
    if isinstance(data, np.ndarray):
        return views[0]
    return Ragged(views[0], dict(zip(data.columns, views[1:], strict=True)))


def blocks_of(
    specs: Sequence[FrameSpec],
    inputs: Sequence[Array | Ragged],
    sizes: Iterable[int] | None = None,
    missing: Mapping[int, Absence] | None = None,
) -> list[Blocks]:
    """Frames in blocks of these sizes, for each of which there is one block of every input.

    Args:
        specs: of the inputs.
        inputs: the data, as many frames of each; encoded frames fill their room.
        sizes: of the blocks; 0 makes one without frames, as an accumulation gives them. All in one
            unless told otherwise.
        missing: by offset, frames that are absent: one after the other from the first input, the
            second, and so on. The first input has the absences of all.
    """
    count = len(inputs[0])
    whole = []
    for number, (spec, data) in enumerate(zip(specs, inputs, strict=True)):
        assert len(data) == count, f"input {number} has {len(data)} frames, the first has {count}"
        columns: dict[str, Array] = {"timestamp": 1e9 + 0.1 * np.arange(count)}
        if spec.kind == "encoded":
            columns[SIZES] = np.full(count, spec.nbytes, np.uint64)
        block = Block(spec, FIRST, count, read_only(data), columns=columns)
        own = dict(list((missing or {}).items())[number :: len(inputs)])
        whole.append(block.refuse(own if number else missing or {}))
    blocks, first = [], 0
    for size in sizes or [count]:
        blocks.append(tuple(block.part(first, first + size) for block in whole))
        first += size
    assert first == count, f"the sizes of blocks are those of {first} frames, not of {count}"
    return blocks


def fresh(task: Task) -> Task:
    """Another task with the same parameters, made from what a file would say."""
    return type(task).load(task.plain(), "task")


def prepared(task: Task, specs: Sequence[FrameSpec]) -> FrameSpec:
    """What a task promises for inputs that are called `input0`, `input1` and so on."""
    task.know_inputs(tuple(f"input{number}" for number in range(len(specs))))
    return task.prepare(*specs)


@contextmanager
def started(
    task: Task, specs: Sequence[FrameSpec], run: RunContext
) -> Iterator[tuple[Task, FrameSpec]]:
    """A fresh copy of a task, ready for blocks, and what it promised; finished in the end."""
    task = fresh(task)
    promised = prepared(task, specs)
    task.start(run)
    try:
        yield task, promised
    finally:
        task.finish()


def step(task: Task, promised: FrameSpec, blocks: Blocks) -> Block:
    """What a task gives for a block of each input, asked for as a flow does."""
    first = blocks[0]
    if first.data is not None or task.takes_absent:
        return task.process(*blocks)
    assert promised.span == first.spec.span, (
        "a task whose products stand for several frames has to count absent ones: takes_absent"
    )
    return first.carry(promised, None)


def through(task: Task, blocks: Sequence[Blocks], run: RunContext) -> list[Block]:
    """What a fresh copy of a task gives for blocks."""
    specs = [block.spec for block in blocks[0]]
    with started(task, specs, run) as (ready, promised):
        return [step(ready, promised, some) for some in blocks]


def assert_promised(made: Block, promised: FrameSpec, given: Block) -> None:
    """Fail unless a product is what was promised, for the frames that were given."""
    assert made.spec == promised
    many = promised.span // given.spec.span
    first, end = given.index // many, given.end // many
    assert (made.index, made.count) == (first, end - first), "products of other frames"
    for name, values in made.columns.items():
        assert len(values) == made.count, f"column {name}"
    assert made.columns.keys() >= given.columns.keys()
    assert all(0 <= offset < made.count for offset in made.absences)
    if made.data is None:
        assert len(made.absences) == made.count, "frames without data and without an absence"
    elif promised.kind == "sparse":
        assert isinstance(made.data, Ragged)
        assert made.data.offsets.dtype == np.int64
        assert len(made.data) == made.count
        assert made.data.offsets[0] == 0
        assert (made.data.counts >= 0).all()
        assert made.data.dtype == promised.dtype
        assert {len(values) for values in made.data.columns.values()} == {made.data.offsets[-1]}
    else:
        assert isinstance(made.data, np.ndarray)
        assert made.data.shape == (made.count, *promised.shape)
        assert made.data.dtype == promised.dtype


def assert_same_frames(some: list[Block], others: list[Block], digits: int = 0) -> None:
    """Fail unless both are the same frames, however they are cut into blocks.

    Args:
        some: blocks with consecutive frames.
        others: the same frames in other blocks.
        digits: how many of the last (binary) digits of floating point numbers may differ.
    """
    first, second = list(_frames_of(some)), list(_frames_of(others))
    assert [frame["index"] for frame in first] == [frame["index"] for frame in second]
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            where = f"{name} of frame {one['index']}"
            if digits and isinstance(values, np.ndarray) and values.dtype.kind == "f":
                rtol = 2.0**digits * float(np.finfo(values.dtype).eps)
                np.testing.assert_allclose(other[name], values, rtol, 0, err_msg=where)
            else:
                np.testing.assert_equal(other[name], values, err_msg=where)


def _frames_of(blocks: Iterable[Block]) -> Iterator[dict[str, Any]]:
    """All that is known of every frame; its data column by column if it has columns."""
    for block in blocks:
        for offset, frame in enumerate(block.frames()):
            known: dict[str, Any] = {"index": frame.index, "absence": frame.absence}
            known |= {f"column {name}": values[offset] for name, values in block.columns.items()}
            if frame.data is not None:
                names = frame.data.dtype.names
                known |= {f"data.{name}": frame.data[name] for name in names or ()}
                known |= {} if names else {"data": frame.data}
            yield known
