"""The frames of another detector, which came with those of the main one: no task of a graph file.

The plan puts it before tasks that name another detector in `from`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import PrivateAttr

from lima2py.frame import Block, FrameSpec
from lima2py.task import Task
from lima2py.trigger_map import Companion


class TakeCompanion(Task):
    """Hands on the frames of another detector."""

    detector: str
    """Its name in the system file."""

    takes_absent: ClassVar[bool] = True

    _companion: Companion = PrivateAttr()

    @classmethod
    def of(cls, detector: str, companion: Companion) -> TakeCompanion:
        """One for such frames."""
        task = cls(detector=detector)
        task._companion = companion
        return task

    @property
    def share(self) -> float:
        """The part of all events that have a frame."""
        return self._companion.events.share

    @property
    def group(self) -> int:
        """Events that have a frame in common must meet in one node: it is sent to one only."""
        return self._companion.events.group

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """What the frames of the other detector look like."""
        return self._companion.spec

    def process(self, block: Block) -> Block:
        """Its frames of the same events."""
        return block.companions[self.detector]
