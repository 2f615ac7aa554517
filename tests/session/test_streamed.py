"""Small products of several nodes are put in order, also when the reader comes late or is slow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lima2py.frame import Block, FrameSpec
from lima2py.session.follow import streamed
from lima2py.session.launch import Handle
from lima2py.transport.products import pack_product

SPEC = FrameSpec("vector", (1,), np.dtype("f8"))


class Says(Handle):
    """A node that says what it is told to, one answer a look: serials with the index."""

    def __init__(self, name: str, answers: Sequence[Sequence[tuple[int, int]]], ends: bool = True):
        self.name = name
        self.rank = 0
        self._answers = list(answers)
        self._ends = ends

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        raise NotImplementedError

    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        given = self._answers.pop(0) if self._answers else []
        blocks = [
            (serial, pack_product(Block(SPEC, index, 1, np.full((1, 1), float(index)))))
            for serial, index in given
        ]
        ended = self._ends and not self._answers
        return {"spec": SPEC.plain(), "ended": ended, "blocks": blocks}

    def close(self) -> None:
        return


def follow(*nodes: Says, frames: int) -> list[tuple[int, bool]]:
    blocks = streamed(nodes, "run", "task", 5.0, lambda: ((), frames))
    return [(frame.index, frame.data is not None) for block in blocks for frame in block.frames()]


def test_a_reader_who_missed_some_waits_for_what_only_comes_late() -> None:
    found = follow(
        Says("a", [[(3, 6), (4, 8)], [(5, 10), (6, 12)], [(7, 14)]]),
        Says("b", [[(3, 7)], [], [(4, 9), (5, 11), (6, 13)]]),
        frames=15,
    )
    assert found == [(index, True) for index in range(6, 15)]


def test_what_gave_way_before_it_was_read_is_absent_as_soon_as_that_is_sure() -> None:
    nodes = (
        Says("a", [[(0, 0), (1, 2)], [(4, 8)]], ends=False),
        Says("b", [[(1, 3)], [(3, 7), (4, 9)]], ends=False),
    )
    blocks = streamed(nodes, "run", "task", 5.0, lambda: ((), 0))
    got: dict[int, bool] = {}
    while 9 not in got:
        got.update({frame.index: frame.data is not None for frame in next(blocks).frames()})
    assert [index for index, there in got.items() if there] == [0, 2, 3, 7, 8, 9]
    assert list(got) == list(range(10))


def test_a_slow_reader_has_not_waited_for_the_next_frame() -> None:
    blocks = streamed([Says("a", [[(0, 0)], [(1, 1)]])], "run", "task", 0.05, lambda: ((), 2))
    found = []
    for block in blocks:
        found.append(block.index)
        time.sleep(0.06)
    assert found == [0, 1]
