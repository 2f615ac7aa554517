"""Small products of several nodes are put in order, also when the reader comes late or is slow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest

from lima2py.errors import NodeError
from lima2py.frame import Block, FrameSpec
from lima2py.session.follow import streamed
from lima2py.session.launch import Handle
from lima2py.transport.products import pack_product

SPEC = FrameSpec("vector", (1,), np.dtype("f8"))


class Says(Handle):
    """A node that says what it is told to, one answer a look: serials with the index."""

    def __init__(
        self,
        name: str,
        answers: Sequence[Sequence[tuple[int, int]]],
        ends: bool = True,
        dies: bool = False,
        behind: bool = False,
    ):
        self.name = name
        self.rank = 0
        self._answers = list(answers)
        self._ends = ends
        self._dies = dies
        self._behind = behind  # it has all of them from the beginning, and gives them bit by bit
        self._newest = max((serial for given in answers for serial, _ in given), default=-1)

    def call(self, command: str, *, timeout: float = 30.0, **parameters: Any) -> Any:
        raise NotImplementedError

    def look(self, command: str, *, timeout: float = 5.0, **parameters: Any) -> Any:
        if self._dies and not self._answers:
            raise NodeError("node was killed")
        given = self._answers.pop(0) if self._answers else []
        blocks = [
            (serial, pack_product(Block(SPEC, index, 1, np.full((1, 1), float(index)))))
            for serial, index in given
        ]
        ended = self._ends and not self._answers
        newest = given[-1][0] if given and not self._behind else self._newest
        return {"spec": SPEC.plain(), "newest": newest, "ended": ended, "blocks": blocks}

    def close(self) -> None:
        return


def streamed_from(
    nodes: Sequence[Handle], done_to: Callable[[], int], frames: int, timeout: float = 5.0
) -> Iterator[Block]:
    """Of a run that is over, and acquired so many frames."""
    there = dict(enumerate(nodes))
    account = ((), frames)
    return streamed(lambda: there, "run", "task", timeout, lambda: True, done_to, lambda: account)


def follow(*nodes: Says, frames: int) -> list[tuple[int, bool]]:
    blocks = streamed_from(nodes, lambda: 0, frames)
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
    done = iter([0, 4, 10])
    got = first_ten(streamed_from(nodes, lambda: next(done, 10), 0))
    assert [index for index, there in got if there] == [0, 2, 3, 7, 8, 9]


def test_what_only_a_lost_node_had_is_absent_while_the_run_goes_on() -> None:
    nodes = (
        Says("a", [[(0, 0), (1, 1)]], dies=True),
        Says("b", [[(0, 4), (1, 5)], [(2, 3), (3, 6)], [(4, 7), (5, 8), (6, 9)]], ends=False),
    )
    done = iter([0, 2, 2])  # frame 3 was made again by the other node, frame 2 was done
    got = first_ten(streamed_from(nodes, lambda: next(done, 10), 0))
    assert [index for index, there in got if not there] == [2]


def test_a_reader_who_lags_behind_is_not_told_too_early_that_something_is_missing() -> None:
    """Frames a lost node had come out of order from the others, maybe after many newer ones."""
    late = Says("a", [[(0, 8)], [(1, 9)], [(2, 5)], [(3, 7)]], behind=True)
    other = Says("b", [[(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]], ends=False)
    got = first_ten(streamed_from([late, other], lambda: 10, 0))
    assert [index for index, there in got if not there] == [6]


def test_a_reader_who_comes_when_all_nodes_are_lost_is_told_so() -> None:
    with pytest.raises(NodeError, match='task "task": all nodes that had its products are lost'):
        follow(Says("a", [], dies=True), Says("b", [], dies=True), frames=15)


def test_a_node_that_comes_for_a_lost_one_is_read_too() -> None:
    there: dict[int, Handle] = {0: Says("a", [[(0, 0), (1, 1)]], dies=True, ends=False)}
    looks = iter(range(100))

    def nodes() -> dict[int, Handle]:
        if next(looks) == 12:  # long after the first one is lost
            there[1] = Says("a", [[(0, index) for index in range(2, 10)]])
        return there

    blocks = streamed(nodes, "run", "task", 5.0, lambda: 1 in there, lambda: 0, lambda: ((), 10))
    assert first_ten(blocks) == [(index, True) for index in range(10)]


def first_ten(blocks: Iterator[Block]) -> list[tuple[int, bool]]:
    """The first ten frames, which are in order, and whether each is there."""
    frames = (frame for block in blocks for frame in block.frames())
    got = [(frame.index, frame.data is not None) for frame in islice(frames, 10)]
    assert [index for index, _ in got] == list(range(10))
    return got


def test_a_slow_reader_has_not_waited_for_the_next_frame() -> None:
    blocks = streamed_from([Says("a", [[(0, 0)], [(1, 1)]])], lambda: 0, 2, timeout=0.05)
    found = []
    for block in blocks:
        found.append(block.index)
        time.sleep(0.06)
    assert found == [0, 1]
