"""What becomes of frames that find the ring full: absent, in as few blocks as can be.

They go the way of all frames, so that every sink has a record of them and no accumulation waits for
them; but only when there is room again, so that however long the ring is full, little waits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from lima2py.detector import Share
from lima2py.frame import Absence, Block, Fate
from lima2py.ring import MAX_FRAMES_PER_BLOCK, RingShape
from lima2py.units import as_size


class Overrun:
    """Frames that had no room and were not handed on yet.

    Args:
        shape: of the ring.
        share: which frames are ours.
        group: consecutive frames that are processed together; see `Readout`.

    Attributes:
        frames: how many had no room, in all.
    """

    def __init__(self, shape: RingShape, share: Share, group: int):
        self.frames = 0
        self._shape = shape
        self._share = share
        self._group = group
        self._said = Absence(Fate.OVERRUN, "ring", f"full: {shape.slots} slots held")
        self._parts: list[Block] = []
        self._waiting: list[Block] = []
        self._first = -1
        self._rates = (math.nan, math.nan)

    def add(self, block: Block, seconds: float, came: int, settled: int) -> None:
        """Take frames, whose data will be written over.

        Args:
            block: the frames; those absent before keep their cause.
            seconds: since the first frame.
            came: frames in this time.
            settled: frames that have a fate by now.
        """
        if not self.frames:
            self._first = block.index
        if self._parts:
            follows = self._parts[-1].end == block.index  # else frames of other nodes lie between
            if not follows or block.end - self._parts[0].index > MAX_FRAMES_PER_BLOCK:
                self._close()
        lost = block.count - len(block.absences)
        self._parts.append(block.refuse(dict.fromkeys(range(block.count), self._said)))
        if seconds > 0:
            self._rates = came / seconds, max(0, settled - self.frames) / seconds
        self.frames += lost

    def take(self) -> list[Block]:
        """The frames that wait, in order, and now wait no more."""
        self._close()
        waiting, self._waiting = self._waiting, []
        return waiting

    @property
    def complaint(self) -> str:
        """What to tell the user if there was no room for all."""
        shape = self._shape
        size = as_size(shape.slots * shape.stride)
        came, done = self._rates
        return (
            f"the ring ({size}, {shape.slots} slots of {shape.frames} frames) was full: no room for"
            f" {self.frames} frames from frame {self._first} on; {came:.4g} frames/s came and"
            f" {done:.4g}/s were done. Add processing nodes, do less in the graph or expose for"
            " longer; if it was a burst, make the ring larger (memory: {ring: ...} in the system"
            " file); a detector that can be held back needs the policy overload: wait"
        )

    def _close(self) -> None:
        """Make one block of what came together; cut where a group that nodes share out begins."""
        if not self._parts:
            return
        whole = replace(Block.join(self._parts), acquired_at=self._parts[0].acquired_at)
        self._parts = []
        first, end, group = whole.index, whole.end, self._group
        inside = {edge for edge in (-(-first // group) * group, end // group * group)
                  if first < edge < end}  # fmt: skip
        self._waiting += [
            whole.part(begin - first, stop - first)
            for begin, stop in pairwise(sorted({first, end, *inside}))
        ]
