"""Groups of frames that are spread over several blocks: which of these wait for the rest.

A node that takes over from a lost one is given a group from its beginning. So no part of one is
reported done before all of it has passed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from lima2py.graph.passed import Passed, overlap
from lima2py.transport.wire import DoneBlock


class Groups:
    """Groups of which a part has passed.

    Args:
        size: of a group, in frames.
        nb_frames: of the run; 0 if endless.
        most: the most blocks of an acquisition node that may wait.
        ends: by node they come from, once that is known, the numbers that follow the last frames
            of the detectors behind it: no group goes beyond them. 0 if the node is lost.
    """

    def __init__(self, size: int, nb_frames: int, most: int, ends: Mapping[int, Collection[int]]):
        self._size = size
        self._end = nb_frames or math.inf
        self._most = most
        self._ends = ends
        self._seen: dict[tuple[int, int], int] = {}  # by node they come from, and group

    def note(self, block: DoneBlock) -> None:
        """A block has passed."""
        n = self._size
        for source, group in self._parts(block):
            elsewhere = n if block.index > group * n else 0  # it was begun, and is not waited for
            seen = self._seen.get((source, group), elsewhere)
            self._seen[source, group] = seen + overlap(block, group, n)

    def divide(self, passed: Sequence[Passed]) -> tuple[list[Passed], list[Passed]]:
        """The blocks that need not wait for others, and those that go on waiting."""
        ready: list[Passed] = []
        waiting: list[Passed] = []
        for one in passed:
            (ready if self._is_complete(one.done) else waiting).append(one)
        still: list[Passed] = []
        room = Counter[int]()  # by acquisition node: each has credits of its own
        for one in reversed(waiting):
            room[one.done.source] += 1
            # What is too much is given up: if this node is lost, so is that group.
            (still if room[one.done.source] <= self._most else ready).append(one)
        still.reverse()
        waits = {part for one in still for part in self._parts(one.done)}
        self._seen = {part: seen for part, seen in self._seen.items() if part in waits}
        return ready, still

    def _is_complete(self, block: DoneBlock) -> bool:
        """Whether all groups that it has a part of have passed."""
        ends = self._ends.get(block.source, ())
        return 0 in ends or all(
            self._seen[source, group] >= self._length(group, ends)
            for source, group in self._parts(block)
        )

    def _length(self, group: int, ends: Collection[int]) -> float:
        """How many frames a group has: fewer than others if frames end within it."""
        first = group * self._size
        return min(
            (end - first for end in (self._end, *ends) if first < end < first + self._size),
            default=self._size,
        )

    def _parts(self, block: DoneBlock) -> set[tuple[int, int]]:
        """The groups of which a block holds only a part, with the node it came from.

        Another node may give the same group anew, while blocks of one that is lost still come.
        """
        n, end = self._size, block.index + block.count
        return {(block.source, edge // n) for edge in (block.index, end) if edge % n}
