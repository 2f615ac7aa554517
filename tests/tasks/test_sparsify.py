"""Sparse frames hold exactly the pixels above a limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2py.frame import Absence, Array, Block, Fate, FrameSpec
from lima2py.task import Task
from lima2py.tasks.sparsify import Sparsify, densify
from lima2py.testing.tasks import TaskTests
from tests.tasks.strips import pixels, seen


class TestSparsify(TaskTests):
    @pytest.fixture
    def task(self) -> Task:
        return Sparsify(above=80)


@settings(max_examples=80)
@given(
    pixels(side=40), st.integers(1, 9), st.sampled_from([0, 1, 3.5]), st.sampled_from([0, 0.9, 1])
)
def test_the_rows_are_those_that_numpy_finds(
    frames: Array, lines: int, above: float, empty: float
) -> None:
    frames[np.random.default_rng(1).random(frames.shape) < empty] = 0
    above = 0 if frames.dtype.kind == "b" else above
    made = seen(Sparsify(above=above), frames, lines=lines)
    rows = made.rows
    assert rows.dtype == made.spec.dtype
    for number, frame in enumerate(frames.reshape(len(frames), -1)):
        where = np.flatnonzero(frame > above)
        own = rows.rows(number)
        np.testing.assert_array_equal(own["index"], where)
        np.testing.assert_array_equal(own["value"], frame[where])
    kept = np.where(frames > above, frames, np.zeros((), frames.dtype))
    np.testing.assert_array_equal(densify(rows, made.spec), kept)


def test_frames_of_which_every_pixel_is_above_fit() -> None:
    frames = np.full((2, 1, 37, 29), 65535, "u2")
    rows = seen(Sparsify(above=65534), frames, lines=7).rows
    assert rows.counts.tolist() == [37 * 29] * 2


def test_blocks_of_any_length_follow_one_another() -> None:
    """What a block gave is not changed by the next one, and absent frames have no rows."""
    spec = FrameSpec.dense(8, 9, "u2")
    frames = np.random.default_rng(3).poisson(0.4, (9, *spec.shape)).astype("u2")
    task = Sparsify()
    task.prepare(spec)
    made = []
    for first, end in ((0, 2), (2, 7), (7, 9)):
        absent = {1: Absence(Fate.OVERRUN, "ring")} if first == 2 else {}
        made.append(task.process(Block(spec, first, end - first, frames[first:end], absent)))
    kept = frames.copy()
    kept[3] = 0
    whole = np.concatenate([densify(block.rows, block.spec) for block in made])
    np.testing.assert_array_equal(whole, kept)
